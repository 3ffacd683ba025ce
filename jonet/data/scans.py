"""Reading files of meshes, point clouds, images and voxels as observations in the normalized frame."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jonet.checks import whole
from jonet.data import sources
from jonet.data.sampling import RECIPES, Recipe, Solid
from jonet.errors import FormatError, InputError, MeshError, shown
from jonet.geometry import (
    axes,
    diagnosis,
    mesh_files,
    mesh_parsers,
    planes,
    point_cloud_files,
    text_clouds,
    unread,
    voxels,
)
from jonet.geometry.mesh import Mesh, Similarity, as_mesh, check, frame_of, normalize
from jonet.geometry.outliers import advice, outlier_mask, removal
from jonet.rendering import network_views
from jonet.storage import archives, search

PICTURES = (".png", ".jpg", ".jpeg")
TABLES = (".txt", ".csv", ".tsv", ".asc")  # which may hold anything: in folders, those that hold points are clouds
CLOUDS = tuple(kind for kind in point_cloud_files.READERS if kind not in (".ply", *TABLES))


class Observed(NamedTuple):
    """The observation of one shape: samples [N, 4] (x, y, z, distance), points [N, 3] with or without normals [N, 3],
    or voxels [R, R, R], in the normalized frame."""

    name: str
    similarity: Similarity  # input units → normalized frame
    samples: np.ndarray | None = None
    points: np.ndarray | None = None
    normals: np.ndarray | None = None
    voxels: np.ndarray | None = None

    @property
    def kind(self) -> tuple[str, ...]:
        """The names of its arrays, as parameters of `Model.fit`."""
        return tuple(name for name in ("samples", "points", "normals", "voxels") if getattr(self, name) is not None)

    def array(self, name: str) -> np.ndarray:
        """One of its arrays, by a name in `kind`."""
        return getattr(self, name)


def find(path, pictures: bool = False) -> list[Path]:
    """Meshes and point clouds (or images) below a folder, or the file itself, sorted; hidden files are skipped.

    Files of kinds that are known, but not read, are counted in a warning.
    """
    path = Path(path)
    if not path.is_dir():
        return mesh_files.find(path)
    found = set() if pictures else {*mesh_files.find(path)}
    for folder, names in search.walk(path):
        for file in map(folder.joinpath, names):
            kind = file.suffix.lower()
            if kind in (PICTURES if pictures else (*CLOUDS, *TABLES)) and file.is_file():
                if kind not in TABLES or text_clouds.is_cloud(file):
                    found.add(file)
    if not pictures:
        unread.warn(path)
    return sorted(found)


def read(
    path,
    frame: str = "sphere",
    recipe: Recipe = RECIPES["default"],
    seed: int = 0,
    limit: int = point_cloud_files.LIMIT,
    surface: bool = False,
    outliers: str | None = "keep",
    up: str = "y",
    remove_plane: bool = False,
) -> Observed:
    """Reads a mesh, which is sampled by the recipe, or a point cloud: of `point_cloud_files`, or a mesh without faces.

    frame: the normalized frame of the result.  limit: maximum number of points that are kept.  surface: sample surface
    points with normals of a mesh, too, instead of distances.  outliers: of a point cloud
    (`geometry.outliers.outlier_mask`): "keep", "remove", "warn" about them and keep them, or None to remove them with a
    warning.  remove_plane: leave out a plane that holds a third of the points (`geometry.planes`); without,
    unless outliers is "keep", it is a warning.  up: the axis of the file that points up; the result is y-up, and its
    similarity has the rotation.
    Raises MeshError or FormatError with file and cause.
    """
    path = Path(path)
    rows = cloud(path, limit, seed)
    if rows is None:
        source = sources.MeshFile(path.stem, "test", path=path, up=up)
        return sampled(source, "points" if surface else "samples", frame, recipe, seed)
    rows = cleaned(rows, path, outliers, remove_plane)
    turn = axes.upright(up)
    try:
        transform = frame_of(turn(rows[:, :3]), frame) @ turn
    except MeshError as error:
        raise FormatError(f"{path}: {error}") from error
    normals = None if rows.shape[1] == 3 else (rows[:, 3:] @ turn.rotation.T).astype(np.float32)
    return Observed(path.stem, transform, points=transform(rows[:, :3]).astype(np.float32), normals=normals)


def cloud(path: Path, limit: int = point_cloud_files.LIMIT, seed: int = 0) -> np.ndarray | None:
    """The points [N, 3], with normals [N, 6], of a point cloud in input units, float64; None for a mesh with faces.

    limit: maximum number of points that are kept.  Raises MeshError or FormatError as `read`.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind not in (*point_cloud_files.READERS, *mesh_parsers.SUFFIXES):
        raise FormatError(f"{path}: {unread.described(kind, {*point_cloud_files.READERS, *mesh_parsers.SUFFIXES})}")
    if kind not in mesh_parsers.SUFFIXES or _points_only(path):
        return point_cloud_files.read(path, limit, seed)
    try:
        arrays = mesh_parsers.load(path)
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error
    if len(arrays.faces):
        return None
    return point_cloud_files.checked(point_cloud_files.of_mesh(arrays, limit, seed), path)


def cleaned(rows: np.ndarray, path: Path, outliers: str | None, remove_plane: bool) -> np.ndarray:
    """Rows [N, 3 or 6] of a file without its outliers and its plane, as `read` does."""
    if (remove_plane or outliers != "keep") and (found := planes.plane_mask(rows[:, :3])).any():
        warnings.warn(f"{path}: {planes.advice(found, remove_plane)}", stacklevel=3)
        rows = rows[~found] if remove_plane else rows
    if outliers == "keep" or not (alone := outlier_mask(rows[:, :3])).any():
        return rows
    if outliers != "remove":
        words = (advice if outliers == "warn" else removal)(rows[:, :3], alone)
        warnings.warn(f"{path}: {words}", stacklevel=3)
    return rows if outliers == "warn" else rows[~alone]


