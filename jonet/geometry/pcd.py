"""Point clouds of the Point Cloud Library: PCD files in text, binary and compressed (pointclouds.org, PCD format 0.7).

Files are untrusted: what a header announces is compared with the length of the file before memory is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jonet.errors import FormatError, shown
from jonet.geometry import cloud_rows
from jonet.geometry.cloud_rows import Columns, Rows, chosen, exactly, picked

TYPES = {"F": "f", "I": "i", "U": "u"}
HEADER = 1 << 16  # bytes of a header, at most
COLUMNS = 10_000  # at most
LONGEST = 264  # bytes that the three of a back reference of LZF can stand for


class Header(NamedTuple):
    """fields: name, type and number of values of each; count: of points; form: ascii, binary or binary_compressed."""

    fields: list[tuple[str, np.dtype, int]]
    count: int
    form: str

    @property
    def names(self) -> list[str]:
        """The name of each column; "_" for the further values of a field."""
        return [name if i == 0 else "_" for name, _, many in self.fields for i in range(many)]


def read(path: Path, limit: int, seed: int, note: Callable[[str], None]) -> Rows:
    """The kept points, with the normals of the fields normal_x, normal_y, normal_z.  note: is not called.

    Raises FormatError without the file's name.
    """
    with path.open("rb") as file:
        header = _header(file)
        found = cloud_rows.columns(header.names)
        if found is None:
            raise FormatError(f"has points without x, y and z; their fields are {shown(', '.join(header.names))}")
        left = path.stat().st_size - file.tell()
        rows = chosen(header.count, limit, seed)
        values = {"ascii": _ascii, "binary": _binary}.get(header.form, _compressed)(file, header, rows, found, left)
    return Rows(values, True, [name for name in found.left if name != "_"])


def _header(file: IO[bytes]) -> Header:
    told: dict[str, list[str]] = {}
    while "DATA" not in told:
        line = file.readline(HEADER)
        if not line or file.tell() > HEADER:
            raise FormatError("is cut off in its header, or no PCD file (no line 'DATA')")
        key, *words = line.partition(b"#")[0].decode("latin-1").split() or [""]
        told.setdefault(key.upper(), words)
    if missing := [key for key in ("FIELDS", "SIZE", "TYPE", "DATA") if not told.get(key)]:
        raise FormatError(f"has no {missing[0]} in its header; it is damaged, or no PCD file")
    names, many = told["FIELDS"], told.get("COUNT") or ["1"] * len(told["FIELDS"])
    if not len(names) == len(told["SIZE"]) == len(told["TYPE"]) == len(many):
        raise FormatError("has FIELDS, SIZE, TYPE and COUNT of different lengths in its header; it is damaged")
    fields = []
    for name, size, kind, repeated in zip(names, told["SIZE"], told["TYPE"], many, strict=True):
        if kind.upper() not in TYPES or size not in ("1", "2", "4", "8") or (kind.upper() == "F" and size == "1"):
            raise FormatError(f"has a field {shown(name)} of unknown type {shown(kind + size)}; it is damaged")
        if not re.fullmatch(r"[0-9]{1,4}", repeated):
            raise FormatError(f"has a field {shown(name)} of {shown(repeated)} values; it is damaged")
        fields.append((name, np.dtype(f"<{TYPES[kind.upper()]}{size}"), int(repeated)))
    if sum(many for _, _, many in fields) > COLUMNS:
        raise FormatError(f"has more than {COLUMNS:,} numbers for each point; it is damaged")
    numbers = told.get("POINTS") or told.get("WIDTH", [])[:1] + told.get("HEIGHT", [])[:1]
    if not numbers or not all(re.fullmatch(r"[0-9]{1,15}", number) for number in numbers):
        raise FormatError("has no number of POINTS in its header; it is damaged")
    form = told["DATA"][0].lower()
    if form not in ("ascii", "binary", "binary_compressed"):
        raise FormatError(f"has DATA {shown(form)}; they are ascii, binary or binary_compressed")
    return Header(fields, int(np.prod([int(number) for number in numbers], dtype=object)), form)


def _check(announced: int, left: int, count: int) -> None:
    if announced > left:
        raise FormatError(f"announces {count:,} points, {announced:,} bytes, but {left:,} follow; it is cut off")


def _ascii(file: IO[bytes], header: Header, rows: np.ndarray, found: Columns, left: int) -> np.ndarray:
    _check(2 * len(header.names) * header.count, left + 1, header.count)  # a digit and a space for each number
    kept, wanted = [], np.zeros(header.count, bool)
    wanted[rows] = True
    for number in range(header.count):
        words = cloud_rows.plain(file.readline(HEADER)).split()
        if len(words) < len(header.names):
            raise FormatError(f"has {len(words)} of {len(header.names)} numbers in point {number}; it is cut off")
        if wanted[number]:
            kept.append([words[i] for i in found.used])
            if (longest := max(map(len, kept[-1]))) > cloud_rows.LONGEST:  # numpy pads all words to the longest: memory
                raise FormatError(f"has a word of {longest} characters where a number should be")
    return np.array(kept, np.bytes_).reshape(-1, len(found.used)).astype(np.float64)


def _place(header: Header, column: int) -> tuple[int, int]:
    """The field of a column, and the place of its value in it."""
    for place, (_, _, many) in enumerate(header.fields):
        if column < many:
            return place, column
        column -= many
    raise AssertionError(column)


def _binary(file: IO[bytes], header: Header, rows: np.ndarray, found: Columns, left: int) -> np.ndarray:
    record = np.dtype([(f"f{i}", kind, (many,)) for i, (_, kind, many) in enumerate(header.fields)])
    _check(record.itemsize * header.count, left, header.count)
    table = picked(file, record, (), rows, header.count)
    places = [_place(header, column) for column in found.used]
    return np.stack([table[f"f{field}"][:, at].astype(np.float64) for field, at in places], axis=1)


def _compressed(file: IO[bytes], header: Header, rows: np.ndarray, found: Columns, left: int) -> np.ndarray:
    """Fields one after the other, each of all points, compressed together."""
    packed, size = (int.from_bytes(exactly(file, 4), "little") for _ in range(2))
    starts = np.cumsum([0] + [kind.itemsize * many * header.count for _, kind, many in header.fields], dtype=object)
    _check(packed, left - 8, header.count)
    if size != starts[-1] or size > packed * LONGEST:
        raise FormatError(
            f"announces {header.count:,} points of {starts[-1]:,} bytes, but {packed:,} bytes that unpack to {size:,}; "
            "it is damaged"
        )
    data = lzf(exactly(file, packed), size)
    columns = []
    for field, at in (_place(header, column) for column in found.used):
        _, kind, many = header.fields[field]
        values = np.frombuffer(data, kind, many * header.count, starts[field]).reshape(header.count, many)
        columns.append(values[rows, at].astype(np.float64))
    return np.stack(columns, axis=1)


def lzf(packed: bytes, size: int) -> bytes:
    """The `size` bytes that were compressed by LZF; FormatError if there are not so many.

    A byte below 32 announces one more literal bytes than it says; another one, a copy of earlier bytes: three bits are
    their number less 2 (7: the next byte is added), the other five and the last byte their distance less 1.
    """
    found, at = bytearray(), 0
    try:
        while at < len(packed) and len(found) <= size:
            control = packed[at]
            at += 1
            if control < 32:
                found += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            start = len(found) - ((control & 31) << 8) - packed[at] - 1
            at += 1
            if start < 0:
                raise IndexError
            length += 2
            piece = found[start : start + length]  # shorter than the length where source and copy overlap: it repeats
            found += (piece * (length // len(piece) + 1))[:length]
    except IndexError:
        found = bytearray()
    if len(found) != size:
        raise FormatError(f"has compressed data that do not unpack to {size:,} bytes; it is damaged")
    return bytes(found)
