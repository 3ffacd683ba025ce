"""Unpacks buffers of glTF that meshoptimizer compressed (EXT_meshopt_compression of Khronos, Appendices A and B).

Files are untrusted: what they announce is compared with the bytes that there are before memory is taken.
"""

from __future__ import annotations

import numpy as np

from jonet.errors import MeshError, shown

GROUP, BLOCK, BLOCK_BYTES = 16, 256, 8192  # elements of a group, elements and bytes of a block at most
TAIL = 32  # bytes, at least, with the element before the first one
PER_BYTE = 64  # elements for each byte of a stream, at most: four groups of zeros


def unpacked(data: bytes, count: int, stride: int, mode: str, filtered: str) -> bytes:
    """The `count` elements of `stride` bytes in a compressed view of a buffer.

    mode: ATTRIBUTES, TRIANGLES or INDICES.  filtered: NONE or EXPONENTIAL; others are of normals and rotations only.
    Raises MeshError for damaged data and for other modes and filters.
    """
    if mode not in MODES or filtered not in ("NONE", "EXPONENTIAL"):
        raise MeshError(
            f"has data compressed in the mode {shown(mode)} and filter {shown(filtered)}, which is not read"
        )
    if not 0 < stride <= BLOCK or count > PER_BYTE * len(data):
        raise MeshError(f"announces {count} elements of {stride} bytes in {len(data)} compressed bytes; it is damaged")
    try:
        found = MODES[mode](data, count, stride)
    except (IndexError, ValueError, OverflowError) as error:
        raise MeshError("has compressed data that do not unpack; it is cut off or damaged") from error
    if filtered == "EXPONENTIAL":
        packed = np.frombuffer(found, "<i4")
        with np.errstate(over="ignore"):
            found = np.ldexp((packed << 8 >> 8).astype(np.float32), packed >> 24).astype("<f4").tobytes()
    return found


def _attributes(data: bytes, count: int, stride: int) -> bytes:
    """Differences to the element before, byte by byte; in blocks, each with its first bytes, then its second ones, …"""
    if data[0] != 0xA0:
        raise ValueError("another version")
    stream = np.frombuffer(data, np.uint8)
    before, at = stream[len(data) - stride :], 1
    end = len(data) - max(stride, TAIL)
    most = min(BLOCK_BYTES // stride & ~(GROUP - 1), BLOCK)
    found = np.zeros((count, stride), np.uint8)
    for start in range(0, count, most):
        size = min(most, count - start)
        groups = -(-size // GROUP)
        for byte in range(stride):
            head = stream[at : at + -(-groups // 4)].tolist()
            at += len(head)
            deltas = np.zeros((groups, GROUP), np.uint8)
            for group in range(groups):
                kind = head[group // 4] >> 2 * (group % 4) & 3
                if kind:
                    at = _group(stream, at, kind, deltas[group])
            if at > end:
                raise ValueError("too few bytes")
            flat = deltas.ravel()[:size]
            flat = (flat >> 1) ^ -(flat & 1)
            found[start : start + size, byte] = np.cumsum(flat, dtype=np.uint8) + before[byte]
        before = found[start + size - 1]
    return found.tobytes()


def _group(stream: np.ndarray, at: int, kind: int, out: np.ndarray) -> int:
    """Sixteen differences of two, four or eight bits, most significant first; the largest one means: a byte follows."""
    if kind == 3:
        out[:] = stream[at : at + GROUP]
        return at + GROUP
    bits = 2 * kind
    packed = stream[at : at + 2 * bits]
    at += 2 * bits
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    out[:] = (packed[:, None] >> shifts & (1 << bits) - 1).ravel()
    larger = np.flatnonzero(out == (1 << bits) - 1)
    out[larger] = stream[at : at + len(larger)]
    return at + len(larger)


class _Varints:
    """Numbers of seven bits a byte, and differences to the last index."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at, self.last = data, at, 0

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 28:
                raise ValueError("a number of too many bytes")

    def index(self) -> int:
        value = self.number()
        self.last += ~(value >> 1) if value & 1 else value >> 1
        return self.last


def _triangles(data: bytes, count: int, stride: int) -> bytes:
    """A code for each triangle, most of which share an edge with a recent one; then numbers, then a table of codes."""
    if data[0] != 0xE1 or count % 3 or stride not in (2, 4):
        raise ValueError("another version")
    codes, table = data[1 : 1 + count // 3], data[-16:]
    numbers = _Varints(data[:-16], 1 + count // 3)
    following = 0
    edges, vertices = [(0, 0)] * 16, [0] * 16  # the most recent ones last
    found = np.zeros(count, np.int64)
    for i, code in enumerate(codes):
        high, low = code >> 4, code & 15
        if high < 15:
            a, b = edges[-1 - high]
            if low == 0:
                c = following
                following += 1
            elif low < 13:
                c = vertices[-1 - low]
            else:
                c = numbers.index() if low == 15 else numbers.last + (1 if low == 14 else -1)
                numbers.last = c
            edges += [(c, b), (a, c)]
            if low == 0 or low >= 13:
                vertices.append(c)
        else:
            explicit = low >= 14
            pair = table[low]
            if explicit:
                pair = numbers.data[numbers.at]
                numbers.at += 1
                following = 0 if pair == 0 else following
            corners = []
            for place in (15 if low == 15 else 0, pair >> 4, pair & 15):
                if place == 0:
                    corners.append(following)
                    following += 1
                else:
                    corners.append(numbers.index() if place == 15 else vertices[-place])
            a, b, c = corners
            edges += [(b, a), (c, b), (a, c)]
            vertices += [a] + [b] * (pair >> 4 in (0, 15)) + [c] * (pair & 15 in (0, 15))
        found[3 * i : 3 * i + 3] = a, b, c
        edges, vertices = edges[-16:], vertices[-16:]
    return _bytes(found, stride)


def _indices(data: bytes, count: int, stride: int) -> bytes:
    """Differences to one of two earlier numbers."""
    if data[0] != 0xD1 or stride not in (2, 4):
        raise ValueError("another version")
    numbers, last = _Varints(data[:-4], 1), [0, 0]
    found = np.zeros(count, np.int64)
    for i in range(count):
        value = numbers.number()
        last[value & 1] += ~(value >> 2) if value & 2 else value >> 2
        found[i] = last[value & 1]
    return _bytes(found, stride)


def _bytes(found: np.ndarray, stride: int) -> bytes:
    if len(found) and not 0 <= found.min() <= found.max() < 1 << 8 * stride:
        raise ValueError("an index that is none")
    return found.astype(f"<u{stride}").tobytes()


MODES = {"ATTRIBUTES": _attributes, "TRIANGLES": _triangles, "INDICES": _indices}
