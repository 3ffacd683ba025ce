"""The state of a run folder, stored in its `config.json`: options, autotuned settings, and which stages are done.

    version      of the format of this file
    task         name of the task
    config       all options of the latest call
    autotuned    settings measured once, which later calls use again: place, micro_batch, steps
    done         by finished stage: key, seconds, results (stamps of its files, by path)
    made         by stage that has begun: options, inputs (digests), files (paths that belong to the run)

A stage is done if all of these hold (`RunState.is_done`):

1. It was finished with the same key: a digest of the options that it and all earlier stages read.  The task's `parts`
   name the options of each stage.  Options that name files do not count; their content does:
2. Its inputs have the same digests (for training: the store, a given model, given weights).
3. Its results exist with unchanged content.  Files with equal size and times are not read for that.

A stage that begins is removed from `done` together with all later stages, since these used its results.  Their files
are replaced when they run again; those that are not among the new results are removed then.

The stages prepare and train are expensive.  Once they have written something, a call with other options for them
raises ConfigError instead of replacing it; if they have only begun, they begin again and `autotuned` is cleared.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jonet import config as configs
from jonet import parallel
from jonet.data.store import Store
from jonet.errors import ConfigError, shown
from jonet.model import Model
from jonet.storage import atomic, identity, locks
from jonet.tasks.base import Task, TaskConfig

EXPENSIVE_STAGES = ("prepare", "train")  # their options cannot be changed once they have written something
LOCK = ".lock"
VERSION = 2  # of the format of config.json
NAMES = {"version", "task", "config", "autotuned", "done", "made"}  # all names in config.json
BY_CONTENT = ("data", "model")  # options that name files, compared by content instead; so are `Task.given_files`


class RunState:
    """The state of an open run folder; create it with `opened`, which locks the folder.

    folder, task, config: of this call; values: config as a dict.
    autotuned: settings measured by an earlier call, {} before training.  They stay until options or inputs of
    the expensive stages change, so that a resumed training uses the same ones.
    done: by finished stage {"key", "seconds", "results"}.
    made: by stage that has begun {"options", "inputs", "files"}.  Only these files are replaced or removed by the run;
    other files in the folder are the user's.

    Only the first process of a job reads and writes `config.json`; the others receive its values.
    Raises ConfigError if the folder is not a run of this task, or has results of other options that were expensive.
    """

    def __init__(self, folder: Path, task: Task, config: TaskConfig):
        self.folder, self.task, self.config = folder, task, config
        # through from_dict, which converts ints of float options: 1 and 1.0 must have equal digests
        self.values = configs.to_dict(configs.from_dict(task.config, configs.to_dict(config)))
        self.autotuned: dict[str, Any] = {}
        self.done: dict[str, dict] = {}
        self.made: dict[str, dict] = {}
        self.announce: Callable[[str], None] = lambda stage: None  # called when a stage begins
        if parallel.is_main():
            self._read()
        values = parallel.from_main({"autotuned": self.autotuned, "done": self.done, "made": self.made})
        self.autotuned, self.done, self.made = (values[name] for name in ("autotuned", "done", "made"))
        self._check_options()

    def _read(self) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            if any(entry.name != LOCK and not atomic.is_temporary(entry) for entry in self.folder.iterdir()):
                raise ConfigError(
                    f"{self.folder} is not empty and is not a run folder (no config.json); choose another --workdir"
                )
            return
        try:
            before = json.loads(path.read_text("utf-8"))
            if before.get("version") != VERSION:
                raise ConfigError(
                    f"{path} has format {before.get('version', 1)}, but this version of jonet reads {VERSION}; choose "
                    "another --workdir"
                )
            if unknown := before.keys() - NAMES:
                raise ValueError(f"unknown name {shown(min(unknown))}")
            name, self.autotuned, self.done, self.made = (before[k] for k in ("task", "autotuned", "done", "made"))
            _check_entries(self.autotuned, self.done, self.made)
            files = [Path(file) for entry in self.made.values() for file in entry["files"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); choose another --workdir") from error
        # An edited or damaged config.json must not make the run replace or remove files elsewhere.
        if any(file.is_absolute() or ".." in file.parts for file in files):
            raise ConfigError(f"{path} lists files outside of its folder; choose another --workdir")
        if name == self.task.name and (unknown := (self.done.keys() | self.made.keys()) - self.task.parts.keys()):
            raise ConfigError(f"{path} has an unknown stage {shown(min(unknown))}; choose another --workdir")
        if name != self.task.name:
            raise ConfigError(
                f"{self.folder} is a run of {str(name)[:40]}, not of {self.task.name}; choose another --workdir"
            )

    def _check_options(self) -> None:
        """Raises ConfigError if an expensive stage has written something with other options than the present ones.

        If such a stage has begun, but written nothing, its entry and the autotuned settings are dropped instead.
        """
        changed = []
        for stage in EXPENSIVE_STAGES:
            if stage not in self.made:
                continue
            # from_dict fills in defaults of options that the file does not have
            try:
                before = configs.to_dict(configs.from_dict(self.task.config, self.made[stage]["options"]))
            except ConfigError as error:
                file = self.folder / "config.json"
                raise ConfigError(f"{file} was written by another version, or damaged: {error}") from error
            different = configs.difference(self._options(stage), self._options(stage, before))
            if different and self._has_output(stage):
                changed += different
            elif different:
                del self.made[stage]
                self.autotuned = {}
        if changed:
            found = "; ".join(dict.fromkeys(changed))
            raise ConfigError(
                f"{self.folder} was started with other options ({found}; started with → now); use the former "
                "ones, or choose another --workdir"
            )

    def _has_output(self, stage: str) -> bool:
        """Whether an expensive stage has written a part of its results: shards or a store, checkpoints or a model."""
        if stage == "prepare":
            parts = self.folder / "store.partial" / "parts"
            return (self.folder / "store" / "index.json").exists() or (parts.is_dir() and any(parts.iterdir()))
        saved = self.folder / "checkpoints" / "latest"
        return (self.folder / "model" / "model.json").exists() or (saved.is_dir() and any(saved.iterdir()))

    def _options(self, stage: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """The options that a stage reads, without those that name files.  values: a config (default: this run's)."""
        values = self.values if values is None else values
        by_content = {*BY_CONTENT, *self.task.given_files(self.config)}
        found = {part: values[part] for part in self.task.parts[stage] if part not in by_content}
        if "shapes" in found:
            found["shapes"] = {name: value for name, value in found["shapes"].items() if name != "split"}
        return found

    def _write(self) -> None:
        if parallel.is_main():
            values = {
                "version": VERSION,
                "task": self.task.name,
                "config": self.values,
                "autotuned": self.autotuned,
                "done": self.done,
                "made": self.made,
            }
            atomic.write_json(self.folder / "config.json", values)

    def keep_autotuned(self, autotuned: dict[str, Any]) -> None:
        """Adds settings that were measured, and writes them at once, so that a resumed run uses the same ones."""
        self.autotuned = {**self.autotuned, **autotuned}
        self._write()

    def key(self, stage: str) -> str:
        """Digest of the options that a stage and all earlier stages read, without those that name files."""
        names, unchanged = list(self.task.parts), configs.unchanged(self.config)
        options = {name: self._options(name) for name in names[: names.index(stage) + 1]}
        return configs.digest(
            {
                stage: {name: value for name, value in read.items() if name not in unchanged}
                for stage, read in options.items()
            }
        )

    def inputs(self, stage: str, store: Store | None = None) -> dict[str, str]:
        """Digests of what training reads: the store, a given model, given files; {} for other stages.

        Raises ConfigError if one of the files is missing.
        """
        if stage != "train":
            return {}
        found = {} if store is None else {"store": store_digest(store)}
        if (given := self.task.given_model(self.config)) is not None:
            found["model"] = model_digest(given)
        for option, file in self.task.given_files(self.config).items():
            if file and not Path(file).is_file():
                raise ConfigError(f"{option}: there is no file {file}; a run started with it needs it to continue")
            if file:
                found[option] = identity.digest(file)
        return found

    def is_done(self, stage: str, inputs: dict[str, str] | None = None) -> bool:
        """Whether a stage was finished with the present options and these inputs, and its results are unchanged.

        inputs: digests as from `inputs`; None to leave them unchecked.  Earlier stages are not checked.  The first
        process decides for all processes of a job.
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
        # Files of a copied folder have other times, so they were read to compare their content.  Their new stamps are
        # kept, so that this happens only once.
        if results != entry["results"]:
            entry["results"] = results
            self._write()
        return True

    def begin(self, stage: str, inputs: dict[str, str] | None = None) -> None:
        """Removes a stage and all later ones from `done`, and records the options and inputs of its new start.

        Raises ConfigError if the stage has written something that was computed from other, expensive inputs.
        """
        names = list(self.task.parts)
        self.done = {name: value for name, value in self.done.items() if names.index(name) < names.index(stage)}
        inputs, before = inputs or {}, self.made.get(stage, {})
        if before.get("inputs") not in (None, inputs):
            if self._has_output(stage) and self._expensive(inputs) != self._expensive(before["inputs"]):
                raise ConfigError(
                    f"{self.folder} holds a network that was trained on other shapes, samples or weights; remove its "
                    "folders model and checkpoints to train again, or choose another --workdir"
                )
            self.autotuned = {}
        # files are kept: they are still the run's, even if this start does not finish
        self.made[stage] = {"options": self.values, "inputs": inputs, "files": before.get("files", [])}
        self._write()

    def _expensive(self, inputs: dict[str, str]) -> dict[str, Any]:
        """Inputs whose change would discard a training.

        A given model that is only copied is reduced to whether there is one: exchanging it loses nothing.
        """
        return inputs if self.task.extends_model else inputs | {"model": "model" in inputs}

    def claim(self, stage: str, paths: Iterable[Path]) -> None:
        """Records files that a stage is about to write; only recorded files are replaced or removed by the run.

        To be called before writing: then files of a process that was killed are recognized.  A file at such a path that
        the run did not write is renamed, with a warning.
        """
        names = {path.relative_to(self.folder).as_posix() for path in paths}
        new = names - set(self.made[stage]["files"])
        if not parallel.is_main() or not new:
            return
        for path in [self.folder / name for name in sorted(new)]:
            if os.path.lexists(path):
                warnings.warn(
                    f"{path} was not written by this run; it was moved to {atomic.move_aside(path, 'before')}",
                    stacklevel=2,
                )
        self.made[stage]["files"] = sorted(names | set(self.made[stage]["files"]))
        self._write()

    def finish(self, stage: str, results: Mapping[Path, dict], seconds: float) -> None:
        """Records that a stage is done.

        results: stamps of its files by path.  Files that an earlier start wrote and this one did not are removed.
        seconds: time that the stage took.
        """
        stamps = self._below(results)
        for name in set(self.made[stage]["files"]) - stamps.keys() if parallel.is_main() else ():
            atomic.remove_file(self.folder / name)
        self.made[stage]["files"] = [name for name in self.made[stage]["files"] if name in stamps]
        self.done[stage] = {"key": self.key(stage), "seconds": round(seconds, 2), "results": stamps}
        self._write()

    def confirm(self, stage: str) -> None:
        """Records the present options as those of a finished stage.

        For options that name files, after their content was found unchanged: the folder of meshes may have been moved.
        """
        options = configs.to_dict(self.config)
        if options != self.made[stage]["options"]:
            self.made[stage]["options"] = options
            self._write()

    def renew(self, stage: str, results: Mapping[Path, dict]) -> None:
        """Replaces the stamps of a finished stage whose files were rewritten without invalidating later stages."""
        self.done[stage]["results"] = self._below(results)
        self._write()

    def _below(self, results: Mapping[Path, dict]) -> dict[str, dict]:
        """Stamps by path relative to the run folder, so that the folder can be moved."""
        return {path.relative_to(self.folder).as_posix(): stamped for path, stamped in results.items()}

    def do(self, stage: str, work: Callable[[], Mapping[Path, dict]], inputs: dict[str, str] | None = None) -> None:
        """Runs a stage: `begin`, then `work`, which returns the stamps of its results by path, then `finish`."""
        begun = time.monotonic()
        self.announce(stage)
        self.begin(stage, inputs)
        self.finish(stage, work(), time.monotonic() - begun)


@contextlib.contextmanager
def opened(folder: str | Path, task: Task, config: TaskConfig) -> Iterator[RunState]:
    """Opens a run folder, new or existing, and locks it while the context lasts.

    Of the processes of a job, the first one holds the lock.  Temporary files of killed processes are removed.
    Raises BusyError if another process has locked the folder; ConfigError if it is not a run folder of this task, or
    has expensive results that were computed with other options.
    """
    folder = Path(folder)
    _check_place(folder)
    task.given_model(config)  # raises for one that does not suit the task
    with locks.locked(folder / LOCK) if parallel.is_main() else contextlib.nullcontext():
        run = RunState(folder, task, config)
        if parallel.is_main():
            for place in (folder, folder / "model", *folder.glob("meshes/**/")):
                atomic.sweep(place)
        yield run


def _check_place(folder: Path) -> None:
    """Raises ConfigError, before anything is written, if a folder cannot hold a run."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another --workdir")
    if not folder.exists() and folder.is_symlink():
        raise ConfigError(f"{folder} is a link to {os.readlink(folder)}, which is missing; choose another --workdir")
    # Orbax cannot write checkpoints into folders of such names, which would show only during training.
    path = folder.absolute()
    if any("\udc80" <= letter <= "\udcff" for letter in str(path)) or any(
        part.endswith(":") for part in path.parts[1:]
    ):
        raise ConfigError(
            f"checkpoints cannot be written to {str(path)!r}: the names of its folders must be UTF-8 and not end in a "
            "colon; choose another --workdir"
        )


