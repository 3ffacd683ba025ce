"""Grids: the integer points of a box, where they lie, and fields asked at many of them.

A grid of R cells a side has (R+1)³ samples and spans its box exactly; x is the slowest axis, z the fastest.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jonet.errors import InputError, require
from jonet.networks.field import TILE, Field, evaluate_tiles

CHUNK = 2**21  # points of a dense grid that are in memory at once


def make_grid(xmin, xmax, resolution: int) -> np.ndarray:
    """The points of a regular grid, ends included, as the classic occupancy notebook counts them.

    xmin, xmax: a number for all axes, or three.  resolution: *samples* a side (R samples are R-1 cells).
    Returns [R³, 3] float32, x slowest and z fastest: `field(points).reshape(R, R, R)` is indexed [x, y, z].
    """
    if resolution < 2:
        raise InputError(f"resolution is {resolution}, but a grid has at least 2 samples a side")
    box = _box([np.broadcast_to(xmin, 3), np.broadcast_to(xmax, 3)])
    ticks = Lattice(box[None], resolution - 1).locate(0, np.arange(resolution)[:, None]).astype(np.float32)
    return np.stack(np.meshgrid(*ticks.T, indexing="ij"), -1).reshape(-1, 3)


def evaluate(fields: Field, resolution: int, box=None) -> np.ndarray:
    """The values of a batch of fields on whole grids, [B, R+1, R+1, R+1] float32, indexed [shape, x, y, z].

    resolution: R cells a side.  box [2, 3]: corners, the fields' own if None.  Made in pieces: what is in memory beside
    the result does not grow with it.
    """
    grid = lattice(fields, resolution, box)
    side = resolution + 1
    values = np.empty(len(fields) * side**3, np.float32)
    for start in range(0, len(values), CHUNK):
        flat = np.arange(start, min(start + CHUNK, len(values)))
        shape, *index = np.unravel_index(flat, (len(fields), side, side, side))
        values[flat], _ = ask(fields, shape, grid.locate(shape, np.stack(index, -1)))
    return values.reshape(len(fields), side, side, side)


def ask(fields: Field, shape, points, gradient: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (and gradients) of points of many shapes: each shape's points fill tiles of their own.

    shape [N]: the field of each point, ascending.  points [N, 3] → values [N], and gradients [N, 3] or None.
    """
    place, owner = deal(shape, len(fields), TILE)
    padded = np.zeros((len(owner) * TILE, 3), np.float32)
    padded[place] = points
    values, gradients = evaluate_tiles(fields, owner, padded.reshape(-1, TILE, 3), gradient)
    return values.reshape(-1)[place], gradients.reshape(-1, 3)[place] if gradient else None


