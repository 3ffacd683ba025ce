"""Reading point clouds of any size in bounded memory: files are subsampled while they are read.

Of a file of N rows, `limit` are kept by stratified sampling: one random row from each of `limit` equal ranges of the
file.  Scanners write points in scan order, so this also spreads them evenly in space.  The choice depends on N, limit
and seed only, not on the format.
"""

from __future__ import annotations

import codecs
import itertools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jonet.errors import FormatError
from jonet.geometry.mesh_parsers import PLY_TYPES
from jonet.storage import archives

LIMIT = 200_000
CHUNK = 1 << 16  # rows in memory at once, in addition to the kept ones
AXES, NORMALS = ("x", "y", "z"), ("nx", "ny", "nz")
UNIT = 0.05  # tolerance of the length of normals; detects colors in columns 4 to 6


def read(path: Path, limit: int = LIMIT, seed: int = 0) -> np.ndarray:
    """At most `limit` rows of a .npy, .npz, .xyz or .ply file: [n, 3] (points) or [n, 6] (with unit normals), float64.

    An .npz holds arrays `points` and optionally `normals`; a PLY has properties x, y, z and optionally nx, ny, nz.
    Raises FormatError with file and cause.
    """
    try:
        rows = READERS[path.suffix.lower()](path, limit, seed)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error.__cause__  # the readers do not name the file
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path}: cannot be read as a point cloud ({error})") from error
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or len(rows) < 4:
        raise FormatError(
            f"{path}: a point cloud has at least 4 rows of 3 or 6 numbers, but this has shape {list(rows.shape)}"
        )
    if not np.isfinite(rows).all():
        raise FormatError(f"{path}: holds numbers that are not finite; leave these points out")
    if rows.shape[1] == 6 and (worst := np.abs(np.linalg.norm(rows[:, 3:], axis=1) - 1).max()) > UNIT:
        raise FormatError(
            f"{path}: columns 4 to 6 must be unit normals, but a length differs from 1 by {worst:.3g}; remove colors"
        )
    return rows


def chosen(count: int, limit: int, seed: int) -> np.ndarray:
    """The kept rows of `count`, ascending [min(count, limit)]: one random row of each of `limit` equal ranges."""
    if count <= limit:
        return np.arange(count)
    edges = np.arange(limit + 1) * count // limit
    rng = np.random.default_rng([seed, zlib.crc32(b"thinned"), count])
    return edges[:-1] + (rng.random(limit) * np.diff(edges)).astype(np.int64)


def _npy(path: Path, limit: int, seed: int) -> np.ndarray:
    with path.open("rb") as file:
        return _array(file, limit, seed)


def _npz(path: Path, limit: int, seed: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        if "points" not in held:
            raise FormatError(f"holds {', '.join(held)}, but must have an array 'points'")
        names = ("points", "normals")[: 1 + ("normals" in held)]
        counts = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                counts.append(_header(file)[0][0])
        if len(set(counts)) > 1:  # checked first: with different counts, different rows would be kept
            raise FormatError(f"holds {counts[1]} normals for {counts[0]} points; give one normal per point, or none")
        columns = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                columns.append(_array(file, limit, seed))
    return np.column_stack(columns)


def _array(file: BinaryIO, limit: int, seed: int) -> np.ndarray:
    """The kept rows of an array in .npy format, from a stream that is read once (a member of an .npz cannot seek)."""
    shape, dtype = _header(file)
    return np.concatenate([*_picked(file, dtype, shape[1:], chosen(shape[0], limit, seed), shape[0])])


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in .npy format; pickled objects and other shapes are refused."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = header(file)
    if dtype.kind not in "fiu" or by_columns or shape[1:] not in ((3,), (6,)):
        raise FormatError(f"a point cloud is an array of numbers, 3 or 6 in a row, but this is {dtype} {list(shape)}")
    return shape, dtype


def _picked(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...], rows: np.ndarray, count: int) -> Iterator:
    """The given rows of the `count` records that follow in a stream, chunk by chunk."""
    each = dtype.itemsize * int(np.prod(shape))
    for start in range(0, max(count, 1), CHUNK):  # one empty chunk for count 0, so that there is something to join
        size = min(CHUNK, count - start)
        content = _exactly(file, each * size)
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + size)] - start
        chunk = np.frombuffer(content, dtype).reshape(size, *shape)[here]
        yield chunk if dtype.names else chunk.astype(np.float64)


