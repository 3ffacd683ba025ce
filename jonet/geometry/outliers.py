"""Outliers of point clouds: points that stand alone, and those among them that enlarge the bounding box."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from jonet.checks import check_array
from jonet.wording import counted

CHOICES = ("warn", "remove", "keep")  # what is done about outliers that enlarge the bounding box
NEIGHBORS = 2  # as in IF-Defense
TOLERANCE = 0.1  # distance from the box of the inliers, in its longest sides, beyond which outliers count as far
SPACING = 4.0  # the same, times the square root of the number of points: few points are far from each other
FEW = 0.05  # largest fraction of far outliers: more are a sparse part of the shape
SAME = 64  # points of equal x beyond which some are looked for that are equal
ROUNDS = 8  # most repetitions


def inlier_mask(points, spread: float = 1.1) -> np.ndarray:
    """Which points [N, 3] are inliers, bool [N] (Rusu et al. 2008; 2 and 1.1 as in IF-Defense, Wu et al. 2020).

    A point is an inlier if its mean distance to its two nearest neighbors is at most the mean of these over the cloud
    plus `spread` standard deviations.  Clouds of fewer than four points, and an infinite spread, keep all points.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    if len(points) <= NEIGHBORS + 1 or np.isinf(spread):
        return np.ones(len(points), bool)
    distance = neighbor_distance(points)
    return distance <= distance.mean() + spread * distance.std()


def neighbor_distance(points: np.ndarray) -> np.ndarray:
    """The mean distance [N] of each point to its two nearest neighbors."""
    column = np.sort(points[:, 0])
    if len(points) <= SAME or (column[SAME:] > column[:-SAME]).all():
        return KDTree(points).query(points, NEIGHBORS + 1)[0][:, 1:].mean(1)  # column 0 is the point itself
    # A tree cannot divide equal points, and its time is then quadratic: each is taken once, with its count.
    distinct, same, count = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    found, near = KDTree(distinct).query(distinct, NEIGHBORS + 1)
    _, first, second = found.T
    nearest = np.minimum(np.asarray(near)[:, 1], len(distinct) - 1)
    one = count[nearest] == 1  # whether there is one point at the nearest place
    mean = np.where(count > 2, 0, np.where(count == 2, first / 2, np.where(one, (first + second) / 2, first)))
    return mean[same.reshape(-1)]


def far_mask(points) -> np.ndarray:
    """Which points [N, 3] are outliers that enlarge the bounding box considerably, bool [N].

    These are few points outside of the box of the inliers (`inlier_mask`), farther from it than `TOLERANCE`.  A cloud
    without such points has none that are True, though some of its points may be outliers.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    far = np.zeros(len(points), bool)
    for _ in range(ROUNDS):  # one point very far away hides others
        left = points[~far]
        inliers = left[inlier_mask(left)]
        low, high = inliers.min(0), inliers.max(0)
        margin = max(TOLERANCE, SPACING / np.sqrt(len(left))) * (high - low).max()
        found = ((points < low - margin) | (points > high + margin)).any(1)
        if not margin or not (found & ~far).any():
            break
        far |= found
        if far.sum() > FEW * len(points):
            return np.zeros(len(points), bool)
    return far


def advice(points, far) -> str:
    """A sentence about a cloud with far outliers (`far_mask`): how many, what they do, which option leaves them out."""
    alone, of = int(np.count_nonzero(far)), f"of {len(far):,} points"
    return (
        f"{counted(alone, f'{of} stands alone and makes', f'{of} stand alone and make')} the bounding "
        f"box, which sets the size of the shape, {_longer(points, far):.3g} times as long; leave them out with "
        "outliers='remove' (in the shell --outliers=remove), or accept the box with 'keep'"
    )


def removal(points, far) -> str:
    """A sentence about a cloud whose far outliers (`far_mask`) were left out."""
    alone, of = int(np.count_nonzero(far)), f"of {len(far):,} points"
    return (
        f"{counted(alone, f'{of} stands alone, would make', f'{of} stand alone, would make')} the bounding box, which "
        f"sets the size of the shape, {_longer(points, far):.3g} times as long, and "
        f"{'is' if alone == 1 else 'are'} left out (outliers='keep' keeps them)"
    )


def _longer(points, far) -> float:
    """How many times as long the box is with the outliers."""
    sides = [np.ptp(some, axis=0).max() for some in (points, points[~far])]
    return sides[0] / sides[1]
