"""Where shapes come from: mesh files, procedural families, or anything else that gives a mesh or samples.

A source is small and picklable; a worker process asks it for its samples.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config
from jonet.data import families, fusion, images, meshes, sampling, voxels
from jonet.data.files import SUFFIXES
from jonet.data.meshes import Mesh, Similarity, Verdict, examine, orient
from jonet.data.sampling import Recipe, Solid
from jonet.data.splits import SPLITS, drawn, of_folders
from jonet.errors import MeshError
from jonet.storage import identity
from jonet.storage.names import encoded


class Shape(NamedTuple):
    """What a source becomes.

    rows: by the names of `parts.columns`, one array a side (outside, inside), or one. similarity: own units to the
    normalised frame. verdict: None where samples came without a mesh.
    """

    rows: dict[str, tuple[np.ndarray, ...]]
    similarity: Similarity
    verdict: Verdict | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A shape that is yet to be sampled.  name: unique in its store; split: train, test or val.

    A subclass gives `load`, or, where samples exist already, `shape`.
    """

    name: str
    split: str = "train"

    @property
    def file(self) -> str:
        """What to call it where it cannot be used."""
        return self.name

    @property
    def category(self) -> str:
        """What kind of shape it is: its family, or the folder that it lies in; "" where nothing tells."""
        return ""

    def into(self, split: str) -> Source:
        """The same source in another split."""
        other = copy.copy(self)
        object.__setattr__(other, "split", split)
        return other

    def load(self) -> Mesh:
        """The mesh in its own units."""
        raise NotImplementedError

    def mark(self) -> dict:
        """What tells what this source holds, as JSON: those of equal marks are the same shape; {} tells nothing."""
        return {}

    def unchanged(self, mark: dict) -> bool:
        """Whether a mark made earlier is this source's."""
        return mark == self.mark()

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        """The samples: a function of the mesh, the name and these settings, drawn in any process and order alike.

        sign: a method of `sampling.METHODS`, or `auto`: as the mesh's verdict has it, or `fusion`: of the closed mesh
        that `fusion.fuse` makes, which takes the mesh's place.
        Raises MeshError where the mesh has no inside that could be learned.
        """
        mesh = dataclasses.replace(self.load(), name=self.name)
        verdict = examine(mesh)
        mesh, similarity = meshes.normalize(orient(mesh, verdict), frame)
        if sign == "fusion":
            mesh, before, sign = fusion.fuse(mesh), verdict.reason, "auto"
            verdict = examine(mesh)
            verdict = dataclasses.replace(verdict, reason=f"Fused, now {verdict.reason.lower()} Before: {before}")
        mesh = Mesh(mesh.vertices.astype(np.float32), mesh.faces, name=self.name)  # as it is stored
        solid = Solid(mesh, verdict.method if sign == "auto" else sign)
        rows: dict[str, tuple[np.ndarray, ...]] = {"vertices": (mesh.vertices,), "faces": (mesh.faces,)}

        def rng(kind: str) -> np.random.Generator:
            return np.random.default_rng([seed, zlib.crc32(kind.encode()), zlib.crc32(encoded(self.name))])

        if recipe.near + recipe.uniform:
            rows["sdf"] = sampling.sdf_samples(solid, recipe, rng("sdf"), frame=frame)
        if recipe.surface:
            points, normals = sampling.surface(solid.walls, recipe.surface, rng("surface"))
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
            cameras = images.cameras(mesh, recipe.images, recipe.image_size, rng("images"))
            seen = images.render(mesh, cameras)[..., None]
            rows["images"] = (np.broadcast_to(seen, (*seen.shape[:3], recipe.image_channels)),)
            rows["cameras"] = (images.matrices(cameras),)
        return Shape(rows, similarity, verdict)


@dataclasses.dataclass(frozen=True)
class MeshFile(Source):
    """A mesh file.  root: of its data, if the first folder below it (but train, test, val) tells its kind."""

    path: Path = Path()
    root: Path | None = None

    @property
    def category(self) -> str:
        above = self.path.relative_to(self.root).parts[:-1] if self.root else ()
        return next((part for part in above if part.lower() not in SPLITS), "")

    @property
    def file(self) -> str:
        return self.name.removesuffix(self.path.suffix) + self.path.suffix

    def load(self) -> Mesh:
        return meshes.read(self.path)

    def mark(self) -> dict:
        return identity.stamp(self.path)

    def unchanged(self, mark: dict) -> bool:
        return identity.unchanged(self.path, mark)


def content(mark: dict) -> str:
    """What tells the content of a source, by its mark: the same wherever its files lie and whenever they were made."""

    def timeless(value):
        if not isinstance(value, dict):
            return value
        return {key: timeless(held) for key, held in value.items() if key not in ("modified", "changed")}

    return config.digest(timeless(mark))


@dataclasses.dataclass(frozen=True, init=False)
class Procedural(Source):
    """Shape number `index` of a procedural family, from a seed; called `<family>_<index>`."""

    family: str
    seed: int
    index: int

    def __init__(self, family: str, seed: int = 0, index: int = 0, split: str = "train"):
        values = dict(name=f"{family}_{index:04d}", split=split, family=family, seed=seed, index=index)
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def category(self) -> str:
        return self.family

    def load(self) -> Mesh:
        return families.make(self.family, self.seed, self.index)

    def mark(self) -> dict:
        return {"family": self.family, "seed": self.seed, "index": self.index}


def discover(folder, test_share: float = 0.1, seed: int = 0) -> list[MeshFile]:
    """The mesh files of a folder as sources, sorted by name; one file is one source, to train on.

    Folders `train`, `test` and `val`, in any case, are taken at their word (`splits.of_folders`; what lies beside them
    is left out, with a warning). Without them the seed picks the share `test_share` for testing, at least one file of
    two, and neither the order nor the place of files matters. Names are file names without suffix, or, where two are
    alike, paths.
    Raises MeshError if there are no mesh files.
    """
    folder = Path(folder)
    found = meshes.find(folder)
    if not found:
        raise MeshError(f"{folder}: no mesh files below it; looked for {', '.join(SUFFIXES)}")
    if folder.is_file():
        return [MeshFile(folder.stem, "train", folder)]
    paths = {path.relative_to(folder).as_posix(): path.relative_to(folder) for path in found}
    splits = {paths[place]: split for place, split in of_folders(list(paths), folder, "mesh files").items()}
    names = named(list(splits or paths.values()))
    if not splits:
        lots = drawn(names.values(), test_share, seed)
        splits = {path: lots[name] for path, name in names.items()}
    sources = [MeshFile(names[path], split, folder / path, folder) for path, split in splits.items()]
    return sorted(sources, key=lambda source: source.name)


def named(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest of file name without suffix, path without suffix and path that no other file shares."""
    forms = {path: (path.stem, path.with_suffix("").as_posix(), path.as_posix()) for path in paths}
    alike = [Counter(form) for form in zip(*forms.values(), strict=True)]
    chosen = {path: next(i for i in range(3) if i == 2 or alike[i][form[i]] == 1) for path, form in forms.items()}
    while True:
        names = {path: forms[path][i] for path, i in chosen.items()}
        count = Counter(names.values())
        if not (twice := [path for path in names if count[names[path]] > 1 and chosen[path] < 2]):
            return names
        for path in twice:  # one is called as another must be: a.ply.obj beside a.ply and a.obj
            chosen[path] += 1
