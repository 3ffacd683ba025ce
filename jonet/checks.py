"""Validation of the arguments of public functions."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from jonet.errors import InputError, shown


def check_array(
    array, name: str, shape: tuple[int | None | str, ...], dtype: DTypeLike = np.float32, finite: bool = True
) -> np.ndarray:
    """`array` as a numpy array of `dtype`; InputError with the expected and the actual shape or type otherwise.

    shape: one entry per axis, as (None, 3) for [N, 3]; an int must match, None or a letter matches any size, equal
    letters need equal sizes.
    finite: whether NaN and infinity are refused.
    """
    try:
        result = np.asarray(array)
        # numpy would convert strings, complex numbers and dates without complaint, and None to NaN.
        if result.dtype.kind in "cSUmM" or (result.dtype.kind == "O" and result.ndim == 0):
            raise TypeError
        with np.errstate(over="ignore"):  # overflow becomes infinity, which the check below refuses
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


def whole(value, name: str, least: int, most: int = 2**31 - 1) -> int:
    """`value` as an int from `least` to `most`, or InputError."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        bounds = f"{least} or more" if most == 2**31 - 1 else f"from {least} to {most}"
        raise InputError(f"{name} is {shown(value)}, but must be a whole number, {bounds}")
    return int(value)


def listed(arrays, name: str, shape: tuple[int | None, ...], *, empty: bool = False) -> list[np.ndarray]:
    """A list of B validated arrays of `shape`, one per shape; dtypes are kept, Python lists become float64.

    arrays: [B, …] or a list.  empty: whether arrays without rows are allowed, `[]` among them.  Raises InputError,
    with advice where a single array, a mesh or a path was passed instead of a list of arrays.
    """
    one = f"[{', '.join('N' if size is None else str(size) for size in shape)}]"
    _no_file(arrays, name, one)
    try:
        if isinstance(arrays, Mapping):
            raise TypeError
        found = list(arrays)
    except TypeError as error:
        raise InputError(f"{name} is {shown(arrays)}, but must be a list of arrays {one}, one per shape") from error
    if not found:
        raise InputError(f"{name} holds no shape; give a list of arrays {one}, one per shape")
    for i, array in enumerate(found):
        _no_file(array, f"{name}[{i}]", one)
        try:
            axes, size = np.ndim(array), np.size(array)
        except (TypeError, ValueError, RuntimeError):  # `check_array` below raises the error
            axes, size = len(shape), 1
        if empty and not size:
            array = np.zeros((0, *(size or 0 for size in shape[1:])))
        elif i == 0 and axes == len(shape) - 1 and size:
            raise InputError(
                f"{name} is one array {list(np.shape(arrays))}; give a list, one array per shape: {name}=[…]"
            )
        kept = getattr(array, "dtype", np.dtype(object))
        found[i] = check_array(
            array, f"{name}[{i}]", shape, kept if getattr(kept, "kind", "") in tuple("iuf") else np.float64
        )
        if not (len(found[i]) or empty):
            raise InputError(f"{name}[{i}] is empty; leave out shapes of which nothing was observed")
    return found


def _no_file(value, name: str, one: str) -> None:
    if isinstance(value, str | bytes | os.PathLike):
        what, rest = f"a path ({shown(value)})", "read the file first"
    elif hasattr(value, "vertices") and hasattr(value, "faces"):
        what, rest = "a mesh", "give meshes as meshes=[…], or sample points on them (jonet.data.sampling.surface)"
    else:
        return
    raise InputError(
        f"{name} is {what}, but must be a list of arrays {one}; {rest}, or use `python -m jonet`, which takes files"
    )
