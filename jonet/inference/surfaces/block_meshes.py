"""Meshes from blocks of samples, by a program of the device: what `marching_cubes` and `refinement.project` compute.

    crossed edges → vertices, one each, in the order of the grid → secants of those that are not on the level yet
    cells with both signs, in the order of the grid → triangles, by the table → normals

The meshes are those of the host, vertex by vertex and face by face, wherever both have found the same cells.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.inference.surfaces.blocks import POINTS, SIDE, Blocks, Grids, Layout
from jonet.inference.surfaces.lists import WORD, Bits, firsts, look_up, pack, spread, take
from jonet.inference.surfaces.marching_cubes import CORNERS, EDGE_AXIS, EDGE_CORNER, NEAREST, table
from jonet.inference.surfaces.refinement import CLOSE
from jonet.networks.field import TILE, Field, evaluate_lists

CELLS = SIDE**3  # of a block


class Meshes(NamedTuple):
    """The meshes of a device's shapes, one after the other (on the host of all devices, [D, …], of numpy).

    low [3, V] int16: x, y, z of the lower sample of each vertex's edge, from -1 on.  axis [V] int8: of the edge.
    along [V]: the place on it, 0 to 1.  normals [3, V], or None.  faces [3, F]: numbers of the vertices of a shape.
    vertex_starts, face_starts [S + 1]: where each shape's begin.  irregular []: how many values were not finite.
    """

    low: Any
    axis: Any
    along: Any
    normals: Any
    faces: Any
    vertex_starts: Any
    face_starts: Any
    irregular: Any


@functools.cache
def program(platform: parallel.Platform, layout: Layout, size: int, normals: bool) -> Callable:
    """(fields, rows, grids, blocks, steps) → meshes: `polygonize` on every device; arguments as of `blocks.program`.

    size: places for vertices and for cells, and half of those for faces.  steps []: largest number of secants.
    """

    def make(fields: Field, rows, grids: Grids, blocks: Blocks, steps):
        fields = dataclasses.replace(fields, per_shape=jax.tree.map(lambda leaf: leaf[rows[0]], fields.per_shape))
        grids, blocks = jax.tree.map(lambda leaf: leaf[0], (grids, blocks))
        one = polygonize(platform, layout, size, normals, fields, grids, blocks, steps)
        return jax.tree.map(lambda leaf: leaf[None], one)

    return parallel.pmap(make, (parallel.REPLICATED, *[parallel.SPLIT] * 3, parallel.REPLICATED), parallel.SPLIT)


def polygonize(platform, layout: Layout, size: int, normals: bool, fields: Field, grids: Grids, blocks: Blocks, steps):
    """The meshes of a device's blocks."""
    evaluate = functools.partial(_evaluate_vertices, platform, layout, fields)
    vertices, numbers = _vertices(layout, grids, blocks, size)
    along, irregular = _project(layout, fields, grids, vertices, evaluate, steps)
    directions = None
    if normals:
        every = vertices.shape < layout.shapes
        with jax.named_scope("normals"):
            _, gradients = evaluate(vertices, vertices.points(along), every, gradient=True)
        gradients = -fields.inside * gradients.T
        # divided by the largest component first: squares of steep logits' gradients may overflow
        gradients = gradients / jnp.maximum(jnp.abs(gradients).max(0), jnp.finfo(jnp.float32).tiny)
        norm = jnp.sqrt(jnp.square(gradients).sum(0))
        below, above = jnp.isneginf(vertices.values)
        outwards = jnp.where(jnp.arange(3)[:, None] == vertices.axis, jnp.where(above, 1.0, -1.0), 0.0)
        directions = jnp.where(below | above, outwards, gradients / jnp.where(norm > 0, norm, 1))
    faces, face_starts = _faces(layout, blocks, numbers, size)
    low, starts = jnp.stack(vertices.low).astype(jnp.int16), firsts(vertices.shape, layout.shapes)
    return Meshes(low, vertices.axis.astype(jnp.int8), along, directions, faces, starts, face_starts, irregular)


class Vertices(NamedTuple):
    """Crossed edges in the order of the grid, by shape, x, y, z and axis.

    shape [V]: `shapes` after the last.  low: x, y, z [V] of the lower ends.  axis [V].  values [2, V]: signed, of both
    ends.  fixed [V, 3]: coordinates of the lower ends, of which the one along the axis counts nothing.  start [2, V]:
    that one, and what float32 leaves out of it.  length [V]: of the edge.
    """

    shape: jax.Array
    low: list[jax.Array]
    axis: jax.Array
    values: jax.Array
    fixed: jax.Array
    start: jax.Array
    length: jax.Array

    def points(self, along) -> jax.Array:
        """Coordinates [V, 3] at places on the edges [V], rounded once."""
        moved = self.start[0] + (self.start[1] + along * self.length)
        return jnp.where(jnp.arange(3) == self.axis[:, None], moved[:, None], self.fixed)


