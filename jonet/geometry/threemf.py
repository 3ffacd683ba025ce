"""Reads 3MF files (3MF Consortium, Core Specification 1.3, and the paths of the Production Extension) as one mesh.

Read are the meshes that the build places, with the transforms of items and components.  Materials, colors and settings
of printers do not change the shape and are ignored.  Files are untrusted: sizes are checked before anything is
unpacked, documents with a DOCTYPE are refused, and only parts of the archive are opened.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from jonet.errors import MeshError, shown
from jonet.storage import archives
from jonet.wording import counted

ROOT = "3D/3dmodel.model"
UNITS = ("micron", "millimeter", "centimeter", "inch", "foot", "meter")
PIECE = 1 << 12  # bytes that are parsed at once until the root of a part is found
DEEP = 64  # levels of components, at most
# Vertices and corners that a file may have: FREE, and PER_BYTE for each of its bytes; a placed object counts as PLACED.
FREE, PER_BYTE, PLACED = 2_000_000, 8, 100


class _Object(NamedTuple):
    """vertices [V, 3] float64, faces [F, 3] int64; components: object, transform [4, 3]; kind: "support" and others."""

    vertices: np.ndarray
    faces: np.ndarray
    components: list[tuple[tuple[str, str], np.ndarray]]
    kind: str


def read(path: Path, note: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """The objects of the build as vertices [V, 3] float64 and faces [F, 3] int64, in the unit of the file.

    note: called with the unit, and with what is left out.  Raises MeshError, without the file's name.
    """
    if not zipfile.is_zipfile(path):
        raise MeshError("is no 3MF file, which is a zip archive, or cut off")
    with zipfile.ZipFile(path) as archive:
        archives.check_size(path, sum(info.file_size for info in archive.infolist()))
        return _Archive(archive, FREE + PER_BYTE * path.stat().st_size).read(note)


def unit(path: Path) -> str:
    """The unit of a file, one of `UNITS`, as `read` takes it; raises MeshError, without the file's name."""
    if not zipfile.is_zipfile(path):
        raise MeshError("is no 3MF file, which is a zip archive, or cut off")
    with zipfile.ZipFile(path) as archive:
        names = _names(archive)
        part = _first(names)
        with archive.open(names[part]) as file:
            return _checked(_root_attributes(file, part))


def _names(archive: zipfile.ZipFile) -> dict[str, str]:
    """The names of the parts of an archive, by the form in which they are looked up."""
    return {name.lstrip("/").lower(): name for name in archive.namelist()}


def _first(names: Iterable[str]) -> str:
    """The part that has the build."""
    models = sorted(name for name in names if name.endswith(".model"))
    if not models:
        raise MeshError("holds no part '3D/3dmodel.model', so it is no 3MF file with a shape")
    return ROOT.lower() if ROOT.lower() in models else models[0]


def _checked(attributes: Mapping[str, str]) -> str:
    """The unit among the attributes of a model, that of the standard if there is none."""
    unit = attributes.get("unit", "millimeter")
    if unit not in UNITS:
        raise MeshError(f"has the unit {shown(unit)}; those of 3MF are {', '.join(UNITS)}")
    return unit


