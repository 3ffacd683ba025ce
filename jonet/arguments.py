"""Checks of the arguments of a model's public methods, before any work."""

from __future__ import annotations

import numbers
import os
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from jonet import resources
from jonet.errors import InputError, shown
from jonet.geometry.mesh import Similarity, frame_of
from jonet.geometry.outliers import CHOICES, advice, outlier_mask, removal
from jonet.inference.fitting.observations import ObservedArrays
from jonet.wording import counted

S = TypeVar("S")  # settings of a call


def choice(given, name: str, known: Sequence[str]) -> None:
    """InputError unless an argument is one of the known words."""
    if not isinstance(given, str) or given not in known:
        raise InputError(f"{name} is {shown(given)}, but must be {' or '.join(map(repr, known))}")


def positive(given: float, name: str) -> float:
    """A number above 0, which may be infinite; InputError for anything else."""
    if isinstance(given, bool) or not isinstance(given, numbers.Real) or not given > 0:
        raise InputError(f"{name} is {shown(given)}, but must be a number above 0")
    return float(given)


def alone(name: str, **others) -> None:
    """InputError if one of the other arguments is given, too."""
    for other, value in others.items():
        if value is not None:
            raise InputError(f"{other} is given together with {name}; give one of them")


def boxed(frame) -> bool:
    """Whether an argument `frame` normalizes each shape by the box around its points."""
    return isinstance(frame, str) and frame == "input"


def transforms(frame, kind: str, arrays: Sequence[np.ndarray], target: str) -> tuple[Similarity, ...] | None:
    """The similarities of an argument `frame`, as for `Model.fit`, one per array; None for "normalized".

    kind: "points", "samples", "voxels" or "images".  arrays: one per shape; points are [Nᵢ, 3].  target: the model's
    frame.
    """
    if isinstance(frame, str) and frame == "normalized":
        return None
    if boxed(frame):
        if kind == "samples":
            raise InputError(
                "frame is 'input', but samples lie all around a shape, so its bounding box is unknown: give frame as a "
                "list of similarities (input units → normalized), one per shape"
            )
        if kind != "points":
            raise InputError(f"frame is 'input', but {kind} are always in the normalized frame")
        check_sizes(kind, arrays)
        return tuple(frame_of(cloud, target) for cloud in arrays)
    if isinstance(frame, Similarity):
        raise InputError("frame is one similarity; give a list, one per shape: frame=[…]")
    found: list[Any] | None = list(frame) if isinstance(frame, list | tuple) or getattr(frame, "ndim", 0) else None
    if found is None or len(found) != len(arrays) or not all(isinstance(each, Similarity) for each in found):
        raise InputError(
            f"frame is {shown(frame)}, but must be 'normalized', 'input' or a list of similarities, one for each of "
            f"{counted(len(arrays), 'shape')}"
        )
    return tuple(found)


def without_outliers(given: ObservedArrays, outliers: str | None, frame, names: Sequence[str]) -> ObservedArrays:
    """Observations as an argument `outliers` says: about points that stand alone (`geometry.outliers.outlier_mask`).

    outliers: "remove" leaves them out, "keep" keeps them.  "warn" keeps them, and None leaves them out, with a warning
    if `frame` is "input", since the shape is then normalized by that box.  names: of the shapes.  Clouds without such
    points stay as they are.
    Raises InputError for another word, and for "remove" with samples.
    """
    if outliers is not None:
        choice(outliers, "outliers", CHOICES)
    if given.points is None:
        if outliers == "remove":
            raise InputError("outliers is 'remove', but samples are given, of which none are removed")
        return given
    if outliers == "keep" or (outliers != "remove" and not boxed(frame)):
        return given
    alone = resources.in_threads(outlier_mask, given.points)
    if outliers != "remove" and (found := [i for i, mask in enumerate(alone) if mask.any()]):
        others = f" (and {counted(len(found) - 1, 'other shape')})" * (len(found) > 1)
        words = (advice if outliers == "warn" else removal)(given.points[found[0]], alone[found[0]])
        warnings.warn(f"{names[found[0]]}{others}: {words}", stacklevel=3)
    if outliers != "warn" and any(mask.any() for mask in alone):
        points, normals = (
            rows and [array[~mask] for array, mask in zip(rows, alone, strict=True)]
            for rows in (given.points, given.normals)
        )
        return given._replace(points=points, normals=normals)
    return given


def check_sizes(name: str, clouds: Sequence[np.ndarray]) -> None:
    """InputError for one of the clouds [Nᵢ, 3] without extent, which cannot be normalized."""
    for i, cloud in enumerate(clouds):
        if not np.ptp(cloud, axis=0).any():
            raise InputError(f"{name}[{i}] has no size to normalize: all its points coincide")


def settings(given: object, kind: type[S], default: S) -> S:
    """The given config, or the default if it is None; InputError if it is of another class."""
    if given is None:
        return default
    if not isinstance(given, kind):
        raise InputError(f"config is {shown(given)}, but must be a {kind.__module__}.{kind.__name__}")
    return given


def names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of `count` shapes: those given, else "shape 0", "shape 1", …"""
    try:
        if isinstance(given, str | bytes):
            raise TypeError
        found = [f"shape {i}" for i in range(count)] if given is None else list(given)
        if not all(isinstance(name, str | os.PathLike | int | np.integer) for name in found):
            raise TypeError
    except TypeError as error:
        raise InputError(f"names is {shown(given)}, but must be a list of {counted(count, 'name')}") from error
    if len(found) != count:
        raise InputError(f"names has {counted(len(found), 'entry', 'entries')} for {counted(count, 'shape')}")
    return tuple(map(str, found))
