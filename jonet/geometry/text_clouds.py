"""Point clouds as text: rows of numbers in the dialects of scanners, spreadsheets and viewers.

Columns are separated by semicolons, tabs, commas or blanks; numbers have a decimal point or comma.  What precedes the
first row of three numbers is a header: comments, a count, names or numbers of columns.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import math
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
COLORED = ".xyzrgb"  # whose columns 4 to 6 are no normals
HEADER = 1000  # lines before the first row of numbers, at most
COLUMNS = 256  # that are looked at for numbers
NAMING = 8  # lines before the first row that may name the columns
AHEAD = 100  # rows after the first one that are looked at
COMMA = re.compile(rb"[+-]?\d*,\d+(?:[eE][+-]?\d+)?|[+-]?\d+")  # a number with a decimal comma, or a whole one
BLANKS = re.compile(rb",\s+")
WHOLE = re.compile(rb"[+-]?\d*")  # a whole number, or an empty cell
MISSING = re.compile(rb"|[+-]?1\.#\w+|[+-]?nan\S*|null|none|n/?a|-", re.IGNORECASE)  # words for numbers that are not


class Dialect(NamedTuple):
    """How a file writes its rows.

    separator: between columns, None for blanks, b", " for commas with blanks between numbers with decimal commas.
    used: the columns that are read.  named: the header names columns of normals.  left: the other columns, by name or,
    if there are none, their number.  taken: names that are no axes, of the columns that are taken for x, y and z.
    announced: with how many rows below the first one is no row but their number, -1 if it has no such number.
    """

    separator: bytes | None
    used: tuple[int, ...] = (0, 1, 2)
    named: bool = False
    left: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    announced: int = -1

    @property
    def comma(self) -> bool:
        """Whether a comma in a word is a decimal one."""
        return self.separator != b","

    def words(self, line: bytes) -> list[bytes]:
        """The words of a line, one for each column."""
        if self.separator == b", ":
            return [word.strip(b" \t\"'") for word in BLANKS.split(line.strip().rstrip(b","))]
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
        colored = path.suffix.lower() == COLORED
        dialect, header = _dialect(_lines(file), colored)
        file.seek(start)
        count = sum(1 for _ in _rows(file, len(header)))
        file.seek(start)
        if 0 < dialect.announced == count - 1:
            dialect, header = _dialect(_lines(file), colored, len(header) + 1)
            file.seek(start)
            note(f"its line {shown(header[-1].strip().decode('latin-1'))} tells the number of rows, and is no point")
            count -= 1
        values, lost, commas = _values(_rows(file, len(header)), chosen(count, limit, seed), dialect)
    if lost:
        note(f"{counted(lost, 'line has', 'lines have')} no row of numbers: left out")
    if commas:
        note("its numbers have decimal commas, and are read so")
    if dialect.taken:
        note(f"its columns {shown(', '.join(dialect.taken))} are taken for x, y, z, since no names tell which are")
    return Rows(values, dialect.named, dialect.left)


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
    if len(names) < 3 or all(map(WHOLE.fullmatch, names)):
        return True
    return cloud_rows.columns([name.decode("latin-1") for name in names]) is not None


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty."""
    return (line for line in file if not line.isspace())


def _rows(file: IO[bytes], before: int) -> Iterator[bytes]:
    """Lines that are not empty and not comments, without the first `before` that are not empty."""
    lines = itertools.islice(_lines(file), before, None)
    return (line for line in lines if not line.lstrip().startswith((b"#", b"//")))


