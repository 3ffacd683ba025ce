"""Starts of a fit from an encoder in front of the network, which sees a point cloud of the surface."""

from __future__ import annotations

import numpy as np

from jonet.inference import encode
from jonet.inference.encode import Inputs
from jonet.inference.fitting.observations import Observations, nearest_to_surface
from jonet.networks.bound import BoundNetwork


def guesses(network: BoundNetwork, inputs: Inputs, shapes: list[Observations]) -> np.ndarray:
    """The encoder's codes [B, L] of observed shapes, from the points of each that are nearest to its surface.

    A code depends only on the shape's observations, not on their order.
    """
    clouds = [nearest_to_surface(rows, inputs.size) for rows in shapes]
    return encode.encode(network, inputs.check(clouds), inputs.kind)
