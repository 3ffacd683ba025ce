"""Mesh files: written whole and read back, found, and never a crash where they are cut or changed."""

import os
import pickle
import warnings

import igl
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from solids import CUBE, ball

from jonet.errors import MeshError
from jonet.geometry.diagnosis import diagnose
from jonet.geometry.mesh import Mesh, Similarity
from jonet.geometry.mesh_files import find, read, write

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
    with pytest.raises(MeshError, match="unknown kind of file; those that are read end in .3mf, .glb"):
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
