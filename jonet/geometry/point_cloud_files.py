"""Reading point clouds of any size in bounded memory: files are subsampled while they are read.

Of a file of N rows, `limit` are kept by stratified sampling: one random row from each of `limit` equal ranges of the
file.  Scanners write points in scan order, so this also spreads them evenly in space.  The choice depends on N, limit
and seed only, not on the format.
"""

from __future__ import annotations

import codecs
import itertools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jonet.errors import FormatError, MeshError, shown
from jonet.geometry import mesh_parsers
from jonet.geometry.mesh_parsers import PLY_TYPES
from jonet.storage import archives
from jonet.wording import counted

LIMIT = 200_000
CHUNK = 1 << 16  # rows in memory at once, in addition to the kept ones
AXES, NORMALS = ("x", "y", "z"), ("nx", "ny", "nz")
UNIT = 0.05  # tolerance of the length of normals; other columns 4 to 6 are colors or else
COARSE = 1e-3  # of the extent: larger steps of float32 coordinates are said


def read(path: Path, limit: int = LIMIT, seed: int = 0) -> np.ndarray:
    """At most `limit` rows of a point cloud file: [n, 3] (points) or [n, 6] (with unit normals), float64.

    A .npy is an array [N, 3] or [N, 6]; an .npz has arrays `points` and optionally `normals`; a PLY has properties x,
    y, z and optionally nx, ny, nz.  Text (.xyz, .txt, .csv, .asc, .pts) has rows of numbers, separated by spaces,
    commas or semicolons; the first row may be a header.  Raises FormatError with file and cause.
    """
    kind = path.suffix.lower()
    if kind not in READERS:
        raise FormatError(f"{path}: unknown kind of point cloud; they end in {', '.join(READERS)}")
    try:
        rows = READERS[kind](path, limit, seed)
    except FormatError as error:
        raise FormatError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error.__cause__
    except Exception as error:  # damaged files make numpy, zipfile and zlib raise errors of many types
        cause = f"{type(error).__name__}: {archives.brief(error)}"
        raise FormatError(f"{path}: cannot be read as a point cloud, it is damaged or cut off ({cause})") from error
    return checked(rows, path)


def checked(rows: np.ndarray, path: Path) -> np.ndarray:
    """Rows [N, 3 or more] as [n, 3], or [n, 6] if columns 4 to 6 are unit normals.

    Rows that are not finite are left out, and so are columns that are no normals, both with a warning.  Raises
    FormatError if less than half of the rows, or fewer than 4, are left.
    """

    def warn(words: str) -> None:
        warnings.warn(f"{path}: {words}", stacklevel=4)

    if rows.ndim != 2 or rows.shape[1] < 3 or len(rows) < 4:
        raise FormatError(
            f"{path}: a point cloud has at least 4 rows of 3 or 6 numbers, but this has shape {list(rows.shape)}"
        )
    finite = np.isfinite(rows[:, :3]).all(1)
    if lost := int(np.count_nonzero(~finite)):
        of = f"of {len(rows):,} rows"
        found = f"{counted(lost, f'{of} holds', f'{of} hold')} numbers that are not finite"
        if 2 * lost > len(rows) or len(rows) - lost < 4:
            raise FormatError(f"{path}: {found}")
        warn(f"{found}: left out")
        rows = rows[finite]
    if rows.shape[1] > 3:
        with np.errstate(all="ignore"):
            length = np.linalg.norm(rows[:, 3:6], axis=1) if rows.shape[1] > 5 else np.zeros(len(rows))
            unit = np.abs(length - 1).max() <= UNIT  # not so if any is nan
        kept, count = 6 if unit else 3, rows.shape[1]
        if count > kept:
            cause = " (4 to 6 are no unit normals)" if count > 5 and not unit else ""
            warn(f"only the first {kept} of its {count} columns are read{cause}")
        rows = rows[:, :kept]
    points = rows[:, :3]
    with np.errstate(all="ignore"):
        step, extent = np.spacing(np.float32(np.abs(points).max())), np.ptp(points, axis=0).max()
        if step > COARSE * extent > 0 and (points == points.astype(np.float32)).all():
            warn(
                f"its coordinates are float32, in steps of {step:.2g}, but all points lie within {extent:.2g}; "
                "subtract an offset before you write such files, or write float64"
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
        archives.check_size(path, sum(info.file_size for info in archive.infolist()))
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        if "points" not in held:
            raise FormatError(f"holds {shown(', '.join(held))}, but must have an array 'points'")
        names = ("points", "normals")[: 1 + ("normals" in held)]
        counts = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                counts.append(_header(file).shape[0])
        if len(set(counts)) > 1:  # checked first: with different counts, different rows would be kept
            raise FormatError(
                f"holds {counted(counts[1], 'normal')} for {counted(counts[0], 'point')}; give one normal per point, "
                "or none"
            )
        columns = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                columns.append(_array(file, limit, seed))
    return np.column_stack(columns)


def _array(file: IO[bytes], limit: int, seed: int) -> np.ndarray:
    """The kept rows of an array in .npy format, from a stream that is read once (a member of an .npz cannot seek)."""
    (count, width), by_columns, dtype = _header(file)
    rows = chosen(count, limit, seed)
    if not by_columns:
        return np.concatenate([*_picked(file, dtype, (width,), rows, count)])
    return np.stack([np.concatenate([*_picked(file, dtype, (), rows, count)]) for _ in range(width)], axis=1)


class NpyHeader(NamedTuple):
    """The header of an .npy file."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype


def _header(file: IO[bytes]) -> NpyHeader:
    """The header of an array in .npy format; pickled objects and other shapes than [N, 3] and [N, 6] are refused."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = header(file)
    if dtype.kind not in "fiu" or shape[1:] not in ((3,), (6,)) or shape[0] < 0:
        raise FormatError(f"a point cloud is an array of numbers, 3 or 6 in a row, but this is {dtype} {list(shape)}")
    return NpyHeader(shape, by_columns, dtype)


def _picked(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], rows: np.ndarray, count: int) -> Iterator:
    """The given rows of the `count` records that follow in a stream, chunk by chunk."""
    each = dtype.itemsize * int(np.prod(shape))
    for start in range(0, max(count, 1), CHUNK):  # one empty chunk for count 0, so that there is something to join
        size = min(CHUNK, count - start)
        content = _exactly(file, each * size)
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + size)] - start
        chunk = np.frombuffer(content, dtype).reshape(size, *shape)[here]
        yield chunk if dtype.names else chunk.astype(np.float64)


