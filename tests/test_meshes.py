"""Meshes: files read strictly and written safely, frames and their similarities, and where the inside is."""

import csv
import json
import logging
import os
import pickle
import re
import struct
import warnings
from types import SimpleNamespace

import igl
import numpy as np
import pytest
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_gltf import glb, scene

from jonet.errors import InputError, MeshError
from jonet.geometry.diagnosis import MeshDiagnosis, diagnose, orient
from jonet.geometry.mesh import Mesh, Similarity, as_mesh, as_meshes, check, normalize
from jonet.geometry.mesh_files import find, read, write
from jonet.geometry.polygons import strips

# ------------------------------------------------------------------------------------------- shapes with known insides


def box(low=(-1, -1, -1), high=(1, 1, 1), name="box"):
    made = trimesh.creation.box(bounds=[low, high])
    return Mesh(made.vertices, made.faces, name=name)


def ball(radius=1.0, center=(0, 0, 0), subdivisions=3):
    made = trimesh.creation.icosphere(subdivisions, radius)
    return Mesh(made.vertices + np.array(center), made.faces, name="ball")


def turned(mesh, which=slice(None)):
    faces = mesh.faces.copy()
    faces[which] = faces[which][:, ::-1]
    return Mesh(mesh.vertices, faces, name=mesh.name)


def joined(*meshes):
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces), name="joined")


def soup(mesh):
    return Mesh(mesh.corners.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), name="soup")


def kept(mesh, which):
    return Mesh(mesh.vertices, mesh.faces[which], name=mesh.name)


def in_box(points, low=-1, high=1):
    return ((points > low) & (points < high)).all(1)


def in_ball(points, radius=1.0):
    return np.linalg.norm(points, axis=1) < radius


def winding(mesh, points):
    center, extent = mesh.bounds.mean(0), np.ptp(mesh.bounds, axis=0).max()  # igl computes in float32
    return igl.fast_winding_number(
        (mesh.vertices - center) / extent, mesh.faces.astype(np.int64), (points - center) / extent
    )


def rest(mesh, reach=1.3, count=4000):
    """Random points in a box somewhat larger than the mesh's."""
    center, half = mesh.bounds.mean(0), np.ptp(mesh.bounds, axis=0) / 2
    return center + reach * half * np.random.default_rng(7).uniform(-1, 1, (count, 3))


RNG = np.random.default_rng(3)
FLIPS = RNG.random(1280) < 1 / 3
CUBE = box()
APART = joined(box((-3, -1, -1), (-1.2, 1, 1)), box((1.2, -1, -1), (3, 1, 1)))
SHARING = joined(box((-1, -1, -1), (0, 1, 1)), box((0, -1, -1), (1, 1, 1)))
FIN = Mesh([[0, 1, 0], [1, 1, 0], [0, 2, 0]], [[0, 1, 2], [0, 2, 1]])
CAP = np.flatnonzero(ball().corners[:, :, 2].min(1) < 0.85)
SIDES = [kept(CUBE, np.abs(CUBE.corners[:, :, axis] - side).max(1) < 0.1) for axis in range(3) for side in (-1, 1)]
LOOSE = joined(*(Mesh(side.vertices * 0.999, side.faces) if i % 2 else side for i, side in enumerate(SIDES)))

