"""Planes under scanned shapes: a floor or table that holds many points of a cloud, all others on one side of it."""

from __future__ import annotations

import numpy as np

from jonet.checks import check_array

SHARE = 1 / 3  # of the points: a plane with fewer is not noticed
THICK = 0.01  # distance from the plane up to which points are in it, in the longest side of most points' box
MOST = 0.02  # fraction at each end of an axis that does not count for that box: strays
TRIES, SAMPLE = 300, 3000  # planes through three points, and points that vote for each (Fischler, Bolles 1981)
SIDE = 0.98  # of the other points are on one side


def plane_mask(points, seed: int = 0) -> np.ndarray:
    """Which points [N, 3] are in a plane that holds a third of them or more, with all others on one side, bool [N].

    None of them is if there is no such plane: a cloud of a shape alone may have one, such as the top of a table.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    low, high = np.quantile(points, (MOST, 1 - MOST), axis=0)
    size = (high - low).max()
    none = np.zeros(len(points), bool)
    if len(points) < 4 or not size > 0:
        return none
    rng = np.random.default_rng([seed, len(points)])
    scaled = (points - (low + high) / 2) / size
    sample = scaled[rng.permutation(len(points))[:SAMPLE]]
    a, b, c = sample[rng.integers(len(sample), size=(3, TRIES))]
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.where(length > 0, length, np.inf)
    votes = (np.abs(sample @ normals.T - np.einsum("tc,tc->t", a, normals)) <= THICK).sum(0) * (length[:, 0] > 0)
    best = int(votes.argmax())
    origin, normal = a[best], normals[best]
    for _ in range(3):  # the plane of least squares through its points
        held = scaled[np.abs((scaled - origin) @ normal) <= THICK]
        if len(held) < 3:
            return none
        origin = held.mean(0)
        normal = np.linalg.svd(held - origin, full_matrices=False)[2][-1]
    height = (scaled - origin) @ normal
    found = np.abs(height) <= THICK
    above = np.count_nonzero(height > THICK)
    others = len(points) - np.count_nonzero(found)
    if found.sum() < SHARE * len(points) or not others or max(above, others - above) < SIDE * others:
        return none
    return found


def advice(found: np.ndarray, removed: bool) -> str:
    """A sentence about a cloud with a plane (`plane_mask`), which is left out or not."""
    share = f"a plane holds {np.mean(found):.0%} of its points"
    if removed:
        return f"{share}: left out"
    return f"{share}, maybe a floor or table; leave it out with remove_plane=True (in the shell --remove-plane)"
