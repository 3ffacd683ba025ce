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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import Field
from jonet.networks.spline_levels import BLOCK, MOST, Level, find, from_arrays, from_keys, keys, to_arrays

BEYOND = 0.03  # distances hold so far from a surface that fills the sphere frame; farther they are lower bounds
NODES = BLOCK + 2  # a side of a block
CUBE = ((-1.0,) * 3, (1.0,) * 3)


def field(levels: Sequence[Level], box=CUBE) -> Field:
    """The sum of the levels as a field of signed distances; the first is dense.  box [2, 3]: holds the surface."""
    blocks, origins, scales, owner = _blocks(levels)
    arrays: dict[str, np.ndarray] = {"blocks": blocks, "origins": origins, "scales": scales}
    most = 1 << (len(blocks) - 1).bit_length()  # few sizes, so that few programs are compiled
    shared = {
        name: np.pad(array, [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)) for name, array in arrays.items()
    }
    shared["owner"] = owner.reshape(-1)
    return _field(shared, len(owner), np.float32(0), np.asarray(box, np.float32))


def _field(shared, side: int, level, box) -> Field:
    return Field(shared, {"level": level, "box": box}, Architecture(side, parallel.platform().kind == "tpu"), inside=-1)


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
    """Splines as the network of a `BoundNetwork`; its `shared` arrays are those of `field`, `levels`, and `box`."""

    specs: SplineSpecs

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of the shape; code [0]."""
        del batch_stats, code
        arrays = {name: array for name, array in shared.items() if name not in ("box", "levels")}
        return _field(arrays, self.specs.side, jnp.zeros(()), jnp.asarray(shared["box"]))

    @staticmethod
    def of(levels: Sequence[Level], box=CUBE) -> BoundNetwork:
        """The splines of levels, as `field` takes them."""
        arrays = {**field(levels, box).shared, "levels": to_arrays(levels), "box": np.asarray(box, np.float32)}
        return BoundNetwork(SplineNetwork(SplineSpecs(levels[-1].resolution // BLOCK)), arrays)

    def stored(self, shared) -> dict:
        """What a file keeps: `levels` and `box`, which the rest follows from."""
        return {name: shared[name] for name in ("levels", "box")}

    def restored(self, stored) -> dict:
        """The inverse of `stored`; ValueError for other arrays."""
        levels, box = stored.get("levels"), stored.get("box")
        if not isinstance(levels, dict) or np.shape(box) != (2, 3):
            raise ValueError("levels and a box are expected")
        levels = from_arrays(levels)
        if (finest := levels[-1].resolution) != self.specs.side * BLOCK:
            raise ValueError(f"its finest grid has {finest} cells a side, but side is {self.specs.side}")
        return dict(SplineNetwork.of(levels, box).shared)

    def num_parameters(self, shared) -> int:
        """The count of coefficients of all levels."""
        return sum(len(array) for name, array in shared["levels"].items() if name.startswith("values"))


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
        within = _nearest(points)
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


@jax.custom_jvp
def _nearest(points):
    """The nearest points of the cube; on its faces the gradient is that of the inside, of which `clip` has half."""
    return jnp.clip(points, -1.0, 1.0)


_nearest.defjvps(lambda tangent, within, points: jnp.where(within == points, tangent, 0))


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
