"""What a network must beat: the training shape that lies nearest to an unseen one."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from jonet.data.store import Store

POINTS = 1000  # surface points of each shape that are compared


def nearest(store: Store, shapes, training, count: int = 1) -> dict[int, list[int]]:
    """For each of `shapes` the `count` nearest of `training` (numbers in the store), nearest first.

    Near is by Chamfer-L1 of surface points in the normalised frame: the mean of the mean distances both ways.
    """
    clouds = {int(i): store.surface(int(i))[0][:POINTS] for i in (*shapes, *training)}
    trees = {i: cKDTree(cloud) for i, cloud in clouds.items()}
    found = {}
    for i in map(int, shapes):
        others = [int(j) for j in training if j != i]
        ways = [trees[j].query(clouds[i])[0].mean() + trees[i].query(clouds[j])[0].mean() for j in others]
        found[i] = [others[k] for k in np.argsort(ways, kind="stable")[:count]]
    return found
