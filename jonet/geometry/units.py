"""Units of length of files: which some kinds of files name, and which GLB has, the meter."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import zipfile
from pathlib import Path

import numpy as np

from jonet.errors import ConfigError, shown
from jonet.geometry.mesh import Mesh

METERS = {"um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "in": 0.0254, "ft": 0.3048}  # of one unit
NAMES = {"micron": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "in", "foot": "ft"}
HEAD = 4096  # bytes at the beginning of a file or part, in which its unit is looked for
_MODEL = re.compile(rb"<model\b[^>]*?\bunit\s*=\s*[\"']([a-z]+)[\"']")
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
    found = None
    with contextlib.suppress(OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        if path.suffix.lower() == ".obj":
            with path.open("rb") as file:
                found = _COMMENT.search(file.read(HEAD))
        if path.suffix.lower() == ".3mf":
            with zipfile.ZipFile(path) as archive:
                part = next((name for name in archive.namelist() if name.lower().endswith("3dmodel.model")), None)
                if part is not None:
                    with archive.open(part) as file:
                        head = file.read(HEAD)
                    found = _MODEL.search(head)
                    if found is None and b"<model" in head:
                        return "mm"  # the default of the standard
    if found is None:
        return None
    name = found[1].decode().lower()
    return NAMES.get(name, name)


def in_meters(mesh: Mesh, unit: str | None) -> Mesh:
    """A mesh in meters, as GLB counts; the mesh itself if its unit is not known."""
    return mesh if unit is None else dataclasses.replace(mesh, vertices=np.multiply(mesh.vertices, METERS[unit]))