def picture(path, size: int) -> np.ndarray:
    """An image file as network input, [size, size, 3] float32 in [0, 1]: upright, resized bilinearly, white where it is
    transparent.

    Any mode of 8 or 16 bits (RGB, gray, palette, CMYK); rotated as its EXIF orientation says.  An image that is not
    square is squeezed to a square.
    """
    path = Path(path)
    with archives.picture(path) as file:
        content = network_views.eight_bit(_upright(file)).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", content.size, "white"), content).convert("RGB")
    return network_views.resized(np.asarray(flat)[None], size)[0].astype(np.float32) / 255


def _upright(image: Image.Image) -> Image.Image:
    """An image rotated as its EXIF orientation says; unchanged if its EXIF data are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many types; if pixels are damaged, not EXIF data, converting the image raises again
        return image


def grid(path, cells: int, up: str = "y") -> tuple[np.ndarray, Similarity]:
    """A voxel grid [cells, cells, cells] bool over the cube frame, and the similarity from input units to that frame.

    From an .npy of such a grid, axes x, y, z, which is in the frame already (identity); or from a mesh, voxelized.
    up: the axis of a mesh that points up.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        found = archives.array(path)
        if found.shape != (cells,) * 3 or found.dtype.kind not in "biu":
            raise FormatError(
                f"{path}: voxels must be {cells}³ values 0 or 1, but this is {found.dtype} {list(found.shape)}"
            )
        return found > 0, Similarity()
    turn = axes.upright(up)
    voxels, transform = voxelized(turn.apply(mesh_files.read(path)), cells)
    return voxels, transform @ turn


def voxelized(mesh: Mesh, cells: int) -> tuple[np.ndarray, Similarity]:
    """The voxel grid [R, R, R] bool, R = `cells`, of a mesh in input units, and the similarity, as of `grid`."""
    found = diagnosis.diagnose(mesh)
    mesh, transform = normalize(diagnosis.orient(mesh, found), "cube")
    inside = Solid(mesh, found.method).inside if found.method == "views" else None  # as stores do for training
    return voxels.voxelize(mesh, cells, inside=inside), transform


def _points_only(path: Path) -> bool:
    """Whether this is a PLY without faces, by its header: then it can be read in bounded memory."""
    try:
        return path.suffix.lower() == ".ply" and not point_cloud_files.ply_header(path).lists
    except (FormatError, ValueError, OSError, MemoryError):
        return False  # the mesh parser reports what is wrong


def of_mesh(mesh: Mesh, kind: str, frame: str, cells: int | None = None) -> Observed:
    """The observation of a mesh in input units, as of a file of it.

    kind: "samples" (signed distances), "points" (with normals) or "voxels", of `cells` a side.
    Raises MeshError for a mesh that has no inside.
    """
    if kind == "voxels" and cells is not None:
        voxels, transform = voxelized(check(mesh), cells)
        return Observed(mesh.name, transform, voxels=voxels)
    return sampled(sources.InMemory(mesh.name, "test", mesh=mesh), kind, frame)


def sampled(
    source: sources.Source, kind: str, frame: str, recipe: Recipe = RECIPES["default"], seed: int = 0
) -> Observed:
    """The observation of a source of a mesh.  kind: "samples" or "points"."""
    if kind == "points":
        recipe = dataclasses.replace(recipe, near=0, uniform=0, occupancies=0, near_occupancies=0)
    shape = source.shape(recipe, seed=seed, frame=frame, sign="auto")
    if kind == "points":
        points, normals = (shape.rows[f"surface_{name}"][0] for name in ("points", "normals"))
        return Observed(source.name, shape.similarity, points=points, normals=normals)
    return Observed(source.name, shape.similarity, samples=np.concatenate(shape.rows["sdf"]))


def sample_sdf(mesh, count: int = 20_000, *, near: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around a mesh and their signed distances, negative inside: points [N, 3], distances [N], both float64.

    mesh: of jonet, trimesh, or any with `vertices` and `faces`; both results are in its units.  Sampled as DeepSDF's
    training data (Park et al. 2019, section 5): the fraction `near` close to the surface, the others uniform in the
    cube around the bounding sphere.  N is `count`, or less where votes for the sign of a point do not agree.  The
    method that tells inside from outside is that of the mesh's diagnosis (`geometry.diagnosis`).
    Raises InputError for a wrong argument, MeshError for a mesh without an inside.
    """
    mesh = as_mesh(mesh)
    count, seed = whole(count, "count", 2), whole(seed, "seed", 0)
    if isinstance(near, bool) or not isinstance(near, numbers.Real) or not 0 <= near <= 1:
        raise InputError(f"near is {shown(near)}, but must be a fraction from 0 to 1")
    pairs = int(near * count) // 2  # each surface point gives two samples
    recipe = Recipe(near=2 * pairs, uniform=count - 2 * pairs, surface=0)
    name = mesh.name or "mesh"
    found = sampled(sources.InMemory(name, mesh=mesh), "samples", "sphere", recipe, seed)
    samples = np.random.default_rng(seed).permutation(found.array("samples").astype(np.float64))
    return found.similarity.inverse()(samples[:, :3]), samples[:, 3] / found.similarity.scale
