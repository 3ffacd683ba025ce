"""Strict parsers and writers of mesh files: PLY, OBJ, OFF and STL here, GLB and glTF in `gltf`, 3MF in `threemf`.

What else the installed trimesh can read is left to it.

These formats are parsed here because a file that is truncated or announces wrong counts must be an error, not a smaller
mesh, and because what is left out must be said.  Files are untrusted: counts are checked against the file's size before
allocation, and nothing is executed or unpickled.
"""

from __future__ import annotations

import functools
import logging
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.load import mesh_formats

from jonet.errors import MeshError, shown
from jonet.geometry import gltf, threemf
from jonet.geometry.polygons import large_enough, strips, triangulate
from jonet.storage import archives
from jonet.wording import counted

SUFFIXES = tuple(sorted({".3mf"} | {"." + kind for kind in mesh_formats() - {"binvox", "stl_ascii", "xyz"}}))
Note = Callable[[str], None]  # called with what a parser leaves out


class Arrays(NamedTuple):
    """vertices [V, 3] float64, faces [F, 3] int64, normals [V, 3] float64 or None."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None


def load(path: Path) -> Arrays:
    """The arrays of a file, polygons triangulated.  What is left out is a warning.

    Raises MeshError, without the file's name, if it is damaged or of an unknown kind.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise MeshError(f"unknown kind of file; mesh files end in {', '.join(SUFFIXES)}")
    note = functools.partial(_warn, path)
    try:
        if kind in PARSERS:
            return PARSERS[kind](_content(path, kind), note)
        return Arrays(*SCENES[kind](path, note)) if kind in SCENES else _by_trimesh(path)
    except MeshError:
        raise
    except Exception as error:  # damaged files make numpy and trimesh raise errors of many types
        if words := archives.unopened(error):
            raise MeshError(words) from error
        cause = f"{type(error).__name__}: {archives.brief(error)}"
        raise MeshError(f"cannot be read, the file is damaged or cut off ({cause})") from error


def _warn(path: Path, words: str) -> None:
    warnings.warn(f"{path}: {words}", stacklevel=4)


def _content(path: Path, kind: str) -> bytes:
    """The bytes of a file; those of text are UTF-8 without a byte order mark."""
    data = path.read_bytes()
    _, mark = archives.encoding(data)
    if kind == ".stl" and data[mark : mark + 80].replace(b"\0", b"").lstrip()[:5].lower() != b"solid":
        return data  # binary: its first 80 bytes may be anything, a mark included
    return archives.utf8(data)


PLY_TYPES = dict(char="i1", uchar="u1", short="i2", ushort="u2", int="i4", uint="u4", float="f4", double="f8")
PLY_TYPES |= {np.dtype(kind).name: kind for kind in PLY_TYPES.values()}
PLY_VERTICES = ("vertex", "vertices", "point", "points")  # names of elements that programs write
PLY_STRIPS = ("tristrips", "tristrip", "trianglestrips")
PLY_FACES = ("face", "faces", "polygon", "polygons", "triangle", "triangles", "facet", "facets", *PLY_STRIPS)
PLY_CORNERS = re.compile(r"(vertex|vert|point|corner)?_?(index|indices|indexes|ids?|list|vertices|verts|corners)")


class _Property(NamedTuple):
    name: str
    kind: np.dtype
    count: np.dtype | None  # of a list property: the type of its length; else None


