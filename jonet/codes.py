"""Latent codes of shapes, and the .npz file that stores them."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jonet.errors import CheckpointError, FormatError, InputError, MeshError
from jonet.geometry import units
from jonet.geometry.mesh import Similarity
from jonet.storage import archives, atomic
from jonet.wording import counted

VERSION = 2  # of the file's format
TUPLES = ("names", "similarities", "sources", "units")  # fields that are tuples, not arrays


class Fit(NamedTuple):
    """How well one code was fitted, see `Codes`."""

    residual: float
    inlier_fraction: float
    converged: bool
    out_of_distribution: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """The latent codes of B shapes of one network, and how well each was fitted.

    values [B, L] float32.  names: of the shapes.  similarities: input units → normalized frame, one per shape, or None.
    residual [B]: mean clamped error of the fit.  inlier_fraction [B]: fraction of the observations with an error below
    0.01 of the normalized frame.  converged [B]: whether the loss had stopped falling.  out_of_distribution [B]:
    whether the shape is unlike the training shapes (the code's Mahalanobis distance or the residual is beyond the
    training codes' 99th percentile).  unseen [B]: of clouds, the fraction of the surface that is far from all points,
    nan where it was not measured.  network: digest of the codes' network (`Model.digest`), None if unknown; other
    networks refuse the codes.  sources: for training codes, digests of each shape's content (`Store.contents`).
    units: of the input units, keys of `geometry.units.METERS`, "" where a unit is not known; None if none is.
    """

    values: np.ndarray
    names: tuple[str, ...]
    similarities: tuple[Similarity, ...] | None = None
    residual: np.ndarray | None = None
    inlier_fraction: np.ndarray | None = None
    converged: np.ndarray | None = None
    out_of_distribution: np.ndarray | None = None
    unseen: np.ndarray | None = None
    network: str | None = None
    sources: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        count, length = np.shape(self.values)
        parts = [counted(count, "shape"), f"{length}-d"]
        if self.converged is not None:
            parts.append("fitted")
        if self.similarities is not None:
            parts.append("with similarities from input units")
        return f"Codes({', '.join(parts)})"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index) -> Codes:
        """A batch of the codes selected by an integer or name (one code), a slice, or a list of integers or names."""
        if isinstance(index, str):
            index = self._indices([index])
        elif isinstance(index, list) and any(isinstance(i, str) for i in index):
            index = self._indices(index)
        # one code of many is taken in constant time
        rows = (
            [range(len(self))[index]]
            if isinstance(index, numbers.Integral)
            else np.atleast_1d(np.arange(len(self))[index])
        )
        selected: dict[str, Any] = {
            field.name: None if (value := getattr(self, field.name)) is None else value[rows]
            for field in dataclasses.fields(self)
            if field.name not in (*TUPLES, "network")
        }
        for name in TUPLES:
            selected[name] = None if (value := getattr(self, name)) is None else tuple(value[i] for i in rows)
        return Codes(network=self.network, **selected)

    def _indices(self, wanted: list) -> list[int]:
        """Names, among them possibly integers, as integers; of equal names the first is taken."""
        of_name = dict(zip(reversed(self.names), reversed(range(len(self.names))), strict=True))
        for name in wanted:
            if isinstance(name, str) and name not in of_name:
                some = ", ".join(self.names[:5]) + (", …" if len(self) > 5 else "")
                raise InputError(f"no code is named {name!r}; the names are {some}")
        return [of_name[name] if isinstance(name, str) else name for name in wanted]

    def check_network(self, network: str) -> None:
        """InputError if these are known to be codes of another network than the one with this digest."""
        if self.network is not None and self.network != network:
            raise InputError(
                f"these codes ({', '.join(self.names[:3])}{', …' if len(self) > 3 else ''}) are of another network; "
                "fit or encode the shapes again with this one"
            )

    def placed(self, similarities: Sequence[Similarity]) -> Codes:
        """The same codes with other similarities (input units → normalized frame), one per shape."""
        return dataclasses.replace(self, similarities=tuple(similarities))

    @staticmethod
    def joined(parts: Sequence[Codes]) -> Codes:
        """Several batches as one; a field that is None in one of them is None in the result, but for unseen and units.

        Raises InputError for codes of several networks.
        """

        def column(name: str) -> Any:
            values: list[Any] = [getattr(part, name) for part in parts]
            if name in ("unseen", "units") and any(value is not None for value in values):  # known of some
                nothing: list[Any] = [
                    ("",) * len(part) if name == "units" else np.full(len(part), np.nan) for part in parts
                ]
                values = [none if value is None else value for value, none in zip(values, nothing, strict=True)]
            if any(value is None for value in values):
                return None
            if name == "network":
                if len(set(values)) > 1:
                    raise InputError(f"codes of several networks ({', '.join(sorted(set(values)))}) cannot be joined")
                return values[0]
            return tuple(itertools.chain(*values)) if isinstance(values[0], tuple) else np.concatenate(values)

        return Codes(**{field.name: column(field.name) for field in dataclasses.fields(Codes)})

    def save(self, path: str | Path, *, sync: bool = True) -> None:
        """Writes one .npz that `load` reads.  sync: flush to disk, as for `atomic.open_file`."""
        arrays = {
            field.name: np.asarray(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and field.name != "similarities"
        }
        if self.similarities is not None:
            arrays["similarities"] = np.array([s.as_array() for s in self.similarities]).reshape(-1, 13)
        arrays["version"] = np.array(VERSION)
        write_npz(Path(path), arrays, sync)

    @staticmethod
    def load(path: str | Path) -> Codes:
        """Codes from a file that `save` wrote; CheckpointError if it is damaged or has other contents."""
        arrays: dict[str, Any] = read_npz(Path(path))
        names = {field.name for field in dataclasses.fields(Codes)}
        if (version := arrays.pop("version", np.array(1))).size != 1 or version != VERSION:
            found = version.item() if version.size == 1 else list(version.shape)
            raise CheckpointError(
                f"{path} has format {found} of codes, but this version of jonet reads {VERSION}; fit the codes again"
            )
        if unknown := arrays.keys() - names:
            raise CheckpointError(f"{path} has an array {min(unknown)!r}, which codes do not have")
        if "values" not in arrays or "names" not in arrays:
            raise CheckpointError(f"{path} contains {sorted(arrays)}, but a file of codes has values and names")
        _check(path, arrays)
        if "similarities" in arrays:
            try:
                arrays["similarities"] = tuple(Similarity.from_array(a) for a in arrays["similarities"])
            except MeshError as error:
                raise CheckpointError(f"{path}: {error}") from error
        for name in ("names", "sources", "units"):
            if name in arrays:
                arrays[name] = tuple(map(str, arrays[name]))
        if "network" in arrays:
            arrays["network"] = str(arrays["network"])
        return Codes(**arrays)


def _check(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """CheckpointError if an array has a shape or dtype that `Codes.save` does not write."""
    count = arrays["values"].shape[:1]
    axes = {"values": 2, "similarities": 2, "network": 0}
    words = dict.fromkeys(("names", "sources", "units", "network"), "U")
    kinds = {**words, "converged": "b", "out_of_distribution": "b"}
    for name in [field.name for field in dataclasses.fields(Codes) if field.name in arrays]:
        array, rows = arrays[name], axes.get(name, 1)
        fits = array.ndim == rows and array.shape[:1] == count[:rows]
        if not fits or (array.size and array.dtype.kind != kinds.get(name, "f")):
            raise CheckpointError(f"{path}: {name} is {array.dtype} {list(array.shape)}, which does not fit the codes")
    if not np.isfinite(arrays["values"]).all():
        raise CheckpointError(f"{path}: a code contains numbers that are not finite")
    if unknown := {*map(str, arrays.get("units", ()))} - {"", *units.METERS}:
        raise CheckpointError(f"{path}: a unit is {min(unknown)[:20]!r}, but must be one of {', '.join(units.METERS)}")
    if "similarities" in arrays and arrays["similarities"].shape[1] != 13:
        raise CheckpointError(f"{path}: similarities have 13 numbers each, not {arrays['similarities'].shape[1]}")


def write_npz(path: Path, arrays: dict[str, Any], sync: bool = True) -> None:
    """Writes one .npz atomically: to a temporary file, which is then renamed.

    arrays: by name, of any shape [...].  sync: as for `atomic.open_file`.
    """
    with atomic.open_file(path, sync=sync) as file:
        np.savez(file, **arrays)


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays [...] of a file that `write_npz` wrote, by name.

    Raises CheckpointError if the file is missing or damaged, or declares more data than it has.
    """
    try:
        found = archives.arrays(path, (), None, archives.NUMBERS + archives.WORDS)
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    return {name: array.copy() for name, array in found.items()}  # writable copies


def fits(codes: Codes) -> list[Fit]:
    """How well each of the codes was fitted, for codes that were."""
    columns = (getattr(codes, name).tolist() for name in Fit._fields)
    return [Fit(*row) for row in zip(*columns, strict=True)]
