"""The retrieval baseline: the nearest training shapes to an unseen one, which a network must beat."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from scipy.spatial import KDTree

from jonet.data.store import Store
from jonet.progress import tracked

POINTS = 1000  # surface points per shape for the comparison
COARSE_POINTS = 128  # of them, for the choice of candidates
CANDIDATES = 100  # training shapes that are compared with all points
BLOCK = 64  # training shapes whose few points are compared at once: 4 MB of distances stay in a CPU's cache
TREES = 1024  # training shapes whose trees are kept for the next shapes


def nearest(store: Store, shapes, training, count: int = 1) -> dict[int, list[int]]:
    """For each of `shapes`, the `count` nearest of `training` (indices in the store), nearest first.

    The distance is Chamfer-L1 of surface points in the normalized frame.
    """
    return nearest_to({int(i): store.surface(int(i))[0] for i in shapes}, store, training, count)


def nearest_to(clouds: Mapping, store: Store, training, count: int = 1) -> dict:
    """`nearest` for named clouds [N, 3] in the normalized frame; a name that is an index is not compared with itself.

    Candidates are chosen by a few points of every shape, and then compared by all points.
    """
    clouds = {name: cloud[:POINTS] for name, cloud in clouds.items()}
    train = {int(j): store.surface(int(j))[0][:POINTS] for j in training} if clouds else {}
    if not train or not clouds:
        return {name: [] for name in clouds}
    coarse = np.stack([_coarse(cloud) for cloud in train.values()])
    found = {}
    tree_of = functools.lru_cache(TREES)(lambda j: KDTree(train[j]))
    for name, cloud in tracked(clouds.items(), "nearest training shapes", "shape", len(clouds)):
        distances = dict(zip(train, _coarse_chamfer(_coarse(cloud), coarse), strict=True))
        distances.pop(name, None)
        near = sorted(distances, key=distances.__getitem__)[: max(CANDIDATES, count)]
        tree = KDTree(cloud)
        exact = {j: tree_of(j).query(cloud)[0].mean() + tree.query(train[j])[0].mean() for j in near}
        found[name] = sorted(exact, key=exact.__getitem__)[:count]
    return found


def _coarse(cloud: np.ndarray) -> np.ndarray:
    """COARSE_POINTS points of a cloud, some of them repeated if it has fewer."""
    return cloud[np.arange(COARSE_POINTS) % len(cloud)].astype(np.float32)


def _coarse_chamfer(cloud: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Twice the Chamfer-L1 of a cloud [G, 3] and others [M, G, 3] → [M]."""
    found = np.empty(len(others), np.float32)
    for start in range(0, len(others), BLOCK):
        some = others[start : start + BLOCK]
        # |a - b|² = |a|² + |b|² - 2 a·b, as one product for all pairs
        squares = (cloud**2).sum(1)[:, None, None] + (some**2).sum(2) - 2 * np.einsum("gc,mhc->gmh", cloud, some)
        apart = np.sqrt(squares.clip(0))
        found[start : start + BLOCK] = apart.min(0).mean(1) + apart.min(2).mean(0)
    return found
