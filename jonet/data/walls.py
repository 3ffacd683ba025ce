"""The walls of a mesh: the part of its surface that has inside on one side and outside on the other.

Models are put together from parts that run into each other, touch, or are sheets without thickness. What lies within
another part, or parts nothing, is no boundary of the solid: DeepSDF's depth views do not see it and the fused meshes of
Occupancy Networks do not have it. Distances to it would be zero in the middle of a solid.
"""

from __future__ import annotations

import igl
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jonet.data.meshes import Mesh
from jonet.data.rays import Scene
from jonet.errors import MeshError

PIECES = 3_000  # about as many pieces as the surface is looked at in; a seam is found to the size of one
WITHIN = np.array([0.3567, 0.3351, 0.3082])  # where a piece is looked at: parts like to meet in its middle
FOLDED = -0.99999  # cosine between the normals of neighbours
SHORT = 1e-4  # edges are not followed below this length, as a share of the radius of the whole
BESIDE = 1e-5  # how far from a wall its two sides are looked at, as a share of the longest side


def winding(mesh: Mesh) -> igl.FastWindingNumberBVH:
    """The generalised winding number of a mesh, ready for `.winding_number(points [N, 3] float64) -> [N]`."""
    tree = igl.FastWindingNumberBVH()
    tree.init(mesh.vertices, mesh.faces.astype(np.int64))
    return tree


def open_edges(mesh: Mesh) -> int:
    """How many edges are not passed equally often in both directions: 0 where winding numbers are whole."""
    start, end = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64).T
    edge = np.minimum(start, end) * len(mesh.vertices) + np.maximum(start, end)
    _, edge = np.unique(edge, return_inverse=True)
    return int(np.count_nonzero(np.bincount(edge, np.sign(end - start))))


def simple(mesh: Mesh) -> bool:
    """Whether the mesh is one closed surface that meets itself nowhere: then all of it is wall.

    Two triangles cross where an edge of one passes through the other. So every edge sends a ray along itself, a little
    inside the solid; where that meets something, another a little outside decides. Edges too short for the rays'
    float32 are left out: what they could pass through is as small. Faces folded flat onto each other cross nothing,
    but are no better.
    """
    if not mesh.watertight:
        return False
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    low, high = edges.min(1), edges.max(1)
    pair = np.argsort(low * len(mesh.vertices) + high, kind="stable").reshape(-1, 2)  # both uses of each edge
    faces, count = pair // 3, len(mesh.faces)
    links = coo_array((np.ones(len(faces)), (faces[:, 0], faces[:, 1])), shape=(count, count))
    if connected_components(links, directed=False)[0] > 1:
        return False
    scene = Scene(mesh)
    if (np.einsum("ec,ec->e", *np.moveaxis(scene.normals[faces], 1, 0)) < FOLDED).any():
        return False
    start, along = mesh.vertices[low[pair[:, 0]]], np.subtract(*mesh.vertices[[high[pair[:, 0]], low[pair[:, 0]]]])
    length = np.linalg.norm(along, axis=1)
    long = length > SHORT * scene.radius
    start, along, length = start[long], along[long], length[long, None]
    outwards = scene.normals[faces[long]].sum(1) * np.minimum(BESIDE * scene.radius, 1e-3 * length)
    origins, along = start + 0.01 * along, 0.98 * along
    hit = np.flatnonzero(scene.blocked(origins - outwards, along, 1.0))
    return not scene.blocked(origins[hit] + outwards[hit], along[hit], 1.0).any()


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
