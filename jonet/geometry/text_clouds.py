"""Point clouds as text: rows of numbers in the dialects of scanners, spreadsheets and viewers.

Columns are separated by semicolons, tabs, commas or blanks; numbers have a decimal point or comma.  What precedes the
first row of three numbers is a header: comments, a count, names of columns.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from jonet.errors import FormatError, shown
from jonet.geometry import cloud_rows
from jonet.geometry.cloud_rows import Rows, chosen
from jonet.storage import archives
from jonet.wording import counted

SUFFIXES = (".xyz", ".xyzn", ".xyzrgb", ".txt", ".csv", ".tsv", ".asc", ".pts")
HEADER = 1000  # lines before the first row of numbers, at most
COLUMNS = 256  # that are looked at for numbers
NAMING = 8  # lines before the first row that may name the columns
COMMA = re.compile(rb"[+-]?\d*,\d+(?:[eE][+-]?\d+)?|[+-]?\d+")  # a number with a decimal comma, or a whole one
MISSING = re.compile(rb"|[+-]?1\.#\w+|[+-]?nan\S*|null|none|n/?a|-", re.IGNORECASE)  # words for numbers that are not


class Dialect(NamedTuple):
    """How a file writes its rows.

    separator: between columns, None for blanks.  comma: whether numbers have a decimal comma.  used: the columns that
    are read.  named: the header names the used columns; left: the others, by name or, if there are none, their number.
    """

    separator: bytes | None
    comma: bool
    used: tuple[int, ...]
    named: bool
    left: tuple[str, ...]

    def words(self, line: bytes) -> list[bytes]:
        """The words of a line, one for each column."""
        return [word.strip(b" \t\"'") for word in line.strip().split(self.separator)]

    def numbers(self, line: bytes) -> list[float] | None:
        """The numbers of a row in the used columns; None for a line that is no row."""
        words = self.words(line)
        if max(self.used[:3]) >= len(words):
            return None
        found = [_number(words[i] if i < len(words) else b"", self.comma) for i in self.used]
        return None if None in found else [float(number) for number in found if number is not None]


def read(path: Path, limit: int, seed: int, note: Callable[[str], None]) -> Rows:
    """Two passes: the first counts rows, the second parses the kept ones.  note: called with what is left out.

    Raises FormatError without the file's name.
    """
    with _opened(path) as (file, start):
        dialect, header = _dialect(_lines(file))
        file.seek(start)
        count = sum(1 for _ in _rows(file, len(header)))
        file.seek(start)
        values, lost = _values(_rows(file, len(header)), chosen(count, limit, seed), dialect)
    if lost:
        note(f"{counted(lost, 'line has', 'lines have')} no row of numbers: left out")
    if dialect.comma:
        note("its numbers have decimal commas, and are read so")
    return Rows(values, dialect.named and len(dialect.used) == 6, dialect.left)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The file at its first character, as UTF-8, and where that is."""
    with path.open("rb") as raw:
        encoding, start = archives.encoding(raw.read(4))
        # UTF-16 and UTF-32 are read line by line as UTF-8, from their mark on, which tells the order of bytes
        file, start = (raw, start) if encoding == "utf-8" else (codecs.EncodedFile(raw, "utf-8", encoding), 0)
        file.seek(start)
        yield cast(IO[bytes], file), start


