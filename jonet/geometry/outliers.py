"""Outliers of point clouds: points that stand alone, and what of them observations lose: many, or few far away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import KDTree

from jonet.checks import check_array
from jonet.wording import counted

CHOICES = ("warn", "remove", "keep")  # what is done about outliers that enlarge the bounding box
NEIGHBORS = 2  # as in IF-Defense
AROUND = 6  # nearest points, whose distances tell whether a point stands alone
ALONE = (4.0, 2.0)  # if these are so many times as far as those of most points, or of the points around it
CLEARLY = (4.0, 3.5)  # the same of points that no clean cloud has: sampled surfaces reach 3.5 with 100 points
THEN = (4.0, 1.6)  # the same where outliers are known to be: one of a hundred clean points is lost, too
MANY = (0.005, 3)  # more that clearly stand alone than this fraction, and this number, are outliers all over
FLAT = (12, 0.28)  # so many points are a sparse part of the surface if they and those around are as thin as this
TOLERANCE = 0.1  # distance from the box of the inliers, in its longest sides, beyond which outliers count as far
SPACING = 4.0  # the same, times the square root of the number of points: few points are far from each other
FEW = 0.05  # largest fraction of far outliers: more are a sparse part of the shape
SAME = 64  # points of equal x beyond which some are looked for that are equal
ROUNDS = 8  # most repetitions
LONGER = 1.005  # times, from which on a box is said to be longer


def inlier_mask(points, spread: float = 1.1) -> np.ndarray:
    """Which points [N, 3] are inliers, bool [N] (Rusu et al. 2008; 2 and 1.1 as in IF-Defense, Wu et al. 2020).

    A point is an inlier if its mean distance to its two nearest neighbors is at most the mean of these over the cloud
    plus `spread` standard deviations.  Clouds of fewer than four points, and an infinite spread, keep all points.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    if len(points) <= NEIGHBORS + 1 or np.isinf(spread):
        return np.ones(len(points), bool)
    return _inliers(neighbor_distance(points), spread)


def _inliers(distance: np.ndarray, spread: float = 1.1) -> np.ndarray:
    """`inlier_mask` of points of which `neighbor_distance` [N] is known, and more than three."""
    return distance <= distance.mean() + spread * distance.std()


def alone_mask(points) -> np.ndarray:
    """Which points [N, 3] stand alone, by the density among all points and among those around them, bool [N].

    None of them does if they are a surface themselves: a part that was seen with fewer points than others.
    """
    return _of_distinct(points, lambda places: _alone(places, _density(*_around(places))))


def outlier_mask(points) -> np.ndarray:
    """Which points [N, 3] observations lose, bool [N]: none of a clean cloud.

    Where more points stand alone than clean clouds have (`MANY`): these, and those that then do by a narrower rule.
    Else only those that enlarge the bounding box considerably (`far_mask`).
    """
    return _of_distinct(points, _outliers)


def _outliers(points: np.ndarray) -> np.ndarray:
    around = _around(points)
    density = _density(*around)
    found = _alone(points, density)
    clear = np.count_nonzero(found & _above(density, CLEARLY))
    if clear <= max(MANY[0] * len(points), MANY[1]):
        return far_mask(points, around[0][:, :NEIGHBORS].mean(1) if len(points) > AROUND else None)
    left = np.flatnonzero(~found)
    found[left[_above(_density(*_around(points[left])), THEN)]] = True
    left = np.flatnonzero(~found)
    found[left[far_mask(points[left])]] = True
    return found


