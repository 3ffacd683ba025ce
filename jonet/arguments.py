"""Arguments of the public calls of models, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from jonet.data.meshes import Similarity
from jonet.errors import InputError, listed, shown


def observations(samples, points, normals, free) -> dict[str, list[np.ndarray] | None]:
    """What was observed of B shapes, as of `Model.fit`: checked, as lists of arrays; None what was not given."""
    if (samples is None) == (points is None):
        raise InputError("give either samples (points with distances) or points (of surfaces)")
    given: dict[str, list[np.ndarray] | None] = dict.fromkeys(("samples", "points", "normals", "free"))
    if samples is not None:
        if not (normals is None and free is None):
            raise InputError("normals and free belong to points of surfaces, but samples were given")
        return given | {"samples": listed(samples, "samples", (None, 4))}
    given["points"] = clouds = listed(points, "points", (None, 3))
    if normals is not None:
        given["normals"] = listed(normals, "normals", (None, 3))
    if free is not None:
        given["free"] = listed(free, "free", (None, 3), empty=True)
    for name in ("normals", "free"):
        if given[name] is not None and len(given[name]) != len(clouds):
            raise InputError(f"{name} are of {len(given[name])} shapes, but points of {len(clouds)}")
    for i, (rows, cloud) in enumerate(zip(given["normals"] or (), clouds, strict=False)):
        if len(rows) != len(cloud):
            raise InputError(f"normals[{i}] has {len(rows)} rows, but points[{i}] has {len(cloud)}")
    return given


def frame(given, kind: str, arrays: list[np.ndarray]):
    """A frame as of `Model.fit` for arrays of that kind: "normalised", "own", or a list of similarities."""
    if isinstance(given, str) and given in ("normalised", "own"):
        if given == "own" and kind == "points":
            check_sizes(kind, arrays)
        return given
    if isinstance(given, Similarity):
        raise InputError("frame is one similarity; give a list, one a shape: frame=[…]")
    ways = list(given) if isinstance(given, list | tuple) or getattr(given, "ndim", 0) else None
    if ways is None or len(ways) != len(arrays) or not all(isinstance(way, Similarity) for way in ways):
        raise InputError(
            f"frame is {shown(given)}, but must be 'normalised', 'own' or a list of similarities, one for each of the "
            f"{len(arrays)} shapes"
        )
    return ways


def check_sizes(name: str, clouds: list[np.ndarray]) -> None:
    """InputError for a cloud that has no size by which it could be normalised."""
    for i, cloud in enumerate(clouds):
        if not np.ptp(cloud, axis=0).any():
            raise InputError(f"{name}[{i}] has no size to normalise: all its points are one")


def settings(given, kind: type, default):
    """A config that a call was given, the default where it is None; InputError where it is of another kind."""
    if given is not None and not isinstance(given, kind):
        raise InputError(f"config is {shown(given)}, but must be a {kind.__module__}.{kind.__name__}")
    return default if given is None else given


def names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of `count` shapes: those given, else their numbers."""
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
