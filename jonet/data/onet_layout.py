"""The data layout of the Occupancy Networks program, read as it lies and written.

    metadata.yaml                       {category: {id, name}}
    <category>/{train,val,test}.lst     one model a line
    <category>/<model>/
      points.npz                        points [N, 3] float16, occupancies [N / 8] packed bits, loc [3], scale []
      pointcloud.npz                    points and normals [M, 3] of the surface, loc, scale
      model.binvox                      voxels [32, 32, 32]
      img_choy2016/                     views *.jpg, and cameras.npz

Points are in the frame `cube`: (x - loc) / scale of a model in its own units.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

from jonet.data import archives, images, splits
from jonet.data.meshes import Similarity, glob, is_output
from jonet.data.sampled import Sampled, rows
from jonet.data.sampled import places as shape_places
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape
from jonet.data.store import Store
from jonet.data.voxels import SIDE, packed, voxelize
from jonet.errors import ConfigError, FormatError, MeshError
from jonet.storage import atomic

POINTS, CLOUD, VOXELS, VIEWS = "points.npz", "pointcloud.npz", "model.binvox", "img_choy2016"
CAMERAS = "cameras.npz"
MOST_VOXELS = 512  # a side
MOST_PIXELS = 1 << 24  # an image
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey


@dataclasses.dataclass(frozen=True)
class Occupancies(Sampled):
    """A shape in this layout; place is `<category>/<model>`.  Without a pointcloud.npz it has no surface.

    Voxels and views are taken as they lie, where the recipe asks for any (the first `images` of them, resized).
    """

    @property
    def folder(self) -> Path:
        """Where its files lie."""
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
            seen, cameras = _seen(read_views(self.folder / VIEWS), recipe, similarity, self.folder / VIEWS)
            shape |= {"images": (seen,), "cameras": (cameras,)}
        return Shape(shape, similarity)


class Views(NamedTuple):
    """Images [V, H, W, 3] uint8 of one shape, and their cameras.

    world [V, 3, 4]: from the model's frame to the camera's; camera [V, 3, 3]: from there to pixels of a square image
    of 137.
    """

    images: np.ndarray
    world: np.ndarray
    camera: np.ndarray


def discover(folder: str | Path, split=None, category: str | None = None, test_share: float = 0.1, seed: int = 0):
    """The shapes of a data folder as sources, sorted by name.

    split: split files, as `splits.chosen` takes them (names of models, or `<category>/<model>`); without, the lists in
    each category (a warning tells what they do not name), or categories called train, test and val, or else all there
    are, of which the seed picks the share `test_share` for testing.  category: folders to take, or names that
    metadata.yaml or the papers have for them.
    A shape that a list names is a source, there or not: `store.build` lists what it cannot use.
    """
    root = Path(folder)
    models = {
        kind.name: [path.name for path in glob(kind, "*") if path.is_dir() and glob(path, "*")]
        for kind in glob(root, "*")
        if kind.is_dir() and not is_output(kind)
    }
    kept = splits.categories(category, models, read_metadata(root / "metadata.yaml"))
    there = sorted(f"{kind}/{name}" for kind in kept for name in models[kind])
    lists = {word: [path for path in find_lists(root, word) if path.parent.name in kept] for word in splits.SPLITS}
    if split:
        listed = splits.placed(splits.chosen(split), there)
        listed = {place: word for place, word in listed.items() if place.split("/")[0] in kept or "/" not in place}
    elif any(lists.values()):
        named = {word: [f"{p.parent.name}/{n}" for p in paths for n in splits.read(p)] for word, paths in lists.items()}
        listed = splits.joined(named)
        splits.warn_unlisted([place for place in there if (root / place / POINTS).is_file()], listed, root)
    else:
        listed = splits.of_folders(there, root, "models") or splits.drawn(there, test_share, seed)
    if not listed:
        raise FormatError(f"{root}: there are no <category>/<model>/ folders, and no list names any model")
    names = splits.short(list(listed))
    return sorted(
        (Occupancies(names[place], word, root, place) for place, word in listed.items()), key=lambda one: one.name
    )


def find_lists(root: Path, word: str) -> list[Path]:
    """The lists of a split in the categories of a data folder, sorted."""
    return [path for path in glob(root, "*/*.lst") if path.stem.lower() == word]


def read_metadata(path: Path) -> dict[str, str]:
    """Categories' folders by each of their names; nothing without the file."""
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(archives.text(path, 1 << 20)) or {}
        return {name.strip(): str(key) for key, about in found.items() for name in str(about["name"]).split(",")}
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"{path}: is no list of categories, {{folder: {{id, name}}}} ({error})") from error