def _of_distinct(points, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a rule [N] says about points [N, 3]; where many are equal, about each place."""
    points = check_array(points, "points", (None, 3), np.float64)
    equal = _distinct(points)
    return rule(points) if equal is None else rule(equal[0])[equal[1]]


def _around(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distances of each point to those around it, and their numbers [N, AROUND]; inf and N for such as there are
    not."""
    distances, nearest = KDTree(points).query(points, AROUND + 1)
    return distances[:, 1:], np.asarray(nearest)[:, 1:]  # column 0 is the point itself


def _density(distances: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """The mean distance of each point to those around it, over that of most points, and of most of these [2, N]."""
    apart = distances.mean(1)
    if len(apart) <= AROUND or not (usual := np.median(apart)):
        return np.ones((2, len(apart)))
    around = np.maximum(np.median(apart[nearest], axis=1), usual / 2)
    return np.stack([apart / usual, apart / around])


def _above(density: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (density[0] > limits[0]) | (density[1] > limits[1])


def _alone(points: np.ndarray, density: np.ndarray) -> np.ndarray:
    """`alone_mask` of points of known density [2, N]."""
    found = _above(density, ALONE)
    some = points[found]
    if len(some) < FLAT[0]:
        return found
    beside = some[KDTree(some).query(some, AROUND + 1)[1]]
    beside = beside - beside.mean(1, keepdims=True)
    squares = np.linalg.eigvalsh(np.einsum("nki,nkj->nij", beside, beside))
    thin = np.sqrt(np.maximum(squares[:, 0], 0) / np.maximum(squares[:, 2], 1e-30))  # over their length
    return np.zeros(len(points), bool) if np.median(thin) < FLAT[1] else found


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Distinct points, the number of each point's own [N], and their counts, where many are equal; else None.

    A tree cannot divide equal points, and its time is then quadratic.
    """
    column = np.sort(points[:, 0])
    if len(points) <= SAME or (column[SAME:] > column[:-SAME]).all():
        return None
    distinct, same, count = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    return distinct, same.reshape(-1), count


def neighbor_distance(points: np.ndarray) -> np.ndarray:
    """The mean distance [N] of each point to its two nearest neighbors."""
    if (equal := _distinct(points)) is None:
        return KDTree(points).query(points, NEIGHBORS + 1)[0][:, 1:].mean(1)  # column 0 is the point itself
    distinct, same, count = equal  # each is taken once, with its count
    found, near = KDTree(distinct).query(distinct, NEIGHBORS + 1)
    _, first, second = found.T
    nearest = np.minimum(np.asarray(near)[:, 1], len(distinct) - 1)
    one = count[nearest] == 1  # whether there is one point at the nearest place
    mean = np.where(count > 2, 0, np.where(count == 2, first / 2, np.where(one, (first + second) / 2, first)))
    return mean[same]


def far_mask(points, distance=None) -> np.ndarray:
    """Which points [N, 3] are outliers that enlarge the bounding box considerably, bool [N].

    These are few points outside of the box of the inliers (`inlier_mask`), farther from it than `TOLERANCE`.  A cloud
    without such points has none that are True, though some of its points may be outliers.
    distance: `neighbor_distance` [N], where it is known.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    far = np.zeros(len(points), bool)
    for _ in range(ROUNDS):  # one point very far away hides others
        left = points[~far]
        inliers = left[inlier_mask(left) if distance is None or far.any() else _inliers(distance)]
        low, high = inliers.min(0), inliers.max(0)
        margin = max(TOLERANCE, SPACING / np.sqrt(len(left))) * (high - low).max()
        found = ((points < low - margin) | (points > high + margin)).any(1)
        if not margin or not (found & ~far).any():
            break
        far |= found
        if far.sum() > FEW * len(points):
            return np.zeros(len(points), bool)
    return far


def advice(points, outliers) -> str:
    """A sentence about a cloud with outliers (`outlier_mask`): how many, what they do, which option leaves them out."""
    standing, one = _standing(outliers)
    longer = _longer(points, outliers)
    box = (
        f" and {'makes' if one else 'make'} the bounding box, which sets the size of the shape, {longer} times as long"
    )
    return (
        f"{standing}{box if longer else ''}; leave {'it' if one else 'them'} out with outliers='remove' (in the shell "
        f"--outliers=remove), or accept {'it' if one else 'them'} with 'keep'"
    )


def removal(points, outliers) -> str:
    """A sentence about a cloud whose outliers (`outlier_mask`) were left out."""
    standing, one = _standing(outliers)
    longer = _longer(points, outliers)
    box = f", would make the bounding box, which sets the size of the shape, {longer} times as long,"
    left_out = f"{'is' if one else 'are'} left out (outliers='keep' keeps {'it' if one else 'them'})"
    return f"{standing}{box if longer else ''} and {left_out}"


def _standing(outliers) -> tuple[str, bool]:
    """The subject of a sentence about outliers, and whether there is one only."""
    count, of = int(np.count_nonzero(outliers)), f"of {len(outliers):,} points"
    return counted(count, f"{of} stands alone", f"{of} stand alone"), count == 1


def _longer(points, outliers) -> str:
    """How many times as long the box is with the outliers; "" if it is as long without them."""
    sides = [np.ptp(some, axis=0).max() for some in (points, points[~outliers])]
    return f"{sides[0] / sides[1]:.3g}" if sides[0] > LONGER * sides[1] else ""
