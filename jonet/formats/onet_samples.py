"""The data layout of the Occupancy Networks program, read and written.

    metadata.yaml                       {category: {id, name}}
    <category>/{train,val,test}.lst     one model per line
    <category>/<model>/
      points.npz                        points [N, 3] float16, occupancies [N / 8] packed bits, loc [3], scale []
      pointcloud.npz                    surface points and normals [M, 3], loc, scale
      model.binvox                      voxels [32, 32, 32]
      img_choy2016/                     views *.jpg, and cameras.npz

Points are in the frame `cube`: (x - loc) / scale for x in input units.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jonet.data import splits
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape
from jonet.data.store import Store
from jonet.errors import ConfigError, FormatError, MeshError
from jonet.formats.sampled import Sampled, rows
from jonet.formats.sampled import places as shape_places
from jonet.geometry.mesh import Similarity
from jonet.geometry.voxels import SIDE, packed, voxelize
from jonet.rendering import network_views
from jonet.storage import archives, atomic
from jonet.storage.search import glob, is_output
from jonet.wording import counted

POINTS, CLOUD, VOXELS, VIEWS = "points.npz", "pointcloud.npz", "model.binvox", "img_choy2016"
CAMERAS = "cameras.npz"
MOST_VOXELS = 512  # maximum cells per side
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in gray (BT.601)


@dataclasses.dataclass(frozen=True)
class Occupancies(Sampled):
    """A shape in this layout; place is `<category>/<model>`.  Without pointcloud.npz it has no surface points.

    Voxels and views are read from its files if the recipe includes them (the first `images` views, resized).
    """

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.root / self.place

    @property
    def paths(self) -> dict[str, Path]:
        return {name: self.folder / name for name in (POINTS, CLOUD, VOXELS, f"{VIEWS}/{CAMERAS}")}

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        self.in_frame(frame, "cube")
        points, cloud, voxels, _ = self.paths.values()
        found, similarity, ordered = read_points(points)
        shape = {"occupancy": tuple(self.shuffled(side, seed) for side in found) if ordered else found}
        if cloud.is_file():
            surface, normals = read_cloud(cloud)
            shape |= {"surface_points": (surface,), "surface_normals": (normals,)}
        if recipe.voxels != "none":
            shape["voxels"] = (packed(_of_side(read_voxels(voxels), voxels))[None],)
        if recipe.images:
            images, cameras = _stored_views(read_views(self.folder / VIEWS), recipe, similarity, self.folder / VIEWS)
            shape |= {"images": (images,), "cameras": (cameras,)}
        return Shape(shape, similarity)


class Views(NamedTuple):
    """Images [V, H, W, 3] uint8 of one shape, and their cameras.

    world [V, 3, 4]: extrinsics, input units to camera space; camera [V, 3, 3]: intrinsics, camera space to pixels of a
    square image of 137 pixels.
    """

    images: np.ndarray
    world: np.ndarray
    camera: np.ndarray


def discover(folder: str | Path, split=None, category: str | None = None, test_fraction: float = 0.1, seed: int = 0):
    """The shapes of a data folder as sources, sorted by name.

    split: split files (`splits.chosen`) with names of models or `<category>/<model>`.  Without them: the lists in each
    category (a warning tells which shapes they do not name); else category folders train, test and val; else all
    shapes, of which the seed draws the fraction `test_fraction` for testing.  category: folders to take, or their names
    in metadata.yaml or in the papers.
    A shape that a list names is a source even if its files are missing: `store.build` lists it as skipped.
    """
    root = Path(folder)
    models = {
        kind.name: [path.name for path in glob(kind, "*") if path.is_dir() and glob(path, "*")]
        for kind in glob(root, "*")
        if kind.is_dir() and not is_output(kind)
    }
    kept = splits.categories(category, models, read_metadata(root / "metadata.yaml"))
    existing = sorted(f"{kind}/{name}" for kind in kept for name in models[kind])
    lists = {part: [path for path in find_lists(root, part) if path.parent.name in kept] for part in splits.SPLITS}
    if split:
        listed = splits.placed(splits.chosen(split), existing)
        listed = {place: part for place, part in listed.items() if place.split("/")[0] in kept or "/" not in place}
    elif any(lists.values()):
        named = {part: [f"{p.parent.name}/{n}" for p in paths for n in splits.read(p)] for part, paths in lists.items()}
        listed = splits.joined(named)
        splits.warn_unlisted([place for place in existing if (root / place / POINTS).is_file()], listed, root)
    else:
        listed = splits.of_folders(existing, root, "models") or splits.drawn(existing, test_fraction, seed)
    if not listed:
        raise FormatError(f"{root}: there are no <category>/<model>/ folders, and no list names any model")
    names = splits.short(list(listed))
    return sorted(
        (Occupancies(names[place], part, root, place) for place, part in listed.items()), key=lambda one: one.name
    )


def find_lists(root: Path, split: str) -> list[Path]:
    """The lists of a split in the categories of a data folder, sorted."""
    return [path for path in glob(root, "*/*.lst") if path.stem.lower() == split]


def read_metadata(path: Path) -> dict[str, str]:
    """Category folders by each of their names; {} if there is no such file."""
    if not path.is_file():
        return {}
    found = archives.yaml_options(path)
    try:
        return {name.strip(): str(key) for key, about in found.items() for name in str(about["name"]).split(",")}
    except (TypeError, LookupError) as error:
        raise FormatError(f"{path}: is no list of categories, {{folder: {{id, name}}}} ({error})") from error


def read_points(path: Path) -> tuple[tuple[np.ndarray, np.ndarray], Similarity, bool]:
    """Points outside and inside ([N, 3] each, as stored, without the noise that the program adds in training), the
    similarity from input units to the frame `cube`, and whether the points may be in the order of sampling."""
    found = archives.arrays(path, ("points", "occupancies"), ("loc", "scale", "shuffled"))
    kind = found["points"].dtype
    points = rows(found["points"], path, "points", 3)
    inside = labels(found["occupancies"], len(points), str(path))
    points = points.astype(kind if kind == np.float16 else np.float32)
    return (points[~inside], points[inside]), _similarity(found, path), "shuffled" not in found


def labels(occupancies: np.ndarray, count: int, where: str) -> np.ndarray:
    """Whether each of `count` points is inside, [N] bool; FormatError for other numbers than 0 and 1.

    occupancies: [N] (or [N, 1]) numbers 0 and 1 or bools, or packed bits, uint8 [⌈N / 8⌉] (`points_unpackbits`).
    where: for messages.
    """
    values = occupancies.reshape(-1)
    if values.dtype == np.uint8 and len(values) == -(-count // 8) != count:
        values = np.unpackbits(values)[:count]
    if len(values) != count:
        raise FormatError(
            f"{where}: {len(values)} occupancies, packed or not, do not belong to {counted(count, 'point')}"
        )
    if values.dtype.kind not in "fiub" or not ((values == 0) | (values == 1)).all():
        raise FormatError(f"{where}: occupancies must be 0 (outside) or 1 (inside)")
    return values > 0


def read_cloud(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Surface points and their normals, [M, 3] float32 each, in the frame `cube`."""
    found = archives.arrays(path, ("points", "normals"))
    points, normals = (rows(found[name], path, name, 3) for name in ("points", "normals"))
    if len(points) != len(normals):
        raise FormatError(f"{path}: {counted(len(normals), 'normal')} cannot belong to {counted(len(points), 'point')}")
    return points, normals


