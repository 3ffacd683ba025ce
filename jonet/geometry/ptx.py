"""Point clouds of Leica's scanners: PTX files, text of one or several scans, each on a grid of columns and rows.

A scan begins with its numbers of columns and rows, the scanner's position and three axes, and a matrix of four rows;
then each line is a point in the scanner's frame, x y z, an intensity, and maybe red, green and blue.  A point
(x, y, z, 1) times the matrix is in the frame that all scans have in common.  Directions without a return are zeros.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jonet.errors import FormatError, shown
from jonet.geometry import cloud_rows
from jonet.geometry.cloud_rows import Rows, chosen
from jonet.wording import counted

NUMBER = re.compile(rb"\s*([0-9]{1,12})\s*")
SHORTEST = 6  # bytes of a point at least: "0 0 0" and the end of the line
MATRIX = 4  # lines of the position and axes, and of the matrix
LINE = 1 << 12  # bytes of a line, at most
NAMES = ("intensity", "red", "green", "blue")  # of the columns after the third
TOLERANCE = 1e-6  # of the last column of a matrix


class Scan(NamedTuple):
    """`count` lines of points, from byte `start` on, and the matrix [4, 4] of rows that places them."""

    count: int
    start: int
    matrix: np.ndarray


def read(path: Path, limit: int, seed: int, note: Callable[[str], None]) -> Rows:
    """Two passes: the first counts points, the second parses the kept ones.  note: called with the number of scans.

    Raises FormatError without the file's name.
    """
    with path.open("rb") as file:
        scans, total, columns = [], 0, 0
        while (scan := _header(file, len(scans) + 1)) is not None:
            columns = max(columns, len(file.readline(LINE).split()) if scan.count else 0)
            file.seek(scan.start)
            count = sum(1 for _ in _points(file, scan, len(scans) + 1))
            scans.append((scan, count))
            total += count
        if not scans:
            raise FormatError("has no scan; it is empty")
        rows, first, kept = chosen(total, limit, seed), 0, []
        for number, (scan, count) in enumerate(scans, 1):
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + count)] - first
            file.seek(scan.start)
            local = _values(_points(file, scan, number), here, number)
            kept.append(local @ scan.matrix[:3, :3] + scan.matrix[3, :3])
            first += count
    if len(scans) > 1:
        note(f"its {counted(len(scans), 'scan')} are one cloud, in their common frame")
    return Rows(np.concatenate(kept), True, NAMES[: max(columns - 3, 0)])


def _header(file: IO[bytes], number: int) -> Scan | None:
    """The scan that begins at the next line that is not empty; None at the end of the file."""
    line = file.readline(LINE)
    while line.isspace():
        line = file.readline(LINE)
    if not line:
        return None
    sizes = [NUMBER.fullmatch(words) for words in (line, file.readline(LINE))]
    if None in sizes:
        raise FormatError(
            f"begins scan {number} with {shown(line.strip().decode('latin-1'))}, but must with its numbers of columns "
            "and rows; it is damaged, or no PTX file"
        )
    count = int(np.prod([int(size[1]) for size in sizes if size is not None], dtype=object))
    lines = [file.readline(LINE) for _ in range(2 * MATRIX)]
    try:
        frame = [[float(word) for word in line.split()] for line in lines]
        if [len(row) for row in frame] != [3] * MATRIX + [4] * MATRIX:
            raise ValueError
        matrix = np.array(frame[MATRIX:])
    except ValueError as error:
        raise FormatError(
            f"has no scanner position, three axes and matrix of 4 rows at the head of scan {number}; it is cut off or "
            "damaged"
        ) from error
    if not np.isfinite(matrix).all() or np.abs(matrix[:, 3] - [0, 0, 0, 1]).max() > TOLERANCE:
        raise FormatError(f"has a matrix of scan {number} whose last column is not 0 0 0 1; it is damaged")
    if not abs(np.linalg.det(matrix[:3, :3])) > TOLERANCE:
        raise FormatError(f"has a matrix of scan {number} that is singular; it is damaged")
    start = file.tell()
    left = file.seek(0, 2) - start
    file.seek(start)
    if SHORTEST * count > left + 1:
        raise FormatError(f"announces {count:,} points in scan {number}, but {left:,} bytes follow; it is cut off")
    return Scan(count, start, matrix)


def _lines(file: IO[bytes], scan: Scan, number: int) -> Iterator[bytes]:
    """The lines of a scan."""
    for place in range(scan.count):
        line = file.readline(LINE)
        if not line.strip():
            raise FormatError(f"ends in scan {number} after {place:,} of {scan.count:,} points; it is cut off")
        yield line


def _points(file: IO[bytes], scan: Scan, number: int) -> Iterator[bytes]:
    """The lines of a scan that are points: not all zeros."""
    for line in _lines(file, scan, number):
        if any(word.strip(b"-0.") for word in line.split(None, 3)[:3]):
            yield line


def _values(lines: Iterator[bytes], rows: np.ndarray, number: int) -> np.ndarray:
    """The coordinates [n, 3] in the given lines (ascending indices); the others are not parsed."""
    steps = np.diff(rows, prepend=-1).tolist()
    words = [cloud_rows.plain(line).split() for step in steps for line in itertools.islice(lines, step - 1, step)]
    try:
        return np.array([[float(word) for word in row[:3]] for row in words]).reshape(len(rows), 3)
    except ValueError as error:
        raise FormatError(f"has a line in scan {number} that is no point; it is damaged") from error