# name: mesh, its inside, the sign method, words of the reason; `points` only where the answer is beyond doubt
SOLIDS = {
    "cube": (CUBE, in_box, "exact", "Closed; the inside is certain"),
    "inverted": (turned(CUBE), in_box, "exact", "1 of 1 parts inside out"),
    "half inverted": (
        turned(APART, slice(12)),
        lambda p: in_box(np.abs(p), (1.2, -1, -1), (3, 1, 1)),
        "exact",
        "1 of 2 parts",
    ),
    "third of faces flipped": (turned(ball(), FLIPS), lambda p: in_ball(p, 0.99), "exact", "inconsistent winding"),
    "soup": (soup(CUBE), in_box, "exact", "Closed"),
    "inverted soup": (turned(soup(CUBE)), in_box, "exact", "inside out"),
    "double-sided": (joined(CUBE, turned(CUBE)), in_box, "exact", "both windings"),
    "given twice": (joined(CUBE, CUBE), in_box, "exact", "Closed"),
    "open": (kept(ball(), CAP), lambda p: in_ball(p, 0.99), "winding", "Open"),
    "open, inverted": (turned(kept(ball(), CAP)), lambda p: in_ball(p, 0.99), "winding", "1 of 1 parts inside out"),
    "loose sides": (turned(LOOSE, RNG.random(12) < 0.5), in_box, "winding", "Open"),
    "hollow": (joined(ball(), turned(ball(0.5))), lambda p: in_ball(p) & ~in_ball(p, 0.5), "exact", "1 cavity"),
    "hollow, inverted": (
        joined(turned(ball()), ball(0.5)),
        lambda p: in_ball(p) & ~in_ball(p, 0.5),
        "exact",
        "2 of 2 parts",
    ),
    "hollow, with an island": (
        joined(ball(), turned(ball(0.7)), ball(0.3)),
        lambda p: in_ball(p) & ~in_ball(p, 0.7) | in_ball(p, 0.3),
        "exact",
        "1 cavity",
    ),
    "solid in a solid": (joined(ball(), ball(0.5)), in_ball, "winding", "overlap"),
    "overlapping": (
        joined(box((-1, -1, -1), (0.5, 1, 1)), box((-0.5, -1, -1), (1, 1, 1))),
        in_box,
        "winding",
        "parts that overlap",
    ),
    "overlapping, one inverted": (
        turned(joined(box((-1, -1, -1), (0.5, 1, 1)), box((-0.5, -1, -1), (1, 1, 1))), slice(12)),
        in_box,
        "winding",
        "1 of 2 parts inside out",
    ),
    "sharing a side": (SHARING, in_box, "exact", "sheets that bound nothing"),
    "with a fin": (joined(CUBE, FIN), in_box, "exact", "sheets that bound nothing"),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_inside_is_inside(name):
    mesh, inside, method, words = SOLIDS[name]
    diagnosis = diagnose(mesh)
    points = rest(mesh)
    if name.startswith("open"):
        points = points[(points[:, 2] < 0.5) | (np.linalg.norm(points, axis=1) > 1.1)]
    got = winding(orient(mesh, diagnosis), points) > 0.5
    assert (got != inside(points)).mean() < 0.01
    assert diagnosis.method == method, diagnosis.reason
    assert diagnosis.closed == (name not in ("open", "open, inverted", "loose sides"))
    assert words in diagnosis.reason


@pytest.mark.parametrize("name", SOLIDS)
def test_an_oriented_mesh_stays_as_it_is(name):
    mesh = orient(SOLIDS[name][0])
    diagnosis = diagnose(mesh)
    assert diagnosis.consistent and diagnosis.inverted == 0
    np.testing.assert_array_equal(orient(mesh).faces, mesh.faces)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(SOLIDS)),
    exponent=st.integers(-9, 9),
    offset=hnp.arrays(float, 3, elements=st.floats(-1e5, 1e5)),
    order=st.permutations(range(3)),
)
def test_the_diagnosis_does_not_depend_on_units_or_axes(name, exponent, offset, order):
    mesh = SOLIDS[name][0]
    axes = np.eye(3)[list(order)] * np.linalg.det(np.eye(3)[list(order)])
    moved = Similarity(10.0**exponent, axes, offset).apply(mesh)
    before, after = diagnose(mesh), diagnose(moved)
    assert (after.method, after.closed, after.parts) == (before.method, before.closed, before.parts)
    assert (after.inverted, after.cavities, after.consistent) == (before.inverted, before.cavities, before.consistent)


def test_a_clean_mesh_is_left_alone():
    mesh = Mesh(CUBE.vertices, CUBE.faces, normals=CUBE.vertices / 3**0.5)
    diagnosis = diagnose(mesh)
    assert not diagnosis.repaired and orient(mesh, diagnosis) is mesh
    assert diagnosis == MeshDiagnosis.from_dict(json.loads(json.dumps(diagnosis.to_dict())))


def test_nearly_equal_vertices_are_welded_only_at_open_edges():
    rng = np.random.default_rng(0)
    loose = soup(ball())
    loose = Mesh(loose.vertices + 1e-8 * rng.standard_normal(loose.vertices.shape), loose.faces)
    assert orient(loose).watertight and len(orient(loose).vertices) == len(ball().vertices)
    tiny = joined(CUBE, Mesh(ball().vertices * 1e-8, ball().faces))  # closed, far below the tolerance
    assert len(orient(tiny).vertices) == len(tiny.vertices)


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]),
        Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 1]]),
        kept(CUBE, CUBE.corners[:, :, 1].max(1) < 0),
    ],
    ids=["triangle", "triangle of two sides", "plate"],
)
def test_a_sheet_has_no_inside(mesh):
    diagnosis = diagnose(mesh)
    assert diagnosis.method == "views" and diagnosis.thin > 0.9 and "no inside" in diagnosis.reason
    assert len(orient(mesh).faces)


