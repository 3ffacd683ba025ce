"""From shapes to a trained model: a folder of meshes, a store or a family's name → Store → Model."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType

import jax

from jonet import config as configs
from jonet import model as models
from jonet import parallel
from jonet.data import store as stores
from jonet.data.families import FAMILIES
from jonet.data.store import Store
from jonet.errors import ConfigError, shown
from jonet.model import Model
from jonet.run import state
from jonet.run.state import RunState
from jonet.storage import atomic
from jonet.tasks.problem import Problem, resolved
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.loop import Loop
from jonet.training.loop import train as run_loop
from jonet.training.watch import agreed

TASKS = (
    *("deepsdf", "deepsdf_completion", "occnet", "onet_points", "onet_voxels", "onet_images", "onet_unconditional"),
    "purify",
)


def task(name: str) -> ModuleType:
    """The module of a task: its Config, PRESETS, PARTS, and what the stages ask of it."""
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"task is {shown(name)}, but there are {', '.join(TASKS)}")
    return importlib.import_module(f"jonet.tasks.{name}")


def train(
    data,
    task: str = "deepsdf",
    *,
    workdir: str | Path | None = None,
    preset: str | None = None,
    minutes: float | None = None,
    seed: int = 0,
    **options,
) -> Model:
    """Trains a network on shapes.

    data: a folder of meshes or one mesh file, the name of a procedural family, or a Store.  workdir: where the store,
    checkpoints and the model are kept (nowhere if None); the same call goes on there where it was stopped.
    preset: "quick", "small" or "paper", of deepsdf also "single"; None takes "single" for one mesh, else "quick".
    minutes: of training, in place of the preset's; `steps`, among the options, takes the place of both.  options:
    other fields of the task's Config; groups of them as dicts, `network={"latent_size": 8}`, which change what they
    name and leave the rest as the preset has it, or as the config's dataclasses.
    Raises ConfigError, before any work, for what is unknown, of a wrong type, out of bounds, or not read beside the
    rest.
    """
    module = globals()["task"](task)
    changes = {"seed": seed, **options} | ({} if minutes is None else {"minutes": minutes})
    if isinstance(data, Store):
        if extra := [name for name in ("shapes", "samples") if name in options]:
            raise ConfigError(f"{extra[0]} is given, but not read: data is a store, which was made with its own")
        changes |= {"data": str(data.folder), "samples": data.recipe}
    elif isinstance(data, str | Path) and str(data) and "\0" not in str(data):
        changes["data"] = str(data)
    else:
        raise ConfigError(
            f"data is {shown(data)}, but must be a folder of meshes, a mesh file, the name of a family, or a Store"
        )
    config = configured(module, preset, changes)
    with contextlib.ExitStack() as stack:
        if workdir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jonet-")))
        else:
            folder = _folder(workdir)
        run = stack.enter_context(state.opened(folder, module, config))
        return train_network(run, data if isinstance(data, Store) else prepare(run))


def configured(module: ModuleType, preset: str | None, changes: dict):
    """The config of a task: a preset with changes, as of `train`.  preset: None for the usual one of such data."""
    start = preset_of(module, preset, changes.get("data", ""))
    config = configs.changed(start, changes)
    return resolved(config, configs.given(start, changes))


def preset_of(module: ModuleType, preset: str | None, data: str):
    """The config of a preset, None for the usual one of such data; ConfigError for one that a task does not have."""
    preset = module.usual_preset(data) if preset is None else preset
    if not isinstance(preset, str) or preset not in module.PRESETS:
        raise ConfigError(f"preset is {shown(preset)}, but {module.NAME} has {', '.join(module.PRESETS)}")
    return module.PRESETS[preset]


def _folder(workdir) -> Path:
    """The path of a run folder; ConfigError where there can be none."""
    if not isinstance(workdir, str | Path) or not str(workdir) or "\0" in str(workdir):
        raise ConfigError(f"workdir is {shown(workdir)}, but must be the path of a folder")
    folder = Path(workdir)
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"workdir is {folder}, but {place} is a file; choose another folder")
            break
    return folder


def prepare(run: RunState) -> Store:
    """The store of a run's shapes: the one that is there if it is whole and made of these shapes, else built."""
    config, folder = run.config, run.folder / "store"
    done = run.is_done("prepare")
    if done and config.data == run.made["prepare"]["options"]["data"] and not _is_there(config.data):
        warnings.warn(f"{config.data} is not there any more: going on with the store that was made of it", stacklevel=2)
        return stores.open(folder)

    def build() -> Store:
        return stores.build(
            folder,
            config.shapes.sources(config.data, config.seed),
            config.samples,
            seed=config.seed,
            frame=run.task.FRAME,
            sign=config.shapes.sign,
            wait=parallel.together(),  # the first process builds it, the others open it
        )

    if done:
        store = build()  # opens it, and says where the shapes are others now, or nowhere
        run.confirm("prepare")
        return store

    def work():
        if parallel.is_main() and not atomic.is_free(folder) and not stores.is_whole(folder):
            _set_aside(folder)
        parallel.from_main(None)  # the other processes go on when that is done
        return state.stamps(path for path in sorted(build().folder.iterdir()) if path.is_file())

    run.do("prepare", work)
    return stores.open(folder)


