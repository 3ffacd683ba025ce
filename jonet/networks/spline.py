"""One shape as a sum of quadratic B-splines on nested grids: a dense coarse one, and finer nodes near the surface.

A grid of resolution R has cubic cells of side h = 2 / R in [-1, 1]³, and one node at the center of every cell and of
the layer of cells around the cube.  The value of a level is the sum over nodes of a coefficient times the product of
three quadratic B-splines of width 3h.  So a point sees the 27 nodes of its cell and its neighbors, and the sum has a
continuous gradient.  Levels are added; a finer level has nodes only where coarser ones are not exact enough.

For evaluation all levels are refined into blocks of 4³ cells (a B-spline is a sum of B-splines of half its width, by
the weights of Chaikin 1974): a point sees the 27 coefficients of the finest block that it is in, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.field import Field

BEYOND = 0.03  # distances hold so far from a surface that fills the sphere frame; farther they are lower bounds
MOST = 1024  # cells a side of the finest grid
BLOCK = 4  # cells a side of a block, which holds the coefficients of BLOCK + 2 nodes a side
NODES = BLOCK + 2
PIECE = 1 << 24  # nodes that are looked at together
CUBE = ((-1.0,) * 3, (1.0,) * 3)
# from a cell to itself and those around it
OFFSETS = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(27, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """A grid of some of its nodes: those of chosen cells and of their neighbors.

    resolution: R, cells a side; a multiple of 4, and twice that of the level before.  cells [M, 3] int32 from 0 to
    R - 1: the chosen ones, in lexicographic order.  values [N] float32: the coefficients of `nodes`.
    """

    resolution: int
    cells: np.ndarray
    values: np.ndarray

    @functools.cached_property
    def nodes(self) -> np.ndarray:
        """The nodes [N, 3] int32 from -1 to R, in lexicographic order."""
        return around(self.cells, self.resolution)


def around(cells: np.ndarray, resolution: int) -> np.ndarray:
    """The nodes [N, 3] of cells [M, 3] and of their neighbors, both in lexicographic order."""
    if len(cells) == resolution**3:
        return from_keys(np.arange((resolution + 2) ** 3), resolution)
    side, found = resolution + 2, []
    numbers, steps = keys(cells, resolution), keys(OFFSETS, resolution) - keys(np.zeros(3, int), resolution)
    planes = max(1, PIECE // side**2)
    for first in range(0, side, planes):  # by pieces, since all of a fine grid's nodes would take a gigabyte
        start, stop = first * side**2, min(first + planes, side) * side**2
        some = numbers[slice(*np.searchsorted(numbers, [start - 2 * side**2, stop + 2 * side**2]))]
        if not len(some):
            continue
        mask = np.zeros(stop - start, bool)
        for step in steps:
            there = some + (step - start)
            mask[there[(there >= 0) & (there < stop - start)]] = True
        found.append(start + np.flatnonzero(mask))
    return from_keys(np.concatenate([np.zeros(0, int), *found]), resolution)


def every_cell(resolution: int) -> np.ndarray:
    """All cells [R³, 3] of a grid."""
    return np.stack(np.unravel_index(np.arange(resolution**3), (resolution,) * 3), -1).astype(np.int32)


def keys(nodes, resolution: int) -> np.ndarray:
    """Integer nodes or cells [..., 3] from -1 to R as ascending numbers [...]."""
    side = resolution + 2
    i, j, k = np.moveaxis(np.asarray(nodes, np.int64) + 1, -1, 0)
    return (i * side + j) * side + k


def from_keys(numbers, resolution: int) -> np.ndarray:
    """The inverse of `keys`: [N] → [N, 3] int32."""
    return np.stack(np.unravel_index(numbers, (resolution + 2,) * 3), -1).astype(np.int32) - 1


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among the sorted ones; their number, len(sorted_keys), for one that is missing."""
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == wanted, place, len(sorted_keys))


def refined(values: np.ndarray) -> np.ndarray:
    """Coefficients [(R + 2)³] of a dense grid as those of half its cells, [(2R + 2)³]: the same function."""
    half = np.zeros((2 * values.shape[0] - 2, values.shape[0]), np.float32)
    for node in range(-1, len(half) - 1):
        cell, upper = divmod(node, 2)  # the coarse cell that holds this node
        half[node + 1, cell + 1] += 0.75
        half[node + 1, np.clip(cell + (2 if upper else 0), 0, values.shape[0] - 1)] += 0.25
    return np.einsum("ai,bj,ck,ijk->abc", half, half, half, values, optimize=True)


