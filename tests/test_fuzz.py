"""Every reader of files under mutations of small valid files: a result or one JonetError, within bounds.

Containers with checksums (zip, PNG, model folders) are mutated inside, too, and closed again with right checksums.
"""

import contextlib
import io
import json
import os
import random
import re
import resource
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gltf_scenes import compressed_scene, draco_scene, glb, scene
from PIL import Image

from jonet import config, model_folder
from jonet.bulk.manifest import Manifest, Row
from jonet.codes import Codes
from jonet.data import scans, splits
from jonet.errors import JonetError
from jonet.fields import Spline
from jonet.formats import deepsdf_samples, onet_samples
from jonet.geometry import depth, mesh_files, point_cloud_files
from jonet.geometry.mesh import Mesh, Similarity
from jonet.networks import spline_levels
from jonet.networks.published import deepsdf_checkpoint, weights
from jonet.run import metrics_file
from jonet.run.state import RunState
from jonet.storage import archives
from jonet.tasks import deepsdf

pytestmark = pytest.mark.unoptimized

SECONDS, MEMORY = 2.0, 500 << 20  # of processor time, and bytes, for one small file
EXTREMES = [(size, n) for size in (1, 2, 4, 8) for n in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1)]
INTEGERS = [n.to_bytes(size, "little") for size, n in EXTREMES]
NUMBERS = [b"0", b"-1", b"1", b"7", b"255", b"65536", b"4294967295", b"99999999999999999999", b"1e400", b"nan", b"null"]
PIECES = [b"\0", b"\n", b"\xff", b'"', b"[" * 3000, b"{}", b"]", b",", b" ", b"9" * 5000, b"&a *a", b"../"]
POINTS = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
TETRAHEDRON = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


# ----------------------------------------------------------------------------------------------------------- mutations

KINDS = ("cut", "flip", "insert", "remove", "repeat", "splice", "integer", "number", "piece")
BYTES = (0, 1, 2, 255)  # of changes; as often as all others


def drawn(rng: random.Random) -> bytes:
    """One to four changes, each of six bytes."""
    return bytes(rng.choice((*BYTES, *rng.randbytes(4))) for _ in range(6 * rng.randint(1, 4)))


