"""Scores against the recorded programs, against closed forms, and at their edges."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import trimesh
from paths import RECORDED
from scipy.spatial import cKDTree

import jonet
from jonet.errors import ConfigError, InputError
from jonet.evaluation import baseline, metrics
from jonet.geometry import diagnosis
from jonet.geometry.inside import Inside
from jonet.geometry.mesh import Mesh
from jonet.settings.metrics import MetricsConfig

SCORING = MetricsConfig(surface_points=30_000)


def of(predicted: trimesh.Trimesh) -> Mesh:
    return Mesh(predicted.vertices, predicted.faces)


def ball(radius: float, subdivisions: int = 4) -> Mesh:
    return of(trimesh.creation.icosphere(subdivisions, radius=radius))


def box(offset=(0, 0, 0), size=(1, 1, 1)) -> Mesh:
    predicted = trimesh.creation.box(size)
    predicted.apply_translation(offset)
    return of(predicted)


def test_chamfer_l2_and_the_papers_measures_are_the_recorded_ones():
    recorded = np.load(RECORDED / "metrics" / "chamfer.npz")
    predicted = recorded["generated_normalised_f64"] / recorded["scale_f64"] - recorded["offset_f64"]
    true = recorded["ground_truth_f64"]
    out, back = cKDTree(true).query(predicted)[0], cKDTree(predicted).query(true)[0]
    np.testing.assert_allclose(metrics.chamfer_l2(out, back), recorded["chamfer_f64"], rtol=1e-9)
    np.testing.assert_allclose(metrics.mesh_accuracy(out), recorded["definition_accuracy90_f64"], rtol=1e-9)
    for name, threshold in (("0p05", 0.05), ("0p1", 0.1)):
        expected = recorded[f"definition_completion_{name}_f64"]
        np.testing.assert_allclose(metrics.mesh_completion(back, threshold), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.emd(predicted[:200], true[:200]), recorded["definition_emd200_f64"], rtol=1e-9)


def test_normal_consistency_and_chamfer_l1_are_the_recorded_ones():
    recorded = np.load(RECORDED / "metrics" / "metrics_pointclouds.npz")
    predicted, true = recorded["prediction/points"], recorded["target/points"]
    out, near_true = cKDTree(true).query(predicted)
    back, near_predicted = cKDTree(predicted).query(true)
    np.testing.assert_allclose(metrics.chamfer_l1(out, back), recorded["score/chamfer-L1"], rtol=1e-5)
    np.testing.assert_allclose(out.mean(), recorded["score/accuracy"], rtol=1e-5)
    np.testing.assert_allclose(back.mean(), recorded["score/completeness"], rtol=1e-5)
    np.testing.assert_allclose(metrics.chamfer_l2(out, back) / 2, recorded["score/chamfer-L2"], rtol=1e-5)
    unit = [
        n / np.linalg.norm(n, axis=-1, keepdims=True)
        for n in (recorded["prediction/normals"], recorded["target/normals"])
    ]
    got = metrics.normal_consistency(*unit, near_true, near_predicted)
    np.testing.assert_allclose(got, recorded["score/normals"], rtol=1e-5)


@pytest.mark.parametrize("name", ["icosphere", "rotated_box", "torus"])
def test_what_a_mesh_contains_is_what_was_recorded(name):
    recorded = np.load(RECORDED / "metrics" / "mesh_contains.npz")
    mesh = Mesh(recorded[f"{name}/vertices"], recorded[f"{name}/faces"])
    if mesh.volume < 0:
        mesh = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    got = Inside(mesh)(recorded["points"])
    assert np.mean(got != recorded[f"{name}/contains"].astype(bool)) < 2e-3


def test_a_shape_against_itself():
    scores = metrics.score(ball(0.5), ball(0.5), SCORING)
    assert scores["mesh_completion"] == 1 and scores["mesh_accuracy"] < 1e-6  # exact: to the surface, not to its points
    assert scores["iou"] == 1 and scores["f_score"] > 0.93 and scores["normal_consistency"] > 0.999
    spacing = 0.5 / np.sqrt(30_000 / np.pi)  # mean way to the nearest of n points spread over an area a: √(a/n) / 2
    np.testing.assert_allclose(scores["chamfer_l1"], spacing, rtol=0.05)


def test_two_spheres():
    scores = metrics.score(ball(0.45, 5), ball(0.5, 5), MetricsConfig(surface_points=10_000, chamfer_points=10_000))
    np.testing.assert_allclose(scores["iou"], 0.9**3, atol=0.01)
    np.testing.assert_allclose(scores["chamfer_l1"], 0.05, rtol=0.03)
    np.testing.assert_allclose(scores["chamfer_l2"], 2 * 0.05**2, rtol=0.06)
    np.testing.assert_allclose(scores["mesh_accuracy"], 0.05, rtol=0.06)
    assert scores["f_score"] == scores["mesh_completion"] == 0


def test_a_shifted_box_in_any_units():
    rows = metrics.evaluate(
        [box((0.2, 0, 0)), box((200, 0, 0), (1000,) * 3)], [box(), box((0, 0, 0), (1000,) * 3)], SCORING
    )
    for row in rows["shapes"]:
        np.testing.assert_allclose(row["iou"], 0.8 / 1.2, atol=0.01)
    ours, large = rows["shapes"]
    np.testing.assert_allclose(ours["chamfer_l1"], large["chamfer_l1"], rtol=1e-6)  # units of the longest side
    assert rows["summary"]["iou"]["mean"] == pytest.approx(np.mean([ours["iou"], large["iou"]]))


def test_points_stand_for_a_true_surface():
    """Of samples that came without a mesh: the same scores up to the points' spacing, IoU where there are labels."""
    ground_truth, predicted = (trimesh.creation.icosphere(4, radius) for radius in (1.0, 1.1))
    rng = np.random.default_rng(0)
    points, face = trimesh.sample.sample_surface(ground_truth, 20_000, seed=rng)
    cloud = Mesh(points, np.zeros((0, 3)), ground_truth.face_normals[face], name="cloud")
    scoring = MetricsConfig(volume_points=2000, surface_points=20_000, chamfer_points=10_000)
    got = metrics.score(Mesh(predicted.vertices, predicted.faces), cloud, scoring)
    wanted = metrics.score(
        Mesh(predicted.vertices, predicted.faces), Mesh(ground_truth.vertices, ground_truth.faces), scoring
    )
    assert set(wanted) - set(got) == {"iou"}
    for name, value in got.items():
        spread = 0.15 if name in ("deviation_max", "hausdorff") else 0.05  # the largest have the widest gap of points
        assert value == pytest.approx(wanted[name], rel=spread, abs=2e-3), name
    asked = rng.uniform(-1.2, 1.2, (50_000, 3))
    labeled = asked, np.linalg.norm(asked, axis=1) < 1
    told = metrics.score(Mesh(predicted.vertices, predicted.faces), cloud, scoring, labeled)
    assert told["iou"] == pytest.approx(1 / 1.1**3, abs=0.01) and told | got == told
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
    assert metrics.score(nothing, cloud, scoring, labeled)["iou"] == 0
    assert "iou" not in metrics.score(nothing, cloud, scoring)
    with pytest.raises(InputError, match="no surface"):
        metrics.score(cloud, nothing, scoring)


