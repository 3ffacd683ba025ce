"""Checks of the arguments of a model's public methods, before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from jonet.checks import listed
from jonet.errors import InputError, shown
from jonet.geometry.mesh import Similarity

S = TypeVar("S")  # settings of a call


def observations(samples, points, normals, free_space) -> dict[str, Any]:
    """The observations of B shapes, arguments as for `Model.fit`, as checked lists of arrays; None if not given."""
    if (samples is None) == (points is None):
        raise InputError("give either samples (points with distances) or points (of surfaces)")
    given: dict[str, Any] = dict.fromkeys(("samples", "points", "normals", "free_space"))
    if samples is not None:
        if not (normals is None and free_space is None):
            raise InputError("normals and free_space belong to points of surfaces, but samples were given")
        return given | {"samples": listed(samples, "samples", (None, 4))}
    given["points"] = clouds = listed(points, "points", (None, 3))
    if normals is not None:
        given["normals"] = listed(normals, "normals", (None, 3))
    if free_space is not None:
        given["free_space"] = listed(free_space, "free_space", (None, 3), empty=True)
    for name in ("normals", "free_space"):
        if (others := given[name]) is not None and len(others) != len(clouds):
            raise InputError(f"{name} are of {len(others)} shapes, but points of {len(clouds)}")
    for i, (rows, cloud) in enumerate(zip(given["normals"] or (), clouds, strict=False)):
        if len(rows) != len(cloud):
            raise InputError(f"normals[{i}] has {len(rows)} rows, but points[{i}] has {len(cloud)}")
    return given


def frame(given, kind: str, arrays: list[np.ndarray]) -> str | list[Similarity]:
    """A checked frame, as for `Model.fit`: "normalized", "input", or a list with one similarity per array.

    kind: "points", "samples", "voxels" or "images".
    """
    if isinstance(given, str) and given in ("normalized", "input"):
        if given == "input" and kind == "points":
            check_sizes(kind, arrays)
        return given
    if isinstance(given, Similarity):
        raise InputError("frame is one similarity; give a list, one per shape: frame=[…]")
    transforms: list[Any] | None = list(given) if isinstance(given, list | tuple) or getattr(given, "ndim", 0) else None
    if (
        transforms is None
        or len(transforms) != len(arrays)
        or not all(isinstance(transform, Similarity) for transform in transforms)
    ):
        raise InputError(
            f"frame is {shown(given)}, but must be 'normalized', 'input' or a list of similarities, one for each of "
            f"the {len(arrays)} shapes"
        )
    return transforms


def check_sizes(name: str, clouds: list[np.ndarray]) -> None:
    """InputError for a cloud without extent, which cannot be normalized."""
    for i, cloud in enumerate(clouds):
        if not np.ptp(cloud, axis=0).any():
            raise InputError(f"{name}[{i}] has no size to normalize: all its points coincide")


def settings(given: S | None, kind: type[S], default: S) -> S:
    """The given config, or the default if it is None; InputError if it is of another class."""
    if given is not None and not isinstance(given, kind):
        raise InputError(f"config is {shown(given)}, but must be a {kind.__module__}.{kind.__name__}")
    return default if given is None else given


def names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of `count` shapes: those given, else "shape 0", "shape 1", …"""
    try:
        if isinstance(given, str | bytes):
            raise TypeError
        found = [f"shape {i}" for i in range(count)] if given is None else list(given)
        if not all(isinstance(name, str | os.PathLike | int | np.integer) for name in found):
            raise TypeError
    except TypeError as error:
        raise InputError(f"names is {shown(given)}, but must be a list of {count} names") from error
    if len(found) != count:
        raise InputError(f"names has {len(found)} entries for {count} shapes")
    return tuple(map(str, found))
