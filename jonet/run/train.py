"""The stages prepare and train, and `jonet.train`: shapes (meshes, a procedural family or a store) → Store → Model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jonet import config as configs
from jonet import device_memory, parallel
from jonet import model as models
from jonet.data import lying
from jonet.data import store as stores
from jonet.data.families import FAMILIES
from jonet.data.sources import InMemory, MeshFile, Source
from jonet.data.store import Store
from jonet.errors import ConfigError, StoreError, out_of_device_memory, shown
from jonet.formats import labeled_points
from jonet.formats.sampled import Sampled
from jonet.geometry.mesh import as_meshes
from jonet.model import Model
from jonet.model_folder import check_replaceable
from jonet.run import state
from jonet.run.state import RunState
from jonet.storage import atomic, names, search
from jonet.tasks import registry, unseen
from jonet.tasks.base import Task, TaskConfig
from jonet.tasks.setup import TrainingSetup
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.loop import Loop
from jonet.training.loop import train as run_loop
from jonet.training.monitor import agreed
from jonet.wording import counted

VALIDATIONS = 100  # at most, where training lasts minutes


def train(
    data,
    task: str | Task = "deepsdf",
    *,
    workdir: str | Path | None = None,
    preset: str | None = None,
    minutes: float | None = None,
    seed: int = 0,
    **options,
) -> Model:
    """Trains a network on shapes.

    data: a folder of meshes or one mesh file, the name of a procedural family, a Store, or meshes in memory: a list of
    meshes of jonet, trimesh, or any with `vertices` and `faces`, or one, all of which are trained on.  For the task
    "occnet" also points with occupancies: a file of them (.npz, .csv), or a tuple (points [N, 3], occupancies [N]).
    task: the name of a built-in task or of one that an installed package declares, or a `jonet.Task`.
    workdir: folder for the store, checkpoints and the model (None: a temporary one, removed afterwards); the same call
    continues a training that was stopped.
    preset: "quick", "small" or "paper", of deepsdf also "single" (the default for one mesh) and
    "single_mlp"; None takes the default, else "quick".
    minutes: training time, instead of the preset's; the option `steps` replaces both.
    seed: of all random numbers.
    options: other fields of the task's config.  A group is a dict, `network={"latent_size": 8}`, whose missing fields
    keep the preset's values, or an instance of the config's dataclass.
    Raises ConfigError, before any work, for options that are unknown, of a wrong type, out of bounds, or without effect
    with the others.
    """
    found, held = registry.find(task), []  # held: sources of what is in memory
    changes: dict[str, Any] = {"seed": seed, **options} | ({} if minutes is None else {"minutes": minutes})
    if isinstance(data, Store):
        if extra := [name for name in ("shapes", "samples") if name in options]:
            raise ConfigError(f"{extra[0]} is given, but not read: data is a store, which has its own")
        changes |= {"data": str(data.folder), "samples": data.recipe}
    elif isinstance(data, tuple) and len(data) == 2 and not any(_is_shape(part) for part in data):
        if not found.learns_points:
            raise ConfigError(
                f"data is a pair of points and occupancies, which occnet learns from; {found.name} needs meshes"
            )
        points, inside = labeled_points.labels(*data, "data")
        held = [labeled_points.PointsInMemory("points", points=points, inside=inside)]
        changes["data"] = f"{counted(len(points), 'labeled point')} in memory"
    elif isinstance(data, list | tuple) or hasattr(data, "vertices"):
        meshes = as_meshes(data, "data")
        if not meshes:
            raise ConfigError("data is an empty list; give one or more meshes")
        named = names.unique([mesh.name or f"mesh {i}" for i, mesh in enumerate(meshes)])
        held = [InMemory(name, mesh=mesh) for name, mesh in zip(named, meshes, strict=True)]
        changes["data"] = f"{counted(len(meshes), 'mesh', 'meshes')} in memory"
        if preset is None and len(meshes) == 1 and "single" in found.presets:
            preset = "single"
    elif isinstance(data, str | Path) and str(data) and "\0" not in str(data):
        changes["data"] = os.path.expanduser(data)
    else:
        raise ConfigError(
            f"data is {shown(data)}, but must be a folder of meshes, a mesh file, the name of a family, a Store, or a "
            "list of meshes"
        )
    config = configured(found, preset, changes)
    if held:
        start, are_meshes = preset_of(found, preset, changes["data"]), isinstance(held[0], InMemory)
        allowed = {"shapes.sign"} if are_meshes else set()
        unused = {"shapes": config.shapes} | ({} if are_meshes else {"samples": config.samples})
        if extra := configs.given(start, unused) - allowed:
            kind = "meshes in memory, which are all trained on" if are_meshes else "points with occupancies"
            raise ConfigError(f"{min(extra)} is given, but not read: data are {kind}")
    with contextlib.ExitStack() as stack:
        if workdir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jonet-")))
            stack.enter_context(_nothing_is_kept())
        else:
            folder = _folder(workdir)
        run = stack.enter_context(state.opened(folder, found, config))
        if held:
            return train_network(run, prepare_held(run, held))
        return train_network(run, data if isinstance(data, Store) else prepare(run))


def _is_shape(part) -> bool:
    """Whether something is a mesh or the path of one, and no array."""
    return isinstance(part, str | Path) or hasattr(part, "vertices")


@contextlib.contextmanager
def _nothing_is_kept() -> Iterator[None]:
    """Within this context Ctrl-C does not promise that a training continues."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        done = str(stopped).partition(";")[0] or "stopped"
        raise KeyboardInterrupt(f"{done}; nothing is kept, since no workdir was given") from stopped


