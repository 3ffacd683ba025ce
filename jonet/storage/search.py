"""Searching folders for inputs: hidden files, macOS metadata and output folders of jonet are skipped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from glob import has_magic, iglob
from pathlib import Path


def is_hidden(name: str) -> bool:
    """Whether searches skip a file or folder: hidden ones, and the metadata that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_output(folder: Path) -> bool:
    """Whether a folder holds the results of a run or a bulk job, so that searches for inputs skip it."""
    if (folder / "job.json").is_file() and any(folder.glob("manifest*.csv")):
        return True
    try:
        run = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return (folder / "config.json").is_file() and (folder / "store").is_dir()
    return isinstance(run, dict) and {"task", "config", "done"} <= run.keys()


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """This folder and those below it, each with the names of its files; hidden ones and outputs of jonet are skipped.

    Links to folders are followed, except those to a folder above them.  A folder that cannot be read is a warning.
    """

    def warn(error: OSError) -> None:
        warnings.warn(f"{error.filename}: cannot be searched ({error.strerror}), so it is left out", stacklevel=4)

    # real paths of a folder and its ancestors, to detect cycles of links
    above: dict[Path, tuple[str, ...]] = {folder: (os.path.realpath(folder),)}
    for current, folders, names in os.walk(folder, onerror=warn, followlinks=True):
        chain, kept = above.pop(Path(current)), []
        for name in folders:
            inner, real = Path(current, name), os.path.realpath(Path(current, name))
            if not is_hidden(name) and real not in chain and not is_output(inner):
                above[inner] = (*chain, real)
                kept.append(name)
        folders[:] = kept  # in place: os.walk goes only into what is left in its list
        yield Path(current), [name for name in names if not is_hidden(name)]


def matching(path: str | Path) -> list[Path]:
    """The files and folders that a path names, sorted: itself, or what its pattern matches (`scans/*.ply`, `**`).

    `~` is the home folder.  A name with brackets or stars that exists is itself, and a pattern that matches nothing
    is returned as it is.
    """
    path = Path(path).expanduser()
    if os.path.lexists(path) or not has_magic(str(path)):
        return [path]
    found = [Path(name) for name in iglob(str(path), recursive=True)]
    return sorted(each for each in found if not is_hidden(each.name)) or [path]


def glob(folder: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern, sorted; hidden ones are skipped."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))
