"""Shapes that lie: which are fitted far better when another of their axes points up."""

from __future__ import annotations

import numpy as np

from jonet.geometry.axes import UP
from jonet.inference.fitting import latents
from jonet.inference.fitting.observations import Observations
from jonet.networks.bound import BoundNetwork

BETTER = 0.6  # a turn counts if it reduces the residual to this fraction
TURNS = tuple(axis for axis in UP if axis != "y")


def axes(network: BoundNetwork, shapes: list[Observations], residual, index, **settings) -> list[str]:
    """The axis of each of B shapes that perhaps points up, a key of `UP`; "" where no turn fits far better.

    residual [B]: of the codes of the shapes as they are.  Other arguments: as of `latents.fit`, which is called with
    every shape in five other poses.
    """
    if not shapes:
        return []
    turned = [shape._replace(points=_turned(shape.points, axis)) for shape in shapes for axis in TURNS]
    found = latents.fit(network, turned, np.repeat(index, len(TURNS)), **settings).residual.reshape(len(shapes), -1)
    best = found.argmin(1)
    better = found.min(1) <= BETTER * np.asarray(residual)
    return [TURNS[i] if yes else "" for i, yes in zip(best.tolist(), better.tolist(), strict=True)]


def _turned(points: np.ndarray, axis: str) -> np.ndarray:
    return (points @ UP[axis].T).astype(points.dtype)
