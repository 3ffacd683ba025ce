"""Which axis of a file points up: jonet's shapes are y-up."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jonet.errors import InputError, shown
from jonet.geometry.mesh import Similarity

Axis = Literal["y", "-y", "z", "-z", "x", "-x"]
UP: dict[str, np.ndarray] = {  # by the axis that points up: the rotation that takes it to +y
    "y": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "-y": np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "z": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-z": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "x": np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "-x": np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
}


def beneath(up: str, axis: str) -> str:
    """The axis of a file that points up if `axis` does after the axis `up` of the file was taken to +y."""
    direction = UP[up].T @ UP[axis].T @ [0, 1, 0]
    return next(name for name, rotation in UP.items() if (rotation @ direction).tolist() == [0, 1, 0])


def upright(up: str) -> Similarity:
    """The rotation that takes the axis `up` of a file to +y; InputError if `up` is no key of `UP`."""
    if up not in UP:
        raise InputError(f"up is {shown(up)}, but must be one of {', '.join(UP)}")
    return Similarity(rotation=UP[up])
