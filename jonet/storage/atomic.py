"""Atomic writes: files and folders are written under a temporary name and renamed; only known files are removed.

Every write, rename and removal of the package passes through this module (a test scans the code for others).
Temporary names are `.jonet-<12 hex digits>.tmp`: unique, of fixed length however long the final name is, hidden from
searches for inputs, and recognizable when a killed process has left one behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from jonet.errors import ConfigError, StorageError

_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|Infinity')  # matches strings too, so that a NaN inside one is kept
_TEMPORARY = re.compile(r"\.jonet-[0-9a-f]{12}\.tmp")


def temporary(folder: Path) -> Path:
    """A unique temporary path in `folder`."""
    return folder / f".jonet-{secrets.token_hex(6)}.tmp"


def is_temporary(path: str | Path) -> bool:
    """Whether a path has the form of our temporary names."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


@contextlib.contextmanager
def open_file(path: str | Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an exception; until then `path` is unchanged.

    Parent folders are created; if `path` is a symbolic link, its target is replaced.  sync: whether to fsync, so that
    the file survives a power failure (not needed where readers verify checksums).
    """
    path = Path(os.path.realpath(path))  # renaming over a link would replace the link
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path.parent)  # in the same folder: a rename is atomic only within one file system
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            if sync:  # before the rename: else the new name could point to missing data after a power failure
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:  # KeyboardInterrupt included
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    if sync:
        _sync_folder(path.parent)


def write_bytes(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a file of these bytes, atomically."""
    with open_file(path, sync=sync) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file, atomically; file names that are not UTF-8 keep their bytes (surrogateescape)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | Path, values: Any) -> None:
    """Writes an indented JSON file, atomically."""
    write_text(path, json_text(values, indent=2) + "\n")


def json_text(values: Any, **settings) -> str:
    """Standard JSON, which has no NaN and no Infinity: NaN becomes `null`, Infinity becomes 1e999, which overflows to
    infinity when it is parsed.  settings: as of `json.dumps`."""
    return _NUMBERS.sub(
        lambda found: {"NaN": "null", "Infinity": "1e999"}.get(found[0], found[0]), json.dumps(values, **settings)
    )


def append(path: str | Path, data: bytes) -> None:
    """Appends bytes to a file in one unbuffered write, so that a kill can truncate only the last record."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        while data:  # os.write may write only a part, e.g. when the disk is nearly full
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def truncate(path: str | Path, size: int) -> None:
    """Truncates one of our files to its first `size` bytes."""
    os.truncate(path, size)


def is_free(folder: str | Path) -> bool:
    """Whether a folder can be created at this path without replacing anything: it does not exist, or is empty."""
    folder = Path(folder)
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; it becomes `path` when the block ends without an exception, else is removed.

    Raises StorageError if `path` exists and is not an empty folder.
    """
    path = Path(os.path.realpath(path))
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path.parent)
    unfinished.mkdir()
    try:
        yield unfinished
        place_folder(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def place_folder(finished: Path, path: Path) -> None:
    """Syncs a finished folder and renames it to `path`, which must not exist or be an empty folder."""
    _check_free(path)  # again: something may have been put there meanwhile
    for folder, _, files in os.walk(finished):
        for name in files:
            _sync_file(Path(folder, name))
        _sync_folder(Path(folder))
    if os.name == "nt" and path.exists():
        path.rmdir()  # on POSIX a rename replaces an empty folder
    os.rename(finished, path)
    _sync_folder(path.parent)


def _check_free(path: Path) -> None:
    if not is_free(path):
        raise StorageError(f"{path}: exists and is not empty, so it is not replaced; name another folder")


def remove_file(path: str | Path) -> None:
    """Removes one of our files, if it exists."""
    Path(path).unlink(missing_ok=True)


def remove_known(folder: str | Path, known: Callable[[str], bool]) -> list[str]:
    """Removes the files below a folder that are ours, and all folders that are then empty; returns the remaining files.

    known: whether a path relative to the folder, with `/` as separator, is ours.  Temporary files always are.
    """
    folder, left = Path(folder), []
    for above, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(above, name)
            relative = path.relative_to(folder).as_posix()
            if is_temporary(name) or known(relative):
                path.unlink(missing_ok=True)
            else:
                left.append(relative)
        for name in folders:
            path = Path(above, name)
            if path.is_symlink():  # os.walk lists links to folders as folders; what they point to is not ours
                left.append(path.relative_to(folder).as_posix())
            elif is_temporary(name):  # a folder that a killed process was filling
                shutil.rmtree(path)
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(above)
    return sorted(left)


def move_aside(path: str | Path, word: str) -> Path:
    """Renames a file or folder to `<name>.<word>`, with a number if that is taken; returns the new path."""
    path = Path(path)
    return _renamed(path, path.with_name(f"{path.name}.{word}"))


def move_to(path: str | Path, folder: str | Path) -> Path:
    """Moves a file or folder into another folder of the same file system, with a number if its name is taken there."""
    path = Path(path)
    return _renamed(path, Path(folder) / path.name)


def _renamed(path: Path, wanted: Path) -> Path:
    names = (wanted if i == 1 else wanted.with_name(f"{wanted.name}-{i}") for i in itertools.count(1))
    free = next(name for name in names if not os.path.lexists(name))
    os.rename(path, free)
    return free


def sweep(folder: str | Path) -> None:
    """Removes temporary files directly in a folder that killed processes left; the caller must hold its lock."""
    folder = Path(folder)
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_temporary(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """ConfigError if a file to be written is also an input, by any name (compared by device and inode)."""
    read = {}
    for path in inputs:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            read[found.st_dev, found.st_ino] = path
    for path in outputs:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in read:
                raise ConfigError(f"{path} is one of the inputs and would be overwritten; choose another --out")


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes a rename in the folder survive a power failure; ignored on systems that cannot sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
