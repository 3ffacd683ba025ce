"""Fields: trained shapes as functions ℝ³ → ℝ, and the one way to ask many of them in bulk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jonet import parallel
from jonet.errors import InputError, require

TILE = 128  # points of one shape that are evaluated together; few, since the last tile of every list is partly empty
DISPATCH = 8192  # tiles a device at most in one dispatch: 2²⁰ points
UNITS = 4096  # tiles at once times units of a layer: so many keep their activations in a CPU's cache (2 MB)
LEAST = 128  # tiles that a list is padded to: the smallest of four programs, 128 to 8,192


@struct.dataclass
class Field:
    """One shape as a function of space, or a batch of B shapes that share their matrices.

    shared: arrays common to all shapes of a network.  own: arrays of one shape, among them `level` [] (the value on
    the surface) and `box` [2, 3] (corners of the cube that holds it); in a batch every own leaf has a leading B.
    architecture(shared, own, points [N, 3]) → values [N] evaluates one shape; it is static and hashable.
    inside: -1 where values fall inside (signed distances), +1 where they rise (occupancy logits).
    """

    shared: Any
    own: dict[str, Any]
    architecture: Callable = struct.field(pytree_node=False)
    inside: int = struct.field(pytree_node=False)

    @property
    def batched(self) -> bool:
        """Whether this is a batch of fields."""
        return jnp.ndim(self.own["level"]) == 1

    @property
    def axes(self) -> Field:
        """The `jax.vmap` specification that maps over the shapes of a batch."""
        return dataclasses.replace(self, shared=None, own=0)

    @property
    def box(self) -> np.ndarray:
        """Corners [2, 3] of the cube that holds the surface; of the first shape in a batch."""
        box = np.asarray(self.own["box"])
        return box[0] if self.batched else box

    def __len__(self) -> int:
        if not self.batched:
            raise TypeError("this field is one shape and has no length; stack fields with Field.stack([field])")
        return self.own["level"].shape[0]

    def __getitem__(self, index) -> Field:
        """One field of a batch (an integer) or a smaller batch (a slice or array of integers)."""
        length = len(self)
        if isinstance(index, int | np.integer) and not -length <= index < length:
            raise IndexError(f"field {index} of a batch of {length}")
        return dataclasses.replace(self, own=jax.tree.map(lambda x: x[index], self.own))

    @staticmethod
    def stack(fields: Sequence[Field]) -> Field:
        """A batch from single fields of one network."""
        own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(field.own for field in fields))
        return dataclasses.replace(fields[0], own=own)

    def at(self, points) -> jax.Array:
        """Values at points, as a pure function for use inside jit, vmap and grad: one shape, [N, 3] → [N]."""
        return self.architecture(self.shared, self.own, points)

    def __call__(self, points) -> jax.Array:
        """Values at points: one shape [N, 3] → [N]; a batch [B, N, 3] → [B, N].  Evaluated in tiles."""
        values, _ = self._ask(points, gradient=False)
        return values

    def gradient(self, points) -> tuple[jax.Array, jax.Array]:
        """Values and their gradients: one shape [N, 3] → [N], [N, 3]; a batch [B, N, 3] → [B, N], [B, N, 3]."""
        return self._ask(points, gradient=True)

    def occupancy(self, points) -> jax.Array:
        """How surely points are inside, in [0, 1]: the sigmoid of logits; of distances, 1 inside and 0 outside."""
        values = self(points)
        if self.inside > 0:
            return jax.nn.sigmoid(values)
        return (values < self._level(values)).astype(values.dtype)

    def contains(self, points) -> jax.Array:
        """Whether points are inside the surface: bool, [N] or [B, N]."""
        values = self(points)
        return (values - self._level(values)) * self.inside > 0

    def _level(self, values):
        return self.own["level"][:, None] if values.ndim == 2 else self.own["level"]

    def _ask(self, points, gradient):
        shape = (len(self), None, 3) if self.batched else (None, 3)
        points = require(points, "points", shape)
        fields = self if self.batched else Field.stack([self])
        rows = points.reshape(len(fields), -1, 3)
        each = -(-rows.shape[1] // TILE)
        padded = np.zeros((len(fields), each * TILE, 3), np.float32)
        padded[:, : rows.shape[1]] = rows
        owner = np.repeat(np.arange(len(fields), dtype=np.int32), each)
        values, gradients = evaluate_tiles(fields, owner, padded.reshape(-1, TILE, 3), gradient=gradient)
        values = jnp.asarray(values.reshape(len(fields), -1)[:, : rows.shape[1]].reshape(points.shape[:-1]))
        if gradient:
            gradients = gradients.reshape(len(fields), -1, 3)[:, : rows.shape[1]].reshape(points.shape)
        return values, gradients


@functools.partial(jax.jit, static_argnums=0)
def fold(network, shared, statistics, codes) -> Field:
    """A batch of fields from codes [B, L]; `network.fold(shared, statistics, code) → Field` folds one shape."""
    own = jax.vmap(lambda code: network.fold(shared, statistics, code).own)(codes)
    return dataclasses.replace(network.fold(shared, statistics, codes[0]), own=own)


def evaluate_tiles(fields: Field, shape, points, gradient: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (and gradients) of K tiles of points, the only way to ask fields in bulk.

    fields: a batch.  shape [K]: the field of each tile.  points [K, 128, 3] → values [K, 128], and gradients
    [K, 128, 3] or None.  The list is shared evenly among all devices, any K runs without a new compilation, and a
    tile's bits depend on nothing but the tile.  Precision is that of `jax.default_matmul_precision`.
    """
    points = require(points, "points", (None, TILE, 3), finite=False)
    shape = require(shape, "shape", (len(points),), np.int32)
    if not fields.batched:
        raise InputError("evaluate_tiles takes a batch of fields; stack single ones with Field.stack")
    devices = parallel.count()
    values = np.empty(points.shape[:2], np.float32)
    gradients = np.empty(points.shape, np.float32) if gradient else None
    pending = []

    def collect():
        (start, stop, each), out = pending.pop(0)
        for result, whole in zip(parallel.host(out), (values, gradients), strict=False):
            whole[start:stop] = result[:, :each].reshape(-1, *whole.shape[1:])[: stop - start]

    for start in range(0, len(points), DISPATCH * devices):
        stop = min(start + DISPATCH * devices, len(points))
        each = -(-(stop - start) // devices)  # tiles a device, the last device may hold fewer
        capacity = bucket(each, LEAST)
        piece = np.zeros((devices, capacity, TILE, 3), np.float32)
        owner = np.zeros((devices, capacity), np.int32)
        for device in range(devices):
            first = min(start + device * each, stop)
            size = min(each, stop - first)
            piece[device, :size] = points[first : first + size]
            owner[device, :size] = shape[first : first + size]
        out = _evaluate[gradient](fields, owner, piece, np.int32(each))
        pending.append(((start, stop, each), out))
        if len(pending) > 1:  # one dispatch runs while the one before is fetched
            collect()
    while pending:
        collect()
    return values, gradients


def bucket(size: int, least: int = 4) -> int:
    """The capacity that a list of `size` items is padded to: `least` times a power of four, so that few programs are
    compiled."""
    capacity = least
    while capacity < size:
        capacity *= 4
    return capacity


def _evaluate_share(gradient: bool):
    def evaluate(fields: Field, shape, points, count):
        """One device's share: shape [1, K], points [1, K, 128, 3], of which the first `count` tiles are evaluated."""
        shape, points = shape[0], points[0]
        group = min(len(points) // 2, _group(fields.shared))  # XLA would run a loop's only group before it is asked

        def tile(owner, tile_points):
            own = jax.tree.map(lambda leaf: leaf[owner], fields.own)
            if not gradient:
                return (fields.architecture(fields.shared, own, tile_points),)
            values, back = jax.vjp(lambda p: fields.architecture(fields.shared, own, p), tile_points)
            return values, *back(jnp.ones_like(values))

        def some(where, size, out):
            owners = jax.lax.dynamic_slice_in_dim(shape, where, size)
            inputs = jax.lax.dynamic_slice_in_dim(points, where, size)
            results = jax.vmap(tile)(owners, inputs) if size > 1 else [r[None] for r in tile(owners[0], inputs[0])]
            return [
                jax.lax.dynamic_update_slice_in_dim(o, r.astype(o.dtype), where, 0)
                for o, r in zip(out, results, strict=True)
            ]

        out = [jnp.zeros(points.shape[:2])] + ([jnp.zeros(points.shape)] if gradient else [])
        alone = jax.default_backend() == "cpu"  # there, what does not fill a group is evaluated tile by tile
        groups = count // group if alone else -(-count // group)
        out = jax.lax.fori_loop(0, groups, lambda step, out: some(step * group, group, out), out)
        if alone and group > 1:
            out = jax.lax.fori_loop(groups * group, count, lambda step, out: some(step, 1, out), out)
        return [o[None] for o in out]

    specs = (parallel.REPLICATED, parallel.SPLIT, parallel.SPLIT, parallel.REPLICATED)
    return parallel.pmap(evaluate, specs, parallel.SPLIT)


def _group(shared) -> int:
    """Tiles at once, a power of two: as many as a CPU's cache holds; many fill an accelerator."""
    if jax.default_backend() != "cpu":
        return 512
    widths = [leaf.shape[-1] for leaf in jax.tree.leaves(shared) if leaf.ndim > 1]
    return 1 << max(1, UNITS // max(widths)).bit_length() - 1 if widths else 1  # shapes may share no matrices


_evaluate = {gradient: _evaluate_share(gradient) for gradient in (False, True)}
