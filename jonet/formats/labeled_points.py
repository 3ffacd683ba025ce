"""Points with occupancies as the data of one shape, in a file or in memory, without a mesh.

    points.npz     points [N, 3] and occupancies [N] of 0 and 1, or packed bits as in `onet_samples`
    points.csv     rows x, y, z, occupancy, separated by commas; the first row may be a header

The frame is the box of the points: its longest side becomes that of the cube in which networks are evaluated.  A file
of Occupancy Networks' program has its own frame, `loc` and `scale`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jonet.data.sampling import FRAMES, Recipe
from jonet.data.sources import Shape, Source
from jonet.errors import FormatError, MeshError
from jonet.formats import onet_samples
from jonet.formats.sampled import Sampled
from jonet.geometry.mesh import Similarity
from jonet.storage import archives

SUFFIXES = (".npz", ".csv")
LARGEST = 1 << 30  # bytes of a CSV file
SIDE = 2 * FRAMES["cube"]  # of the cube in the frame


@dataclasses.dataclass(frozen=True)
class PointsFile(Sampled):
    """The points of a file."""

    @classmethod
    def of(cls, path: str | Path) -> PointsFile:
        """The source of a file, named as the file without its suffix; all of it is for training."""
        path = Path(path)
        return cls(path.stem, "train", path.parent, path.name)

    @property
    def paths(self) -> dict[str, Path]:
        return {"points": self.root / self.place}

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        self.in_frame(frame, "cube")
        points, inside, similarity = read(self.paths["points"])
        sides = (self.shuffled(points[side], seed) for side in (~inside, inside))
        return Shape({"occupancy": tuple(sides)}, similarity)


@dataclasses.dataclass(frozen=True, eq=False)
class PointsInMemory(Source):
    """Points [N, 3] in input units, and whether each is inside [N]; checked (`labels`)."""

    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))
    inside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))

    def mark(self) -> dict:
        return {"sha256": hashlib.sha256(self.points.tobytes() + self.inside.tobytes()).hexdigest()}

    def shape(self, recipe: Recipe, *, seed: int, frame: str, sign: str) -> Shape:
        similarity = of_box(self.points)
        order = np.random.default_rng(seed).permutation(len(self.points))
        points, inside = similarity(self.points[order]), self.inside[order]
        return Shape({"occupancy": (points[~inside], points[inside])}, similarity)


def is_file(data: str) -> bool:
    """Whether `data` is an existing file of labeled points, by its suffix."""
    return Path(data).suffix.lower() in SUFFIXES and Path(data).is_file()


def read(path: Path) -> tuple[np.ndarray, np.ndarray, Similarity]:
    """Points [N, 3] in the frame `cube`, whether each is inside [N] bool, and the similarity from input units to it.

    Raises FormatError for arrays of another shape, and for occupancies that are not 0 or 1.
    """
    if path.suffix.lower() == ".csv":
        points, inside = _table(path)
    else:
        found = archives.arrays(path, ("points", "occupancies"), ("loc", "scale", "shuffled"))
        if found.keys() & {"loc", "scale"}:
            (outside, within), similarity, _ = onet_samples.read_points(path)
            return np.concatenate([outside, within]), np.arange(len(outside) + len(within)) >= len(outside), similarity
        points, inside = labels(found["points"], found["occupancies"], str(path))
    similarity = of_box(points)
    return similarity(points), inside, similarity


def labels(points: Any, occupancies: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] float64 and whether each is inside [N] bool; FormatError if arrays are not so.

    occupancies: [N] (or [N, 1]) numbers 0 and 1 or bools, or packed bits, uint8 [⌈N / 8⌉].  where: for messages.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu" or not len(points):
        raise FormatError(f"{where}: points are {points.dtype} {list(points.shape)}, but must be numbers [N, 3]")
    points = points.astype(np.float64)
    if not np.isfinite(points).all():
        raise FormatError(f"{where}: {np.count_nonzero(~np.isfinite(points).all(1))} points are not finite")
    return points, onet_samples.labels(np.asarray(occupancies), len(points), where)


def of_box(points: np.ndarray) -> Similarity:
    """The similarity that takes the box of points [N, 3] into the middle of the cube, with its longest side the cube's.

    Raises MeshError if all points coincide.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    if not (side := float((high - low).max())) > 0:
        raise MeshError("all points coincide, so they have no size")
    return Similarity(SIDE / side, translation=-(low + high) / 2)


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels of a CSV file."""
    lines = [line for line in archives.text(path, LARGEST).splitlines() if line.strip()]
    if lines and not _numbers(lines[0]):
        lines = lines[1:]
    try:
        rows = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.zeros((0, 4))
    except ValueError as error:
        raise FormatError(f"{path}: is no table of numbers separated by commas ({error})") from error
    if rows.shape[1] != 4:
        raise FormatError(f"{path}: has {rows.shape[1]} columns, but must have four: x, y, z, occupancy")
    return labels(rows[:, :3], rows[:, 3], str(path))


def _numbers(line: str) -> bool:
    try:
        return bool([float(word) for word in line.split(",")])
    except ValueError:
        return False
