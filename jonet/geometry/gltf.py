"""Reads glTF 2.0 scenes (.glb and .gltf) as one mesh (Khronos Group, glTF 2.0 Specification, 2021).

Read are the triangles, strips and fans of all meshes that nodes of the scene place, with their instances, sparse and
quantized accessors, the weights of morph targets, and buffers compressed by meshoptimizer (`meshopt`).  Meshes that are
compressed by Draco are unpacked by DracoPy, the extra `gltf`.  Skins have the pose of their joints.  Materials,
cameras, lights and animations do not change the shape and are ignored.  Extensions that do are refused by name.

Files are untrusted: memory is bounded by their size, whatever they announce, and only files in the scene's folder are
opened.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from jonet.errors import MeshError, shown
from jonet.geometry import meshopt
from jonet.geometry.polygons import strips
from jonet.wording import counted

MAGIC = b"glTF"
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
TRIANGLES, STRIP, FAN = 4, 5, 6  # modes of primitives; smaller ones are points and lines
# Vertices and corners that a scene may have: FREE, and PER_BYTE for each byte of its files.  Instances of a mesh take
# no bytes, so without a bound a small file could ask for any amount of memory.
FREE, PER_BYTE = 2_000_000, 8
# Extensions that do not change the shape, or that are read here.
HARMLESS = re.compile(
    r"KHR_mesh_quantization|EXT_meshopt_compression|KHR_draco_mesh_compression|EXT_mesh_gpu_instancing|(KHR|EXT|MSFT|ADOBE|AGI)_"
    r"(materials?|texture|lights?|animation|xmp|audio|articulations|stage_lights)(_\w+)?"
)
DRACO, MESHOPT, INSTANCES = "KHR_draco_mesh_compression", "EXT_meshopt_compression", "EXT_mesh_gpu_instancing"
ADVICE = "open the file in Blender and export it without compression, or write PLY or OBJ"


class _Mesh(NamedTuple):
    """vertices [V, 3] float64 and faces [F, 3] int64 of all primitives; points [P, 3]: of those without faces."""

    vertices: np.ndarray
    faces: np.ndarray
    points: np.ndarray


def read(path: Path, note: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """The default scene as vertices [V, 3] float64 and faces [F, 3] int64, with each node's transform applied.

    Faces of mirrored nodes are flipped.  A scene without faces gives the vertices of its points and lines.  A file
    without scenes is read as if all of its nodes were in one, a file without nodes as if one held each mesh.
    note: called with what is left out, if anything.  Raises MeshError, without the file's name.
    """
    scene = _Scene(*_contents(path, note))
    parts, used, rigid = [], set(), 0
    for node, matrix in scene.placed():
        used.add(node["mesh"])
        joints = None
        if "skin" in node and scene.has_joints(node["mesh"]):
            joints, matrix = scene.joints(node["skin"]), np.eye(4)  # the node's own transform does not count
        rigid += "skin" in node and joints is None
        vertices, faces, points = scene.mesh(node["mesh"], node.get("weights"), joints)
        scene.take(len(vertices) + faces.size + len(points))
        linear, moved = matrix[:3, :3], matrix[:3, 3]
        if np.linalg.det(linear) < 0:
            faces = faces[:, ::-1]
        parts.append(_Mesh(vertices @ linear.T + moved, faces, points @ linear.T + moved))
    if rigid:
        note(f"{counted(rigid, 'of its meshes is', 'of its meshes are')} read in the bind pose, without skins")
    if unused := len(scene.tree.get("meshes", ())) - len(used):
        note(f"{counted(unused, 'of its meshes is', 'of its meshes are')} not in its scene and left out")
    vertices, faces, points = _joined(parts)
    if not len(faces):
        return points, faces
    if len(points):
        note(f"{counted(len(points), 'of its vertices is', 'of its vertices are')} of points and lines, and left out")
    return vertices, faces


def _joined(parts: list[_Mesh]) -> _Mesh:
    first = np.cumsum([0] + [len(part.vertices) for part in parts]).tolist()
    faces = [part.faces + start for part, start in zip(parts, first, strict=False)]
    none = np.zeros((0, 3))
    return _Mesh(
        np.concatenate([none, *(part.vertices for part in parts)]),
        np.concatenate([none.astype(np.int64), *faces]),
        np.concatenate([none, *(part.points for part in parts)]),
    )


def _contents(path: Path, note) -> tuple[dict[str, Any], list[bytes | memoryview | None], int]:
    """The tree of a file, its buffers (None for one without data), and the number of bytes of all files."""
    data = path.read_bytes()
    text, binary = _chunks(data, note) if data.startswith(MAGIC) else (data, None)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MeshError(f"is no glTF file, or damaged: its description is not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise MeshError(f"is no glTF file: its description is a {type(tree).__name__}")
    version = str(tree.get("asset", {}).get("version", "2.0"))
    if version.split(".")[0] != "2":
        raise MeshError(f"is of glTF {shown(version)}, but only glTF 2 is read; convert it, or write PLY or OBJ")
    for name in tree.get("extensionsRequired", ()):
        if not HARMLESS.fullmatch(str(name)):
            raise MeshError(f"requires the extension {shown(name)}, which is not read; {ADVICE}")
    files: dict[str, bytes] = {}
    buffers = [_buffer(path, one, number, binary, files) for number, one in enumerate(tree.get("buffers", ()))]
    return tree, buffers, len(data) + sum(map(len, files.values()))


def _chunks(data: bytes, note) -> tuple[bytes, memoryview | None]:
    """The JSON of a GLB file and its binary chunk, if it has one."""
    if len(data) < 12:
        raise MeshError(f"has {len(data)} bytes, but the header of a GLB file has 12; it is cut off")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise MeshError(f"is of version {version} of GLB, but only version 2 is read; convert it, or write PLY or OBJ")
    if length > len(data):
        raise MeshError(f"announces {length} bytes, but holds {len(data)}; it is cut off or damaged")
    if length < len(data):
        note(f"the {counted(len(data) - length, 'byte after its end is', 'bytes after its end are')} left out")
    found, at = {}, 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise MeshError(f"announces a chunk of {size} bytes, but {length - at - 8} follow; it is cut off")
        found.setdefault(kind, memoryview(data)[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in found:
        raise MeshError("is cut off or damaged: it has no chunk of JSON")
    return bytes(found[b"JSON"]).rstrip(b"\0 "), found.get(b"BIN\0")


def _buffer(
    path: Path, buffer: dict, number: int, binary: memoryview | None, files: dict[str, bytes]
) -> bytes | memoryview | None:
    """The bytes of a buffer: in the file itself, or in a file that lies in its folder or below; None if it has none.

    files: those that were read already, by their real path; this one is added.
    """
    uri = buffer.get("uri")
    if uri is None:
        data = binary if number == 0 else None
    elif uri.startswith("data:"):
        head, _, body = uri.partition(",")
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote(body).encode("latin-1")
    else:
        data = _file(path, uri, number, files)
    if data is not None and len(data) < buffer["byteLength"]:
        raise MeshError(f"its buffer {number} has {len(data)} of {buffer['byteLength']} bytes; it is cut off")
    return data


def _file(path: Path, uri: str, number: int, files: dict[str, bytes]) -> bytes:
    for name in (unquote(uri), uri):  # the standard wants names to be encoded, some programs do not
        place = Path(name)
        if place.is_absolute() or place.drive or ".." in place.parts or "\0" in name:
            raise MeshError(f"its buffer {number} is outside of its folder ({shown(uri)}); put both into one folder")
        try:
            if (path.parent / place).is_file():
                real = os.path.realpath(path.parent / place)
                if real not in files:
                    files[real] = (path.parent / place).read_bytes()
                return files[real]
        except OSError:  # a name that no file can have
            continue
    raise MeshError(f"its buffer {number} is missing: there is no file {shown(unquote(uri))} in its folder")


class _Scene:
    """The tree of a file and its buffers."""

    def __init__(self, tree: dict[str, Any], buffers: list[bytes | memoryview | None], size: int):
        self.tree, self.buffers, self.size = tree, buffers, size
        self.left = self.most = FREE + PER_BYTE * size
        self._meshes: dict[int, _Mesh] = {}
        self._views: dict[int, bytes] = {}
        self._joints: dict[int, np.ndarray] = {}
        self._world: dict[int, np.ndarray] | None = None  # transforms of all nodes, for joints

    def take(self, count: int) -> None:
        """Counts vertices and corners; MeshError if there are too many for a file of this size."""
        self.left -= count
        if self.left < 0:
            raise MeshError(
                f"places its shapes so often that there would be more than {self.most} vertices and corners, too many "
                f"for {self.size} bytes"
            )

    def entry(self, name: str, index) -> dict[str, Any]:
        """The entry of a list of the tree."""
        entries = self.tree.get(name, [])
        if type(index) is not int or not 0 <= index < len(entries):
            raise MeshError(f"refers to entry {shown(index)} of {name}, but there are {len(entries)}; it is damaged")
        return entries[index]

    def placed(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """The nodes of the scene that have a mesh, and the transform [4, 4] of each."""
        nodes = self.tree.get("nodes", [])
        if not nodes:
            yield from (({"mesh": index}, np.eye(4)) for index in range(len(self.tree.get("meshes", []))))
            return
        if self.tree.get("scenes"):
            roots = self.entry("scenes", self.tree.get("scene", 0)).get("nodes", [])
        else:
            roots = sorted({*range(len(nodes))} - {child for node in nodes for child in node.get("children", ())})
        seen: set[int] = set()
        open_ = [(index, np.eye(4)) for index in reversed(roots)]
        while open_:
            index, above = open_.pop()
            node = self.entry("nodes", index)
            if index in seen:
                raise MeshError(f"places node {index} twice, but nodes must be a tree; it is damaged")
            seen.add(index)
            matrix = above @ _transform(node, index)
            open_ += [(child, matrix) for child in reversed(node.get("children", []))]
            if "mesh" in node:
                yield from ((node, matrix @ each) for each in self.instances(node, index))

    def instances(self, node: dict[str, Any], index: int) -> Iterator[np.ndarray]:
        """The transforms [4, 4] of the instances of a node's mesh: one that changes nothing where it has none."""
        attributes = node.get("extensions", {}).get(INSTANCES, {}).get("attributes", {})
        kinds = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}
        columns = {key: self.accessor(attributes[key], kind) for key, kind in kinds.items() if key in attributes}
        if len({len(column) for column in columns.values()}) > 1:
            raise MeshError(f"node {index} has instances of different numbers; it is damaged")
        for i in range(len(next(iter(columns.values()), [()]))):
            yield _transform({key.lower(): column[i].tolist() for key, column in columns.items()}, index)

    def has_joints(self, index) -> bool:
        """Whether all primitives of a mesh name joints for their vertices, in data that are not compressed by Draco."""
        primitives = self.entry("meshes", index)["primitives"]
        return all("JOINTS_0" in one["attributes"] and DRACO not in one.get("extensions", ()) for one in primitives)

    def joints(self, index) -> np.ndarray:
        """The matrices [J, 4, 4] by which the joints of a skin move vertices (glTF 2.0, section 3.7.3)."""
        skin = self.entry("skins", index)
        if index in self._joints:
            return self._joints[index]
        if self._world is None:
            self._world = self._transforms()
        for joint in skin["joints"]:
            self.entry("nodes", joint)
            if joint not in self._world:
                raise MeshError(f"has a joint, node {joint}, that is below itself; it is damaged")
        world = np.array([self._world[joint] for joint in skin["joints"]]).reshape(-1, 4, 4)
        if "inverseBindMatrices" in skin:
            inverse = self.accessor(skin["inverseBindMatrices"], "MAT4").astype(np.float64)
            if len(inverse) < len(world):
                raise MeshError(f"has {len(inverse)} inverse bind matrices for {len(world)} joints; it is damaged")
            world = world @ inverse[: len(world)].reshape(-1, 4, 4).swapaxes(1, 2)  # column by column
        self._joints[index] = world
        return world

    def _transforms(self) -> dict[int, np.ndarray]:
        """The transform [4, 4] of each node in its tree, those in circles left out."""
        nodes = self.tree.get("nodes", [])
        below = {child for node in nodes for child in node.get("children", ())}
        found: dict[int, np.ndarray] = {}
        open_ = [(index, np.eye(4)) for index in range(len(nodes)) if index not in below]
        while open_:
            index, above = open_.pop()
            node = self.entry("nodes", index)
            if index not in found:
                found[index] = above @ _transform(node, index)
                open_ += [(child, found[index]) for child in node.get("children", [])]
        return found

    def mesh(self, index, weights=None, joints=None) -> _Mesh:
        """A mesh.  weights: of its morph targets; None for the mesh's own.  joints [J, 4, 4]: of its skin, if any."""
        mesh = self.entry("meshes", index)
        own = weights is None and joints is None
        if own and index in self._meshes:
            return self._meshes[index]
        used = mesh.get("weights", ()) if weights is None else weights
        primitives = enumerate(mesh["primitives"])
        found = _joined([self._primitive(one, used, joints, f"primitive {i} of mesh {index}") for i, one in primitives])
        if own:
            self._meshes[index] = found
        return found

    def _skinned(self, points: np.ndarray, attributes: dict, joints: np.ndarray, where: str) -> np.ndarray:
        """Points [N, 3] moved by the joints of their vertices; those without weights stay."""
        moved, total = np.zeros_like(points), np.zeros(len(points))
        for number in itertools.takewhile(lambda i: f"JOINTS_{i}" in attributes, itertools.count()):
            which = self.accessor(attributes[f"JOINTS_{number}"], "VEC4").astype(np.int64)
            weights = self.accessor(attributes[f"WEIGHTS_{number}"], "VEC4").astype(np.float64)
            if not len(which) == len(weights) == len(points):
                raise MeshError(f"{where} has joints for {len(which)} of its {len(points)} vertices; it is damaged")
            if len(which) and not 0 <= which.min() <= which.max() < len(joints):
                raise MeshError(f"{where} uses joint {which.max()} of {len(joints)}; it is damaged")
            for k in range(4):
                matrices = joints[which[:, k], :3]
                places = np.einsum("nij,nj->ni", matrices[:, :, :3], points) + matrices[:, :, 3]
                moved += weights[:, k, None] * places
                total += weights[:, k]
        held = total > 0
        moved[held] /= total[held, None]
        return np.where(held[:, None], moved, points)

    def _primitive(self, primitive: dict, weights, joints, where: str) -> _Mesh:
        attributes, mode = primitive["attributes"], primitive.get("mode", TRIANGLES)
        if "POSITION" not in attributes:
            raise MeshError(f"{where} has no POSITION, so it has no vertices")
        if "bufferView" not in (positions := self.entry("accessors", attributes["POSITION"])):
            if DRACO in primitive.get("extensions", ()):
                if any(weights) and primitive.get("targets"):
                    raise MeshError(f"{where} is compressed by {DRACO} and has morph targets with weights; {ADVICE}")
                return self._unpacked(primitive["extensions"][DRACO], where)
            if unread := sorted(primitive.get("extensions", ())):
                raise MeshError(f"{where} is compressed by {unread[0]}, which is not read; {ADVICE}")
            if "sparse" not in positions:
                raise MeshError(f"{where} has vertices without data; it is damaged")
        points = self.accessor(attributes["POSITION"], "VEC3").astype(np.float64)
        for weight, target in zip(weights, primitive.get("targets", ()), strict=False):
            if weight and "POSITION" in target:
                points += weight * self.accessor(target["POSITION"], "VEC3")
        if joints is not None:
            points = self._skinned(points, attributes, joints, where)
        if mode in (0, 1, 2, 3):
            return _Mesh(points[:0], np.zeros((0, 3), np.int64), points)
        if mode not in (TRIANGLES, STRIP, FAN):
            raise MeshError(f"{where} has mode {shown(mode)}, which glTF does not have")
        corners = np.arange(len(points))
        if "indices" in primitive:
            corners = self.accessor(primitive["indices"], "SCALAR")[:, 0]
            if corners.dtype.kind not in "iu":
                raise MeshError(f"{where} has indices that are no whole numbers; it is damaged")
            corners = corners.astype(np.int64)
        if len(corners) and not (corners.min() >= 0 and corners.max() < len(points)):
            raise MeshError(f"{where} uses vertex {corners.max()}, but has {len(points)}; it is damaged")
        if mode == STRIP:
            return _Mesh(points, strips(corners), points[:0])
        if mode == FAN:
            fan = np.stack(np.broadcast_arrays(corners[1:-1], corners[2:], corners[:1]), -1)
            return _Mesh(points, fan, points[:0])
        if len(corners) % 3:
            raise MeshError(f"{where} has {len(corners)} corners, no multiple of 3; it is cut off or damaged")
        return _Mesh(points, corners.reshape(-1, 3), points[:0])

    def _unpacked(self, packed: dict, where: str) -> _Mesh:
        """A primitive that is compressed by Draco."""
        try:
            import DracoPy  # pyright: ignore[reportMissingImports]: it is no requirement
        except ImportError as error:
            raise MeshError(
                f"{where} is compressed by {DRACO}, which needs DracoPy to be read: pip install DracoPy; or {ADVICE}"
            ) from error
        data = self.view(packed["bufferView"], where)
        try:
            found = DracoPy.decode(bytes(data))
            points, faces = np.asarray(found.points, np.float64), np.asarray(found.faces, np.int64)
        except Exception as error:
            raise MeshError(f"{where} has data of {DRACO} that cannot be unpacked; it is damaged") from error
        self.take(len(points) + faces.size)
        if (
            points.shape[1:] != (3,)
            or faces.shape[1:] != (3,)
            or not 0 <= faces.min(initial=0) <= faces.max(initial=-1)
        ):
            raise MeshError(f"{where} has data of {DRACO} without triangles; it is damaged")
        if faces.max() >= len(points):
            raise MeshError(f"{where} uses vertex {faces.max()}, but has {len(points)}; it is damaged")
        return _Mesh(points, faces, points[:0])

    def accessor(self, index, kind: str) -> np.ndarray:
        """The items of an accessor [count, width]; normalized integers as floats (glTF 2.0, section 3.11)."""
        accessor = self.entry("accessors", index)
        count, component = accessor["count"], accessor["componentType"]
        if accessor["type"] != kind or component not in COMPONENTS or type(count) is not int or count < 0:
            raise MeshError(
                f"accessor {index} holds {shown(count)} items of {shown(accessor['type'])} {shown(component)}, but "
                f"should hold {kind}; it is damaged"
            )
        dtype, width, where = np.dtype(COMPONENTS[component]), WIDTHS[kind], f"accessor {index}"
        stored = "bufferView" in accessor  # the items of others are zeros by the standard
        if not stored and count > self.size:
            raise MeshError(f"announces {count} items in {where}, more than the file holds; it is damaged")
        self.take(count)
        items = self._items(accessor, dtype, width, count, where) if stored else np.zeros((count, width), dtype)
        if "sparse" in accessor:
            items = self._replaced(items, accessor["sparse"], where)
        if accessor.get("normalized") and dtype.kind in "iu":
            items = np.maximum(items / np.iinfo(dtype).max, -1.0)
        return items

    def _replaced(self, items: np.ndarray, sparse: dict, where: str) -> np.ndarray:
        """A copy of items in which those of a sparse accessor are replaced."""
        count, indices = sparse["count"], sparse["indices"]
        if type(count) is not int or not 0 <= count <= len(items) or indices["componentType"] not in (5121, 5123, 5125):
            raise MeshError(f"{where} replaces {shown(count)} of {len(items)} items; it is damaged")
        rows = self._items(indices, np.dtype(COMPONENTS[indices["componentType"]]), 1, count, where)[:, 0]
        if len(rows) and rows.max() >= len(items):
            raise MeshError(f"{where} replaces item {rows.max()} of {len(items)}; it is damaged")
        items = items.copy()
        items[rows] = self._items(sparse["values"], items.dtype, items.shape[1], count, where)
        return items

    def _items(self, source: dict, dtype: np.dtype, width: int, count: int, where: str) -> np.ndarray:
        """The items [count, width] that a view of a buffer holds; source: names the view and the place in it."""
        view = self.entry("bufferViews", source["bufferView"])
        data, offset = self.view(source["bufferView"], where), source.get("byteOffset", 0)
        size = dtype.itemsize * width
        stride = view.get("byteStride", size)
        if any(type(value) is not int or value < 0 for value in (offset, stride)) or stride < size:
            raise MeshError(f"{where} has a place that no file has; it is damaged")
        if count and offset + (count - 1) * stride + size > len(data):
            raise MeshError(f"announces {count} items in {where}, more than the file holds; it is cut off or damaged")
        if not count:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def view(self, index, where: str) -> bytes | memoryview:
        """The bytes of a view of a buffer, unpacked; where: what needs them, for messages."""
        view = self.entry("bufferViews", index)
        packed = view.get("extensions", {}).get(MESHOPT)
        self.entry("buffers", view["buffer"])
        if self.buffers[view["buffer"]] is not None:
            return self._part(view, where)
        if packed is None:
            unread = sorted(view.get("extensions", ()))
            raise MeshError(
                f"{where} is compressed by {unread[0]}, which is not read; {ADVICE}"
                if unread
                else f"{where} is in buffer {view['buffer']}, which has no data; it is damaged"
            )
        if index not in self._views:
            count, stride = packed["count"], packed["byteStride"]
            if type(count) is not int or type(stride) is not int or count < 0:
                raise MeshError(f"{where} is compressed as {shown(count)} elements; it is damaged")
            self.take(count)
            data, mode = bytes(self._part(packed, where)), packed["mode"]
            try:
                self._views[index] = meshopt.unpacked(data, count, stride, mode, packed.get("filter", "NONE"))
            except MeshError as error:
                raise MeshError(f"{where} {error}") from error
        return self._views[index]

    def _part(self, place: dict, where: str) -> memoryview:
        """The part of a buffer that a view, or the extension of one, names."""
        self.entry("buffers", place["buffer"])
        data, start, length = self.buffers[place["buffer"]], place.get("byteOffset", 0), place["byteLength"]
        if any(type(value) is not int or value < 0 for value in (start, length)):
            raise MeshError(f"{where} has a place that no file has; it is damaged")
        if data is None or start + length > len(data):
            raise MeshError(f"{where} is {length} bytes long, more than the file holds; it is cut off or damaged")
        return memoryview(data)[start : start + length]


def _transform(node: dict, index: int) -> np.ndarray:
    """The transform [4, 4] of a node in that above it."""
    if "matrix" in node:  # column by column
        return _numbers(node["matrix"], 16, index).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        x, y, z, w = rotation = _numbers(node["rotation"], 4, index)
        if not (norm := rotation @ rotation) > 0:
            raise MeshError(f"node {index} has a rotation of length 0; it is damaged")
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        matrix[:3, :3] += 2 * (w * cross + cross @ cross) / norm  # Rodrigues, for quaternions of any length
    if "scale" in node:
        matrix[:3, :3] *= _numbers(node["scale"], 3, index)
    if "translation" in node:
        matrix[:3, 3] = _numbers(node["translation"], 3, index)
    return matrix


def _numbers(values, count: int, index: int) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise MeshError(f"node {index} has a transform of {shown(values)}, but needs {count} numbers; it is damaged")
    return found
