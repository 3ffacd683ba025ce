"""`manifest.csv`: what became of every input of a bulk job, and what tells that it is still so."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jonet.storage import atomic

OK, EMPTY, DOUBTFUL, FAILED = "ok", "empty", "doubtful", "failed"
BEGUN = "begun"
_FORMULA = re.compile(r"[=+\-@\t\r]|\./")  # beginnings of a cell that a spreadsheet would compute, and our mark


class Row(NamedTuple):
    """One input.

    file: as it was found.  status: `ok`, `doubtful` (not converged, or a stranger to the space), `empty` (no surface in
    the box) or `failed`, the last three with a colon and the cause; `begun` says that an output is about to be written,
    and goes when the parts are joined.  residual, explained: of the code, where fitted.
    seconds: reading, its share of the batch's solving, and writing.  output: the file made, below the job's folder.
    settings: digest of those of the job.  input, made: what tells the contents of the input and of the output.
    """

    file: str
    status: str
    residual: float | None = None
    explained: float | None = None
    seconds: float = 0.0
    output: str = ""
    settings: str = ""
    input: dict[str, Any] = {}
    made: dict[str, Any] = {}

    @property
    def failed(self) -> bool:
        return self.status.startswith(FAILED)


FIRST = Row._fields.index("settings")  # columns of 0.1.0; its rows do not tell what they were made of


class Manifest:
    """The rows of a job's folder, kept on disk as they come.

    Several processes write a part each; whoever finds every input in the parts joins them.  A row that was cut off by
    a kill counts as not written.  Names are UTF-8, bytes that are none escaped (surrogateescape).
    """

    def __init__(self, folder: Path, share: tuple[int, int] = (0, 1)):
        """share: (index, count) of this process."""
        self.folder, (index, count) = folder, share
        self.path = folder / "manifest.csv"
        self.part = self.path if count == 1 else folder / f"manifest.{index}-{count}.csv"
        self._lock = threading.Lock()

    def mend(self) -> None:
        """Drops what a kill cut off of this process's part, and gives an old one the columns of today."""
        if self.part.exists():
            content = self.part.read_bytes()
            if not content.startswith(_line(Row._fields)):
                atomic.write_bytes(self.part, _dump(_rows(content)))
            elif (size := _whole(content)) < len(content):
                atomic.truncate(self.part, size)

    def parts(self) -> list[Path]:
        """The files that hold rows now, the joined one first."""
        return sorted(self.folder.glob("manifest*.csv"), key=lambda path: (path != self.path, path.name))

    def rows(self) -> dict[str, list[Row]]:
        """The rows of each input; which of them holds is told by what was made, not by their order."""
        found: dict[str, list[Row]] = {}
        try:
            for part in self.parts():
                for row in _rows(part.read_bytes()):
                    found.setdefault(row.file, []).append(row)
        except FileNotFoundError:  # joined meanwhile
            return self.rows()
        return found

    def add(self, row: Row) -> Row:
        """Writes a row, at once; from any thread."""
        with self._lock:
            new = not self.part.exists() or not self.part.stat().st_size
            atomic.append(self.part, _line(Row._fields) * new + _line(_cells(row)))
        return row

    def join(self, rows: Iterable[Row], parts: Sequence[Path]) -> None:
        """One sorted manifest of these rows, in place of these parts."""
        content = _dump(sorted(rows, key=lambda row: row.file))
        if not self.path.exists() or self.path.read_bytes() != content:
            atomic.write_bytes(self.path, content)
        for part in parts:
            if part != self.path:
                atomic.remove_file(part)


def _dump(rows: Iterable[Row]) -> bytes:
    return b"".join([_line(Row._fields), *(_line(_cells(row)) for row in rows)])


def _cells(row: Row) -> list[str]:
    numbers = ["" if n is None else f"{n:.6g}" for n in (row.residual, row.explained, row.seconds)]
    told = [json.dumps(values) if values else "" for values in (row.input, row.made)]
    return [_path(row.file), row.status, *numbers, _path(row.output), row.settings, *told]


def _path(name: str) -> str:
    """A path as a cell that no spreadsheet computes: `./=1` is the file `=1`."""
    return f"./{name}" if _FORMULA.match(name) else name


def _line(cells: Sequence[str]) -> bytes:
    r"""A record of RFC 4180; the module csv leaves a lone \r without quotes."""
    quoted = ('"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) else cell for cell in cells)
    return (",".join(quoted) + "\n").encode("utf-8", "surrogateescape")


def _whole(content: bytes) -> int:
    """Bytes up to the end of the last whole record: a line's end within quotes is none."""
    end = place = quotes = 0
    for line in content.split(b"\n")[:-1]:
        place += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            end = place
    return end


def _rows(content: bytes) -> list[Row]:
    """The whole rows of a file, without its header and what is no row."""
    text = content[: _whole(content)].decode("utf-8", "surrogateescape")
    found, reader = [], csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            values = next(reader, None)
        except csv.Error:  # damaged: what it said is made again
            continue
        if values is None:
            return found
        if row := _row(values):
            found.append(row)


def _row(values: list[str]) -> Row | None:
    if len(values) not in (FIRST, len(Row._fields)) or values[:2] == ["file", "status"]:
        return None
    try:
        residual, explained, seconds = (None if text == "" else float(text) for text in values[2:5])
        told = [json.loads(text) if text else {} for text in values[FIRST + 1 :]]
    except ValueError:
        return None
    if not all(isinstance(one, dict) for one in told):
        return None
    file, output = (values[i].removeprefix("./") for i in (0, 5))
    return Row(file, values[1], residual, explained, seconds or 0.0, output, *values[FIRST : FIRST + 1], *told)
