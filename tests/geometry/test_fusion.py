"""Fused meshes are closed, face outwards, and are about a voxel outside of the input, whatever its face orientation."""

import functools

import numpy as np
import pytest
import trimesh

from jonet.data import families
from jonet.data.sampling import Recipe, signed_distances, surface
from jonet.data.sources import MeshFile
from jonet.errors import InputError, MeshError
from jonet.geometry import fusion, mesh_files
from jonet.geometry.diagnosis import diagnose
from jonet.geometry.mesh import Mesh

SOME = np.random.default_rng(0)


def voxel(mesh, resolution):
    return np.ptp(mesh.bounds, axis=0).max() / fusion.SIDE / resolution


def test_a_solid_grows_by_about_a_voxel():
    chair = families.make("chair", 0, 3)
    fused = fusion.fuse(chair, 128)
    diagnosis = diagnose(fused)
    assert fused.watertight and diagnosis.closed and not diagnosis.inverted
    step = voxel(chair, 128)
    assert chair.volume < fused.volume < chair.volume + 2 * step * chair.area
    out = signed_distances(chair, fused.vertices) / step
    assert 0.5 < np.median(out) < 1.7 and np.percentile(np.abs(out), 99) < 3
    assert (signed_distances(fused, surface(chair, 2000, SOME)[0]) < 0).mean() > 0.99


@pytest.mark.parametrize("how", ["inside out", "mixed", "soup"])
def test_winding_and_welding_do_not_count(how):
    ball = trimesh.creation.icosphere(3, 2.0)
    plain = fusion.fuse(Mesh(ball.vertices, ball.faces), 32, views=20)
    faces = ball.faces[:, ::-1].copy()
    if how == "mixed":
        faces[::3] = ball.faces[::3]
    vertices = ball.vertices
    if how == "soup":
        vertices, faces = ball.vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3)
    other = fusion.fuse(Mesh(vertices, faces), 32, views=20)
    np.testing.assert_allclose(other.volume, plain.volume, rtol=1e-3)
    assert plain.volume > 4 / 3 * np.pi * 2**3 * 0.98


def test_a_sheet_becomes_a_slab():
    corners = np.array([[0, 0, 0], [4, 0, 0], [4, 0, 3], [0, 0, 3]], float)
    sheet = Mesh(corners, [[0, 1, 2], [0, 2, 3]])
    fused, step = fusion.fuse(sheet, 64), voxel(sheet, 64)
    assert fused.watertight and fused.euler_number == 2
    assert 2 < fused.volume / (12 * step) < 5  # voxels of thickness
    np.testing.assert_allclose(fused.bounds, sheet.bounds, atol=3 * step)


def test_an_open_box_stays_hollow():
    box = trimesh.creation.box((2, 2, 2))
    bucket = Mesh(box.vertices, box.faces[box.face_normals[:, 1] < 0.5])
    fused = fusion.fuse(bucket, 64)
    assert fused.watertight and 1 < fused.volume < 5 and signed_distances(fused, [[0, 0, 0]]) > 0


def test_only_what_is_near_is_looked_at_closely():
    """Coarse blocks first, or all samples: the same surface."""
    chair, resolution = families.make("chair", 0, 1), 48
    step = voxel(chair, resolution)
    corner = chair.bounds.mean(0) - step * resolution / 2
    looks = fusion._depth_maps(chair, 30, resolution, step)
    got = fusion._volume(looks, corner, resolution, step)
    at = np.stack(np.meshgrid(*[np.arange(resolution + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    dense = fusion._distances(looks, corner + step * at, fusion.TRUNCATION * step).reshape(got.shape)
    np.testing.assert_array_equal(got < 0, dense < 0)
    crossed = np.zeros(got.shape, bool)
    for axis in range(3):
        change = np.diff(dense < 0, axis=axis)
        pad = [(0, 0)] * 3
        for side in ((0, 1), (1, 0)):
            pad[axis] = side
            crossed |= np.pad(change, pad)
    np.testing.assert_array_equal(got[crossed], dense[crossed])


@pytest.mark.parametrize(
    "name", ["thin_sheet_car", "very_dirty_truck", "open_range_scan", "double_sided_chair", "third_of_faces_flipped"]
)
def test_awkward_meshes_are_closed(data, name):
    """Open, overlapping, non-manifold, wound at random."""
    mesh = mesh_files.read(data / "awkward" / f"{name}.ply")
    fused, step = fusion.fuse(mesh, 64), voxel(mesh, 64)
    assert fused.watertight and fused.volume > 0 and diagnose(fused).method == "exact"
    np.testing.assert_allclose(fused.bounds, mesh.bounds, atol=3 * step)
    assert (signed_distances(fused, surface(mesh, 2000, SOME)[0]) < 0.5 * step).mean() > 0.97


def test_samples_of_a_fused_mesh(monkeypatch, tmp_path):
    """A bucket of sheets becomes a solid with an inside; the store would hold the closed mesh."""
    monkeypatch.setattr(fusion, "fuse", functools.partial(fusion.fuse, resolution=48, views=30))
    box = trimesh.creation.box((2, 2, 2))
    mesh_files.write(Mesh(box.vertices, box.faces[box.face_normals[:, 1] < 0.5]), tmp_path / "bucket.ply")
    recipe = Recipe(near=2000, uniform=500, surface=500, occupancies=2000)
    source = MeshFile("bucket", path=tmp_path / "bucket.ply")
    shape = source.shape(recipe, seed=0, frame="cube", sign="fusion")
    mesh = Mesh(shape.rows["vertices"][0], shape.rows["faces"][0])
    assert mesh.watertight and shape.diagnosis.method == "exact" and "Before: Open" in shape.diagnosis.reason
    inside = shape.rows["sdf"][1]
    np.testing.assert_allclose(inside[:, 3], signed_distances(mesh, inside[:, :3]), atol=1e-5)
    np.testing.assert_allclose(shape.similarity.scale, 0.5)  # of the mesh as it came
    points = shape.rows["occupancy"][1]
    assert 0.1 < len(points) / 2000 and np.abs(points).max() < 0.55


def test_what_cannot_be_fused():
    with pytest.raises(MeshError, match="no area"):
        fusion.fuse(Mesh(np.eye(3), [[0, 0, 1]]), 16)
    with pytest.raises(InputError, match="multiple of 4"):
        fusion.fuse(Mesh(np.eye(3), [[0, 1, 2]]), 30)
