"""Shapes that lie among others: which are far more like the others when another of their axes points up.

Shapes are compared by where their surfaces are: how high, and how far from the vertical through the middle, so that a
turn about the vertical does not count.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from jonet.data.store import Store
from jonet.geometry.axes import UP
from jonet.wording import counted

HEIGHTS, RADII = 12, 8  # cells of the histogram of a surface
NEAREST = 3  # other shapes whose mean distance counts
BETTER = 0.6  # a turn counts if it reduces that distance to this fraction
FEWEST = 8  # shapes
OTHERS = 2000  # shapes that each is compared with, at most
POINTS = 1000  # of a surface, at most
SHOWN = 5  # names in a warning


def turned(clouds: Sequence[np.ndarray]) -> dict[int, str]:
    """The shapes that lie among others, as far as their surface points [N, 3] tell: index → axis that should point up.

    Only few shapes can be found so: where most lie, they are like each other.
    """
    if len(clouds) < FEWEST:
        return {}
    clouds = [cloud[:: -(-len(cloud) // POINTS)] for cloud in clouds]
    others = np.arange(len(clouds))[:: -(-len(clouds) // OTHERS)]
    kinds = {axis: np.stack([_histogram(cloud @ rotation.T) for cloud in clouds]) for axis, rotation in UP.items()}
    upright = kinds["y"][others]
    distances = {axis: _nearest(found, upright, others) for axis, found in kinds.items()}
    best = np.array(list(UP))[np.argmin(list(distances.values()), axis=0)]
    better = np.min(list(distances.values()), axis=0) < BETTER * distances["y"]
    return {int(i): str(best[i]) for i in np.flatnonzero(better)}


def _histogram(points: np.ndarray) -> np.ndarray:
    """Square roots of the fractions of points by height and radius, smoothed, [HEIGHTS * RADII]."""
    points = points / max(np.linalg.norm(points, axis=1).max(), 1e-12)
    radius = np.hypot(points[:, 0], points[:, 2])
    found = np.histogram2d(points[:, 1], radius, (HEIGHTS, RADII), ((-1, 1), (0, 1)))[0]
    for axis in (0, 1):
        padded = np.pad(found, [(1, 1) if axis == i else (0, 0) for i in (0, 1)])
        before, after = (np.take(padded, np.arange(start, start + found.shape[axis]), axis) for start in (0, 2))
        found = found / 2 + before / 4 + after / 4
    return np.sqrt(found / found.sum()).ravel()


def _nearest(found: np.ndarray, others: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The mean distance of each histogram [S] to the nearest of the others, of which shape own[i] is the i-th."""
    squares = np.maximum((found**2).sum(1)[:, None] + (others**2).sum(1) - 2 * found @ others.T, 0)
    squares[own, np.arange(len(own))] = np.inf
    return np.sqrt(np.partition(squares, NEAREST, axis=1)[:, :NEAREST]).mean(1)


def warn(store: Store) -> None:
    """Warns about shapes of a store that perhaps lie (`turned`)."""
    clouds = [store.surface(i)[0] for i in range(len(store))]
    if not clouds or min(map(len, clouds)) == 0 or not (found := turned(clouds)):
        return
    names = [f"{store.names[i]} ({axis} up)" for i, axis in list(found.items())[:SHOWN]]
    warnings.warn(
        f"{counted(len(found), 'shape lies perhaps on its side or head', 'shapes lie perhaps on their sides or heads')}"
        f": {', '.join(names)}{', …' * (len(found) > SHOWN)} would be far more like the others with another axis up; "
        "turn the files, or put them aside (--shapes.up turns all)",
        stacklevel=3,
    )
