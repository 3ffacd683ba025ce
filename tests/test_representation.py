"""`represent`: meshes, samples and clouds as fields in input units; files of them; and what is refused."""

import dataclasses

import numpy as np
import pytest
import trimesh

import jonet
from jonet.errors import CheckpointError, ConfigError, InputError, JonetError, MeshError
from jonet.fields import Fields, Spline
from jonet.storage import archives

SMALL = {"resolution": 64, "near": 30_000, "uniform": 2_000, "cloud": 20_000, "tolerance": 1e-3}
CENTER, RADIUS = np.array([1000.0, -20.0, 5.0]), 30.0


@pytest.fixture(scope="module")
def ball():
    mesh = trimesh.creation.icosphere(4, RADIUS)
    mesh.apply_translation(CENTER)
    mesh.metadata["name"] = "ball"
    return mesh


@pytest.fixture(scope="module")
def fields(ball):
    box = trimesh.creation.box((2.0, 4.0, 1.0))
    return jonet.represent([ball, box], names=["ball", "box"], options=SMALL)


def off(points):
    return np.linalg.norm(points - CENTER, axis=1) - RADIUS


def test_distances_are_in_input_units(fields):
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for distance, most in ((-10, 0.5), (-1, 0.15), (0, 0.15), (1, 0.15), (3, 0.5)):
        found = fields["ball"](CENTER + (RADIUS + distance) * directions)
        assert np.abs(found - distance).max() < most  # the mesh's faces are up to 0.1 within the sphere
    far = fields["ball"](CENTER + 4 * RADIUS * directions)
    assert (far < 3 * RADIUS).all() and (far > 2 * RADIUS).all()  # beyond the cube a lower bound
    assert fields["ball"].valid_distance == pytest.approx(0.1 * RADIUS / 0.9, rel=0.01)
    values, gradients = fields[0].gradient(CENTER + 1.05 * RADIUS * directions)
    assert (gradients * directions).sum(1).mean() > 0.99
    assert np.linalg.norm(gradients, axis=1).mean() == pytest.approx(1, abs=0.02)
    assert "2 shapes" in repr(fields) and fields.names == ("ball", "box") and len(fields[:1]) == 1


def test_meshes_are_closed_and_where_the_shapes_are(fields, ball):
    rebuilt, box = fields.extract(64)
    assert rebuilt.watertight and rebuilt.name == "ball" and box.watertight
    assert np.abs(off(rebuilt.vertices)).max() < 0.15
    assert rebuilt.volume == pytest.approx(ball.volume, rel=0.01)
    np.testing.assert_allclose(np.ptp(box.bounds, axis=0), [2, 4, 1], atol=0.06)  # a cell is 0.08
    assert (rebuilt.normals * (rebuilt.vertices - CENTER)).sum(1).min() > 0


def test_coarse_to_fine_search_finds_what_the_whole_grid_has(fields):
    for sparse, dense in zip(fields.extract(48), fields.extract(48, method="dense"), strict=True):
        np.testing.assert_array_equal(sparse.faces, dense.faces)
        np.testing.assert_allclose(sparse.vertices, dense.vertices, atol=1e-4 * np.ptp(dense.vertices))


def test_fields_are_saved_and_loaded(fields, tmp_path):
    fields.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.npz", "box.npz"]
    loaded = Fields.load(tmp_path)
    assert loaded.names == fields.names
    np.testing.assert_array_equal(loaded.errors, fields.errors)
    points = CENTER + np.random.default_rng(0).uniform(-40, 40, (300, 3))
    np.testing.assert_array_equal(loaded["ball"](points), fields["ball"](points))
    assert Spline.load(tmp_path / "box.npz").closed is None
    one = Fields.load(tmp_path / "box.npz")
    assert one.names == ("box",)


def test_samples_say_where_the_shape_is(ball):
    points, distances = jonet.sample_sdf(ball, 30_000)
    found = jonet.represent(samples=[np.column_stack([points, distances])], options=SMALL)
    assert found.names == ("shape 0",)
    assert np.abs(off(found.extract(64)[0].vertices)).max() < 0.4


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("oriented", [True, False])
def test_clouds(ball, oriented, noise):
    rng = np.random.default_rng(0)
    points, face = trimesh.sample.sample_surface(ball, 5000, seed=0)
    normals = ball.face_normals[face]
    points = np.asarray(points) + noise * rng.normal(size=points.shape)
    found = jonet.represent(points=[points], normals=[normals] if oriented else None, options=SMALL)
    (mesh,) = found.extract(64)
    assert mesh.watertight and np.abs(off(mesh.vertices)).mean() < 0.15 + noise
    assert found.splines[0].closed == 0


def test_where_points_were_seen_from_tells_the_sides_of_a_thin_plate():
    """Points of both sides are as near as those of one, so neighbors alone do not tell them apart."""
    plate = trimesh.creation.box((2.0, 2.0, 0.1))
    points, face = trimesh.sample.sample_surface(plate, 1500, seed=0)
    asked = np.random.default_rng(0).uniform([-1, -1, -0.2], [1, 1, 0.2], (4000, 3))
    wrong = {}
    for name, eye in (("seen", [points + 3 * plate.face_normals[face]]), ("unseen", None)):
        found = jonet.represent(points=[points], eye=eye, options=SMALL)[0]
        wrong[name] = np.mean(found.contains(asked) != (np.abs(asked[:, 2]) < 0.05))
    assert wrong["seen"] < 0.5 * wrong["unseen"] and wrong["seen"] < 0.12


