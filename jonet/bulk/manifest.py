"""`manifest.csv`: what became of every input of a bulk job, and so what is left to do."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jonet import config as configs
from jonet.errors import ConfigError
from jonet.storage import atomic

OK, EMPTY, DOUBTFUL, FAILED = "ok", "empty", "doubtful", "failed"


class Row(NamedTuple):
    """One input.

    file: as it was found.  status: `ok`, `doubtful` (not converged, or a stranger to the space), `empty` (no surface in
    the box) or `failed`, the last three with a colon and the cause.  residual, explained: of the code, where fitted.
    seconds: reading, its share of the batch's solving, and writing.  output: the file made, below the job's folder.
    """

    file: str
    status: str
    residual: float | None = None
    explained: float | None = None
    seconds: float = 0.0
    output: str = ""

    @property
    def failed(self) -> bool:
        return self.status.startswith(FAILED)


class Manifest:
    """The rows of a job's folder, kept on disk as they come.

    Several processes write a part each; whoever finds every input in the parts joins them.  A row that was cut off by
    a kill counts as not written.
    """

    def __init__(self, folder: Path, share: tuple[int, int], settings: dict[str, Any]):
        """share: (index, count) of this process.  settings: what the results depend on; others are refused by name."""
        self.folder, (index, count) = folder, share
        self.path = folder / "manifest.csv"
        self._part = self.path if count == 1 else folder / f"manifest.{index}-{count}.csv"
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "job.json"
        if known.exists():
            before = json.loads(known.read_text())
            if changed := configs.difference(json.loads(json.dumps(settings)), before):
                raise ConfigError(
                    f"{folder} holds results of other settings ({'; '.join(changed)}); choose another --out"
                )
        elif index == 0:
            atomic.write_json(known, settings)
        if self._part.exists():
            content = self._part.read_bytes()
            os.truncate(self._part, content.rfind(b"\n") + 1)

    def parts(self) -> list[Path]:
        """The files that hold rows now."""
        return sorted(self.folder.glob("manifest*.csv"))

    def rows(self) -> dict[str, Row]:
        """The newest row of each input; a success is never hidden by another process's older failure."""
        found: dict[str, Row] = {}
        for part in self.parts():
            try:
                lines = part.read_text().splitlines(keepends=True)
            except FileNotFoundError:  # joined meanwhile
                return self.rows()
            whole = csv.reader(line for line in lines if line.endswith("\n"))
            own = {row.file: row for row in map(_row, whole) if row}
            found |= {file: row for file, row in own.items() if not row.failed or file not in found}
        return found

    def add(self, row: Row) -> None:
        """Writes a row, at once; from any thread."""
        with self._lock, self._part.open("a", newline="") as file:
            _write(file, [row], header=file.tell() == 0)

    def join(self, files: Sequence[str]) -> bool:
        """One sorted manifest of all parts, if every input has its row; whether that is so."""
        rows = self.rows()
        if not all(file in rows for file in files):
            return False
        old = self.parts()
        beside = self.folder / f".manifest.{os.getpid()}.part"
        with beside.open("w", newline="") as file:
            _write(file, [rows[name] for name in sorted(rows)], header=True)
        os.replace(beside, self.path)
        for part in old:
            if part != self.path:
                part.unlink(missing_ok=True)
        return True


def _write(file, rows: Iterable[Row], header: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(Row._fields)
    for row in rows:
        numbers = ["" if n is None else f"{n:.6g}" for n in (row.residual, row.explained, row.seconds)]
        writer.writerow([row.file, row.status, *numbers, row.output])


def _row(values: list[str]) -> Row | None:
    """A row of the file, None for the header and for what is none."""
    if len(values) != len(Row._fields) or tuple(values) == Row._fields:
        return None
    try:
        residual, explained, seconds = (None if text == "" else float(text) for text in values[2:5])
    except ValueError:
        return None
    return Row(values[0], values[1], residual, explained, seconds or 0.0, values[5])
