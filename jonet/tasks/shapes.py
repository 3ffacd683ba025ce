"""Options that choose a task's shapes and split them for training, validation and testing; the same for every task."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Literal

from jonet.data import sources, splits
from jonet.data import store as stores
from jonet.data.families import FAMILIES
from jonet.errors import ConfigError
from jonet.formats import detect, labeled_points
from jonet.geometry import mesh_files
from jonet.geometry.axes import Axis
from jonet.storage import search

NO_DATA = (
    "no data are named, and published settings are for the shapes of the papers, or yours: give --data=FOLDER "
    "(docs/reproduce.md has its tree), or a family such as --data=chair for procedural shapes"
)
STAND_IN = "chair"  # family that plans count in place of data that are not named


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Which shapes are used, and how many."""

    train: int = 192  # number of training shapes of each procedural family, 1 or more
    test: int = 24  # number of test shapes of each procedural family, 0 or more
    test_fraction: float = 0.1  # fraction of a folder without splits that is kept for testing, from 0 to below 1
    # fraction of the training shapes that is kept for validation if the data have no validation split; 0 to below 1
    val_fraction: float = 0.0
    split: str = ""  # split files, joined by commas: DeepSDF's JSON, or lists named train, test and val
    category: str = ""  # ShapeNet categories, by folder or name, joined by commas; empty: all
    # sign method of all meshes; auto: chosen by each mesh's diagnosis; fusion: every mesh is closed first
    sign: Literal["auto", "exact", "winding", "views", "fusion"] = "auto"

    up: Axis = "y"  # axis of mesh files that points up

    def __post_init__(self):
        if self.train < 1 or self.test < 0:
            raise ConfigError(f"shapes.train is {self.train} and shapes.test {self.test}, but must be at least 1 and 0")
        for name in ("test_fraction", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"shapes.{name} is {getattr(self, name)}, but must be a fraction from 0 to below 1")

    def untested(self, data: str) -> bool:
        """Whether these options certainly leave no test shape."""
        return Path(data).is_file() or (self.test == 0 and not search.matching(data)[0].exists())

    def unread(self, data: str) -> dict[str, str]:
        """Options that have no effect with such data, each with the reason."""
        families, folders = ("train", "test"), ("test_fraction", "split", "category", "up")
        if not data:
            return {}
        if Path(data).is_file():
            names, reason = (*families, *folders[:-1], "val_fraction"), f"data is one mesh, {data}"
        elif stores.is_there(data):
            names, reason = (field.name for field in dataclasses.fields(self)), f"data is the store {data}"
        elif Path(data).is_dir():
            names, reason = families, f"it counts shapes of procedural families, and data is the folder {data}"
        elif all(name.strip() in FAMILIES for name in data.split(",")):
            names, reason = folders, f"it is of a folder of meshes, and data is {data!r}"
        else:  # mistyped or deleted: `sources` and the stages report it
            return {}
        return {f"shapes.{name}": reason for name in names}

    def sources(self, data: str, seed: int) -> list:
        """The sources that `data` names: families ("chair", "chair,table"), a folder of meshes, one mesh, or a pattern
        ("scans/*.ply")."""
        found = self._found(data, seed)
        if self.up != "y":
            if samples := [source.name for source in found if not isinstance(source, sources.MeshFile)]:
                raise ConfigError(f"shapes.up is {self.up!r}, but {samples[0]} is no mesh file, and is y-up")
            found = [dataclasses.replace(source, up=self.up) for source in found]
        if not self.val_fraction or any(source.split == "val" for source in found):
            return found
        names = [source.name for source in found if source.split == "train"]
        split_of = splits.drawn(names, self.val_fraction, seed, "val") if len(names) > 1 else {}
        return [source.into(split_of.get(source.name, source.split)) for source in found]

    def _found(self, data: str, seed: int) -> list:
        if not data:
            raise ConfigError(NO_DATA)
        if Path(data).exists():
            if data in FAMILIES:
                warnings.warn(
                    f"data is {data!r}, which is taken for the {'file' if Path(data).is_file() else 'folder'} of this "
                    "name, not for the procedural family; for that, start elsewhere",
                    stacklevel=2,
                )
            if labeled_points.is_file(data):
                raise ConfigError(f"{data} is no mesh; points with occupancies are data of --task=occnet")
            if Path(data).is_file():
                return sources.discover(data)
            return detect.discover(data, self.split or None, self.category or None, self.test_fraction, seed)
        if len(places := search.matching(data)) > 1 or places[0].exists():  # a pattern, or one with ~
            files = [file for place in places for file in mesh_files.find(place)]
            return sources.of_files(files, self.test_fraction, seed)
        names = [name.strip() for name in data.split(",")]
        unknown = [name for name in names if name not in FAMILIES]
        if unknown:
            raise ConfigError(
                f"data is {data!r}, but {unknown[0]!r} is neither a file or folder here nor a procedural family "
                f"({', '.join(sorted(FAMILIES))})"
            )
        each = ["train"] * self.train + ["test"] * self.test
        return [
            sources.Procedural(name, seed=seed, index=index, split=split)
            for name in names
            for index, split in enumerate(each)
        ]
