"""Meshes in memory: their numbers, meshes of other libraries, frames and their similarities."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from solids import CUBE, ball, kept, turned

from jonet.errors import InputError, MeshError
from jonet.geometry.diagnosis import diagnose, orient
from jonet.geometry.mesh import Mesh, Similarity, as_mesh, as_meshes, check, normalize


def test_numbers_of_a_cube_and_a_torus():
    cube = Mesh(np.concatenate([CUBE.vertices + 1e6, [[9e9, 0, 0]]]), CUBE.faces)  # the last vertex is of no face
    assert cube.watertight and cube.euler_number == 2
    assert cube.volume == pytest.approx(8) and cube.area == pytest.approx(24)
    np.testing.assert_array_equal(cube.bounds, [[1e6 - 1] * 3, [1e6 + 1] * 3])
    torus = trimesh.creation.torus(2, 0.5)
    assert Mesh(torus.vertices, torus.faces).euler_number == 0
    assert not turned(CUBE, [0]).watertight and not kept(CUBE, slice(11)).watertight
    assert turned(CUBE).volume == pytest.approx(-8)


def test_a_mesh_is_what_trimesh_makes_of_it():
    theirs = ball().trimesh()
    assert theirs.is_watertight and len(theirs.vertices) == len(ball().vertices)
    assert ball().volume == pytest.approx(theirs.volume) and ball().area == pytest.approx(theirs.area)
    copy = pickle.loads(pickle.dumps(ball()))  # to and from the workers of a pool
    np.testing.assert_array_equal(copy.vertices, ball().vertices)


def test_meshes_of_other_libraries_are_copied():
    solid = trimesh.creation.box()
    for metadata, name in (({}, ""), ({"file_name": "a.stl"}, "a.stl"), ({"name": "a", "file_name": "b"}, "a")):
        solid.metadata = metadata
        mesh = as_mesh(solid)
        assert isinstance(mesh, Mesh) and mesh.name == name
        np.testing.assert_array_equal(mesh.corners, solid.triangles)
    assert as_mesh(mesh) is mesh and as_meshes(mesh) == [mesh] and len(as_meshes((solid, mesh))) == 2
    assert not len(as_mesh(trimesh.Trimesh()).faces)
    lists = SimpleNamespace(vertices=[[0, 0, 0], [1, 0, 0], [0, 1, 0]], faces=[[0, 1, 2]])
    assert as_mesh(lists).area == 0.5


@pytest.mark.parametrize(
    ("vertices", "faces", "words"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], r"scan.vertices must have shape \[any, 3\]"),
        (np.zeros((4, 3)), [[0, 1, 2, 3]], r"scan.faces must have shape \[any, 3\]"),
        (np.zeros((3, 3)), [[0, 1, 3]], "scan.faces use vertices from 0 to 3, but there are 3"),
        (np.zeros((3, 3)), [[-1, 1, 2]], "scan.faces use vertices from -1 to 2"),
        (np.zeros((3, 3)), [[0, 1, 2**40]], "scan.faces use vertices"),
        (np.zeros((3, 3)), [[0, 1, 0.5]], "scan.faces must be whole numbers"),
        (np.full((3, 3), np.nan), [[0, 1, 2]], "scan.vertices must be finite"),
    ],
)
def test_damaged_meshes_of_other_libraries_are_refused(vertices, faces, words):
    with pytest.raises(InputError, match=words):
        as_mesh(SimpleNamespace(vertices=vertices, faces=faces), "scan")


def test_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(MeshError, match=r"vertices must have shape \[any, 3\], but has \[4, 2\]"):
        Mesh(np.zeros((4, 2)), [[0, 1, 2]])
    with pytest.raises(MeshError, match="2 normals for 4 vertices"):
        Mesh(np.zeros((4, 3)), [[0, 1, 2]], np.zeros((2, 3)))
    assert len(Mesh([], []).faces) == 0


@pytest.mark.parametrize(
    "mesh, words",
    [
        (Mesh([], []), "no vertices and no faces"),
        (Mesh(np.eye(3), []), "3 vertices but no faces"),
        (Mesh(np.eye(3), [[0, 1, 3]]), "but there are 3"),
        (Mesh(np.eye(3), [[0, 1, -1]]), "but there are 3"),
        (Mesh([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), "not all finite"),
        (Mesh([[0, 0, np.inf], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), "not all finite"),
        (Mesh(np.ones((3, 3)), [[0, 1, 2]]), "no area"),
        (Mesh(np.eye(3) * 1e200, [[0, 1, 2]]), r"1e\+200 long"),
        (Mesh(np.eye(3) * 1e-200, [[0, 1, 2]]), "1e-200 long"),
        (Mesh([[0, 0, 0], [1, 0, 0], [0, 1e9, 0]], [[0, 1, 2]]), r"length of 1e\+09.*remove what is far"),
        (Mesh(np.outer(np.arange(3), [1, 2, 3]) / 7, [[0, 1, 2]]), "no area"),
    ],
)
@pytest.mark.parametrize("act", [check, diagnose, orient, normalize])
def test_unusable_meshes_are_refused_everywhere(mesh, words, act):
    with pytest.raises(MeshError, match=words):
        act(mesh)


# frames and similarities

SCALES = st.floats(1e-6, 1e6)
VECTORS = hnp.arrays(float, 3, elements=st.floats(-100, 100))


def rotation(axis, angle):
    return trimesh.transformations.rotation_matrix(angle, axis + [0, 0, 1e-3])[:3, :3]


SIMILARITIES = st.builds(
    lambda scale, axis, angle, shift: Similarity(scale, rotation(axis, angle), shift),
    SCALES,
    hnp.arrays(float, 3, elements=st.floats(0, 1)),
    st.floats(-4, 4),
    VECTORS,
)


@settings(max_examples=30, deadline=None)
@given(a=SIMILARITIES, b=SIMILARITIES, points=hnp.arrays(float, (4, 3), elements=st.floats(-10, 10)))
def test_similarities_form_a_group(a, b, points):
    size = a.scale * b.scale * (20 + 200 / min(b.scale, 1))
    np.testing.assert_allclose((a @ b)(points), a(b(points)), atol=1e-12 * size * 100)
    np.testing.assert_allclose(a.inverse()(a(points)), points, atol=1e-9)
    assert (a @ a.inverse()).scale == pytest.approx(1)
    np.testing.assert_array_equal(Similarity.from_array(a.as_array()).as_array(), a.as_array())


def test_a_similarity_means_scale_of_rotated_plus_moved():
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y
    similarity = Similarity(2, quarter, [10, 0, 0])
    np.testing.assert_allclose(similarity([[1, 0, 0]]), [[20, 2, 0]])
    moved = similarity.apply(Mesh([[1, 0, 0], [0, 0, 0], [0, 1, 0]], [[0, 1, 2]], np.eye(3)))
    np.testing.assert_allclose(moved.normals[0], [0, 1, 0])
    for scale in (0, -1, np.nan):
        with pytest.raises(MeshError, match="scale above 0"):
            Similarity(scale)


@pytest.mark.parametrize("unit, offset", [(1, 0), (1e-6, 0), (95, (1e6, -2e6, 5e5))])
def test_normalized_frames(unit, offset):
    made = Mesh(CUBE.vertices * [3, 2, 1] * unit + offset, CUBE.faces)
    stray = Mesh(np.concatenate([made.vertices, [[1e9, 0, 0]]]), made.faces)  # of no face: it does not count
    sphere, similarity = normalize(stray)
    assert np.linalg.norm(sphere.corners, axis=-1).max() == pytest.approx(1 / 1.03)
    np.testing.assert_allclose(sphere.bounds[0], -sphere.bounds[1], atol=1e-9)
    np.testing.assert_allclose(similarity.inverse().apply(sphere).corners, made.corners, rtol=1e-12, atol=1e-9 * unit)
    cube, _ = normalize(stray, "cube")
    np.testing.assert_allclose(cube.bounds, np.outer([-0.5, 0.5], [1, 2 / 3, 1 / 3]), atol=1e-9)
    with pytest.raises(MeshError, match="'sphere' and 'cube'"):
        normalize(made, "ball")
