"""What people hold in their hands: files of meshes, clouds or samples, as observations in the normalised frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jonet.data import clouds, files, images, meshes, sources, voxels
from jonet.data.meshes import Similarity, frame_of
from jonet.data.sampling import RECIPES, Recipe, Solid
from jonet.errors import FormatError, MeshError

PICTURES = (".png", ".jpg", ".jpeg")
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


def find(path, pictures: bool = False) -> list[Path]:
    """Meshes and clouds (or pictures) below a folder, or the file itself, sorted; hidden ones are left out."""
    path = Path(path)
    found = set() if pictures and path.is_dir() else {*meshes.find(path)}
    for folder, names in meshes.walk(path) if path.is_dir() else ():
        wanted = (folder / name for name in names if Path(name).suffix.lower() in (PICTURES if pictures else CLOUDS))
        found.update(file for file in wanted if file.is_file())
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


def picture(path, size: int) -> np.ndarray:
    """A picture file as networks see it, [size, size, 3] float32 in [0, 1]: bilinear, white where it is transparent."""
    path = Path(path)
    try:
        with Image.open(path) as file:
            content = file.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: cannot be read as a picture ({error})") from error
    flat = Image.alpha_composite(Image.new("RGBA", content.size, "white"), content).convert("RGB")
    return images.resized(np.asarray(flat)[None], size)[0].astype(np.float32) / 255


def grid(path, cells: int) -> tuple[np.ndarray, Similarity]:
    """A solid grid [cells, cells, cells] bool over the cube frame, and the way there from own units.

    From an .npy of these very cells, axes x, y, z, which is in the frame already; or from a mesh.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(f"{path}: cannot be read as voxels ({error})") from error
        if found.shape != (cells,) * 3 or found.dtype.kind not in "biu":
            raise FormatError(f"{path}: voxels are {cells}³ of 0 and 1, but this is {found.dtype} {list(found.shape)}")
        return found > 0, Similarity()
    mesh = meshes.read(path)
    verdict = meshes.examine(mesh)
    mesh, way = meshes.normalize(meshes.orient(mesh, verdict), "cube")
    inside = Solid(mesh, verdict.method).inside if verdict.method == "views" else None  # as in training
    return voxels.voxelize(mesh, cells, inside=inside), way


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
