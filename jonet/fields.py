"""Fields of single shapes that need no trained network, and the .npz file that stores one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np

from jonet.config import changed
from jonet.errors import CheckpointError, ConfigError, FormatError, InputError, MeshError
from jonet.geometry import units
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.surfaces import extraction
from jonet.networks import spline, spline_levels
from jonet.networks.field import Field
from jonet.networks.input_field import InputField
from jonet.networks.spline_levels import Level
from jonet.settings.surfaces import Surfaces
from jonet.storage import archives, atomic
from jonet.storage.names import unique
from jonet.wording import counted

VERSION = 1  # of the file's format
VALID = 0.1  # distance from the surface up to which distances hold everywhere; far from the cube they are lower bounds
SUFFIX = ".npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Spline:
    """One shape: signed distances as a sum of splines on nested grids (`networks.spline`).

    name: of the shape.  similarity: input units → normalized frame.  levels: coefficients, coarse to fine.  box [2, 3]:
    cube in the normalized frame that holds the surface.  error: mean of |f - d| / (|d| + 0.01) over samples that were
    not fitted, in the normalized frame.  closed: of a point cloud, the fraction of the surface that is far from all
    points, where holes were closed; None for shapes with distances.  unit: the input unit, a key of
    `geometry.units.METERS`, if it is known.
    """

    name: str
    similarity: Similarity
    levels: tuple[Level, ...]
    box: np.ndarray
    error: float
    closed: float | None = None
    unit: str | None = None

    @property
    def num_parameters(self) -> int:
        """Count of the coefficients."""
        return spline_levels.count(self.levels)

    @property
    def resolution(self) -> int:
        """Cells a side of the finest grid."""
        return self.levels[-1].resolution

    def field(self) -> Field:
        """The shape as a function in the normalized frame."""
        return spline.field(self.levels, self.box)

    def save(self, path: str | Path, *, sync: bool = True) -> None:
        """Writes one .npz that `load` reads.  sync: flush to disk, as for `atomic.open_file`."""
        arrays: dict[str, Any] = {"version": VERSION, "name": self.name, "similarity": self.similarity.as_array()}
        arrays |= {"box": np.asarray(self.box, np.float32), "error": np.float64(self.error)}
        if self.closed is not None:
            arrays["closed"] = np.float64(self.closed)
        if self.unit is not None:
            arrays["unit"] = self.unit
        arrays |= spline_levels.to_arrays(self.levels)
        with atomic.open_file(path, sync=sync) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: str | Path) -> Spline:
        """The shape of a file that `save` wrote; CheckpointError if it is damaged or has other contents."""
        path = Path(path)
        try:
            arrays = archives.arrays(path, ("version",), None, archives.NUMBERS + archives.WORDS)
        except FormatError as error:
            raise CheckpointError(str(error)) from error
        if arrays["version"].size != 1 or arrays["version"] != VERSION:
            raise CheckpointError(
                f"{path} has another format of fields than {VERSION}, which this version of jonet reads"
            )
        if missing := [name for name in ("name", "similarity", "box", "error") if name not in arrays]:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}, which a field has")
        try:
            wrong = [name for name, array in arrays.items() if (array.dtype.kind == "U") != (name in ("name", "unit"))]
            if wrong:
                raise ValueError(f"{min(wrong)} is of type {arrays[min(wrong)].dtype}")
            levels = spline_levels.from_arrays(arrays)
            similarity = Similarity.from_array(arrays["similarity"].reshape(13))
            box = arrays["box"].astype(np.float32).reshape(2, 3)
            if not (np.isfinite(box).all() and (box[0] < box[1]).all()):
                raise ValueError("the box is empty or not finite")
            name, error = str(arrays["name"].reshape(())), float(arrays["error"].reshape(()))
            closed = float(arrays["closed"].reshape(())) if "closed" in arrays else None
            if not 0 <= error < np.inf or not 0 <= (closed or 0.0) <= 1:
                raise ValueError(f"error is {error:g} and closed is {closed}")
            unit = str(arrays["unit"].reshape(())) if "unit" in arrays else None
            units.check(unit)
            return Spline(name, similarity, levels, box, error, closed, unit)
        except (ValueError, KeyError, MeshError, ConfigError) as error:
            raise CheckpointError(f"{path}: its field is damaged ({archives.brief(error)})") from error


class Fields(Sequence[InputField]):
    """Shapes as functions of points in input units, each of its own size; what `jonet.represent` returns.

    fields[i] is one shape (by number or name), an `InputField`; fields[2:5] are some of them.
    """

    def __init__(self, splines: Sequence[Spline]):
        self.splines = tuple(splines)

    def __repr__(self) -> str:
        count = sum(each.num_parameters for each in self.splines)
        return f"Fields({counted(len(self), 'shape')}, signed distances in input units, {count:,} coefficients)"

    def __len__(self) -> int:
        return len(self.splines)

    @overload
    def __getitem__(self, index: int | str) -> InputField: ...
    @overload
    def __getitem__(self, index: slice) -> Fields: ...
    def __getitem__(self, index):
        """One shape by its number or name, or several by a slice."""
        if isinstance(index, slice):
            return Fields(self.splines[index])
        if isinstance(index, str):
            if index not in self.names:
                some = ", ".join(self.names[:5]) + (", …" if len(self) > 5 else "")
                raise InputError(f"no field is named {index!r}; the names are {some}")
            index = self.names.index(index)
        one = self.splines[index]
        return InputField(one.field(), one.similarity, VALID)

    def __iter__(self) -> Iterator[InputField]:
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the shapes."""
        return tuple(each.name for each in self.splines)

    @property
    def units(self) -> tuple[str | None, ...]:
        """The input unit of each shape, a key of `geometry.units.METERS`, None where it is not known."""
        return tuple(each.unit for each in self.splines)

    @property
    def errors(self) -> np.ndarray:
        """[B] mean of |f - d| / (|d| + 0.01) over samples that were not fitted, in the normalized frame."""
        return np.array([each.error for each in self.splines])

    def extract(self, resolution: int = 256, **settings) -> list[Mesh]:
        """The surfaces as closed meshes in input units.

        resolution: grid cells a side of the cube that holds each.  settings: others of `settings.surfaces.Surfaces`,
        such as faces=2000.  Raises ConfigError for impossible ones.
        """
        config = dataclasses.asdict(changed(Surfaces(), {"resolution": resolution, **settings}))
        meshes = (cast(Mesh, extraction.extract(each.field(), **config)) for each in self.splines)
        pairs = zip(self.splines, meshes, strict=True)
        return [dataclasses.replace(each.similarity.inverse().apply(mesh), name=each.name) for each, mesh in pairs]

    def save(self, folder: str | Path) -> None:
        """Writes a file NAME.npz for each shape into a folder; files of the same names are replaced."""
        folder = Path(folder)
        for each, name in zip(self.splines, unique(self.names), strict=True):
            each.save(folder / f"{name}{SUFFIX}")

    @staticmethod
    def load(path: str | Path) -> Fields:
        """The fields of a folder, sorted by name, or of one file.

        Raises CheckpointError if a file is damaged, or if there is none.
        """
        path = Path(path)
        files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not files:
            raise CheckpointError(f"{path} contains no fields, which are files *{SUFFIX}")
        return Fields([Spline.load(file) for file in files])
