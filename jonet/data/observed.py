"""What people hold in their hands: files of meshes, clouds or samples, as observations in the normalised frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet.data import clouds, files, meshes, sources
from jonet.data.meshes import Similarity, frame_of
from jonet.data.sampling import RECIPES, Recipe
from jonet.errors import FormatError, MeshError

CLOUDS = (".npy", ".npz", ".xyz")  # beside the mesh formats, of which a file without faces is a cloud too


class Observed(NamedTuple):
    """One file.  samples [N, 4], or points [N, 3] with or without normals [N, 3], in the normalised frame."""

    name: str
    similarity: Similarity  # own units → normalised frame
    samples: np.ndarray | None = None
    points: np.ndarray | None = None
    normals: np.ndarray | None = None

    @property
    def kind(self) -> tuple[str, ...]:
        """Which arrays it has, as `Model.fit` names them."""
        return tuple(name for name in ("samples", "points", "normals") if getattr(self, name) is not None)


def find(path) -> list[Path]:
    """Readable files below a folder, or the file itself, sorted."""
    path = Path(path)
    found = {*meshes.find(path)}
    for file in path.rglob("*") if path.is_dir() else ():
        if file.suffix.lower() in CLOUDS and not any(p.startswith(".") for p in file.relative_to(path).parts):
            found.add(file)
    return sorted(found)


def read(
    path,
    frame: str = "sphere",
    recipe: Recipe = RECIPES["default"],
    seed: int = 0,
    limit: int = clouds.LIMIT,
    surface: bool = False,
) -> Observed:
    """A mesh (sampled by the recipe), or a cloud in own units: PLY and the like without faces, .npy, .npz, .xyz.

    Rows of a cloud are x, y, z, or x, y, z and an outward normal; an .npz names them `points` and `normals`.  limit: so
    many rows of a cloud are kept.  surface: of a mesh, too, points and normals of its surface, in place of distances.
    Raises MeshError or FormatError with file and cause.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    if path.suffix.lower() in CLOUDS or _points_only(path):
        rows = clouds.read(path, limit, seed)
    else:
        try:
            arrays = files.load(path)
        except MeshError as error:
            raise MeshError(f"{path}: {error}") from error
        if len(arrays.faces):
            return _mesh(path, frame, recipe, seed, surface)
        rows = arrays.vertices[clouds.chosen(len(arrays.vertices), limit, seed)]
    if len(rows) < 4:
        raise FormatError(f"{path}: holds {len(rows)} points, but a cloud needs four at least")
    way = frame_of(rows[:, :3], frame)
    normals = None if rows.shape[1] == 3 else rows[:, 3:].astype(np.float32)
    return Observed(path.stem, way, points=way(rows[:, :3]).astype(np.float32), normals=normals)


def _points_only(path: Path) -> bool:
    """Whether this is a PLY without faces, by its header."""
    try:
        return path.suffix.lower() == ".ply" and not clouds.ply_header(path).elements.get("face")
    except (FormatError, ValueError):
        return False  # the parser of meshes says what is wrong


def _mesh(path: Path, frame: str, recipe: Recipe, seed: int, surface: bool) -> Observed:
    if surface:
        recipe = dataclasses.replace(recipe, near=0, uniform=0, occupancies=0, near_occupancies=0)
    shape = sources.MeshFile(path.stem, "test", path=path).shape(recipe, seed=seed, frame=frame, sign="auto")
    if surface:
        points, normals = (shape.rows[f"surface_{name}"][0] for name in ("points", "normals"))
        return Observed(path.stem, shape.similarity, points=points, normals=normals)
    return Observed(path.stem, shape.similarity, samples=np.concatenate(shape.rows["sdf"]))
