"""Meshes to files of a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jonet.data import meshes
from jonet.data.meshes import Mesh


def write_all(made: Sequence[Mesh], options) -> None:
    """Each mesh as OUT/<its name>.<format>; one without faces is said and left out."""
    for i, mesh in enumerate(made):
        path = Path(options.out) / f"{mesh.name or f'shape_{i:03d}'}.{options.format}"
        if not len(mesh.faces):
            print(f"{path.stem}: no surface, nothing is written", file=sys.stderr)
            continue
        meshes.write(mesh, path)
        print(path)
