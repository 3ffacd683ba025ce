"""What people hold in their hands: files of meshes, clouds or samples, as observations in the normalised frame."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet.data import files, meshes, sources
from jonet.data.meshes import Similarity, frame_of
from jonet.data.sampling import RECIPES, Recipe
from jonet.errors import FormatError, MeshError, require

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
    clouds = [] if not path.is_dir() else [p for p in path.rglob("*") if p.suffix.lower() in CLOUDS]
    return sorted({*meshes.find(path), *clouds})


def read(path, frame: str = "sphere", recipe: Recipe = RECIPES["default"], seed: int = 0) -> Observed:
    """A mesh (sampled by the recipe), or a cloud in own units: PLY and the like without faces, .npy, .npz, .xyz.

    Rows of a cloud are x, y, z, or x, y, z and an outward normal; an .npz names them `points` and `normals`.
    Raises MeshError or FormatError with file and cause.
    """
    path = Path(path)
    if path.suffix.lower() in CLOUDS:
        rows = _cloud(path)
    else:
        try:
            arrays = files.load(path)
        except MeshError as error:
            raise MeshError(f"{path}: {error}") from error
        if len(arrays.faces):
            return _mesh(path, frame, recipe, seed)
        rows = arrays.vertices if arrays.normals is None else np.column_stack([arrays.vertices, arrays.normals])
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or len(rows) < 4:
        raise FormatError(f"{path}: a cloud has rows of 3 or 6 numbers, four rows at least, but this is {rows.shape}")
    rows = require(rows, str(path), (None, None), np.float64)
    way = frame_of(rows[:, :3], frame)
    normals = None if rows.shape[1] == 3 else rows[:, 3:].astype(np.float32)
    return Observed(path.stem, way, points=way(rows[:, :3]).astype(np.float32), normals=normals)


def _mesh(path: Path, frame: str, recipe: Recipe, seed: int) -> Observed:
    shape = sources.MeshFile(path.stem, "test", path=path).shape(recipe, seed=seed, frame=frame, sign="auto")
    return Observed(path.stem, shape.similarity, samples=np.concatenate(shape.rows["sdf"]))


def _cloud(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".xyz":
            return np.loadtxt(path, dtype=np.float64, ndmin=2, comments="#")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded.astype(np.float64)
        with loaded:
            if "points" not in loaded.files:
                raise FormatError(f"{path}: holds {', '.join(loaded.files)}, but a cloud is named 'points'")
            columns = [loaded[name] for name in ("points", "normals") if name in loaded.files]
        return np.column_stack(columns).astype(np.float64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: cannot be read as a cloud of points ({error})") from error
