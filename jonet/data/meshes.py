"""Triangle meshes as this library sees them: read, checked, normalised, examined for an inside, written.

`V` vertices, `F` faces. Faces wind counter-clockwise seen from outside; coordinates are float64 throughout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import trimesh

from jonet.data import files
from jonet.data.verdict import Verdict, check, examine, orient
from jonet.errors import MeshError
from jonet.storage import atomic

__all__ = ["Mesh", "Similarity", "Verdict", "check", "examine", "find", "normalize", "orient", "read", "write"]

SPHERE_RADIUS = 1 / 1.03  # DeepSDF, PreprocessMesh: the farthest vertex of a normalised mesh


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh.  vertices [V, 3] float64, faces [F, 3] int32, normals [V, 3] float64 (at vertices) or None."""

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
            object.__setattr__(self, field, array)
        if self.normals is not None and len(self.normals) != len(self.vertices):
            raise MeshError(
                f"{self.name or 'mesh'}: {len(self.normals)} normals for {len(self.vertices)} vertices; "
                "give one normal a vertex, or none"
            )

    def __repr__(self):
        return f"Mesh({self.name!r}, {len(self.vertices)} vertices, {len(self.faces)} faces)"

    def trimesh(self) -> trimesh.Trimesh:
        """The same arrays as a trimesh object, nothing merged or reordered."""
        return trimesh.Trimesh(self.vertices, self.faces, vertex_normals=self.normals, process=False)

    @property
    def corners(self) -> np.ndarray:
        """Corners of each face, [F, 3, 3] float64."""
        return self.vertices[self.faces]

    @property
    def watertight(self) -> bool:
        """Every edge has exactly two faces, which run along it in opposite directions."""
        edges = self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
        forward = np.sort(edges[:, 0] * len(self.vertices) + edges[:, 1])
        backward = np.sort(edges[:, 1] * len(self.vertices) + edges[:, 0])
        return bool(len(edges) and np.array_equal(forward, backward) and (forward[1:] != forward[:-1]).all())

    @property
    def volume(self) -> float:
        """Signed enclosed volume, positive where faces look outwards; of a closed surface."""
        if not len(self.faces):
            return 0.0
        a, b, c = np.moveaxis(self.corners - self.bounds.mean(0), 1, 0)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def area(self) -> float:
        """Of all faces, one side of each."""
        a, b, c = np.moveaxis(self.corners, 1, 0)
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2)

    @property
    def bounds(self) -> np.ndarray:
        """Lowest and highest corner of the box around the vertices that a face uses, [2, 3]."""
        if not len(self.faces):
            raise MeshError(f"{self.name or 'mesh'}: has no faces, so it has no bounds")
        corners = self.corners.reshape(-1, 3)
        return np.stack([corners.min(0), corners.max(0)])

    @property
    def euler_number(self) -> int:
        """V - E + F over the vertices that a face uses: 2 for one sphere, 0 for one torus."""
        edges = np.sort(self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1).astype(np.int64)
        count = len(np.unique(edges[:, 0] * len(self.vertices) + edges[:, 1]))
        return len(np.unique(self.faces)) - count + len(self.faces)


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """x' = scale · (rotation x + translation): a mesh's own units to the normalised frame, or any like change."""

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
        """From the 13 numbers of `as_array`."""
        array = np.asarray(array, np.float64)
        return cls(float(array[0]), array[1:10].reshape(3, 3), array[10:13])

    def as_array(self) -> np.ndarray:
        """[13] float64: scale, rotation row by row, translation."""
        return np.concatenate([[self.scale], self.rotation.ravel(), self.translation])

    def __call__(self, points) -> np.ndarray:
        """points [..., 3] -> [..., 3] float64.  Translation comes before scale, so large offsets cancel exactly."""
        points = np.asarray(points, np.float64)
        return self.scale * (points @ self.rotation.T + self.translation)

    def inverse(self) -> Similarity:
        return Similarity(1 / self.scale, self.rotation.T, -self.scale * self.rotation.T @ self.translation)

    def __matmul__(self, other: Similarity) -> Similarity:
        """(a @ b)(x) = a(b(x))."""
        translation = self.rotation @ other.translation + self.translation / other.scale
        return Similarity(self.scale * other.scale, self.rotation @ other.rotation, translation)

    def apply(self, mesh: Mesh) -> Mesh:
        """The mesh moved; its normals turned."""
        normals = None if mesh.normals is None else mesh.normals @ self.rotation.T
        return dataclasses.replace(mesh, vertices=self(mesh.vertices), normals=normals)