def test_a_shallow_bowl_is_left_to_the_views():
    bowl = kept(ball(), ball().corners[:, :, 1].max(1) < -0.3)
    diagnosis = diagnose(bowl)
    assert diagnosis.method == "views" and diagnosis.doubtful > 0.3 and "ambiguous" in diagnosis.reason


@pytest.mark.parametrize(
    "rim, least, most, method", [(-0.1, 0.08, 0.13, "winding"), (-0.15, 0.15, 0.22, "views"), (-0.2, 0.2, 0.3, "views")]
)
def test_winding_numbers_are_trusted_where_few_places_are_doubtful(rim, least, most, method):
    """A bowl, from deep to shallow."""
    diagnosis = diagnose(kept(ball(), ball().corners[:, :, 1].max(1) < rim))
    assert least < diagnosis.doubtful < most and diagnosis.method == method


def test_a_one_sided_strip_has_a_diagnosis():
    around = np.linspace(0, 2 * np.pi, 41)[:-1]
    across = np.array([-0.3, 0.3])[:, None]
    radius = 1 + across * np.cos(around / 2)
    strip = np.stack([radius * np.cos(around), radius * np.sin(around), across * np.sin(around / 2)], -1)
    low = np.arange(40)
    after = (low + 1) % 40
    ends = np.stack([after, after + 40], 1)
    ends[-1] = ends[-1][::-1]  # the last piece meets the first upside down
    faces = np.concatenate([np.stack([low, ends[:, 0], low + 40], 1), np.stack([low + 40, ends[:, 0], ends[:, 1]], 1)])
    diagnosis = diagnose(Mesh(strip.reshape(-1, 3), faces))
    assert diagnosis.method == "views" and not diagnosis.consistent and not diagnosis.closed


def test_a_cavity_is_not_believed_in_a_file_that_is_half_inside_out():
    mesh = joined(ball(), turned(ball(0.5)), turned(ball(1, (5, 0, 0))))
    diagnosis = diagnose(mesh)
    assert (diagnosis.inverted, diagnosis.cavities) == (2, 0)


# -------------------------------------------------------------------------------------------- the mesh and its numbers


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


# --------------------------------------------------------------------------------------------- frames and similarities

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


# --------------------------------------------------------------------------------------------------------------- files

KINDS = ["ply", "obj", "off", "stl", "glb"]


@pytest.mark.parametrize("kind", KINDS)
def test_written_meshes_are_read_back(kind, tmp_path):
    mesh = Similarity(0.1, translation=[1, 2, 3]).apply(ball())
    path = write(mesh, tmp_path / "new" / f"shape.{kind}")
    back = read(path)
    assert back.name == "shape"
    np.testing.assert_allclose(back.corners, mesh.corners, atol=1e-7)
    np.testing.assert_allclose(trimesh.load_mesh(path, process=False).volume, mesh.volume, rtol=1e-5)  # another reader
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["ply", "obj", "off", "glb"])
@pytest.mark.parametrize("scale, offset", [(1e-6, 0), (50, 1e6), (1, -3e6)])
def test_small_and_far_meshes_keep_their_shape_in_files(kind, scale, offset, tmp_path):
    mesh = Mesh(ball().vertices * scale + offset, ball().faces)
    back = read(write(mesh, tmp_path / f"shape.{kind}"))
    np.testing.assert_allclose(back.corners, mesh.corners, atol=2e-7 * scale + 1e-15 * abs(offset), rtol=0)


def test_stl_is_refused_where_it_would_ruin_the_mesh(tmp_path):
    with pytest.raises(MeshError, match="write PLY"):
        write(Mesh(ball().vertices + 1e6, ball().faces), tmp_path / "far.stl")


