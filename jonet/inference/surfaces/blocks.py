"""The blocks of 4³ cells that surfaces cross, found coarse to fine by a program of the device.

As in `cells`, values are signed (positive inside) and a bound L of the slope proves that large cells are free of
surface.  What differs is that a block is evaluated whole: its 5³ = 125 samples are one tile of 128 points.  So no sign
of a sample comes from a proof, and the device has few lists to keep:

    samples of the coarsest grid → L, cells that may hold surface → centers of their halves, …, down to blocks
    → the samples of blocks; blocks beside a face of mixed signs, until none is new

The last step repairs wrong proofs, as `cells.flood_fill` does.  Blocks also cover the layer outside of the box, where
values are -inf, if the inside touches the box's border there.

All shapes of a device share lists of fixed size (`lists`).
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
from jonet.inference.surfaces import cells
from jonet.inference.surfaces.lists import Bits, look_up, pack, take, word
from jonet.inference.surfaces.marching_cubes import CORNERS, table
from jonet.networks.field import TILE, Field, evaluate_lists

SIDE = 4  # cells a side of a block
POINTS = SIDE + 1  # samples a side
ROW = TILE // 8  # cells whose halves' centers are a tile
NONE = np.iinfo(np.int32).max  # in place of the number of a block
OFFSETS = np.resize(np.indices((POINTS,) * 3).reshape(3, -1).T, (TILE, 3)).astype(np.int32)  # of a block's samples
NEIGHBORS = CORNERS.astype(np.int32)  # of the blocks that hold what a block shares with those above it; itself first


class Layout(NamedTuple):
    """What is fixed of a program.

    resolution: cells a side of the grid.  step: size of the coarsest cells.  shapes: of one device, at most.
    large, blocks: places in the lists of cells that are larger than blocks (a multiple of 16), and of blocks.
    """

    resolution: int
    step: int
    shapes: int
    large: int
    blocks: int

    @property
    def coarse(self) -> int:
        """Coarsest cells a side; the last ones may end beyond the box."""
        return -(-self.resolution // self.step)

    @property
    def side(self) -> int:
        """Blocks a side, with the layers outside of the box."""
        return -(-self.resolution // SIDE) + 2

    def place(self, blocks) -> tuple[jax.Array, list[jax.Array]]:
        """Shape and lowest samples [x, y, z] of blocks by their numbers [...]; `shapes` for NONE."""
        side = self.side
        shape = jnp.minimum(blocks // side**3, self.shapes)
        return shape, [SIDE * (blocks // side ** (2 - axis) % side - 1) for axis in range(3)]

    def number(self, shape, place) -> jax.Array:
        """Numbers of blocks; place: their x, y, z, in blocks, from -1 on.  They sort by shape, x, y and z."""
        for along in place:
            shape = shape * self.side + along + 1
        return shape


class Grids(NamedTuple):
    """The grids of a device's shapes: coordinates of samples, and what makes values signed.

    axes [S, 3, P] float32: of the samples 0, 1, …, along each axis; rest: what float32 leaves out of them.
    level [S]: the value on the surface.  cell [S]: the length of the longest edge of a cell.  lipschitz [S]: the bound
    L in values per unit of length, NaN to estimate it.  Of jax, or of numpy as arguments.
    """

    axes: Any
    rest: Any
    level: Any
    cell: Any
    lipschitz: Any

    def points(self, shape, index) -> jax.Array:
        """Coordinates [..., 3] of samples, index: x, y, z [...] of shapes [...]."""
        return jnp.stack([take(self.axes, shape, axis, index[axis]) for axis in range(3)], -1)


class Blocks(NamedTuple):
    """The blocks of a device's shapes, ascending by number, NONE after the last.

    numbers [K].  values [K, 128]: signed samples.  beside [8, K]: the places of the blocks that are 0 or 1 further
    along x, y, z (in the order of CORNERS), any for those that are not listed.  edges: the crossed edges whose lower
    end is in the block, the bits (axis, x, y, z).  cases [64, K] uint8: the signs at the corners of its cells.
    """

    numbers: jax.Array
    values: jax.Array
    beside: jax.Array
    edges: Bits
    cases: jax.Array


class Counts(NamedTuple):
    """What the host must know of a device's blocks, int32 [] each (there [D], of numpy).

    large, blocks: the lengths of lists, larger than the lists themselves if they were cut.  edges, cells, faces: of the
    surfaces.  irregular: values that are not finite.  disagreeing: samples whose sign differs between the blocks that
    share them.
    """

    large: Any
    blocks: Any
    edges: Any
    cells: Any
    faces: Any
    irregular: Any
    disagreeing: Any


@functools.cache
def program(platform: parallel.Platform, layout: Layout) -> Callable:
    """(fields, rows, grids, count) → (blocks, counts, ranges): `search` on every device.

    fields: a batch with its padding.  rows [D, S] int32: the fields of each device's shapes.  grids: leaves [D, S, …].
    count [D]: how many of them there are.  ranges [D, S, 2]: see `search`.
    """

    def find(fields: Field, rows, grids: Grids, count):
        fields = dataclasses.replace(fields, per_shape=jax.tree.map(lambda leaf: leaf[rows[0]], fields.per_shape))
        one = search(platform, layout, fields, jax.tree.map(lambda leaf: leaf[0], grids), count[0])
        return jax.tree.map(lambda leaf: leaf[None], one)

    return parallel.pmap(find, (parallel.REPLICATED, *[parallel.SPLIT] * 3), parallel.SPLIT)


def search(platform, layout: Layout, fields: Field, grids: Grids, count) -> tuple[Blocks, Counts, jax.Array]:
    """The blocks of the first `count` of a device's shapes → blocks, counts, ranges.

    ranges [S, 2]: the least and greatest signed value of each shape's coarsest samples.
    """
    evaluate = functools.partial(evaluate_lists, platform, fields)

    def signed(values, shape):
        return fields.inside * (values - grids.level[shape])

    values = _coarsest(layout, grids, evaluate, count)
    coarse = signed(values, jnp.arange(layout.shapes)[:, None])
    unknown = jnp.isnan(grids.lipschitz)
    slopes = jax.lax.cond(
        unknown.any(), lambda: _bounds(layout, fields, grids, evaluate, coarse, count), lambda: grids.lipschitz
    )
    reach = jnp.where(unknown, slopes, grids.lipschitz) * grids.cell
    irregular = ~jnp.isfinite(values) & (jnp.arange(layout.shapes) < count)[:, None]
    irregular = irregular.sum(dtype=jnp.int32)

    seeds, large, seeded, odd = _seeds(layout, grids, evaluate, signed, coarse, reach, count)
    numbers, values, total = _flood(layout, grids, evaluate, signed, seeds)
    order = jnp.argsort(numbers)
    numbers, values = numbers[order], values[order]
    shape, low = layout.place(numbers)
    within = _within(layout, low) & (numbers < NONE)[:, None]
    irregular += odd + (~jnp.isfinite(values) & within).sum(dtype=jnp.int32)
    values = jnp.where(within, signed(values, jnp.minimum(shape, layout.shapes - 1)[:, None]), -jnp.inf)
    inside = _inside(values)
    beside, here = _beside(layout, numbers)
    disagreeing = _disagreeing(inside, beside, here)

    part = slice(0, SIDE)
    low = inside[part, part, part]
    crossed = [inside[1:, part, part] != low, inside[part, 1:, part] != low, inside[part, part, 1:] != low]
    edges = Bits.of(jnp.stack(crossed).reshape(-1, layout.blocks))
    cases = jnp.zeros(low.shape, jnp.uint8)
    for corner, (x, y, z) in enumerate(CORNERS.tolist()):
        at = inside[x : x + SIDE, y : y + SIDE, z : z + SIDE]
        cases |= at.astype(jnp.uint8) << jnp.uint8(corner)
    cases = cases.reshape(-1, layout.blocks)
    faces = look_up(np.diff(table()[1]), 4, cases).sum(dtype=jnp.int32)
    mixed = ((cases > 0) & (cases < 255)).sum(dtype=jnp.int32)
    ranges = jnp.stack([coarse.min(1), coarse.max(1)], -1)
    return (
        Blocks(numbers, values, beside, edges, cases),
        Counts(large, jnp.maximum(seeded, total), edges.total, mixed, faces, irregular, disagreeing),
        ranges,
    )


@jax.named_scope("coarsest")
def _coarsest(layout: Layout, grids: Grids, evaluate, count) -> jax.Array:
    """Values of the coarsest samples [S, P], by x, y, z."""
    side = layout.coarse + 1
    each = -(-(side**3) // TILE)  # tiles of a shape

    def tiles(start, size):
        tile = start + jnp.arange(size, dtype=jnp.int32)
        point = jnp.minimum(tile[:, None] % each * TILE + jnp.arange(TILE, dtype=jnp.int32), side**3 - 1)
        place = [layout.step * (point // side ** (2 - axis) % side) for axis in range(3)]
        return tile // each, grids.points(tile[:, None] // each, place)

    (values,) = evaluate(tiles, 0, count * each, [jnp.zeros((layout.shapes * each, TILE))])
    return values.reshape(layout.shapes, -1)[:, : side**3]


@jax.named_scope("bounds")
def _bounds(layout: Layout, fields: Field, grids: Grids, evaluate, values, count) -> jax.Array:
    """L of each shape [S], as `cells.bounds`."""
    side = layout.coarse + 1
    _, nearest = jax.lax.top_k(-jnp.abs(values), min(cells.NEAR, values.shape[1]))
    nearest = jnp.sort(nearest, axis=1)[:, ::4]
    number = nearest.shape[1]
    each = -(-number // TILE)
    nearest = jnp.pad(nearest, ((0, 0), (0, each * TILE - number)), mode="edge").reshape(-1, TILE)

    def tiles(start, size):
        shape = (start + jnp.arange(size, dtype=jnp.int32)) // each
        points = jax.lax.dynamic_slice_in_dim(nearest, start, size)
        place = [layout.step * (points // side ** (2 - axis) % side) for axis in range(3)]
        return shape, grids.points(shape[:, None], place)

    _, gradients = evaluate(
        tiles, 0, count * each, [jnp.zeros((layout.shapes * each, TILE)), jnp.zeros((layout.shapes * each, TILE, 3))]
    )
    steepness = jnp.linalg.norm(gradients.reshape(layout.shapes, -1, 3)[:, :number], axis=-1)
    return cells.SAFETY * jnp.nan_to_num(jnp.nanquantile(steepness, cells.QUANTILE[fields.inside], axis=1))


def _seeds(layout: Layout, grids: Grids, evaluate, signed, coarse, reach, count):
    """Numbers [K] of the blocks that may hold surface, the length of the longest list of larger cells, and theirs; and
    how many values at centers of cells are not finite.

    coarse: values of the coarsest samples.  reach [S]: L times the length of a cell.
    """
    shapes, side, step = layout.shapes, layout.coarse, layout.step
    # the coarsest cells, by the values at their corners (`cells.may_hold`)
    grid = coarse.reshape(shapes, side + 1, side + 1, side + 1)
    corners = [grid[:, x : x + side, y : y + side, z : z + side] for x, y, z in CORNERS.tolist()]
    least, greatest = functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners)
    if step == 1:
        keep = (greatest > 0) & (least <= 0)
    else:
        diagonal = (3**0.5 * step * reach)[:, None, None, None]
        nearest, farthest = jnp.maximum(least, -greatest), jnp.maximum(greatest, -least)
        keep = ~((nearest > diagonal / 2) | (nearest > 0) & (farthest > diagonal))
    along = np.arange(side)
    ends = (along == 0) | (step * (along + 1) >= layout.resolution)
    keep |= jnp.asarray(ends[:, None, None] | ends[:, None] | ends) & (greatest > 0)
    keep &= (jnp.arange(shapes) < count)[:, None, None, None]
    if step < SIDE:
        some = SIDE // step
        side = -(-side // some)
        keep = jnp.pad(keep, ((0, 0), *[(0, side * some - layout.coarse)] * 3))
        keep = keep.reshape(shapes, side, some, side, some, side, some).any((2, 4, 6))
        step = SIDE
    keep, owner = keep.reshape(shapes, -1), jnp.arange(shapes, dtype=jnp.int32)
    length, irregular = jnp.int32(0), jnp.int32(0)

    def of_index(index):  # x, y, z of items of the present mask
        within = index % side**3
        return [within // side ** (2 - axis) % side for axis in range(3)]

    place = of_index
    while step > SIDE:
        # the cells in rows of 16 of one shape; their 128 halves are a tile of centers
        found = pack(keep, owner, shapes, layout.large, ROW)
        length = jnp.maximum(length, found.length)
        some = [2 * along for along in place(found.items)]
        step //= 2
        here = [(along[:, None] + jnp.asarray(NEIGHBORS[:, axis])).reshape(-1, TILE) for axis, along in enumerate(some)]
        owner = found.owner
        shape = jnp.minimum(owner, shapes - 1)
        center = [jnp.clip(along * step + step // 2, 0, grids.axes.shape[2] - 1) for along in here]
        points = functools.partial(_rows, shape, center, grids)
        used = jnp.minimum(found.length, layout.large) // ROW
        with jax.named_scope("centers"):
            (values,) = evaluate(points, 0, used, [jnp.zeros((len(owner), TILE))])
        values = signed(values, shape[:, None])
        bound = (3**0.5 / 2 * step * reach)[shape][:, None]
        lowest = [along * step for along in here]
        border = functools.reduce(jnp.logical_or, [(a == 0) | (a + step >= layout.resolution) for a in lowest])
        within = functools.reduce(jnp.logical_and, [a < layout.resolution for a in lowest])
        listed = jnp.repeat(found.items >= 0, len(NEIGHBORS)).reshape(-1, TILE) & within & (owner < shapes)[:, None]
        finite = jnp.isfinite(values)  # what is not finite proves nothing
        irregular += (~finite & listed).sum(dtype=jnp.int32)
        keep = listed & ~(finite & ((values < -bound) | (values > bound) & ~border))
        flat = [along.reshape(-1) for along in here]

        def place(index, flat=flat):
            return [along[index] for along in flat]

    found = pack(keep, owner, shapes, layout.blocks)
    numbers = layout.number(found.owner, place(found.items))
    return jnp.where(found.items >= 0, numbers, NONE), length, found.length, irregular


def _rows(shape, place, grids: Grids, start, size):
    """Tiles of a list of rows of samples: shape [N], place: x, y, z [N, 128]."""
    some = [jax.lax.dynamic_slice_in_dim(array, start, size) for array in (shape, *place)]
    return some[0], grids.points(some[0][:, None], some[1:])


@jax.named_scope("flood")
def _flood(layout: Layout, grids: Grids, evaluate, signed, seeds):
    """All blocks, from the numbers of `seeds` [K] on → numbers [K], values [K, 128] (not signed yet), count.

    Blocks are added beside faces of mixed signs, and outside of the box where its border is inside.
    """
    numbers, count = seeds, (seeds < NONE).sum(dtype=jnp.int32)
    side, most = layout.side, layout.blocks

    def tiles(start, size, numbers):
        shape, low = layout.place(jax.lax.dynamic_slice_in_dim(numbers, start, size))
        shape = jnp.minimum(shape, layout.shapes - 1)
        return shape, jnp.stack([_coordinates(layout, grids, shape, axis, along) for axis, along in enumerate(low)], -1)

    def go_on(state):
        numbers, values, first, count = state
        last = jnp.minimum(count, most)
        with jax.named_scope("new_blocks"):
            (values,) = evaluate(functools.partial(tiles, numbers=numbers), first, last, [values])
        shape, low = layout.place(numbers)
        found = jnp.where(
            _within(layout, low), signed(values, jnp.minimum(shape, layout.shapes - 1)[:, None]), -jnp.inf
        )
        inside = _inside(found)
        at = jnp.arange(most)
        fresh = (at >= first) & (at < last)
        wanted = [2 * numbers.astype(jnp.uint32)]
        for axis in range(3):
            for upper in (False, True):
                face = jax.lax.index_in_dim(inside, SIDE if upper else 0, axis, False).reshape(-1, most)
                lid = low[axis] + SIDE == layout.resolution if upper else low[axis] == 0
                open_ = face.any(0) & (~face.all(0) | lid) & fresh
                room = low[axis] < SIDE * (side - 2) if upper else low[axis] >= 0
                beside = numbers + (1 if upper else -1) * side ** (2 - axis)
                wanted.append(2 * jnp.where(open_ & room, beside, NONE).astype(jnp.uint32) + 1)
        # The listed blocks have even numbers here and come before the wanted ones, so that one sort finds the new.
        every = jnp.sort(jnp.concatenate(wanted))
        number = (every // 2).astype(jnp.int32)
        new = (every % 2 == 1) & (number != jnp.roll(number, 1)) & (number < NONE)
        place = jnp.where(new, count - 1 + jnp.cumsum(new, dtype=jnp.int32), most)
        numbers = numbers.at[place].set(number, mode="drop")
        return numbers, values, last, count + new.sum(dtype=jnp.int32)

    state = numbers, jnp.zeros((most, TILE)), jnp.int32(0), count
    numbers, values, _, count = jax.lax.while_loop(lambda s: (s[2] < s[3]) & (s[2] < most), go_on, state)
    return numbers, values, count


def _coordinates(layout: Layout, grids: Grids, shape, axis: int, low) -> jax.Array:
    """Along an axis, of the samples of blocks by their shapes and lowest samples [K] → [K, 128]."""
    found = jnp.float32(0)
    for i in range(POINTS):  # five reads a block, which a TPU does one by one, in place of 128
        here = take(grids.axes, shape, axis, jnp.clip(low + i, 0, layout.resolution))
        found = jnp.where(OFFSETS[:, axis] == i, here[:, None], found)
    return found


def _within(layout: Layout, low) -> jax.Array:
    """Which samples of blocks are in the box: low: x, y, z [K] of their lowest samples → [K, 128]."""
    inside = [
        (along[:, None] + OFFSETS[:, axis] >= 0) & (along[:, None] + OFFSETS[:, axis] <= layout.resolution)
        for axis, along in enumerate(low)
    ]
    return functools.reduce(jnp.logical_and, inside)


def _inside(values) -> jax.Array:
    """Which samples of blocks [K, 128] are inside, [5, 5, 5, K]; the blocks are last, as TPUs need it."""
    return (values.T[: POINTS**3] > 0).reshape(POINTS, POINTS, POINTS, -1)


def _beside(layout: Layout, numbers) -> tuple[jax.Array, jax.Array]:
    """Places of the blocks beside each [8, K], and whether they are listed."""
    here, last = jnp.where(numbers < NONE, numbers, 0), len(numbers) - 1
    steps = jnp.asarray(NEIGHBORS[::2] @ [layout.side**2, layout.side, 1], jnp.int32)
    below = here + steps[:, None]  # in four columns along z, [4, K]
    first = jnp.minimum(jnp.searchsorted(numbers, below.reshape(-1), method="sort").reshape(below.shape), last)
    there = numbers[first] == below
    second = jnp.minimum(first + there, last)  # where the one above is listed, it comes next
    place = jnp.stack([first, second], 1).reshape(8, -1)
    listed = jnp.stack([there, numbers[second] == below + 1], 1).reshape(8, -1)
    return place, listed & (numbers < NONE)


def _disagreeing(inside, beside, here) -> jax.Array:
    """How many samples have another sign in a block above, [].

    A point is evaluated in up to eight blocks, at different places of a tile.  Its value should have the same bits in
    all; a platform that gives it others, and another sign, would leave a hole.
    """
    total = jnp.int32(0)
    for place, listed, offset in zip(beside[1:], here[1:], NEIGHBORS[1:], strict=True):
        mine, theirs = (
            word(inside[tuple(end if up else slice(None) for up in offset)].reshape(-1, inside.shape[-1]))
            for end in (SIDE, 0)
        )
        differing = jax.lax.population_count(mine ^ theirs[place]).astype(jnp.int32)
        total += jnp.where(listed, differing, 0).sum(dtype=jnp.int32)
    return total
