"""Searching folders for inputs: hidden files, macOS metadata and output folders of jonet are skipped."""

from __future__ import annotations

import collections
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from glob import escape, has_magic, iglob
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

    Each folder is searched once, whatever links to it there are: folders themselves first, then links, in the order of
    their names.  A folder that cannot be read is a warning.
    """

    def warn(error: OSError) -> None:
        warnings.warn(f"{error.filename}: cannot be searched ({error.strerror}), so it is left out", stacklevel=4)

    searched: set[str] = set()  # real paths
    waiting = collections.deque([folder])
    while waiting:
        for current, folders, names in os.walk(waiting.popleft(), onerror=warn):
            if (real := os.path.realpath(current)) in searched:
                folders.clear()  # in place: os.walk goes only into what is left in its list
                continue
            searched.add(real)
            kept = [name for name in sorted(folders) if not is_hidden(name) and not is_output(Path(current, name))]
            waiting += [Path(current, name) for name in kept if os.path.islink(Path(current, name))]
            folders[:] = kept  # into links os.walk does not go
            yield Path(current), [name for name in names if not is_hidden(name)]


def matching(path: str | Path) -> list[Path]:
    """The files and folders that a path names, sorted: itself, or what its pattern matches (`scans/*.ply`, `**`).

    `~` is the home folder, if no name begins with it.  A name with brackets or stars that exists is itself, and a
    pattern that matches nothing is returned as it is.
    """
    if os.path.lexists(path):
        return [Path(path)]
    path = Path(os.path.expanduser(path))
    if os.path.lexists(path) or not has_magic(str(path)):
        return [path]
    return sorted(each for each in _matches(path) if not is_hidden(each.name)) or [path]


def _matches(pattern: Path) -> set[Path]:
    """What matches a pattern; `**` stands for a folder and those below it that `walk` finds, each of them once."""
    if "**" not in pattern.parts:
        return {Path(name) for name in iglob(str(pattern))}
    at = pattern.parts.index("**")
    rest = list(itertools.dropwhile(lambda part: part == "**", pattern.parts[at:]))
    found = set()
    for above in iglob(str(Path(*pattern.parts[:at]))):
        for folder, names in walk(Path(above)):
            found |= _matches(Path(escape(str(folder)), *rest)) if rest else {folder, *map(folder.joinpath, names)}
    return found


def glob(folder: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern, sorted; hidden ones are skipped."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(map(is_hidden, path.relative_to(folder).parts)))
