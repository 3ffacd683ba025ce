"""Cameras, and ray casting on meshes by embree.

Notation: an image has H rows and W columns, row 0 at the top.  Camera space is x right, y down, z forward (OpenCV), and
p_camera = rotation (p - position).  The ray of pixel (row i, column j) passes through (j + 0.5, i + 0.5) in pixel
coordinates.  World: y up, +z front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from jonet.errors import InputError, MeshError
from jonet.geometry.mesh import Mesh

VIEWS = {  # name -> (azimuth, elevation) in degrees: azimuth 0 looks at the front (+z), 90 at the side +x
    "three-quarter": (35.0, 22.0),
    "front": (0.0, 0.0),
    "right": (90.0, 0.0),
    "back": (180.0, 0.0),
    "left": (-90.0, 0.0),
    "top": (0.0, 90.0),
}
GRAZING = 1e-4  # cosine between ray and normal below which the side that is hit is uncertain in float32
TOUCHING = 1e-5  # the same for distances to the hit, relative to the mesh's radius


def direction(view: str | tuple[float, float]) -> np.ndarray:
    """The unit vector [3] from the shape to the viewer; view: a name in VIEWS, or azimuth and elevation in degrees."""
    if isinstance(view, str) and view not in VIEWS:
        raise InputError(f"view is {view!r}; it must be one of {', '.join(VIEWS)}, or (azimuth, elevation) in degrees")
    azimuth, elevation = np.radians(VIEWS[view] if isinstance(view, str) else view)
    flat = np.cos(elevation)
    return np.array([np.sin(azimuth) * flat, np.sin(elevation), np.cos(azimuth) * flat])


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole or orthographic camera.

    position [3]; rotation [3, 3], world to camera: rows are right, down, forward; focal: focal length in pixels, or a
    pair (fx, fy) (orthographic: pixels per unit of length); center (cx, cy): column and row of the principal point;
    shape (H, W).
    """

    position: np.ndarray
    rotation: np.ndarray
    focal: float | tuple[float, float]
    center: tuple[float, float]
    shape: tuple[int, int]
    orthographic: bool = False

    @classmethod
    def towards(cls, back, target, distance, focal, shape, orthographic=False) -> Camera:
        """A camera at `target` [3] + `distance` · `back` [3] (normalized) that looks at the target, world y upwards."""
        back = np.asarray(back, float) / np.linalg.norm(back)
        steep = abs(back[1]) > 1 - 1e-9  # looks straight up or down: the front (+z) is at the bottom of the image
        right = np.cross([0, 0, -back[1]] if steep else [0, 1, 0], back)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(right, back), -back])
        position = np.asarray(target, float) + distance * back
        return cls(position, rotation, focal, (shape[1] / 2, shape[0] / 2), tuple(shape), orthographic)

    @classmethod
    def framing(
        cls, points, view: str | tuple[float, float] = "three-quarter", shape=(256, 256), angle=24.0, margin=0.08
    ) -> Camera:
        """The camera nearest to `points` [N, 3] whose image contains all of them.

        view: see `direction`; angle: field of view of the shorter side in degrees; margin: fraction of the image left
        free on each side.
        """
        points = np.asarray(points, float)
        back, target = direction(view), (points.min(0) + points.max(0)) / 2
        half = np.array([shape[1], shape[0]]) / 2 * (1 - 2 * margin)
        focal = min(shape) / 2 / np.tan(np.radians(angle) / 2)
        for _ in range(3):  # fixed point: perspective moves the center of the projection with the distance
            camera = cls.towards(back, target, 0.0, focal, shape)
            x, y, z = ((points - target) @ camera.rotation.T).T
            distance = max(np.max(np.abs(x) * focal / half[0] - z), np.max(np.abs(y) * focal / half[1] - z), 1e-9)
            u, v = x / (z + distance), y / (z + distance)
            target = target + distance / 2 * np.array([u.min() + u.max(), v.min() + v.max()]) @ camera.rotation[:2]
        return cls.towards(back, target, distance * 1.01, focal, shape)  # 1 % for what the iteration leaves

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions [H, W, 3] of the pixels' rays; directions have component 1 along the optical axis,
        so that ray parameters are depths."""
        rows, columns = self.shape
        across, down = np.broadcast_to(self.focal, 2)
        x = (np.arange(columns) + 0.5 - self.center[0]) / across
        y = (np.arange(rows) + 0.5 - self.center[1]) / down
        plane = np.stack(np.broadcast_arrays(x, y[:, None]), -1) @ self.rotation[:2]
        if self.orthographic:
            return self.position + plane, np.broadcast_to(self.rotation[2], plane.shape)
        return np.broadcast_to(self.position, plane.shape), self.rotation[2] + plane

    def project(self, points) -> tuple[np.ndarray, np.ndarray]:
        """points [..., 3] -> pixel coordinates [..., 2] (column, row) and depths [...] along the optical axis."""
        x, y, z = np.moveaxis((np.asarray(points, float) - self.position) @ self.rotation.T, -1, 0)
        across, down = np.broadcast_to(self.focal, 2)
        near = 1 if self.orthographic else z
        return np.stack([x / near * across + self.center[0], y / near * down + self.center[1]], -1), z

    def unproject(self, depth) -> np.ndarray:
        """A depth map [H, W] -> points [H, W, 3] in world space (not finite where the depth is not)."""
        origins, directions = self.rays()
        return origins + np.asarray(depth)[..., None] * directions


class Hits(NamedTuple):
    """First hits of rays.

    depth [...]: in lengths of the ray's direction, inf for a miss; face [...] int32: -1 for a miss; barycentric
    [..., 3], points [..., 3] and face normals [..., 3] (by the winding, not flipped to the viewer): 0 for a miss.
    """

    depth: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    points: np.ndarray
    normals: np.ndarray


class Scene:
    """A mesh ready for ray casting.

    middle [3], radius: its bounding sphere (of the bounding box); normals [F, 3]: unit face normals; areas [F]: of the
    faces, in units where the radius is 1.
    """

    def __init__(self, mesh: Mesh):
        if not len(mesh.faces):
            raise MeshError(f"{mesh.name or 'mesh'} has no faces, so there is nothing to see")
        self.middle = mesh.bounds.mean(0)
        self.radius = float(np.linalg.norm(np.ptp(mesh.bounds, axis=0))) / 2 or 1.0
        corners = (mesh.corners - self.middle) / self.radius  # embree is float32: center and scale for full precision
        self.normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.areas = np.linalg.norm(self.normals, axis=1) / 2
        self.normals /= np.maximum(2 * self.areas[:, None], 1e-30)  # degenerate faces get the normal 0
        self._scene = EmbreeScene(robust=True)
        # Embree's Python package copies number by number, so that sharing the vertices saves half of the time.
        if len(mesh.vertices) < 2 * len(mesh.faces):
            vertices = np.ascontiguousarray((mesh.vertices - self.middle) / self.radius, np.float32)
            self._triangles = TriangleMesh(self._scene, vertices, np.ascontiguousarray(mesh.faces, np.int32))
        else:
            self._triangles = TriangleMesh(self._scene, np.ascontiguousarray(corners, np.float32))

    def _rays(self, origins, directions):
        """Rays in embree's scaled coordinates; directions keep their length, so hits are at depth / radius."""
        origins = (np.reshape(origins, (-1, 3)) - self.middle) / self.radius
        directions = np.reshape(directions, (-1, 3))
        return np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32)

    def first(self, origins, directions):
        """The first faces [N] that rays [..., 3] hit, -1 for a miss, and a function from indices [n] of rays that hit
        to barycentric coordinates [n, 3] float32.  Cheaper than `cast` if nothing else is needed."""
        found = self._scene.run(*self._rays(origins, directions), output=1)

        def barycentric(hit):
            u, v = found["u"][hit], found["v"][hit]
            return np.stack([1 - u - v, u, v], -1)

        return found["primID"], barycentric

    def cast(self, origins, directions) -> Hits:
        """First hits of rays with origins and directions [..., 3] (of any length)."""
        shape = np.shape(directions)[:-1]
        origins, directions = np.reshape(origins, (-1, 3)), np.reshape(directions, (-1, 3))
        found = self._scene.run(*self._rays(origins, directions), output=1)
        face, hit = found["primID"], np.flatnonzero(found["primID"] >= 0)
        depth = np.full(len(face), np.inf)
        barycentric, points, normals = np.zeros((3, len(face), 3))
        depth[hit] = found["tfar"][hit] * self.radius
        u, v = found["u"][hit], found["v"][hit]
        barycentric[hit] = np.stack([1 - u - v, u, v], -1)
        points[hit] = origins[hit] + depth[hit, None] * directions[hit]  # in float64, unlike embree's coordinates
        normals[hit] = self.normals[face[hit]]
        return Hits(*(a.reshape(*shape, *a.shape[1:]) for a in (depth, face, barycentric, points, normals)))

    def behind(self, points, direction) -> tuple[np.ndarray, np.ndarray]:
        """For points [N, 3]: whether the first hit in `direction` [3] is a back face (False for a miss), and whether
        that is certain: the ray does not graze the face, and the hit is not too close for float32.  [N] bool each."""
        found = self._scene.run(*self._rays(points, np.broadcast_to(direction, np.shape(points))), output=1)
        face = found["primID"]
        cosine = np.where(face < 0, -1.0, (self.normals @ direction)[face])
        return cosine > 0, (face < 0) | (np.abs(cosine) > GRAZING) & (found["tfar"] > TOUCHING)

    def blocked(self, origins, directions, reach: float = np.inf) -> np.ndarray:
        """Whether rays [N, 3] hit the mesh within `reach` lengths of their directions -> bool [N]."""
        origins, directions = self._rays(origins, directions)
        far = np.full(len(origins), min(reach / self.radius, 1e30), np.float32)
        return self._scene.run(origins, directions, dists=far, query="OCCLUDED") == 0  # 0 is embree's mark of a hit


def cast(mesh: Mesh, camera: Camera) -> Hits:
    """First hits of a camera's pixels on a mesh: arrays [H, W, ...]; depths are along the optical axis."""
    return Scene(mesh).cast(*camera.rays())
