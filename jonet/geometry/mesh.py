"""Triangle meshes and similarity transforms, the basic types of the package.

Notation: `V` vertices, `F` faces.  Faces are counter-clockwise seen from outside; coordinates are float64.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping

import numpy as np
import trimesh

from jonet.checks import check_array
from jonet.errors import InputError, MeshError, shown
from jonet.wording import counted

NO_AREA = 1e-6  # relative to the squared extent: collinear faces rounded to float32 have up to 2e-8
SMALL = 1e-100  # extent of the smallest mesh, and inverse of the largest's: squares and cubes must be finite
SPHERE_RADIUS = 1 / 1.03  # distance of the farthest vertex of a normalized mesh (DeepSDF, PreprocessMesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh: vertices [V, 3] float64, faces [F, 3] int32, vertex normals [V, 3] float64 or None, a name.

    Raises MeshError for arrays of other shapes.  Indices and values are not checked here (see `check`).
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None
    name: str = ""

    def __post_init__(self):
        for field, dtype in (("vertices", np.float64), ("faces", np.int32), ("normals", np.float64)):
            if (value := getattr(self, field)) is None and field == "normals":
                continue
            array = np.ascontiguousarray(value, dtype)
            if array.size == 0:
                array = array.reshape(0, 3)
            if array.ndim != 2 or array.shape[1] != 3:
                raise MeshError(f"{self.name or 'mesh'}: {field} must have shape [any, 3], but has {list(array.shape)}")
            object.__setattr__(self, field, array)  # the dataclass is frozen
        if self.normals is not None and len(self.normals) != len(self.vertices):
            raise MeshError(
                f"{self.name or 'mesh'}: {counted(len(self.normals), 'normal')} for "
                f"{counted(len(self.vertices), 'vertex', 'vertices')}; "
                "give one normal a vertex, or none"
            )

    def __repr__(self) -> str:
        count = f"{counted(len(self.vertices), 'vertex', 'vertices')}, {counted(len(self.faces), 'face')}"
        if not len(self.vertices):
            return f"Mesh({self.name!r}, {count})"
        sides = " × ".join(f"{side:.4g}" for side in np.ptp(self.vertices, axis=0))
        return f"Mesh({self.name!r}, {count}, {sides})"

    def trimesh(self) -> trimesh.Trimesh:
        """As a trimesh.Trimesh of the same arrays, nothing merged or reordered."""
        return trimesh.Trimesh(self.vertices, self.faces, vertex_normals=self.normals, process=False)

    @property
    def corners(self) -> np.ndarray:
        """Corners of each face, [F, 3, 3] float64."""
        return self.vertices[self.faces]

    @property
    def watertight(self) -> bool:
        """Whether every edge has exactly two faces, which traverse it in opposite directions."""
        edges = self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
        # Half-edges as numbers: each must occur once, and so must its opposite.
        forward = np.sort(edges[:, 0] * len(self.vertices) + edges[:, 1])
        backward = np.sort(edges[:, 1] * len(self.vertices) + edges[:, 0])
        return bool(len(edges) and np.array_equal(forward, backward) and (forward[1:] != forward[:-1]).all())

    @property
    def volume(self) -> float:
        """Signed enclosed volume of a closed mesh, positive if faces point outwards."""
        if not len(self.faces):
            return 0.0
        # Relative to the center: far from the origin the signed tetrahedra would cancel with loss of digits.
        a, b, c = np.moveaxis(self.corners - self.bounds.mean(0), 1, 0)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def area(self) -> float:
        """Total area of the faces."""
        a, b, c = np.moveaxis(self.corners, 1, 0)
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2)

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Lowest and highest corner of the bounding box, [2, 3]; unreferenced vertices do not count."""
        if not len(self.faces):
            raise MeshError(f"{self.name or 'mesh'}: has no faces, so it has no bounds")
        used = np.zeros(len(self.vertices), bool)
        used[self.faces] = True
        vertices = self.vertices if used.all() else self.vertices[used]
        bounds = np.stack([vertices.min(0), vertices.max(0)])
        bounds.setflags(write=False)  # it is kept
        return bounds

    @property
    def euler_number(self) -> int:
        """V - E + F over the referenced vertices: 2 for a sphere, 0 for a torus."""
        edges = np.sort(self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1).astype(np.int64)
        count = len(np.unique(edges[:, 0] * len(self.vertices) + edges[:, 1]))
        return len(np.unique(self.faces)) - count + len(self.faces)


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """A similarity transform x' = scale · (rotation x + translation), e.g. from input units to the normalized frame.

    scale > 0; rotation [3, 3]; translation [3], in units before scaling.  Raises MeshError if not finite or scale <= 0.
    """

    scale: float = 1.0
    rotation: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    translation: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))

    def __post_init__(self):
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "rotation", np.asarray(self.rotation, np.float64).reshape(3, 3))
        object.__setattr__(self, "translation", np.asarray(self.translation, np.float64).reshape(3))
        if not (np.isfinite(self.as_array()).all() and self.scale > 0):
            raise MeshError(f"a similarity needs finite numbers and a scale above 0, but has scale {self.scale}")

    @classmethod
    def identity(cls) -> Similarity:
        return cls()

    @classmethod
    def from_array(cls, array) -> Similarity:
        """From the numbers [13] of `as_array`."""
        array = np.asarray(array, np.float64)
        return cls(float(array[0]), array[1:10].reshape(3, 3), array[10:13])

    def as_array(self) -> np.ndarray:
        """[13] float64: scale, rotation row by row, translation."""
        return np.concatenate([[self.scale], self.rotation.ravel(), self.translation])

    def __call__(self, points) -> np.ndarray:
        """points [..., 3] -> [..., 3] float64.  Translation precedes scaling, so large offsets cancel exactly."""
        points = np.asarray(points, np.float64)
        return self.scale * (points @ self.rotation.T + self.translation)

    def inverse(self) -> Similarity:
        return Similarity(1 / self.scale, self.rotation.T, -self.scale * self.rotation.T @ self.translation)

    def __matmul__(self, other: Similarity) -> Similarity:
        """(a @ b)(x) = a(b(x))."""
        translation = self.rotation @ other.translation + self.translation / other.scale
        return Similarity(self.scale * other.scale, self.rotation @ other.rotation, translation)

    def apply(self, mesh: Mesh) -> Mesh:
        """The transformed mesh; normals are rotated."""
        normals = None if mesh.normals is None else mesh.normals @ self.rotation.T
        return dataclasses.replace(mesh, vertices=self(mesh.vertices), normals=normals)


