"""Where a task's shapes come from, and the store they are packed into: the same for every task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jonet.data import formats, sources, splits
from jonet.data.families import FAMILIES
from jonet.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Which shapes, and how many."""

    train: int = 192  # shapes to train on, of procedural families (of each)
    test: int = 24  # shapes never trained on (of each family)
    test_share: float = 0.1  # share of a flat folder that is kept for testing
    val_share: float = 0.0  # share of the training shapes that is kept for validation where the data name none
    split: str = ""  # split files: DeepSDF's JSON, or lists named train, test and val, joined by commas
    category: str = ""  # of ShapeNet, by folder or name, joined by commas
    # how inside is told: as each mesh's verdict has it, or one way for all; fusion closes every mesh first
    sign: Literal["auto", "exact", "winding", "views", "fusion"] = "auto"

    def __post_init__(self):
        if self.train < 1 or self.test < 0:
            raise ConfigError(f"shapes.train is {self.train} and shapes.test {self.test}: at least 1 and 0 are needed")
        for name in ("test_share", "val_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"shapes.{name} is {getattr(self, name)}, but it is a share from 0 to below 1")

    def untested(self, data: str) -> bool:
        """Whether these options leave no shape to test with, as far as they tell."""
        return Path(data).is_file() or (not Path(data).exists() and self.test == 0)

    def unread(self, data: str) -> dict[str, str]:
        """Options that are not read with such data, each with the reason."""
        families, folders = ("train", "test"), ("test_share", "split", "category")
        if Path(data).is_file():
            names, reason = (*families, *folders, "val_share"), f"data is one mesh, {data}"
        elif Path(data).is_dir():
            names, reason = families, f"it counts shapes of procedural families, and data is the folder {data}"
        elif all(name.strip() in FAMILIES for name in data.split(",")):
            names, reason = folders, f"it is of a folder of meshes, and data is {data!r}"
        else:  # mistyped, or not there any more, which `sources` and the stages say
            return {}
        return {f"shapes.{name}": reason for name in names}

    def sources(self, data: str, seed: int) -> list:
        """The sources that `data` names: families ("chair", "chair,table"), a folder of meshes or one mesh."""
        found = self._found(data, seed)
        if not self.val_share or any(source.split == "val" for source in found):
            return found
        names = [source.name for source in found if source.split == "train"]
        lots = splits.drawn(names, self.val_share, seed, "val") if len(names) > 1 else {}
        return [source.into(lots.get(source.name, source.split)) for source in found]

    def _found(self, data: str, seed: int) -> list:
        if Path(data).exists():
            if Path(data).is_file():
                return sources.discover(data)
            return formats.discover(data, self.split or None, self.category or None, self.test_share, seed)
        names = [name.strip() for name in data.split(",")]
        unknown = [name for name in names if name not in FAMILIES]
        if unknown:
            raise ConfigError(
                f"data is {data!r}, but {unknown[0]!r} is neither a file or folder here nor a family "
                f"({', '.join(sorted(FAMILIES))})"
            )
        lots = ["train"] * self.train + ["test"] * self.test
        return [
            sources.Procedural(name, seed=seed, index=index, split=split)
            for name in names
            for index, split in enumerate(lots)
        ]
