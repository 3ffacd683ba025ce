"""Statistical outlier removal for point clouds."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from jonet.checks import check_array

NEIGHBORS = 2  # as in IF-Defense


def inlier_mask(points, spread: float = 1.1) -> np.ndarray:
    """Which points [N, 3] are inliers, bool [N] (Rusu et al. 2008; 2 and 1.1 as in IF-Defense, Wu et al. 2020).

    A point is an inlier if its mean distance to its two nearest neighbors is at most the mean of these over the cloud
    plus `spread` standard deviations.  Clouds of fewer than four points, and an infinite spread, keep all points.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    if len(points) <= NEIGHBORS + 1 or np.isinf(spread):
        return np.ones(len(points), bool)
    distance = KDTree(points).query(points, NEIGHBORS + 1)[0][:, 1:].mean(1)  # column 0 is the point itself
    return distance <= distance.mean() + spread * distance.std()
