"""Output files of verbs: a verb replaces files that a verb wrote before and nobody has changed since, and no others.

The hidden file `.jonet.json` in the folder records them: by file name, the verb and a stamp of the content
(`identity.stamp`; null while the file is being written).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jonet.errors import ConfigError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.storage import atomic, identity, locks

RECORD, LOCK = ".jonet.json", ".jonet.lock"


def check(folder: str | Path, names: Iterable[str], inputs: Iterable[str | Path] = ()) -> None:
    """ConfigError if an output is one of the inputs, or exists and is not an unchanged output of a verb.

    names: of the outputs in the folder.  To be called before the work.
    """
    folder, names = Path(folder), list(names)
    atomic.check_outputs([folder / name for name in names], inputs)
    recorded = _read(folder)
    for name in names:
        if os.path.lexists(folder / name) and not _ours(folder, name, recorded):
            raise ConfigError(f"{folder / name} exists, but jonet did not write it; choose another --out")


def keep(
    folder: str | Path, verb: str, files: Mapping[str, Callable[[Path], Any] | None], *, alone: bool = False
) -> None:
    """Writes output files.  files: by name, a function that writes the file at a path; None removes an earlier output.

    alone: all other earlier outputs of the verb in this folder are removed, too.
    Raises ConfigError as `check`.
    """
    folder = Path(folder)
    with locks.locked(folder / LOCK, wait=True):
        writers = {name: write for name, write in files.items() if write}
        check(folder, writers)
        recorded = _read(folder)
        gone = [name for name, entry in recorded.items() if alone and entry["verb"] == verb and name not in files]
        for name in [*gone, *(files.keys() - writers.keys())]:
            if name in recorded and _ours(folder, name, recorded):
                atomic.remove_file(folder / name)
            recorded.pop(name, None)
        new: dict[str, dict[str, Any]] = {name: {"verb": verb, "made": None} for name in writers}
        # before the files: if the process is killed, those that it wrote are recognized by the next call
        atomic.write_json(folder / RECORD, recorded | new)
        for name, write in writers.items():
            write(folder / name)
            new[name]["made"] = identity.stamp(folder / name)
        atomic.write_json(folder / RECORD, recorded | new)


def write_meshes(
    folder: str | Path, verb: str, meshes: Mapping[str, Mesh], *, alone: bool = False, unit: str | None = None
) -> None:
    """Writes meshes by file name as `keep`, and prints their paths; those without faces are not written.

    unit: of their coordinates, as of `mesh_files.write`.
    """
    writers = {name: _writer(mesh, unit) if len(mesh.faces) else None for name, mesh in meshes.items()}
    keep(folder, verb, writers, alone=alone)
    for name, mesh in meshes.items():
        if len(mesh.faces):
            print(Path(folder) / name)
        else:
            print(f"{name}: no surface, nothing is written", file=sys.stderr)


def _writer(mesh: Mesh, unit: str | None) -> Callable[[Path], Any]:
    return lambda path: mesh_files.write(mesh, path, unit)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        return {name: {"verb": entry["verb"], "made": entry["made"]} for name, entry in found.items()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # missing or damaged: then no file is recognized as ours
        return {}


def _ours(folder: Path, name: str, recorded: Mapping[str, dict[str, Any]]) -> bool:
    """Whether a file was written by a verb and not changed since, or by one that was killed while it wrote."""
    if name not in recorded:
        return False
    return recorded[name]["made"] is None or identity.unchanged(folder / name, recorded[name]["made"])
