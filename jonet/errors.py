"""What can go wrong, by kind, and the checks of arguments at the door of public functions."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping

import numpy as np


class JonetError(Exception):
    """Base of every error that jonet raises on purpose; its sentence says what, where, and what to do."""


class MeshError(JonetError, ValueError):
    """A mesh that cannot be read, or whose geometry does not allow what was asked."""


class FormatError(JonetError, ValueError):
    """A file of another program that is not what it claims to be."""


class ConfigError(JonetError, ValueError):
    """An option that is unknown, impossible, or different from what a run was started with."""


class InputError(JonetError, ValueError):
    """An array argument of the wrong shape, type or content."""


class TrainingError(JonetError, ValueError):
    """Training that cannot learn: a loss that is not finite, or a network without gradient."""


class StoreError(JonetError, OSError):
    """A packed store that is missing, damaged or made by other settings."""


class CheckpointError(JonetError, OSError):
    """A checkpoint or model folder that is missing or damaged."""


class StorageError(JonetError, OSError):
    """A place on the disk that holds something which jonet did not make and does not touch."""


class BusyError(JonetError, RuntimeError):
    """A folder in which another process is at work."""


def require(array, name: str, shape: tuple[int | None | str, ...], dtype=np.float32, finite: bool = True) -> np.ndarray:
    """`array` as numpy of `dtype`, or InputError that says what was expected and what came.

    shape: one entry an axis; an int must match, None or a letter may be anything, letters that repeat must agree.
    """
    try:
        result = np.asarray(array)
        if result.dtype.kind in "cSUmM" or (result.dtype.kind == "O" and result.ndim == 0):
            raise TypeError
        with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
            result = result.astype(dtype, copy=False)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of {np.dtype(dtype).name}, but is {shown(array)}") from error
    wanted = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"
    sizes: dict[str, int] = {}
    fits = result.ndim == len(shape) and all(
        s is None or (sizes.setdefault(s, n) == n if isinstance(s, str) else s == n)
        for s, n in zip(shape, result.shape, strict=False)
    )
    if not fits:
        raise InputError(f"{name} must have shape {wanted}, but has {list(result.shape)}")
    if finite and not np.isfinite(result).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise InputError(f"{name} must be finite, but holds {result[bad]} at {list(bad)}")
    return result


def shown(value, most: int = 60) -> str:
    """A value as an error shows it: its beginning, on one line; of long or large things their type."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of {value.dtype} {list(value.shape)}"
    if value is not None and not isinstance(value, str | os.PathLike | numbers.Number | list | tuple | dict):
        return f"of type {type(value).__name__}"
    text = " ".join(repr(value if not isinstance(value, list | tuple) else type(value)(value[:most])).split())
    return text if len(text) <= most else f"{text[:most]}…"


def whole(value, name: str, least: int, most: int = 2**31 - 1) -> int:
    """`value` as an int from `least` to `most`, or InputError."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"{least} or more" if most == 2**31 - 1 else f"from {least} to {most}"
        raise InputError(f"{name} is {shown(value)}, but must be a whole number, {bounds}")
    return int(value)


def listed(arrays, name: str, shape: tuple[int | None, ...], *, empty: bool = False) -> list[np.ndarray]:
    """One array of `shape` for each of B shapes, as a list: of the numbers that they hold, lists of float64.

    arrays: [B, …] or a list.  empty: whether some may have no rows, `[]` among them.  Raises InputError, which says
    what to do with one array, a mesh or a path in place of a list of arrays.
    """
    one = f"[{', '.join('N' if size is None else str(size) for size in shape)}]"
    _no_file(arrays, name, one)
    try:
        if isinstance(arrays, Mapping):
            raise TypeError
        found = list(arrays)
    except TypeError as error:
        raise InputError(f"{name} is {shown(arrays)}, but must be a list of arrays {one}, one a shape") from error
    if not found:
        raise InputError(f"{name} holds no shape; give a list of arrays {one}, one a shape")
    for i, array in enumerate(found):
        _no_file(array, f"{name}[{i}]", one)
        try:
            axes, size = np.ndim(array), np.size(array)
        except (TypeError, ValueError, RuntimeError):  # `require` says what is wrong with it
            axes, size = len(shape), 1
        if empty and not size:
            array = np.zeros((0, *shape[1:]))
        elif i == 0 and axes == len(shape) - 1 and size:
            raise InputError(
                f"{name} is one array {list(np.shape(arrays))}; give a list, one array a shape: {name}=[…]"
            )
        kept = getattr(array, "dtype", None)
        found[i] = require(
            array, f"{name}[{i}]", shape, kept if getattr(kept, "kind", "") in tuple("iuf") else np.float64
        )
        if not (len(found[i]) or empty):
            raise InputError(f"{name}[{i}] is empty; leave out shapes of which nothing was observed")
    return found


def _no_file(value, name: str, one: str) -> None:
    if isinstance(value, str | bytes | os.PathLike):
        what, rest = f"a path ({shown(value)})", "read the file first"
    elif hasattr(value, "vertices") and hasattr(value, "faces"):
        what, rest = "a mesh", "draw points of its surface (jonet.data.sampling.surface)"
    else:
        return
    raise InputError(
        f"{name} is {what}, but must be a list of arrays {one}; {rest}, or use `python -m jonet`, which takes files"
    )