def configured(task: Task, preset: str | None, changes: dict) -> TaskConfig:
    """A preset's config with changes, as in `train`.  preset: None for the default one for this data."""
    start = preset_of(task, preset, changes.get("data", ""))
    config = configs.changed(start, changes)
    return config.resolved(configs.given(start, changes))


def preset_of(task: Task, preset: str | None, data: str) -> TaskConfig:
    """A preset's config; ConfigError if the task has no such one.  preset: None for the default one for this data."""
    preset = task.usual_preset(data) if preset is None else preset
    if not isinstance(preset, str) or preset not in task.presets:
        raise ConfigError(f"preset is {shown(preset)}, but {task.name} has {', '.join(task.presets)}")
    return task.presets[preset]


def _folder(workdir) -> Path:
    """The path of a run folder; ConfigError if it cannot be a folder."""
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
    """The stage prepare: opens the run's store if it is undamaged and built from these shapes, else builds it.

    If the stage is done, but its shapes have been removed, the store is used with a warning.  A damaged store is
    renamed.  Raises StoreError if the store was built from other shapes, and as `stores.build`.
    """
    config, folder = run.config, run.folder / "store"
    done = run.is_done("prepare")
    if done and config.data == run.made["prepare"]["options"]["data"] and not _is_there(config.data):
        warnings.warn(f"{config.data} does not exist any more; continuing with the store built from it", stacklevel=2)
        return stores.open(folder)

    if stores.is_there(config.data):
        return _prepare_given(run, stores.open(config.data), done)

    @functools.cache
    def sources() -> list[Source]:
        return config.shapes.sources(config.data, config.seed)

    def build() -> Store:
        return stores.build(
            folder,
            sources(),
            config.samples,
            seed=config.seed,
            frame=run.task.frame,
            sign=config.shapes.sign,
            wait=parallel.is_multiprocess(),  # the first process builds it, the others open it
        )

    if done:
        store = build()  # only opens it; raises an error if the shapes have changed or do not exist
        run.confirm("prepare")
        return store

    if not (folder / "index.json").exists() and not any(isinstance(source, Sampled) for source in sources()):
        run.task.check_outline(config, outline(run.task, config, sources()))

    def work():
        if parallel.is_main() and not atomic.is_free(folder) and not stores.is_whole(folder):
            _set_aside(folder)
        parallel.from_main(None)  # a barrier: the others wait until a damaged store is moved
        return state.stamps(path for path in sorted(build().folder.iterdir()) if path.is_file())

    run.do("prepare", work)
    store = stores.open(folder)
    if any(isinstance(source, MeshFile) for source in sources()):
        lying.warn(store)
    return store


