"""A task from shapes to report.

    python experiments/run.py --task=deepsdf [--preset=small] [--data=FOLDER] [--workdir=DIR] [--seed=1] …

Every field of the task's config is an option (`--task=deepsdf --help` lists them).  Started again with the same
command, a run goes on where it stopped; finished stages whose inputs did not change are skipped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder, installed or not


def parse(arguments: list[str]):
    """The options of a run: (task module, config, namespace of workdir, stages, preset …)."""
    import tyro

    from experiments import stages
    from jonet import learn
    from jonet.commands.options import DISTRIBUTED
    from jonet.errors import ConfigError
    from jonet.tasks.problem import resolved

    top = argparse.ArgumentParser(prog="experiments/run.py", add_help=False, allow_abbrev=False, description=__doc__)
    top.add_argument("--task", default="deepsdf", help=f"one of {', '.join(learn.TASKS)}")
    top.add_argument("--preset", help="quick (minutes on a laptop; the default), small (an hour), paper (as published)")
    top.add_argument("--workdir", type=Path, help="where everything is written (default: runs/TASK-PRESET)")
    top.add_argument("--stages", default=",".join(stages.STAGES), help="comma-separated; the default is all, in order")
    names, settings = DISTRIBUTED
    top.add_argument(*names, **settings)
    options, rest = top.parse_known_args(arguments)
    task, given = learn.task(options.task), _given(rest)
    options.preset = options.preset or task.usual_preset(given.get("data", ""))
    start = learn.preset_of(task, options.preset, "")
    if {"-h", "--help"} & set(rest):
        top.print_help()
        print(f"\nthe config of {options.task}, preset {options.preset}:\n")
    rest = [part.replace("_", "-") if part.startswith("--") and "=" not in part else part for part in rest]
    config = tyro.cli(task.Config, default=start, args=rest, prog="experiments/run.py")
    config = resolved(config, set(given))
    config.check_later()
    options.workdir = options.workdir or Path("runs") / f"{options.task}-{options.preset}"
    options.stages = [name.strip() for name in options.stages.split(",") if name.strip()]
    unknown = [name for name in options.stages if name not in stages.STAGES]
    if unknown:
        raise ConfigError(f"--stages names {unknown[0]!r}, but the stages are {', '.join(stages.STAGES)}")
    return task, config, options


def _given(rest: list[str]) -> dict[str, str]:
    """The names of options among arguments that are not parsed yet, as the config has them, and their first values."""
    given = {}
    for i, part in enumerate(rest):
        name, equals, value = part.partition("=")
        if name.startswith("--"):
            given[name[2:].replace("-", "_")] = value if equals else "".join(rest[i + 1 : i + 2])
    return given


def cache_folder() -> Path | None:
    """Where compiled programs are kept from run to run; None where there is no such place (a user without a home)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "jonet" / "compiled" if os.path.isabs(base) else None


def main(arguments: list[str] | None = None) -> int:
    """Runs a task; the exit status, as of `interrupt.status`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if cache := cache_folder():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    from jonet import interrupt

    def work():
        task, config, options = parse(arguments)
        from experiments import stages
        from jonet import parallel

        if options.distributed is not None:
            parallel.join(options.distributed)
        stages.run(task, config, options.workdir, options.stages)

    return interrupt.status(work, "stopped; the same command goes on where it was")


if __name__ == "__main__":
    from jonet.interrupt import leave

    leave(main())