def _vertices(layout: Layout, grids: Grids, blocks: Blocks, size: int) -> tuple[Vertices, jax.Array]:
    """The vertices, and the number of each edge's vertex within its shape [192 · K], by bit and block."""
    block, bit, shape, place, axis = _in_order(layout, blocks.numbers, blocks.edges, size)
    inner = [bit // SIDE ** (2 - k) % SIDE for k in range(3)]
    sample = (inner[0] * POINTS + inner[1]) * POINTS + inner[2]
    step = _along(axis, [jnp.int32(POINTS**2), jnp.int32(POINTS), jnp.int32(1)])
    values = jnp.stack([take(blocks.values, block, sample), take(blocks.values, block, sample + step)])
    owner = jnp.minimum(shape, layout.shapes - 1)
    index = [jnp.clip(along, 0, layout.resolution) for along in place]
    fixed = [take(grids.axes, owner, k, along) for k, along in enumerate(index)]
    at = _along(axis, index)
    upper = jnp.minimum(at + 1, layout.resolution)
    start = jnp.stack([_along(axis, fixed), take(grids.rest, owner, axis, at)])
    length = (take(grids.axes, owner, axis, upper) - start[0]) + (take(grids.rest, owner, axis, upper) - start[1])
    number = jnp.arange(size, dtype=jnp.int32)
    begins = jax.lax.cummax(jnp.where(shape == jnp.roll(shape, 1), 0, number))
    edges = blocks.edges.words.size * WORD
    edge = jnp.where(shape < layout.shapes, bit * layout.blocks + block, edges)
    numbers = jnp.zeros(edges, jnp.int32).at[edge].set(number - begins, mode="drop")
    return Vertices(shape, place, axis, values, jnp.stack(fixed, -1), start, length), numbers


def _in_order(layout: Layout, numbers, bits: Bits, size: int):
    """The bits of all blocks in the order of the grid, by shape, x, y, z and axis: (axis, x, y, z) in a block each.

    → block, bit, shape, x, y, z and axis, each [size].  Behind the last, the shape is `shapes`.
    """
    block, bit = bits.listed(size)
    shape, low = layout.place(numbers[block])
    shape = jnp.where(jnp.arange(size) < bits.total, shape, layout.shapes)
    x, y, z = (along + bit % CELLS // SIDE ** (2 - k) % SIDE for k, along in enumerate(low))
    side = layout.resolution + 2
    keys = shape * side + x + 1, ((y + 1) * side + z + 1) * 3 + bit // CELLS
    first, second, block = jax.lax.sort((*keys, block), num_keys=2, is_stable=False)
    # of the keys, since a TPU reads lists in another order item by item
    shape, axis, second = first // side, second % 3, second // 3
    place = [first % side - 1, second // side - 1, second % side - 1]
    bit = axis
    for along in place:
        bit = bit * SIDE + along % SIDE
    return block, bit, shape, place, axis


def _along(axis, each) -> jax.Array:
    """What there is for x, y and z [N] where `axis` [N] is 0, 1 and 2."""
    return jnp.where(axis == 0, each[0], jnp.where(axis == 1, each[1], each[2]))


def _evaluate_vertices(platform, layout: Layout, fields: Field, vertices: Vertices, points, wanted, gradient=False):
    """[values [V]], or [values, gradients [V, 3]], at points [V, 3], one a vertex, where `wanted`; others are any."""
    size = len(wanted) + layout.shapes * TILE
    found = pack(wanted[:, None], vertices.shape, layout.shapes, size, TILE)
    tiled = points[jnp.maximum(found.items, 0)].reshape(-1, TILE, 3)
    owner = jnp.minimum(found.owner, layout.shapes - 1)

    def tiles(start, size):
        return [jax.lax.dynamic_slice_in_dim(array, start, size) for array in (owner, tiled)]

    out = [jnp.zeros(tiled.shape[:2])] + ([jnp.zeros(tiled.shape)] if gradient else [])
    place = jnp.minimum(found.place, size - 1)
    arrays = evaluate_lists(platform, fields, tiles, 0, found.length // TILE, out)
    return [array.reshape(-1, *array.shape[2:])[place] for array in arrays]


@jax.named_scope("project")
def _project(layout: Layout, fields: Field, grids: Grids, vertices: Vertices, evaluate, steps):
    """Places of the vertices on their edges [V], by `refinement.project`, and how many values were not finite."""
    low, high = vertices.values
    along = jnp.clip(low / (low - high), NEAREST, 1 - NEAREST)
    along = jnp.where(jnp.isneginf(low), 1.0, jnp.where(jnp.isneginf(high), 0.0, along))
    moving = jnp.isfinite(vertices.values).all(0) & (vertices.shape < layout.shapes)
    level = grids.level[jnp.minimum(vertices.shape, layout.shapes - 1)]

    def go_on(state):
        step, along, values, places, last, moving, irregular = state
        with jax.named_scope("moving"):
            (new,) = evaluate(vertices, vertices.points(along), moving)
        irregular += (~jnp.isfinite(new) & moving).sum(dtype=jnp.int32)
        new = fields.inside * (new - level)
        slope = jnp.abs((values[1] - values[0]) / (places[1] - places[0]))
        moving &= (jnp.abs(new) > CLOSE * slope) & (jnp.abs(places[1] - places[0]) > CLOSE)
        upper = (new > 0) != (values[0] > 0)  # whether it replaces the upper end
        factor = 1 - new / jnp.where(upper, values[1], values[0])
        again = last == jnp.where(upper, 1, 0)
        kept = jnp.where(upper, values[0], values[1]) * jnp.where(again, jnp.where(factor > 0, factor, 0.5), 1.0)
        next_values = jnp.where(upper, jnp.stack([kept, new]), jnp.stack([new, kept]))
        next_places = jnp.where(upper, jnp.stack([places[0], along]), jnp.stack([along, places[1]]))
        values, places = jnp.where(moving, next_values, values), jnp.where(moving, next_places, places)
        last = jnp.where(moving, jnp.where(upper, 1, 0), last)
        root = (places[0] * values[1] - places[1] * values[0]) / (values[1] - values[0])
        along = jnp.where(moving, jnp.clip(root, NEAREST, 1 - NEAREST), along)
        return step + 1, along, values, places, last, moving, irregular

    ends = jnp.stack([jnp.zeros_like(along), jnp.ones_like(along)])
    last = jnp.full(along.shape, -1, jnp.int32)
    state = jnp.int32(0), along, vertices.values, ends, last, moving, jnp.int32(0)
    state = jax.lax.while_loop(lambda s: (s[0] < steps) & s[5].any(), go_on, state)
    return state[1], state[6]


def _faces(layout: Layout, blocks: Blocks, numbers, size: int) -> tuple[jax.Array, jax.Array]:
    """Faces [3, F], by cells in the order of the grid, and where each shape's begin [S + 1].

    numbers: of `_vertices`.  What is read of cases and cells is packed into few words, since a TPU reads one at a time.
    """
    mixed = Bits.of((blocks.cases > 0) & (blocks.cases < 255))
    block, bit, shape, *_ = _in_order(layout, blocks.numbers, mixed, size)
    triangles, begins = table()
    of_case = jnp.asarray(begins[:-1] << 4 | np.diff(begins), jnp.int32)[
        take(blocks.cases, bit, block).astype(jnp.int32)
    ]
    counts = jnp.where(shape < layout.shapes, of_case & 15, 0)
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    cell, start = spread(ends - counts, counts, 2 * size)
    block, packed = block[cell], (of_case >> 4 << 6 | bit)[cell]
    bit, row = packed & 63, (packed >> 6) + jnp.arange(2 * size, dtype=jnp.int32) - start
    edges = jnp.asarray(triangles @ [1, 1 << 4, 1 << 8], jnp.int32)[jnp.minimum(row, len(triangles) - 1)]
    faces = [_vertex(layout, blocks, numbers, bit, block, edges >> 4 * corner & 15) for corner in range(3)]
    return jnp.stack(faces), jnp.append(0, ends)[firsts(shape, layout.shapes)]


def _vertex(layout: Layout, blocks: Blocks, numbers, bit, block, edge) -> jax.Array:
    """The number of the vertex on an edge (0 to 11) of a cell, bit and block, all [F]."""
    axis = look_up(EDGE_AXIS, 2, edge)
    low = CORNERS[EDGE_CORNER]
    place = [bit // SIDE ** (2 - k) % SIDE + look_up(low[:, k], 1, edge) for k in range(3)]
    over = [along == SIDE for along in place]  # the edge belongs to a block above
    block = take(blocks.beside, (over[0] * 2 + over[1]) * 2 + over[2], block)
    bit = axis
    for along in place:
        bit = bit * SIDE + along % SIDE
    return numbers[bit * layout.blocks + block]
