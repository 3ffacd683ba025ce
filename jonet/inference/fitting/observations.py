"""Observations of a shape as intervals: at a point x the signed distance is between `low` and `high`.

A measured distance is an interval of width 0, or unbounded on one side if it is beyond the clamp; a point on the
surface is [0, 0], a point of free space [0, ∞).  The error of an observation is the distance of the network's value
from the interval.  So all methods handle this one kind of observation only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, KDTree, QhullError

from jonet import resources
from jonet.checks import check_array, listed
from jonet.errors import InputError
from jonet.geometry.mesh import Similarity
from jonet.networks.layers import BLOCK
from jonet.settings.fitting import FitConfig
from jonet.wording import counted

BOX = ((-1, -1, -1), (1, 1, 1))  # contains every normalized shape
REACH = 10  # coordinates beyond which points cannot be in the normalized frame
SCARCE = 1 / 8  # fraction of a shape's rows below which a group is kept in preference to the other one
PLANES = 2000  # of a hull, below which its products with all points take less time than a tree
PRODUCTS = 1 << 18  # of planes and points at a time
CELLS = 256  # a side of the unit: to whole ones values are rounded before a shuffle
LOW, HIGH, WEIGHT, MEASURED, GROUP = range(3, 8)  # columns of an observation, after x, y, z
COLUMNS = 8


class Observations(NamedTuple):
    """The observations of one shape, in two groups of equal total weight (as outside and inside in DeepSDF)."""

    points: np.ndarray  # [n, 3] in the normalized frame
    low: np.ndarray  # [n] least distance
    high: np.ndarray  # [n] greatest distance
    group: np.ndarray  # [n] bool: in the second group
    measured: np.ndarray  # [n] bool: measured, so that it counts in residuals; the others are derived constraints


class ObservedArrays(NamedTuple):
    """What was observed of B shapes, one array per shape: samples, or points with or without normals and free space.

    samples: [Nᵢ, 4] points with signed distances, or with occupancies.  points, normals: [Nᵢ, 3] on surfaces, normals
    outwards.  free_space: [Mᵢ, 3] points known to be outside, may be empty; None if the points cover whole surfaces, so
    that space beyond their convex hull is outside.
    """

    samples: list[np.ndarray] | None = None
    points: list[np.ndarray] | None = None
    normals: list[np.ndarray] | None = None
    free_space: list[np.ndarray] | None = None

    @classmethod
    def checked(cls, samples=None, points=None, normals=None, free_space=None) -> ObservedArrays:
        """From the arguments of a public call: [B, N, …] or lists, dtypes are kept.

        Raises InputError if neither or both of samples and points are given, for counts that do not match, and for
        arrays of a wrong shape, without rows or with NaN.
        """
        if (samples is None) == (points is None):
            raise InputError("give either samples (points with distances) or points (of surfaces)")
        if samples is not None:
            if not (normals is None and free_space is None):
                raise InputError("normals and free_space belong to points of surfaces, but samples were given")
            return cls(samples=listed(samples, "samples", (None, 4)))
        clouds = listed(points, "points", (None, 3))
        others = {"normals": normals, "free_space": free_space}
        for name, arrays in others.items():
            if arrays is None:
                continue
            others[name] = arrays = listed(arrays, name, (None, 3), empty=name == "free_space")
            if len(arrays) != len(clouds):
                raise InputError(f"{name} are of {counted(len(arrays), 'shape')}, but points of {len(clouds)}")
        for i, (rows, cloud) in enumerate(zip(others["normals"] or (), clouds, strict=False)):
            if len(rows) != len(cloud):
                raise InputError(f"normals[{i}] has {counted(len(rows), 'row')}, but points[{i}] has {len(cloud)}")
        return cls(points=clouds, **others)

    @property
    def kind(self) -> str:
        """ "samples" or "points"."""
        return "points" if self.samples is None else "samples"

    @property
    def rows(self) -> list[np.ndarray]:
        """The samples [Nᵢ, 4] of each shape, or the points [Nᵢ, 3]."""
        return self.samples or self.points or []

    def transformed(self, transforms: Sequence[Similarity], distances: bool = True) -> ObservedArrays:
        """The same observations in another frame.  transforms: one per shape.

        distances: whether the fourth column of samples is a distance, which scales with the shape, or an occupancy.
        """

        def moved(arrays):
            if arrays is None:
                return None
            return [transform(rows.astype(np.float64)) for transform, rows in zip(transforms, arrays, strict=True)]

        samples, normals = self.samples, self.normals
        if samples is not None:
            scales = [transform.scale if distances else 1.0 for transform in transforms]
            samples = [rows.astype(np.float64) for rows in samples]
            each = zip(transforms, samples, scales, strict=True)
            samples = [
                np.column_stack([transform(rows[:, :3]), rows[:, 3:] * scale]) for transform, rows, scale in each
            ]
        if normals is not None:
            normals = [rows @ transform.rotation.T for transform, rows in zip(transforms, normals, strict=True)]
        return ObservedArrays(samples, moved(self.points), normals, moved(self.free_space))


def observe(given: ObservedArrays, config: FitConfig = FitConfig(), index=None, box=BOX) -> list[Observations]:
    """The observations of every shape, from arrays in the normalized frame.

    index [B]: seeds each shape's random draws (its number in a longer list); 0, 1, … if None.  box [2, 3]: where free
    space is drawn if the points cover whole surfaces.  Raises InputError for coordinates far beyond the frame.
    """
    rows = _float32(given.rows, given.kind)
    if given.samples is not None:
        return [of_samples(array) for array in rows]
    nothing = [None] * len(rows)
    normals = nothing if given.normals is None else [array.astype(np.float32) for array in given.normals]
    free_space = nothing if given.free_space is None else _float32(given.free_space, "free_space")
    index = numbers(index, len(rows))

    def one(cloud, normal, space, number) -> Observations:
        rng = np.random.default_rng([config.seed, zlib.crc32(b"space"), number])
        return of_surface(cloud, normal, space, config.offset, np.asarray(box, np.float32), rng)

    return resources.in_threads(one, rows, normals, free_space, index.tolist())


def numbers(index, count: int) -> np.ndarray:
    """The seeds of `count` shapes [count] int32: `index`, or 0, 1, … if it is None."""
    return check_array(np.arange(count) if index is None else index, "index", (count,), np.int32)


def _float32(arrays: list[np.ndarray], name: str) -> list[np.ndarray]:
    for i, array in enumerate(arrays):
        if len(array) and (far := np.abs(array[:, :3]).max()) > REACH:
            raise InputError(
                f"{name}[{i}] reaches {far:.4g}, far beyond the normalized frame (about 1); "
                "normalize them first, or give input units and frame='input' (of samples: a list of similarities)"
            )
    return [array.astype(np.float32, copy=False) for array in arrays]


def of_samples(samples: np.ndarray) -> Observations:
    """Points with signed distances [n, 4].  Groups: outside and inside."""
    points, distances = samples[:, :3], samples[:, 3]
    return Observations(points, distances, distances, distances <= 0, np.ones(len(points), bool))


def of_surface(
    points: np.ndarray,
    normals: np.ndarray | None,
    free_space: np.ndarray | None,
    offset: float,
    box: np.ndarray,
    rng: np.random.Generator,
) -> Observations:
    """Points on a surface [n, 3], with outward normals [n, 3] or None.  Groups: the surface, and the space around it.

    normals: each point gets two neighbors, `offset` in front of and behind it along its normal, with distances ±offset
    (DeepSDF, section 5, shape completion); these determine the sign.
    free_space [m, 3]: points known to be outside (on lines of sight).  If None, the points are taken for a whole
    surface, and as many points are drawn in the box: those beyond the convex hull of the surface points are outside,
    at least as far from the surface as from the hull; and no distance, of either sign, exceeds that to the nearest
    surface point.
    """
    parts = [_part(points, 0, 0, measured=True)]
    if normals is not None:
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        if not length.all():
            raise InputError(f"normal {int(np.argmin(length))} has no length; leave out points without a normal")
        step = offset * normals / length
        parts += [_part(points + step, offset, offset), _part(points - step, -offset, -offset)]
    if free_space is None:
        around = rng.uniform(box[0], box[1], (len(points), 3)).astype(np.float32)
        # most of the space is far from the surface, where such a tree needs two thirds of the time of others
        reach, _ = KDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False).query(around)
        beyond = _beyond_hull(points, around)
        low = np.where(beyond > 0, np.minimum(beyond, reach), -reach)
        parts.append(_part(around, low, reach, group=True))
    elif len(free_space):
        parts.append(_part(free_space, 0, np.inf, group=True))
    return Observations(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _part(points, low, high, group=False, measured=False) -> Observations:
    each = (np.broadcast_to(np.asarray(value), len(points)) for value in (low, high, group, measured))
    return Observations(points, *each)


def _beyond_hull(points, around) -> np.ndarray:
    """A lower bound of the distance from the convex hull of points, positive outside of it."""
    try:
        planes = ConvexHull(points).equations
    except (QhullError, ValueError) as error:
        raise InputError(f"{len(points)} points in a plane or fewer than four enclose nothing to fit") from error
    # No plane is farther away than the hull.  The plane (n, d) farthest from x has the largest product with (x, 1).
    asked = np.column_stack([around, np.ones(len(around))])
    if len(planes) < PLANES:
        pieces = np.array_split(asked, -(-len(asked) * len(planes) // PRODUCTS))
        return np.concatenate([(piece @ planes.T).max(1) for piece in pieces])
    # It is also the nearest one, if a fifth coordinate makes all planes equally long; so a tree finds it.
    longest = np.sqrt((planes[:, 3] ** 2).max() - planes[:, 3] ** 2)
    tree = KDTree(np.column_stack([planes, longest]))
    farthest = planes[tree.query(np.column_stack([asked, np.zeros(len(asked))]))[1]]
    return np.einsum("nc,nc->n", asked, farthest)


def nearest_to_surface(rows: Observations, count: int) -> np.ndarray:
    """The `count` measured points of a shape with the least distance to its surface, [count, 3], or all if there are
    fewer; of equal distances a random choice, which depends on the points' values and not on their order."""
    rows = Observations(*(column[rows.measured] for column in rows))
    order = _shuffled(_columns(rows), np.random.default_rng(zlib.crc32(b"cloud")))
    return rows.points[order[np.argsort(np.abs(rows.low[order]), kind="stable")[:count]]]


