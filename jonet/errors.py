"""What can go wrong, by kind."""

from __future__ import annotations

import numbers
import os


class JonetError(Exception):
    """Base of every error that jonet raises on purpose; the message says what is wrong, where, and what to do."""


class MeshError(JonetError, ValueError):
    """A mesh that cannot be read, or whose geometry does not allow the requested operation."""


class FormatError(JonetError, ValueError):
    """A file that is damaged or not in the expected format."""


class ConfigError(JonetError, ValueError):
    """An option that is unknown, invalid, or different from the one a run was started with."""


class InputError(JonetError, ValueError):
    """An argument of the wrong shape, type or value."""


class TrainingError(JonetError, ValueError):
    """Training that cannot proceed: a loss that is not finite, or a network without gradient."""


class StoreError(JonetError, OSError):
    """A packed store that is missing, damaged or built with other settings."""


class CheckpointError(JonetError, OSError):
    """A checkpoint or model folder that is missing or damaged."""


class StorageError(JonetError, OSError):
    """An output path that holds something jonet did not write and therefore does not overwrite."""


class BusyError(JonetError, RuntimeError):
    """A folder that is locked by another process."""


class DeviceMemoryError(JonetError, MemoryError):
    """Work that needs more memory than a device has."""


def out_of_device_memory(error: BaseException) -> str:
    """What XLA says if a device ran out of memory; "" for any other error."""
    _, found, text = str(error).partition("RESOURCE_EXHAUSTED")  # the status with which such messages begin
    if not found or not isinstance(error, RuntimeError):  # XLA's errors are RuntimeErrors
        return ""
    return " ".join(text.strip(": \n").split("\n")[0].split())[:120].rstrip(".") or found


def shown(value, most: int = 60) -> str:
    """A value as error messages show it: on one line, truncated to `most` characters; for large objects their type."""
    if hasattr(value, "dtype") and getattr(value, "ndim", 0):
        return f"an array of {value.dtype} {list(value.shape)}"
    if value is not None and not isinstance(value, str | os.PathLike | numbers.Number | list | tuple | dict):
        return f"of type {type(value).__name__}"
    text = " ".join(repr(value if not isinstance(value, list | tuple) else type(value)(value[:most])).split())
    return text if len(text) <= most else f"{text[:most]}…"
