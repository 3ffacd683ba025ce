"""Units of length of files: which some kinds of files name, and which GLB has, the meter."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jonet.errors import ConfigError, MeshError, shown
from jonet.geometry import threemf
from jonet.geometry.mesh import Mesh

METERS = {"um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "in": 0.0254, "ft": 0.3048}  # of one unit
NAMES = {"micron": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "in", "foot": "ft"}
HEAD = 4096  # bytes at the beginning of an OBJ file, in which its unit is looked for
_COMMENT = re.compile(
    rb"^#.*\bunits?\b\s*[:=]?\s*(um|mm|cm|m|in|ft|micron|millimeter|centimeter|meter|inch|foot)(e?s)?\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def check(unit: str | None) -> None:
    """ConfigError for an unknown unit."""
    if unit is not None and unit not in METERS:
        raise ConfigError(f"units is {shown(unit)}, but must be one of {', '.join(METERS)}")


def of_file(path: Path) -> str | None:
    """The unit that a file names, a key of `METERS`: a 3MF file, or an OBJ file by a comment (`# units: mm`).

    None if it names none, or cannot be read.
    """
    unread = (OSError, MeshError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)
    with contextlib.suppress(*unread):
        if path.suffix.lower() == ".3mf":
            return NAMES[threemf.unit(path)]
        if path.suffix.lower() == ".obj":
            with path.open("rb") as file:
                found = _COMMENT.search(file.read(HEAD))
            if found is not None:
                name = found[1].decode().lower()
                return NAMES.get(name, name)
    return None


def from_meters(mesh: Mesh, unit: str, like: Mesh) -> Mesh:
    """A mesh of a GLB file in the unit of another that is like it.

    GLB counts in meters, but a program that does not know the unit writes the coordinates as they are.  So the mesh
    itself is returned if its size is then nearer to that of the other one.
    """
    sizes = [np.linalg.norm(np.ptp(one.bounds, axis=0)) for one in (mesh, like)]
    with np.errstate(all="ignore"):
        ratio = np.log(sizes[0] / sizes[1])
    if not np.isfinite(ratio) or abs(ratio) <= abs(ratio - np.log(METERS[unit])):
        return mesh
    return dataclasses.replace(mesh, vertices=np.divide(mesh.vertices, METERS[unit]))


def in_meters(mesh: Mesh, unit: str | None) -> Mesh:
    """A mesh in meters, as GLB counts; the mesh itself if its unit is not known."""
    return mesh if unit is None else dataclasses.replace(mesh, vertices=np.multiply(mesh.vertices, METERS[unit]))