def pack(rows: Observations, clamp: float, limit: int | None, seed: int, index: int) -> np.ndarray:
    """One shape's observations as rows [n, COLUMNS] float32, shuffled.

    Their order depends on seed, index and the observations' values, not on the order in which these are given.
    limit: largest number of rows, sampled from all.  A scarce group is kept as far as possible, up to half of the
    limit, so that it keeps enough rows.  The weights of each group sum to half of the rows.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"rows"), index])
    columns = _columns(rows)
    order = _kept(rows.group, limit, _shuffled(columns, rng), rng)
    # Networks are trained on clamped distances.  An interval end beyond the clamp says only that the value is beyond:
    # the end moves to the clamp, and the opposite one to infinity.
    for end, values, sign in ((LOW, rows.low, 1), (HIGH, rows.high, -1)):
        (np.minimum if sign > 0 else np.maximum)(columns[end], np.float32(sign * clamp), out=columns[end])
        np.putmask(columns[end], sign * values <= -clamp, -sign * np.inf)
    packed = columns.T.take(order, 0)
    second = packed[:, GROUP] > 0
    size = np.count_nonzero(second)
    sizes = len(order) - size, size
    if all(sizes):
        packed[:, WEIGHT] = np.where(second, *(len(order) / (2 * n) for n in reversed(sizes)))
    return packed


def pack_all(shapes: Sequence[Observations], config: FitConfig, limit: int | None, index) -> list[np.ndarray]:
    """`pack` of every shape.  index [B]: of `numbers`."""
    return resources.in_threads(
        lambda shape, number: pack(shape, config.clamp, limit, config.seed, number), shapes, index.tolist()
    )


def _columns(rows: Observations) -> np.ndarray:
    """Observations as columns [COLUMNS, n] float32, with weights of 1."""
    columns = np.empty((COLUMNS, len(rows.points)), np.float32)
    columns[:3], columns[WEIGHT] = rows.points.T, 1
    columns[LOW], columns[HIGH], columns[MEASURED], columns[GROUP] = rows.low, rows.high, rows.measured, rows.group
    return columns


def _shuffled(columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The indices of all rows [n], in the order of random numbers that each row's values give.

    columns: of `_columns`.
    Numbers by position would give another order to the same rows in another order, and so another subset where not all
    are used.  Values are rounded, so that rounding errors (of the same scan elsewhere, say) change the order of few.
    """
    values = columns[[0, 1, 2, LOW, HIGH, GROUP]]
    start = rng.integers(2**64, dtype=np.uint64)
    mixed = _mixed(np.round(values * CELLS), start)
    # The lowest bits give way to the row's number: sorting such keys takes a quarter of the time of `lexsort`.  Of rows
    # that they leave equal, all bits decide, then the exact values.
    low = np.uint64((1 << len(mixed).bit_length()) - 1)
    keys = np.sort(mixed & ~low | np.arange(len(mixed), dtype=np.uint64))
    order = (keys & low).view(np.int64)
    if (equal := (keys[1:] ^ keys[:-1]) <= low).any():
        places = np.flatnonzero(equal)
        places = np.union1d(places, places + 1)
        some = np.sort(order[places])
        order[places] = some[np.lexsort((_mixed(values[:, some], start), mixed[some]))]
    return order


