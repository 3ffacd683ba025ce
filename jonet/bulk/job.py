"""A bulk job's folder: its locks, its settings, and which inputs are done.

A row of the manifest is valid while three conditions hold: it was written with the job's settings, the input still has
the same content, and its outputs still exist with the same content.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jonet import config as configs
from jonet.bulk.manifest import BEGUN, Manifest, Row
from jonet.errors import BusyError, ConfigError
from jonet.storage import atomic, identity, locks

VERBS = ("fit", "reconstruct", "extract", "represent")
VERSION = 2  # of job.json
MUTEX = ".jonet.lock"  # held while a process starts, and while parts of the manifest are joined


class Source(Protocol):
    """Where an input is read from."""

    def stamp(self) -> dict[str, Any]:
        """Identifies its content."""
        ...

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        """Whether it still has the stamped content."""
        ...


class Input(NamedTuple):
    """source: where the input is read from.  outputs: paths of its results, relative to the job's folder."""

    source: Source
    outputs: tuple[str, ...]


def is_job(folder: Path) -> bool:
    """Whether a folder contains the results of a bulk job."""
    return _settings(folder).get("verb") in VERBS


class Job:
    """A job on which this process works; created by `opened`."""

    def __init__(self, folder: Path, shard: tuple[int, int], key: str, inputs: Mapping[str, Input]):
        self.folder, self.shard, self.key, self.inputs = folder, shard, key, inputs
        self.manifest = Manifest(folder, shard)
        self.manifest.mend()
        self.again: set[str] = set()  # inputs that are tried again if they failed before
        self._before = self.manifest.rows()
        self._done: dict[str, Row] = {}
        self._named = {path for rows in self._before.values() for row in rows for path in row.files}
        self._file_of = {path: file for file, one in inputs.items() for path in one.outputs}
        self._lock = threading.Lock()

    def done(self, file: str, rows: Mapping[str, list[Row]] | None = None) -> Row | None:
        """The valid row of an input, a success rather than a failure; None if the input is still to be done."""
        if file not in self._done:
            before = self._before.get(file, ())
            found = (self._before if rows is None else rows).get(file, ())
            found = [row for row in found if not (file in self.again and row.failed and row in before)]
            # rows written while this process worked are valid, even if their input has changed since
            valid = [row for row in found if self._is_valid(row)] or [
                row for row in found if row.settings == self.key and row not in before
            ]
            if not valid:
                return None
            self._done[file] = next((row for row in reversed(valid) if row.output), valid[-1])
        return self._done[file]

    def _is_valid(self, row: Row) -> bool:
        given = self.inputs[row.file]
        if row.settings != self.key or not row.input or not given.source.unchanged(row.input):
            return False
        return all(
            path in given.outputs and made and identity.unchanged(self.folder / path, made)
            for path, made in row.files.items()
        )

    def may_have_made(self, output: str) -> bool:
        """Whether the job may have written what is at an output's path.

        The job never writes links, so a link must lead to a file with the content that the job wrote.
        """
        path = self.folder / output
        made = [row.files.get(output) for found in self._before.values() for row in found]
        return not path.is_symlink() or any(stamped and identity.unchanged(path, stamped) for stamped in made)

    def begin(self, file: str) -> None:
        """Records that outputs are about to be written, so that they are known as the job's even if it is killed."""
        for output in self.inputs[file].outputs:
            if output not in self._named:
                self.manifest.add(Row(file, BEGUN, output=output))

    def add(self, row: Row) -> Row:
        """Writes the row of an input; removes its earlier outputs that had other names, or if the input now failed."""
        stamps = {path: identity.stamp(self.folder / path) for path in row.files}
        made = stamps.pop(row.output, {})
        row = row._replace(settings=self.key, made={**made, "beside": stamps} if stamps else made)
        for before in self._before.get(row.file, ()):
            for path, stamped in before.files.items():
                not_another_inputs = self._file_of.get(path, row.file) == row.file
                if not_another_inputs and stamped and path not in row.files:
                    if identity.unchanged(self.folder / path, stamped):
                        atomic.remove_file(self.folder / path)
        self.manifest.add(row)
        with self._lock:
            self._done[row.file] = row
        return row

    def usable(self) -> bool:
        """Whether any input of any process has a result."""
        if any(row.output for row in self._done.values()):
            return True
        rows = self.manifest.rows()
        return any(row.output and row.settings == self.key for file in self.inputs for row in rows.get(file, ()))

    def join(self, finish: Callable[[dict[str, Row]], None]) -> bool:
        """If every input is done, joins all parts of the manifest and calls `finish` with the rows.

        Returns whether every input is done.  Only one process does this at a time.
        """
        with locks.locked(self.folder / MUTEX, wait=True):
            rows = self.manifest.rows()
            if not all(file in rows for file in self.inputs):
                return False
            if not all(self.done(file, rows) for file in self.inputs):
                return False
            others = [found[-1] for file, found in rows.items() if file not in self.inputs]
            rows = {file: self._done[file] for file in sorted(self.inputs)}
            self.manifest.join([*rows.values(), *others], [part for part in self.manifest.parts() if self._idle(part)])
            finish(rows)
        return True

    def _idle(self, part: Path) -> bool:
        """Whether no other process writes to a part of the manifest."""
        named = re.fullmatch(r"manifest\.(\d+-\d+)\.csv", part.name)
        return part == self.manifest.part or not named or not _held(self.folder / f".shard-{named[1]}.lock")