def _dialect(lines: Iterator[bytes], colored: bool = False, least: int = 0) -> tuple[Dialect, list[bytes]]:
    """The dialect of a file, by its first row of numbers and those below, and the lines before that row.

    colored: columns 4 to 6 are no normals.  least: so many lines at least are before the first row.
    """
    listed = list(itertools.islice(lines, HEADER + AHEAD))
    comments = [line.lstrip().startswith((b"#", b"//")) for line in listed]
    for i, line in enumerate(listed[:HEADER]):
        if i < least or comments[i]:
            continue
        header = listed[max(i - NAMING, 0) : i]
        below = [listed[j] for j in range(i + 1, min(i + 1 + AHEAD, len(listed))) if not comments[j]]
        dialect = _of_row(line, header, below, colored)
        if dialect is None:
            continue
        heading, announced = _second_look(line, dialect, below)
        if not heading:
            return dialect._replace(announced=announced), listed[:i]
    if not listed:
        raise FormatError("has no lines; it is empty")
    raise FormatError(
        f"has no row of three numbers in its first {counted(len(listed[:HEADER]), 'line')}, the last of which is "
        f"{shown(listed[:HEADER][-1].strip().decode('latin-1'))}"
    )


def _separator(line: bytes, below: list[bytes]) -> bytes | None:
    """What separates the columns of a line and of the rows below."""
    found = next((mark for mark in (b";", b"\t", b",") if mark in line), None)
    if found == b"\t" and any(len(cell.split()) > 1 for cell in line.split(found)):
        found = b"," if b"," in line else None  # tabs and blanks in one row
    blanks = line.split()
    if found == b"," and len(blanks) > 2 and all(map(COMMA.fullmatch, blanks)):
        return None  # "1,5 2,5 3,5": commas separate nothing
    if found == b"," and b", " in line and not any(b"." in row for row in (line, *below)):
        rows = [BLANKS.split(row.strip().rstrip(b",")) for row in (line, *below)]
        fitting = [row for row in rows if len(row) == len(rows[0]) > 2 and all(map(COMMA.fullmatch, row))]
        if 2 * len(fitting) > len(rows) and any(b"," in word for row in fitting for word in row):
            return b", "  # "1,5, 2,5, 3,5"
    return found


def _of_row(line: bytes, header: list[bytes], below: list[bytes], colored: bool = False) -> Dialect | None:
    """The dialect, if a line is a row of numbers between this header and these rows."""
    line = line.strip()
    dialect = Dialect(_separator(line, below))
    words = dialect.words(line)
    while words and not words[-1]:  # a separator at the end of each row
        words.pop()
    numbers = [_number(word, dialect.comma) for word in words[:COLUMNS]]
    if sum(number is not None for number in numbers) < 3:
        return None
    names = next((names for line in reversed(header) if (names := _named(line, dialect, words))), None)
    if names is not None and (found := cloud_rows.columns(names)):
        dialect = dialect._replace(used=found.used, named=len(found.used) == 6, left=found.left)
    else:
        dialect = dialect._replace(left=tuple(map(str, range(4, len(words) + 1))), taken=_taken(header, dialect, words))
        names = [str(i) for i in range(len(words))]
    x, y, z = dialect.used[:3]
    after = range(z + 1, z + 4)  # which may be normals if nothing else is said of them
    if not dialect.named and not colored and (y, z) == (x + 1, x + 2) and z + 3 < len(numbers):
        if None not in numbers[z + 1 : z + 4] and _unsaid(names[z + 1 : z + 4]):
            at = len([i for i in range(z + 1) if i not in dialect.used])
            left = dialect.left[:at] + dialect.left[at + 3 :]
            dialect = dialect._replace(used=(x, y, z, *after), left=left)
    found = [numbers[i] if i < len(numbers) else None for i in dialect.used[:3]]
    return None if None in found else dialect


def _named(line: bytes, dialect: Dialect, words: list[bytes]) -> list[str] | None:
    """The names of all columns that a line of the header gives, if x, y and z are among them; None if it does not.

    The last columns may be empty in a row, which then seems to have less.  Where a first column numbers the rows, its
    name may be missing.
    """
    line, count = line.lstrip(b"/#% \t").rstrip(), len(words)
    split = dialect.words(line)
    numbered = words[0] in (b"0", b"1") and not all(map(WHOLE.fullmatch, words))
    for names in (split[:count] if dialect.separator else split, re.split(rb"[,;\s]+", line)):
        names = [b""] * (numbered and len(names) == count - 1) + names
        found = [name.decode("latin-1") for name in names]
        if len(names) == count and cloud_rows.columns(found):
            return found
    return None


