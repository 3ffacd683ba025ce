"""`manifest.csv` of a bulk job: one row per input with its result, and digests that tell whether it is still valid."""

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
_FORMULA = re.compile(r"[=+\-@\t\r]|\./")  # starts of cells that a spreadsheet would evaluate, and our escape


class Row(NamedTuple):
    """One input.

    file: its name, see `inputs.find`.  status: `ok`, `doubtful` (not converged, or out of distribution), `empty` (no
    surface in the box) or `failed`, the last three followed by a colon and the cause; `begun` means that an output is
    about to be written, and is dropped when the parts are joined.  residual, inlier_fraction: of the fitted code; of a
    field, residual is its error.  seconds: of reading, its part of the batch's work, and writing.  output: path of the
    result relative to the job's folder.  settings: digest of the job's settings.  input, made: identify the contents
    of the input and the output; made["beside"] those of further files of the input, by path.
    """

    file: str
    status: str
    residual: float | None = None
    inlier_fraction: float | None = None
    seconds: float = 0.0
    output: str = ""
    settings: str = ""
    input: dict[str, Any] = {}
    made: dict[str, Any] = {}

    @property
    def failed(self) -> bool:
        return self.status.startswith(FAILED)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """What identifies the contents of the output and of the files beside it, by path; {} without an output."""
        return {self.output: self.made, **self.made.get("beside", {})} if self.output else {}


class Manifest:
    """The rows of a job's folder, written to disk one by one.

    Each of several processes writes its own part; the process that finds every input done joins the parts.  A row that
    was cut off by a kill is ignored.  Names are UTF-8; other bytes are escaped (surrogateescape).
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)):
        """shard: (index, count) of this process."""
        self.folder, (index, count) = folder, shard
        self.path = folder / "manifest.csv"
        self.part = self.path if count == 1 else folder / f"manifest.{index}-{count}.csv"
        self._lock = threading.Lock()

    def mend(self) -> None:
        """Removes a cut-off row from this process's part, and a header that is not ours."""
        if self.part.exists():
            content = self.part.read_bytes()
            if not content.startswith(_line(Row._fields)):
                atomic.write_bytes(self.part, _dump(_rows(content)))
            elif (size := _whole(content)) < len(content):
                atomic.truncate(self.part, size)

    def parts(self) -> list[Path]:
        """The existing files with rows, the joined one first."""
        return sorted(self.folder.glob("manifest*.csv"), key=lambda path: (path != self.path, path.name))

    def rows(self) -> dict[str, list[Row]]:
        """All rows of each input; which one is valid depends on the recorded contents, not on their order."""
        found: dict[str, list[Row]] = {}
        try:
            for part in self.parts():
                for row in _rows(part.read_bytes()):
                    found.setdefault(row.file, []).append(row)
        except FileNotFoundError:  # another process joined the parts meanwhile
            return self.rows()
        return found

    def add(self, row: Row) -> Row:
        """Appends a row to the file; may be called from any thread."""
        with self._lock:
            new = not self.part.exists() or not self.part.stat().st_size
            atomic.append(self.part, _line(Row._fields) * new + _line(_cells(row)))
        return row

    def join(self, rows: Iterable[Row], parts: Sequence[Path]) -> None:
        """Replaces these parts by one manifest of these rows, sorted."""
        content = _dump(sorted(rows, key=lambda row: row.file))
        if not self.path.exists() or self.path.read_bytes() != content:
            atomic.write_bytes(self.path, content)
        for part in parts:
            if part != self.path:
                atomic.remove_file(part)


def _dump(rows: Iterable[Row]) -> bytes:
    return b"".join([_line(Row._fields), *(_line(_cells(row)) for row in rows)])


def _cells(row: Row) -> list[str]:
    numbers = ["" if n is None else f"{n:.6g}" for n in (row.residual, row.inlier_fraction, row.seconds)]
    stamps = [json.dumps(values) if values else "" for values in (row.input, row.made)]
    return [_path(row.file), row.status, *numbers, _path(row.output), row.settings, *stamps]


def _path(name: str) -> str:
    """A path as a cell that no spreadsheet evaluates: `./=1` is the file `=1`."""
    return f"./{name}" if _FORMULA.match(name) else name


def _line(cells: Sequence[str]) -> bytes:
    r"""A record as in RFC 4180; the module csv does not quote a lone \r."""
    quoted = ('"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) else cell for cell in cells)
    return (",".join(quoted) + "\n").encode("utf-8", "surrogateescape")


def _whole(content: bytes) -> int:
    """The number of bytes up to the end of the last complete record; line ends within quotes do not count."""
    end = place = quotes = 0
    for line in content.split(b"\n")[:-1]:
        place += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            end = place
    return end


def _rows(content: bytes) -> list[Row]:
    """The complete rows of a file, without its header and invalid lines."""
    text = content[: _whole(content)].decode("utf-8", "surrogateescape")
    found, reader = [], csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            values = next(reader, None)
        except csv.Error:  # a damaged row: its input is done again
            continue
        if values is None:
            return found
        if row := _row(values):
            found.append(row)


def _row(values: list[str]) -> Row | None:
    if len(values) != len(Row._fields) or values[:2] == ["file", "status"]:
        return None
    try:
        residual, inlier_fraction, seconds = (None if text == "" else float(text) for text in values[2:5])
        stamps = [json.loads(text) if text else {} for text in values[7:]]
    except (ValueError, RecursionError):
        return None
    file, output = (values[i].removeprefix("./") for i in (0, 5))
    if not all(isinstance(one, dict) for one in stamps):
        return None
    beside = stamps[1].get("beside", {})
    if not isinstance(beside, dict) or not all(isinstance(one, dict) for one in beside.values()):
        return None
    # A damaged or edited manifest must not make the job replace or remove files elsewhere.
    if any(Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path for path in (output, *beside)):
        return None
    return Row(file, values[1], residual, inlier_fraction, seconds or 0.0, output, values[6], *stamps)
