"""What verbs write into a folder: they replace what such a verb made there before, and nothing else.

The hidden file `.jonet.json` tells it: by name, the verb and what tells the content (`identity.stamp`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jonet.data import meshes
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError
from jonet.storage import atomic, identity, locks

RECORD, LOCK = ".jonet.json", ".jonet.lock"


def check(folder: str | Path, names: Iterable[str], inputs: Iterable[str | Path] = ()) -> None:
    """ConfigError where a file of the folder is an input, or there and made by no verb; for before the work."""
    folder, names = Path(folder), list(names)
    atomic.check_outputs([folder / name for name in names], inputs)
    known = _read(folder)
    for name in names:
        if os.path.lexists(folder / name) and not _ours(folder, name, known):
            raise ConfigError(f"{folder / name} is there already, and jonet did not make it; choose another --out")


def keep(
    folder: str | Path, verb: str, files: Mapping[str, Callable[[Path], Any] | None], *, alone: bool = False
) -> None:
    """Writes the files of a folder, by name; what stands for None is not made, and what it was before is removed.

    alone: so is everything else that the verb made here before.
    """
    folder = Path(folder)
    with locks.locked(folder / LOCK, wait=True):
        check(folder, [name for name, write in files.items() if write])
        known = _read(folder)
        gone = [name for name, entry in known.items() if alone and entry["verb"] == verb and name not in files]
        for name in [*gone, *(name for name, write in files.items() if not write)]:
            if name in known and _ours(folder, name, known):
                atomic.remove_file(folder / name)
            known.pop(name, None)
        made = {name: {"verb": verb, "made": None} for name, write in files.items() if write}
        atomic.write_json(folder / RECORD, known | made)  # before the files: a killed process may have made them
        for name in made:
            files[name](folder / name)
            made[name]["made"] = identity.stamp(folder / name)
        atomic.write_json(folder / RECORD, known | made)


def write_meshes(folder: str | Path, verb: str, made: Mapping[str, Mesh], *, alone: bool = False) -> None:
    """Meshes by file name, as `keep` does; those without faces are said and left out."""
    keep(folder, verb, {name: _writer(mesh) if len(mesh.faces) else None for name, mesh in made.items()}, alone=alone)
    for name, mesh in made.items():
        if len(mesh.faces):
            print(Path(folder) / name)
        else:
            print(f"{name}: no surface, nothing is written", file=sys.stderr)


def _writer(mesh: Mesh) -> Callable[[Path], Any]:
    return lambda path: meshes.write(mesh, path)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        return {name: {"verb": entry["verb"], "made": entry["made"]} for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # then nothing is known as ours
        return {}


def _ours(folder: Path, name: str, known: Mapping[str, dict[str, Any]]) -> bool:
    if name not in known:
        return False
    return known[name]["made"] is None or identity.unchanged(folder / name, known[name]["made"])
