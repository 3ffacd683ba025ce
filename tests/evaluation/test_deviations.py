"""Deviations in input units against closed forms, in any units and frame, and where they are not measured."""

import dataclasses

import numpy as np
import pytest
import trimesh

import jonet
from jonet.evaluation import metrics
from jonet.evaluation.measures import MEASURES
from jonet.geometry import diagnosis
from jonet.geometry.mesh import Mesh, Similarity
from jonet.settings.metrics import MetricsConfig

SCORING = MetricsConfig(volume_points=1000, surface_points=10_000, chamfer_points=1000, emd_points=50)
NOTHING = Mesh(np.zeros((0, 3)), np.zeros((0, 3)))


def ball(radius: float) -> Mesh:
    solid = trimesh.creation.icosphere(5, radius=radius)
    return Mesh(solid.vertices, solid.faces)


def boxes(*offsets, size=(1, 1, 1)) -> Mesh:
    """Boxes with their centers at these offsets, as one mesh."""
    solid = trimesh.util.concatenate([trimesh.creation.box(size).apply_translation(offset) for offset in offsets])
    return Mesh(solid.vertices, solid.faces)


def deviations(mesh: Mesh, ground_truth: Mesh, scoring: MetricsConfig = SCORING) -> list[float]:
    (row,) = jonet.evaluate(mesh, ground_truth, scoring)["shapes"]
    return [row[name] for name in metrics.DEVIATIONS]


@pytest.mark.parametrize("offset", [0, 5e5])
@pytest.mark.parametrize("size", [1.0, 1000.0, 1e-3])
def test_of_concentric_spheres_they_are_the_difference_of_radii(size, offset):
    to_input = Similarity(size, translation=np.full(3, offset))
    pair = [to_input.apply(ball(radius)) for radius in (0.45, 0.5)]
    for mesh, ground_truth in (pair, pair[::-1]):
        np.testing.assert_allclose(deviations(mesh, ground_truth), 0.05 * size, rtol=0.01)


def test_of_a_shifted_box():
    """Half of its surface and more stays in the planes of the true one; a sixth is the whole shift away."""
    for size in (1, 1000):
        mesh, ground_truth = (boxes((x * size, 0, 0), size=(size,) * 3) for x in (0.2, 0))
        np.testing.assert_allclose(deviations(mesh, ground_truth), np.multiply([0, 0.2, 0.2, 0.2], size), atol=1e-9)


@pytest.mark.parametrize("points", [10, 1000])
def test_missing_parts_count_in_the_hausdorff_distance_alone(points):
    one, two = boxes((0, 0, 0)), boxes((0, 0, 0), (3, 0, 0))
    scoring = dataclasses.replace(SCORING, accuracy_points=points)
    np.testing.assert_allclose(deviations(one, two, scoring), [0, 0, 0, 3], atol=1e-9)
    np.testing.assert_allclose(deviations(two, one, scoring)[2:], [3, 3])


def test_a_small_part_that_few_points_lie_on_is_found():
    speck = boxes((0.0, 0.0, 0.55), size=(0.02,) * 3)
    mesh = Mesh(np.concatenate([ball(0.5).vertices, speck.vertices]),
                np.concatenate([ball(0.5).faces, speck.faces + len(ball(0.5).vertices)]))  # fmt: skip
    median, _, largest, both = deviations(mesh, ball(0.5), dataclasses.replace(SCORING, accuracy_points=10))
    assert median < 1e-6 and largest == both == pytest.approx(0.06, rel=0.05)


def test_frames_do_not_change_them():
    to_frame = Similarity(1 / 250, translation=np.array([-700.0, 20, 3]))
    mesh, ground_truth = boxes((710, 0, 0), size=(90, 80, 70)), boxes((700, 0, 0), size=(90, 80, 70))
    there = metrics.score(to_frame.apply(mesh), to_frame.apply(ground_truth), SCORING, scale=to_frame.scale)
    here = metrics.score(mesh, ground_truth, SCORING)
    assert here["hausdorff"] == pytest.approx(10)
    for name in metrics.DEVIATIONS:
        assert there[name] == pytest.approx(here[name], abs=1e-4), name


def test_ground_truths_seen_from_outside_are_in_input_units(monkeypatch):
    monkeypatch.setattr(metrics, "diagnose", lambda mesh: dataclasses.replace(diagnosis.diagnose(mesh), method="views"))
    mesh, ground_truth = boxes((30, 0, 0), size=(300, 240, 180)), boxes((0, 0, 0), size=(300, 240, 180))
    np.testing.assert_allclose(deviations(mesh, ground_truth)[2:], 30, rtol=1e-6)


def test_to_a_cloud_they_are_those_to_its_points():
    ground_truth, mesh = boxes((0, 0, 0)), boxes((0, 0, 0), size=(1.5, 1.5, 1.5))
    points = metrics.of_surface(ground_truth, SCORING)[0]
    exact, found = deviations(mesh, ground_truth), deviations(mesh, Mesh(points, np.zeros((0, 3))))
    assert all(0 <= b - a < 0.02 for a, b in zip(exact, found, strict=True))


def test_without_a_prediction_they_are_the_longest_side():
    scores = metrics.score(NOTHING, boxes((0, 0, 0), size=(3, 2, 1)), SCORING, scale=0.1)
    assert [scores[name] for name in metrics.DEVIATIONS] == [30.0] * 4


def test_they_stand_in_the_table_with_their_unit():
    rows = [metrics.score(boxes((0.2, 0, 0)), boxes((0, 0, 0)), SCORING)]
    lines = metrics.table(metrics.summary(rows), 1).splitlines()
    for name in metrics.DEVIATIONS:
        (line,) = [line for line in lines if line.startswith(MEASURES[name].label)]
        assert line.endswith("input units")
