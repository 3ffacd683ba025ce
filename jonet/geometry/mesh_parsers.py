"""Strict parsers and writers of mesh files: PLY, OBJ, OFF and STL here, other formats (GLB, glTF, …) by trimesh.

The four plain formats are parsed here because a file that is truncated or announces wrong counts must be an error, not
a smaller mesh.  Files are untrusted: counts are checked against the file's size before allocation, and nothing is
executed or unpickled.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import manifold3d
import numpy as np
import trimesh
from trimesh.exchange.load import mesh_formats

from jonet.errors import MeshError
from jonet.storage import archives

MOST_FACES = 10**8  # of a scene: a small file can hold very many instances of one shape
SUFFIXES = tuple(sorted("." + kind for kind in mesh_formats() - {"stl_ascii", "xyz"}))


class Arrays(NamedTuple):
    """vertices [V, 3] float64, faces [F, 3] int64, normals [V, 3] float64 or None."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None = None


def load(path: Path) -> Arrays:
    """The arrays of a file, polygons triangulated.  Raises MeshError, without the file's name, if it is damaged."""
    kind = path.suffix.lower()
    try:
        if kind in PARSERS:
            return PARSERS[kind](_content(path, kind))
        return _by_trimesh(path)
    except MeshError:
        raise
    except Exception as error:  # damaged files make numpy and trimesh raise errors of many types
        raise MeshError(f"cannot be read, the file is damaged or cut off ({type(error).__name__}: {error})") from error


def _content(path: Path, kind: str) -> bytes:
    """The bytes of a file; those of text are UTF-8 without a byte order mark."""
    data = path.read_bytes()
    encoding, mark = archives.encoding(data)
    if kind == ".ply" and encoding != "utf-8":
        raise MeshError(f"is {encoding.upper()} text, but PLY is ASCII; save it as ASCII or UTF-8")
    if kind == ".stl" and data[mark : mark + 20].replace(b"\0", b"")[:5].lower() != b"solid":
        return data  # binary: its first 80 bytes may be anything, a mark included
    return archives.utf8(data)


def triangulate(vertices, sizes, corners) -> np.ndarray:
    """Polygons to triangles [F, 3]: fans for convex polygons, manifold3d's triangulation for others.

    sizes [N]: number of corners of each polygon; corners [sum(sizes)]: their vertices, polygon by polygon.
    Raises MeshError for faces with fewer than 3 corners and for invalid indices.
    """
    sizes, corners = np.asarray(sizes, np.int64), np.asarray(corners, np.int64)
    if len(sizes) and sizes.min() < 3:
        bad = int(np.argmin(sizes))
        raise MeshError(f"face {bad} has {sizes[bad]} corners; the file is damaged or cut off")
    start = np.cumsum(sizes) - sizes
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        at = int(np.flatnonzero((corners < 0) | (corners >= len(vertices)))[0])
        raise MeshError(
            f"face {int(np.searchsorted(start, at, side='right')) - 1} uses vertex {corners[at]} (counted from 0), but "
            f"there are {len(vertices)}; the file is damaged or cut off"
        )
    triangles, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes):  # all polygons of one size at once
        chosen = np.flatnonzero(sizes == size)
        polygons = corners[start[chosen, None] + np.arange(size)]
        fan = np.stack(np.broadcast_arrays(polygons[:, :1], polygons[:, 1:-1], polygons[:, 2:]), -1)
        if size > 3:
            a, b, c = np.moveaxis(vertices[fan], 2, 0)
            normals = np.cross(b - a, c - a)
            normal = normals.sum(1)  # the polygon's; a triangle of the fan that opposes it means a reflex corner
            for row in np.flatnonzero((np.einsum("ntd,nd->nt", normals, normal) < 0).any(1)):
                fan[row] = _nonconvex(vertices, polygons[row], normal[row], fan[row])
        triangles.append(fan.reshape(-1, 3))
        owners.append(np.repeat(chosen, size - 2))
    return np.concatenate(triangles)[np.argsort(np.concatenate(owners), kind="stable")]


def _nonconvex(vertices, polygon, normal, fan):
    """Triangles [n - 2, 3] of a polygon [n] that is not convex; its fan if it intersects itself."""
    basis = np.linalg.svd(normal[None])[2][1:]  # two orthonormal directions in its plane
    basis[1] *= np.sign(np.dot(np.cross(*basis), normal))  # right-handed with the normal: keeps the winding
    triangles = np.asarray(manifold3d.triangulate([(vertices[polygon] - vertices[polygon[0]]) @ basis.T]))
    return polygon[triangles] if triangles.shape == fan.shape else fan


