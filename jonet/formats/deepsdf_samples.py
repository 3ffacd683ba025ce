"""The data layout of the DeepSDF program, read and written.

SdfSamples/<dataset>/<class>/<instance>.npz                pos [N, 4], neg [M, 4]: x, y, z, distance
SurfaceSamples/<dataset>/<class>/<instance>.ply            surface points, in input units
NormalizationParameters/<dataset>/<class>/<instance>.npz   offset [3], scale [1]: x' = (x + offset) · scale
train.json, test.json                                      {dataset: {class: [instance, …]}}, optional
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet.data import splits
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape
from jonet.data.store import Store
from jonet.errors import ConfigError, FormatError, MeshError
from jonet.formats.sampled import Sampled, rows
from jonet.formats.sampled import places as shape_places
from jonet.geometry import mesh_parsers
from jonet.geometry.mesh import Similarity
from jonet.storage import archives, atomic
from jonet.storage.search import glob

SAMPLES, SURFACES, SCALES = "SdfSamples", "SurfaceSamples", "NormalizationParameters"


class Samples(NamedTuple):
    """Points with distances outside [P, 4] and inside [M, 4]; dropped: number of rows that were not finite.

    ordered: whether rows may be in the order of sampling; a store must shuffle them then.
    """

    outside: np.ndarray
    inside: np.ndarray
    dropped: int
    ordered: bool


@dataclasses.dataclass(frozen=True)
class SdfSamples(Sampled):
    """A shape in this layout; place is `<dataset>/<class>/<instance>`.

    Rows that are not finite are dropped, and counted in the source's mark.  Without NormalizationParameters the
    similarity is the identity, and SurfaceSamples, which are in input units, cannot be used.
    """

    @property
    def paths(self) -> dict[str, Path]:
        kinds = {SAMPLES: "npz", SCALES: "npz", SURFACES: "ply"}
        return {folder: self.root / folder / f"{self.place}.{suffix}" for folder, suffix in kinds.items()}

    def mark(self) -> dict:
        mark = super().mark()
        with contextlib.suppress(FormatError):
            mark["dropped"] = read_samples(self.paths[SAMPLES]).dropped
        return mark

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        self.in_frame(frame, "sphere")
        samples, scales, surfaces = self.paths.values()
        found = read_samples(samples)
        sides = found.outside, found.inside
        shape = {"sdf": tuple(self.shuffled(side, seed) for side in sides) if found.ordered else sides}
        if not scales.is_file():
            return Shape(shape, Similarity())
        similarity = read_similarity(scales)
        if surfaces.is_file():
            points, normals = read_surface(surfaces)
            shape["surface_points"] = (similarity(points).astype(np.float32),)
            shape["surface_normals"] = (normals,)
        return Shape(shape, similarity)


def discover(folder: str | Path, split=None, category: str | None = None, test_fraction: float = 0.1, seed: int = 0):
    """The shapes of a data folder as sources, sorted by name.

    split: split files (`splits.chosen`).  Without them: train.json, test.json and val.json in the folder (a warning
    tells which shapes they do not name); else folders train, test and val below SdfSamples (`splits.of_folders`); else
    all shapes, of which the seed draws the fraction `test_fraction` for testing.  category: classes to take.
    A shape that a split file names is a source even if its files are missing: `store.build` lists it as skipped.
    """
    root = Path(folder)
    files = [path for path in glob(root, "*.json") if path.stem.lower() in splits.SPLITS]
    found = [] if split else glob(root / SAMPLES, "*/*/*.npz")
    places = [path.relative_to(root / SAMPLES).as_posix().removesuffix(path.suffix) for path in found]
    if split or files:
        listed = splits.chosen(split or files)
        splits.warn_unlisted(places, listed, root)
    else:
        listed = splits.of_folders(places, root, "shapes") or splits.drawn(places, test_fraction, seed)
    if not listed:
        raise FormatError(
            f"{root}: there is nothing in {SAMPLES}/<dataset>/<class>/, and no split file names any shape"
        )
    if wrong := [place for place in listed if place.count("/") != 2]:
        raise FormatError(f"{root}: {wrong[0]!r} is no <dataset>/<class>/<instance>; give a split file in JSON")
    kept = splits.categories(category, {place.split("/")[1] for place in listed})
    listed = {place: split for place, split in listed.items() if place.split("/")[1] in kept}
    names = splits.short(list(listed))
    return sorted(
        (SdfSamples(names[place], split, root, place) for place, split in listed.items()), key=lambda one: one.name
    )


def read_samples(path: Path) -> Samples:
    """The distance samples of one shape; FormatError if the file is damaged or of another kind."""
    found = archives.arrays(path, ("pos", "neg"), ("shuffled",))
    outside, inside = (rows(found[name], path, name, 4) for name in ("pos", "neg"))
    good_outside, good_inside = (side[np.isfinite(side).all(1)] for side in (outside, inside))
    dropped = len(outside) + len(inside) - len(good_outside) - len(good_inside)
    return Samples(good_outside, good_inside, dropped, "shuffled" not in found)


def read_similarity(path: Path) -> Similarity:
    """The similarity from input units to the normalized frame."""
    found = archives.arrays(path, ("offset", "scale"))
    if found["offset"].size != 3 or found["scale"].size != 1:
        raise FormatError(f"{path}: offset must be 3 numbers and scale one")
    try:
        return Similarity(float(found["scale"].ravel()[0]), translation=found["offset"])
    except MeshError as error:
        raise FormatError(f"{path}: {error}") from error


def read_surface(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Surface points [M, 3] float64 in input units, and their normals float32: [M, 3], or [0, 3] if there are none."""
    try:
        found = mesh_parsers.load(path)
    except MeshError as error:
        raise FormatError(f"{path}: {error}") from error
    normals = np.zeros((0, 3)) if found.normals is None else found.normals
    return found.vertices, normals.astype(np.float32)