def _prepare_given(run: RunState, given: Store, done: bool) -> Store:
    """The stage prepare where `data` names a store: the run's becomes the same one, without sampling.

    done: whether the stage is.  Raises StoreError if it was done with another store.
    """
    folder = run.folder / "store"

    def is_other() -> bool:
        return state.store_digest(stores.open(folder)) != state.store_digest(given)

    def work():
        if parallel.is_main() and not atomic.is_free(folder):
            if not stores.is_whole(folder):
                _set_aside(folder)
            elif is_other():
                raise StoreError(other)
        if parallel.is_main() and atomic.is_free(folder):
            stores.linked(given, folder)
        parallel.from_main(None)  # a barrier: the others wait until the store is there
        return state.stamps(path for path in sorted(folder.iterdir()) if path.is_file())

    other = f"{folder}: of other shapes or samples than {given.folder}; remove the folder, or name another --workdir"
    if done:
        if is_other():
            raise StoreError(other)
        run.confirm("prepare")
    else:
        run.task.check_store(run.config, given)
        run.task.check_outline(run.config, given)
        run.do("prepare", work)
    return stores.open(folder)


def outline(task: Task, config: TaskConfig, sources: Sequence[Source]) -> Store:
    """The store of these sources as it will be, without samples (`data.store.outline`)."""
    return stores.outline(sources, config.samples, seed=config.seed, frame=task.frame, sign=config.shapes.sign)


def prepare_held(run: RunState, held: Sequence[Source]) -> Store:
    """A store of what is in memory, all for training, in the run's folder; opened if it was built from the same.

    Raises StoreError as `stores.build`.
    """
    config = run.config
    return stores.build(
        run.folder / "store",
        held,
        config.samples,
        seed=config.seed,
        frame=run.task.frame,
        sign=config.shapes.sign,
        wait=parallel.is_multiprocess(),
    )


def _set_aside(folder: Path) -> None:
    warnings.warn(f"{folder} is damaged; it was moved to {atomic.move_aside(folder, 'damaged')}", stacklevel=3)


def _is_there(data: str) -> bool:
    return search.matching(data)[0].exists() or all(name.strip() in FAMILIES for name in data.split(","))


def train_network(run: RunState, store: Store) -> Model:
    """The stage train: loads the run's model if it was trained on this store, else trains it on the training shapes.

    Training continues from the newest checkpoint.  If the config names a model, that is saved as the run's model.
    """
    inputs, folder = run.inputs("train", store), run.folder / "model"
    if run.is_done("train", inputs):
        return adjusted(run)
    if parallel.is_main():
        if not atomic.is_free(folder) and not (folder / "model.json").exists():
            _set_aside(folder)
        check_replaceable(folder)

    def work():
        trained = _trained_in_memory(run, store, configs.digest(run.key("train"), inputs))
        if parallel.is_main():
            trained.save(folder)
        parallel.from_main(None)  # a barrier: the others wait until the model is written
        return _model_files(run) if parallel.is_main() else {}

    run.do("train", work, inputs)
    return adjusted(run)


def adjusted(run: RunState) -> Model:
    """The run's trained model with the config's present settings of fitting, extraction and precision, saved in it."""
    folder = run.folder / "model"
    if parallel.is_main():
        before = models.load(folder)
        now = run.task.adjusted(run.config, before).with_precision(run.config.precision)
        if any(getattr(now, name) != getattr(before, name) for name in ("fitting", "surfaces", "precision")):
            now.save(folder)
            run.renew("train", _model_files(run))
    parallel.from_main(None)  # a barrier: the others wait until the model is written
    return models.load(folder)


def _model_files(run: RunState) -> dict[Path, dict]:
    return state.stamps(sorted((run.folder / "model").iterdir()))


def _trained_in_memory(run: RunState, store: Store, identity: str) -> Model:
    """`_trained`; if memory runs out, micro-batches that the program chose are halved once, with a warning.

    Then training goes on from its last checkpoint, or begins again.  Raises DeviceMemoryError if that does not help.
    """
    with device_memory.reporting("training", _remedy(run.config)):
        try:
            return _trained(run, store, identity)
        except RuntimeError as error:
            if parallel.is_multiprocess() or not out_of_device_memory(error) or not _halve(run):
                raise
        return _trained(run, store, identity)  # out here, since the error holds the arrays of the first attempt