def test_points_that_stand_alone_are_left_out(ball):
    rng = np.random.default_rng(0)
    points, _ = trimesh.sample.sample_surface(ball, 5000, seed=0)
    alone = CENTER + rng.uniform(-100, 100, (500, 3))
    (mesh,) = jonet.represent(points=[np.concatenate([points, alone])], options=SMALL).extract(64, largest=True)
    assert mesh.watertight and np.abs(off(mesh.vertices)).max() < 3


def test_holes_are_closed_and_their_share_is_said(ball):
    points, face = trimesh.sample.sample_surface(ball, 5000, seed=0)
    kept = points[:, 2] < CENTER[2] + 0.5 * RADIUS
    found = jonet.represent(points=[points[kept]], normals=[ball.face_normals[face][kept]], options=SMALL)
    (mesh,) = found.extract(64)
    assert mesh.watertight and 0.05 < found.splines[0].closed < 0.4


def test_the_same_shapes_together_and_alone(ball, fields):
    alone = jonet.represent(ball, options=SMALL)
    assert alone.names == ("ball",)
    points = CENTER + np.random.default_rng(0).uniform(-40, 40, (300, 3))
    np.testing.assert_array_equal(alone[0](points), fields["ball"](points))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give one of meshes, samples and points"),
        ({"meshes": [], "samples": None}, "no shape is given"),
        ({"samples": [np.zeros((4, 3))]}, "samples"),
        ({"samples": [np.ones((40, 4))]}, "are all outside"),
        ({"points": [np.ones((40, 3))]}, "nowhere else"),
        ({"points": [np.zeros((5, 3))], "normals": [np.zeros((4, 3))]}, "one row for each point"),
        (
            {"points": [np.zeros((5, 3))], "normals": [np.ones((5, 3))], "eye": np.ones(3)},
            "only points without normals",
        ),
        ({"points": [np.zeros((5, 3))], "eye": [np.ones((4, 3))]}, "one row for each point"),
        ({"points": [np.full((40, 3), np.nan)]}, "finite"),
        ({"samples": [np.ones((40, 4))], "normals": [np.ones((40, 3))]}, "without points"),
        ({"points": [np.random.default_rng(0).normal(size=(5, 3))]}, "too few"),
        ({"meshes": "chair.obj"}, "jonet.read"),
        ({"points": [np.ones((40, 3))], "options": {"resolution": 65}}, "resolution is 65"),
        ({"points": [np.ones((40, 3))], "options": {"resolutoin": 64}}, "resolutoin"),
        ({"points": [np.ones((40, 3))], "options": 3}, "options is 3"),
    ],
)
def test_what_is_wrong_is_said(arguments, says):
    with pytest.raises(JonetError, match=says) as raised:
        jonet.represent(**arguments)
    assert isinstance(raised.value, InputError | ConfigError | MeshError)


def test_a_mesh_without_an_inside_is_refused():
    sheet = jonet.Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], name="sheet")
    with pytest.raises(MeshError, match="sheet"):
        jonet.represent(sheet, options=SMALL)


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


DAMAGE = {
    "version": (lambda a: a | {"version": np.array(9)}, "format"),
    "a level in between": (lambda a: without(a, "values_64") | {"values_128": a["values_64"]}, "cells"),
    "values": (lambda a: a | {"values_64": a["values_64"][:-1]}, "nodes"),
    "cells": (lambda a: a | {"cells_64": a["cells_64"] * 1000}, "outside"),
    "cells that occur twice": (lambda a: a | {"cells_64": np.append(a["cells_64"], 0).astype(np.uint32)}, "twice"),
    "a box": (lambda a: a | {"box": a["box"][::-1]}, "box"),
    "similarity": (lambda a: a | {"similarity": a["similarity"] * np.nan}, "finite"),
    "no name": (lambda a: without(a, "name"), "lacks name"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_refused(fields, tmp_path, what):
    change, says = DAMAGE[what]
    fields.splines[1].save(tmp_path / "box.npz")
    arrays = archives.arrays(tmp_path / "box.npz", (), None, archives.NUMBERS + archives.WORDS)
    np.savez(tmp_path / "box.npz", **change(dict(arrays)))
    with pytest.raises(CheckpointError, match=says):
        Spline.load(tmp_path / "box.npz")


def test_an_empty_folder_is_no_fields(tmp_path):
    with pytest.raises(CheckpointError, match="contains no fields"):
        Fields.load(tmp_path)
    with pytest.raises(InputError, match="no field is named 'bal'"):
        Fields([])["bal"]


def test_real_shapes_and_clouds(data):
    """An aeroplane from its distances and from 10,000 points, with and without normals."""
    mesh = jonet.read(data / "meshes" / "aeroplane" / "test" / "psegb_61.ply")
    options = {"resolution": 256, "near": 200_000, "uniform": 10_000, "cloud": 100_000}
    points, face = trimesh.sample.sample_surface(mesh.trimesh(), 10_000, seed=0)
    cloud = {"points": [points], "normals": [mesh.trimesh().face_normals[face]]}
    cases = {0.99: {"meshes": mesh}, 0.97: cloud, 0.96: {"points": [points]}}
    for least, arguments in cases.items():
        (rebuilt,) = jonet.represent(**arguments, options=options).extract(128)
        scores = jonet.evaluate(dataclasses.replace(rebuilt, name=mesh.name), mesh)["shapes"][0]
        assert rebuilt.watertight and scores["iou"] > least and scores["f_score"] > 0.97