def write(store: Store, folder: str | Path, dataset: str = "jonet") -> None:
    """Writes a store of distances in this layout, so that DeepSDF's program can train on it.

    Sample files have an extra array `shuffled`, which that program ignores; surface points have normals.  The folder is
    written completely or not at all.  Raises ConfigError if the store is in another frame than `sphere`, has no
    distances, or has rotated shapes; StorageError if the folder exists and is not empty.
    """
    if store.frame != "sphere" or not len(store.sdf):
        raise ConfigError(f"{store.folder}: this layout needs distances in the frame 'sphere', which the store lacks")
    if any(not np.array_equal(transform.rotation, np.eye(3)) for transform in store.similarities):
        raise ConfigError(f"{store.folder}: its shapes are rotated in normalization, which this layout cannot store")
    places = shape_places(store, dataset)
    with atomic.new_folder(folder) as root:
        for i, (place, transform) in enumerate(zip(places, store.similarities, strict=True)):
            samples, scales, surfaces = SdfSamples(place, root=root, place=place).paths.values()
            rows, outside = store.samples(i), store.counts[i, 0]
            archives.write(samples, pos=rows[:outside], neg=rows[outside:], shuffled=np.array(True))
            archives.write(scales, offset=transform.translation, scale=np.array([transform.scale]))
            points, normals = store.surface(i)
            if len(points):
                atomic.write_bytes(surfaces, _ply(transform.inverse()(points), normals), sync=False)
        for split in splits.SPLITS:
            if chosen := [places[i] for i in store.select(split)]:
                splits.write(root / f"{split}.json", chosen)


def _ply(points: np.ndarray, normals: np.ndarray) -> bytes:
    """An ASCII PLY as DeepSDF's program writes it.  Its faces, of three consecutive points each, have no meaning:
    without faces, mesh readers would drop the points."""
    columns = ["x", "y", "z", "nx", "ny", "nz"] if len(normals) else ["x", "y", "z"]
    table = np.column_stack([points, normals]) if len(normals) else points
    faces = np.arange(len(points) // 3 * 3).reshape(-1, 3)
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *(f"property double {c}" for c in columns)]
    header += [f"element face {len(faces)}", "property list uchar int vertex_index", "end_header"]
    out = io.BytesIO(("\n".join(header) + "\n").encode())
    out.seek(0, io.SEEK_END)
    np.savetxt(out, table, "%.17g")
    np.savetxt(out, faces, "3 %d %d %d")
    return out.getvalue()
