"""Sources whose samples exist already, in files of other programs."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from jonet.data.sources import Source
from jonet.data.store import Store
from jonet.errors import FormatError


@dataclasses.dataclass(frozen=True)
class Sampled(Source):
    """A shape that another program sampled.  root: of its data; place: of the shape, `…/class/name`.

    A subclass gives `paths`, the files that there may be, and `shape`.
    """

    root: Path = Path()
    place: str = ""

    @property
    def file(self) -> str:
        return self.paths[0].relative_to(self.root).as_posix()

    @property
    def category(self) -> str:
        return "/".join(self.place.split("/")[-2:-1])

    @property
    def paths(self) -> tuple[Path, ...]:
        """The shape's files; the first must be there."""
        raise NotImplementedError

    def mark(self) -> dict:
        return {key: [*_stat(path), zlib.crc32(path.read_bytes())] for key, path in self._there().items()}

    def unchanged(self, mark: dict) -> bool:
        """Whether each file is as long as it was, and as old, or else has the same bytes."""
        found = self._there()
        if found.keys() != {key for key in mark if key != "dropped"}:
            return False
        for key, path in found.items():
            size, modified = _stat(path)
            if size != mark[key][0]:
                return False
            if modified != mark[key][1] and zlib.crc32(path.read_bytes()) != mark[key][2]:
                return False
        return True

    def in_frame(self, frame: str, wanted: str) -> None:
        """FormatError where samples are asked for in another frame than they are in."""
        if frame != wanted:
            raise FormatError(f"{self.file}: its samples are in the frame {wanted!r}, but {frame!r} is asked for")

    def shuffled(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Rows in random order, as stores keep them."""
        return np.random.default_rng([seed, zlib.crc32(b"rows"), zlib.crc32(self.name.encode())]).permutation(rows)

    def _there(self) -> dict[str, Path]:
        return {path.relative_to(self.root).as_posix(): path for path in self.paths if path.is_file()}


def places(store: Store, dataset: str) -> list[str]:
    """A place `<dataset>/<class>/<instance>` for each shape of a store, its name's parts where it has several."""
    found = []
    for name in store.names:
        *above, kind, instance = ["shapes", *PurePosixPath(name).parts][-max(2, name.count("/") + 1) :]
        found.append(f"{'_'.join(above) or dataset}/{kind}/{instance}")
    return found


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def rows(array: np.ndarray, path: Path, name: str, width: int) -> np.ndarray:
    """An array as rows of float32; FormatError where it has another width."""
    array = np.asarray(array, np.float32)
    if not array.size:
        array = array.reshape(0, width)
    if array.ndim != 2 or array.shape[1] != width:
        raise FormatError(f"{path}: {name} has shape {list(array.shape)}, but must have rows of {width} numbers")
    return array
