"""What a network must beat: the training shape that lies nearest to an unseen one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree

from jonet.data.store import Store

POINTS = 1000  # surface points of each shape that are compared
GLANCE = 128  # of them, those by which candidates are chosen
CANDIDATES = 100


def nearest(store: Store, shapes, training, count: int = 1) -> dict[int, list[int]]:
    """For each of `shapes` the `count` nearest of `training` (numbers in the store), nearest first.

    Near is by Chamfer-L1 of surface points in the normalised frame: the mean of the mean distances both ways.
    """
    return nearest_to({int(i): store.surface(int(i))[0] for i in shapes}, store, training, count)


def nearest_to(clouds: Mapping, store: Store, training, count: int = 1) -> dict:
    """The same for clouds [N, 3] of the normalised frame by any names; a number of the store is never its own.

    A few points of every shape choose the candidates, which are then compared by all.
    """
    clouds = {name: cloud[:POINTS] for name, cloud in clouds.items()}
    known = {int(j): store.surface(int(j))[0][:POINTS] for j in training}
    if not known:
        return {name: [] for name in clouds}
    glances = np.stack([_glance(cloud) for cloud in known.values()])
    trees, found = {}, {}
    for name, cloud in clouds.items():
        ways = dict(zip(known, _roughly(_glance(cloud), glances), strict=True))
        ways.pop(name, None)
        near = sorted(ways, key=ways.get)[: max(CANDIDATES, count)]
        tree = cKDTree(cloud)
        trees |= {j: cKDTree(known[j]) for j in near if j not in trees}
        exact = {j: trees[j].query(cloud)[0].mean() + tree.query(known[j])[0].mean() for j in near}
        found[name] = sorted(exact, key=exact.get)[:count]
    return found


def _glance(cloud: np.ndarray) -> np.ndarray:
    return cloud[np.arange(GLANCE) % len(cloud)].astype(np.float32)


def _roughly(cloud: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Twice the Chamfer-L1 of a cloud [G, 3] and others [M, G, 3] → [M]."""
    squares = (cloud**2).sum(1)[:, None, None] + (others**2).sum(2) - 2 * np.einsum("gc,mhc->gmh", cloud, others)
    apart = np.sqrt(squares.clip(0))
    return apart.min(0).mean(1) + apart.min(2).mean(0)