def test_emd_of_a_shift_is_the_shift():
    points = np.random.default_rng(0).random((100, 3))
    np.testing.assert_allclose(metrics.emd(points, points + [0.01, 0, 0]), 0.01, rtol=1e-6)


def test_no_surface_scores_worst():
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
    assert metrics.score(nothing, box()) == metrics.WORST | dict.fromkeys(metrics.DEVIATIONS, 1.0)
    with pytest.raises(InputError, match="no surface"):
        metrics.score(box(), nothing)


def test_mismatched_meshes_and_impossible_thresholds_are_refused():
    with pytest.raises(InputError, match="one for each"):
        jonet.evaluate([box()], [box(), box()])
    with pytest.raises(ConfigError, match="threshold"):
        MetricsConfig(threshold=0)


def test_meshes_of_other_libraries_are_scored():
    ours = metrics.evaluate(box((0.2, 0, 0)), box(), SCORING)
    theirs = trimesh.creation.box((1, 1, 1)).apply_translation((0.2, 0, 0))
    theirs.metadata["name"] = "crate"
    for predicted, true in ((theirs, box()), ([theirs], (box(),)), (theirs, [trimesh.creation.box((1, 1, 1))])):
        found = jonet.evaluate(predicted, true, SCORING)
        assert found["summary"] == ours["summary"] and found["shapes"][0]["name"] == "crate"


