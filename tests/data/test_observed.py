"""User files: meshes and clouds become observations in the normalized frame, or a typed error."""

import contextlib
import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest
import trimesh
from PIL import Image

from jonet.data import scans
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.sources import MeshFile
from jonet.errors import FormatError
from jonet.geometry import mesh_files, voxels
from jonet.geometry.mesh import Mesh

RECIPE = dataclasses.replace(RECIPES["default"], near=400, uniform=100, surface=100)


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((500, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals * 3 + [10, 0, 5], normals


def write(kind, path, points, normals):
    rows = np.column_stack([points, normals])
    if kind == "npy":
        np.save(path, rows)
    elif kind == "npz":
        np.savez(path, points=points, normals=normals)
    else:
        np.savetxt(path, rows)


@pytest.mark.parametrize("kind", ["npy", "npz", "xyz"])
def test_clouds_with_normals(kind, cloud, tmp_path):
    path = tmp_path / f"ball.{kind}"
    write(kind, path, *cloud)
    one = scans.read(path)
    assert one.kind == ("points", "normals") and one.name == "ball"
    np.testing.assert_allclose(one.points, one.similarity(cloud[0]), atol=1e-5)
    np.testing.assert_allclose(one.normals, cloud[1], atol=1e-5)
    assert np.linalg.norm(one.points, axis=1).max() <= 1


def test_a_ply_without_faces_is_a_cloud(cloud, tmp_path):
    trimesh.PointCloud(cloud[0]).export(tmp_path / "ball.ply")
    one = scans.read(tmp_path / "ball.ply")
    assert one.kind == ("points",) and len(one.points) == 500


def test_a_mesh_is_sampled(tmp_path):
    made = trimesh.creation.box((1, 2, 3))
    mesh_files.write(Mesh(made.vertices, made.faces), tmp_path / "box.obj")
    one = scans.read(tmp_path / "box.obj", recipe=RECIPE)
    assert one.kind == ("samples",) and one.samples.shape == (500, 4)
    inside = (np.abs(one.similarity.inverse()(one.samples[:, :3])) < np.array([1, 2, 3]) / 2).all(1)
    np.testing.assert_array_equal(one.samples[:, 3] < 0, inside)
    assert scans.find(tmp_path) == [tmp_path / "box.obj"]


@pytest.mark.parametrize(
    "name, content", [("a.npy", b"\x93NUMPY"), ("b.npz", b"PK\x03\x04"), ("c.xyz", b"one two three"), ("d.npy", b"")]
)
def test_damaged_clouds_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=name):
        scans.read(tmp_path / name)


def test_pickles_and_wrong_shapes_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros((10, 2)))
    np.savez(tmp_path / "other.npz", vertices=np.zeros((10, 3)))
    np.save(tmp_path / "one.npy", np.zeros((10, 3)))
    for name, error in (("objects", FormatError), ("flat", FormatError), ("other", FormatError), ("one", FormatError)):
        with pytest.raises(error):
            scans.read(next(tmp_path.glob(f"{name}.*")))


def test_pictures_of_more_pixels_than_bytes_are_refused(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size < 10**5
    with pytest.raises(FormatError, match="flat.png: claims 9000 x 9000 pixels"):
        scans.picture(tmp_path / "flat.png", 32)


def test_pictures_whose_chunks_announce_gigabytes_take_no_memory(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (16, 16)).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT")
    path.write_bytes(content[: at - 4] + b"\x7f\xff\xff\xff" + content[at:])
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            scans.picture(path, 16)
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


def test_voxels_that_lie_about_their_size_allocate_nothing(tmp_path):
    text = b"{'descr': '|b1', 'fortran_order': False, 'shape': (1000000, 1000000, 4), }"
    path = tmp_path / "lie.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(100))
    with pytest.raises(FormatError, match="lie.npy: .* has 100 bytes"):
        scans.grid(path, 32)


def test_folders_named_like_clouds_are_no_inputs(cloud, tmp_path):
    (tmp_path / "d.npy").mkdir()
    write("npy", tmp_path / "d.npy" / "a.npy", *cloud)
    assert scans.find(tmp_path) == [tmp_path / "d.npy" / "a.npy"]


def test_voxels_of_a_mesh_that_winding_numbers_cannot_tell_are_those_of_training(data):
    """By votes, as its samples are."""
    path = data / "awkward" / "mixed_winding_chair.ply"
    grid, _ = scans.grid(path, 32)
    recipe = Recipe(near=0, uniform=0, surface=0, voxels="ray")
    shape = MeshFile("chair", path=path).shape(recipe, seed=0, frame="cube", sign="auto")
    trained = voxels.unpacked(shape.rows["voxels"][0][0])
    assert (grid & trained).sum() / (grid | trained).sum() > 0.98  # the points asked lie up to 0.05 cells elsewhere