def _similarity(found: dict[str, np.ndarray], path: Path) -> Similarity:
    loc, scale = np.asarray(found.get("loc", np.zeros(3)), np.float64), np.asarray(found.get("scale", 1.0), np.float64)
    try:
        return Similarity(1 / float(scale.reshape(())), translation=-loc)
    except (ValueError, ZeroDivisionError, MeshError) as error:
        raise FormatError(f"{path}: loc must be 3 numbers and scale one above 0 ({error})") from error


def read_voxels(path: str | Path) -> np.ndarray:
    """A .binvox file -> [R, R, R] bool, indexed x, y, z (the file's order is x, z, y)."""
    path = Path(path)
    try:
        data = path.read_bytes()
        header, _, body = data.partition(b"data\n")
        lines = [line.split() for line in header.decode("ascii").splitlines()]
        sizes = next(tuple(int(n) for n in line[1:]) for line in lines if line[:1] == ["dim"])
        if lines[0][:1] != ["#binvox"] or len(set(sizes)) != 1 or len(sizes) != 3 or not 0 < sizes[0] <= MOST_VOXELS:
            raise ValueError(f"its header says {header[:80]!r}")
        values, counts = np.frombuffer(body, np.uint8).reshape(-1, 2).T
        if counts.sum(dtype=np.int64) != sizes[0] ** 3:
            raise ValueError(f"it has {counts.sum(dtype=np.int64)} voxels, but should have {sizes[0] ** 3}")
    except (OSError, ValueError, StopIteration, IndexError) as error:
        raise FormatError(f"{path}: is no .binvox file, or damaged ({error})") from error
    return np.repeat(values > 0, counts).reshape(sizes).transpose(0, 2, 1)