def wait_for_end(folder: Path) -> None:
    """Blocks until the first process of a job has unlocked a run folder."""
    with locks.locked(folder / LOCK, wait=True):
        pass


def store_digest(store: Store) -> str:
    """Digest of a store's content: settings, shapes and the checksums of its arrays."""
    kept = ("name", "split", "rows", "similarity")
    shapes = [{name: shape[name] for name in kept} for shape in store.index["shapes"]]
    return configs.digest(store.index["settings"], shapes, store.index["arrays"])


def model_digest(trained: Model) -> str:
    """Digest of a model: its network with the kind of its inputs, its training codes and its prior.

    Settings of fitting and extraction do not count, since those of the run replace them.
    """
    codes, prior = trained.codes, trained.prior
    about_codes = None if codes is None else [codes.values.tolist(), codes.names, codes.sources]
    about_prior = None if prior is None else [np.asarray(part).tolist() for part in prior]
    return configs.digest(trained.digest, trained.inputs, about_codes, about_prior)


def stamps(paths: Iterable[Path]) -> dict[Path, dict]:
    """Stamps of files (`identity.stamp`), by path."""
    return {path: identity.stamp(path) for path in paths}


def _check_entries(autotuned, done, made) -> None:
    """ValueError or KeyError if an entry of config.json is not one that `RunState` writes."""
    stamps = [stamped for entry in done.values() for stamped in entry["results"].values()]
    inputs = [entry["inputs"] for entry in made.values()]
    texts = [entry["key"] for entry in done.values()] + [file for entry in made.values() for file in entry["files"]]
    if not all(isinstance(one, dict) for one in (autotuned, *stamps, *inputs)):
        raise ValueError("an entry has no names")
    if not all(isinstance(one, str) and "\0" not in one for one in texts):
        raise ValueError("an entry is no text")
    if not all(isinstance(entry["files"], list) and isinstance(entry["options"], dict) for entry in made.values()):
        raise ValueError("an entry of made has no files or no options")