def is_cloud(path: Path) -> bool:
    """Whether a text file holds points, as far as its first lines tell: rows of three numbers or more, without a header
    that names other columns than x, y and z."""
    try:
        with _opened(path) as (file, _):
            dialect, header = _dialect(_lines(file))
    except (FormatError, OSError, UnicodeError):
        return False
    names = dialect.words(header[-1]) if header and not header[-1].lstrip().startswith((b"#", b"//")) else []
    return len(names) < 3 or cloud_rows.columns([name.decode("latin-1") for name in names]) is not None


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty."""
    return (line for line in file if not line.isspace())


def _rows(file: IO[bytes], before: int) -> Iterator[bytes]:
    """Lines that are not empty and not comments, without the first `before` that are not empty."""
    lines = itertools.islice(_lines(file), before, None)
    return (line for line in lines if not line.lstrip().startswith((b"#", b"//")))


def _dialect(lines: Iterator[bytes]) -> tuple[Dialect, list[bytes]]:
    """The dialect of a file, by its first row of numbers, and the lines before that row."""
    header: list[bytes] = []
    for line in itertools.islice(lines, HEADER):
        if not line.lstrip().startswith((b"#", b"//")) and (found := _of_row(line, header)):
            return found, header
        header.append(line)
    if not header:
        raise FormatError("has no lines; it is empty")
    raise FormatError(
        f"has no row of three numbers in its first {counted(len(header), 'line')}, the last of which is "
        f"{shown(header[-1].strip().decode('latin-1'))}"
    )


def _of_row(line: bytes, header: list[bytes]) -> Dialect | None:
    """The dialect, if a line is a row of numbers below this header."""
    line = line.strip()
    separator = next((mark for mark in (b";", b"\t", b",") if mark in line), None)
    blanks = line.split()
    if separator == b"\t" and any(len(cell.split()) > 1 for cell in line.split(separator)):
        separator = b"," if b"," in line else None  # tabs and blanks in one row
    comma = separator == b"," and len(blanks) > 2 and all(map(COMMA.fullmatch, blanks))
    if comma:  # "1,5 2,5 3,5": commas separate nothing
        separator = None
    dialect = Dialect(separator, False, (0, 1, 2), False, ())
    words = dialect.words(line)
    while words and not words[-1]:  # a separator at the end of each row
        words.pop()
    comma = comma or (separator in (b";", b"\t") and any(b"," in word and COMMA.fullmatch(word) for word in words))
    dialect = dialect._replace(comma=comma)
    if sum(_number(word, comma) is not None for word in words[:COLUMNS]) < 3:
        return None
    # a header that does not name normals says nothing about columns 4 to 6: "# x y z and normals"
    named = next((found for line in reversed(header[-NAMING:]) if (found := _named(line, dialect, len(words)))), None)
    if named is not None and (len(named.used) == 6 or named.used != (0, 1, 2)):
        dialect = dialect._replace(used=named.used, named=True, left=named.left)
    elif len(words) > 3:
        more = words[3:6] if all(_number(word, comma) is not None for word in words[3:6]) else words[3:3]
        used = tuple(range(3 + len(more) // 3 * 3))
        dialect = dialect._replace(used=used, left=tuple(map(str, range(len(used) + 1, len(words) + 1))))
    found = [_number(words[i], comma) if i < len(words) else None for i in dialect.used]
    return None if None in found[:3] else dialect


def _named(line: bytes, dialect: Dialect, count: int) -> cloud_rows.Columns | None:
    """The columns that a line of the header names; None if it does not name all of them.

    The last columns may be empty in a row, which then seems to have less.
    """
    line = line.lstrip(b"/#% \t").rstrip()
    split = dialect.words(line)
    for names in (split[:count] if dialect.separator else split, re.split(rb"[,;\s]+", line)):
        if len(names) == count and (found := cloud_rows.columns([name.decode("latin-1") for name in names])):
            return found
    return None


def _number(word: bytes, comma: bool) -> float | None:
    """The number that a word is, nan for words of missing ones; None for other words."""
    word = word.strip(b" \t\"'")
    try:
        return float(word.replace(b",", b".") if comma else word) if b"_" not in word else None
    except ValueError:
        pass
    if MISSING.fullmatch(word):
        return float("nan")
    try:
        return float(re.sub(rb"[dD]", b"e", word))  # Fortran's exponents
    except ValueError:
        return None


def _values(lines: Iterator[bytes], rows: np.ndarray, dialect: Dialect) -> tuple[np.ndarray, int]:
    """The numbers [n, C] in the given lines (ascending indices), and how many of these are no rows.

    The other lines are not parsed.
    """
    steps = np.diff(rows, prepend=-1).tolist()
    kept = [line for step in steps for line in itertools.islice(lines, step - 1, step)]
    if not kept:
        return np.zeros((0, 3)), 0
    table = (line.replace(b",", b".") if dialect.comma else line for line in kept)
    text = (line.replace(b'"', b"").decode("latin-1") for line in table)
    separator = None if dialect.separator is None else dialect.separator.decode()
    try:
        found = np.loadtxt(text, np.float64, comments=None, delimiter=separator, usecols=dialect.used, ndmin=2)
        if len(found) == len(kept):
            return found, 0
    except ValueError:  # some line is no row, or has a word for a missing number
        pass
    parsed = [numbers for line in kept if (numbers := dialect.numbers(line)) is not None]
    lost = len(kept) - len(parsed)
    if 2 * lost > len(kept) or not parsed:
        bad = next(line for line in kept if dialect.numbers(line) is None)
        raise FormatError(
            f"{counted(lost, 'line', 'lines')} of {len(kept):,} have no row of numbers, such as "
            f"{shown(bad.strip().decode('latin-1'))}"
        )
    return np.array(parsed), lost