def _set_aside(folder: Path) -> None:
    warnings.warn(f"{folder} is damaged: it now lies at {atomic.move_aside(folder, 'damaged')}", stacklevel=3)


def _is_there(data: str) -> bool:
    return Path(data).exists() or all(name.strip() in FAMILIES for name in data.split(","))


def train_network(run: RunState, store: Store) -> Model:
    """The network of a run, trained on the training shapes of a store: the one that is there if it was, else trained.

    Training goes on from its newest checkpoint.  Where the task hands over a model that was trained before, that is
    saved as the run's own.
    """
    inputs, folder = run.inputs("train", store), run.folder / "model"
    if run.is_done("train", inputs):
        return adjusted(run)
    if parallel.is_main():
        if not atomic.is_free(folder) and not (folder / "model.json").exists():
            _set_aside(folder)
        models.check_replaceable(folder)

    def work():
        trained = _trained(run, store, configs.digest(run.key("train"), inputs))
        if parallel.is_main():
            trained.save(folder)
        parallel.from_main(None)  # the other processes read it when it is there
        return _model_files(run) if parallel.is_main() else {}

    run.do("train", work, inputs)
    return adjusted(run)


def adjusted(run: RunState) -> Model:
    """The trained model of a run with the settings of fitting and extraction that the run has now, which it keeps."""
    folder = run.folder / "model"
    if parallel.is_main():
        before = models.load(folder)
        now = run.task.adjusted(run.config, before)
        if (now.fitting, now.surfaces) != (before.fitting, before.surfaces):  # so that `extract RUN` has them, too
            now.save(folder)
            run.renew("train", _model_files(run))
    parallel.from_main(None)  # the other processes read it when it is there
    return models.load(folder)


def _model_files(run: RunState) -> dict[Path, dict]:
    return state.stamps(sorted((run.folder / "model").iterdir()))


def _trained(run: RunState, store: Store, identity: str) -> Model:
    """identity: of the training, which its checkpoints carry."""
    config = run.config
    rows = store.select("train")
    key = parallel.fold(jax.random.key(config.seed), "train")
    problem: Problem | Model = run.task.problem(config, store, rows, key, dict(run.chosen))
    if isinstance(problem, Model):
        return problem
    loop = Loop(problem.loss, problem.optimizer.build(), problem.batches, key, lookup=problem.lookup)

    def start():
        return loop.start(problem.shared, problem.own, problem.statistics)

    chosen = problem.chosen
    if "steps" not in chosen:
        minutes = getattr(config, "minutes", 0)
        chosen["steps"] = planned_steps(loop, start(), minutes) if minutes else problem.steps
    run.choose(chosen)
    with Checkpoints(run.folder / "checkpoints", identity) as checkpoints:
        found = run_loop(
            loop,
            start(),
            chosen["steps"],
            checkpoints=checkpoints,
            log=Log(run.folder / "log.jsonl"),
            validate=problem.validate,
            validate_every=problem.validate_every,
            patience=problem.patience,
            names=store.names,
        )
        if problem.validate:
            found, history = loop.restore(checkpoints, found, best=True)
            if history["best"] is None:
                warnings.warn("no validation gave a number, so the last state is kept as the best", stacklevel=4)
    shared, statistics = parallel.host((found.shared, found.statistics))
    return run.task.model(config, store, rows, shared, loop.own(found), statistics)


def planned_steps(loop: Loop, state, minutes: float) -> int:
    """How many steps fit into so many minutes here, by the pace of a few; the state is used up."""
    steps, seconds = 1, 0.0
    while seconds < 2.5 and steps < 1024:
        steps = min(1024, steps if seconds == 0 else int(steps * min(8, max(2, 3.0 / seconds))))
        data, count = loop.batches.segment(0, steps)
        for _ in range(2 if seconds == 0 else 1):  # the first dispatch also compiles
            begun = time.perf_counter()
            state, metrics, _ = loop.advance(state, data, count, steps)
            jax.block_until_ready(metrics)
            seconds = agreed(time.perf_counter() - begun)  # so that all processes plan alike
        if count < steps:
            break
    return max(1, int(minutes * 60 * count / seconds))