@contextlib.contextmanager
def opened(
    folder: Path, shard: tuple[int, int], settings: dict[str, Any], inputs: Mapping[str, Input]
) -> Iterator[Job]:
    """The job of a folder; this process has the lock of its shard while the context lasts.

    settings: all that results depend on.  Raises BusyError if another
    process has this shard, or if processes with another number of shards are running; ConfigError for a folder with
    results of other settings, which it lists, and if an output exists that the job did not write.
    """
    index, count = shard
    with contextlib.ExitStack() as stack:
        with locks.locked(folder / MUTEX, wait=True):
            lock = folder / f".shard-{index}-{count}.lock"
            others = [path for path in folder.glob(".shard-*.lock") if path != lock]
            for path in others:
                if not path.name.endswith(f"-{count}.lock"):
                    with locks.locked(path):  # its BusyError names the process
                        pass
            stack.enter_context(locks.locked(lock))
            settings = json.loads(json.dumps({"version": VERSION, **settings}))
            job = Job(folder, shard, configs.digest(settings), inputs)
            alone = not any(_held(path) for path in others)
            if alone and is_job(folder):  # remove temporary files of killed processes
                for path in {folder, *((folder / path).parent for one in inputs.values() for path in one.outputs)}:
                    atomic.sweep(path)
            _write_settings(job, settings, alone)
        yield job


def _write_settings(job: Job, settings: dict[str, Any], alone: bool) -> None:
    """Writes job.json; ConfigError if the folder has results of other settings, or files that the job did not write."""
    before, folder = _settings(job.folder), job.folder
    named = {path for found in job.manifest.rows().values() for row in found for path in row.files}
    if before and before != settings and (not alone or any((folder / path).exists() for path in named)):
        changed = configs.difference(settings, before)
        raise ConfigError(f"{folder} contains results of other settings ({'; '.join(changed)}); choose another --out")
    for output in (output for one in job.inputs.values() for output in one.outputs):
        if not (output in named and job.may_have_made(output)) and os.path.lexists(folder / output):
            raise ConfigError(
                f"{folder / output} exists already, and no job in this folder wrote it; choose another --out"
            )
    if before != settings:
        atomic.write_json(folder / "job.json", settings)


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in a job's folder; {} if there are none or they cannot be read, since each row records its own."""
    try:
        found = json.loads((folder / "job.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _held(lock: Path) -> bool:
    try:
        with locks.locked(lock):
            return False
    except BusyError:
        return True
