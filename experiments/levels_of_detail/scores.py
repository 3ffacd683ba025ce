"""What is compared: shapes with their ground truth, and the errors of a surface that represents one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import igl
import numpy as np

from jonet.data.families import FAMILIES, make
from jonet.data.sampling import Solid, surface
from jonet.errors import ConfigError
from jonet.evaluation.metrics import to_surface
from jonet.geometry import mesh_files
from jonet.geometry.diagnosis import diagnose, orient
from jonet.geometry.inside import open_edges
from jonet.geometry.mesh import Mesh, frame_of

PADDING = 0.05  # of the box of the points for the IoU, in longest sides
CLOUD_POINTS = 10_000  # points with normals


class Surface(NamedTuple):
    """A shape as it is read back, in the shape's frame.

    inside: points [N, 3] → bool [N].  normals: points at the surface [N, 3] → unit normals [N, 3]; None for those of
    the mesh's faces.
    """

    mesh: Mesh
    inside: Callable[[np.ndarray], np.ndarray]
    normals: Callable[[np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """A closed mesh in the frame `cube`, in which its longest side is 1.  count: points for its scores."""

    mesh: Mesh
    count: int

    @staticmethod
    def of(name: str, count: int, subdivided: int = 0) -> Shape:
        """A shape of a procedural family, by its name, or the mesh of a file; ConfigError if it is not closed.

        subdivided: how often, by the rules of Loop, which make a smooth surface of four times the faces.
        """
        mesh = make(name, 1, 0) if name in FAMILIES else mesh_files.read(name)
        mesh = orient(mesh, diagnose(mesh))
        if count_open := open_edges(mesh):
            raise ConfigError(f"{name} has {count_open} open edges; the study compares closed meshes")
        if subdivided:
            fine = mesh.trimesh().subdivide_loop(subdivided)
            mesh = Mesh(fine.vertices, fine.faces)
        mesh = frame_of(mesh.vertices, "cube").apply(mesh)
        return Shape(dataclasses.replace(mesh, name=name if name in FAMILIES else Path(name).stem), count)

    @property
    def name(self) -> str:
        return self.mesh.name

    @functools.cached_property
    def solid(self) -> Solid:
        return Solid(self.mesh)

    @functools.cached_property
    def cloud(self) -> tuple[np.ndarray, np.ndarray]:
        """Points on the surface and their normals, [CLOUD_POINTS, 3] each."""
        return surface(self.mesh, CLOUD_POINTS, np.random.default_rng(2), np.float64)

    @functools.cached_property
    def volume(self) -> tuple[np.ndarray, np.ndarray]:
        """Points in the box around the shape [N, 3], and whether they are inside [N]."""
        low, high = self.mesh.bounds + np.array([[-PADDING], [PADDING]])
        points = np.random.default_rng(0).uniform(low, high, (self.count, 3))
        return points, self.solid.inside(points)

    @functools.cached_property
    def surface(self) -> tuple[np.ndarray, np.ndarray]:
        """Points on the surface and their normals, a twentieth of `count`."""
        return surface(self.solid.boundary_surface, max(1, self.count // 20), np.random.default_rng(1), np.float64)

    def errors(self, found: Surface) -> dict[str, float]:
        """iou: of the solids.  chamfer_l1: mean distance to the other surface, exact, over both directions, in longest
        sides.  normals: mean angle at points of the true surface, in degrees."""
        points, inside = self.volume
        predicted = found.inside(points)
        scores = {"iou": float((predicted & inside).sum() / max(1, (predicted | inside).sum()))}
        true, normals = self.surface
        if not len(found.mesh.faces):
            return scores | {"chamfer_l1": 1.0, "normals": 90.0}
        mesh = found.mesh
        square, face, _ = igl.point_mesh_squared_distance(true, mesh.vertices, mesh.faces.astype(np.int64))
        drawn, _ = surface(mesh, len(true), np.random.default_rng(1), np.float64)
        back = to_surface(drawn, self.solid.boundary_surface)
        turned = face_normals(mesh, face) if found.normals is None else found.normals(true)
        angles = np.degrees(np.arccos(np.clip(np.einsum("nc,nc->n", turned, normals), -1, 1)))
        chamfer = (np.sqrt(square).mean() + back.mean()) / 2
        return scores | {"chamfer_l1": float(chamfer), "normals": float(angles.mean())}


def face_normals(mesh: Mesh, faces: np.ndarray) -> np.ndarray:
    """Unit normals [N, 3] of some faces [N]."""
    a, b, c = np.moveaxis(mesh.corners[faces], 1, 0)
    return unit(np.cross(b - a, c - a))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, 3] of length 1; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