def test_normals_are_kept_where_the_file_has_them_by_vertex(tmp_path):
    mesh = Mesh(ball().vertices, ball().faces, normals=-ball().vertices)
    np.testing.assert_allclose(read(write(mesh, tmp_path / "a.ply")).normals, mesh.normals, atol=1e-7)
    np.testing.assert_allclose(igl.readOBJ(str(write(mesh, tmp_path / "a.obj")))[2], mesh.normals, atol=1e-6)
    data = write(mesh, tmp_path / "a.glb").read_bytes()
    assert b'"NORMAL"' in data and mesh.normals.astype("<f4").tobytes() in data


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = write(CUBE, tmp_path / "shape.ply")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(ball(), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_only_known_kinds_are_written_or_read(tmp_path):
    for kind in ("txt", "gltf", "npz"):
        with pytest.raises(MeshError, match="unknown kind of file; meshes are written as"):
            write(CUBE, tmp_path / f"a.{kind}")
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(1))
    with pytest.raises(MeshError, match="unknown kind of file; mesh files end in"):
        read(tmp_path / "a.pickle")
    with pytest.raises(MeshError, match="missing.ply: no such file"):
        read(tmp_path / "missing.ply")


def test_find_lists_mesh_files_below_a_folder(tmp_path):
    for name in ("b.ply", "a.OBJ", "c/d.stl", "c/.hidden.ply", ".cache/e.ply", "notes.txt", ".b.ply.1f2e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find(tmp_path)] == ["a.OBJ", "b.ply", "c/d.stl"]
    assert find(tmp_path / "b.ply") == [tmp_path / "b.ply"]
    with pytest.raises(MeshError, match="no such file or folder"):
        find(tmp_path / "none")


PLY = """ply
format {format} 1.0
comment made by hand
element vertex 5
property float x
property float y
property float z
element face {faces}
property uchar flags
property list uchar int vertex_indices
property float quality
element edge 1
property list uchar short both
end_header
"""
PYRAMID = np.array([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [1, 1, 2]], float)
POLYGONS = [[0, 3, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]
BODY_OFF = "\n".join(" ".join(map(str, row)) for row in PYRAMID.astype(int).tolist())


def pyramid_ply(order):
    if order == "ascii":
        rows = [f"7 {len(p)} {' '.join(map(str, p))} 0.5" for p in POLYGONS]
        return (PLY.format(format="ascii", faces=5) + "\n".join([BODY_OFF, *rows, "2 0 1", ""])).encode()
    sign = "<" if order == "little" else ">"
    rows = b"".join(struct.pack(f"{sign}BB{len(p)}if", 7, len(p), *p, 0.5) for p in POLYGONS)
    head = PLY.format(format=f"binary_{order}_endian", faces=5).encode()
    return head + PYRAMID.astype(sign + "f4").tobytes() + rows + struct.pack(sign + "Bhh", 2, 0, 1)


FACES_OFF = "\n".join(f"{len(p)} {' '.join(map(str, p))} 255 0 0" for p in POLYGONS)
FACES_OBJ = "\n".join("f " + " ".join(f"{i + 1}/1/1" for i in p) for p in POLYGONS)
BODY_OBJ = "\n".join("v " + line + " 0.5 0.5 0.5" for line in BODY_OFF.splitlines())
PYRAMIDS = {
    "ascii.ply": pyramid_ply("ascii"),
    "little.ply": pyramid_ply("little"),
    "big.ply": pyramid_ply("big"),
    "crlf.ply": pyramid_ply("ascii").replace(b"\n", b"\r\n"),
    "plain.off": f"OFF\n5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "glued.off": f"OFF5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "one_line.off": f"OFF 5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "commented.off": f"# a\nOFF # b\n\n5 5 0\n\n{BODY_OFF}\n# c\n{FACES_OFF}\n".replace("\n", "\r\n").encode(),
    "colored.off": f"COFF\n5 5 8\n{BODY_OFF}\n{FACES_OFF}".replace(" 0\n", " 0 9 9 9 9\n").encode(),
    "plain.obj": f"# mesh\nmtllib none.mtl\no a\n{BODY_OBJ}\nvt 0 0\nvn 0 0 1\ng b\nusemtl c\n{FACES_OBJ}".encode(),
    "crlf.obj": f"{BODY_OBJ}\n{FACES_OBJ} # end\n".replace("\n", "\r\n").encode(),
    "relative.obj": f"{BODY_OBJ}\nf -5 -2 -3 \\\n-4\nf 1//1 2//1 5//1\nf 2 3 5\nf -3 -2 -1\nf 4 1 5".encode(),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_dialects_with_polygons(name, tmp_path):
    (tmp_path / name).write_bytes(PYRAMIDS[name])
    mesh = read(tmp_path / name)
    assert mesh.watertight and mesh.volume == pytest.approx(8 / 3) and len(mesh.faces) == 6
    np.testing.assert_array_equal(mesh.vertices, PYRAMID)


LEFT = {  # what follows the end of a file, or is no face, is not lost without a word
    "long.ply": (PYRAMIDS["little.ply"] + bytes(1), "1 bytes after the elements that its header announces"),
    "long_ascii.ply": (PYRAMIDS["ascii.ply"] + b"7 7\n", "2 numbers after the elements"),
    "long.off": (PYRAMIDS["plain.off"] + b"\n3 0 1 2\n", "1 lines after the vertices and faces"),
    "edges.obj": (
        PYRAMIDS["plain.obj"].replace(b"\nf ", b"\nf 1 2\nf ", 1),
        "1 of its faces have fewer than 3 corners",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_out_is_said(name, tmp_path):
    data, words = LEFT[name]
    (tmp_path / name).write_bytes(data)
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path / name}: ") + words):
        mesh = read(tmp_path / name)
    assert mesh.watertight and mesh.volume == pytest.approx(8 / 3)


def test_stl_files_are_read_by_their_length(tmp_path):
    data = write(CUBE, tmp_path / "cube.stl").read_bytes()
    (tmp_path / "long.stl").write_bytes(data + bytes(2))
    with pytest.warns(UserWarning, match="2 bytes after its 12 facets"):
        assert read(tmp_path / "long.stl").volume == pytest.approx(8)
    (tmp_path / "streamed.stl").write_bytes(data[:80] + bytes(4) + data[84:])  # the count was not known when it began
    assert read(tmp_path / "streamed.stl").volume == pytest.approx(8)


def test_strips_of_a_ply_are_triangles(tmp_path):
    """The octahedron as two strips in one list, which turn the same way round."""
    corners = [0, 2, 1, 3, 5, -1, 1, 5, 4, 3, 0, -1, 0, 4, 2, 5, -1, 4, 0, 1]
    points = "1 0 0\n0 1 0\n0 0 1\n-1 0 0\n0 -1 0\n0 0 -1\n"
    head = "ply\nformat ascii 1.0\nelement vertex 6\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    text = head + points + f"{len(corners)} {' '.join(map(str, corners))}\n"
    (tmp_path / "strips.ply").write_text(text)
    mesh = read(tmp_path / "strips.ply")
    np.testing.assert_array_equal(mesh.faces, strips(corners))
    (tmp_path / "strips.ply").write_text(text.replace(" 5 -1", " 9 -1"))
    with pytest.raises(MeshError, match="uses vertex 9"):
        read(tmp_path / "strips.ply")


@pytest.mark.parametrize("order", ["little", "big"])
def test_vertices_with_lists_of_different_lengths_are_read(order, tmp_path):
    sign = "<" if order == "little" else ">"
    head = f"ply\nformat binary_{order}_endian 1.0\nelement vertex 5\nproperty float x\nproperty float y\n"
    head += "property list uchar ushort views\nproperty float z\nelement face 5\nproperty list uchar int vertex_index\n"
    rows = [struct.pack(f"{sign}ffB{i}Hf", x, y, i, *range(i), z) for i, (x, y, z) in enumerate(PYRAMID)]
    rows += [struct.pack(f"{sign}B{len(p)}i", len(p), *p) for p in POLYGONS]
    (tmp_path / "views.ply").write_bytes(f"{head}end_header\n".encode() + b"".join(rows))
    mesh = read(tmp_path / "views.ply")
    np.testing.assert_array_equal(mesh.vertices, PYRAMID)
    assert mesh.volume == pytest.approx(8 / 3)


def star(corners: int) -> bytes:
    """An OBJ file of one polygon that crosses itself."""
    angle = np.arange(corners) * 2 * np.pi * (corners // 2 - 1) / corners
    lines = [f"v {x:.9f} {y:.9f} 0" for x, y in zip(np.cos(angle), np.sin(angle), strict=True)]
    return "\n".join([*lines, "f " + " ".join(map(str, range(1, corners + 1)))]).encode()


def test_polygons_of_very_many_corners_are_refused_if_they_are_not_convex(tmp_path):
    (tmp_path / "star.obj").write_bytes(star(20_001))
    with pytest.raises(MeshError, match="face 0 has 20001 corners and is not convex"):
        read(tmp_path / "star.obj")


def test_polygons_that_are_not_convex_are_cut_inside_themselves(tmp_path):
    arrow = "v 0 0 0\nv 2 -2 1\nv 0 4 1\nv -2 -2 1\n"  # seen along z: a dart whose notch is the first vertex
    (tmp_path / "arrow.obj").write_text(arrow.replace(" 1\n", " 0\n") + "f 2 3 4 1\nf 3 4 1 2\n")
    mesh = read(tmp_path / "arrow.obj")
    assert len(mesh.faces) == 4 and mesh.area == pytest.approx(2 * 8)  # a fan from the third corner would cover 24
    assert (np.cross(*np.moveaxis(np.diff(mesh.corners, axis=1), 1, 0))[:, 2] > 0).all()


BAD = {
    "empty.ply": (b"", "empty"),
    "other.ply": (b"PK\3\4" + bytes(99), "no PLY file"),
    "header.ply": (PYRAMIDS["ascii.ply"][:150], "cut off in its header"),
    "cut.ply": (PYRAMIDS["little.ply"][:-9], "cut off in face element 4 of 5"),
    "cut_ascii.ply": (PYRAMIDS["ascii.ply"][:-30], "cut off"),
    "huge.ply": (PYRAMIDS["big.ply"].replace(b"face 5", b"face 900000000000"), "more than the file holds"),
    "negative.ply": (PYRAMIDS["big.ply"].replace(b"face 5", b"face -5"), "more than the file holds"),
    "words.ply": (PYRAMIDS["ascii.ply"].replace(b"2 2 0", b"2 x 0"), "damaged"),
    "type.ply": (PYRAMIDS["big.ply"].replace(b"property float x", b"property quad x"), "damaged"),
    "points.ply": (PYRAMIDS["ascii.ply"].split(b"element face")[0] + b"end_header\n" + b"0 0 0\n" * 5, "no faces"),
    "range.ply": (PYRAMIDS["ascii.ply"].replace(b"3 3 0 4", b"3 3 0 9"), "face 4 uses vertex 9"),
    "zero.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "counts from 1"),
    "range.obj": (PYRAMIDS["plain.obj"] + b"\nf 1 2 99999", "face 5 uses vertex 99998"),
    "cut.obj": (PYRAMIDS["plain.obj"] + b"\nf 1", "has 1 corners"),
    "cut_vertices.obj": (PYRAMIDS["plain.obj"][:60], "no faces"),
    "nan.obj": (PYRAMIDS["plain.obj"].replace(b"v 2 0 0", b"v nan 0 0"), "not all finite"),
    "long.obj": (PYRAMIDS["plain.obj"].replace(b"v 2 0 0", b"v " + b"2" * 99 + b" 0 0"), "word of 99 characters"),
    "flat.obj": (b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "no area"),
    "counts.off": (b"OFF\n4 -1 0\n", "announces"),
    "huge.off": (b"OFF\n4 99999999999999 0\n0 0 0\n", "announces"),
    "cut.off": (PYRAMIDS["plain.off"][:-20], "cut off"),
    "other.off": (b"solid", "does not begin with 'OFF'"),
    "short.stl": (bytes(80) + struct.pack("<I", 3) + bytes(100), "announces 3 facets, 234 bytes, but holds 184"),
    "huge.stl": (bytes(80) + b"\xff\xff\xff\xff" + bytes(100), "announces 4294967295 facets"),
    "cut.stl": (b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0", "cut off after 0 facets"),
    "tiny.stl": (b"abc", "announces"),
    "empty_ascii.ply": (b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "no vertices and no faces"),
    "flat.ply": (PYRAMIDS["ascii.ply"].replace(b"property float z\n", b""), "vertices without x, y and z"),
    "long_names.ply": (PYRAMIDS["ascii.ply"].replace(b"float z", b"float " + b"z" * 9999), "without x, y and z.{,99}$"),
    "no_list.ply": (PYRAMIDS["little.ply"].replace(b"vertex_indices", b"corners"), "without a list vertex_indices"),
    "two.obj": (PYRAMIDS["plain.obj"] + b"\nf 1 2", "face 5 has 2 corners"),
    "cut.glb": (b"glTF\2\0\0\0\x20\1\0\0", "cut off"),
    "other.glb": (b"not a mesh", "damaged"),
    "no.gltf": (b"{}", "no vertices and no faces"),
    "half.gltf": (b'{"asset": {"ver', "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_files_are_named_with_their_cause(name, tmp_path):
    data, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MeshError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), fraction=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_an_error(kind, fraction, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    whole = write(CUBE, folder / f"whole.{kind}").read_bytes().rstrip(b"\n" if kind in ("obj", "off") else b"")
    path = folder / f"cut.{kind}"
    path.write_bytes(whole[: int(fraction * len(whole))])
    try:
        mesh = read(path)
    except MeshError as error:
        assert str(path) in str(error)
    else:  # an OBJ has no count: cut between two faces it is another, whole file; OFF has no end of its last number
        assert kind == "obj" and len(mesh.faces) < 12 or kind == "off"


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), changes=st.dictionaries(st.integers(0, 2000), st.integers(0, 255), max_size=5))
def test_damaged_files_give_a_mesh_or_an_error_but_never_a_crash(kind, changes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(write(CUBE, folder / f"whole.{kind}").read_bytes())
    for place, value in changes.items():
        data[place % len(data)] = value
    path = folder / f"damaged.{kind}"
    path.write_bytes(data)
    with warnings.catch_warnings(action="error"):
        try:
            diagnose(read(path))
        except MeshError as error:
            assert str(path) in str(error) or "damaged:" in str(error)


def test_reading_makes_no_noise(tmp_path, capfd, caplog):
    for name, data in PYRAMIDS.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "scene.glb").write_bytes(glb(scene([{"mesh": 0}])))
    (tmp_path / "broken.glb").write_bytes(glb(scene([{"mesh": 7}])))
    with warnings.catch_warnings(action="error"), caplog.at_level(logging.WARNING):
        for path in find(tmp_path):
            try:
                orient(read(path))
            except MeshError:
                assert path.name == "broken.glb"
    assert not caplog.records and capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------- real and difficult meshes


def agreement(mesh):
    """Fraction of points near the surface where winding numbers after `orient` agree with rays.

    A point from which none of 64 rays escape is inside, one from which a tenth do is outside; this does not depend
    on the orientation of faces.
    """
    rng = np.random.default_rng(0)
    local, _ = normalize(mesh, "cube")
    area = local.trimesh().area_faces
    chosen = local.corners[rng.choice(len(area), 1500, p=area / area.sum())]
    points = np.einsum("nc,ncd->nd", rng.dirichlet(np.ones(3), 1500), chosen) + rng.normal(0, 0.01, (1500, 3))
    directions = rng.standard_normal((64, 3))
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, np.ascontiguousarray(local.corners, np.float32))
    hits = scene.run(np.repeat(points, 64, 0).astype(np.float32), np.tile(directions, (1500, 1)).astype(np.float32))
    seen = (hits < 0).reshape(1500, 64).mean(1)
    known = (seen == 0) | (seen > 0.1)
    return ((winding(orient(local), points) > 0.5) == (seen == 0))[known].mean()


# file: words of the error; or method, least agreement with rays (None: see `views`), words of the reason
AWKWARD = {
    "chair_ascii.stl": ("winding", 1, "Closed, with parts that overlap"),
    "chair_binary.stl": ("winding", 1, "Closed, with parts that overlap"),
    "colours_ascii.ply": ("exact", 1, "Closed, with sheets that bound nothing"),
    "colours_big_endian.ply": ("winding", 0.985, "Open"),
    "double_sided_chair.ply": ("winding", 0.985, "given in both windings, of which one is kept"),
    "empty.obj": "empty",
    "empty.off": "empty",
    "empty.ply": "empty",
    "empty.stl": "empty",
    "flat_plane.ply": ("views", None, "there is no inside"),
    "half_inverted_jet.ply": ("winding", 0.995, "2 of 8 parts inside out"),
    "hollow_shell.ply": ("exact", None, "1 cavity; the inside is certain"),
    "index_out_of_range.obj": "face 184 uses vertex 99998",
    "inverted_chair.ply": ("winding", 0.995, "14 of 14 parts inside out"),
    "mixed_winding_chair.ply": ("views", None, "inconsistent winding of neighboring faces.* ambiguous"),
    "nan_vertex.obj": "not all finite",
    "obj_syntax_zoo.obj": ("exact", 1, "Closed; the inside is certain"),
    "off_comments_colours_crlf.off": ("winding", 1, "Closed"),
    "off_glued_header.off": ("winding", 1, "Closed"),
    "offset_1e6_double.ply": ("winding", 1, "Closed"),
    "offset_1e6_float.ply": ("winding", 1, "Closed"),
    "open_camel_head.ply": ("winding", 0.93, "Open .41 unmatched edges"),  # rays leave through the neck
    "open_range_scan.ply": ("views", None, "ambiguous along 9.% of the surface"),
    "points_only_no_faces.ply": "257 vertices but no faces",
    "scene_nested_nodes.glb": ("winding", 1, "Closed"),
    "stray_part_jet.ply": ("winding", 0.995, "5 of 21 parts inside out"),
    "thin_sheet_car.ply": ("views", None, "Open .* ambiguous"),
    "third_of_faces_flipped.ply": ("exact", 0.995, "inconsistent winding of neighboring faces"),
    "tiny_1e-6.ply": ("winding", 1, "Closed"),
    "truncated_binary.ply": "cut off in face element 86 of 184",
    "truncated_header.ply": "cut off in its header",
    "truncated_in_faces.obj": "face 104 has 1 corners",
    "truncated_in_vertices.obj": "43 vertices but no faces",
    "unwelded_soup_chair.ply": ("winding", 0.985, "Open"),
    "very_dirty_truck.ply": ("winding", 0.98, "64 of 66 parts inside out"),
    "zero_area_collinear.ply": "no area",
    "zero_area_one_point.ply": "no area",
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_file(name, data):
    path = data / "awkward" / name
    expected = AWKWARD[name]
    if isinstance(expected, str):
        with pytest.raises(MeshError, match=expected) as caught:
            read(path)
        assert str(path) in str(caught.value)
        return
    method, fraction, words = expected
    mesh = read(path)
    diagnosis = diagnose(mesh)
    assert diagnosis.method == method
    assert re.search(words, diagnosis.reason), diagnosis.reason
    assert fraction is None or agreement(mesh) >= fraction - 1e-9


def test_every_awkward_file_has_its_line(data):
    assert {path.name for path in (data / "awkward").iterdir()} == set(AWKWARD)


def test_the_same_chair_in_five_files(data):
    names = ("chair_ascii.stl", "chair_binary.stl", "off_comments_colours_crlf.off", "off_glued_header.off")
    meshes = [orient(read(data / "awkward" / name)) for name in names]
    for mesh in meshes:
        assert len(mesh.vertices) == 104 and len(mesh.faces) == 184  # the STLs are welded
        assert mesh.volume == pytest.approx(meshes[0].volume, rel=1e-4)


def test_the_hollow_of_the_shell_is_outside(data):
    mesh, _ = normalize(orient(read(data / "awkward" / "hollow_shell.ply")))
    values = winding(mesh, np.array([[0, 0, 0], [0.8, 0, 0], [1.2, 0, 0]], float))
    np.testing.assert_allclose(values, [0, 1, 0], atol=0.02)


def test_mirrored_nodes_keep_their_outside(data):
    diagnosis = diagnose(read(data / "awkward" / "scene_nested_nodes.glb"))
    assert diagnosis.inverted == 0 and diagnosis.consistent and diagnosis.parts == 24


@pytest.mark.parametrize("name", ["armadillo", "bunny_closed", "fandisk", "fertility", "horse", "rocker_arm", "spot"])
def test_known_closed_shapes_are_exact_and_left_alone(name, data):
    diagnosis = diagnose(read(data / "shapes" / f"{name}.ply"))
    assert (diagnosis.method, diagnosis.repaired) == ("exact", False), diagnosis.reason


@pytest.mark.slow
def test_real_meshes_against_their_index(data):
    """Meshes that the index names inverted are flipped, leaky ones are not trusted, good ones stay."""
    with (data / "meshes" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    methods, worst = {}, {}
    for row in rows:
        mesh = read(data / "meshes" / row["category"] / row["split"] / f"{row['name']}.ply")
        diagnosis = diagnose(mesh)
        quality = row["inside_quality"]
        methods.setdefault(quality, []).append(diagnosis.method)
        if diagnosis.method != "views":
            worst.setdefault(quality, []).append(agreement(mesh))
        if row["watertight"] == "1" and row["consistent_winding"] == "1":
            assert diagnosis.closed and diagnosis.consistent, row["name"]
        if quality in ("inverted", "partinv") and row["name"] != "shrec12_D00914":
            assert diagnosis.inverted or not diagnosis.consistent, row["name"]
    assert methods["good"].count("views") == 0
    assert methods["leaky"].count("views") == 4 and methods["inverted"].count("views") == 2
    assert np.median(worst["good"]) == 1 and np.mean(np.array(worst["good"]) > 0.97) > 0.95
    assert np.mean(np.array(worst["partinv"]) > 0.95) > 0.9 and min(worst["inverted"]) > 0.8
