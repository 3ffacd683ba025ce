"""A bulk job's folder: who works there, by which settings, and which inputs are done.

Whatever a row of the manifest says counts while three things hold: it was made by these settings, of what the input
holds now, and what it made is there, whole.
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

VERBS = ("fit", "reconstruct", "extract")
VERSION = 2  # of job.json; version 0.1.0 wrote none
MUTEX = ".jonet.lock"  # held while a process comes, and while parts are joined


class Source(Protocol):
    """An input, as it is read."""

    def stamp(self) -> dict[str, Any]:
        """What tells its content."""

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        """Whether it holds what it held then."""


class Input(NamedTuple):
    """source: where it lies.  output: the file that is made of it, below the job's folder."""

    source: Source
    output: str


def is_job(folder: Path) -> bool:
    """Whether a bulk job keeps its results here."""
    return _settings(folder).get("verb") in VERBS


def is_former(folder: Path) -> bool:
    """Whether it was version 0.1.0 that kept a job's results here."""
    return is_job(folder) and "version" not in _settings(folder)


class Job:
    """A job on which this process works; made by `opened`."""

    def __init__(self, folder: Path, share: tuple[int, int], key: str, inputs: Mapping[str, Input]):
        self.folder, self.share, self.key, self.inputs = folder, share, key, inputs
        self.manifest = Manifest(folder, share)
        self.manifest.mend()
        self.again: set[str] = set()  # inputs of which earlier failures do not count
        self._before = self.manifest.rows()
        self._done: dict[str, Row] = {}
        self._named = {row.output for rows in self._before.values() for row in rows}
        self._makes = {one.output: file for file, one in inputs.items()}
        self._lock = threading.Lock()

    def done(self, file: str, rows: Mapping[str, list[Row]] | None = None) -> Row | None:
        """The row of an input that holds, a success before a failure; None if the input is to be done."""
        if file not in self._done:
            before = self._before.get(file, ())
            found = (self._before if rows is None else rows).get(file, ())
            found = [row for row in found if not (file in self.again and row.failed and row in before)]
            # what came while this process worked is not doubted, though its input may have changed since
            holding = [row for row in found if self._holds(row)] or [
                row for row in found if row.settings == self.key and row not in before
            ]
            if not holding:
                return None
            self._done[file] = next((row for row in reversed(holding) if row.output), holding[-1])
        return self._done[file]

    def _holds(self, row: Row) -> bool:
        given = self.inputs[row.file]
        if row.settings != self.key or not row.input or not given.source.unchanged(row.input):
            return False
        made = row.output == given.output and row.made and identity.unchanged(self.folder / row.output, row.made)
        return bool(made or not row.output)

    def may_have_made(self, output: str) -> bool:
        """Whether the job may have made what lies there: links it never makes, so that one leads to what it made."""
        place = self.folder / output
        rows = [row for found in self._before.values() for row in found if row.output == output and row.made]
        return not place.is_symlink() or any(identity.unchanged(place, row.made) for row in rows)

    def begin(self, file: str) -> None:
        """Notes that an output is about to be written, so that it is known as the job's own after a stop, too."""
        if self.inputs[file].output not in self._named:
            self.manifest.add(Row(file, BEGUN, output=self.inputs[file].output))

    def add(self, row: Row) -> Row:
        """Keeps what became of an input; what it made before under another name, or before it failed, is removed."""
        made = identity.stamp(self.folder / row.output) if row.output else {}
        row = row._replace(settings=self.key, made=made)
        for before in self._before.get(row.file, ()):
            mine = self._makes.get(before.output, row.file) == row.file
            if mine and before.made and before.output != row.output:
                if identity.unchanged(self.folder / before.output, before.made):
                    atomic.remove_file(self.folder / before.output)
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
        """One manifest of all parts, and what `finish` makes of its rows, if every input is done; whether that is so.

        One process at a time does so.
        """
        with locks.locked(self.folder / MUTEX, wait=True):
            rows = self.manifest.rows()
            if not all(file in rows for file in self.inputs):
                return False
            if not all(self.done(file, rows) for file in self.inputs):
                return False
            others = [found[-1] for file, found in rows.items() if file not in self.inputs]
            own = {file: self._done[file] for file in sorted(self.inputs)}
            self.manifest.join([*own.values(), *others], [part for part in self.manifest.parts() if self._idle(part)])
            finish(own)
        return True

    def _idle(self, part: Path) -> bool:
        """Whether nobody writes to a part of the manifest but this process."""
        named = re.fullmatch(r"manifest\.(\d+-\d+)\.csv", part.name)
        return part == self.manifest.part or not named or not _held(self.folder / f".share-{named[1]}.lock")


@contextlib.contextmanager
def opened(
    folder: Path, share: tuple[int, int], settings: dict[str, Any], former: dict[str, Any], inputs: Mapping[str, Input]
) -> Iterator[Job]:
    """The job of a folder, whose share is this process's while the context lasts.

    settings: what the results depend on; a folder with results of others is refused by name.  former: the same as
    version 0.1.0 wrote them.  Raises BusyError where another process has this share, or where processes of another
    number of shares are at work; ConfigError also where a file to be made is there and is none that the job made.
    """
    index, count = share
    with contextlib.ExitStack() as stack:
        with locks.locked(folder / MUTEX, wait=True):
            own = folder / f".share-{index}-{count}.lock"
            others = [path for path in folder.glob(".share-*.lock") if path != own]
            for path in others:
                if not path.name.endswith(f"-{count}.lock"):
                    with locks.locked(path):  # says who is at work
                        pass
            stack.enter_context(locks.locked(own))
            settings = json.loads(json.dumps({"version": VERSION, **settings}))
            job = Job(folder, share, configs.digest(settings), inputs)
            alone = not any(_held(path) for path in others)
            if alone and is_job(folder):  # what a killed process left unfinished
                for place in {folder, *((folder / one.output).parent for one in inputs.values())}:
                    atomic.sweep(place)
            _agree(job, settings, former, alone)
        yield job


def _agree(job: Job, settings: dict[str, Any], former: dict[str, Any], alone: bool) -> None:
    """Writes job.json, or refuses: settings are fixed by what was made with them."""
    before, folder = _settings(job.folder), job.folder
    named = {row.output for found in job.manifest.rows().values() for row in found if row.output}
    if before == json.loads(json.dumps(former)):
        named.update(one.output for one in job.inputs.values())
    elif before and before != settings and (not alone or any((folder / place).exists() for place in named)):
        changed = configs.difference(settings, before)
        raise ConfigError(f"{folder} holds results of other settings ({'; '.join(changed)}); choose another --out")
    for one in job.inputs.values():
        if not (one.output in named and job.may_have_made(one.output)) and os.path.lexists(folder / one.output):
            raise ConfigError(
                f"{folder / one.output} is there already, and no job in this folder made it; choose another --out"
            )
    if before != settings:
        atomic.write_json(folder / "job.json", settings)


def _settings(folder: Path) -> dict[str, Any]:
    """Those of a job's folder; {} where there are none, or none that can be read: rows know theirs."""
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