def _ply(data: bytes, note: Note) -> Arrays:
    """A PLY file, ASCII or binary.  An ASCII body is converted to float64 first, then both are parsed alike."""
    ends = rb"\r" if ply_by_cr(data) else rb"\r\n|\n|\r"  # a line feed after CR alone may be a number
    end = re.search(rb"(?<=[\r\n])end_header[ \t]*(" + ends + rb")", data)
    if not data.startswith(b"ply"):
        raise MeshError("does not begin with 'ply', so it is no PLY file")
    if not end:
        raise MeshError("is cut off in its header (no 'end_header')")
    body, order, elements = data[end.end() :], "<", []
    for words in (line.split() for line in data[: end.start()].decode("latin-1").splitlines()):
        match words:
            case ["format", "ascii", *_]:
                body, order = _numbers(body.split(), "<f8").tobytes(), ""
            case ["format", encoding, *_]:
                order = ">" if "big" in encoding else "<"
            case ["element", name, count]:
                elements.append((name[:40].lower(), int(count[:20]), {}))  # longer ones would only fill messages
            case ["property", "list", count, kind, name]:
                _ply_add(elements[-1][2], name, _ply_type(kind, order), _ply_type(count, order))
            case ["property", kind, name]:
                _ply_add(elements[-1][2], name, _ply_type(kind, order), None)
    at, vertices, normals, polygons, others = 0, np.zeros((0, 3)), None, [], []
    for name, count, named in elements:
        properties = list(named.values())
        columns, at = _ply_element(body, at, name, count, properties)
        if name in PLY_VERTICES and len(vertices) and count:
            note(f"its element {shown(f'{count} {name}')} is left out, its vertices are those of another")
        elif name in PLY_VERTICES and count:
            if not {"x", "y", "z"} <= columns.keys():
                raise MeshError(f"has vertices without x, y and z; their properties are {shown(', '.join(columns))}")
            vertices, normals = (_ply_vectors(columns, keys) for keys in (("x", "y", "z"), ("nx", "ny", "nz")))
        if name in PLY_FACES and count:
            lists = [p.name for p in properties if p.count]
            key = next(filter(PLY_CORNERS.fullmatch, lists), lists[0] if len(lists) == 1 else None)
            if key is None:
                raise MeshError(f"has a {name} element without a list vertex_indices")
            if name in PLY_STRIPS:
                polygons.append((_ply_strips, columns[key]))
            else:
                sizes, corners = columns[key]
                polygons.append((triangulate, large_enough(sizes, corners, note)))
        elif name not in PLY_VERTICES and count and any(p.count for p in properties):
            others.append(f"{count} {name}")
    if left := len(body) - at:
        numbers = counted(left // 8, "number") if not order else counted(left, "byte")
        note(f"{numbers} after the elements that its header announces: left out")
    if others and not polygons:
        note(f"its elements {shown(', '.join(others))} are no faces that are known, and left out")
    faces = [triangles(vertices, *listed) for triangles, listed in polygons]  # which may precede their vertices
    return Arrays(vertices, np.concatenate([np.zeros((0, 3), np.int64), *faces]), normals)


def ply_by_cr(data: bytes) -> bool:
    """Whether the lines of a PLY file end in CR alone, as those of old programs of the Macintosh."""
    return re.match(rb"(\xef\xbb\xbf)?ply[ \t]*\r(?!\n)", data) is not None


def _ply_strips(vertices, sizes, corners) -> np.ndarray:
    """The triangles of strips, several of which may be in one list, separated by -1."""
    corners = np.asarray(corners, np.int64)
    faces = strips(np.insert(corners, np.cumsum(sizes, dtype=np.int64)[:-1], -1))
    triangulate(vertices, np.full(len(faces), 3), faces.ravel())  # raises for invalid indices
    return faces


def _ply_add(properties: dict[str, _Property], name: str, kind: np.dtype, count: np.dtype | None) -> None:
    """Adds a property of an element; one whose name is taken gets another, which no file can have."""
    name = name.lower()
    name = f"{name} {len(properties)}" if name in properties else name
    properties[name] = _Property(name, kind, count)


def _ply_type(kind: str, order: str) -> np.dtype:
    """The dtype of a property; the body of an ASCII file (order '') was converted to float64."""
    return np.dtype(order + PLY_TYPES[kind]) if order else np.dtype("<f8")


def _ply_vectors(columns: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Columns side by side [N, 3] float64; None if one is missing."""
    return np.stack([columns[key].astype(np.float64) for key in keys], 1) if set(keys) <= set(columns) else None


def _ply_element(body, at, name, count, properties) -> tuple[dict[str, Any], int]:
    """The columns of one element by name (lists: lengths and concatenated items), and the offset of the next element.

    Fast path: if all lists of the element have the lengths of its first row (a mesh of triangles), it is one table.
    """
    least = sum((p.count or p.kind).itemsize for p in properties)
    if count < 0 or count * least > len(body) - at:
        raise MeshError(f"announces {count} {name} elements, more than the file holds; it is cut off or damaged")
    if not count or not properties:
        return {p.name: (np.zeros(0), np.zeros(0)) if p.count else np.zeros(0) for p in properties}, at
    fields, row = [], at  # the layout of the first row; the fast path holds if all rows have it
    for p in properties:
        length = int(np.frombuffer(body, p.count, 1, row)[0]) if p.count else 1
        fields += [(f"{p.name} count", p.count)] * bool(p.count) + [(p.name, p.kind, (length,) if p.count else ())]
        row += p.kind.itemsize * length + (p.count.itemsize if p.count else 0)
        if length < 0 or row > len(body):
            raise MeshError(f"is cut off or damaged in the first {name} element")
    if at + (row - at) * count <= len(body):
        table = np.frombuffer(body, np.dtype(fields), count, at)
        lists = [p.name for p in properties if p.count]
        if all((table[f"{key} count"] == table[key].shape[1]).all() for key in lists):
            columns = {p.name: table[p.name] for p in properties}
            return columns | {key: (table[f"{key} count"], columns[key].ravel()) for key in lists}, at + table.nbytes
    return _ply_rows(body, at, name, count, properties)


def _ply_rows(body, at, name, count, properties):
    """`_ply_element` for lists of different lengths, row by row."""
    counts = {p.name: [] for p in properties if p.count}
    items = {p.name: [] for p in properties}
    orders = [">" if p.count and p.count.byteorder == ">" else "<" for p in properties]
    lengths = [struct.Struct(o + p.count.char) if p.count else None for o, p in zip(orders, properties, strict=True)]
    for index in range(count):
        for p, number in zip(properties, lengths, strict=True):
            length = 1
            if number is not None:
                if at + number.size > len(body):
                    raise MeshError(f"is cut off in {name} element {index} of {count}")
                length = int(number.unpack_from(body, at)[0])
                counts[p.name].append(length)
                at += number.size
            size = length * p.kind.itemsize
            if size < 0 or at + size > len(body):
                raise MeshError(f"is cut off in {name} element {index} of {count}")
            items[p.name].append(body[at : at + size])
            at += size
    found = {p.name: np.frombuffer(b"".join(items[p.name]), p.kind) for p in properties}
    return found | {key: (np.array(sizes), found[key]) for key, sizes in counts.items()}, at


def _numbers(words: list[bytes], dtype) -> np.ndarray:
    if (longest := max(map(len, words), default=0)) > 64:  # numpy pads all words to the longest: memory
        raise MeshError(f"has a word of {longest} characters where a number should be")
    return np.array(words, np.bytes_).astype(dtype)


def _obj(data: bytes, note: Note) -> Arrays:
    """A Wavefront OBJ file: its vertices and faces; lines may be continued by a backslash.

    Faces of one or two corners have no area and are left out; as the last one such a face means that the file is cut.
    Without faces, as many normals as vertices are theirs.
    """
    vertices, normals, sizes, corners = [], [], [], []
    data = re.sub(rb"#[^\r\n]*", b"", data)  # first, since a comment may end in a backslash
    for number, line in enumerate(re.sub(rb"\\(\r\n|\n|\r)", b" ", data).splitlines(), 1):
        key, *words = line.split() or [b""]
        if key == b"v":
            if len(words) < 3:
                raise MeshError(
                    f"has a vertex of {counted(len(words), 'number')} in line {number}; it is damaged or cut off"
                )
            vertices += words[:3]
        elif key == b"vn" and not corners:
            normals += words[:3]
        elif key == b"f":
            for word in words:
                index = int(word.partition(b"/")[0])
                if index == 0:
                    raise MeshError(f"uses vertex 0 in line {number}, but OBJ counts from 1")
                corners.append(index - 1 if index > 0 else len(vertices) // 3 + index)  # negative: from the last one
            sizes.append(len(words))
    if not vertices and not sizes:
        raise MeshError("has no line of a vertex ('v x y z') or a face; it is empty, or no OBJ file")
    vertices = _numbers(vertices, np.float64).reshape(-1, 3)
    if not sizes and len(normals) == vertices.size:
        return Arrays(vertices, np.zeros((0, 3), int), _numbers(normals, np.float64).reshape(-1, 3))
    if sizes and sizes[-1] > 2:  # else the file is cut off there
        sizes, corners = large_enough(sizes, corners, note)
    return Arrays(vertices, triangulate(vertices, sizes, corners))


def _off(data: bytes, note: Note) -> Arrays:
    """A text OFF file, with or without colors and normals, which are ignored."""
    lines = [words for line in data.splitlines() if (words := line.partition(b"#")[0].split())]
    head = re.fullmatch(rb"(?:ST)?C?N?OFF(\d*)", lines[0][0]) if lines else None
    if not head or b"BINARY" in lines[0]:
        raise MeshError("does not begin with 'OFF' (or COFF, NOFF), so it is no text OFF file of three dimensions")
    counts = [head[1]] * bool(head[1]) + lines.pop(0)[1:]  # ModelNet has files that begin with "OFF490 518 0"
    counts = [int(word) for word in (counts or lines.pop(0))[:2]]
    if len(counts) < 2 or min(counts) < 0 or sum(counts) > len(lines):
        raise MeshError(
            f"announces {counts} vertices and faces, but {counted(len(lines), 'line follows', 'lines follow')}; it "
            "is cut off or damaged"
        )
    vertices = _numbers([word for words in lines[: counts[0]] for word in words[:3]], np.float64)
    faces = lines[counts[0] : sum(counts)]
    sizes = _numbers([words[0] for words in faces], np.int64)
    corners = [words[1 : size + 1] for words, size in zip(faces, sizes.tolist(), strict=True)]
    for index, words in enumerate(corners):
        if len(words) != sizes[index]:
            raise MeshError(f"is cut off in face {index} of {counts[1]}")
    corners = _numbers([word for words in corners for word in words], np.int64)
    vertices = vertices.reshape(counts[0], 3)
    if left := len(lines) - sum(counts):
        note(f"{counted(left, 'line')} after the vertices and faces that it announces: left out")
    return Arrays(vertices, triangulate(vertices, *large_enough(sizes, corners, note)))


PIECE = 1 << 16  # rows that become text at once
SOLID = re.compile(rb"\b((?:end\s*)?solid)\b[^\r\n]*?(?=\bfacet\s+normal\b|[\r\n]|\Z)")  # a name may hold any word
STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def _stl(data: bytes, note: Note) -> Arrays:
    """An STL file, text or binary; triangles do not share vertices.

    Counts of binary files are often wrong, and some programs write none, or no 'endsolid': such files are read by their
    length, if it is that of whole facets.  Where facets seem to be missing they are cut off, unless they close.
    """
    announced = int.from_bytes(data[80:84], "little")
    exact = len(data) == 84 + 50 * announced
    # Binary files may begin with "solid", too, so the text must go on like a text file.
    head = data[:2000].rstrip(b"\0").strip().lower()
    if not exact and head[:5] == b"solid" and b"facet" in head and b"\0" not in head:
        return _stl_text(data, note)
    count, left = divmod(max(len(data) - 84, 0), 50)
    if count > announced and left:  # what follows the facets is no facet
        count = announced or count
    left = len(data) - 84 - 50 * count
    vertices = np.frombuffer(data, STL_FACET, count, 84)["corners"].reshape(-1, 3) if count else np.zeros((0, 3))
    if len(data) < 84 or (announced > count and (left or not _closes(vertices))):
        raise MeshError(
            f"announces {counted(announced, 'facet')}, {84 + 50 * announced} bytes, but holds {len(data)}; it is cut "
            "off or damaged"
        )
    if announced not in (0, count):
        note(f"announces {counted(announced, 'facet')}, but its length is that of {count:,}, which are read")
    if left:
        note(f"{counted(left, 'byte')} after its {counted(count, 'facet')}: left out")
    vertices = vertices.astype(np.float64)
    return Arrays(vertices, np.arange(len(vertices)).reshape(-1, 3))


def _stl_text(data: bytes, note: Note) -> Arrays:
    text = SOLID.sub(rb"\1 ", data.lower())
    corners = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", text)
    words = [word for corner in corners for word in corner]
    if any(b"," in word for word in words):
        note("its numbers have decimal commas, and are read so")
        words = [word.replace(b",", b".") for word in words]
    vertices = _numbers(words, np.float64).reshape(-1, 3)
    facets = text.count(b"endfacet")
    ended = re.search(rb"end\s*solid", text[text.rfind(b"endfacet") + 1 :]) is not None
    if len(corners) != 3 * facets or not (ended or _closes(vertices)):
        raise MeshError(f"is cut off after {counted(facets, 'facet')} (no 'endsolid')")
    return Arrays(vertices, np.arange(len(vertices)).reshape(-1, 3))


def _closes(vertices: np.ndarray) -> bool:
    """Whether triangles that do not share vertices [3 F, 3] close: every edge is one of two of them."""
    corners = np.unique(vertices, axis=0, return_inverse=True)[1].reshape(-1, 3)
    if (corners == np.roll(corners, 1, axis=1)).any():
        return False
    edges = np.sort(corners[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return bool(len(edges)) and bool((np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all())


PARSERS = {".ply": _ply, ".obj": _obj, ".off": _off, ".stl": _stl}
SCENES = {".glb": gltf.read, ".gltf": gltf.read, ".3mf": threemf.read}


def _by_trimesh(path: Path) -> Arrays:
    """A scene as one mesh, each node's transform applied; mirrored nodes get their faces flipped."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            archives.check_size(path, sum(info.file_size for info in archive.infolist()))
    log = logging.getLogger("trimesh")  # silenced: what it reports is raised as MeshError, or does not matter
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            scene = trimesh.load_scene(path, process=False, skip_materials=True)
            shapes = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
            count = sum(len(shape.faces) for shape in shapes if hasattr(shape, "faces"))
            if count > (most := gltf.FREE + gltf.PER_BYTE * path.stat().st_size):
                raise MeshError(f"places its shapes so often that there would be {count} faces, more than {most}")
            loaded = scene.to_mesh()
    finally:
        log.disabled = before
    return Arrays(loaded.vertices, loaded.faces)


def dump(arrays: Arrays, kind: str) -> bytes:
    """The bytes of a file of `kind` (`.ply` binary, `.obj`, `.off`, `.stl` binary, `.glb`).

    Coordinates are float32 if that is accurate to 1e-6 of the extent.  Otherwise (far from the origin) they are float64
    in PLY, OBJ and OFF, and GLB stores the offset as the node's transform.  STL has only float32: MeshError if its
    rounding exceeds 1e-3 of the extent.
    """
    vertices, faces, normals = arrays
    grain = np.finfo(np.float32).eps * np.abs(vertices).max(initial=0)  # spacing of float32 at the largest coordinate
    extent = np.ptp(vertices, axis=0).max() if len(vertices) else 0.0
    if kind == ".stl" and grain > 1e-3 * extent:
        raise MeshError(
            f"STL has steps of {grain:.2g} so far from the origin, but the mesh is {extent:.2g} long; write PLY or OBJ"
        )
    if grain <= 1e-6 * extent:
        vertices = vertices.astype(np.float32)
    return WRITERS[kind](Arrays(vertices, faces, normals))


def _dump_ply(arrays: Arrays) -> bytes:
    vertices, faces, normals = arrays
    table = vertices if normals is None else np.concatenate([vertices, normals.astype(vertices.dtype)], axis=1)
    kind = "float" if table.dtype == np.float32 else "double"
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    head += [f"property {kind} {name}" for name in ("x", "y", "z", "nx", "ny", "nz")[: table.shape[1]]]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    return "\n".join(head).encode() + table.astype("<" + PLY_TYPES[kind]).tobytes() + rows.tobytes()


def _rows(array, form: str) -> bytes:
    """Rows of numbers as text, each with the digits that its dtype needs to be read back exactly.

    form: of a row, with `{}` for a number.
    """
    number = {"i": "%d", "f": "%.9g" if array.dtype == np.float32 else "%r"}[array.dtype.kind]
    line = form.replace("{}", number) + "\n"
    pieces = (array[start : start + PIECE] for start in range(0, len(array), PIECE))
    return b"".join(((line * len(piece)) % tuple(piece.ravel().tolist())).encode() for piece in pieces)


def _dump_obj(arrays: Arrays) -> bytes:
    rows, faces = [_rows(arrays.vertices, "v {} {} {}")], arrays.faces + 1
    if arrays.normals is None:
        return b"".join([*rows, _rows(faces, "f {} {} {}")])
    rows.append(_rows(arrays.normals.astype(np.float32), "vn {} {} {}"))
    return b"".join([*rows, _rows(faces.repeat(2, 1), "f {}//{} {}//{} {}//{}")])


def _dump_off(arrays: Arrays) -> bytes:
    counts = f"OFF\n{len(arrays.vertices)} {len(arrays.faces)} 0\n".encode()
    return b"".join([counts, _rows(arrays.vertices, "{} {} {}"), _rows(arrays.faces, "3 {} {} {}")])


def _dump_stl(arrays: Arrays) -> bytes:
    table = np.zeros(len(arrays.faces), STL_FACET)
    corners = arrays.vertices.astype(np.float64)[arrays.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    table["corners"] = corners
    table["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    return bytes(80) + len(table).to_bytes(4, "little") + table.tobytes()


def _dump_glb(arrays: Arrays) -> bytes:
    exact = arrays.vertices.dtype == np.float32
    center = np.zeros(3) if exact else (arrays.vertices.min(0) + arrays.vertices.max(0)) / 2
    mesh = trimesh.Trimesh(arrays.vertices - center, arrays.faces, vertex_normals=arrays.normals, process=False)
    scene = trimesh.Scene()
    scene.add_geometry(mesh, transform=trimesh.transformations.translation_matrix(center))
    return export_glb(scene, include_normals=arrays.normals is not None)


WRITERS = {".ply": _dump_ply, ".obj": _dump_obj, ".off": _dump_off, ".stl": _dump_stl, ".glb": _dump_glb}
