"""Finding, reading and writing mesh files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jonet.errors import MeshError
from jonet.geometry import mesh_parsers, units, unread
from jonet.geometry.mesh import Mesh, check
from jonet.storage import atomic
from jonet.storage.search import walk


def read(path) -> Mesh:
    """Reads a mesh file of any format in `mesh_parsers.SUFFIXES`; scenes become one mesh, with transforms applied.

    Raises MeshError with file and cause if it cannot be read, is truncated, or holds no usable surface.
    """
    path = Path(path)
    if path.suffix.lower() not in mesh_parsers.SUFFIXES:
        raise MeshError(f"{path}: {unread.described(path.suffix.lower(), mesh_parsers.SUFFIXES)}")
    if not path.is_file():
        raise MeshError(f"{path}: no such file")
    if not path.stat().st_size:
        raise MeshError(f"{path}: the file is empty (0 bytes)")
    try:
        mesh = Mesh(*mesh_parsers.load(path), name=str(path))
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error.__cause__  # `load` does not name the file
    return dataclasses.replace(check(mesh), name=path.stem)


def find(folder) -> list[Path]:
    """Mesh files below a folder (or the file itself), sorted; hidden files and outputs of jonet are skipped."""
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise MeshError(f"{folder}: no such file or folder")
    found = (above / name for above, names in walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in mesh_parsers.SUFFIXES and path.is_file())


def write(mesh: Mesh, path, unit: str | None = None) -> Path:
    """Writes PLY (binary), OBJ, STL, GLB or OFF by the suffix, atomically; returns the path.

    unit: of the coordinates, a key of `units.METERS`, if it is known: GLB counts in meters, the others have no unit.
    Coordinates far from the origin keep their precision (see `mesh_parsers.dump`), but not in STL, which is float32.
    """
    path = Path(path)
    if path.suffix.lower() not in mesh_parsers.WRITERS:
        raise MeshError(f"{path}: unknown kind of file; meshes are written as {', '.join(mesh_parsers.WRITERS)}")
    if path.suffix.lower() == ".glb":
        mesh = units.in_meters(mesh, unit)
    data = mesh_parsers.dump(mesh_parsers.Arrays(mesh.vertices, mesh.faces, mesh.normals), path.suffix.lower())
    atomic.write_bytes(path, data, sync=False)  # not synced: jobs that resume check whether files are complete
    return path