def write_voxels(voxels: np.ndarray, path: Path) -> None:
    """Writes voxels [R, R, R] of the cube [-0.5, 0.5]³, indexed x, y, z, as a .binvox file."""
    # Run-length encoding: pairs (value, count) of bytes, so runs are split into pieces of at most 255.
    flat = np.asarray(voxels, np.uint8).transpose(0, 2, 1).ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff([*starts, len(flat)])
    values, full = flat[starts], lengths // 255
    runs = np.repeat(np.column_stack([values, np.full(len(values), 255)]), full, axis=0)
    order = np.concatenate([np.repeat(starts, full), starts])
    runs = np.concatenate([runs, np.column_stack([values, lengths % 255])])[np.argsort(order, kind="stable")]
    header = f"#binvox 1\ndim {' '.join(map(str, voxels.shape))}\ntranslate -0.5 -0.5 -0.5\nscale 1\ndata\n"
    atomic.write_bytes(path, header.encode() + runs[runs[:, 1] > 0].astype(np.uint8).tobytes(), sync=False)


def read_views(folder: str | Path) -> Views:
    """All views of a model, from its `img_choy2016` folder; gray images become RGB."""
    folder = Path(folder)
    # By number, as the matrices: 2.jpg comes before 10.jpg.
    paths = sorted(glob(folder, "*.jpg"), key=lambda path: (not path.stem.isdecimal(), path.stem.zfill(40)))
    names = [f"{kind}_mat_{i}" for kind in ("world", "camera") for i in range(len(paths))]
    found = archives.arrays(folder / CAMERAS, names)
    images = [_image(path) for path in paths]
    if len({image.shape for image in images}) != 1:
        raise FormatError(f"{folder}: holds {len(images)} images of {len({image.shape for image in images})} sizes")
    world, camera = (np.stack([found[f"{kind}_mat_{i}"] for i in range(len(paths))]) for kind in ("world", "camera"))
    if world.shape[1:] != (3, 4) or camera.shape[1:] != (3, 3):
        raise FormatError(f"{folder}/{CAMERAS}: matrices are {world.shape[1:]} and {camera.shape[1:]}")
    return Views(np.stack(images), world, camera)


