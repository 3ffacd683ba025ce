"""Points of a cloud that stand alone: statistical outlier removal."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from jonet.errors import require

NEIGHBOURS = 2  # as IF-Defense has it


def kept(points, spread: float = 1.1) -> np.ndarray:
    """Which points [N, 3] have company, bool [N]: their mean distance to the two nearest others is at most the cloud's
    mean of that, and `spread` standard deviations more (Rusu et al. 2008; 2 and 1.1 as in IF-Defense, Wu et al. 2020).

    Of clouds of fewer than four points, and with an infinite spread, all are kept.
    """
    points = require(points, "points", (None, 3), np.float64)
    if len(points) <= NEIGHBOURS + 1 or np.isinf(spread):
        return np.ones(len(points), bool)
    alone = cKDTree(points).query(points, NEIGHBOURS + 1)[0][:, 1:].mean(1)
    return alone <= alone.mean() + spread * alone.std()
