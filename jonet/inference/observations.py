"""What is known of a shape, as intervals: at point x the distance lies between `low` and `high`.

A measured distance is an interval of no width, one beyond the clamp has no far end, a point on the surface is [0, 0],
a point of free space [0, ∞).  An error is how far the network's distance lies outside the interval, so that fitting
knows only this one kind of observation.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree

from jonet.errors import InputError, require
from jonet.networks.layers import BLOCK

REACH = 10  # coordinates beyond which points cannot be in a normalised frame
SCARCE = 1 / 8  # share of a shape's rows below which a group is no longer thinned by chance
LOW, HIGH, WEIGHT, GIVEN, SECOND = range(3, 8)  # columns of a packed row, after x, y, z
COLUMNS = 8


class Rows(NamedTuple):
    """The observations of one shape, in two groups that weigh the same (as DeepSDF's two sides do)."""

    points: np.ndarray  # [n, 3] in the normalised frame
    low: np.ndarray  # [n] the least distance
    high: np.ndarray  # [n] the greatest
    second: np.ndarray  # [n] bool: of the second group
    given: np.ndarray  # [n] bool: measured, so that it counts in residuals; the rest says what else must hold


def clouds(arrays, name: str, width: int, empty: bool = False, dtype=np.float32) -> list[np.ndarray]:
    """Each shape's rows [Nᵢ, width] of an argument [B, N, width] or list, checked; InputError says which is wrong.

    empty: a shape may have no rows, or [].  dtype: float64 for coordinates that are not centred yet.
    """
    nothing = np.zeros((0, width), dtype)
    listed = [
        nothing if empty and np.shape(array) == (0,) else require(array, f"{name}[{i}]", (None, width), dtype)
        for i, array in enumerate(arrays)
    ]
    if not listed:
        raise InputError(f"{name} holds no shape; give one array of rows a shape")
    for i, array in enumerate(listed):
        if not (len(array) or empty):
            raise InputError(f"{name}[{i}] is empty; leave out shapes of which nothing was observed")
    return listed


def observe(samples, points, normals, free, index, *, offset: float, box, seed: int) -> tuple[list[Rows], np.ndarray]:
    """The observations of every shape in the normalised frame, and its index; arguments as of `latents.fit`."""
    if (samples is None) == (points is None):
        raise InputError("give either samples (points with distances) or points (of surfaces)")
    if samples is not None and not (normals is None and free is None):
        raise InputError("normals and free belong to points of surfaces, but samples were given")
    name, arrays, width = ("points", points, 3) if samples is None else ("samples", samples, 4)
    arrays = _framed(clouds(arrays, name, width), name)
    index = require(np.arange(len(arrays)) if index is None else index, "index", (len(arrays),), np.int32)
    if samples is not None:
        return [of_samples(array) for array in arrays], index
    points = arrays
    nothing = [None] * len(points)
    normals = nothing if normals is None else clouds(normals, "normals", 3)
    free = nothing if free is None else _framed(clouds(free, "free", 3, empty=True), "free")
    for name, arrays in (("normals", normals), ("free", free)):
        if len(arrays) != len(points):
            raise InputError(f"{name} are of {len(arrays)} shapes, but points of {len(points)}")
    shapes = []
    for i, (cloud, normal, space) in enumerate(zip(points, normals, free, strict=True)):
        if normal is not None and len(normal) != len(cloud):
            raise InputError(f"normals[{i}] has {len(normal)} rows, but points[{i}] has {len(cloud)}")
        rng = np.random.default_rng([seed, zlib.crc32(b"space"), int(index[i])])
        shapes.append(of_surface(cloud, normal, space, offset, np.asarray(box, np.float32), rng))
    return shapes, index


def _framed(arrays: list[np.ndarray], name: str) -> list[np.ndarray]:
    for i, array in enumerate(arrays):
        if len(array) and (far := np.abs(array[:, :3]).max()) > REACH:
            raise InputError(
                f"{name}[{i}] reaches {far:.4g}, far beyond the normalised frame (about 1); "
                "normalise the points first, or say that they are in their own frame"
            )
    return arrays


def of_samples(samples: np.ndarray) -> Rows:
    """Points with signed distances [n, 4].  Groups: outside and inside."""
    points, distances = samples[:, :3], samples[:, 3]
    return Rows(points, distances, distances, distances <= 0, np.ones(len(points), bool))


def of_surface(
    points: np.ndarray,
    normals: np.ndarray | None,
    free: np.ndarray | None,
    offset: float,
    box: np.ndarray,
    rng: np.random.Generator,
) -> Rows:
    """Points on a surface [n, 3], with outward normals [n, 3] or without.  Groups: the surface, and the space around.

    normals: each point gets two neighbours, `offset` before and behind it along its normal, with distances ±offset
    (DeepSDF, section 5, shape completion): these fix the sign.  free [m, 3]: points known to lie outside (seen
    through); None takes the points for a whole surface, and draws as many points in the box: those beyond the points'
    convex hull are outside, at least as far from the surface as from the hull, and nowhere is the distance, of either
    sign, greater than that to the nearest point.
    """
    parts = [_part(points, 0, 0, given=True)]
    if normals is not None:
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        if not length.all():
            raise InputError(f"normal {int(np.argmin(length))} has no length; leave out points without a normal")
        step = offset * normals / length
        parts += [_part(points + step, offset, offset), _part(points - step, -offset, -offset)]
    if free is None:
        around = rng.uniform(*box, (len(points), 3)).astype(np.float32)
        reach, _ = cKDTree(points).query(around)
        beyond = _beyond_hull(points, around)
        low = np.where(beyond > 0, np.minimum(beyond, reach), -reach)
        parts.append(_part(around, low, reach, second=True))
    elif len(free):
        parts.append(_part(free, 0, np.inf, second=True))
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _part(points, low, high, second=False, given=False) -> Rows:
    each = (np.broadcast_to(np.asarray(value), len(points)) for value in (low, high, second, given))
    return Rows(points, *each)


def _beyond_hull(points, around) -> np.ndarray:
    """A lower bound of the distance from points' convex hull, above 0 outside of it."""
    try:
        planes = ConvexHull(points).equations
    except (QhullError, ValueError) as error:
        raise InputError(f"{len(points)} points in a plane or fewer than four enclose nothing to fit") from error
    return (around @ planes[:, :3].T + planes[:, 3]).max(axis=1)


def pack(rows: Rows, clamp: float, limit: int | None, seed: int, index: int) -> np.ndarray:
    """One shape's rows [n, COLUMNS] float32, shuffled; the order depends on seed and index alone.

    limit: keep at most so many, drawn from all; but of a scarce group all that it has, up to half of them, lest the
    other one drowns it.  Beyond the clamp, where networks are not trained, intervals have no end.  The weights of each
    group add up to half of the rows.
    """
    order = _kept(rows.second, limit, np.random.default_rng([seed, zlib.crc32(b"rows"), index]))
    points, low, high, second, given = (column[order] for column in rows)
    low, high = np.minimum(low, clamp), np.maximum(high, -clamp)
    low, high = np.where(low <= -clamp, -np.inf, low), np.where(high >= clamp, np.inf, high)
    sizes = np.bincount(second, minlength=2)
    weight = len(order) / (2 * sizes[second.astype(int)]) if sizes.all() else np.ones(len(order))
    return np.column_stack([points, low, high, weight, given, second]).astype(np.float32)


def _kept(second: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """The numbers of the rows that `pack` keeps, shuffled."""
    order, sizes = rng.permutation(len(second)), np.bincount(second, minlength=2)
    if limit is None or len(order) <= limit or not 0 < sizes.min() < SCARCE * len(order):
        return order[:limit]
    scarce = second[order] == bool(sizes.argmin())
    few = order[scarce][: limit // 2]
    return rng.permutation(np.concatenate([few, order[~scarce][: limit - len(few)]]))


def whole_blocks(rows: int) -> int:
    """A number of rows, rounded up to whole blocks."""
    return -(-rows // BLOCK) * BLOCK


def grouped(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows, the first group before the second, else in their order; and the sizes of the groups [2]."""
    second = packed[:, SECOND] > 0
    return packed[np.argsort(second, kind="stable")], np.bincount(second, minlength=2).astype(np.int32)


def blocks(packed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows of B shapes as blocks [B, K, 1024, COLUMNS], K a power of two, and the blocks in use [B].

    What fills up the last block repeats the first row, weighs nothing and asks nothing.
    """
    used = np.array([-(-len(rows) // BLOCK) for rows in packed], np.int32)
    capacity = 1 << int(used.max() - 1).bit_length()
    data = np.zeros((len(packed), capacity * BLOCK, COLUMNS), np.float32)
    data[..., LOW], data[..., HIGH] = -np.inf, np.inf
    for whole, rows in zip(data, packed, strict=True):
        whole[:, :3] = rows[0, :3]
        whole[: len(rows)] = rows
    return data.reshape(len(packed), capacity, BLOCK, COLUMNS), used


def outside(values, rows):
    """How far values [n] lie beyond the intervals of packed rows [n, COLUMNS], signed; the error of an observation."""
    return values - values.clip(rows[:, LOW], rows[:, HIGH])