@pytest.mark.parametrize("wrong", ["ball.ply", Path("ball.ply"), np.zeros((8, 3)), trimesh.Scene(), None, 3])
def test_anything_else_is_refused_by_its_name(wrong):
    for arguments, name in (((wrong, box()), "meshes"), (([box()], [wrong]), r"ground_truths\[0\]")):
        with pytest.raises(InputError, match=f"^{name} is .* must be a mesh; "):
            jonet.evaluate(*arguments)


def test_the_table_has_each_papers_units():
    rows = [metrics.score(box((0.1, 0, 0)), box(), MetricsConfig(2000, 2000, 2000, 500, 50))]
    lines = metrics.table(metrics.summary(rows), 1)
    assert "Chamfer-L1" in lines and "DeepSDF" in lines and "ONet" in lines


class Clouds:
    """A store of ellipsoids, points of their surfaces alone."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.half = rng.uniform(0.1, 0.5, (count, 3))
        directions = rng.standard_normal((count, 1000, 3))
        self.points = self.half[:, None] * directions / np.linalg.norm(directions, axis=-1, keepdims=True)

    def surface(self, i: int):
        return self.points[i].astype(np.float32), None


def test_the_nearest_of_many_is_found_by_a_glance():
    store = Clouds(160)
    found = baseline.nearest(store, [0, 1, 2], range(160), count=2)
    trees = [cKDTree(points) for points in store.points]
    for i, near in found.items():
        transforms = [
            trees[j].query(store.points[i])[0].mean() + trees[i].query(store.points[j])[0].mean() for j in range(160)
        ]
        assert near == [j for j in np.argsort(transforms) if j != i][:2]
    assert baseline.nearest(store, [0], []) == {0: []}


def test_far_from_the_origin_scores_are_those_at_the_origin():
    """Surveyors' coordinates: float32 has steps of 0.5 there."""
    away, scoring = np.array([5e5, 120, 4.2e6]), MetricsConfig(surface_points=5000, chamfer_points=5000)
    predicted, true = box(size=(0.9, 0.9, 0.9)), box()
    moved = [Mesh(mesh.vertices + away, mesh.faces) for mesh in (predicted, true)]
    here, there = metrics.score(predicted, true, scoring), metrics.score(*moved, scoring)
    assert here["f_score"] == 0 and here["chamfer_l1"] > 0.05
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    points, normals = metrics.of_surface(true, scoring)
    clouds = [Mesh(points + offset, np.zeros((0, 3)), normals) for offset in (0, away)]
    asked = np.random.default_rng(0).uniform(-0.6, 0.6, (2000, 3))
    labeled = [(asked + offset, np.abs(asked).max(1) < 0.5) for offset in (0, away)]
    here, there = (
        metrics.score(*pair) for pair in zip((predicted, moved[0]), clouds, [scoring] * 2, labeled, strict=True)
    )
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


# Signs, floaters, what is inside out, and what is not defined


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def inside_out(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces[:, ::-1])


