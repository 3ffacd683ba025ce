"""Point clouds of airborne and terrestrial scanners: LAS and LAZ files, by laspy (LAZ: with lazrs), the extra `scans`.

A header that announces more points than its file can hold is refused before laspy reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jonet.errors import FormatError
from jonet.geometry import cloud_rows
from jonet.geometry.cloud_rows import CHUNK, Rows, chosen

HEADER = 227  # bytes of the shortest header, of version 1.0
PER_BYTE = 100  # points for each byte of a compressed file, at most: real ones have less than one


def read(path: Path, limit: int, seed: int, note: Callable[[str], None]) -> Rows:
    """The kept points in the units of the file, with normals where extra dimensions name them.

    note: called with what is left out.  Raises FormatError without the file's name.
    """
    count = _checked(path)
    rows = chosen(count, limit, seed)
    try:
        values, names = _kept(path, rows)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what lazrs raises for damaged data is no Exception
            raise
        raise FormatError("has compressed data that cannot be unpacked; it is damaged") from error
    if len(values) < len(rows):
        raise FormatError(f"announces {count:,} points, but holds less; it is cut off")
    note(f"only x, y, z {'and normals ' * (values.shape[1] > 3)}of its {len(names)} dimensions are read")
    return Rows(values, True)


def _kept(path: Path, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The given points (ascending indices), and the names of all dimensions of the file."""
    try:
        import laspy  # pyright: ignore[reportMissingImports]: it is no requirement
    except ImportError as error:
        raise FormatError(
            "needs laspy to be read: pip install 'laspy[lazrs]'; or convert it to PLY, for example with CloudCompare"
        ) from error
    kept, start = [np.zeros((0, 3))], 0
    backend = laspy.LazBackend.Lazrs  # in one thread: that of several ends the process where data are damaged
    with laspy.open(path, laz_backend=backend) as file:
        names = [str(name) for name in file.header.point_format.dimension_names]
        found = cloud_rows.columns(names)
        used = ["x", "y", "z", *(names[i] for i in (found.used[3:] if found else ()))]
        for chunk in file.chunk_iterator(CHUNK):
            here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(chunk))] - start
            kept.append(np.stack([np.asarray(chunk[name], np.float64)[here] for name in used], axis=1))
            start += len(chunk)
    return np.concatenate(kept[len(kept) > 1 :]), names


def _checked(path: Path) -> int:
    """The number of points that a header announces; FormatError if the file cannot hold as many."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(375)
    if head[:4] != b"LASF":
        raise FormatError("does not begin with 'LASF', so it is no LAS or LAZ file")
    if len(head) < HEADER:
        raise FormatError(f"has {size} bytes, but a header of LAS has at least {HEADER}; it is cut off")
    least, start, records, kind, length, count = struct.unpack_from("<HIIBHI", head, 94)
    if not HEADER <= least <= start or length < 20:
        raise FormatError(f"has points of {length} bytes from byte {start} on, as no LAS file has; it is damaged")
    if head[25] >= 4 and len(head) >= 255:
        (count,) = struct.unpack_from("<Q", head, 247)
    packed = kind & 0x80
    most = PER_BYTE * size if packed else (size - start) // max(length, 1)
    if count > most or 54 * records > size or start > size:
        raise FormatError(f"announces {count:,} points, more than its {size:,} bytes hold; it is cut off or damaged")
    if packed:
        _check_chunks(path, start, size)
    return count


def _check_chunks(path: Path, start: int, size: int) -> None:
    """FormatError if the table of chunks of a LAZ file is not in it, or is longer than it."""
    with path.open("rb") as file:
        file.seek(start)
        (place,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if place < 0:  # written as a stream: the last 8 bytes of the file say where
            file.seek(size - 8)
            (place,) = struct.unpack("<q", file.read(8))
        if not start < place <= size - 8:
            raise FormatError("has no table of its compressed chunks; it is cut off or damaged")
        file.seek(place + 4)
        (chunks,) = struct.unpack("<I", file.read(4))
    if chunks > size:
        raise FormatError(f"announces {chunks:,} compressed chunks in {size:,} bytes; it is damaged")