def check(mesh: Mesh) -> Mesh:
    """The mesh itself; MeshError if it has no faces, invalid indices, coordinates that are not finite, or no area."""
    name = mesh.name or "mesh"
    if not len(mesh.faces):
        what = (
            f"{counted(len(mesh.vertices), 'vertex', 'vertices')} but no faces"
            if len(mesh.vertices)
            else "no vertices and no faces"
        )
        raise MeshError(f"{name}: holds {what}; a surface is needed")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        bad = int(np.flatnonzero(((mesh.faces < 0) | (mesh.faces >= len(mesh.vertices))).any(1))[0])
        raise MeshError(
            f"{name}: face {bad} uses vertices {mesh.faces[bad].tolist()}, but there are {len(mesh.vertices)}"
        )
    if not (finite := np.isfinite(mesh.corners).all((1, 2))).all():
        bad = int(np.argmin(finite))
        raise MeshError(f"{name}: face {bad} has the corners {mesh.corners[bad].tolist()}, which are not all finite")
    with np.errstate(over="ignore"):
        extent = np.ptp(mesh.bounds, axis=0).max()
    if not (extent == 0 or SMALL < extent < 1 / SMALL):
        raise MeshError(f"{name}: is {extent:.3g} long, of which areas cannot be computed; scale it")
    if not mesh.area > NO_AREA * extent**2:
        raise MeshError(
            f"{name}: its {counted(len(mesh.faces), 'face has', 'faces have')} no area compared with its length of "
            f"{extent:.3g}: all corners are nearly in one point or on one line; remove what is far from the rest"
        )
    return mesh