def _root_attributes(file: IO[bytes], part: str) -> dict[str, str]:
    """The attributes of a part's root element, in any encoding; MeshError for a DOCTYPE, which precedes it."""
    found: list[dict[str, str]] = []
    refused: list[bool] = []
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = lambda *_: refused.append(True)
    parser.StartElementHandler = lambda _, attributes: found.append(attributes)
    try:
        for piece in iter(lambda: file.read(PIECE), b""):
            parser.Parse(piece)
            if refused:
                raise MeshError("has a DOCTYPE, which no 3MF file may have")
            if found:
                return found[0]
        parser.Parse(b"", True)
    except (expat.ExpatError, ValueError) as error:
        raise MeshError(f"has a part {shown(part)} that is no XML ({archives.brief(error)}); it is damaged") from error
    raise MeshError(f"has a part {shown(part)} that is no XML; it is damaged")


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, most: int):
        self.archive, self.most, self.left = archive, most, most
        self.names = _names(archive)
        self.objects: dict[tuple[str, str], _Object] = {}
        self.loaded: set[str] = set()
        self.found: list[tuple[np.ndarray, np.ndarray]] = []

    def read(self, note: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
        first = _first(self.names)
        root = self.model(first)
        unit = _checked(root.attrib)
        supports = 0
        for item in _named(root, "item"):
            key = (self.part(item) or first, item.get("objectid", ""))
            if self.object(key).kind in ("support", "solidsupport"):
                supports += 1
                continue
            self.place(key, _transform(item), 0)
        if supports:
            note(f"{counted(supports, 'of its objects is a support', 'of its objects are supports')}: left out")
        note(f"its unit is the {unit}, and its coordinates are read as they are")
        first_of = np.cumsum([0] + [len(vertices) for vertices, _ in self.found]).tolist()
        faces = [faces + start for (_, faces), start in zip(self.found, first_of, strict=False)]
        none = np.zeros((0, 3))
        return (
            np.concatenate([none, *(vertices for vertices, _ in self.found)]),
            np.concatenate([none.astype(np.int64), *faces]),
        )

    def model(self, part: str) -> ElementTree.Element:
        """A part of the archive as a tree, its objects noted."""
        if part not in self.names:
            raise MeshError(f"refers to the part {shown(part)}, which it does not hold; it is damaged")
        with self.archive.open(self.names[part]) as file:
            _root_attributes(file, part)  # refuses a DOCTYPE before anything is expanded
        data = self.archive.read(self.names[part])
        try:
            root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError) as error:
            raise MeshError(
                f"has a part {shown(part)} that is no XML ({archives.brief(error)}); it is damaged"
            ) from error
        self.loaded.add(part)
        for one in _named(root, "object"):
            self.objects[part, one.get("id", "")] = self.parsed(one, part)
        return root

    def parsed(self, one: ElementTree.Element, part: str) -> _Object:
        corners = [[float(v.get(axis, "")) for axis in "xyz"] for v in _named(one, "vertex")]
        faces = [[int(t.get(key, "")) for key in ("v1", "v2", "v3")] for t in _named(one, "triangle")]
        vertices = np.array(corners, np.float64).reshape(-1, 3)
        triangles = np.array(faces, np.int64).reshape(-1, 3)
        if len(triangles) and not 0 <= triangles.min() <= triangles.max() < len(vertices):
            raise MeshError(
                f"uses vertex {triangles.max()} of {len(vertices)} in object {one.get('id')}; it is damaged"
            )
        parts = [((self.part(c) or part, c.get("objectid", "")), _transform(c)) for c in _named(one, "component")]
        return _Object(vertices, triangles, parts, one.get("type", "model"))

    def part(self, element: ElementTree.Element) -> str:
        """The part that an element refers to by a path (of the Production Extension); "" if it has none."""
        return next((v.lstrip("/").lower() for k, v in element.items() if k.rpartition("}")[2] == "path"), "")

    def object(self, key: tuple[str, str]) -> _Object:
        if key[0] not in self.loaded:
            self.model(key[0])
        if key not in self.objects:
            raise MeshError(
                f"refers to object {shown(key[1])} of {shown(key[0])}, which it does not hold; it is damaged"
            )
        return self.objects[key]

    def place(self, key: tuple[str, str], matrix: np.ndarray, level: int) -> None:
        """Adds an object and its components; matrix [4, 3]: p' = (p, 1) matrix."""
        if level > DEEP:
            raise MeshError("has components that contain each other; it is damaged")
        one = self.object(key)
        self.left -= len(one.vertices) + one.faces.size + PLACED
        if self.left < 0:
            raise MeshError(
                f"places its objects so often that there would be more than {self.most} vertices and corners"
            )
        mirrored = np.linalg.det(matrix[:3]) < 0
        if len(one.faces):
            faces = one.faces[:, ::-1] if mirrored else one.faces
            self.found.append((one.vertices @ matrix[:3] + matrix[3], faces))
        for inner, transform in one.components:
            whole = transform @ matrix[:3]
            whole[3] += matrix[3]
            self.place(inner, whole, level + 1)


def _named(root: ElementTree.Element, name: str):
    """The elements of a name below one, in any namespace."""
    return root.iterfind(f".//{{*}}{name}")


def _transform(element: Any) -> np.ndarray:
    """The transform [4, 3] of an item or component: p' = (p, 1) matrix."""
    words = element.get("transform", "1 0 0 0 1 0 0 0 1 0 0 0").split()
    try:
        matrix = np.array([float(word) for word in words]).reshape(4, 3)
    except ValueError:
        matrix = np.full((4, 3), np.nan)
    if not np.isfinite(matrix).all():
        raise MeshError(f"has the transform {shown(' '.join(words))}, but needs 12 numbers; it is damaged")
    return matrix
