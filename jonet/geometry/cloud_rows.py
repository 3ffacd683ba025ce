"""Rows of point cloud files: which are kept, how they are read from a stream, and which columns mean what."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from jonet.errors import FormatError

CHUNK = 1 << 16  # rows in memory at once, in addition to the kept ones
# Names of columns: the group `of` is what the three of one kind have in common, and may be on either side of the axis.
_AXIS = re.compile(
    r"(?P<of>(?:p|pos|position|points?|coords?|coordinates?)?[ _.:]?)(?P<axis>[xyz012])|"
    r"(?P<plain>[xyz])(?P<after>[ _.:-]?(?:pos|position|coords?|coordinates?)|[ _.:-](?:um|mm|cm|m|in|ft))"
)
_NORMAL = re.compile(r"(?P<of>n(?:ormals?)?[ _.:]?)(?P<axis>[xyz012])")
_AROUND = re.compile(
    r"^[\s\"'/#_]+|\s*([\[(/].*)?[\s\"']*$"
)  # quotes, marks of comments, units: "//X [m]", "X/Easting"
_MISSING = re.compile(rb"[+-]?(nan\(\w*\)|1\.#\w+)", re.IGNORECASE)
LONGEST = 64  # characters of a name that count, and of a number
_SURVEYED = {"easting": "x", "northing": "y", "elevation": "z", "altitude": "z", "height": "z"}


class Rows(NamedTuple):
    """The kept rows of a file.

    values [n, C] float64: coordinates, then, if there are more columns, candidates for normals.  named: the file says
    that columns 4 to 6 are normals.  left: names of the columns that are not among them.
    """

    values: np.ndarray
    named: bool = False
    left: Sequence[str] = ()


class Columns(NamedTuple):
    """Which columns of a table are x, y, z, and nx, ny, nz if there are any, and the names of the others."""

    used: tuple[int, ...]
    left: tuple[str, ...]


def columns(names: Sequence[str]) -> Columns | None:
    """The columns of coordinates and normals by their names, in any case; None if x, y or z is missing.

    Three columns belong together only if their names differ by nothing but the axis; x, y and z come before others.
    """
    plain = [_AROUND.sub("", name[:LONGEST]).lower() for name in names]
    axes = _three(plain, _AXIS)
    if axes is None:  # a surveyor's words stand for axes that have no column of their own
        plain = [axis if (axis := _SURVEYED.get(name, name)) not in plain else name for name in plain]
        axes = _three(plain, _AXIS)
    if axes is None:
        return None
    used = (*axes, *(_three(plain, _NORMAL) or ()))
    left = (name if name.strip(" \t\"'") else "(unnamed)" for i, name in enumerate(names) if i not in used)
    return Columns(used, tuple(left))


def _three(names: list[str], pattern: re.Pattern[str]) -> tuple[int, ...] | None:
    """The first columns of three names of one kind, those without more than the axis first."""
    kinds: dict[tuple[str, bool], dict[str, int]] = {("", False): {}}
    for i, name in enumerate(names):
        if found := pattern.fullmatch(name):
            parts = found.groupdict()
            kind = (parts["of"], False) if parts["axis"] else (parts["after"], True)
            kinds.setdefault(kind, {}).setdefault(parts["axis"] or parts["plain"], i)
    for keys in ("xyz", "012"):
        for places in kinds.values():
            if set(keys) <= places.keys():
                return tuple(places[key] for key in keys)
    return None


def chosen(count: int, limit: int, seed: int) -> np.ndarray:
    """The kept rows of `count`, ascending [min(count, limit)]: one random row of each of `limit` equal ranges."""
    if count <= limit:
        return np.arange(count)
    edges = np.arange(limit + 1) * count // limit
    rng = np.random.default_rng([seed, zlib.crc32(b"thinned"), count])
    return edges[:-1] + (rng.random(limit) * np.diff(edges)).astype(np.int64)


def picked(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], rows: np.ndarray, count: int) -> np.ndarray:
    """The given rows (ascending) of the `count` records that follow in a stream, read chunk by chunk.

    Records without names of columns become float64.
    """
    return np.concatenate([*_chunks(file, dtype, shape, rows, count)])


def _chunks(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], rows: np.ndarray, count: int) -> Iterator:
    each = dtype.itemsize * int(np.prod(shape))
    for start in range(0, max(count, 1), CHUNK):  # one empty chunk for count 0, so that there is something to join
        size = min(CHUNK, count - start)
        content = exactly(file, each * size)
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + size)] - start
        chunk = np.frombuffer(content, dtype).reshape(size, *shape)[here]
        yield chunk if dtype.names else chunk.astype(np.float64)


def plain(line: bytes) -> bytes:
    """A line of text in which numbers that are missing are called nan: other runtimes write -nan(ind) or 1.#QNAN."""
    return _MISSING.sub(b"nan", line) if b"(" in line or b"#" in line else line


def exactly(file: IO[bytes], size: int) -> bytes:
    """`size` bytes from a stream whose `read` may return fewer; FormatError at its end."""
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    if len(content) < size:
        raise FormatError("is cut off: its header announces more rows than follow")
    return content
