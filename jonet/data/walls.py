"""The walls of a mesh: the part of its surface that has inside on one side and outside on the other.

Models are put together from parts that run into each other, touch, or are sheets without thickness. What lies within
another part, or parts nothing, is no boundary of the solid: DeepSDF's depth views do not see it and the fused meshes of
Occupancy Networks do not have it. Distances to it would be zero in the middle of a solid.
"""

from __future__ import annotations

import igl
import numpy as np

from jonet.data.inside import BESIDE, winding
from jonet.data.meshes import Mesh
from jonet.errors import MeshError

PIECES = 3_000  # about as many pieces as the surface is looked at in; a seam is found to the size of one
WITHIN = np.array([0.3567, 0.3351, 0.3082])  # where a piece is looked at: parts like to meet in its middle


def walls(mesh: Mesh, tree: igl.FastWindingNumberBVH | None = None) -> Mesh:
    """The faces of an oriented mesh between inside (winding number above 1/2) and outside, those alone.

    A face that is a wall only in part is cut into pieces, so seams are met to about 1/30 of the root of the area.
    Raises MeshError where nothing is enclosed.
    """
    tree = tree or winding(mesh)
    pieces, face = _pieces(mesh.corners, size=2 * np.sqrt(mesh.area / PIECES))
    normals = np.cross(pieces[:, 1] - pieces[:, 0], pieces[:, 2] - pieces[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    beside = BESIDE * np.ptp(mesh.bounds, axis=0).max() * normals
    within = np.einsum("pkc,k->pc", pieces, WITHIN)
    front, back = np.split(tree.winding_number(np.concatenate([within + beside, within - beside])) > 0.5, 2)
    wall = front != back
    if not wall.any():
        raise MeshError(
            f"{mesh.name or 'mesh'}: no face has inside on one side and outside on the other, so nothing is enclosed; "
            "close the surface, or choose the sign method 'views'"
        )
    share = np.bincount(face, wall, len(mesh.faces)) / np.bincount(face, minlength=len(mesh.faces))
    if share.min() == 1:
        return mesh
    cut = pieces[wall & (share < 1)[face]]
    vertices = np.concatenate([mesh.vertices, cut.reshape(-1, 3)])
    faces = np.concatenate([mesh.faces[share == 1], len(mesh.vertices) + np.arange(3 * len(cut)).reshape(-1, 3)])
    return Mesh(vertices, faces, name=mesh.name)


def _pieces(corners: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [F, 3, 3] halved along their longest edges until none is longer than `size`, and the face of each."""
    face = np.arange(len(corners))
    done, whose = [], []
    while len(corners):
        lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=-1)
        small = lengths.max(1) <= size
        done.append(corners[small])
        whose.append(face[small])
        corners, face, longest = corners[~small], face[~small], lengths[~small].argmax(1)
        turned = np.take_along_axis(corners, ((longest[:, None] + [0, 1, 2]) % 3)[..., None], axis=1)
        a, b, c = np.moveaxis(turned, 1, 0)  # a-b is the longest edge
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        face = np.tile(face, 2)
    return np.concatenate(done), np.concatenate(whose)