PLY_TYPES = dict(char="i1", uchar="u1", short="i2", ushort="u2", int="i4", uint="u4", float="f4", double="f8")
PLY_TYPES |= {np.dtype(kind).name: kind for kind in PLY_TYPES.values()}


class _Property(NamedTuple):
    name: str
    kind: np.dtype
    count: np.dtype | None  # of a list property: the type of its length; else None


def _ply(data: bytes) -> Arrays:
    """A PLY file, ASCII or binary.  An ASCII body is converted to float64 first, then both are parsed alike."""
    end = re.search(rb"^end_header[ \t]*(\r\n|\n|\r)", data, re.MULTILINE)
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
                elements.append((name, int(count), []))
            case ["property", "list", count, kind, name]:
                elements[-1][2].append(_Property(name, _ply_type(kind, order), _ply_type(count, order)))
            case ["property", kind, name]:
                elements[-1][2].append(_Property(name, _ply_type(kind, order), None))
    at, vertices, normals, faces = 0, np.zeros((0, 3)), None, np.zeros((0, 3), np.int64)
    for name, count, properties in elements:
        columns, at = _ply_element(body, at, name, count, properties)
        if name == "vertex":
            vertices, normals = (
                np.stack([columns[key].astype(np.float64) for key in keys], 1) if set(keys) <= set(columns) else None
                for keys in (("x", "y", "z"), ("nx", "ny", "nz"))
            )
        if name == "face" and count:
            key = "vertex_indices" if "vertex_indices" in columns else "vertex_index"
            faces = triangulate(vertices, *columns[key])
    if at != len(body):
        raise MeshError(f"holds {len(body) - at} bytes more than its header announces; the header is damaged")
    return Arrays(vertices, faces, normals)


def _ply_type(kind: str, order: str) -> np.dtype:
    """The dtype of a property; the body of an ASCII file (order '') was converted to float64."""
    return np.dtype(order + PLY_TYPES[kind]) if order else np.dtype("<f8")


def _ply_element(body, at, name, count, properties):
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
    """`_ply_element` for lists of different lengths, row by row; returns the lists only."""
    columns = {p.name: ([], []) for p in properties if p.count}
    for index in range(count):
        for p in properties:
            length = 1
            if p.count:
                if at + p.count.itemsize > len(body):
                    raise MeshError(f"is cut off in {name} element {index} of {count}")
                length = int(np.frombuffer(body, p.count, 1, at)[0])
                at += p.count.itemsize
            if length < 0 or at + length * p.kind.itemsize > len(body):
                raise MeshError(f"is cut off in {name} element {index} of {count}")
            if p.count:
                columns[p.name][0].append(length)
                columns[p.name][1].append(np.frombuffer(body, p.kind, length, at))
            at += length * p.kind.itemsize
    return {key: (np.array(sizes), np.concatenate(items)) for key, (sizes, items) in columns.items()}, at


def _numbers(words: list[bytes], dtype) -> np.ndarray:
    if (longest := max(map(len, words), default=0)) > 64:  # numpy pads all words to the longest: memory
        raise MeshError(f"has a word of {longest} characters where a number should be")
    return np.array(words, np.bytes_).astype(dtype)


