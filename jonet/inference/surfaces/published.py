"""Extraction as the authors' programs do it, by scikit-image's marching cubes.

DeepSDF (`reconstruct.py`): the dense grid, Lewiner's table at level 0; a shape that reaches beyond the box stays open.
Occupancy Networks (`generator`): the octree `mise`, one sample of padding on all sides, so that every shape is closed,
and the classic table.  Its program has a library of its own for that; scikit-image's `lorensen` gives its vertices, and
in ambiguous cells perhaps other triangles.

Lewiner, Lopes, Vieira, Tavares: Efficient implementation of marching cubes' cases with topological guarantees, 2003.
"""

from __future__ import annotations

import chex
import numpy as np
from skimage.measure import marching_cubes

from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import mise
from jonet.inference.surfaces.grid import FieldEvaluator

PADDING = -1e6  # value of the samples around the octree's grid, as published


def extract(evaluator: FieldEvaluator, coarse: int) -> tuple[list[Mesh], np.ndarray]:
    """The meshes of all shapes of a batch, in the frame of the fields, and the range of their signed values [B, 2].

    coarse: cells a side of the octree at its start.
    """
    if evaluator.fields.inside < 0:
        grids = (evaluator.whole(shape) for shape in range(len(evaluator.fields)))
        made = dense
    else:
        grids, _ = mise.evaluate_octree(evaluator, coarse)
        made = padded
    meshes, ranges = [], []
    for shape, signed in enumerate(grids):
        places, faces = made(signed)
        meshes.append(Mesh(evaluator.lattice.to_coordinates(shape, places), faces))
        ranges.append([signed.min(), signed.max()])
    return meshes, np.array(ranges)


def dense(signed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeepSDF's surface of a grid of signed values [R+1, R+1, R+1], positive inside.

    Returns vertices [V, 3] in cells, and faces [F, 3] with normals outwards; none if all values have one sign.
    """
    return _surface(-signed, "lewiner", "descent")  # of distances, negative inside, as its program has them


def padded(signed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Occupancy Networks' surface of such a grid; returns what `dense` does."""
    places, faces = _surface(np.pad(signed, 1, constant_values=PADDING), "lorensen", "ascent")
    return places - 1, faces


def _surface(values: np.ndarray, method: str, direction: str) -> tuple[np.ndarray, np.ndarray]:
    chex.assert_rank(values, 3)
    chex.assert_equal(len(set(values.shape)), 1)
    if not values.min() < 0 < values.max():  # where scikit-image raises an error
        return np.zeros((0, 3)), np.zeros((0, 3), np.int32)
    places, faces, _, _ = marching_cubes(values, 0.0, method=method, gradient_direction=direction)
    return places.astype(np.float64), faces