@pytest.mark.parametrize("away", [3, 30, 100, 1e4])
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_a_floater_counts_by_its_volume_however_far_it_is(away, size):
    scoring = MetricsConfig(volume_points=20_000)
    speck = box((0, away, 0.3 * away), (size, size, size))
    for predicted, common in ((box(), 1.0), (box((0.2, 0, 0)), 0.8)):
        wanted = common / (2 - common + size**3)
        got = metrics.iou(joined(predicted, speck), box(), scoring)
        assert got == pytest.approx(wanted, abs=0.02), (away, size)
    assert metrics.iou(speck, box(), scoring) == 0


def test_a_far_part_counts_by_its_volume():
    long = box((0, 20, 0), (0.5, 41, 0.5))  # half a unit of it within the true box
    assert metrics.iou(long, box(), MetricsConfig()) == pytest.approx(0.25 / (1 + 0.25 * 40), rel=0.05)


def test_meshes_inside_out_are_scored_as_what_they_enclose():
    predicted = box((0.2, 0, 0))
    wanted = metrics.evaluate([predicted], [box()], SCORING)["shapes"][0]
    hollow = joined(ball(0.5), inside_out(ball(0.3)))
    for mesh, ground_truth in (
        (inside_out(predicted), box()),
        (predicted, inside_out(box())),
        (inside_out(predicted), inside_out(box())),
    ):
        (row,) = metrics.evaluate([mesh], [ground_truth], SCORING)["shapes"]
        assert row["iou"] == pytest.approx(wanted["iou"], abs=1e-3)
    for mesh in (hollow, inside_out(hollow)):
        assert metrics.score(mesh, hollow, SCORING)["iou"] == 1
    two = joined(box(), inside_out(box((3, 0, 0))))  # one part of two: of the truth each part is turned
    (row,) = metrics.evaluate([joined(box(), box((3, 0, 0)))], [two], SCORING)["shapes"]
    assert row["iou"] > 0.99


def test_shapes_learned_by_votes_are_scored_by_votes(monkeypatch):
    """Randomly oriented faces: winding numbers are useless, visibility from outside gives the signs."""
    scoring = MetricsConfig(volume_points=5000, surface_points=3000, chamfer_points=3000)
    true = box(size=(1, 0.8, 0.6))
    flipped = np.random.default_rng(0).random(len(true.faces)) < 0.5
    ground_truth = Mesh(true.vertices, np.where(flipped[:, None], true.faces[:, ::-1], true.faces))
    assert metrics.score(true, ground_truth, scoring)["iou"] < 0.7
    scores = metrics.score(true, metrics.as_learned(ground_truth, "views"), scoring)
    assert scores["iou"] > 0.97 and scores["signs"] == "views" and scores["mesh_accuracy"] < 1e-6
    assert "signs" not in metrics.summary([scores]) and "iou" in metrics.summary([scores])
    assert metrics.as_learned(true, "winding") is true
    monkeypatch.setattr(metrics, "diagnose", lambda mesh: dataclasses.replace(diagnosis.diagnose(mesh), method="views"))
    (row,) = metrics.evaluate(
        [Mesh(300 * true.vertices, true.faces)], [Mesh(300 * true.vertices, true.faces)], scoring
    )["shapes"]
    assert row["signs"] == "views" and row["iou"] > 0.97  # in any units, by the diagnosis
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
    assert metrics.score(nothing, metrics.as_learned(ground_truth, "views"), scoring)["signs"] == "views"


def test_a_sheet_has_surface_scores_alone():
    sheet = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1e-3]], [[0, 1, 2], [1, 3, 2]])
    scores = metrics.evaluate([box()], [sheet], SCORING)
    assert scores["shapes"][0]["iou"] is None and scores["shapes"][0]["completeness"] < 0.6
    assert scores["summary"]["iou"] == {"mean": None, "median": None}


def test_all_distances_are_to_the_boundary_of_the_ground_truth():
    """A surface inside another part is not on the boundary: distances there are to the outer surface."""
    ground_truth = joined(box(), box(size=(0.5, 0.5, 0.5)))
    scores = metrics.score(box(size=(0.5, 0.5, 0.5)), ground_truth, SCORING)
    assert scores["mesh_accuracy"] == pytest.approx(0.25, rel=1e-3) and scores["accuracy"] > 0.2


