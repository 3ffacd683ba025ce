"""Sources of shapes for stores: mesh files, procedural families, or subclasses that give a mesh or samples.

A source is small and picklable: it is sent to a worker process, which calls its `shape` to sample it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config
from jonet.data import families, sampling
from jonet.data.sampling import Recipe, Solid
from jonet.data.splits import SPLITS, drawn, of_folders
from jonet.errors import MeshError
from jonet.geometry import axes, fusion, mesh_files, voxels
from jonet.geometry.diagnosis import MeshDiagnosis, diagnose, orient
from jonet.geometry.mesh import Mesh, Similarity, check, normalize
from jonet.geometry.mesh_parsers import SUFFIXES
from jonet.rendering import network_views
from jonet.storage import identity
from jonet.storage.names import encoded


class Shape(NamedTuple):
    """The samples of a source.

    rows: arrays by the names of `shards.columns`: two for arrays with sides (outside, inside), else one.
    similarity: input units to the normalized frame.  diagnosis: None if samples came without a mesh.
    """

    rows: dict[str, tuple[np.ndarray, ...]]
    similarity: Similarity
    diagnosis: MeshDiagnosis | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A shape to be sampled.  name: unique in its store; split: train, test or val.

    A subclass implements `load`, or `shape` if samples exist already; and `mark`, so that changes are noticed.
    """

    name: str
    split: str = "train"

    @property
    def turn(self) -> Similarity | None:
        """The rotation from the axes of the source to y-up; None for none."""
        return None

    @property
    def file(self) -> str:
        """The name used in messages if it cannot be used."""
        return self.name

    @property
    def category(self) -> str:
        """The category of the shape: its family, or a folder above its file; "" if unknown."""
        return ""

    def into(self, split: str) -> Source:
        """The same source in another split."""
        other = copy.copy(self)  # not dataclasses.replace: subclasses may have another __init__
        object.__setattr__(other, "split", split)
        return other

    def load(self) -> Mesh:
        """The mesh in input units."""
        raise NotImplementedError

    def mark(self) -> dict:
        """A fingerprint of the source's content, as JSON: equal marks mean equal shapes; {} means unknown."""
        return {}

    def unchanged(self, mark: dict) -> bool:
        """Whether the source still has the content of an earlier mark."""
        return mark == self.mark()

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        """Samples the shape: a function of the mesh, the name and these settings, whatever process calls it and when.

        sign: a method of `sampling.METHODS`; `auto`: the one of the mesh's diagnosis; `fusion`: replace the mesh by the
        watertight one of `fusion.fuse` first.
        Raises MeshError if the mesh has no inside that could be learned.
        """
        recipe = recipe.of(self.split)
        mesh = dataclasses.replace(self.load(), name=self.name)
        diagnosis = diagnose(mesh)
        if self.turn is not None:
            mesh = self.turn.apply(mesh)
        mesh, similarity = normalize(orient(mesh, diagnosis), frame)
        if self.turn is not None:
            similarity = similarity @ self.turn
        if sign == "fusion":
            mesh, before, sign = fusion.fuse(mesh), diagnosis.reason, "auto"
            diagnosis = diagnose(mesh)
            diagnosis = dataclasses.replace(diagnosis, reason=f"Fused, now {diagnosis.reason.lower()} Before: {before}")
        mesh = Mesh(mesh.vertices.astype(np.float32), mesh.faces, name=self.name)  # sample the mesh that is stored
        solid = Solid(mesh, diagnosis.method if sign == "auto" else sign)
        rows: dict[str, tuple[np.ndarray, ...]] = {"vertices": (mesh.vertices,), "faces": (mesh.faces,)}

        # One generator per kind of samples: a recipe with more of one kind does not change the others.
        def rng(kind: str) -> np.random.Generator:
            return np.random.default_rng([seed, zlib.crc32(kind.encode()), zlib.crc32(encoded(self.name))])

        if recipe.near + recipe.uniform:
            rows["sdf"] = sampling.sdf_samples(solid, recipe, rng("sdf"), frame=frame)
        if recipe.surface:
            points, normals = sampling.surface(solid.boundary_surface, recipe.surface, rng("surface"))
            rows |= {"surface_points": (points,), "surface_normals": (normals,)}
        if recipe.occupancies:
            points, inside = sampling.occupancies(
                solid, recipe.occupancies, rng("occupancy"), recipe.padding, dtype=np.float16
            )
            rows["occupancy"] = points[~inside], points[inside]
        if recipe.near_occupancies:
            points, inside = sampling.near_occupancies(
                solid, recipe.near_occupancies, rng("occupancy_near"), recipe.sigma, dtype=np.float16
            )
            rows["occupancy_near"] = points[~inside], points[inside]
        if recipe.voxels != "none":
            grid = voxels.voxelize(mesh, voxels.SIDE, recipe.voxels, rng("voxels"), solid.inside)
            rows["voxels"] = (voxels.packed(grid)[None],)
        if recipe.images:
            cameras = network_views.cameras(mesh, recipe.images, recipe.image_size, rng("images"))
            seen = network_views.render(mesh, cameras)[..., None]
            rows["images"] = (np.broadcast_to(seen, (*seen.shape[:3], recipe.image_channels)),)
            rows["cameras"] = (network_views.matrices(cameras),)
        return Shape(rows, similarity, diagnosis)