def _exactly(file: BinaryIO, size: int) -> bytes:
    """`size` bytes from a stream whose `read` may return fewer; FormatError at its end."""
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    if len(content) < size:
        raise FormatError("is cut off: its header announces more rows than follow")
    return content


def _xyz(path: Path, limit: int, seed: int) -> np.ndarray:
    """Two passes: the first counts rows, the second parses the kept ones."""
    with path.open("rb") as raw:
        encoding, start = archives.encoding(raw.read(4))
        # UTF-16 and UTF-32 are read line by line as UTF-8, from their mark on, which tells the order of bytes
        file, start = (raw, start) if encoding == "utf-8" else (codecs.EncodedFile(raw, "utf-8", encoding), 0)
        file.seek(start)
        count = sum(1 for _ in _lines(file))
        file.seek(start)
        return _text(_lines(file), chosen(count, limit, seed))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that are not empty and not comments."""
    return (line for line in file if (words := line.lstrip()) and not words.startswith(b"#"))


def _text(lines: Iterator[bytes], rows: np.ndarray) -> np.ndarray:
    """The numbers in the given lines (ascending indices); the others are not parsed."""
    steps = np.diff(rows, prepend=-1).tolist()
    kept = [line.decode("latin-1") for step in steps for line in itertools.islice(lines, step - 1, step)]
    if len(kept) < len(rows):
        raise FormatError("is cut off: its header announces more rows than follow")
    return np.loadtxt(kept, dtype=np.float64, ndmin=2)


class Header(NamedTuple):
    """The header of a PLY file."""

    form: str  # "ascii", "binary_little_endian" or "binary_big_endian"
    elements: dict[str, int]  # name: count
    properties: dict[str, str]  # of the vertex element; name: type, "list" for lists
    size: int  # bytes of the header


def ply_header(path: Path) -> Header:
    """The header of a PLY file; FormatError (without the file's name) if it has none."""
    form, elements, properties, element = "", {}, {}, ""
    with path.open("rb") as file:
        encoding, mark = archives.encoding(file.read(4))
        file.seek(mark if encoding == "utf-8" else 0)
        if not file.readline(16).startswith(b"ply"):
            raise FormatError("does not begin with 'ply', so it is no PLY file")
        for line in iter(lambda: file.readline(1 << 12), b""):  # bounded: a binary file may have no line breaks
            match line.decode("latin-1").split():
                case ["format", form, *_]:
                    pass
                case ["element", element, count]:
                    elements[element] = int(count)
                case ["property", kind, *_, name] if element == "vertex":
                    properties[name] = kind
                case ["end_header"]:
                    return Header(form, elements, properties, file.tell())
    raise FormatError("is cut off in its header (no 'end_header')")


def _ply(path: Path, limit: int, seed: int) -> np.ndarray:
    header = ply_header(path)
    if next(iter(header.elements), "") != "vertex" or "list" in header.properties.values():
        raise FormatError("a point cloud's PLY must begin with its vertices, without list properties")
    names = [name for group in (AXES, NORMALS) if set(group) <= set(header.properties) for name in group]
    count = header.elements["vertex"]
    rows = chosen(count, limit, seed)
    with path.open("rb") as file:
        file.seek(header.size)
        if header.form == "ascii":
            table = _text(_lines(file), rows)
            return table[:, [list(header.properties).index(name) for name in names]]
        order = ">" if "big" in header.form else "<"
        record = np.dtype([(name, order + PLY_TYPES[kind]) for name, kind in header.properties.items()])
        table = np.concatenate([*_picked(file, record, (), rows, count)])
    return np.stack([table[name].astype(np.float64) for name in names], axis=1)


READERS = {".npy": _npy, ".npz": _npz, ".xyz": _xyz, ".ply": _ply}
