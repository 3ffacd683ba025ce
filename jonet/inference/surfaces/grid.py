"""Regular grids over boxes, integer keys of their points, and the evaluation of fields at these.

A grid of R cells a side has (R+1)³ samples and spans its box exactly; x is the slowest axis, z the fastest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, overload

import numpy as np

from jonet.checks import check_array
from jonet.errors import InputError, shown
from jonet.networks.field import TILE, Field, evaluate_tiles, slabs


def make_grid(xmin, xmax, resolution: int, indexing: Literal["ij", "xy"] = "ij") -> np.ndarray:
    """The points of a regular grid, ends included.  Unlike elsewhere, resolution counts samples, not cells.

    xmin, xmax: a number for all axes, or three.  resolution: samples a side (R samples are R-1 cells).
    Returns [R³, 3] float32.  indexing: "ij", x slowest and z fastest: `field(points).reshape(R, R, R)` is indexed
    [x, y, z].  "xy", the order of the classic occupancy notebook, y slowest: it is indexed [y, x, z].
    """
    if indexing not in ("ij", "xy"):
        raise InputError(f"indexing is {shown(indexing)}, but must be 'ij' or 'xy'")
    if resolution < 2:
        raise InputError(f"resolution is {resolution}, but a grid has at least 2 samples a side")
    box = _box([np.broadcast_to(xmin, 3), np.broadcast_to(xmax, 3)])
    ticks = Lattice(box[None], resolution - 1).to_coordinates(0, np.arange(resolution)[:, None]).astype(np.float32)
    return np.stack(np.meshgrid(*ticks.T, indexing=indexing), -1).reshape(-1, 3)


def evaluate(fields: Field, resolution: int, box=None) -> np.ndarray:
    """The values of a batch of fields on whole grids, [B, R+1, R+1, R+1] float32, indexed [shape, x, y, z].

    resolution: R cells a side.  box [2, 3]: corners; None for the box of each field.
    """
    grid = lattice(fields, resolution, box)
    return slabs(fields, grid.boxes, grid.resolution).values


@overload
def evaluate_points(fields: Field, shape, points, gradient: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def evaluate_points(fields: Field, shape, points, gradient: bool = False) -> tuple[np.ndarray, np.ndarray | None]: ...
def evaluate_points(fields: Field, shape, points, gradient: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (and gradients) of a batch of fields at points.

    shape [N]: the field of each point, ascending.  points [N, 3] → values [N], and gradients [N, 3] or None.
    """
    # a tile has points of one shape only, so the last tile of each shape is padded
    place, owner = deal(shape, len(fields), TILE)
    padded = np.zeros((len(owner) * TILE, 3), np.float32)
    padded[place] = points
    values, gradients = evaluate_tiles(fields, owner, padded.reshape(-1, TILE, 3), gradient)
    return values.reshape(-1)[place], None if gradients is None else gradients.reshape(-1, 3)[place]


