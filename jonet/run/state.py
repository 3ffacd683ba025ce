"""`config.json` of a run folder: the options, what was chosen by measuring, and what each stage made of what."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jonet import config as configs
from jonet import model, parallel
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.model import Model
from jonet.storage import atomic, identity, locks

EXPENSIVE = ("prepare", "train")  # stages whose options stay as they are once they have made something
LOCK = ".lock"
BY_CONTENT = ("data", "shapes.split", "model", "weights")  # options that name files: known by what these hold


class RunState:
    """A run folder under work; opened by `opened`.

    A stage is done if the options that it and the stages before it read are those it was done with, its inputs (shapes,
    store, a model or weights from elsewhere) have the same content, and its results are there and whole.  A stage and
    those after it are dropped when it begins.  The task's PARTS name the options of each stage.

    chosen: what was measured once and settled for.  done: finished stages, {"key", "seconds", "results"}.  made: what
    stages began to make, {"options", "inputs", "files"}; files below the folder that are not in it are not the run's.
    """

    def __init__(self, folder: Path, task: ModuleType, config):
        self.folder, self.task, self.config = folder, task, config
        self.values = configs.to_dict(configs.from_dict(task.Config, configs.to_dict(config)))  # 1.0 where 1 was given
        self.chosen: dict[str, Any] = {}
        self.done: dict[str, dict] = {}
        self.made: dict[str, dict] = {}
        self.notes_files = True  # so far; a run of version 0.1.0 did not
        self.announce: Callable[[str], None] = lambda stage: None  # called with a stage that begins
        if parallel.is_main():
            self._read()
        values = parallel.from_main({"chosen": self.chosen, "done": self.done, "made": self.made})
        self.chosen, self.done, self.made = (values[name] for name in ("chosen", "done", "made"))
        self._check_options()

    def _read(self) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            if any(entry.name != LOCK and not atomic.is_temporary(entry) for entry in self.folder.iterdir()):
                raise ConfigError(
                    f"{self.folder} is not empty and holds no run (no config.json); choose another --workdir"
                )
            return
        try:
            before = json.loads(path.read_text("utf-8"))
            name, values, self.chosen, self.done = (before[k] for k in ("task", "config", "chosen", "done"))
            self.made = before.get("made", {})
            files = [Path(file) for entry in self.made.values() for file in entry["files"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); choose another --workdir") from error
        if any(file.is_absolute() or ".." in file.parts for file in files):
            raise ConfigError(f"{path} names files outside of its folder, as no run does; choose another --workdir")
        if name != self.task.NAME:
            raise ConfigError(f"{self.folder} holds a run of {name}, not of {self.task.NAME}; choose another --workdir")
        if "made" not in before:  # as version 0.1.0 wrote it: what it made is looked at anew
            self.done, self.notes_files = {}, False
            self.made = {stage: {"options": values, "inputs": None, "files": []} for stage in EXPENSIVE}

    def _check_options(self) -> None:
        """ConfigError where options of what is expensive to make, and was made, are others now."""
        changed = []
        for stage in EXPENSIVE:
            if stage not in self.made:
                continue
            before = configs.to_dict(configs.from_dict(self.task.Config, self.made[stage]["options"]))
            different = configs.difference(self._options(stage), self._options(stage, before))
            if different and self._has_made(stage):
                changed += different
            elif different:
                del self.made[stage]
                self.chosen = {}
        if changed:
            found = "; ".join(dict.fromkeys(changed))
            raise ConfigError(
                f"{self.folder} was started with other options ({found}; started with → asked); go back to them, or "
                "choose another --workdir"
            )

    def _has_made(self, stage: str) -> bool:
        if stage == "prepare":
            parts = self.folder / "store.partial" / "parts"
            return (self.folder / "store" / "index.json").exists() or (parts.is_dir() and any(parts.iterdir()))
        saved = self.folder / "checkpoints" / "latest"
        return (self.folder / "model" / "model.json").exists() or (saved.is_dir() and any(saved.iterdir()))

    def _options(self, stage: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """The options that a stage reads (of a config, this run's if None), without those that name files."""
        values = self.values if values is None else values
        found = {part: values[part] for part in self.task.PARTS[stage] if part not in BY_CONTENT}
        if "shapes" in found:
            found["shapes"] = {name: value for name, value in found["shapes"].items() if name != "split"}
        return found

    def _write(self) -> None:
        if parallel.is_main():
            values = {
                "task": self.task.NAME,
                "config": self.values,
                "chosen": self.chosen,
                "done": self.done,
                "made": self.made,
            }
            atomic.write_json(self.folder / "config.json", values)

    def choose(self, chosen: dict[str, Any]) -> None:
        """Keeps what was measured once, for every later start."""
        self.chosen = {**self.chosen, **chosen}
        self._write()

    def key(self, stage: str) -> str:
        """The key of a stage: the options that it and every stage before it reads, but for those that name files."""
        names = list(self.task.PARTS)
        return configs.digest({name: self._options(name) for name in names[: names.index(stage) + 1]})

    def inputs(self, stage: str, store: Store | None = None) -> dict[str, str]:
        """What a stage reads that no stage before it made, by content: a store, a model, weights."""
        if stage != "train":
            return {}
        found = {} if store is None else {"store": store_digest(store)}
        if folder := getattr(self.config, "model", ""):
            found["model"] = model_digest(model.load(folder))
        if file := getattr(self.config, "weights", ""):
            if not Path(file).is_file():
                raise ConfigError(f"weights: there is no file {file}; a run that began with it needs it to go on")
            found["weights"] = identity.digest(file)
        return found

    def is_done(self, stage: str, inputs: dict[str, str] | None = None) -> bool:
        """Whether a stage was finished with these options and inputs, and what it made is there and whole.

        inputs: as of `inputs`.  Of the stages before it nothing is asked.  Of several processes the first one decides.
        """
        return parallel.from_main(parallel.is_main() and self._is_done(stage, inputs))

    def _is_done(self, stage: str, inputs: dict[str, str] | None) -> bool:
        entry = self.done.get(stage)
        if entry is None or entry["key"] != self.key(stage):
            return False
        if inputs is not None and inputs != self.made.get(stage, {}).get("inputs"):
            return False
        results = {}
        for name, stamped in entry["results"].items():
            if (found := identity.renewed(self.folder / name, stamped)) is None:
                return False
            results[name] = found
        if results != entry["results"]:  # a copied or moved folder is read once
            entry["results"] = results
            self._write()
        return True

    def begin(self, stage: str, inputs: dict[str, str] | None = None) -> None:
        """Drops a stage and those after it, and notes what it is made of."""
        names = list(self.task.PARTS)
        self.done = {name: value for name, value in self.done.items() if names.index(name) < names.index(stage)}
        inputs, before = inputs or {}, self.made.get(stage, {})
        if before.get("inputs") not in (None, inputs):
            if self._has_made(stage) and _expensive(inputs) != _expensive(before["inputs"]):
                raise ConfigError(
                    f"{self.folder} holds a network that was trained on other shapes, samples or weights; remove its "
                    "folders model and checkpoints to train anew, or choose another --workdir"
                )
            self.chosen = {}
        self.made[stage] = {"options": self.values, "inputs": inputs, "files": before.get("files", [])}
        self._write()

    def claim(self, stage: str, paths: Iterable[Path]) -> None:
        """Notes files of the run that a stage is about to write: only these may be replaced and removed again.

        What somebody else has put in their places is moved aside, and a warning says so.
        """
        names = {path.relative_to(self.folder).as_posix() for path in paths}
        new = names - set(self.made[stage]["files"])
        if not parallel.is_main() or not new:
            return
        for path in [self.folder / name for name in sorted(new)]:
            if self.notes_files and os.path.lexists(path):
                warnings.warn(
                    f"{path} is none of this run: it now lies at {atomic.move_aside(path, 'before')}", stacklevel=2
                )
        self.made[stage]["files"] = sorted(names | set(self.made[stage]["files"]))
        self._write()

    def finish(self, stage: str, results: Mapping[Path, dict], seconds: float) -> None:
        """Notes that a stage is done, with what it made, and removes what it made before and not now."""
        stamps = self._below(results)
        for name in set(self.made[stage]["files"]) - stamps.keys() if parallel.is_main() else ():
            atomic.remove_file(self.folder / name)
        self.made[stage]["files"] = [name for name in self.made[stage]["files"] if name in stamps]
        self.done[stage] = {"key": self.key(stage), "seconds": round(seconds, 2), "results": stamps}
        self._write()

    def confirm(self, stage: str) -> None:
        """Notes that the inputs of a finished stage, as the options name them now, are those that it was made of."""
        options = configs.to_dict(self.config)
        if options != self.made[stage]["options"]:
            self.made[stage]["options"] = options
            self._write()

    def renew(self, stage: str, results: Mapping[Path, dict]) -> None:
        """Notes that results of a finished stage were written anew with the same meaning."""
        self.done[stage]["results"] = self._below(results)
        self._write()

    def _below(self, results: Mapping[Path, dict]) -> dict[str, dict]:
        return {path.relative_to(self.folder).as_posix(): stamped for path, stamped in results.items()}

    def do(self, stage: str, work: Callable[[], Mapping[Path, dict]], inputs: dict[str, str] | None = None) -> None:
        """Begins a stage, does its work, which returns the stamps of what it made, and notes that it is done."""
        begun = time.monotonic()
        self.announce(stage)
        self.begin(stage, inputs)
        self.finish(stage, work(), time.monotonic() - begun)


@contextlib.contextmanager
def opened(folder: str | Path, task: ModuleType, config) -> Iterator[RunState]:
    """A run folder, new or begun before, for this process alone (of several processes of a job, for the first).

    Raises BusyError where another process works there; ConfigError where it holds something else, or was made with
    other options of what is expensive to make.
    """
    folder = Path(folder)
    _check_place(folder)
    if check := getattr(task, "check", None):  # of tasks that take a model trained before
        check(config)
    with locks.locked(folder / LOCK) if parallel.is_main() else contextlib.nullcontext():
        run = RunState(folder, task, config)
        if parallel.is_main():
            for place in (folder, folder / "model", *folder.glob("meshes/**/")):
                atomic.sweep(place)
        yield run


def _check_place(folder: Path) -> None:
    """ConfigError where no run can be kept, said before anything is made."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another --workdir")
    if not folder.exists() and folder.is_symlink():
        raise ConfigError(f"{folder} is a link to {os.readlink(folder)}, which is not there; choose another --workdir")
    path = folder.absolute()
    if any("\udc80" <= letter <= "\udcff" for letter in str(path)) or any(
        part.endswith(":") for part in path.parts[1:]
    ):
        raise ConfigError(
            f"checkpoints cannot be written to {str(path)!r}: the names of its folders must be UTF-8 and not end in a "
            "colon; choose another --workdir"
        )


def wait_for_end(folder: Path) -> None:
    """Returns when the first process of a job has ended its work in a run folder."""
    with locks.locked(folder / LOCK, wait=True):
        pass


def store_digest(store: Store) -> str:
    """What tells a store from every other: settings, shapes and the checksums of its arrays."""
    kept = ("name", "split", "rows", "similarity")
    shapes = [{name: shape[name] for name in kept} for shape in store.index["shapes"]]
    return configs.digest(store.index["settings"], shapes, store.index["arrays"])


def model_digest(trained: Model) -> str:
    """What tells a model from every other: its network and what that sees, training codes and prior; not its settings
    of fitting and extraction, which are the run's."""
    codes, prior = trained.codes, trained.prior
    held = None if codes is None else [codes.values.tolist(), codes.names, codes.sources]
    spread = None if prior is None else [np.asarray(part).tolist() for part in prior]
    return configs.digest(trained.digest, trained.inputs, held, spread)


def stamps(paths: Iterable[Path]) -> dict[Path, dict]:
    """What files are known by."""
    return {path: identity.stamp(path) for path in paths}


def _expensive(inputs: dict[str, str]) -> dict[str, Any]:
    """Inputs that training took; of a model from elsewhere only that there was one, since it is copied at once."""
    return inputs | {"model": "model" in inputs}
