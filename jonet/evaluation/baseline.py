"""What a network must beat: the training shape that lies nearest to an unseen one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree

from jonet.data.store import Store

POINTS = 1000  # surface points of each shape that are compared


def nearest(store: Store, shapes, training, count: int = 1) -> dict[int, list[int]]:
    """For each of `shapes` the `count` nearest of `training` (numbers in the store), nearest first.

    Near is by Chamfer-L1 of surface points in the normalised frame: the mean of the mean distances both ways.
    """
    return nearest_to({int(i): store.surface(int(i))[0] for i in shapes}, store, training, count)


def nearest_to(clouds: Mapping, store: Store, training, count: int = 1) -> dict:
    """The same for clouds [N, 3] of the normalised frame by any names; a number of the store is never its own."""
    clouds = {name: cloud[:POINTS] for name, cloud in clouds.items()}
    known = {int(j): store.surface(int(j))[0][:POINTS] for j in training}
    trees = {j: cKDTree(cloud) for j, cloud in known.items()}
    found = {}
    for name, cloud in clouds.items():
        tree, others = cKDTree(cloud), [j for j in known if j != name]
        ways = [trees[j].query(cloud)[0].mean() + tree.query(known[j])[0].mean() for j in others]
        found[name] = [others[k] for k in np.argsort(ways, kind="stable")[:count]]
    return found