def test_what_is_not_defined_is_none_and_stays_out_of_the_means():
    sheet = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1e-3]], [[0, 1, 2], [1, 3, 2]])
    row = metrics.score(sheet, sheet, SCORING)
    assert row["iou"] is None and row["chamfer_l1"] < 0.01
    rows = [row, metrics.score(box(), box(), SCORING)]
    assert metrics.summary(rows)["iou"] == {"mean": 1, "median": 1}
    assert metrics.summary(rows[:1])["iou"] == {"mean": None, "median": None}
    assert "IoU" in metrics.table(metrics.summary(rows[:1]), 1)
    rows[0]["chamfer_l1"] = None
    assert "–" in metrics.table(metrics.summary(rows[:1]), 1)
    with pytest.raises(InputError, match="no size"):
        metrics.score(box(), Mesh(np.ones((5, 3)), np.zeros((0, 3))), SCORING)


def test_emd_uses_the_first_points():
    scoring = MetricsConfig(surface_points=2000, chamfer_points=1000, accuracy_points=500, emd_points=50)
    predicted, true = ball(0.5, 2), box(size=(0.9, 1, 0.8))
    points = metrics.surface(predicted, 2000, metrics.rng(scoring, "made"))[0]
    others = metrics.surface(true, 2000, metrics.rng(scoring, "true"))[0]
    assert metrics.score(predicted, true, scoring)["emd"] == pytest.approx(
        metrics.emd(points[:50], others[:50]), rel=1e-6
    )


def test_the_f_score_joins_precision_and_recall():
    assert metrics.f_score(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 0.5) == pytest.approx(1 / 3)


def test_the_summary_has_the_numbers_that_a_task_adds_to_every_shape():
    rows = [
        {"name": name, "iou": iou, "eikonal_error": error, "holes": 2, "converged": True, "vertices": 9, "faces": 5}
        for name, iou, error in (("a", 0.5, 0.25), ("b", 0.7, None), ("c", 0.6, 0.75))
    ]
    rows[0] |= {"once": 1.0}
    found = metrics.summary(rows)
    assert list(found) == ["iou", "eikonal_error", "holes"]
    assert found["eikonal_error"] == {"mean": 0.5, "median": 0.5} and found["holes"]["median"] == 2
    assert "Eikonal error" in metrics.table(found, 3)


def test_a_mesh_far_from_its_ground_truth_is_said():
    """As one in the normalized frame against one in millimeters."""
    few = MetricsConfig(500, 500, 500, 500, 50)
    truth = Mesh(ball(50, 2).vertices + 900, ball(50, 2).faces, name="mug")
    with pytest.warns(UserWarning, match="mug: the mesh lies outside of the box of its ground truth.*transform given"):
        jonet.evaluate(ball(1, 2), truth, few)
    with warnings.catch_warnings(action="error"):
        jonet.evaluate(Mesh(truth.vertices + 30, truth.faces), truth, few)


@pytest.mark.parametrize(("size", "others", "count"), [(1, 1, 3), (700, 300, 200), (300, 700, 1000), (500, 500, 1)])
def test_nearest_points_are_those_of_all_pairs(size, others, count):
    rng = np.random.default_rng(size)
    points, others = (rng.normal(size=(n, 3)).astype(np.float32) * (1, 1, 0) for n in (size, others))
    *near, few, few_back = metrics.nearest(points, others, count)
    pairs = np.linalg.norm(points[:, None] - others[None], axis=-1)
    for found, wanted in zip(near, (pairs, pairs.T), strict=True):
        np.testing.assert_allclose(found.distances, wanted.min(1))
        np.testing.assert_array_equal(found.numbers, wanted.argmin(1))
    first = pairs[:count, :count]
    np.testing.assert_allclose(few, first.min(1))
    np.testing.assert_allclose(few_back, first.min(0))