def mutated(data: bytes, changes: bytes) -> bytes:
    data = bytearray(data)
    for kind, place, value, size in struct.iter_unpack("<BHHB", changes[: len(changes) // 6 * 6]):
        kind, at = KINDS[kind % len(KINDS)], place % (len(data) + 1)
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            data[at % len(data)] ^= 1 << value % 8
        elif kind == "insert":
            data[at:at] = value.to_bytes(3, "little")
        elif kind == "remove":
            del data[at : at + size]
        elif kind == "repeat":
            data[at:at] = data[at : at + size] * (value % 100)
        elif kind == "splice":
            data[at : at + size] = data[value % (len(data) + 1) :][:size]
        elif kind == "integer":
            word = INTEGERS[value % len(INTEGERS)]
            at -= at % len(word)
            data[at : at + len(word)] = word
        elif kind == "number" and (found := [*re.finditer(rb"\d+", data)]):
            start, stop = found[place % len(found)].span()
            data[start:stop] = NUMBERS[value % len(NUMBERS)]
        elif kind == "piece":
            data[at:at] = PIECES[value % len(PIECES)]
    return bytes(data)


# ------------------------------------------------------------------------------------------------------------- readers


class Reader(NamedTuple):
    """make: writes valid files into a folder and returns the path of the one that is mutated.  read: reads it.

    inside: the part of the file that is mutated, and what makes a file of it again; None for the whole file.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    inside: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]] | None = None


def content(name: str, data: bytes | str):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return folder / name

    return make


def npz(name: str, **arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return content(name, buffer.getvalue())


def npy(name: str, array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return content(name, buffer.getvalue())


def image(name: str, array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, name.rpartition(".")[2].replace("jpg", "jpeg"), **options)
    return content(name, buffer.getvalue())


def member(name: str):
    """One member of a zip file."""

    def inside(data: bytes):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        chosen = next(found for found in members if found.endswith(name))

        def close(part: bytes) -> bytes:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for other, held in members.items():
                    archive.writestr(other, part if other == chosen else held)
            return buffer.getvalue()

        return members[chosen], close

    return inside


def chunks(data: bytes):
    """A PNG without the checksums of its chunks."""

    def close(data: bytes) -> bytes:
        found, at = data[:8], 8
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            body = data[at + 4 : at + 8 + size]
            found += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
            at += 8 + size
        return found

    plain, at = data[:8], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        plain += data[at : at + 8 + size]
        at += 12 + size
    return plain, close


def signed(data: bytes):
    """A model.json, its checksum made right."""

    def close(data: bytes) -> bytes:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            about = json.loads(data)
            about.pop("checksum", None)
            return json.dumps(about | {"checksum": config.digest(about)}).encode()
        return data

    return data, close


def mesh(name: str):
    return lambda folder: mesh_files.write(TETRAHEDRON, folder / name)


def gltf(folder: Path) -> Path:
    tree = scene([{"mesh": 0, "rotation": [0, 0, 0, 1], "children": [1]}, {"mesh": 0, "scale": [1, 2, -1]}])
    tree["buffers"][0]["uri"] = "a.bin"
    (folder / "a.bin").write_bytes(glb(tree)[-96:])
    return content("a.gltf", json.dumps(tree))(folder)


def instances():
    attributes = {"TRANSLATION": 0}
    return scene([{"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}])


def draco(folder: Path) -> Path:
    packer = pytest.importorskip("DracoPy", reason="meshes compressed by Draco need DracoPy (extra `gltf`)")
    data = packer.encode(TETRAHEDRON.vertices.astype(np.float32), TETRAHEDRON.faces, quantization_bits=10)
    return content("a.glb", glb(draco_scene(data), data))(folder)


def threemf(folder: Path) -> Path:
    vertices = "".join('<vertex x="{}" y="{}" z="{}"/>'.format(*row) for row in TETRAHEDRON.vertices.tolist())
    faces = "".join('<triangle v1="{}" v2="{}" v3="{}"/>'.format(*row) for row in TETRAHEDRON.faces.tolist())
    shape = f'<object id="1"><mesh><vertices>{vertices}</vertices><triangles>{faces}</triangles></mesh></object>'
    parts = '<object id="2"><components><component objectid="1" transform="1 0 0 0 1 0 0 0 1 5 0 0"/>'
    head = '<model unit="inch" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources>'
    tree = f'{head}{shape}{parts}</components></object></resources><build><item objectid="2"/></build></model>'
    with zipfile.ZipFile(folder / "a.3mf", "w") as archive:
        archive.writestr("3D/3dmodel.model", tree)
    return folder / "a.3mf"


def views(folder: Path) -> Path:
    for i in range(2):
        image(f"{i}.jpg", np.zeros((8, 8, 3), np.uint8))(folder)
    matrices = {f"world_mat_{i}": np.eye(4)[:3] for i in range(2)} | {f"camera_mat_{i}": np.eye(3) for i in range(2)}
    return npz("cameras.npz", **matrices)(folder)


def depth_map(folder: Path) -> Path:
    image("a.png", np.arange(256, dtype=np.uint16).reshape(16, 16))(folder)
    return content("a.json", '{"fx": 10, "fy": 10.5, "cx": 8, "cy": 8}')(folder)


def model(folder: Path) -> Path:
    codes = Codes(POINTS[:2], ("a", "b"), (Similarity(2.0), Similarity()))
    shared = {"params": {"layer": {"kernel": POINTS, "bias": POINTS[0]}}}
    named = dict(network={"dims": [3]}, fitting={}, surfaces={"resolution": 8}, inputs=None, history={"data": "a"})
    model_folder.write(
        folder / "model",
        model_folder.Content(
            "deepsdf", "sphere", precision="high", **named, shared=shared, batch_stats={}, prior=None, codes=codes
        ),
    )
    return folder / "model" / "model.json"


def field(folder: Path) -> Path:
    """A dense grid and a finer one of some cells, with its cells as they are, so that mutations find them."""
    cells = np.array([[0, 0, 0], [3, 4, 5], [3, 4, 7], [15, 15, 15]], np.int32)
    dense = spline_levels.Level(8, spline_levels.every_cell(8), np.linspace(-1, 1, 10**3, dtype=np.float32))
    fine = spline_levels.Level(16, cells, np.zeros(len(spline_levels.around(cells, 16)), np.float32))
    box = np.array([[-0.5] * 3, [0.5] * 3], np.float32)
    Spline("a", Similarity(2.0), (dense, fine), box, 0.01, 0.1).save(folder / "a.npz")
    return folder / "a.npz"


def checkpoint(zipped: bool):
    def make(folder: Path) -> Path:
        torch = pytest.importorskip("torch", minversion="2.6", reason="reading PyTorch's files needs torch")
        state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
        state["b.weight"] = state["a.weight"].T
        saved = {"epoch": 3, "model_state_dict": state}
        torch.save(saved, folder / "a.pth", _use_new_zipfile_serialization=zipped)
        return folder / "a.pth"

    return make


def safetensors(folder: Path) -> Path:
    data = POINTS.tobytes() + NORMALS.tobytes()
    entry = {"dtype": "F32", "shape": [12, 3]}
    about = {f"a.{i}": entry | {"data_offsets": [144 * i, 144 * i + 144]} for i in range(2)}
    text = json.dumps(about).encode()
    return content("a.safetensors", struct.pack("<Q", len(text)) + text + data)(folder)


def trained(path: Path):
    saved = weights.load(path)
    nested = isinstance(saved, dict) and "model_state_dict" in saved
    return weights.state(saved["model_state_dict"] if nested else saved, path)


def las(name: str):
    """Reading LAS needs laspy, and writing LAZ lazrs."""

    def make(folder: Path) -> Path:
        laspy = pytest.importorskip("laspy", reason="reading LAS needs laspy (extra `scans`)")
        pytest.importorskip("lazrs", reason="reading LAZ needs lazrs (extra `scans`)")
        data = laspy.LasData(laspy.LasHeader(version="1.2", point_format=3))
        data.x, data.y, data.z = POINTS.T
        data.write(folder / name)
        return folder / name

    return make


def manifest(folder: Path) -> Path:
    rows = Manifest(folder)
    rows.add(Row("a.ply", "ok", 0.1, 0.9, 1.0, "a.npz", "0123", {"bytes": 3}, {"sha256": "0"}))
    rows.add(Row('b,"c".ply', "failed: no", settings="0123", input={"bytes": 3}))
    return rows.path


def rows_of(path: Path):
    found = Manifest(path.parent).rows()
    Manifest(path.parent).mend()
    return found


def run(folder: Path) -> Path:
    state = {"options": config.to_dict(deepsdf.TASK.config()), "inputs": {"store": "0"}, "files": ["store/index.json"]}
    done = {"prepare": {"key": "0", "seconds": 1.0, "results": {"store/index.json": {"bytes": 3, "sha256": "0"}}}}
    named = {"version": 2, "task": "deepsdf", "config": state["options"], "autotuned": {"steps": 3}}
    return content("config.json", json.dumps({**named, "done": done, "made": {"prepare": state}}))(folder)


def stages_of(path: Path):
    opened = RunState(path.parent, deepsdf.TASK, deepsdf.TASK.config())
    return [opened.is_done(stage, opened.made.get(stage, {}).get("inputs")) for stage in deepsdf.TASK.parts]


PLY = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
FACES = "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
BODY = "0 0 0\n1 0 0\n1 1 0\n0.1 0.3 0\n4 0 1 2 3\n3 0 2 1\n"
STL = "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
STL += "endsolid a\n"
STRIPS = "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
XYZ = "\n".join(" ".join(map(str, row)) for row in np.column_stack([POINTS, NORMALS]).tolist())
PCD = "VERSION .7\nFIELDS x y z normal\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 3\nWIDTH 12\nHEIGHT 1\nPOINTS 12\nDATA "
COLUMNS = POINTS.T.tobytes() + NORMALS.tobytes()  # literals of LZF, and copies of the last 3 bytes
LZF = b"".join(bytes([31]) + COLUMNS[i : i + 32] for i in range(0, len(COLUMNS) - 32, 32))
LZF += bytes([28]) + COLUMNS[-32:-3] + bytes([1 << 5, 2])
LZF = struct.pack("<II", len(LZF), len(COLUMNS)) + LZF
SIMILARITY = {"loc": np.zeros(3), "scale": np.array(2.0)}
CODES = {"values": POINTS, "names": np.array([*"abcdefghijkl"]), "version": np.array(2)}
CODES |= {"similarities": np.tile(Similarity().as_array(), (12, 1)), "network": np.array("0123")}
BINVOX = b"#binvox 1\ndim 4 4 4\ntranslate 0 0 0\nscale 1\ndata\n" + bytes([1, 32, 0, 32])
SPECS = {"NetworkArch": "deep_sdf_decoder", "CodeLength": 4, "NetworkSpecs": {"dims": [8, 8], "latent_in": [1]}}
DICT = '{"jonet": {"chair": ["a", "b"], "mug": ["c"]}}'
METADATA = "'0123': {id: '0123', name: 'chair, seat'}\n'0456':\n  id: 1\n  name: mug\n"
YAML = "inherit_from: a.yaml\nmodel: {decoder: simple, c_dim: 0, leaky: true}\ntest:\n  threshold: 0.2\nlist: [1, 2]\n"
PICTURE = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)


def specs_of(path: Path):
    return deepsdf_checkpoint.specification(archives.options(path), path)


PTX = f"1\n{len(POINTS)}\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n{XYZ}"


READERS = {
    "obj": Reader(
        content("a.obj", "v 0 0 0\nv 1 0 0\nv 1 1 0\nv .1 .3 0\nf 1/1 2 3 4\nf -1 1 2 # a\n"), mesh_files.read
    ),
    "off": Reader(mesh("a.off"), mesh_files.read),
    "ascii ply": Reader(content("a.ply", PLY + FACES + BODY), mesh_files.read),
    "ply": Reader(mesh("a.ply"), mesh_files.read),
    "strips ply": Reader(
        content("a.ply", PLY + STRIPS + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n5 0 1 3 2 -1\n"), mesh_files.read
    ),
    "other names ply": Reader(
        content("a.ply", PLY.replace("vertex", "point") + FACES.replace("_indices", "_list") + BODY), mesh_files.read
    ),
    "3mf": Reader(threemf, mesh_files.read, member("model")),
    "3mf as a whole": Reader(threemf, mesh_files.read),
    "compressed glb": Reader(content("a.glb", glb(*compressed_scene())), mesh_files.read),
    "instances glb": Reader(content("a.glb", glb(instances())), mesh_files.read),
    "draco glb": Reader(draco, mesh_files.read),
    "stl": Reader(mesh("a.stl"), mesh_files.read),
    "ascii stl": Reader(content("a.stl", STL), mesh_files.read),
    "glb": Reader(mesh("a.glb"), mesh_files.read),
    "gltf": Reader(gltf, mesh_files.read),
    "cloud npy": Reader(npy("a.npy", np.column_stack([POINTS, NORMALS])), point_cloud_files.read),
    "cloud npz": Reader(npz("a.npz", points=POINTS, normals=NORMALS), point_cloud_files.read),
    "in cloud npz": Reader(npz("a.npz", points=POINTS), point_cloud_files.read, member("points.npy")),
    "cloud xyz": Reader(content("a.xyz", "x y z nx ny nz\n" + XYZ), point_cloud_files.read),
    "cloud csv": Reader(content("a.csv", XYZ.replace(" ", ",")), point_cloud_files.read),
    "cloud by columns": Reader(npy("a.npy", np.asfortranarray(POINTS)), point_cloud_files.read),
    "cloud of names": Reader(npy("a.npy", np.zeros(12, [(axis, "<f4") for axis in "xyz"])), point_cloud_files.read),
    "cloud with decimal commas": Reader(
        content("a.csv", "id;x [m];y [m];z [m]\n" + XYZ.replace(" ", ";").replace(".", ",")), point_cloud_files.read
    ),
    "ascii pcd": Reader(content("a.pcd", PCD + "ascii\n" + XYZ), point_cloud_files.read),
    "pcd": Reader(
        content("a.pcd", PCD.encode() + b"binary\n" + np.column_stack([POINTS, NORMALS]).tobytes()),
        point_cloud_files.read,
    ),
    "compressed pcd": Reader(content("a.pcd", PCD.encode() + b"binary_compressed\n" + LZF), point_cloud_files.read),
    "ptx": Reader(content("a.ptx", PTX), point_cloud_files.read),
    "las": Reader(las("a.las"), point_cloud_files.read),
    "laz": Reader(las("a.laz"), point_cloud_files.read),
    "cloud ascii ply": Reader(content("a.ply", PLY + "end_header\n" + BODY[:28]), point_cloud_files.read),
    "cloud ply": Reader(mesh("a.ply"), point_cloud_files.read),
    "codes": Reader(npz("a.npz", **CODES), Codes.load),
    "in codes": Reader(npz("a.npz", **CODES), Codes.load, member("similarities.npy")),
    "in names of codes": Reader(npz("a.npz", **CODES), Codes.load, member("names.npy")),
    "field": Reader(field, Spline.load),
    "in values of a field": Reader(field, Spline.load, member("values_8.npy")),
    "in cells of a field": Reader(field, Spline.load, member("cells_16.npy")),
    "in box of a field": Reader(field, Spline.load, member("box.npy")),
    "in similarity of a field": Reader(field, Spline.load, member("similarity.npy")),
    "in error of a field": Reader(field, Spline.load, member("error.npy")),
    "in version of a field": Reader(field, Spline.load, member("version.npy")),
    "in name of a field": Reader(field, Spline.load, member("name.npy")),
    "in points.npz": Reader(
        npz("a.npz", points=POINTS, occupancies=np.packbits(POINTS[:, 0] > 0), **SIMILARITY),
        onet_samples.read_points,
        member("scale.npy"),
    ),
    "in pointcloud.npz": Reader(
        npz("a.npz", points=POINTS, normals=NORMALS), onet_samples.read_cloud, member("points.npy")
    ),
    "in samples": Reader(
        npz("a.npz", pos=np.ones((3, 4)), neg=-np.ones((2, 4))), deepsdf_samples.read_samples, member("neg.npy")
    ),
    "in similarity": Reader(
        npz("a.npz", offset=np.zeros(3), scale=np.ones(1)), deepsdf_samples.read_similarity, member("scale.npy")
    ),
    "surface samples": Reader(mesh("a.ply"), deepsdf_samples.read_surface),
    "in cameras": Reader(views, lambda path: onet_samples.read_views(path.parent), member("world_mat_1.npy")),
    "binvox": Reader(content("a.binvox", BINVOX), onet_samples.read_voxels),
    "metadata": Reader(content("a.yaml", METADATA), onet_samples.read_metadata),
    "list": Reader(content("a.lst", "a/b\nc/d\n"), splits.read),
    "split": Reader(content("a.json", DICT), splits.read),
    "model.json": Reader(model, lambda path: model_folder.read(path.parent, ["deepsdf"]), signed),
    "checkpoint": Reader(checkpoint(True), trained),
    "in checkpoint": Reader(checkpoint(True), trained, member("data.pkl")),
    "old checkpoint": Reader(checkpoint(False), trained),
    "safetensors": Reader(safetensors, trained),
    "specs": Reader(content("specs.json", json.dumps(SPECS)), specs_of),
    "yaml": Reader(content("a.yaml", YAML), archives.yaml_options),
    "manifest": Reader(manifest, rows_of),
    "run": Reader(run, stages_of),
    "metrics": Reader(
        content("metrics.json", '{"version": 2, "summary": {"iou": 0.5}}'), lambda path: metrics_file.read(path.parent)
    ),
    "depth": Reader(
        image("a.png", np.arange(256, dtype=np.uint16).reshape(16, 16)), lambda path: depth.read(path, 50.0), chunks
    ),
    "intrinsics": Reader(depth_map, lambda path: depth.read(path.with_suffix(".png"))),
    "png": Reader(image("a.png", PICTURE), lambda path: scans.picture(path, 16), chunks),
    "jpg": Reader(image("a.jpg", PICTURE), lambda path: scans.picture(path, 16)),
    "voxels": Reader(npy("a.npy", np.ones((4, 4, 4), bool)), lambda path: scans.grid(path, 4)),
}


# --------------------------------------------------------------------------------------------------------------- tests


@contextlib.contextmanager
def memory_limited():
    """At most MEMORY more bytes of addresses than now, where the system can limit them."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__


def check(reader: Reader, path: Path) -> float:
    """Reads a file; the seconds of processor time.  AssertionError if a bound is broken or an error is not ours."""
    begun = time.thread_time()
    with memory_limited(), warnings.catch_warnings(action="ignore"):
        try:
            reader.read(path)
        except JonetError as error:
            assert path.name in str(error) or str(path.parent) in str(error), error
            assert len(str(error)) < 2000
            memory = [one for one in causes(error) if isinstance(one, MemoryError) or "allocate" in str(one)]
            assert not memory, "asked for too much memory"
    seconds = time.thread_time() - begun
    assert seconds < SECONDS
    return seconds


def fuzz(name: str, folder: Path, count: int) -> None:
    reader = READERS[name]
    path = reader.make(folder)
    whole = path.read_bytes()
    part, close = (whole, bytes) if reader.inside is None else reader.inside(whole)
    path.write_bytes(close(part))
    reader.read(path)  # what was not mutated is read

    rng = random.Random(name)
    for number in range(count):
        changes = drawn(rng)
        path.write_bytes(close(mutated(part, changes)))
        try:
            check(reader, path)
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}, {changes.hex()}: {error}") from error


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_give_a_result_or_one_error(name, tmp_path):
    fuzz(name, tmp_path, 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_give_a_result_or_one_error(name, tmp_path):
    fuzz(name, tmp_path, 2000)


def claims(**changed):
    """A field with other arrays; None for one that is left out."""

    def make(folder: Path) -> Path:
        with np.load(field(folder)) as file:
            arrays = {name: array for name, array in {**file, **changed}.items() if array is not None}
        np.savez_compressed(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return make


def scattered(count: int, resolution: int) -> np.ndarray:
    """Cells that have no nodes in common, as a file has them."""
    places = np.moveaxis(np.indices((64,) * 3), 0, -1).reshape(-1, 3)[:count] * max(1, resolution // 64)
    return np.diff(spline_levels.keys(places, resolution), prepend=0).astype(np.uint32)


LESS = {"values_8": None, "values_16": None, "cells_16": None}
NAMED = {f"values_{8 << i}": np.zeros(1, np.int16) for i in range(2, 8)}
NAMED |= {f"cells_{8 << i}": np.zeros(0, np.uint32) for i in range(2, 8)}
CLAIMS = {
    "a dense grid": claims(**LESS, values_1024=np.zeros(1, np.int16)),
    "a dense grid, as large as an archive may be": claims(**LESS, values_200=np.zeros(202**3, np.int16)),
    "every cell": claims(cells_16=np.ones(4_000_000, np.uint32)),
    "a finest grid": claims(**NAMED),
    "a grid beyond all": claims(**LESS, **{f"values_{2**80}": np.zeros(1, np.int16)}),
    "more cells than values": claims(cells_16=scattered(1000, 64)),
    "a name of many": claims(name=np.zeros(1_000_000, "U4")),
    "a similarity of words": claims(similarity=np.array(["1"] * 13)),
    "a box of words": claims(box=np.array(["inf"] * 6)),
    "an error that is none": claims(error=np.array(np.nan)),
    "an error of words": claims(error=np.array("0.5")),
    "a hole beyond all": claims(closed=np.array(1e9)),
    "a version of words": claims(version=np.array("x")),
    "values of words": claims(values_8=np.zeros(1000, "U1")),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_fields_that_claim_what_they_do_not_hold_are_refused(name, tmp_path):
    path = CLAIMS[name](tmp_path)
    check(Reader(CLAIMS[name], Spline.load), path)
    with pytest.raises(JonetError, match=r"a\.npz"):
        Spline.load(path)


@pytest.mark.parametrize("count", [0, 1000, 200_000])
def test_a_field_with_cells_on_the_finest_grid_is_read_within_bounds(count, tmp_path):
    """1024 cells a side: memory is that of its nodes."""
    levels = [spline_levels.Level(8, spline_levels.every_cell(8), np.zeros(10**3, np.float32))]
    for size in (16, 32, 64, 128, 256, 512, 1024):
        cells = spline_levels.from_keys(np.cumsum(scattered(count if size == 1024 else 0, size), dtype=np.int64), size)
        levels.append(spline_levels.Level(size, cells, np.zeros(len(spline_levels.around(cells, size)), np.float32)))
    Spline("a", Similarity(), tuple(levels), np.array([[-1.0] * 3, [1.0] * 3]), 0.0).save(tmp_path / "a.npz")
    check(Reader(field, Spline.load), tmp_path / "a.npz")
    np.testing.assert_array_equal(Spline.load(tmp_path / "a.npz").levels[-1].cells, cells)