def read(path) -> Mesh:
    """A mesh file of any kind in `files.SUFFIXES`; scenes become one mesh with their transforms applied.

    Raises MeshError with file and cause where it cannot be read, is cut off, or holds no usable surface.
    """
    path = Path(path)
    if path.suffix.lower() not in files.SUFFIXES:
        raise MeshError(f"{path}: unknown kind of file; mesh files end in {', '.join(files.SUFFIXES)}")
    if not path.is_file():
        raise MeshError(f"{path}: no such file")
    if not path.stat().st_size:
        raise MeshError(f"{path}: the file is empty (0 bytes)")
    try:
        mesh = Mesh(*files.load(path), name=str(path))
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error.__cause__
    return dataclasses.replace(check(mesh), name=path.stem)


def is_hidden(name: str) -> bool:
    """Whether a search passes over a file or folder: hidden ones, and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_output(folder: Path) -> bool:
    """Whether a run or a bulk job keeps its results in a folder; a search for inputs does not go into it."""
    if (folder / "job.json").is_file() and any(folder.glob("manifest*.csv")):
        return True
    try:
        run = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return (folder / "config.json").is_file() and (folder / "store").is_dir()
    return isinstance(run, dict) and {"task", "config", "done"} <= run.keys()


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders from this one downwards, each with the files in it; hidden ones, and results of jonet, are left out.

    Links to folders are followed, but none that leads back to a folder above it.  A folder that cannot be read is a
    warning.
    """

    def said(error: OSError) -> None:
        warnings.warn(f"{error.filename}: cannot be searched ({error.strerror}), so it is left out", stacklevel=4)

    above = {folder: (os.path.realpath(folder),)}  # the real places of a folder and of those above it
    for place, folders, names in os.walk(folder, onerror=said, followlinks=True):
        chain, kept = above.pop(Path(place)), []
        for name in folders:
            inner, real = Path(place, name), os.path.realpath(Path(place, name))
            if not is_hidden(name) and real not in chain and not is_output(inner):
                above[inner] = (*chain, real)
                kept.append(name)
        folders[:] = kept
        yield Path(place), [name for name in names if not is_hidden(name)]


def glob(folder: Path, pattern: str) -> list[Path]:
    """What lies below a folder by such names, sorted; hidden ones are left out."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))


def find(folder) -> list[Path]:
    """Mesh files below a folder (or the file itself), sorted, as `walk` finds them."""
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise MeshError(f"{folder}: no such file or folder")
    found = (place / name for place, names in walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in files.SUFFIXES and path.is_file())


def write(mesh: Mesh, path) -> Path:
    """Writes PLY (binary), OBJ, STL, GLB or OFF by the suffix, beside its place first, then renamed into it.

    Coordinates far from the origin keep their digits (`files.dump`), but for STL, which has float32 only.
    """
    path = Path(path)
    if path.suffix.lower() not in files.WRITERS:
        raise MeshError(f"{path}: unknown kind of file; meshes are written as {', '.join(files.WRITERS)}")
    data = files.dump(files.Arrays(mesh.vertices, mesh.faces, mesh.normals), path.suffix.lower())
    atomic.write_bytes(path, data, sync=False)  # whoever goes on looks whether it is whole
    return path


def normalize(mesh: Mesh, frame: str = "sphere") -> tuple[Mesh, Similarity]:
    """The mesh in the normalised frame, and the similarity from its own units to it.  Only vertices of faces count."""
    check(mesh)
    similarity = frame_of(mesh.corners.reshape(-1, 3), frame)
    return similarity.apply(mesh), similarity


def frame_of(points, frame: str = "sphere") -> Similarity:
    """The similarity that takes points [N, 3] in own units to the normalised frame.

    frame: `sphere` puts the box's centre at the origin and the farthest point at 1/1.03 (DeepSDF, PreprocessMesh);
    `cube` centres the box and makes its longest side 1 (Occupancy Networks, section 4).
    """
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    center = (low + high) / 2
    if not (high > low).any():
        raise MeshError(f"{len(points)} points that all lie at {low.tolist()} have no size to normalise")
    if frame == "sphere":
        return Similarity(SPHERE_RADIUS / np.linalg.norm(points - center, axis=1).max(), translation=-center)
    if frame == "cube":
        return Similarity(1 / np.ptp(points, axis=0).max(), translation=-center)
    raise MeshError(f"frame is {frame!r}; the normalised frames are 'sphere' and 'cube'")