def _taken(header: list[bytes], dialect: Dialect, words: list[bytes]) -> tuple[str, ...]:
    """The names of the first three columns by the last line of the header; () if it seems to name none."""
    names = dialect.words(header[-1]) if header and not header[-1].lstrip().startswith((b"#", b"//")) else []
    fits = len(names) >= len(words) if dialect.separator else len(names) == len(words)
    if not fits or not all(name and _number(name, dialect.comma) is None for name in names[:3]):
        return ()
    return tuple(name.decode("latin-1") for name in names[:3])


def _unsaid(names: list[str]) -> bool:
    """Whether columns of these names may be normals: they are named so, or say nothing."""
    plain = [name.strip(" \t\"'").lower() for name in names]
    return all(map(str.isdecimal, plain)) or any("norm" in name for name in plain) or plain == ["i", "j", "k"]


def _second_look(line: bytes, dialect: Dialect, below: list[bytes]) -> tuple[bool, int]:
    """Whether a line of numbers is a heading of the rows below and no row, and the number of rows that it may tell.

    That is looked at where it has whole numbers only, but the row below has others.
    """
    words = dialect.words(line)
    under = _of_row(below[0], [], below[1:]) if below and all(map(WHOLE.fullmatch, words)) else None
    if under is None:
        return False, -1
    row = under.words(below[0])
    numbers = [_number(word, under.comma) for word in row if not WHOLE.fullmatch(word)]
    if not any(number is not None and math.isfinite(number) for number in numbers):
        return False, -1
    places = [str(i).encode() for i in range(len(words))]
    numbered = words == places or (not words[0] and words[1:] == places[:-1])  # the columns of a table in memory
    if numbered and len(words) == len(row):
        return True, -1
    if len(words) < len(row) or dialect.separator != under.separator or (not all(words) and all(row)):
        return True, -1
    return False, int(words[0]) if words[0].isdigit() and len(words[0]) < 16 else -1


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


def _values(lines: Iterator[bytes], rows: np.ndarray, dialect: Dialect) -> tuple[np.ndarray, int, bool]:
    """The numbers [n, C] in the given lines (ascending indices), how many of these are no rows, and whether the numbers
    have decimal commas.

    The other lines are not parsed.
    """
    steps = np.diff(rows, prepend=-1).tolist()
    kept = [line for step in steps for line in itertools.islice(lines, step - 1, step)]
    if not kept:
        return np.zeros((0, 3)), 0, False
    commas = dialect.comma and any(b"," in line and _has_commas(line, dialect) for line in kept)
    table = (line.replace(b",", b".") if commas else line for line in kept)
    text = (line.replace(b'"', b"").decode("latin-1") for line in table)
    separator = None if dialect.separator is None else dialect.separator.decode()
    if separator != ", ":
        with contextlib.suppress(ValueError):  # some line is no row, or has a word for a missing number
            found = np.loadtxt(text, np.float64, comments=None, delimiter=separator, usecols=dialect.used, ndmin=2)
            if len(found) == len(kept):
                return found, 0, commas
    parsed = [numbers for line in kept if (numbers := dialect.numbers(line)) is not None]
    lost = len(kept) - len(parsed)
    if 2 * lost > len(kept) or not parsed:
        bad = next(line for line in kept if dialect.numbers(line) is None)
        raise FormatError(
            f"{counted(lost, 'line', 'lines')} of {len(kept):,} have no row of numbers, such as "
            f"{shown(bad.strip().decode('latin-1'))}"
        )
    return np.array(parsed), lost, commas


def _has_commas(line: bytes, dialect: Dialect) -> bool:
    words = dialect.words(line)
    return any(b"," in words[i] and COMMA.fullmatch(words[i]) for i in dialect.used if i < len(words))
