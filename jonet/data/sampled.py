"""Sources whose samples exist already, in files of other programs."""

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
    """A shape that another program sampled.  root: of its data; place: of the shape, `…/class/name`.

    A subclass gives `paths`, the files that there may be, and `shape`.
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
        """The shape's files, by what they hold; the first must be there."""
        raise NotImplementedError

    def mark(self) -> dict:
        """Stamps of the files that are there, by what they hold: their places do not matter."""
        stamps = {kind: identity.stamp(path) for kind, path in self.paths.items()}
        return {kind: stamp for kind, stamp in stamps.items() if stamp}

    def unchanged(self, mark: dict) -> bool:
        return all(identity.unchanged(path, self._stamped(mark, kind, path)) for kind, path in self.paths.items())

    def _stamped(self, mark: dict, kind: str, path: Path) -> dict:
        """A file's stamp in a mark; version 0.1.0 has [bytes, modified, crc32] by its path."""
        if (old := mark.get(self._below(path))) is not None and kind not in mark:
            return dict(zip(("bytes", "modified", "crc32"), old, strict=True))
        return mark.get(kind, {})

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def in_frame(self, frame: str, wanted: str) -> None:
        """FormatError where samples are asked for in another frame than they are in."""
        if frame != wanted:
            raise FormatError(f"{self.file}: its samples are in the frame {wanted!r}, but {frame!r} is asked for")

    def shuffled(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Rows in random order, as stores keep them."""
        return np.random.default_rng([seed, zlib.crc32(b"rows"), zlib.crc32(encoded(self.name))]).permutation(rows)


def places(store: Store, dataset: str) -> list[str]:
    """A place for each shape of a store, no two alike, that any system can have: `<dataset>/<class>/<instance>`, of its
    name's parts where it has several; without a dataset `<class>/<instance>`."""
    found = []
    for name in store.names:
        parts = PurePosixPath(name).parts
        *above, kind, instance = parts if len(parts) > 1 else ("shapes", name)
        kinds = ("_".join(above) or dataset, kind) if dataset else ("_".join([*above, kind]),)
        found.append("/".join(safe(re.sub(r"[/\\]", "_", part)) for part in (*kinds, instance)))
    return unique(found)


def rows(array: np.ndarray, path: Path, name: str, width: int) -> np.ndarray:
    """An array as rows of float32; FormatError where it has another width."""
    array = np.asarray(array, np.float32)
    if not array.size:
        array = array.reshape(0, width)
    if array.ndim != 2 or array.shape[1] != width:
        raise FormatError(f"{path}: {name} has shape {list(array.shape)}, but must have rows of {width} numbers")
    return array