def _obj(data: bytes) -> Arrays:
    """A Wavefront OBJ file: its vertices and faces; lines may be continued by a backslash."""
    vertices, sizes, corners = [], [], []
    for number, line in enumerate(re.sub(rb"\\\r?\n", b" ", data).splitlines(), 1):
        key, *words = line.partition(b"#")[0].split() or [b""]
        if key == b"v":
            if len(words) < 3:
                raise MeshError(f"has a vertex of {len(words)} numbers in line {number}; it is damaged or cut off")
            vertices += words[:3]
        elif key == b"f":
            for word in words:
                index = int(word.partition(b"/")[0])
                if index == 0:
                    raise MeshError(f"uses vertex 0 in line {number}, but OBJ counts from 1")
                corners.append(index - 1 if index > 0 else len(vertices) // 3 + index)  # negative: from the last one
            sizes.append(len(words))
    vertices = _numbers(vertices, np.float64).reshape(-1, 3)
    return Arrays(vertices, triangulate(vertices, sizes, corners))


def _off(data: bytes) -> Arrays:
    """A text OFF file, with or without colors and normals, which are ignored."""
    lines = [words for line in data.splitlines() if (words := line.partition(b"#")[0].split())]
    head = re.fullmatch(rb"(?:ST)?C?N?OFF(\d*)", lines[0][0]) if lines else None
    if not head or b"BINARY" in lines[0]:
        raise MeshError("does not begin with 'OFF' (or COFF, NOFF), so it is no text OFF file of three dimensions")
    counts = [head[1]] * bool(head[1]) + lines.pop(0)[1:]  # ModelNet has files that begin with "OFF490 518 0"
    counts = [int(word) for word in (counts or lines.pop(0))[:2]]
    if len(counts) < 2 or min(counts) < 0 or sum(counts) > len(lines):
        raise MeshError(
            f"announces {counts} vertices and faces, but {len(lines)} lines follow; it is cut off or damaged"
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
    return Arrays(vertices, triangulate(vertices, sizes, corners))


STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def _stl(data: bytes) -> Arrays:
    """An STL file, text or binary; triangles do not share vertices."""
    # Binary files may begin with "solid", too, so the text must go on like a text file.
    if data[:5].lower() == b"solid" and b"facet" in data[:2000].lower() and b"\0" not in data[:2000]:
        text = data.lower()
        corners = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", text)
        if len(corners) != 3 * text.count(b"endfacet") or b"endsolid" not in text[-200:]:
            raise MeshError(f"is cut off after {text.count(b'endfacet')} facets (no 'endsolid')")
        vertices = _numbers([word for corner in corners for word in corner], np.float64).reshape(-1, 3)
    else:
        count = int.from_bytes(data[80:84], "little")
        if len(data) != 84 + 50 * count:
            raise MeshError(
                f"announces {count} facets, {84 + 50 * count} bytes, but holds {len(data)}; it is cut off or damaged"
            )
        vertices = np.frombuffer(data, STL_FACET, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
    return Arrays(vertices, np.arange(len(vertices)).reshape(-1, 3))


PARSERS = {".ply": _ply, ".obj": _obj, ".off": _off, ".stl": _stl}


def _by_trimesh(path: Path) -> Arrays:
    """A scene as one mesh, each node's transform applied; mirrored nodes get their faces flipped."""
    if path.suffix.lower() in (".glb", ".gltf"):
        _check_accessors(path)
    log = logging.getLogger("trimesh")  # silenced: what it reports is raised as MeshError, or does not matter
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            scene = trimesh.load_scene(path, process=False, skip_materials=True)
            shapes = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
            if (count := sum(len(shape.faces) for shape in shapes if hasattr(shape, "faces"))) > MOST_FACES:
                raise MeshError(f"places its shapes so often that there would be {count} faces")
            loaded = scene.to_mesh()
    finally:
        log.disabled = before
    return Arrays(loaded.vertices, loaded.faces)


def _check_accessors(path: Path) -> None:
    """MeshError if a glTF accessor announces more items than the files have bytes.

    Accessors without stored data are zeros by the standard, so a tiny file could make trimesh allocate any amount.
    """
    with path.open("rb") as file:
        head = file.read(20)
        if head[:4] == b"glTF":
            length, size = (int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
            if length != path.stat().st_size or size > length:
                raise MeshError(f"announces {length} bytes, but holds {path.stat().st_size}; it is cut off or damaged")
            tree, held = json.loads(file.read(size)), length
        else:
            tree = json.loads(head + file.read())
            uris = [buffer.get("uri", "") for buffer in tree.get("buffers", ())]
            external = [path.parent / uri for uri in uris if not uri.startswith("data:")]
            held = path.stat().st_size + sum(file.stat().st_size for file in external if file.is_file())
    for index, accessor in enumerate(tree.get("accessors", ())):
        if not 0 <= accessor["count"] <= held:
            raise MeshError(f"announces {accessor['count']} items in accessor {index}, more than the file holds")


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


def _rows(array, form: str) -> list[str]:
    """Lines of numbers, each with the digits that its dtype needs to be read back exactly."""
    rows = array.tolist() if array.dtype.kind == "i" else array.astype(str).tolist()
    return [form.format(*row) for row in rows]


def _dump_obj(arrays: Arrays) -> bytes:
    lines, form = _rows(arrays.vertices, "v {} {} {}"), "f {} {} {}"
    if arrays.normals is not None:
        lines += _rows(arrays.normals.astype(np.float32), "vn {} {} {}")
        form = "f {0}//{0} {1}//{1} {2}//{2}"
    return "\n".join([*lines, *_rows(arrays.faces + 1, form), ""]).encode()


def _dump_off(arrays: Arrays) -> bytes:
    counts = f"{len(arrays.vertices)} {len(arrays.faces)} 0"
    return "\n".join(
        ["OFF", counts, *_rows(arrays.vertices, "{} {} {}"), *_rows(arrays.faces, "3 {} {} {}"), ""]
    ).encode()


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
    return scene.export(file_type="glb", include_normals=arrays.normals is not None)


WRITERS = {".ply": _dump_ply, ".obj": _dump_obj, ".off": _dump_off, ".stl": _dump_stl, ".glb": _dump_glb}