def deal(shape, shapes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs items of many shapes into blocks of `size` items, each block of one shape.

    shape [N], ascending: the shape of each item → the place of each item [N] (its block is place // size), and the
    shape of each block [K].
    """
    counts = np.bincount(shape, minlength=shapes)
    blocks = -(-counts // size)
    skipped = (np.cumsum(blocks) - blocks) * size - (np.cumsum(counts) - counts)  # padding before a shape's items
    return np.arange(len(shape)) + skipped[shape], np.repeat(np.arange(shapes, dtype=np.int32), blocks)


def lattice(fields: Field, resolution: int, box=None) -> Lattice:
    """The grids of R cells a side of a batch of fields, in each field's box or in the given one."""
    if not fields.batched:
        raise InputError("a batch of fields is needed; stack single ones with Field.stack([field])")
    if int(resolution) != resolution or resolution < 1:
        raise InputError(f"resolution is {resolution}, but a grid has a whole number of cells, at least 1")
    boxes = np.asarray(fields.per_shape["box"]) if box is None else np.broadcast_to(_box(box), (len(fields), 2, 3))
    return Lattice(boxes.astype(np.float64), int(resolution))


def _box(box) -> np.ndarray:
    box = check_array(box, "box", (2, 3), np.float64)
    if not (box[0] < box[1]).all():
        raise InputError(f"box must be its lowest and its highest corner, but is {box.tolist()}")
    return box


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """The grids of B shapes: integer points 0…R on each axis of a box, and one layer outside of it (-1 and R + 1).

    boxes [B, 2, 3] float64.  Every point has a *key*, one int64 with bit fields for shape, x, y and z.  Keys sort in
    this order, and a step along an axis is the addition of a constant, so that neighbors of many points are computed
    and looked up at once.
    """

    boxes: np.ndarray
    resolution: int

    @property
    def bits(self) -> int:
        """Bits of a key for one coordinate from -1 to 2R (large cells may end beyond R)."""
        return (2 * self.resolution + 1).bit_length()

    def keys(self, shape, index) -> np.ndarray:
        """shape [N], index [N, 3] → keys [N]."""
        key = np.asarray(shape, np.int64)
        for axis in range(3):
            key = (key << self.bits) + (index[..., axis] + 1)  # + 1: no bit field is negative
        return key

    def steps(self, offsets) -> np.ndarray:
        """Integer offsets [..., 3] as differences of keys [...]."""
        return np.asarray(offsets, np.int64) @ (np.int64(1) << (self.bits * np.arange(2, -1, -1)))

    def shape(self, keys) -> np.ndarray:
        """The shape of each key, [N]."""
        return keys >> (3 * self.bits)

    def coordinate(self, keys, axis: int) -> np.ndarray:
        """One coordinate of each key, [N]."""
        return (keys >> (self.bits * (2 - axis)) & ((1 << self.bits) - 1)) - 1

    def index(self, keys) -> np.ndarray:
        """All three coordinates of each key, [N, 3]."""
        return np.stack([self.coordinate(keys, axis) for axis in range(3)], -1)

    def to_coordinates(self, shape, index) -> np.ndarray:
        """Coordinates of integer points, and of points between them.

        shape [N] or one number, index [N, 3] → [N, 3] float64.  All coordinates of grids are computed here, so that a
        point has the same bits wherever it is evaluated.
        """
        low, high = self.boxes[shape, 0], self.boxes[shape, 1]
        fraction = index / self.resolution
        return (1 - fraction) * low + fraction * high

    def cell(self, shape) -> np.ndarray:
        """The length of the longest edge of a shape's cells: shape [N] or one number → [N] or one number."""
        return np.ptp(self.boxes[shape], axis=-2).max(-1) / self.resolution

    def outside_box(self, keys) -> np.ndarray:
        """Whether points, keys [N], are outside of the box, bool [N]."""
        outside = np.zeros(keys.shape, bool)
        for axis in range(3):
            along = self.coordinate(keys, axis)
            outside |= (along < 0) | (along > self.resolution)
        return outside


class FieldEvaluator:
    """Evaluates fields at lattice points as *signed* values, positive inside, and counts the evaluations."""

    def __init__(self, fields: Field, lattice: Lattice, level: np.ndarray, first: int = 0):
        """level [B]: the value on each surface.  first: number of the first field in error messages."""
        self.fields, self.lattice, self.level, self.first = fields, lattice, level, first
        self.num_evaluations = 0

    def __call__(self, keys: np.ndarray, offset: np.ndarray | int = 0) -> np.ndarray:
        """Signed values [N] at lattice points (keys [N], by ascending shape), or `offset` [N, 3] cells away from them.

        Raises InputError for a value that is not finite.
        """
        shape, points = self.points(keys, offset)
        values, _ = evaluate_points(self.fields, shape, points)
        self.num_evaluations += len(keys)
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            self._refuse(shape[bad[0]], values[bad[0]], points[bad[0]])
        return self.fields.inside * (values - self.level[shape])

    def whole(self, shape: int) -> np.ndarray:
        """Signed values of all points of one shape's grid, [R+1, R+1, R+1]."""
        values = evaluate(self.fields[shape : shape + 1], self.lattice.resolution, self.lattice.boxes[shape])[0]
        self.num_evaluations += values.size
        if not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[0]
            self._refuse(shape, values[tuple(bad)], self.lattice.to_coordinates(shape, bad))
        return self.fields.inside * (values - self.level[shape])

    def points(self, keys, offset: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Shape [N] and coordinates [N, 3] of lattice points, or of points `offset` cells away from them."""
        shape = self.lattice.shape(keys)
        return shape, self.lattice.to_coordinates(shape, self.lattice.index(keys) + offset)

    def _refuse(self, shape, value, point):
        raise InputError(
            f"field {self.first + shape} is {value} at {np.round(point, 4).tolist()}; "
            "its network's parameters or its code are not finite, or overflow there"
        )
