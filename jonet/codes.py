"""Codes of shapes, and their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jonet.data import archives
from jonet.data.meshes import Similarity
from jonet.errors import CheckpointError, FormatError, InputError, MeshError
from jonet.storage import atomic

TUPLES = ("names", "similarities", "sources")  # columns that are no arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """All that differs between B shapes of one network, and how well each was fitted.

    values [B, L].  names: of the shapes.  similarities: own units → normalised frame of each shape, or None.
    residual [B]: mean clamped error that is left.  explained [B]: share of the input whose error is below 0.01 of the
    normalised frame.  converged [B]: the loss had stopped falling.  stranger [B]: the shape lies outside of what
    training saw (the code's Mahalanobis distance or the residual beyond the training codes' 99th percentile).
    network: digest of the network that they are codes of (`Model.digest`), None where it is not known; another refuses
    them.  sources: of training codes, what tells the content of each shape (`Store.contents`).
    """

    values: np.ndarray
    names: tuple[str, ...]
    similarities: tuple[Similarity, ...] | None = None
    residual: np.ndarray | None = None
    explained: np.ndarray | None = None
    converged: np.ndarray | None = None
    stranger: np.ndarray | None = None
    network: str | None = None
    sources: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index) -> Codes:
        """The codes at an integer or a name (a batch of one), a slice, or a list of integers or names."""
        if isinstance(index, str):
            index = [index]
        if isinstance(index, list):
            index = [self._place(i) if isinstance(i, str) else i for i in index]
        rows = np.atleast_1d(np.arange(len(self))[index])
        pick = {
            field.name: None if (value := getattr(self, field.name)) is None else value[rows]
            for field in dataclasses.fields(self)
            if field.name not in (*TUPLES, "network")
        }
        for name in TUPLES:
            pick[name] = None if (value := getattr(self, name)) is None else tuple(value[i] for i in rows)
        return Codes(network=self.network, **pick)

    def _place(self, name: str) -> int:
        if name not in self.names:
            some = ", ".join(self.names[:5]) + (", …" if len(self) > 5 else "")
            raise InputError(f"no code is named {name!r}; there are {some}")
        return self.names.index(name)

    def check_network(self, network: str) -> None:
        """InputError where these are known to be codes of another network than the one with this digest."""
        if self.network is not None and self.network != network:
            raise InputError(
                f"these codes ({', '.join(self.names[:3])}{', …' if len(self) > 3 else ''}) are of another network; "
                "fit or encode the shapes anew with this one"
            )

    def placed(self, similarities: Sequence[Similarity]) -> Codes:
        """The same codes with the ways from their shapes' own units to the normalised frame."""
        return dataclasses.replace(self, similarities=tuple(similarities))

    @staticmethod
    def joined(parts: Sequence[Codes]) -> Codes:
        """Several batches as one; what one of them lacks, all lack.  InputError where they are of several networks."""

        def column(name: str):
            values = [getattr(part, name) for part in parts]
            if any(value is None for value in values):
                return None
            if name == "network":
                if len(set(values)) > 1:
                    raise InputError(f"codes of several networks ({', '.join(sorted(set(values)))}) cannot be joined")
                return values[0]
            return sum(values, ()) if isinstance(values[0], tuple) else np.concatenate(values)

        return Codes(**{field.name: column(field.name) for field in dataclasses.fields(Codes)})

    def save(self, path: str | Path, *, sync: bool = True) -> None:
        """One .npz; see `load`.  sync: as of `atomic.open_file`."""
        arrays = {
            field.name: np.asarray(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and field.name != "similarities"
        }
        if self.similarities is not None:
            arrays["similarities"] = np.array([s.as_array() for s in self.similarities]).reshape(-1, 13)
        write_npz(Path(path), arrays, sync)

    @staticmethod
    def load(path: str | Path) -> Codes:
        """Codes from a file that `save` wrote; CheckpointError if it is damaged."""
        arrays = read_npz(Path(path))
        if "values" not in arrays or "names" not in arrays:
            raise CheckpointError(f"{path} holds {sorted(arrays)}, but codes have values and names")
        _check(path, arrays)
        if "similarities" in arrays:
            try:
                arrays["similarities"] = tuple(Similarity.from_array(a) for a in arrays["similarities"])
            except MeshError as error:
                raise CheckpointError(f"{path}: {error}") from error
        for name in ("names", "sources"):
            if name in arrays:
                arrays[name] = tuple(map(str, arrays[name]))
        if "network" in arrays:
            arrays["network"] = str(arrays["network"])
        known = {field.name for field in dataclasses.fields(Codes)}
        return Codes(**{k: v for k, v in arrays.items() if k in known})


def _check(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """CheckpointError where an array is none that `Codes.save` writes."""
    count = arrays["values"].shape[:1]
    axes = {"values": 2, "similarities": 2, "network": 0}
    kinds = {"names": "U", "sources": "U", "network": "U", "converged": "b", "stranger": "b"}
    for name in [field.name for field in dataclasses.fields(Codes) if field.name in arrays]:
        array, rows = arrays[name], axes.get(name, 1)
        fits = array.ndim == rows and array.shape[:1] == count[:rows]
        if not fits or (array.size and array.dtype.kind != kinds.get(name, "f")):
            raise CheckpointError(f"{path}: {name} is {array.dtype} {list(array.shape)}, which is none of these codes")
    if not np.isfinite(arrays["values"]).all():
        raise CheckpointError(f"{path}: a code holds numbers that are not finite")
    if "similarities" in arrays and arrays["similarities"].shape[1] != 13:
        raise CheckpointError(f"{path}: similarities have 13 numbers each, not {arrays['similarities'].shape[1]}")


def write_npz(path: Path, arrays: dict[str, np.ndarray], sync: bool = True) -> None:
    """One file, written beside its place and renamed into it."""
    with atomic.open_file(path, sync=sync) as file:
        np.savez(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """What `write_npz` wrote; CheckpointError if it is missing, damaged, or claims to be larger than it is."""
    try:
        found = archives.arrays(path, (), None, archives.NUMBERS + archives.WORDS)
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    return {name: array.copy() for name, array in found.items()}  # that can be written to
