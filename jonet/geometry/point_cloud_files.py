"""Reading point clouds of any size in bounded memory: files are subsampled while they are read.

Of a file of N rows, `limit` are kept by stratified sampling: one random row from each of `limit` equal ranges of the
file.  Scanners write points in scan order, so this also spreads them evenly in space.  The choice depends on N, limit
and seed only, not on the format.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jonet.errors import FormatError, MeshError, shown
from jonet.geometry import cloud_rows, las, mesh_parsers, pcd, ptx, text_clouds, unread
from jonet.geometry.cloud_rows import Rows, chosen, picked
from jonet.geometry.mesh_parsers import PLY_TYPES, PLY_VERTICES
from jonet.storage import archives
from jonet.wording import counted

LIMIT = 200_000
POINTS = ("points", "xyz", "vertices", "pos", "pts", "pc", "arr_0")  # names of arrays in an .npz, best first
UNIT = 0.05  # tolerance of the length of normals without a name; other columns 4 to 6 are colors or else
EXACT = 1e-3  # of normals that count as they are; others are normalized
COARSE = 1e-3  # of the extent: larger steps of float32 coordinates are said
NAMED = 6  # columns that are left out by name in a warning, at most
Note = Callable[[str], None]


def read(path: Path, limit: int = LIMIT, seed: int = 0) -> np.ndarray:
    """At most `limit` rows of a point cloud file: [n, 3] (points) or [n, 6] (with unit normals), float64.

    A .npy is an array [N, C] of three or more columns, [H, W, C] or [3, N], in any memory order; an .npz has arrays
    `points` and optionally `normals`; a PLY has properties x, y, z and optionally nx, ny, nz, and any others.  Text
    (`text_clouds`), PCD (`pcd`), PTX (`ptx`), LAS and LAZ (`las`) are read, too.  What is left out is a warning.
    Raises FormatError with file and cause.
    """
    kind = path.suffix.lower()
    if kind not in READERS:
        raise FormatError(f"{path}: {unread.described(kind, READERS)}")
    try:
        rows = READERS[kind](path, limit, seed, functools.partial(_warn, path))
    except FormatError as error:
        raise FormatError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error.__cause__
    except Exception as error:  # damaged files make numpy, zipfile, zlib and laspy raise errors of many types
        if words := archives.unopened(error):
            raise FormatError(f"{path}: {words}") from error
        cause = f"{type(error).__name__}: {archives.brief(error)}"
        raise FormatError(f"{path}: cannot be read as a point cloud, it is damaged or cut off ({cause})") from error
    return checked(rows, path)


def _warn(path: Path, words: str) -> None:
    warnings.warn(f"{path}: {words}", stacklevel=4)


def checked(rows: Rows | np.ndarray, path: Path) -> np.ndarray:
    """Rows [N, 3 or more] as [n, 3], or [n, 6] if columns 4 to 6 are normals, which become unit normals.

    Without a name of their own, columns are normals only if they are nearly of length 1.  Rows that are not finite or
    whose normal is zero are left out, and so are other columns, all with a warning.  Raises FormatError if less than
    half of the rows, or fewer than 4, are left.
    """
    values, named, left = rows if isinstance(rows, Rows) else Rows(rows)
    warn = functools.partial(_warn, path)
    if values.ndim != 2 or values.shape[1] < 3 or len(values) < 4:
        raise FormatError(
            f"{path}: a point cloud has at least 4 rows of 3 or 6 numbers, but this has shape {list(values.shape)}"
        )
    values, columns = _finite(values, path), values.shape[1] + len(left)
    if values.shape[1] > 3:
        normals = values[:, 3:6]
        with np.errstate(all="ignore"):
            length = np.linalg.norm(normals, axis=1) if normals.shape[1] == 3 else np.zeros(len(values))
            usable = np.isfinite(length) & (length > 0)
            off = np.abs(length[usable] - 1).max(initial=0)
        some = 2 * np.count_nonzero(usable) >= len(values)
        if some and (named or off <= UNIT):
            if lost := int(np.count_nonzero(~usable)):
                of = f"of {len(values):,} points"
                words = counted(lost, f"{of} has a normal that is", f"{of} have normals that are")
                warn(f"{words} zero or not finite: left out")
            if off > EXACT:
                warn(f"its normals are up to {off:.2g} off unit length: normalized")
            values = values[usable, :6]
            if off > EXACT:
                values = np.column_stack([values[:, :3], values[:, 3:] / length[usable, None]])
        elif named:
            warn("its normals are zero or not finite: left out")
            values = values[:, :3]
        else:
            because = " (4 to 6 are no unit normals)" if normals.shape[1] == 3 else ""
            warn(f"only the first 3 of its {columns} columns are read{because}")
            return _fine(values[:, :3], path)
    if left and all(name.isdecimal() for name in left):
        warn(f"only the first {values.shape[1]} of its {columns} columns are read")
    elif left:
        more = f", … ({len(left)} columns)" * (len(left) > NAMED)
        warn(f"its columns {', '.join(name[:40] for name in left[:NAMED])}{more} are left out")
    return _fine(values, path)


def _finite(values: np.ndarray, path: Path) -> np.ndarray:
    """The rows whose coordinates are finite."""
    finite = np.isfinite(values[:, :3]).all(1)
    if not (lost := int(np.count_nonzero(~finite))):
        return values
    of = f"of {len(values):,} rows"
    found = f"{counted(lost, f'{of} holds', f'{of} hold')} numbers that are not finite"
    if 2 * lost > len(values) or len(values) - lost < 4:
        raise FormatError(f"{path}: {found}")
    _warn(path, f"{found}: left out")
    return values[finite]


def _fine(values: np.ndarray, path: Path) -> np.ndarray:
    """The rows themselves; a warning if the steps of float32 coordinates are coarse for their extent."""
    points = values[:, :3]
    with np.errstate(all="ignore"):
        step, extent = np.spacing(np.float32(np.abs(points).max())), np.ptp(points, axis=0).max()
        if step > COARSE * extent > 0 and (points == points.astype(np.float32)).all():
            words = f"its coordinates are float32, in steps of {step:.2g}, but all points lie within {extent:.2g}; "
            _warn(path, words + "subtract an offset before you write such files, or write float64")
    return values


def _npy(path: Path, limit: int, seed: int, note: Note) -> Rows:
    with path.open("rb") as file:
        return _array(file, limit, seed, note)


def _npz(path: Path, limit: int, seed: int, note: Note) -> Rows:
    with zipfile.ZipFile(path) as archive:
        archives.check_size(path, sum(info.file_size for info in archive.infolist()))
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        points = next((name for name in POINTS if name in held), held[0] if len(held) == 1 else None)
        if points is None:
            raise FormatError(f"holds {shown(', '.join(held))}, but must have an array 'points'")
        if "faces" in held and points != POINTS[0]:
            raise FormatError(f"holds a mesh, {shown(points)} and 'faces'; write it as PLY, OBJ, STL or GLB")
        names = [points, *(["normals"] if "normals" in held else [])]
        left = [name for name in held if name not in names]
        if points != POINTS[0]:
            note(f"its array {shown(points)} is taken for the points")
        if left:
            note(f"its arrays {shown(', '.join(left))} are left out")
        headers = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                headers.append(_header(file))
        if len(names) > 1:  # checked first: with different counts, different rows would be kept
            first, second = (header.count for header in headers)
            if first != second:
                raise FormatError(
                    f"holds {counted(second, 'normal')} for {counted(first, 'point')}; give one normal per point, "
                    "or none"
                )
            if [header.width for header in headers] != [3, 3]:
                raise FormatError("has arrays of points and normals that are not both of 3 columns")
        found = []
        for name in names:
            with archive.open(f"{name}.npy") as file:
                found.append(_array(file, limit, seed, note))
    if len(found) == 1:
        return found[0]
    return Rows(np.column_stack([part.values for part in found]), True)


class NpyHeader(NamedTuple):
    """The header of an .npy file of `count` points of `width` columns.

    by_columns: whether the file has column after column.  names: of the columns, if it has any.
    """

    count: int
    width: int
    by_columns: bool
    dtype: np.dtype
    names: tuple[str, ...] | None


def _header(file: IO[bytes]) -> NpyHeader:
    """The header of an array in .npy format; pickled objects and arrays that hold no points are refused."""
    shape, by_columns, dtype = archives.npy_header(file)
    whole = min(shape, default=0) >= 0
    if dtype.names and whole and cloud_rows.columns(dtype.names) and not dtype.hasobject:
        if all(dtype[name].kind in "fiu" and not dtype[name].shape for name in dtype.names):
            return NpyHeader(math.prod(shape), len(dtype.names), False, dtype, dtype.names)
    elif dtype.kind in "fiu" and whole and len(shape) == 3 and 3 <= shape[2] <= 64:
        return NpyHeader(shape[0] * shape[1], shape[2], by_columns, dtype, None)  # in the order of the file
    elif dtype.kind in "fiu" and whole and len(shape) == 2:
        if shape[0] in (3, 6) and shape[1] > 9:  # transposed, since so few points have no more columns
            return NpyHeader(shape[1], shape[0], not by_columns, dtype, None)
        if 3 <= shape[1] <= 64:
            return NpyHeader(shape[0], shape[1], by_columns, dtype, None)
    raise FormatError(
        f"a point cloud is an array of numbers, 3 or 6 in a row, but this is {shown(str(dtype))} {list(shape)}"
    )


def _array(file: IO[bytes], limit: int, seed: int, note: Note) -> Rows:
    """The kept rows of an array in .npy format, from a stream that is read once (a member of an .npz cannot seek)."""
    count, width, by_columns, dtype, names = _header(file)
    rows = chosen(count, limit, seed)
    if names is not None and (found := cloud_rows.columns(names)):
        table = picked(file, dtype, (), rows, count)
        values = np.stack([table[names[i]].astype(np.float64) for i in found.used], axis=1)
        return Rows(values, True, found.left)
    used = 6 if width > 5 else 3
    left = tuple(map(str, range(used + 1, width + 1)))
    if not by_columns:
        return Rows(picked(file, dtype, (width,), rows, count)[:, :used], False, left)
    return Rows(np.stack([picked(file, dtype, (), rows, count) for _ in range(used)], axis=1), False, left)


class Header(NamedTuple):
    """The header of a PLY file."""

    form: str  # "ascii", "binary_little_endian" or "binary_big_endian"
    elements: dict[str, int]  # name: count
    properties: list[tuple[str, str]]  # of the first element of vertices: name, and type or "list"; names may repeat
    lists: tuple[str, ...]  # other elements with lists: faces, maybe
    size: int  # bytes of the header


def ply_header(path: Path) -> Header:
    """The header of a PLY file; FormatError (without the file's name) if it has none."""
    form, elements, properties, lists, element = "", {}, [], [], ""
    with path.open("rb") as file:
        encoding, mark = archives.encoding(file.read(4))
        if encoding != "utf-8":
            raise FormatError(f"is {encoding.upper()} text, of which no header is read")
        file.seek(mark)
        if not (first := file.readline(16)).startswith(b"ply"):
            raise FormatError("does not begin with 'ply', so it is no PLY file")
        if mesh_parsers.ply_by_cr(first):
            raise FormatError("has lines that end in CR alone, of which no header is read")
        for line in iter(lambda: file.readline(1 << 12), b""):  # bounded: a binary file may have no line breaks
            match line.decode("latin-1").split():
                case ["format", form, *_]:
                    pass
                case ["element", element, count]:
                    element = "vertex" if element.lower() in PLY_VERTICES else element.lower()
                    element = f"another {element}" if element in elements else element
                    elements[element] = int(count)
                case ["property", kind, *_, name] if element == "vertex":
                    properties.append((name, kind))
                case ["property", "list", *_] if elements.get(element):
                    lists.append(element)
                case ["end_header"]:
                    return Header(form, elements, properties, tuple(lists), file.tell())
    raise FormatError("is cut off in its header (no 'end_header')")


def _ply(path: Path, limit: int, seed: int, note: Note) -> Rows:
    with path.open("rb") as file:
        head = file.read(8)
        if archives.encoding(head)[0] != "utf-8" or mesh_parsers.ply_by_cr(head):
            return _loaded(path, limit, seed)
    header = ply_header(path)
    names, kinds = ([each[i] for each in header.properties] for i in range(2))
    found = cloud_rows.columns(names)
    if found is None:
        packed = "; they are compressed Gaussian splats, write plain PLY" * ("packed_position" in names)
        words = f"has vertices without x, y and z; their properties are {shown(', '.join(names))}"
        raise FormatError(words + packed)
    if next(iter(header.elements), "") != "vertex" or "list" in kinds:
        return _loaded(path, limit, seed, found.left)
    if (count := header.elements["vertex"]) < 4:
        raise FormatError(f"announces {count} vertices, but a point cloud has at least 4 points")
    rows = chosen(count, limit, seed)
    with path.open("rb") as file:
        file.seek(header.size)
        if header.form == "ascii":
            table = _text(_lines(file), rows)
            if table.shape[1] < len(names):
                raise FormatError(f"has {table.shape[1]} of {len(names)} numbers in a row; it is damaged")
            return Rows(table[:, list(found.used)], True, found.left)
        order = ">" if "big" in header.form else "<"
        record = np.dtype([(f"f{i}", order + PLY_TYPES[kind]) for i, kind in enumerate(kinds)])
        table = picked(file, record, (), rows, count)
    return Rows(np.stack([table[f"f{i}"].astype(np.float64) for i in found.used], axis=1), True, found.left)


def _loaded(path: Path, limit: int, seed: int, left: tuple[str, ...] = ()) -> Rows:
    """The kept vertices of a file that is read as a mesh, as a whole."""
    try:
        mesh = mesh_parsers.load(path)
    except MeshError as error:
        raise FormatError(str(error)) from error
    return of_mesh(mesh, limit, seed, left)


def of_mesh(mesh: mesh_parsers.Arrays, limit: int, seed: int, left: tuple[str, ...] = ()) -> Rows:
    """The kept vertices of a mesh, with its normals.  left: as of `Rows`."""
    kept = chosen(len(mesh.vertices), limit, seed)
    return Rows(np.column_stack([side[kept] for side in (mesh.vertices, mesh.normals) if side is not None]), True, left)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty and not comments."""
    return (line for line in file if (words := line.lstrip()) and not words.startswith(b"#"))


def _text(lines: Iterator[bytes], rows: np.ndarray) -> np.ndarray:
    """The numbers in the given lines (ascending indices); the others are not parsed."""
    steps = np.diff(rows, prepend=-1).tolist()
    kept = [
        cloud_rows.plain(line).decode("latin-1") for step in steps for line in itertools.islice(lines, step - 1, step)
    ]
    if len(kept) < len(rows):
        raise FormatError("is cut off: its header announces more rows than follow")
    return np.loadtxt(kept, dtype=np.float64, ndmin=2)


Reader = Callable[[Path, int, int, Note], Rows]
TEXT: dict[str, Reader] = dict.fromkeys(text_clouds.SUFFIXES, text_clouds.read)
BINARY: dict[str, Reader] = {
    ".npy": _npy,
    ".npz": _npz,
    ".ply": _ply,
    ".pcd": pcd.read,
    ".ptx": ptx.read,
    ".las": las.read,
    ".laz": las.read,
}
READERS = BINARY | TEXT