def read_points(path: Path) -> tuple[tuple[np.ndarray, np.ndarray], Similarity, bool]:
    """Points outside and inside ([N, 3] each, as they lie, without the noise that the program adds), the way from own
    units to the frame `cube`, and whether they are in the order in which they were made."""
    found = archives.arrays(path, ("points", "occupancies"), ("loc", "scale", "shuffled"))
    kind = found["points"].dtype
    points, bits = rows(found["points"], path, "points", 3), found["occupancies"].ravel()
    if bits.dtype == np.uint8 and len(bits) == -(-len(points) // 8) != len(points):
        bits = np.unpackbits(bits)[: len(points)]
    if len(bits) != len(points):
        raise FormatError(f"{path}: {len(bits)} occupancies, packed or not, do not belong to {len(points)} points")
    points, inside = points.astype(kind if kind == np.float16 else np.float32), bits > 0
    return (points[~inside], points[inside]), _similarity(found, path), "shuffled" not in found


def read_cloud(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points of the surface and their normals, [M, 3] float32 each, in the frame `cube`."""
    found = archives.arrays(path, ("points", "normals"))
    points, normals = (rows(found[name], path, name, 3) for name in ("points", "normals"))
    if len(points) != len(normals):
        raise FormatError(f"{path}: {len(normals)} normals do not belong to {len(points)} points")
    return points, normals


def _similarity(found: dict[str, np.ndarray], path: Path) -> Similarity:
    loc, scale = np.asarray(found.get("loc", np.zeros(3)), np.float64), np.asarray(found.get("scale", 1.0), np.float64)
    try:
        return Similarity(1 / float(scale.reshape(())), translation=-loc)
    except (ValueError, ZeroDivisionError, MeshError) as error:
        raise FormatError(f"{path}: loc must be 3 numbers and scale one above 0 ({error})") from error


def read_voxels(path: str | Path) -> np.ndarray:
    """A .binvox file -> [R, R, R] bool, indexed x, y, z."""
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
    """Voxels [R, R, R] of the cube [-0.5, 0.5]³, indexed x, y, z, as a .binvox file."""
    flat = np.asarray(voxels, np.uint8).transpose(0, 2, 1).ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff([*starts, len(flat)])
    values, whole = flat[starts], lengths // 255
    runs = np.repeat(np.column_stack([values, np.full(len(values), 255)]), whole, axis=0)
    order = np.concatenate([np.repeat(starts, whole), starts])
    runs = np.concatenate([runs, np.column_stack([values, lengths % 255])])[np.argsort(order, kind="stable")]
    header = f"#binvox 1\ndim {' '.join(map(str, voxels.shape))}\ntranslate -0.5 -0.5 -0.5\nscale 1\ndata\n"
    atomic.write_bytes(path, header.encode() + runs[runs[:, 1] > 0].astype(np.uint8).tobytes(), sync=False)


def read_views(folder: str | Path) -> Views:
    """All views of a model, from its `img_choy2016` folder; grey images become coloured."""
    folder = Path(folder)
    paths = glob(folder, "*.jpg")
    names = [f"{kind}_mat_{i}" for kind in ("world", "camera") for i in range(len(paths))]
    found = archives.arrays(folder / CAMERAS, names)
    seen = [_image(path) for path in paths]
    if len({image.shape for image in seen}) != 1:
        raise FormatError(f"{folder}: holds {len(seen)} images of {len({image.shape for image in seen})} sizes")
    world, camera = (np.stack([found[f"{kind}_mat_{i}"] for i in range(len(paths))]) for kind in ("world", "camera"))
    if world.shape[1:] != (3, 4) or camera.shape[1:] != (3, 3):
        raise FormatError(f"{folder}/{CAMERAS}: matrices are {world.shape[1:]} and {camera.shape[1:]}")
    return Views(np.stack(seen), world, camera)


def _seen(views: Views, recipe: Recipe, way: Similarity, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Views as a store keeps them: images [V, H, W, channels], and where the cameras stand in the frame `cube`."""
    if len(views.images) < recipe.images:
        raise FormatError(f"{folder}: holds {len(views.images)} views, but the recipe asks for {recipe.images}")
    seen = images.resized(views.images[: recipe.images], recipe.image_size)
    if recipe.image_channels == 1:
        seen = np.round(seen @ np.array(LUMA))[..., None]
    turn, move = np.split(views.world[: recipe.images].astype(np.float64), [3], axis=2)
    move = way.scale * (move - turn @ way.translation[:, None])  # lengths in the camera's space grow with the shape
    return seen.astype(np.uint8), np.concatenate([turn, move], axis=2)


def write_views(seen: np.ndarray, cameras: np.ndarray, way: Similarity, folder: Path) -> None:
    """A store's images [V, H, W, 1 or 3] and cameras [V, 3, 4] as views of a model; way: to the frame `cube`."""
    matrices = {}
    for i, (image, camera) in enumerate(zip(seen, cameras.astype(np.float64), strict=True)):
        picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
        with atomic.open_file(folder / f"{i:03}.jpg", sync=False) as file:
            picture.save(file, "JPEG", quality=95)
        turn, move = np.split(camera, [3], axis=1)
        matrices[f"world_mat_{i}"] = np.hstack([turn, move / way.scale + turn @ way.translation[:, None]])
        matrices[f"camera_mat_{i}"] = images.intrinsics(137)  # the published pixels, whatever the size
    archives.write(folder / CAMERAS, **matrices)


def _of_side(voxels: np.ndarray, path: Path) -> np.ndarray:
    if len(voxels) != SIDE:
        raise FormatError(f"{path}: holds {len(voxels)}³ voxels, but networks are given {SIDE}³")
    return voxels


def _image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it is {image.width} x {image.height} pixels large")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: cannot be read as an image ({error})") from error


def write(store: Store, folder: str | Path) -> None:
    """A store of occupancies in this layout, so that the program trains on it (with `points_unpackbits`, as published).

    Surfaces are written in float32, voxels of 32³ where there are any, or meshes to make them of, and views where there
    are any; the points carry the word `shuffled`, which the program does not read.  The folder is there when all is
    written, or not at all.  Raises ConfigError where the store is in another frame, has no occupancies, or turned its
    shapes, and StorageError where the folder is not empty.
    """
    if store.frame != "cube" or not len(store.arrays["occupancy"].values):
        raise ConfigError(f"{store.folder}: this layout holds occupancies in the frame 'cube', which the store lacks")
    if any(not np.array_equal(way.rotation, np.eye(3)) for way in store.similarities):
        raise ConfigError(f"{store.folder}: its shapes were turned to be normalised, which this layout cannot say")
    places = shape_places(store, "")
    with atomic.new_folder(folder) as made:
        for i, (place, way) in enumerate(zip(places, store.similarities, strict=True)):
            model = made / place
            placed = {"loc": -way.translation, "scale": np.array(1 / way.scale)}
            points, inside = store.occupancy(i)
            occupancies = np.packbits(inside)
            archives.write(model / POINTS, points=points, occupancies=occupancies, shuffled=np.array(True), **placed)
            points, normals = store.surface(i)
            archives.write(model / CLOUD, points=points, normals=normals, **placed)
            if "images" in store.arrays:
                write_views(store.rows("images", i), store.rows("cameras", i), way, model / VIEWS)
            if "voxels" in store.arrays:
                write_voxels(store.voxels(i), model / VOXELS)
            elif len(store.rows("faces", i)):
                write_voxels(voxelize(store.mesh(i), 32), model / VOXELS)
        kinds = sorted({place.split("/")[0] for place in places})
        for kind in kinds:
            for word in splits.SPLITS:
                if models := [places[i].split("/")[1] for i in store.select(word) if places[i].startswith(f"{kind}/")]:
                    splits.write(made / kind / f"{word}.lst", models)
        atomic.write_json(made / "metadata.yaml", {kind: {"id": kind, "name": kind} for kind in kinds})
