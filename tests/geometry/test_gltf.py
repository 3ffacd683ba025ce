"""glTF scenes: everything that the scene places is read, or said to be left out, or refused by name."""

import base64
import json
import struct
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from gltf_scenes import BINARY, CORNERS, FACES, draco_scene, glb, scene

from jonet.errors import MeshError
from jonet.geometry import gltf
from jonet.geometry.diagnosis import diagnose
from jonet.geometry.mesh_files import read


def loaded(folder, tree, binary=BINARY):
    """The mesh of a scene, of which nothing is left out."""
    (folder / "scene.glb").write_bytes(glb(tree, binary))
    with warnings.catch_warnings(action="error"):
        return read(folder / "scene.glb")


def added(tree, array, kind):
    """A scene with one more accessor, and the binary chunk with its data."""
    component = {np.dtype(name): code for code, name in gltf.COMPONENTS.items()}[array.dtype]
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(BINARY), "byteLength": array.nbytes})
    view = len(tree["bufferViews"]) - 1
    tree["accessors"].append({"bufferView": view, "componentType": component, "count": len(array), "type": kind})
    tree["buffers"][0]["byteLength"] += array.nbytes
    return tree, BINARY + array.tobytes()


def test_scenes_are_joined_with_their_transforms(tmp_path):
    nodes = [
        {"children": [1, 2], "translation": [10, 0, 0]},
        {"mesh": 0, "scale": [-2, 1, 1]},  # mirrored: its faces must still look outwards
        {"mesh": 0, "translation": [0, 5, 0], "rotation": [0, 0, 1, 0]},
    ]
    mesh = loaded(tmp_path, scene(nodes))
    np.testing.assert_allclose(mesh.bounds, [[8, 0, 0], [10, 5, 1]], atol=1e-6)
    assert mesh.volume == pytest.approx(2 / 6 + 1 / 6) and diagnose(mesh).inverted == 0