def _mixed(values: np.ndarray, start: np.uint64) -> np.ndarray:
    """A pseudorandom uint64 [n] of each column of values [k, n] float32."""
    mixed, odd = np.full(values.shape[1], start), np.uint64(0xBF58476D1CE4E5B9)
    for bits in (values + np.float32(0)).view(np.uint32):  # with -0 as 0
        mixed ^= bits  # two steps of SplitMix64 (Steele et al. 2014) for each value
        mixed *= odd
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _kept(group: np.ndarray, limit: int | None, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The indices of the rows that `pack` keeps, shuffled.  order [n]: all of them, shuffled."""
    size = np.count_nonzero(group)
    scarce, is_second = min((size, True), (len(group) - size, False))
    if limit is None or len(order) <= limit or not 0 < scarce < SCARCE * len(order):
        return order[:limit]
    is_scarce = group[order] == is_second
    kept = order[is_scarce][: limit // 2]
    return rng.permutation(np.concatenate([kept, order[~is_scarce][: limit - len(kept)]]))


def whole_blocks(rows: int) -> int:
    """A number of rows, rounded up to whole blocks."""
    return -(-rows // BLOCK) * BLOCK


def grouped(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed observations [N, COLUMNS], sorted stably by group, and the sizes of the two groups [2]."""
    group = packed[:, GROUP] > 0
    halves = np.flatnonzero(~group), np.flatnonzero(group)
    return packed.take(np.concatenate(halves), 0), np.array([len(half) for half in halves], np.int32)


def blocks(packed: Sequence[np.ndarray], places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed observations of B shapes as blocks [size, K, 1024, COLUMNS], K a power of two; used blocks of each [size].

    places [B]: where each shape is; the rest is zeros.  Padding repeats the shape's first point (so that values stay
    finite), with weight 0 and an unbounded interval.
    """
    used = np.zeros(size, np.int32)
    used[places] = [-(-len(rows) // BLOCK) for rows in packed]
    capacity = 1 << int(used.max() - 1).bit_length()
    data = np.zeros((size, capacity * BLOCK, COLUMNS), np.float32)
    for place, rows in zip(places, packed, strict=True):
        whole = data[place]
        whole[: len(rows)] = rows
        whole[len(rows) :, :LOW] = rows[0, :LOW]
        whole[len(rows) :, LOW : HIGH + 1] = -np.inf, np.inf
    return data.reshape(size, capacity, BLOCK, COLUMNS), used


def outside(values, rows):
    """The signed error of values [n]: their offset from the intervals of observations [n, COLUMNS], 0 inside."""
    return values - values.clip(rows[:, LOW], rows[:, HIGH])