def as_mesh(value, name: str = "mesh") -> Mesh:
    """A mesh of any library as a Mesh; a Mesh is returned as it is.

    value: a Mesh, or an object with `vertices` [V, 3] and `faces` [F, 3], such as a trimesh.Trimesh; F may be 0.  Its
    name is the "name" or the "file_name" in its `metadata`, if there is one.
    name: of the argument, for messages.  Raises InputError for anything else (paths, arrays), for wrong shapes, indices
    without a vertex, and coordinates that are not finite; unreferenced vertices do not count.
    """
    if not (hasattr(value, "vertices") and hasattr(value, "faces")):
        is_path = isinstance(value, str | bytes | os.PathLike)
        advice = (
            "read the file with jonet.read" if is_path else "give a jonet.Mesh or an object with vertices and faces"
        )
        raise InputError(f"{name} is {shown(value)}, but must be a mesh; {advice}")
    vertices = check_array(value.vertices, f"{name}.vertices", (None, 3), np.float64, finite=False)
    faces = check_array(value.faces, f"{name}.faces", (None, 3), np.int64, finite=False)
    if len(faces) and not np.array_equal(faces, value.faces):
        raise InputError(f"{name}.faces must be whole numbers, but is {shown(value.faces)}")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise InputError(
            f"{name}.faces use vertices from {faces.min()} to {faces.max()}, but there are {len(vertices)}, from 0"
        )
    if not np.isfinite(vertices[faces] if len(faces) else vertices).all():
        raise InputError(f"{name}.vertices must be finite, but some are not; remove them and their faces")
    if isinstance(value, Mesh):
        return value
    about = getattr(value, "metadata", None)
    about = about if isinstance(about, Mapping) else {}
    return Mesh(vertices, faces, name=str(about.get("name") or about.get("file_name") or ""))


def as_meshes(value, name: str = "meshes") -> list[Mesh]:
    """One mesh, or a list or tuple of meshes, each as of `as_mesh`, as a list."""
    if isinstance(value, list | tuple):
        return [as_mesh(one, f"{name}[{i}]") for i, one in enumerate(value)]
    return [as_mesh(value, name)]


def normalize(mesh: Mesh, frame: str = "sphere") -> tuple[Mesh, Similarity]:
    """The mesh in the normalized frame (see `frame_of`), and the similarity that takes it there from input units.

    Unreferenced vertices do not affect the frame.  Raises MeshError as `check` does.
    """
    check(mesh)
    similarity = frame_of(mesh.corners.reshape(-1, 3), frame)
    return similarity.apply(mesh), similarity


def frame_of(points, frame: str = "sphere") -> Similarity:
    """The similarity that takes points [N, 3] from input units to the normalized frame.

    frame: `sphere` moves the center of the bounding box to the origin and scales the farthest point to distance 1/1.03
    (DeepSDF, PreprocessMesh); `cube` centers the box and scales its longest side to 1 (Occupancy Networks, section 4).
    Raises MeshError if all points coincide.
    """
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    center = (low + high) / 2
    if not (high > low).any():
        raise MeshError(
            f"{counted(len(points), 'point')} at {low.tolist()} and nowhere else: there is no size to normalize"
        )
    if frame == "sphere":
        return Similarity(SPHERE_RADIUS / np.linalg.norm(points - center, axis=1).max(), translation=-center)
    if frame == "cube":
        return Similarity(1 / np.ptp(points, axis=0).max(), translation=-center)
    raise MeshError(f"frame is {frame!r}; the normalized frames are 'sphere' and 'cube'")
