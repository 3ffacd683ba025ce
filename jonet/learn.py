"""From shapes to a trained model: a folder of meshes, a store or a family's name → Store → Model."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jonet import config as configs
from jonet import parallel
from jonet.data import store as stores
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.model import Model
from jonet.storage import atomic
from jonet.tasks.problem import Problem
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
    if name not in TASKS:
        raise ConfigError(f"task is {name!r}, but there are {', '.join(TASKS)}")
    return importlib.import_module(f"jonet.tasks.{name}")


def train(
    data,
    task: str = "deepsdf",
    *,
    workdir: str | Path | None = None,
    preset: str = "quick",
    minutes: float | None = None,
    seed: int = 0,
    **options,
) -> Model:
    """Trains a network on shapes.

    data: a folder of meshes or one mesh file, the name of a procedural family, or a Store.  workdir: where the store,
    checkpoints and the model are kept (nowhere if None); the same call goes on there where it was stopped.
    preset: "quick", "small" or "paper"; minutes: of training, in place of the preset's steps; options: other fields of
    the task's Config.
    """
    module = globals()["task"](task)
    if preset not in module.PRESETS:
        raise ConfigError(f"preset is {preset!r}, but {task} has {', '.join(module.PRESETS)}")
    changes = {"seed": seed, **options} | ({} if minutes is None else {"minutes": minutes})
    if not isinstance(data, Store):
        changes["data"] = str(data)
    known = {field.name for field in dataclasses.fields(module.Config)}
    if unknown := [name for name in changes if name not in known]:
        raise ConfigError(f"unknown option {unknown[0]!r}; {task} has {', '.join(sorted(known))}")
    config = dataclasses.replace(module.PRESETS[preset], **changes)
    with contextlib.ExitStack() as stack:
        folder = Path(workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="jonet-")))
        record = Record(folder, module, config)
        store = data if isinstance(data, Store) else prepare(record)
        return fit_network(record, store)


def prepare(record: Record, executor=None) -> Store:
    """The store of a run's shapes, built or opened."""
    config = record.config
    sources = config.shapes.sources(config.data, config.seed)
    return stores.build(
        record.folder / "store",
        sources,
        config.samples,
        seed=config.seed,
        frame=record.task.FRAME,
        sign=config.shapes.sign,
        executor=executor,
    )


def fit_network(record: Record, store: Store) -> Model:
    """Trains a run's network on the training shapes of a store, from its newest checkpoint, and saves the model.

    Where the task hands over a model that was trained before, that is saved as the run's own.
    """
    config, folder = record.config, record.folder
    rows = store.select("train")
    key = parallel.fold(jax.random.key(config.seed), "train")
    problem: Problem | Model = record.task.problem(config, store, rows, key, parallel.from_main(dict(record.chosen)))
    if isinstance(problem, Model):
        if parallel.is_main():
            problem.save(folder / "model")
        return problem
    loop = Loop(problem.loss, problem.optimizer.build(), problem.batches, key, lookup=problem.lookup)

    def start():
        return loop.start(problem.shared, problem.own, problem.statistics)

    chosen = problem.chosen
    if "steps" not in chosen:
        minutes = getattr(config, "minutes", 0)
        chosen["steps"] = planned_steps(loop, start(), minutes) if minutes else problem.steps
    record.choose(chosen)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = run_loop(
            loop,
            start(),
            chosen["steps"],
            checkpoints=checkpoints,
            log=Log(folder / "log.jsonl"),
            validate=problem.validate,
            validate_every=problem.validate_every,
            patience=problem.patience,
            names=store.names,
        )
        if problem.validate:
            state, _ = loop.restore(checkpoints, state, best=True)
    shared, statistics = parallel.host((state.shared, state.statistics))
    model = record.task.model(config, store, rows, shared, loop.own(state), statistics)
    if parallel.is_main():
        model.save(folder / "model")
    return model


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


class Record:
    """`config.json` of a run folder: the config, what was chosen by measuring, and which stages are done.

    Each stage reads the parts of the config that the task's PARTS names; its key is the digest of those and of the
    stages before.  A stage whose key is recorded is done.  Options of what is dear to make (store, network) cannot
    change in an old folder: ConfigError names them.
    """

    DEAR = ("prepare", "train")

    def __init__(self, folder: str | Path, task: ModuleType, config):
        self.folder, self.task, self.config = Path(folder), task, config
        self.chosen: dict[str, Any] = {}
        self.done: dict[str, dict] = {}
        path = self.folder / "config.json"
        if path.exists():
            self._go_on(path)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty and holds no run (no config.json); choose another --workdir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def _go_on(self, path: Path):
        try:
            before = json.loads(path.read_text())
            name, values, self.chosen, self.done = (before[k] for k in ("task", "config", "chosen", "done"))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); choose another --workdir") from error
        if name != self.task.NAME:
            raise ConfigError(f"{self.folder} holds a run of {name}, not of {self.task.NAME}; choose another --workdir")
        dear = [part for stage in self.DEAR for part in self.task.PARTS[stage]]
        ours = configs.to_dict(self.config)
        changed = configs.difference({k: ours.get(k) for k in dear}, {k: values.get(k) for k in dear})
        if changed:
            raise ConfigError(
                f"{self.folder} was started with other options ({'; '.join(changed)}; started with → asked); "
                "go back to them, or choose another --workdir"
            )

    def _write(self):
        if parallel.is_main():
            values = {
                "task": self.task.NAME,
                "config": configs.to_dict(self.config),
                "chosen": self.chosen,
                "done": self.done,
            }
            atomic.write_json(self.folder / "config.json", values)

    def choose(self, chosen: dict[str, Any]) -> None:
        """Keeps what was measured once, for every later start."""
        self.chosen = {**self.chosen, **chosen}
        self._write()

    def key(self, stage: str) -> str:
        """The key of a stage: the parts of the config that it and every stage before it reads."""
        names = list(self.task.PARTS)
        parts = [part for name in names[: names.index(stage) + 1] for part in self.task.PARTS[name]]
        values = configs.to_dict(self.config)
        return configs.digest(stage, {part: values[part] for part in parts})

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished with the same options."""
        return self.done.get(stage, {}).get("key") == self.key(stage)

    @contextlib.contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Times a stage and notes that it is done; those after it are to be done again."""
        begun = time.monotonic()
        yield
        names = list(self.task.PARTS)
        seconds = time.monotonic() - begun
        self.done = {name: value for name, value in self.done.items() if names.index(name) < names.index(stage)}
        self.done[stage] = {"key": self.key(stage), "seconds": round(seconds, 2)}
        self._write()