def field(levels: Sequence[Level], box=CUBE) -> Field:
    """The sum of the levels as a field of signed distances; the first is dense.  box [2, 3]: holds the surface."""
    blocks, origins, scales, owner = _blocks(levels)
    arrays: dict[str, np.ndarray] = {"blocks": blocks, "origins": origins, "scales": scales}
    most = 1 << (len(blocks) - 1).bit_length()  # few sizes, so that few programs are compiled
    shared = {
        name: np.pad(array, [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()
    }
    shared["owner"] = owner.reshape(-1)
    per_shape = {"level": np.float32(0), "box": np.asarray(box, np.float32)}
    return Field(shared, per_shape, Architecture(len(owner), parallel.platform().kind == "tpu"), inside=-1)


@dataclasses.dataclass(frozen=True)
class SplineSpecs:
    """What is fixed of the splines of a shape: `side`, blocks a side of the finest grid."""

    side: int = 8

    @property
    def latent_size(self) -> int:
        """Numbers in a code: a spline is one shape, and has none."""
        return 0

    def __post_init__(self):
        if not 1 <= self.side <= MOST // BLOCK:
            raise ConfigError(f"side is {self.side}, but there are 1 to {MOST // BLOCK} blocks a side")


@dataclasses.dataclass(frozen=True)
class SplineNetwork:
    """Splines as the network of a `BoundNetwork`; its `shared` arrays are those of `field`, and `box`."""

    specs: SplineSpecs

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of the shape; code [0]."""
        del batch_stats, code
        arrays = {name: array for name, array in shared.items() if name != "box"}
        per_shape = {"level": jnp.zeros(()), "box": jnp.asarray(shared["box"])}
        whole = parallel.platform().kind == "tpu"
        return Field(arrays, per_shape, Architecture(self.specs.side, whole), inside=-1)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The function of a `Field` of splines.

    side: blocks a side of the finest grid.  whole: whether a point reads its whole block, of which 189 coefficients
    count nothing, in place of the 27 that it sees: a TPU copies rows, and takes a hundred times as long for windows.
    """

    side: int
    whole: bool = False

    def __call__(self, shared, per_shape, points) -> jax.Array:
        """Signed distances [N] at points [N, 3].

        Outside of [-1, 1]³, √(f² + a²) with f the value at the nearest point of the cube and a the distance to it: no
        more than the distance to a surface within the cube.
        """
        within = jnp.clip(points, -1.0, 1.0)
        place = jnp.clip(((within + 1) * (self.side / 2)).astype(jnp.int32), 0, self.side - 1)
        block = shared["owner"][(place[:, 0] * self.side + place[:, 1]) * self.side + place[:, 2]]
        local = (within - shared["origins"][block]) * shared["scales"][block][:, None]  # in cells, 0 to 4
        if self.whole:
            around = shared["blocks"].reshape(-1, NODES**3)[block].reshape(-1, NODES, NODES, NODES)
            along = jnp.abs(local[..., None] - (jnp.arange(NODES) - 0.5))
            # from a node: the middle of the B-spline, and its ends
            shape = jnp.where(along < 0.5, 0.75 - along**2, 0.5 * jnp.maximum(1.5 - along, 0) ** 2)
        else:
            cell = jnp.clip(jax.lax.stop_gradient(local).astype(jnp.int32), 0, BLOCK - 1)
            numbers = jax.lax.GatherDimensionNumbers((1, 2, 3), (0,), (0, 1, 2, 3))
            start = jnp.concatenate([block[:, None], cell], 1)
            around = jax.lax.gather(shared["blocks"], start, numbers, (1, 3, 3, 3), mode="promise_in_bounds")
            shape = weights(local - cell - 0.5)
        x, y, z = jnp.moveaxis(shape, 1, 0)  # [N, 3 or 6] each
        inside = jnp.einsum("nabc,na,nb,nc->n", around, x, y, z)
        beyond = jnp.sum((points - within) ** 2, -1)
        # the root has no gradient at 0, which is where most points are
        apart = jnp.sqrt(jnp.where(beyond > 0, inside**2 + beyond, 1.0))
        return jnp.where(beyond > 0, apart, inside)


def weights(along):
    """Quadratic B-splines of the node before, at and after a cell: places [...] in it, -0.5 to 0.5 → [..., 3]."""
    return jnp.stack([0.5 * (0.5 - along) ** 2, 0.75 - along**2, 0.5 * (0.5 + along) ** 2], -1)


def _halves() -> np.ndarray:
    """[2, 6, 6]: coefficients of the lower and the upper half of a block, in cells of half the side, from its own."""
    matrices = np.zeros((2, NODES, NODES), np.float32)
    for half in range(2):
        for node in range(NODES):
            cell, upper = divmod(node - 1 + half * BLOCK, 2)  # the coarse cell that holds this node
            matrices[half, node, cell + 1] = 0.75
            matrices[half, node, cell + (2 if upper else 0)] = 0.25
    return matrices


HALVES = _halves()


def _blocks(levels: Sequence[Level]):
    """All levels refined: blocks [K, 6, 6, 6], their lowest corners [K, 3], cells per unit of length [K], and the
    finest block at each place of the finest grid of blocks [T, T, T]."""
    touched = [_touched(level) for level in levels]
    for fine in range(len(levels) - 1, 0, -1):  # a block needs the one that it is half of
        parents = np.unique(
            keys(from_keys(touched[fine], levels[fine].resolution // BLOCK) // 2, levels[fine - 1].resolution // BLOCK)
        )
        touched[fine - 1] = np.union1d(touched[fine - 1], parents)
    finest = levels[-1].resolution // BLOCK
    owner, count = np.zeros((finest,) * 3, np.int32), 0
    found, origins, scales = [], [], []
    above = None
    for level, numbers in zip(levels, touched, strict=True):
        side = level.resolution // BLOCK
        places = from_keys(numbers, side)
        if above is None:
            values = np.zeros((len(places), NODES, NODES, NODES), np.float32)
        else:
            parent = find(above[0], keys(places // 2, side // 2))
            upper = places % 2
            values = np.einsum(
                "kai,kbj,kcl,kijl->kabc",
                *(HALVES[upper[:, axis]] for axis in range(3)),
                above[1][parent],
                optimize=True,
            )
        values = values + _own(level, places)
        above = numbers, values
        repeat = finest // side
        if repeat == 1:
            owner[tuple(places.T)] = count + np.arange(len(places))
        else:
            coarse = owner[::repeat, ::repeat, ::repeat].copy()
            coarse[tuple(places.T)] = count + np.arange(len(places))
            owner = coarse.repeat(repeat, 0).repeat(repeat, 1).repeat(repeat, 2)
        found.append(values)
        origins.append(places * np.float32(2 / side) - 1)
        scales.append(np.full(len(places), level.resolution / 2, np.float32))
        count += len(places)
    return np.concatenate(found), np.concatenate(origins).astype(np.float32), np.concatenate(scales), owner


def _touched(level: Level) -> np.ndarray:
    """Keys of the blocks in which the level is not zero: those of a node's cell and its neighbors."""
    side = level.resolution // BLOCK
    low, high = np.maximum(level.nodes - 1, 0) // BLOCK, np.minimum(level.nodes + 1, level.resolution - 1) // BLOCK
    found = [np.zeros(0, np.int64)]
    for corner in np.ndindex(2, 2, 2):
        found.append(np.unique(keys(np.where(corner, high, low), side)))
    return np.unique(np.concatenate(found))


def _own(level: Level, places: np.ndarray) -> np.ndarray:
    """The level's own coefficients in blocks at places [K, 3] → [K, 6, 6, 6]."""
    within = np.stack(np.meshgrid(*[np.arange(-1, BLOCK + 1)] * 3, indexing="ij"), -1)
    values = np.append(level.values, np.float32(0))
    known = keys(level.nodes, level.resolution)
    if len(known) == (level.resolution + 2) ** 3:
        return values[keys(places[:, None, None, None] * BLOCK + within, level.resolution)]
    return values[find(known, keys(places[:, None, None, None] * BLOCK + within, level.resolution))]