def test_turned_and_scaled_nodes_lie_where_their_matrix_puts_them(tmp_path):
    sine = np.sin(np.pi / 6)
    node = {"mesh": 0, "rotation": [0, 0, sine, np.cos(np.pi / 6)], "scale": [3, 2, 1], "translation": [1, 2, 3]}
    turn = np.array([[0.5, -(0.75**0.5), 0], [0.75**0.5, 0.5, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * [3, 2, 1], [1, 2, 3]
    mesh = loaded(tmp_path, scene([node]))
    np.testing.assert_allclose(mesh.vertices, CORNERS * [3, 2, 1] @ turn.T + [1, 2, 3], atol=1e-12)
    same = loaded(tmp_path, scene([{"mesh": 0, "matrix": matrix.T.ravel().tolist()}]))
    np.testing.assert_allclose(same.vertices, mesh.vertices, atol=1e-12)


def test_every_one_of_many_primitives_is_read(tmp_path):
    primitive = {"attributes": {"POSITION": 0}, "indices": 1}
    nodes = [{"mesh": 0, "camera": 0, "extras": {"a": 1}, "children": [1]}, {"mesh": 0, "translation": [2, 0, 0]}]
    tree = scene(nodes, meshes=[{"primitives": [primitive] * 2000}], cameras=[{"type": "perspective"}])
    assert len(loaded(tmp_path, tree).faces) == 2 * 2000 * 4


@pytest.mark.parametrize("mode, corners, faces", [
    (5, [0, 1, 2, 3], [[0, 1, 2], [1, 3, 2]]),
    (5, [0, 1, 2, 2, 3, 3, 1, 0], [[0, 1, 2], [3, 0, 1]]),
    (6, [0, 1, 2, 3], [[1, 2, 0], [2, 3, 0]]),
])  # fmt: skip
def test_strips_and_fans_are_triangles(mode, corners, faces, tmp_path):
    tree, binary = added(scene([{"mesh": 0}]), np.array(corners, "<u1"), "SCALAR")
    tree["meshes"][0]["primitives"][0] |= {"indices": 2, "mode": mode}
    np.testing.assert_array_equal(loaded(tmp_path, tree, binary).faces, faces)


def test_points_and_lines_beside_faces_are_left_out_and_said(tmp_path):
    primitive = {"attributes": {"POSITION": 0}}
    tree = scene([{"mesh": 0}])
    tree["meshes"][0]["primitives"] += [primitive | {"mode": 0}, primitive | {"mode": 1}]
    (tmp_path / "a.glb").write_bytes(glb(tree))
    with pytest.warns(UserWarning, match="a.glb: 8 of its vertices are of points and lines, and left out"):
        assert len(read(tmp_path / "a.glb").faces) == 4
    del tree["meshes"][0]["primitives"][0]
    with pytest.raises(MeshError, match="8 vertices but no faces"):
        loaded(tmp_path, tree)


def test_meshes_outside_of_the_scene_are_said_and_bare_ones_are_read(tmp_path):
    tree = scene([{"mesh": 0}])
    tree["meshes"] *= 2
    (tmp_path / "a.glb").write_bytes(glb(tree))
    with pytest.warns(UserWarning, match="1 of its meshes is not in its scene"):
        assert len(read(tmp_path / "a.glb").faces) == 4
    bare = {name: value for name, value in tree.items() if name not in ("scene", "scenes", "nodes")}
    assert len(loaded(tmp_path, bare).faces) == 8
    roots = {name: value for name, value in tree.items() if name not in ("scene", "scenes")}
    assert len(loaded(tmp_path, roots | {"nodes": [{"mesh": 0}, {"mesh": 1, "children": [0]}]}).faces) == 8


def test_skins_are_left_in_their_bind_pose_and_said(tmp_path):
    (tmp_path / "a.glb").write_bytes(glb(scene([{"mesh": 0, "skin": 0}], skins=[{"joints": [0]}])))
    with pytest.warns(UserWarning, match="1 of its meshes is read in the bind pose"):
        assert read(tmp_path / "a.glb").volume == pytest.approx(1 / 6)


def skinned(tmp_path, nodes, joints, weights, inverse):
    """A tetrahedron with a skin of these joints (a row for each vertex) and inverse bind matrices."""
    tree = scene(nodes)
    tree, binary = added(tree, np.array(joints, "<u1").ravel(), "SCALAR")
    for data, kind, code in ((weights, "VEC4", 5126), (np.swapaxes(inverse, 1, 2), "MAT4", 5126)):
        data = np.array(data, "<f4")
        tree["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": data.nbytes})
        view = len(tree["bufferViews"]) - 1
        tree["accessors"].append({"bufferView": view, "componentType": code, "count": len(data), "type": kind})
        binary += data.tobytes()
    tree["buffers"][0]["byteLength"] = len(binary)
    tree["accessors"][2] |= {"type": "VEC4", "count": 4}
    tree["meshes"][0]["primitives"][0]["attributes"] |= {"JOINTS_0": 2, "WEIGHTS_0": 3}
    tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": 4}]
    return tree, binary


def test_skins_follow_their_joints_and_not_their_node(tmp_path):
    """glTF 2.0, section 3.7.3.3: the transform of a node that has a skin is ignored."""
    nodes = [
        {"children": [1, 3], "scale": [2, 2, 2]},  # above both
        {"children": [2], "translation": [1, 0, 0]},
        {"rotation": [0, 0, 0.5**0.5, 0.5**0.5]},  # a quarter turn about z
        {"mesh": 0, "skin": 0, "translation": [50, 60, 70]},
    ]
    inverse = np.stack([np.eye(4), np.eye(4)])
    inverse[1, :3, 3] = [0, 0, 3]
    joints = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    weights = [[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    mesh = loaded(tmp_path, *skinned(tmp_path, nodes, joints, weights, inverse))
    first, second = CORNERS + [1, 0, 0], (CORNERS + [0, 0, 3])[:, [1, 0, 2]] * [-1, 1, 1] + [1, 0, 0]
    expected = 2 * np.stack([first[0], second[1], (first[2] + second[2]) / 2, second[3]])
    np.testing.assert_allclose(mesh.vertices, expected, atol=1e-6)


def test_skins_in_their_bind_pose_are_the_mesh(tmp_path):
    """Joints whose matrices are those of the pose in which the mesh was bound; one is mirrored, which turns no face."""
    nodes = [{"children": [1, 3], "scale": [0.01] * 3}, {"children": [2], "translation": [1, 2, 3]}]
    nodes += [{"scale": [1, 1, -1]}, {"mesh": 0, "skin": 0}]
    world = [np.diag([0.01, 0.01, 0.01, 1.0]) for _ in range(2)]
    world[0][:3, 3] = world[1][:3, 3] = [0.01, 0.02, 0.03]
    world[1][2, 2] *= -1
    joints, weights = [[0, 1, 0, 0]] * 4, [[0.25, 0.75, 0, 0]] * 4
    tree, binary = skinned(tmp_path, nodes, joints, weights, np.linalg.inv(world))
    mesh = loaded(tmp_path, tree, binary)
    np.testing.assert_allclose(mesh.vertices, CORNERS, atol=1e-6)
    assert mesh.volume == pytest.approx(1 / 6)
    for change, words in (
        ({"joints": [1]}, "uses joint 1 of 1"),
        ({"joints": [1, 2, 0]}, "has 2 inverse bind matrices for 3 joints"),
        ({"joints": [1, 9]}, "refers to entry 9 of nodes"),
    ):
        with pytest.raises(MeshError, match=words):
            loaded(tmp_path, tree | {"skins": [tree["skins"][0] | change]}, binary)


def test_morph_targets_move_by_their_weights(tmp_path):
    tree, binary = added(scene([{"mesh": 0}]), CORNERS, "VEC3")
    tree["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": 2}]
    assert loaded(tmp_path, tree, binary).volume == pytest.approx(1 / 6)
    tree["meshes"][0]["weights"] = [1]
    assert loaded(tmp_path, tree, binary).volume == pytest.approx(8 / 6)
    tree["nodes"][0]["weights"] = [0.5]
    assert loaded(tmp_path, tree, binary).volume == pytest.approx(1.5**3 / 6)


def test_sparse_accessors_replace_their_items(tmp_path):
    data = np.frombuffer(struct.pack("<H2x3f", 3, 0, 0, 5), "<u1")
    tree, binary = added(scene([{"mesh": 0}]), data, "SCALAR")
    values = {"bufferView": 2, "byteOffset": 4}
    sparse = {"count": 1, "indices": {"bufferView": 2, "componentType": 5123}, "values": values}
    tree["accessors"][0]["sparse"] = sparse
    np.testing.assert_array_equal(loaded(tmp_path, tree, binary).vertices[3], [0, 0, 5])
    del tree["accessors"][0]["bufferView"]  # then all others are zero
    with pytest.raises(MeshError, match="no area"):
        loaded(tmp_path, tree, binary)
    sparse["count"] = 5
    with pytest.raises(MeshError, match="replaces 5 of 4 items"):
        loaded(tmp_path, tree, binary)


def test_quantized_and_interleaved_vertices_are_read(tmp_path):
    rows = np.zeros((4, 8), "<i2")
    rows[:, :3] = CORNERS * 32767
    tree, binary = added(scene([{"mesh": 0}], extensionsRequired=["KHR_mesh_quantization"]), rows.ravel(), "SCALAR")
    tree["bufferViews"][2]["byteStride"] = 16
    tree["accessors"][2] |= {"type": "VEC3", "count": 4, "normalized": True}
    tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = 2
    np.testing.assert_array_equal(loaded(tmp_path, tree, binary).vertices, CORNERS)


@pytest.mark.parametrize("dtype", ["<i1", "<u1", "<i2", "<u2"])
def test_whole_numbers_stand_for_numbers_of_length_1(dtype, tmp_path):
    """Normalized, the least two numbers with a sign are both -1; plain, all keep their values."""
    info = np.iinfo(dtype)
    low = [info.min, info.min + 1] if info.min else [0, 1]
    rows = np.array([[low[0], 0, 0], [low[1], info.max, 0], [0, info.max, 0], [0, 0, info.max]], dtype)
    padded = np.zeros((4, 4), dtype)
    padded[:, :3] = rows
    tree, binary = added(scene([{"mesh": 0}], extensionsRequired=["KHR_mesh_quantization"]), padded.ravel(), "SCALAR")
    tree["bufferViews"][2]["byteStride"] = padded.strides[0]
    tree["accessors"][2] |= {"type": "VEC3", "count": 4}
    tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = 2
    np.testing.assert_array_equal(loaded(tmp_path, tree, binary).vertices, rows)
    tree["accessors"][2]["normalized"] = True
    least = [-1, -1] if info.min else [0, 1 / info.max]
    expected = [[least[0], 0, 0], [least[1], 1, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(loaded(tmp_path, tree, binary).vertices, expected, rtol=1e-12)


REFUSED = {
    "unknown": (scene([{"mesh": 0}], extensionsRequired=["EXT_other_compression"]), "EXT_other_compression"),
    "instances": (
        scene([{"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": {"SCALE": 0, "ROTATION": 0}}}}]),
        "VEC4",
    ),
    "loop": (scene([{"mesh": 0, "children": [0]}]), "places node 0 twice"),
    "no mesh": (scene([{"mesh": -1}]), "refers to entry -1 of meshes, but there are 1"),
    "old": (scene([{"mesh": 0}], asset={"version": "1.0"}), "only glTF 2 is read"),
    "rotation": (scene([{"mesh": 0, "rotation": [0, 0, 0, 0]}]), "rotation of length 0"),
    "transform": (scene([{"mesh": 0, "scale": [1, 1]}]), "needs 3 numbers"),
    "outside": (scene([{"mesh": 0}], buffers=[{"byteLength": 96, "uri": "../a.bin"}]), "outside of its folder"),
    "missing": (scene([{"mesh": 0}], buffers=[{"byteLength": 96, "uri": "my%20a.bin"}]), "no file 'my a.bin'"),
    "short": (scene([{"mesh": 0}], buffers=[{"byteLength": 97}]), "has 96 of 97 bytes"),
    "deep": ({"extras": json.loads("[" * 400 + "]" * 400)}, "no vertices and no faces"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named(name, tmp_path):
    tree, words = REFUSED[name]
    with pytest.raises(MeshError, match=words) as caught:
        loaded(tmp_path, tree)
    assert str(tmp_path / "scene.glb") in str(caught.value)


def test_compressed_primitives_are_refused_by_name(tmp_path):
    tree = scene([{"mesh": 0}])
    tree["meshes"][0]["primitives"][0]["extensions"] = {"EXT_other_compression": {}}
    assert len(loaded(tmp_path, tree).faces) == 4  # the file holds them uncompressed, too
    del tree["accessors"][0]["bufferView"]
    with pytest.raises(MeshError, match="compressed by EXT_other_compression"):
        loaded(tmp_path, tree)
    tree = scene([{"mesh": 0}])
    tree["buffers"].append({"byteLength": 96})
    tree["bufferViews"][0] |= {"buffer": 1, "extensions": {"EXT_other_compression": {}}}
    with pytest.raises(MeshError, match="compressed by EXT_other_compression"):
        loaded(tmp_path, tree)


def test_draco_is_unpacked(tmp_path):
    DracoPy = pytest.importorskip("DracoPy", reason="meshes compressed by Draco need DracoPy (extra `gltf`)")
    data = DracoPy.encode(CORNERS, FACES, quantization_bits=14)
    mesh = loaded(tmp_path, draco_scene(data), data)
    assert mesh.watertight and mesh.volume == pytest.approx(1 / 6, abs=1e-3)
    np.testing.assert_allclose(mesh.bounds, [[1, 2, 3], [2, 3, 4]], atol=1e-3)
    with pytest.raises(MeshError, match="cannot be unpacked"):
        loaded(tmp_path, draco_scene(data[:30]), data[:30])


def test_draco_with_weights_of_morph_targets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    tree = draco_scene(bytes(9))
    tree["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": 0}]
    for weights, words in (([0.0], "needs DracoPy"), ([0.5], "by KHR_draco_mesh_compression and has morph targets")):
        tree["nodes"][0]["weights"] = weights
        with pytest.raises(MeshError, match=words):
            loaded(tmp_path, tree, bytes(9))


def test_without_dracopy_it_is_said_what_unpacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(MeshError, match="by KHR_draco_mesh_compression, which needs DracoPy .* pip install"):
        loaded(tmp_path, draco_scene(bytes(9)), bytes(9))


def test_instances_are_placed(tmp_path):
    """Two tetrahedra: one moved, one doubled and turned by a half turn about z."""
    tree, binary = added(scene([{"mesh": 0}]), np.array([[5, 0, 0], [0, 0, 0]], "<f4"), "VEC3")
    for key, rows in {"VEC4": [[0, 0, 0, 1], [0, 0, 1, 0]], "VEC3": [[1, 1, 1], [2, 2, 2]]}.items():
        rows = np.array(rows, "<f4")
        tree["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": rows.nbytes})
        view = len(tree["bufferViews"]) - 1
        tree["accessors"].append({"bufferView": view, "componentType": 5126, "count": 2, "type": key})
        binary += rows.tobytes()
    tree["buffers"][0]["byteLength"] = len(binary)
    attributes = {"TRANSLATION": 2, "ROTATION": 3, "SCALE": 4}
    tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    mesh = loaded(tmp_path, tree, binary)
    assert len(mesh.faces) == 8 and mesh.volume == pytest.approx(1 / 6 + 8 / 6)
    np.testing.assert_allclose(mesh.vertices[4:], CORNERS * [-2, -2, 2], atol=1e-6)


def test_bytes_after_the_end_are_said(tmp_path):
    (tmp_path / "a.glb").write_bytes(glb(scene([{"mesh": 0}])) + b"\n")
    with pytest.warns(UserWarning, match="a.glb: the 1 byte after its end is left out"):
        assert read(tmp_path / "a.glb").volume == pytest.approx(1 / 6)


def test_buffers_are_in_the_text_or_in_files_with_any_name(tmp_path):
    tree = scene([{"mesh": 0}])
    (tmp_path / "my mesh.bin").write_bytes(BINARY)
    text = "data:application/octet-stream;base64," + base64.b64encode(BINARY).decode()
    for uri in (text, "my%20mesh.bin", "my mesh.bin"):
        tree["buffers"][0]["uri"] = uri
        (tmp_path / "a.gltf").write_text(json.dumps(tree))
        assert read(tmp_path / "a.gltf").volume == pytest.approx(1 / 6)


def test_a_file_of_many_buffers_is_read_and_counted_once(tmp_path):
    tree = scene([{"mesh": 0}])
    size = 1 << 20
    (tmp_path / "a.bin").write_bytes(BINARY.ljust(size, b"\0"))
    (tmp_path / "b.bin").symlink_to(tmp_path / "a.bin")
    tree["buffers"] = [{"byteLength": 96, "uri": uri} for uri in ("a.bin", "./a.bin", "%61.bin", "b.bin") * 100]
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    tracemalloc.start()
    try:
        assert read(tmp_path / "a.gltf").volume == pytest.approx(1 / 6)
        assert tracemalloc.get_traced_memory()[1] < 10 * size
    finally:
        tracemalloc.stop()
    _, _, counted = gltf._contents(tmp_path / "a.gltf", None)
    assert counted == size + (tmp_path / "a.gltf").stat().st_size


def test_counts_are_not_believed(tmp_path):
    tree = scene([{"mesh": 0}])
    del tree["accessors"][1]["bufferView"]  # then glTF means that many zeros
    tree["accessors"][1]["count"] = 10**12
    with pytest.raises(MeshError, match="announces 1000000000000 items in accessor 1, more than the file holds"):
        loaded(tmp_path, tree)


def crowded(where):
    """A scene of a few kilobytes for each 100 MB that it asks for."""
    tree, count, size = scene([{"mesh": 0}]), 2000, 4000
    binary = bytes(12 * size)
    accessor = {"bufferView": 0, "componentType": 5126, "count": size, "type": "VEC3"}
    tree["bufferViews"] = [{"buffer": 0, "byteLength": len(binary)}]
    tree["buffers"] = [{"byteLength": len(binary)}]
    primitive = {"attributes": {"POSITION": 0}, "mode": 6}
    if where == "zeros":
        sparse = {"count": 0, "indices": {"bufferView": 0, "componentType": 5121}, "values": {"bufferView": 0}}
        del accessor["bufferView"]
        accessor |= {"count": len(binary), "sparse": sparse}
    tree["accessors"] = [accessor] * (1 if where in ("primitives", "nodes") else count)
    tree["meshes"] = [{"primitives": [primitive]}]
    if where == "nodes":
        tree["nodes"] = [{"children": list(range(1, count))}] + [{"mesh": 0}] * count
    else:
        tree["meshes"][0]["primitives"] = [
            primitive | {"attributes": {"POSITION": i % len(tree["accessors"])}} for i in range(count)
        ]
    return tree, binary


@pytest.mark.parametrize("where", ["zeros", "accessors", "primitives", "nodes"])
def test_small_files_take_little_memory(where, tmp_path):
    """Accessors without bytes, accessors of the same bytes, and primitives and meshes that are used very often."""
    tracemalloc.start()
    try:
        with pytest.raises(MeshError, match="places its shapes so often"):
            loaded(tmp_path, *crowded(where))
        assert tracemalloc.get_traced_memory()[1] < 3e8
    finally:
        tracemalloc.stop()
