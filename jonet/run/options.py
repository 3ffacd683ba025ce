"""Options of `jonet run`: those of the program, and every field of the task's config."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jonet import parser
from jonet.chips import CHIPS
from jonet.errors import ConfigError
from jonet.tasks import names
from jonet.tasks.names import STAGES

if TYPE_CHECKING:  # it imports jax, which the usage does not need
    from jonet.tasks.base import Task, TaskConfig

USAGE = """usage: {prog} --task=TASK [options]

Trains a network on shapes, reconstructs unseen ones, evaluates them, and writes a report (HTML). The same
command continues a run that was stopped; finished stages whose inputs did not change are skipped.

the options that matter most:
  --task TASK          {tasks}
  --data DATA          a folder of meshes, one mesh, or families joined by commas (chair, table, mug, …)
  --preset PRESET      quick (minutes on a laptop; the default), small (an hour), paper (as published);
                       deepsdf also has single (the default for one mesh) and single_mlp
  --workdir DIR        the run folder (default: runs/TASK-PRESET)
  --minutes M          training time, instead of the preset's;  --steps N  training steps, instead of minutes
  --seed S             seed of all random numbers (default: 0)
  --network.latent-size L   length of a shape's code
  --batch-shapes S, --batch-points P   shapes per training step, and points of each
  --surfaces.resolution R   cells per side of the grid for marching cubes (short: --resolution)
  --plan               only print memory, disk, steps and time that the run takes;  --chip C  on a chip (v5e, h100, …)
  --stages A,B         some of prepare, train, reconstruct, evaluate, report (default: all)

{prog} --task=TASK --help lists every option of a task with its default.
"""
PRESETS = {
    **{"quick": "minutes", "small": "an hour", "paper": "as published"},
    **{"single": "for one mesh, seconds", "single_mlp": "for one mesh, a network of its own"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run that do not belong to the task's config."""

    # Help texts are in the annotations: `parse` derives a class at run time, for which tyro cannot read comments.
    task: str = "deepsdf"  # its help, with the installed tasks, is in `parse`
    preset: str | None = None  # its help, with the presets of the task, is in `parse`
    workdir: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help="the run folder (default: runs/TASK-PRESET)"),
    ] = None
    stages: Annotated[str, tyro.conf.arg(help="stages to run, joined by commas")] = ",".join(STAGES)
    distributed: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="ADDRESS:PORT,N,I", help="process I of N under jax.distributed; auto: detected from the cluster"
        ),
    ] = None
    plan: Annotated[
        bool, tyro.conf.arg(help="only print what the run takes: memory, disk, steps, and time on a chip")
    ] = False
    chip: Annotated[
        str | None,
        tyro.conf.arg(metavar="|".join(CHIPS), help="with --plan: one chip, instead of this machine's devices"),
    ] = None
    quiet: Annotated[bool, tyro.conf.arg(help="no progress on stderr")] = False


def parse(arguments: Sequence[str], prog: str = "jonet run") -> tuple[Task, TaskConfig, Options]:
    """Parses the options of a run → (task, its config, Options with workdir, preset and a tuple of stages set).

    Without arguments, and for `--help` without a task, prints the usage and raises SystemExit (status 2 or 0).  Raises
    ConfigError for an unknown task, preset, stage or option, and for options that contradict each other.
    """
    arguments = list(arguments)
    name = parser.value(arguments, "task")
    if not arguments or (name is None and {"-h", "--help"} & set(arguments)):
        print(USAGE.format(prog=prog, tasks=", ".join(names.all_names())), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    from jonet.run import train  # imported late: they import jax, which the usage does not need
    from jonet.tasks import registry

    task = registry.find("deepsdf" if name is None else name)
    preset = parser.value(arguments, "preset") or task.usual_preset(parser.value(arguments, "data") or "")
    start = train.preset_of(task, preset, "")
    about = f"the network and its input: one of {', '.join(names.all_names())}"
    presets = ", ".join(f"{name} ({PRESETS[name]})" if name in PRESETS else name for name in task.presets)
    kind = dataclasses.make_dataclass(
        "Run",
        [
            ("task", Annotated[str, tyro.conf.arg(help=about)], dataclasses.field(default=task.name)),
            (
                "preset",
                Annotated[str | None, tyro.conf.arg(metavar="STR", help=f"one of {presets}")],
                dataclasses.field(default=None),
            ),
            ("config", Annotated[task.config, tyro.conf.arg(name="")], dataclasses.field(metadata={"flat": True})),
        ],
        bases=(Options,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": f"{task.title}, preset {preset}."},
    )
    options, given = parser.parse(kind, arguments, prog, kind(config=start, task=task.name, preset=preset))
    config = options.config.resolved(given)
    if not config.data and not options.plan:
        raise ConfigError(config.no_data)
    config.check_later()
    if options.chip is not None and (not options.plan or options.chip not in CHIPS):
        raise ConfigError(f"--chip is {options.chip}; with --plan, it is one of {', '.join(CHIPS)}")
    stages = tuple(name.strip() for name in options.stages.split(",") if name.strip())
    if unknown := [name for name in stages if name not in STAGES]:
        raise ConfigError(f"--stages names {unknown[0]!r}, but the stages are {', '.join(STAGES)}")
    workdir = options.workdir or Path("runs") / f"{task.name}-{preset}"
    values: dict[str, Any] = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options)}
    return task, config, Options(**values | {"workdir": workdir, "stages": stages, "preset": preset})