def _stored_views(views: Views, recipe: Recipe, transform: Similarity, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Views as stores have them: images [V, H, W, channels], and extrinsics [V, 3, 4] in the frame `cube`."""
    if len(views.images) < recipe.images:
        raise FormatError(
            f"{folder}: holds {counted(len(views.images), 'view')}, but the recipe requires {recipe.images}"
        )
    images = network_views.resized(views.images[: recipe.images], recipe.image_size)
    if recipe.image_channels == 1:
        images = np.round(images @ np.array(LUMA))[..., None]
    rotation, translation = np.split(views.world[: recipe.images].astype(np.float64), [3], axis=2)
    # Camera space is scaled with the shape, which leaves the pixels and the rotation unchanged.
    translation = transform.scale * (translation - rotation @ transform.translation[:, None])
    return images.astype(np.uint8), np.concatenate([rotation, translation], axis=2)


def write_views(images: np.ndarray, cameras: np.ndarray, transform: Similarity, folder: Path) -> None:
    """Writes a store's images [V, H, W, 1 or 3] and cameras [V, 3, 4] as views of a model.

    transform: input units to the frame `cube`, inverted here (see `_stored_views`).
    """
    matrices = {}
    for i, (image, camera) in enumerate(zip(images, cameras.astype(np.float64), strict=True)):
        picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
        with atomic.open_file(folder / f"{i:03}.jpg", sync=False) as file:
            picture.save(file, "JPEG", quality=95)
        rotation, translation = np.split(camera, [3], axis=1)
        translation = translation / transform.scale + rotation @ transform.translation[:, None]
        matrices[f"world_mat_{i}"] = np.hstack([rotation, translation])
        matrices[f"camera_mat_{i}"] = network_views.intrinsics(137)  # for the published size, whatever this one is
    archives.write(folder / CAMERAS, **matrices)


def _of_side(voxels: np.ndarray, path: Path) -> np.ndarray:
    """The voxels, or FormatError if they are not `SIDE`³."""
    if len(voxels) != SIDE:
        raise FormatError(f"{path}: holds {len(voxels)}³ voxels, but networks need {SIDE}³")
    return voxels


def _image(path: Path) -> np.ndarray:
    """An image file as [H, W, 3] uint8; pixels as stored, without EXIF orientation, as the published program does."""
    with archives.picture(path) as image:
        return np.asarray(network_views.eight_bit(image).convert("RGB"))


def write(store: Store, folder: str | Path) -> None:
    """Writes a store of occupancies in this layout, so that Occupancy Networks' program can train on it (with
    `points_unpackbits`, as published).

    Surface points are float32.  Voxels (32³) and views are written if the store has them; without voxels, meshes are
    voxelized.  Point files have an extra array `shuffled`, which that program ignores.  The folder is written
    completely or not at all.  Raises ConfigError if the store is in another frame than `cube`, has no occupancies, or
    has rotated shapes; StorageError if the folder exists and is not empty.
    """
    if store.frame != "cube" or not len(store.arrays["occupancy"].values):
        raise ConfigError(f"{store.folder}: this layout needs occupancies in the frame 'cube', which the store lacks")
    if any(not np.array_equal(transform.rotation, np.eye(3)) for transform in store.similarities):
        raise ConfigError(f"{store.folder}: its shapes are rotated in normalization, which this layout cannot store")
    places = shape_places(store, "")
    with atomic.new_folder(folder) as root:
        for i, (place, transform) in enumerate(zip(places, store.similarities, strict=True)):
            model = root / place
            placed = {"loc": -transform.translation, "scale": np.array(1 / transform.scale)}
            points, inside = store.occupancy(i)
            occupancies = np.packbits(inside)
            archives.write(model / POINTS, points=points, occupancies=occupancies, shuffled=np.array(True), **placed)
            points, normals = store.surface(i)
            archives.write(model / CLOUD, points=points, normals=normals, **placed)
            if "images" in store.arrays:
                write_views(store.rows("images", i), store.rows("cameras", i), transform, model / VIEWS)
            if "voxels" in store.arrays:
                write_voxels(store.voxels(i), model / VOXELS)
            elif len(store.rows("faces", i)):
                write_voxels(voxelize(store.mesh(i), 32), model / VOXELS)
        kinds = sorted({place.split("/")[0] for place in places})
        for kind in kinds:
            for part in splits.SPLITS:
                if models := [places[i].split("/")[1] for i in store.select(part) if places[i].startswith(f"{kind}/")]:
                    splits.write(root / kind / f"{part}.lst", models)
        atomic.write_json(root / "metadata.yaml", {kind: {"id": kind, "name": kind} for kind in kinds})