def _halve(run: RunState) -> bool:
    """Halves the micro-batches that the program chose; False if the task has none, or an option gives their size."""
    if "micro_batch" not in run.autotuned:
        return False
    before = run.autotuned["micro_batch"]
    before = before or run.autotuned["batch_shapes"] * run.autotuned["batch_points"] // parallel.count()
    run.keep_autotuned({"micro_batch": before // 2})
    warnings.warn(
        f"a device ran out of memory for micro-batches of {before} points; continuing with {before // 2}", stacklevel=5
    )
    return True


def _remedy(config) -> str:
    """Which of a task's options lower the memory of training."""
    lower = " or ".join(name for name in ("batch_shapes", "batch_points") if hasattr(config, name))
    others = ["a small learning.micro_batch"] * hasattr(getattr(config, "learning", None), "micro_batch")
    others += ["place=streamed"] * hasattr(config, "place")
    return f"lower {lower}" + f", or set {' or '.join(others)}" * bool(others)


def _trained(run: RunState, store: Store, identity: str) -> Model:
    """Trains a run's model, or takes the given one.

    identity: digest of options and inputs; checkpoints of another one are refused.
    """
    config = run.config
    run.task.check_store(config, store)
    if (given := run.task.given_model(config)) is not None:
        unseen.unseen(store, given)  # raises if it was trained on all test shapes
        if not run.task.extends_model:
            return given
    rows = store.select("train")
    if (solved := run.task.solved(config, store, rows)) is not None:
        return dataclasses.replace(solved, history=solved.history | {"options": options_of(run.task, config)})
    key = parallel.fold_in(jax.random.key(config.seed), "train")
    training_setup = run.task.training_setup(config, store, rows, key, dict(run.autotuned))
    loop = Loop(
        training_setup.loss,
        training_setup.optimizer.build(),
        training_setup.batches,
        key,
        lookup=training_setup.lookup,
        ema_decay=training_setup.ema_decay,
    )

    def start():
        return loop.start(training_setup.shared, training_setup.per_shape, training_setup.batch_stats)

    autotuned = training_setup.autotuned
    run.keep_autotuned(autotuned)  # before the first step, for which memory may run out
    if "steps" not in autotuned:
        minutes = training_setup.minutes
        autotuned["steps"] = planned_steps(loop, start(), minutes) if minutes else training_setup.steps
    run.keep_autotuned(autotuned)
    with Checkpoints(run.folder / "checkpoints", identity) as checkpoints:
        found = run_loop(
            loop,
            start(),
            autotuned["steps"],
            checkpoints=checkpoints,
            log=Log(run.folder / "log.jsonl"),
            validate=training_setup.validate,
            validate_every=validation_interval(training_setup, autotuned["steps"]),
            patience=training_setup.patience,
            names=store.names,
        )
        if training_setup.validate and (best := loop.restore(checkpoints, found, best=True)):
            found, history = best
            if history["best"] is None or (isinstance(history["best"], list) and None in history["best"]):
                warnings.warn("no validation score was finite, so the latest state is kept as the best", stacklevel=4)
    model = run.task.model(config, store, rows, *parallel.host(loop.evaluated(found)))
    return dataclasses.replace(model, history=model.history | {"options": options_of(run.task, config)})


def options_of(task: Task, config: TaskConfig) -> dict[str, Any]:
    """The options that a model was trained with, for its history; without those that it has in another form."""
    read = {*task.parts["prepare"], *task.parts["train"]} - {"data", "samples", "network"}
    return {name: value for name, value in configs.to_dict(config).items() if name in read}


def validation_interval(setup: TrainingSetup, steps: int) -> int:
    """Steps between validations: more than the option says if a chip does so many in the minutes of training that
    validation would take most of the time."""
    return max(setup.validate_every, steps // VALIDATIONS) if setup.minutes else setup.validate_every


def planned_steps(loop: Loop, state, minutes: float) -> int:
    """The number of training steps that fit into `minutes` on this machine, from the measured speed of a few steps.

    Their number grows until they take 2.5 seconds.  The state is donated, so it cannot be used afterwards.
    """
    steps, seconds = 1, 0.0
    while seconds < 2.5 and steps < 1024:
        steps = min(1024, steps if seconds == 0 else int(steps * min(8, max(2, 3.0 / seconds))))
        data, count = loop.batches.segment(0, steps)
        for _ in range(2 if seconds == 0 else 1):  # the first dispatch also compiles
            begun = time.perf_counter()
            state, metrics, _ = loop.advance(state, data, count, steps)
            jax.block_until_ready(metrics)
            seconds = agreed(time.perf_counter() - begun)  # so that all processes plan the same number
        if count < steps:
            break
    return max(1, int(minutes * 60 * count / seconds))
