"""Inside tests: a point is inside a mesh if its generalized winding number exceeds 1/2 (Jacobson et al. 2013).

For closed, outward-facing surfaces that do not intersect, one ray gives the same answer at a small part of the cost: a
point is inside if the first face that the ray hits is a back face.
"""

from __future__ import annotations

import functools

import igl
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Scene

FOLDED = -0.99999  # cosine between normals of neighboring faces below which they are folded onto each other
SHORT = 1e-4  # shorter edges are not tested for intersections, as a fraction of the mesh's radius
BESIDE = 1e-5  # offset of test points from the surface, as a fraction of the mesh's size
FEW = 8  # points at most for which summing over all faces is cheaper than a tree
ALONG = np.array([[0.36, 0.48, 0.80], [-0.60, 0.48, -0.64]])  # ray directions: unit, unlikely to be parallel to faces


class Inside:
    """`inside(points [N, 3])` → bool [N], for a closed or open mesh that faces outwards and is near the origin compared
    with its size, since fast winding numbers are computed in float32.

    simple: whether rays are used (see the function `simple`); then only the few points whose two rays disagree, graze a
    face or start on one need winding numbers.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._scene = _scene_if_simple(mesh)
        self.simple = self._scene is not None

    @functools.cached_property
    def tree(self) -> igl.FastWindingNumberBVH:
        """The tree of `winding`, built on first use."""
        return winding(self.mesh)

    def __call__(self, points) -> np.ndarray:
        points = np.asarray(points, np.float64)
        low, high = self.mesh.bounds
        within = (points > low) & (points < high)
        found = within[:, 0] & within[:, 1] & within[:, 2]  # points outside the bounding box are outside
        found[found] = self._in_box(points[found])
        return found

    def _in_box(self, points):
        if (scene := self._scene) is None:
            return self._by_winding(points)
        # Two rays: a single one can be wrong by rounding (embree computes in float32), but hardly both in the same way.
        (found, clear), (second, second_clear) = (scene.behind(points, along) for along in ALONG)
        if (unsure := (found != second) | ~clear | ~second_clear).any():
            found[unsure] = self._by_winding(points[unsure])
        return found

    def _by_winding(self, points):
        if self.simple and len(points) <= FEW:
            return winding_numbers(self.mesh, points) > 0.5
        return np.asarray(self.tree.winding_number(np.ascontiguousarray(points))) > 0.5


def winding(mesh: Mesh) -> igl.FastWindingNumberBVH:
    """A tree for fast winding numbers (Barill et al. 2018): `.winding_number(points [N, 3] float64) -> [N]`."""
    tree = igl.FastWindingNumberBVH()
    tree.init(mesh.vertices, mesh.faces.astype(np.int64))
    return tree


def winding_numbers(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Winding numbers [N] of few points [N, 3], summed over all faces (Van Oosterom & Strackee 1983)."""
    corners, found = mesh.corners, []
    for point in points:
        a, b, c = np.moveaxis(corners - point, 1, 0)
        x, y, z = (np.sqrt(np.einsum("fc,fc->f", v, v)) for v in (a, b, c))
        ab, bc, ca = (np.einsum("fc,fc->f", *pair) for pair in ((a, b), (b, c), (c, a)))
        volume = np.einsum("fc,fc->f", a, np.cross(b, c))
        found.append(np.arctan2(volume, x * y * z + ab * z + bc * x + ca * y).sum() / (2 * np.pi))
    return np.array(found)


def open_edges(mesh: Mesh) -> int:
    """How many edges are not traversed equally often in both directions; if 0, winding numbers are integers."""
    start, end = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64).T
    edge = np.minimum(start, end) * len(mesh.vertices) + np.maximum(start, end)
    _, edge = np.unique(edge, return_inverse=True)
    return int(np.count_nonzero(np.bincount(edge, np.sign(end - start))))


def simple(mesh: Mesh) -> bool:
    """Whether the mesh consists of closed surfaces that do not intersect or touch, each with solid behind and free
    space in front of it, so that every face bounds the solid.

    Two triangles intersect if an edge of one passes through the other.  So a ray is cast along every edge, slightly
    inside the solid; if it hits something, a second one slightly outside decides.  Edges too short for the rays'
    float32 are skipped: what they could pass through is equally small.  Faces folded flat onto each other do not cross,
    but are refused as well.
    """
    return _scene_if_simple(mesh) is not None


def _scene_if_simple(mesh: Mesh) -> Scene | None:
    """The mesh ready for ray casting if it is simple (see `simple`), else None."""
    if not mesh.watertight:
        return None
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    low, high = np.minimum(*edges.T), np.maximum(*edges.T)
    pair = np.argsort(low * len(mesh.vertices) + high, kind="stable").reshape(-1, 2)  # the two half-edges of each edge
    faces, count = pair // 3, len(mesh.faces)
    scene = Scene(mesh)
    if (np.einsum("ec,ec->e", *np.moveaxis(scene.normals[faces], 1, 0)) < FOLDED).any():
        return None
    links = coo_array((np.ones(len(faces)), (faces[:, 0], faces[:, 1])), shape=(count, count))
    if not _oriented(mesh, scene, connected_components(links, directed=False)[1]):
        return None
    # The test rays, shifted by the sum of both normals: outwards at any dihedral angle, by less at short edges.
    start, along = mesh.vertices[low[pair[:, 0]]], np.subtract(*mesh.vertices[[high[pair[:, 0]], low[pair[:, 0]]]])
    length = np.linalg.norm(along, axis=1)
    long = length > SHORT * scene.radius
    start, along, length = start[long], along[long], length[long, None]
    outwards = scene.normals[faces[long]].sum(1) * np.minimum(BESIDE * scene.radius, 1e-3 * length)
    origins, along = start + 0.01 * along, 0.98 * along  # not up to the ends, where other faces meet
    # A ray inside a sharp edge may hit the edge's own faces; one that crosses another surface hits on both sides.
    hit = np.flatnonzero(scene.blocked(origins - outwards, along, 1.0))
    return None if scene.blocked(origins[hit] + outwards[hit], along[hit], 1.0).any() else scene


def _oriented(mesh, scene, part) -> bool:
    """Whether every part (labels [F] of faces) faces outwards, or inwards if it bounds a cavity of another part.

    A ray from the part's extreme corner in the ray's direction cannot hit the part itself; it hits a back face of
    another part first only if that part encloses this one.
    """
    corners = mesh.corners
    a, b, c = np.moveaxis(corners - mesh.bounds.mean(0), 1, 0)
    volume = np.bincount(part, np.einsum("fc,fc->f", a, np.cross(b, c)))
    heights = corners @ ALONG[0]
    order = np.argsort(functools.reduce(np.maximum, heights.T), kind="stable")
    farthest = np.empty(len(volume), int)
    farthest[part[order]] = order  # duplicate indices: the last assignment, of the farthest face, remains
    tips = corners[farthest, heights[farthest].argmax(1)]
    enclosed, _ = scene.behind(tips + BESIDE * scene.radius * ALONG[0], ALONG[0])
    return bool(((volume < 0) == enclosed).all())