def _exactly(file: IO[bytes], size: int) -> bytes:
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
        count = sum(1 for _ in _table(file))
        file.seek(start)
        return _text(_table(file), chosen(count, limit, seed))


def _table(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of numbers with spaces between; a header, which is no row of three numbers or more, is skipped."""
    lines = _lines(file)
    for line in itertools.islice(lines, 1):
        words = line.split()
        if len(words) > 2 and all(re.fullmatch(rb"[+-]?\d+,\d+", word) for word in words):
            raise FormatError("has numbers with a decimal comma; write them with a point")
        words = _separated(line).split()
        if len(words) > 2 and all(map(_is_number, words)):
            yield _separated(line)
    yield from map(_separated, lines)


def _separated(line: bytes) -> bytes:
    return line.replace(b",", b" ").replace(b";", b" ")


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty and not comments."""
    return (line for line in file if (words := line.lstrip()) and not words.startswith((b"#", b"//")))


def _text(lines: Iterator[bytes], rows: np.ndarray) -> np.ndarray:
    """The numbers in the given lines (ascending indices); the others are not parsed."""
    steps = np.diff(rows, prepend=-1).tolist()
    kept = [line.decode("latin-1") for step in steps for line in itertools.islice(lines, step - 1, step)]
    if len(kept) < len(rows):
        raise FormatError("is cut off: its header announces more rows than follow")
    if not kept:
        return np.zeros((0, 3))
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
    if not set(AXES) <= set(header.properties):
        raise FormatError(
            f"has vertices without x, y and z; their properties are {shown(', '.join(header.properties))}"
        )
    if next(iter(header.elements), "") != "vertex" or "list" in header.properties.values():
        try:
            found = mesh_parsers.load(path)
        except MeshError as error:
            raise FormatError(str(error)) from error
        kept = chosen(len(found.vertices), limit, seed)
        return np.column_stack([side[kept] for side in (found.vertices, found.normals) if side is not None])
    names = [name for group in (AXES, NORMALS) if set(group) <= set(header.properties) for name in group]
    if (count := header.elements["vertex"]) < 4:
        raise FormatError(f"announces {count} vertices, but a point cloud has at least 4 points")
    rows = chosen(count, limit, seed)
    with path.open("rb") as file:
        file.seek(header.size)
        if header.form == "ascii":
            table = _text(_lines(file), rows)
            if table.shape[1] < len(header.properties):
                raise FormatError(f"has {table.shape[1]} of {len(header.properties)} numbers in a row; it is damaged")
            return table[:, [list(header.properties).index(name) for name in names]]
        order = ">" if "big" in header.form else "<"
        record = np.dtype([(name, order + PLY_TYPES[kind]) for name, kind in header.properties.items()])
        table = np.concatenate([*_picked(file, record, (), rows, count)])
    return np.stack([table[name].astype(np.float64) for name in names], axis=1)


TEXT = dict.fromkeys((".xyz", ".txt", ".csv", ".asc", ".pts"), _xyz)
READERS = {".npy": _npy, ".npz": _npz, ".ply": _ply, **TEXT}
