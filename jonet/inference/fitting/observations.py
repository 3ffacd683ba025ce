"""Observations of a shape as intervals: at a point x the signed distance is between `low` and `high`.

A measured distance is an interval of width 0, or unbounded on one side if it is beyond the clamp; a point on the
surface is [0, 0], a point of free space [0, ∞).  The error of an observation is the distance of the network's value
from the interval.  So all methods handle this one kind of observation only.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.networks.layers import BLOCK

REACH = 10  # coordinates beyond which points cannot be in the normalized frame
SCARCE = 1 / 8  # fraction of a shape's rows below which a group is kept in preference to the other one
LOW, HIGH, WEIGHT, MEASURED, GROUP = range(3, 8)  # columns of an observation, after x, y, z
COLUMNS = 8


class Observations(NamedTuple):
    """The observations of one shape, in two groups of equal total weight (as outside and inside in DeepSDF)."""

    points: np.ndarray  # [n, 3] in the normalized frame
    low: np.ndarray  # [n] least distance
    high: np.ndarray  # [n] greatest distance
    group: np.ndarray  # [n] bool: in the second group
    measured: np.ndarray  # [n] bool: measured, so that it counts in residuals; the others are derived constraints


def clouds(arrays, name: str, width: int, empty: bool = False, dtype=np.float32) -> list[np.ndarray]:
    """Checks an argument [B, N, width] or list of [Nᵢ, width] → the rows of each shape; InputError names a wrong one.

    empty: a shape may have no rows, or [].  dtype: float64 for coordinates that are not centered yet.
    """
    nothing = np.zeros((0, width), dtype)
    listed = [
        nothing if empty and np.shape(array) == (0,) else check_array(array, f"{name}[{i}]", (None, width), dtype)
        for i, array in enumerate(arrays)
    ]
    if not listed:
        raise InputError(f"{name} holds no shape; give one array of rows per shape")
    for i, array in enumerate(listed):
        if not (len(array) or empty):
            raise InputError(f"{name}[{i}] is empty; leave out shapes of which nothing was observed")
    return listed


def observe(
    samples, points, normals, free_space, index, *, offset: float, box, seed: int
) -> tuple[list[Observations], np.ndarray]:
    """The observations of every shape in the normalized frame, and its index; arguments as of `latents.fit`."""
    if (samples is None) == (points is None):
        raise InputError("give either samples (points with distances) or points (of surfaces)")
    if samples is not None and not (normals is None and free_space is None):
        raise InputError("normals and free_space belong to points of surfaces, but samples were given")
    name, arrays, width = ("points", points, 3) if samples is None else ("samples", samples, 4)
    arrays = _framed(clouds(arrays, name, width), name)
    index = check_array(np.arange(len(arrays)) if index is None else index, "index", (len(arrays),), np.int32)
    if samples is not None:
        return [of_samples(array) for array in arrays], index
    points = arrays
    nothing = [None] * len(points)
    normals = nothing if normals is None else clouds(normals, "normals", 3)
    free_space = (
        nothing if free_space is None else _framed(clouds(free_space, "free_space", 3, empty=True), "free_space")
    )
    for name, arrays in (("normals", normals), ("free_space", free_space)):
        if len(arrays) != len(points):
            raise InputError(f"{name} are of {len(arrays)} shapes, but points of {len(points)}")
    shapes = []
    for i, (cloud, normal, space) in enumerate(zip(points, normals, free_space, strict=True)):
        if normal is not None and len(normal) != len(cloud):
            raise InputError(f"normals[{i}] has {len(normal)} rows, but points[{i}] has {len(cloud)}")
        rng = np.random.default_rng([seed, zlib.crc32(b"space"), int(index[i])])
        shapes.append(of_surface(cloud, normal, space, offset, np.asarray(box, np.float32), rng))
    return shapes, index


def _framed(arrays: list[np.ndarray], name: str) -> list[np.ndarray]:
    for i, array in enumerate(arrays):
        if len(array) and (far := np.abs(array[:, :3]).max()) > REACH:
            raise InputError(
                f"{name}[{i}] reaches {far:.4g}, far beyond the normalized frame (about 1); "
                "normalize the points first, or give them in their input units (frame='input')"
            )
    return arrays


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
        around = rng.uniform(*box, (len(points), 3)).astype(np.float32)
        reach, _ = cKDTree(points).query(around)
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
    return (around @ planes[:, :3].T + planes[:, 3]).max(axis=1)  # no plane is farther away than the hull


def pack(rows: Observations, clamp: float, limit: int | None, seed: int, index: int) -> np.ndarray:
    """One shape's observations as rows [n, COLUMNS] float32, shuffled; the order depends on seed and index only.

    limit: largest number of rows, sampled from all.  A scarce group is kept as far as possible, up to half of the
    limit, so that it keeps enough rows.  The weights of each group sum to half of the rows.
    """
    order = _kept(rows.group, limit, np.random.default_rng([seed, zlib.crc32(b"rows"), index]))
    points, low, high, group, measured = (column[order] for column in rows)
    # Networks are trained on clamped distances.  An interval end beyond the clamp says only that the value is beyond:
    # the end moves to the clamp, and the opposite one to infinity.
    low, high = np.minimum(low, clamp), np.maximum(high, -clamp)
    low, high = np.where(low <= -clamp, -np.inf, low), np.where(high >= clamp, np.inf, high)
    sizes = np.bincount(group, minlength=2)
    weight = len(order) / (2 * sizes[group.astype(int)]) if sizes.all() else np.ones(len(order))
    return np.column_stack([points, low, high, weight, measured, group]).astype(np.float32)


def _kept(group: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """The indices of the rows that `pack` keeps, shuffled."""
    order, sizes = rng.permutation(len(group)), np.bincount(group, minlength=2)
    if limit is None or len(order) <= limit or not 0 < sizes.min() < SCARCE * len(order):
        return order[:limit]
    is_scarce = group[order] == bool(sizes.argmin())
    scarce = order[is_scarce][: limit // 2]
    return rng.permutation(np.concatenate([scarce, order[~is_scarce][: limit - len(scarce)]]))


def whole_blocks(rows: int) -> int:
    """A number of rows, rounded up to whole blocks."""
    return -(-rows // BLOCK) * BLOCK


def grouped(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed observations [N, COLUMNS], sorted stably by group, and the sizes of the two groups [2]."""
    group = packed[:, GROUP] > 0
    return packed[np.argsort(group, kind="stable")], np.bincount(group, minlength=2).astype(np.int32)


def blocks(packed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Packed observations of B shapes as blocks [B, K, 1024, COLUMNS], K a power of two; number of used blocks [B].

    Padding repeats the first point (so that values stay finite), with weight 0 and an unbounded interval.
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
    """The signed error of values [n]: their offset from the intervals of observations [n, COLUMNS], 0 inside."""
    return values - values.clip(rows[:, LOW], rows[:, HIGH])