@dataclasses.dataclass(frozen=True)
class MeshFile(Source):
    """A mesh file.  root: the data folder, if the first folder below it (except train, test, val) is the category.

    up: the axis that points up in the file, a key of `axes.UP`.
    """

    path: Path = Path()
    root: Path | None = None
    up: str = "y"

    @property
    def turn(self) -> Similarity | None:
        return None if self.up == "y" else axes.upright(self.up)

    @property
    def category(self) -> str:
        above = self.path.relative_to(self.root).parts[:-1] if self.root else ()
        return next((part for part in above if part.lower() not in SPLITS), "")

    @property
    def file(self) -> str:
        return self.name.removesuffix(self.path.suffix) + self.path.suffix

    def load(self) -> Mesh:
        return mesh_files.read(self.path)

    def mark(self) -> dict:
        return identity.stamp(self.path) | ({} if self.up == "y" else {"up": self.up})

    def unchanged(self, mark: dict) -> bool:
        return mark.get("up", "y") == self.up and identity.unchanged(self.path, mark)


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory(Source):
    """A mesh that is in memory already, in input units."""

    mesh: Mesh = dataclasses.field(default_factory=lambda: Mesh(np.zeros((0, 3)), np.zeros((0, 3))))

    def load(self) -> Mesh:
        return check(self.mesh)

    def mark(self) -> dict:
        found = hashlib.sha256(self.mesh.vertices.tobytes() + self.mesh.faces.tobytes())
        return {"sha256": found.hexdigest()}


def content(mark: dict) -> str:
    """A digest of a source's mark without file times: equal for equal content, whenever the files were written."""

    def timeless(value):
        if not isinstance(value, dict):
            return value
        return {key: timeless(held) for key, held in value.items() if key not in ("modified", "changed")}

    return config.digest(timeless(mark))


@dataclasses.dataclass(frozen=True, init=False)
class Procedural(Source):
    """Shape number `index` of a procedural family under a seed; its name is `<family>_<index>`."""

    family: str
    seed: int
    index: int

    def __init__(self, family: str, seed: int = 0, index: int = 0, split: str = "train"):
        values = dict(name=f"{family}_{index:04d}", split=split, family=family, seed=seed, index=index)
        for key, value in values.items():  # the dataclass is frozen
            object.__setattr__(self, key, value)

    @property
    def category(self) -> str:
        return self.family

    def load(self) -> Mesh:
        return families.make(self.family, self.seed, self.index)

    def mark(self) -> dict:
        return {"family": self.family, "seed": self.seed, "index": self.index}


def discover(folder, test_fraction: float = 0.1, seed: int = 0) -> list[MeshFile]:
    """The mesh files of a folder as sources, sorted by name; a single file is one source in the split train.

    Folders named `train`, `test` and `val`, in any case, define the splits (`splits.of_folders`; files outside of them
    are left out, with a warning).  Otherwise the seed draws the fraction `test_fraction` for testing, at least one file
    of two; the draw depends on names only, not on the order or location of files.  Names are file names without
    suffix, or paths where these are not unique.
    Raises MeshError if there are no mesh files.
    """
    folder = Path(folder)
    found = mesh_files.find(folder)
    if not found:
        raise MeshError(f"{folder}: no mesh files below it; looked for {', '.join(SUFFIXES)}")
    if folder.is_file():
        return of_files([folder])
    paths = {path.relative_to(folder).as_posix(): path.relative_to(folder) for path in found}
    splits = {paths[place]: split for place, split in of_folders(list(paths), folder, "mesh files").items()}
    names = named(list(splits or paths.values()))
    if not splits:
        split_of = drawn(names.values(), test_fraction, seed)
        splits = {path: split_of[name] for path, name in names.items()}
    sources = [MeshFile(names[path], split, folder / path, folder) for path, split in splits.items()]
    return sorted(sources, key=lambda source: source.name)


def of_files(paths: Sequence[Path], test_fraction: float = 0.0, seed: int = 0) -> list[MeshFile]:
    """Mesh files as sources, sorted by name, split as by `discover`; a single one is in the split train."""
    names = named(paths)
    split_of = drawn(names.values(), test_fraction, seed)
    sources = [MeshFile(name, split_of[name], path) for path, name in names.items()]
    return sorted(sources, key=lambda source: source.name)


def named(paths: Sequence[Path]) -> dict[Path, str]:
    """A unique name for each path: the shortest of file name without suffix, path without suffix, and path that no
    other file has."""
    forms = {path: (path.stem, path.with_suffix("").as_posix(), path.as_posix()) for path in paths}
    counts = [Counter(form) for form in zip(*forms.values(), strict=True)]
    chosen = {path: next(i for i in range(3) if i == 2 or counts[i][form[i]] == 1) for path, form in forms.items()}
    while True:
        names = {path: forms[path][i] for path, i in chosen.items()}
        count = Counter(names.values())
        if not (twice := [path for path in names if count[names[path]] > 1 and chosen[path] < 2]):
            return names
        for path in twice:  # the short form of one is the long form of another: a.ply.obj next to a.ply and a.obj
            chosen[path] += 1
