"""Fields: trained shapes as functions ℝ³ → ℝ, and the evaluation of many of them in bulk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.special import expit

from jonet import device_memory, parallel, products
from jonet.checks import check_array, whole
from jonet.chips import Precision
from jonet.errors import InputError
from jonet.wording import counted

TILE = 128  # points of one shape that are evaluated together; few, since the last tile of a shape is partly padding
PLANES = 2**20  # points of grids that are evaluated at once
UNITS = 4096  # tiles at once × units of a layer: this many keep their activations in a CPU's cache (2 MB)
FILLING = 512  # tiles at once on an accelerator
LEAST = 128  # least capacity of a dispatch in tiles; with DISPATCH it leaves four programs: 128, 512, 2048, 8192
# Most tiles per device and dispatch: 2²⁰ points; once memory ran out as many as an accelerator halves (`_group`).
DISPATCH = device_memory.Pieces("tiles", 8192, 512)


class Grid(NamedTuple):
    """Values of fields on regular grids of R cells a side, indexed [x, y, z], and the coordinates of their planes.

    One shape: values [R+1, R+1, R+1], axes [3, R+1].  A batch: both with a leading axis B.
    """

    values: np.ndarray
    axes: np.ndarray


@struct.dataclass
class Field:
    """One shape as a function of space, or a batch of B shapes of one network.

    shared: arrays common to all shapes of the network.
    per_shape: arrays of one shape, among them `level` [] (the value on the surface) and `box` [2, 3] (corners of the
    cube that holds the surface); in a batch every leaf has a leading axis B.  Batches keep them on the host, where
    selecting shapes compiles nothing.
    architecture(shared, per_shape, points [N, 3]) → values [N] evaluates one shape; it is static and hashable.
    inside: -1 if values are lower inside (signed distances), +1 if they are higher (occupancy logits).
    code_dependent: keys of the per-shape arrays that depend on the code, for its Jacobian; None for any of them.
    precision: of matrix products where many points are evaluated (`evaluate_tiles`); `at` has the caller's.
    """

    shared: Any
    per_shape: dict[str, Any]
    architecture: Callable = struct.field(pytree_node=False)
    inside: int = struct.field(pytree_node=False)
    code_dependent: tuple[str, ...] | None = struct.field(pytree_node=False, default=None)
    precision: Precision = struct.field(pytree_node=False, default=products.DEFAULT)

    def __repr__(self) -> str:
        level = self.per_shape.get("level") if isinstance(self.per_shape, dict) else None
        shape = getattr(level, "shape", None)  # leaves may be placeholders of JAX's transformations
        count = "of unknown size" if shape is None else f"batch of {counted(shape[0], 'shape')}" if shape else "1 shape"
        return f"Field({count}, {'occupancy logits' if self.inside > 0 else 'signed distances'}, normalized frame)"

    @property
    def batched(self) -> bool:
        """Whether this is a batch of fields."""
        return jnp.ndim(self.per_shape["level"]) == 1

    @property
    def axes(self) -> Field:
        """The `in_axes` of `jax.vmap` that map over the shapes of a batch."""
        return dataclasses.replace(self, shared=None, per_shape=0)

    @property
    def padded(self) -> Field:
        """This batch on the devices, with fields of zeros after it: what compiled programs take (`padded_rows`)."""
        if (here := parallel.mesh()) not in self._padded:
            per_shape = jax.tree.map(lambda leaf: jax.device_put(padded_rows(leaf)), self.per_shape)
            shared = jax.tree.map(
                lambda leaf: parallel.replicate(leaf) if isinstance(leaf, np.ndarray) else leaf, self.shared
            )
            self._padded[here] = dataclasses.replace(self, shared=shared, per_shape=per_shape)
        return self._padded[here]

    @functools.cached_property
    def _padded(self) -> dict[Any, Field]:
        """`padded` by the devices that were in use."""
        return {}

    @property
    def box(self) -> np.ndarray:
        """Corners [2, 3] of the cube that holds the surface; in a batch, those of the first shape."""
        box = np.asarray(self.per_shape["box"])
        return box[0] if self.batched else box

    def __len__(self) -> int:
        if not self.batched:
            raise TypeError("this field is one shape and has no length; stack fields with Field.stack([field])")
        return self.per_shape["level"].shape[0]

    def __getitem__(self, index) -> Field:
        """One field of a batch (an integer) or a smaller batch (a slice or array of integers)."""
        length = len(self)
        if isinstance(index, int | np.integer) and not -length <= index < length:
            raise IndexError(f"field {index} of a batch of {length}")
        device = isinstance(index, jax.Array)  # a traced index, too, which cannot select on the host
        rows = jax.tree.map(lambda leaf: (jnp.asarray(leaf) if device else leaf)[index], self.per_shape)
        return dataclasses.replace(self, per_shape=rows)

    @staticmethod
    def stack(fields: Sequence[Field]) -> Field:
        """A batch from single fields of one network; InputError for fields of several."""
        for i, field in enumerate(fields[1:], 1):
            if not fields[0]._like(field):
                raise InputError(f"field {i} is of another network than field 0, so that they are no batch")
        per_shape = jax.tree.map(lambda *leaves: np.stack(leaves), *(field.per_shape for field in fields))
        return dataclasses.replace(fields[0], per_shape=per_shape)

    def _like(self, other: Field) -> bool:
        """Whether another field has the same network, whose arrays are equal to rounding if it is folded twice."""
        (leaves, kind), (others, other_kind) = (
            jax.tree.flatten(dataclasses.replace(field, per_shape=None)) for field in (self, other)
        )
        return kind == other_kind and all(
            one is two or np.shape(one) == np.shape(two) and np.allclose(one, two, rtol=1e-5, atol=1e-6, equal_nan=True)
            for one, two in zip(leaves, others, strict=True)
        )

    def at(self, points) -> jax.Array:
        """Values at points, as a pure function for use inside jit, vmap and grad: one shape, [N, 3] → [N]."""
        return self.architecture(self.shared, self.per_shape, points)

    def __call__(self, points) -> jax.Array:
        """Values at points: one shape [N, 3] → [N]; a batch [B, N, 3] → [B, N].  See `evaluate_tiles`."""
        values, _ = self._evaluate(points, gradient=False)
        return values

    def gradient(self, points) -> tuple[jax.Array, jax.Array]:
        """Values and their gradients: one shape [N, 3] → [N], [N, 3]; a batch [B, N, 3] → [B, N], [B, N, 3]."""
        return self._evaluate(points, gradient=True)

    def occupancy(self, points) -> jax.Array:
        """Occupancy in [0, 1]: the sigmoid of logits; for distances, 1 inside and 0 outside."""
        values = np.asarray(self(points))
        occupancies = expit(values) if self.inside > 0 else (values < self._level(values)).astype(values.dtype)
        return jax.device_put(occupancies)

    def contains(self, points) -> jax.Array:
        """Whether points are inside the surface: bool, [N] or [B, N]."""
        values = np.asarray(self(points))
        return jax.device_put((values - self._level(values)) * self.inside > 0)

    def grid(self, resolution: int, box=None) -> Grid:
        """Values on a regular grid of `resolution` cells a side, ends included.

        box [2, 3]: lowest and highest corner; None for the box that holds the surface.  Evaluated plane by plane, so
        that memory beyond the result is small.  Raises InputError for a resolution below 1 and for an empty box.
        """
        fields = self if self.batched else Field.stack([self])
        boxes = np.asarray(fields.per_shape["box"])
        if box is not None:
            boxes = np.broadcast_to(check_array(box, "box", (2, 3), np.float64), boxes.shape)
        found = slabs(fields, boxes, resolution)
        return found if self.batched else Grid(found.values[0], found.axes[0])

    def _level(self, values):
        level = np.asarray(self.per_shape["level"])
        return level[:, None] if values.ndim == 2 else level

    @device_memory.reporting("evaluating fields", "evaluate fewer shapes at once, or free memory of the device")
    def _evaluate(self, points, gradient: bool) -> tuple[jax.Array, Any]:
        shape = (len(self), None, 3) if self.batched else (None, 3)
        points = check_array(points, "points", shape)
        fields = self if self.batched else Field.stack([self])
        rows = points.reshape(len(fields), -1, 3)
        each = -(-rows.shape[1] // TILE)
        padded = np.zeros((len(fields), each * TILE, 3), np.float32)
        padded[:, : rows.shape[1]] = rows
        owner = np.repeat(np.arange(len(fields), dtype=np.int32), each)
        values, gradients = evaluate_tiles(fields, owner, padded.reshape(-1, TILE, 3), gradient=gradient)
        values = jax.device_put(values.reshape(len(fields), -1)[:, : rows.shape[1]].reshape(points.shape[:-1]))
        if gradients is not None:
            gradients = gradients.reshape(len(fields), -1, 3)[:, : rows.shape[1]].reshape(points.shape)
            gradients = jax.device_put(gradients)
        return values, gradients


def slabs(field: Callable, boxes, resolution: int) -> Grid:
    """The values of a batch of fields on grids in boxes [B, 2, 3], some planes of constant x at a time.

    field: points [B, N, 3] → values [B, N].
    """
    resolution = whole(resolution, "resolution", 1, 4096)
    boxes = check_array(boxes, "box", ("B", 2, 3), np.float64)
    if not (boxes[:, 0] < boxes[:, 1]).all():
        raise InputError(f"box must be its lowest and its highest corner, but is {boxes[0].tolist()}")
    fraction = np.arange(resolution + 1) / resolution
    axes = (1 - fraction) * boxes[:, 0, :, None] + fraction * boxes[:, 1, :, None]  # [B, 3, R + 1]
    side = resolution + 1
    each = max(1, PLANES // side**2 // max(1, len(boxes)))
    values = np.empty((len(boxes), side, side, side), np.float32)
    for start in range(0, side, each):
        planes = [np.meshgrid(x[start : start + each], y, z, indexing="ij") for x, y, z in axes]
        points = np.stack([np.stack(shape, -1) for shape in planes])
        values[:, start : start + each] = np.asarray(field(points.reshape(len(boxes), -1, 3))).reshape(
            points.shape[:-1]
        )
    return Grid(values, axes)


def evaluate_tiles(fields: Field, shape, points, gradient: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (and gradients) of fields at K tiles of points; all bulk evaluation from the host goes through it.

    fields: a batch.  shape [K]: the field of each tile.  points [K, 128, 3] → values [K, 128], and gradients
    [K, 128, 3] or None.  Tiles are split evenly over all devices, any K and (within a `bucket`) any number of fields
    run without a new compilation, and the bits of a tile's result depend on nothing but the tile.  Matrix products have
    the precision of the fields.
    """
    points = check_array(points, "points", (None, TILE, 3), finite=False)
    shape = check_array(shape, "shape", (len(points),), np.int32)
    if not fields.batched:
        raise InputError("evaluate_tiles takes a batch of fields; stack single ones with Field.stack")
    devices, program = parallel.count(), evaluation(parallel.platform(), gradient)
    values = np.empty(points.shape[:2], np.float32)
    gradients = np.empty(points.shape, np.float32) if gradient else None
    targets = [values] if gradients is None else [values, gradients]

    def per_device(piece: slice) -> int:  # the last device may hold fewer
        return -(-(piece.stop - piece.start) // devices)

    def dispatch(piece: slice):
        each = per_device(piece)
        capacity = bucket(each, LEAST)
        tiles = np.zeros((devices, capacity, TILE, 3), np.float32)
        owner = np.zeros((devices, capacity), np.int32)
        for device in range(devices):
            first = min(piece.start + device * each, piece.stop)
            size = min(each, piece.stop - first)
            tiles[device, :size] = points[first : first + size]
            owner[device, :size] = shape[first : first + size]
        with products.precise(fields.precision):
            return program(fields.padded, owner, tiles, np.int32(each))

    def collect(piece: slice, out) -> None:
        for result, target in zip(parallel.host(out), targets, strict=True):
            rows = result[:, : per_device(piece)].reshape(-1, *target.shape[1:])
            target[piece] = rows[: piece.stop - piece.start]

    DISPATCH.map(dispatch, len(points), collect)
    return values, gradients


def bucket(size: int, least: int = 4) -> int:
    """The capacity that a list of `size` items is padded to: `least` times a power of four.

    So few capacities mean few compiled programs; the padding is not evaluated.
    """
    capacity = least
    while capacity < size:
        capacity *= 4
    return capacity


def padded_rows(rows) -> np.ndarray:
    """Rows [B, …] of B shapes with zeros after them, as many rows as their `bucket` holds."""
    rows = parallel.host(rows)
    padded = np.zeros((bucket(len(rows)), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


@functools.cache
def evaluation(platform: parallel.Platform, gradient: bool) -> Callable:
    """The program of `evaluate_tiles`: (fields, owner, tiles, count) → [values], or [values, gradients].

    owner [devices, K] int32, tiles [devices, K, 128, 3], count []: each device evaluates its first `count` tiles.
    """

    def evaluate(fields: Field, shape, points, count):
        """One device's tiles: shape [1, K], points [1, K, 128, 3], of which the first `count` are evaluated."""
        chex.assert_shape([shape, points], [(1, points.shape[1]), (1, None, TILE, 3)])

        def tiles(start, size):
            return [jax.lax.dynamic_slice_in_dim(array[0], start, size) for array in (shape, points)]

        out = [jnp.zeros(points.shape[1:3])] + ([jnp.zeros(points.shape[1:])] if gradient else [])
        return [o[None] for o in evaluate_lists(platform, fields, tiles, 0, count, out)]

    specs = (parallel.REPLICATED, parallel.SPLIT, parallel.SPLIT, parallel.REPLICATED)
    return parallel.pmap(evaluate, specs, parallel.SPLIT)


def evaluate_lists(platform: parallel.Platform, fields: Field, tiles: Callable, first, count, out: list) -> list:
    """The tiles first … count of a list, evaluated a group at a time, for programs of one device.

    tiles(start, size): the shapes [size] and points [size, 128, 3] of consecutive tiles.  first, count []: may be
    traced.  out: the values [K, 128] so far and, if gradients are wanted, gradients [K, 128, 3]; both are returned with
    the new ones, and neither is kept for tiles from `count` on.
    """
    gradient, most = len(out) > 1, len(out[0])
    # At most half of the tiles: with a single group the loop's body is invariant, and XLA would hoist it out of the
    # loop and run it even if count is 0.
    group = max(1, min(most // 2, _group(platform, fields.shared)))
    if gradient and not platform.is_cpu:  # whose activations are kept: 1 GB of the published decoder's
        group = max(1, group // 2)

    def tile(owner, tile_points):
        per_shape = jax.tree.map(lambda leaf: leaf[owner], fields.per_shape)
        if not gradient:
            return (fields.architecture(fields.shared, per_shape, tile_points),)
        # a value depends on its own point only, so the gradient of the sum holds the gradient of every value
        values, vjp = jax.vjp(lambda p: fields.architecture(fields.shared, per_shape, p), tile_points)
        return values, *vjp(jnp.ones_like(values))

    def evaluate_group(start, size, out):
        start = jnp.minimum(start, most - size)  # the last group may repeat some of the one before
        owners, inputs = tiles(start, size)
        results = jax.vmap(tile)(owners, inputs) if size > 1 else [r[None] for r in tile(owners[0], inputs[0])]
        return [
            jax.lax.dynamic_update_slice_in_dim(o, r.astype(o.dtype), start, 0)
            for o, r in zip(out, results, strict=True)
        ]

    # A CPU pays for padding, so the rest that does not fill a group runs tile by tile; an accelerator does not.
    singly, size = platform.is_cpu, count - first
    groups = size // group if singly else -(-size // group)
    out = jax.lax.fori_loop(0, groups, lambda step, out: evaluate_group(first + step * group, group, out), out)
    if singly and group > 1:
        start = first + groups * group
        out = jax.lax.fori_loop(start, count, lambda step, out: evaluate_group(step, 1, out), out)
    return out


def _group(platform: parallel.Platform, shared) -> int:
    """Tiles at once, a power of two: as many as keep activations in a CPU's cache, or enough to fill an accelerator."""
    if not platform.is_cpu:
        return FILLING
    widths = [leaf.shape[-1] for leaf in jax.tree.leaves(shared) if leaf.ndim > 1]
    return 1 << max(1, UNITS // max(widths)).bit_length() - 1 if widths else 1  # a classifier shares nothing
