"""The boundary surface of a mesh: the part of its surface with inside on one side and outside on the other.

CAD models consist of parts that intersect, touch, or are sheets without thickness.  A face within another part, or one
that separates nothing, does not bound the solid: DeepSDF's depth views do not see it, and the fused meshes of Occupancy
Networks do not contain it.  Distances to it would be zero in the middle of a solid.
"""

from __future__ import annotations

import igl
import numpy as np

from jonet.errors import MeshError
from jonet.geometry.inside import BESIDE, winding
from jonet.geometry.mesh import Mesh

PIECES = 3_000  # approximate number of pieces that are classified; seams are located to the size of one
CUTS = 100_000  # largest number of pieces of narrow faces, approximately
WITHIN = np.array([0.3567, 0.3351, 0.3082])  # test point (barycentric): off the centroid, where models often intersect


def boundary_surface(mesh: Mesh, tree: igl.FastWindingNumberBVH | None = None) -> Mesh:
    """The part of an oriented mesh between inside (winding number above 1/2) and outside.

    mesh: as of `diagnosis.orient`.  tree: its `inside.winding`, if that exists already.  A face that is only partly on
    the boundary is subdivided, so seams are accurate to about 1/30 of the square root of the area.
    Raises MeshError if nothing is enclosed.
    """
    tree = tree or winding(mesh)
    pieces, face = _pieces(mesh.corners, _size(mesh))
    normals = np.cross(pieces[:, 1] - pieces[:, 0], pieces[:, 2] - pieces[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    offset = BESIDE * np.ptp(mesh.bounds, axis=0).max() * normals
    within = np.einsum("pkc,k->pc", pieces, WITHIN)
    sides = np.concatenate([within + offset, within - offset])
    front, back = np.split(np.asarray(tree.winding_number(sides)) > 0.5, 2)
    bounds = front != back
    if not bounds.any():
        raise MeshError(
            f"{mesh.name or 'mesh'}: no face has inside on one side and outside on the other, so nothing is enclosed; "
            "close the surface, or choose the sign method 'views'"
        )
    fraction = np.bincount(face, bounds, len(mesh.faces)) / np.bincount(face, minlength=len(mesh.faces))
    if fraction.min() == 1:
        return mesh
    # Faces entirely on the boundary stay whole; of the others the pieces on the boundary are added.
    cut = pieces[bounds & (fraction < 1)[face]]
    vertices = np.concatenate([mesh.vertices, cut.reshape(-1, 3)])
    faces = np.concatenate([mesh.faces[fraction == 1], len(mesh.vertices) + np.arange(3 * len(cut)).reshape(-1, 3)])
    return Mesh(vertices, faces, name=mesh.name)


def _size(mesh: Mesh) -> float:
    """The longest edge of a piece: pieces of equal sides then have the area of the mesh over `PIECES`, approximately.

    Narrow faces have more pieces than their area says, without bound; then pieces are larger.  Each bisection of all
    edges of a narrow face makes three narrow faces of half its length.
    """
    size = 2 * np.sqrt(mesh.area / PIECES)
    longest = np.linalg.norm(mesh.corners - np.roll(mesh.corners, -1, axis=1), axis=-1).max(1)
    while ((longest[longest > size] / size) ** np.log2(3)).sum() > CUTS:
        size *= 2
    return size


def _pieces(corners: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [F, 3, 3] bisected at their longest edges until no edge is longer than `size`, and the face of each."""
    face = np.arange(len(corners))
    done, owners = [], []
    while len(corners):
        lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=-1)
        small = lengths.max(1) <= size
        done.append(corners[small])
        owners.append(face[small])
        corners, face, longest = corners[~small], face[~small], lengths[~small].argmax(1)
        rotated = np.take_along_axis(corners, ((longest[:, None] + [0, 1, 2]) % 3)[..., None], axis=1)
        a, b, c = np.moveaxis(rotated, 1, 0)  # a-b is the longest edge; a cyclic shift keeps the winding
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        face = np.tile(face, 2)
    return np.concatenate(done), np.concatenate(owners)
