"""Which points lie inside a mesh: where its generalised winding number exceeds 1/2.

Of closed surfaces that meet nowhere, each with solid behind it and nothing before it, rays tell the same at a small
part of the cost: the first face that a ray meets is seen from behind where the point is inside.
"""

from __future__ import annotations

import functools

import igl
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jonet.data.meshes import Mesh
from jonet.data.rays import Scene

FOLDED = -0.99999  # cosine between the normals of neighbours
SHORT = 1e-4  # edges are not followed below this length, as a share of the radius of the whole
BESIDE = 1e-5  # how far from a wall its two sides are looked at, as a share of the longest side
ALONG = np.array([[0.36, 0.48, 0.80], [-0.60, 0.48, -0.64]])  # two directions that models are not aligned with


class Inside:
    """`inside(points [N, 3])` → bool [N], for a closed or open mesh that faces outwards.

    simple: whether rays can tell (`simple`); the few points whose two rays disagree, graze a face or start on one are
    told by winding numbers all the same.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._scene = _scene_that_tells(mesh)
        self.simple = self._scene is not None

    @functools.cached_property
    def tree(self) -> igl.FastWindingNumberBVH:
        """Ready for `.winding_number(points [N, 3] float64)`."""
        return winding(self.mesh)

    def __call__(self, points) -> np.ndarray:
        points = np.asarray(points, np.float64)
        low, high = self.mesh.bounds
        found = ((points > low) & (points < high)).all(1)  # nothing is enclosed outside of the box
        found[found] = self._of(points[found])
        return found

    def _of(self, points):
        if not self.simple:
            return self._enclosed(points)
        (found, clear), (again, clearly) = (self._scene.behind(points, along) for along in ALONG)
        if (unsure := (found != again) | ~clear | ~clearly).any():
            found[unsure] = self._enclosed(points[unsure])
        return found

    def _enclosed(self, points):
        return self.tree.winding_number(np.ascontiguousarray(points)) > 0.5


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
    """Whether the mesh is closed surfaces that meet nowhere, each with solid behind and nothing before it: all is wall.

    Two triangles cross where an edge of one passes through the other. So every edge sends a ray along itself, a little
    inside the solid; where that meets something, another a little outside decides. Edges too short for the rays'
    float32 are left out: what they could pass through is as small. Faces folded flat onto each other cross nothing,
    but are no better.
    """
    return _scene_that_tells(mesh) is not None


def _scene_that_tells(mesh: Mesh) -> Scene | None:
    """The mesh ready for rays if it is simple, else None."""
    if not mesh.watertight:
        return None
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    low, high = edges.min(1), edges.max(1)
    pair = np.argsort(low * len(mesh.vertices) + high, kind="stable").reshape(-1, 2)  # both uses of each edge
    faces, count = pair // 3, len(mesh.faces)
    scene = Scene(mesh)
    if (np.einsum("ec,ec->e", *np.moveaxis(scene.normals[faces], 1, 0)) < FOLDED).any():
        return None
    links = coo_array((np.ones(len(faces)), (faces[:, 0], faces[:, 1])), shape=(count, count))
    if not _turned_rightly(mesh, scene, connected_components(links, directed=False)[1]):
        return None
    start, along = mesh.vertices[low[pair[:, 0]]], np.subtract(*mesh.vertices[[high[pair[:, 0]], low[pair[:, 0]]]])
    length = np.linalg.norm(along, axis=1)
    long = length > SHORT * scene.radius
    start, along, length = start[long], along[long], length[long, None]
    outwards = scene.normals[faces[long]].sum(1) * np.minimum(BESIDE * scene.radius, 1e-3 * length)
    origins, along = start + 0.01 * along, 0.98 * along
    hit = np.flatnonzero(scene.blocked(origins - outwards, along, 1.0))
    return None if scene.blocked(origins[hit] + outwards[hit], along[hit], 1.0).any() else scene


def _turned_rightly(mesh, scene, part) -> bool:
    """Whether every part (a number [F] of each face) looks outwards, or, where it bounds a hollow of another, inwards.

    From its farthest corner a ray that leaves the part sees others from behind only where they enclose it.
    """
    corners = mesh.corners
    volume = np.bincount(part, np.linalg.det(corners - mesh.bounds.mean(0)))
    order = np.argsort((heights := corners @ ALONG[0]).max(1), kind="stable")
    farthest = np.empty(len(volume), int)
    farthest[part[order]] = order  # of each part the last to be written is the farthest
    tips = corners[farthest, heights[farthest].argmax(1)]
    enclosed, _ = scene.behind(tips + BESIDE * scene.radius * ALONG[0], ALONG[0])
    return bool(((volume < 0) == enclosed).all())