def deal(shape, shapes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Things of many shapes, dealt into blocks of `size` things of one shape each.

    shape [N], ascending → the place of each thing [N] (its block is place // size), and the shape of each block [K].
    """
    counts = np.bincount(shape, minlength=shapes)
    blocks = -(-counts // size)
    skipped = (np.cumsum(blocks) - blocks) * size - (np.cumsum(counts) - counts)  # padding before a shape's things
    return np.arange(len(shape)) + skipped[shape], np.repeat(np.arange(shapes, dtype=np.int32), blocks)


def lattice(fields: Field, resolution: int, box=None) -> Lattice:
    """The grid of R cells in each field's box, or in the box that is given."""
    if not fields.batched:
        raise InputError("a batch of fields is needed; stack single ones with Field.stack([field])")
    if int(resolution) != resolution or resolution < 1:
        raise InputError(f"resolution is {resolution}, but a grid has a whole number of cells, at least 1")
    boxes = np.asarray(fields.own["box"]) if box is None else np.broadcast_to(_box(box), (len(fields), 2, 3))
    return Lattice(boxes.astype(np.float64), int(resolution))


def _box(box) -> np.ndarray:
    box = require(box, "box", (2, 3), np.float64)
    if not (box[0] < box[1]).all():
        raise InputError(f"box must be its lowest and its highest corner, but is {box.tolist()}")
    return box


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """Integer points of B boxes: 0…R on each axis lie in the box, and one layer around them is `beyond`.

    boxes [B, 2, 3] float64.  A point of one of the shapes has a *key*, one int64 that sorts by shape, x, y and z, and
    in which a step along an axis is an addition: keys of a whole list of points move together.
    """

    boxes: np.ndarray
    resolution: int

    @property
    def bits(self) -> int:
        """Bits of a key that hold one coordinate, from -1 to 2R."""
        return (2 * self.resolution + 1).bit_length()

    def keys(self, shape, index) -> np.ndarray:
        """shape [N], index [N, 3] → keys [N]."""
        key = np.asarray(shape, np.int64)
        for axis in range(3):
            key = (key << self.bits) + (index[..., axis] + 1)
        return key

    def steps(self, offsets) -> np.ndarray:
        """Whole offsets [..., 3] as differences of keys [...]."""
        return np.asarray(offsets, np.int64) @ (np.int64(1) << (self.bits * np.arange(2, -1, -1)))

    def shape(self, keys) -> np.ndarray:
        """The shape of each key."""
        return keys >> (3 * self.bits)

    def along(self, keys, axis: int) -> np.ndarray:
        """One coordinate of each key."""
        return (keys >> (self.bits * (2 - axis)) & ((1 << self.bits) - 1)) - 1

    def index(self, keys) -> np.ndarray:
        """All three coordinates of each key, [N, 3]."""
        return np.stack([self.along(keys, axis) for axis in range(3)], -1)

    def locate(self, shape, index) -> np.ndarray:
        """Where integer points (and what lies between them) are: the one function that gives coordinates.

        shape [N] or one number, index [N, 3] → [N, 3] float64.
        """
        low, high = self.boxes[shape, 0], self.boxes[shape, 1]
        share = index / self.resolution
        return (1 - share) * low + share * high

    def cell(self, shape) -> np.ndarray:
        """The longest edge of a shape's cells."""
        return np.ptp(self.boxes[shape], axis=-2).max(-1) / self.resolution

    def beyond(self, keys) -> np.ndarray:
        """Whether points lie in the layer around the box."""
        outside = np.zeros(keys.shape, bool)
        for axis in range(3):
            along = self.along(keys, axis)
            outside |= (along < 0) | (along > self.resolution)
        return outside


class Asker:
    """Fields asked at lattice points for *signed* values, positive inside; counts what was asked."""

    def __init__(self, fields: Field, lattice: Lattice, level: np.ndarray, first: int = 0):
        """level [B]: the value on each surface.  first: the number of the first field, in errors."""
        self.fields, self.lattice, self.level, self.first = fields, lattice, level, first
        self.asked = 0

    def __call__(self, keys: np.ndarray, offset: np.ndarray | int = 0) -> np.ndarray:
        """Values [N] at lattice points (keys [N], by ascending shape), or at `offset` [N, 3] cells from them."""
        shape, points = self.points(keys, offset)
        values, _ = ask(self.fields, shape, points)
        self.asked += len(keys)
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            self._refuse(shape[bad[0]], values[bad[0]], points[bad[0]])
        return self.fields.inside * (values - self.level[shape])

    def whole(self, shape: int) -> np.ndarray:
        """Values of all points of one shape's grid, [R+1, R+1, R+1]."""
        values = evaluate(self.fields[shape : shape + 1], self.lattice.resolution, self.lattice.boxes[shape])[0]
        self.asked += values.size
        if not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[0]
            self._refuse(shape, values[tuple(bad)], self.lattice.locate(shape, bad))
        return self.fields.inside * (values - self.level[shape])

    def points(self, keys, offset=0) -> tuple[np.ndarray, np.ndarray]:
        """Shape [N] and coordinates [N, 3] of lattice points, or of what lies `offset` cells from them."""
        shape = self.lattice.shape(keys)
        return shape, self.lattice.locate(shape, self.lattice.index(keys) + offset)

    def _refuse(self, shape, value, point):
        raise InputError(
            f"field {self.first + shape} is {value} at {np.round(point, 4).tolist()}; "
            "its network's parameters or its code are not finite, or overflow there"
        )
