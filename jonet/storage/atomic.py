"""Files and folders that change as a whole: written beside their place and renamed into it, removed only where known.

Every write, rename and removal of the package passes through here (`tests/storage/test_atomic.py` reads the code).
Temporary names are `.jonet-<12 hex digits>.tmp`: unique, short whatever the file is called, hidden from searches for
inputs, and known as ours where a killed process left one.
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

_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|Infinity')  # strings, which stay, and what is no JSON
_TEMPORARY = re.compile(r"\.jonet-[0-9a-f]{12}\.tmp")


def temporary(folder: Path) -> Path:
    """A name in `folder` that nobody else has."""
    return folder / f".jonet-{secrets.token_hex(6)}.tmp"


def is_temporary(path: str | Path) -> bool:
    """Whether a file or folder is one that a killed process left unfinished."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


@contextlib.contextmanager
def open_file(path: str | Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well; until then `path` is as it was.

    Folders above it are made; of a symbolic link the file that it leads to is replaced.  sync: it survives a power cut
    (not needed where its bytes are checked before they are used).
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path.parent)
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if sync:
        _sync_folder(path.parent)


def write_bytes(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """A file of these bytes, whole or not at all."""
    with open_file(path, sync=sync) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """A file of UTF-8, whole or not at all; names of files that are no UTF-8 keep their bytes (surrogateescape)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | Path, values: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json_text(values, indent=2) + "\n")


def json_text(values: Any, **settings) -> str:
    """JSON as its standard has it, which knows no NaN and no Infinity: `null`, and a number too large for a float,
    which readers take for infinity again.  settings: as of `json.dumps`."""
    return _NUMBERS.sub(
        lambda found: {"NaN": "null", "Infinity": "1e999"}.get(found[0], found[0]), json.dumps(values, **settings)
    )


def append(path: str | Path, data: bytes) -> None:
    """Adds bytes to the end of a file by one write, so that a kill leaves at most the last of them cut off."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def truncate(path: str | Path, size: int) -> None:
    """Cuts a file of ours to its first `size` bytes."""
    os.truncate(path, size)


def is_free(folder: str | Path) -> bool:
    """Whether a folder can be made here without touching anything: it is not there, or empty."""
    folder = Path(folder)
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder that stands at `path` when the block ends well, whole or not at all; to be filled where it is handed.

    Raises StorageError where something is there already that is no empty folder.
    """
    path = Path(os.path.realpath(path))
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path.parent)
    beside.mkdir()
    try:
        yield beside
        place_folder(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def place_folder(beside: Path, path: Path) -> None:
    """Renames a finished folder of ours to `path`, where nothing is, or an empty folder."""
    _check_free(path)
    for folder, _, files in os.walk(beside):
        for name in files:
            _sync_file(Path(folder, name))
        _sync_folder(Path(folder))
    if os.name == "nt" and path.exists():
        path.rmdir()  # elsewhere a rename replaces an empty folder
    os.rename(beside, path)
    _sync_folder(path.parent)


def _check_free(path: Path) -> None:
    if not is_free(path):
        raise StorageError(f"{path}: is there and not empty, so nothing is put in its place; name another folder")


def remove_file(path: str | Path) -> None:
    """Removes a file of ours, if it is there."""
    Path(path).unlink(missing_ok=True)


def remove_known(folder: str | Path, known: Callable[[str], bool]) -> list[str]:
    """Removes the files below a folder that are known as ours, and the folders that are empty then; returns the rest.

    known: takes a path below the folder, parts joined by `/`.  Temporary files are always ours.
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
            if path.is_symlink():
                left.append(path.relative_to(folder).as_posix())
            elif is_temporary(name):
                shutil.rmtree(path)
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(above)
    return sorted(left)


def move_aside(path: str | Path, word: str) -> Path:
    """Renames what is there to `<name>.<word>`, with a number where that is taken; returns the new name."""
    path = Path(path)
    return _renamed(path, path.with_name(f"{path.name}.{word}"))


def move_to(path: str | Path, folder: str | Path) -> Path:
    """Moves a file or folder into another folder of the same file system, with a number where its name is taken."""
    path = Path(path)
    return _renamed(path, Path(folder) / path.name)


def _renamed(path: Path, wanted: Path) -> Path:
    names = (wanted if i == 1 else wanted.with_name(f"{wanted.name}-{i}") for i in itertools.count(1))
    free = next(place for place in names if not os.path.lexists(place))
    os.rename(path, free)
    return free


def sweep(folder: str | Path) -> None:
    """Removes what killed processes left unfinished directly in a folder; to be called by who has its lock."""
    folder = Path(folder)
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_temporary(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """ConfigError where a file to be written is one of those that are read, by whatever name."""
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
    """So that a rename in it survives a power cut; where folders cannot be synced, the system has to see to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
