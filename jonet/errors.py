"""What can go wrong, by kind, and the check at the door of public functions."""

from __future__ import annotations

import errno

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


_OUTSIDE = {  # errors of the operating system that are no fault of the program
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
}


def from_outside(error: OSError) -> str | None:
    """A sentence for the user where a disk is full, cannot be written, or fails; None for all other errors."""
    if error.errno not in _OUTSIDE:
        return None
    place = error.filename2 or error.filename
    return f"{place or 'the disk'}: {error.strerror}; put that right, and the same command goes on where it was"


def require(array, name: str, shape: tuple[int | None | str, ...], dtype=np.float32, finite: bool = True) -> np.ndarray:
    """`array` as numpy of `dtype`, or InputError that says what was expected and what came.

    shape: one entry an axis; an int must match, None or a letter may be anything, letters that repeat must agree.
    """
    try:
        result = np.asarray(array, dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of {np.dtype(dtype).name}, but is {type(array).__name__}") from error
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
