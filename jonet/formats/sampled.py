"""Sources whose samples exist already, in files of other programs (base class of the layouts)."""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from jonet.data.sources import Source
from jonet.data.store import Store
from jonet.errors import FormatError
from jonet.storage import identity
from jonet.storage.names import encoded, safe, unique


@dataclasses.dataclass(frozen=True)
class Sampled(Source):
    """A shape that another program sampled.  root: the data folder; place: the shape's relative path, `…/class/name`.

    A subclass implements `paths` and `shape`.
    """

    root: Path = Path()
    place: str = ""

    @property
    def file(self) -> str:
        return self._below(next(iter(self.paths.values())))

    @property
    def category(self) -> str:
        return "/".join(self.place.split("/")[-2:-1])

    @property
    def paths(self) -> dict[str, Path]:
        """The shape's files by kind; the first one is required, others may be missing."""
        raise NotImplementedError

    def mark(self) -> dict:
        """Stamps of the existing files by kind; independent of where the files are."""
        stamps = {kind: identity.stamp(path) for kind, path in self.paths.items()}
        return {kind: stamp for kind, stamp in stamps.items() if stamp}

    def unchanged(self, mark: dict) -> bool:
        return all(identity.unchanged(path, mark.get(kind, {})) for kind, path in self.paths.items())

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def in_frame(self, frame: str, wanted: str) -> None:
        """FormatError if the requested `frame` is not `wanted`, the frame of the samples."""
        if frame != wanted:
            raise FormatError(f"{self.file}: its samples are in the frame {wanted!r}, not in {frame!r}")

    def shuffled(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Rows [N, …] in random order, as stores require, by a generator of the seed and the shape's name."""
        return np.random.default_rng([seed, zlib.crc32(b"rows"), zlib.crc32(encoded(self.name))]).permutation(rows)


def places(store: Store, dataset: str) -> list[str]:
    """A unique relative path for each shape of a store, valid on every system: `<dataset>/<class>/<instance>`, or
    `<class>/<instance>` if `dataset` is "".

    Taken from the parts of the shape's name; a name of one part gets the class `shapes`.
    """
    found = []
    for name in store.names:
        parts = PurePosixPath(name).parts
        *above, kind, instance = parts if len(parts) > 1 else ("shapes", name)
        kinds = ("_".join(above) or dataset, kind) if dataset else ("_".join([*above, kind]),)
        found.append("/".join(safe(re.sub(r"[/\\]", "_", part)) for part in (*kinds, instance)))
    return unique(found)


def rows(array: np.ndarray, path: Path, name: str, width: int) -> np.ndarray:
    """An array as float32 rows [N, width]; FormatError if it has another shape.  path, name: for the message."""
    array = np.asarray(array, np.float32)
    if not array.size:
        array = array.reshape(0, width)
    if array.ndim != 2 or array.shape[1] != width:
        raise FormatError(f"{path}: {name} has shape {list(array.shape)}, but must have rows of {width} numbers")
    return array
