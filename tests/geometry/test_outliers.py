"""Points that stand alone: which of them enlarge the bounding box, and what is done about them."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from chairs import load_chairs
from scipy.spatial import cKDTree

from jonet import arguments
from jonet.bulk import inputs, work
from jonet.data import scans
from jonet.data.families import make
from jonet.data.sampling import surface
from jonet.errors import InputError
from jonet.geometry import outliers
from jonet.geometry.mesh import Similarity
from jonet.inference.encode import Inputs
from jonet.inference.fitting.observations import ObservedArrays
from jonet.model import Model

STRAYS = [[[0, 0.9, 0.1]], [[0, 30, 0]], [[0.4, 300, 0], [1.2, 0.1, 0], [0, -0.9, 0.2]]]


def cloud(count: int = 3000, family: str = "chair", index: int = 3) -> np.ndarray:
    points = surface(make(family, 0, index), count, np.random.default_rng(index), np.float64)[0]
    return (points - (points.min(0) + points.max(0)) / 2) / np.ptp(points, axis=0).max()


def given(points, **more) -> ObservedArrays:
    return ObservedArrays.checked(points=points, **more)


@pytest.mark.parametrize("strays", STRAYS)
@pytest.mark.parametrize("count", [300, 3000])
def test_points_that_enlarge_the_box_are_found(count, strays):
    """One very far away, one 0.4 of the size away, and such that one of them hides the others."""
    points = cloud(count)
    far = outliers.far_mask(np.concatenate([points, strays]))
    np.testing.assert_array_equal(far, np.arange(len(far)) >= count)


@pytest.mark.parametrize("family", ["chair", "lamp", "guitar", "table"])
@pytest.mark.parametrize("count", [100, 1000, 8192])
def test_clean_clouds_have_none(family, count):
    for index in range(4):
        points = cloud(count, family, index)
        noisy = points + np.random.default_rng(index).normal(0, 0.01, points.shape)
        for one in (points, noisy):
            assert not outliers.far_mask(one).any() and not outliers.outlier_mask(one).any()


def test_a_sparse_part_of_a_shape_is_kept():
    """A rear side that was scanned with few points; most points in one place; all of them."""
    points = cloud(8000)
    sparse = points[(points[:, 2] > 0) | (np.arange(8000) % 10 == 0)]
    for points in (sparse, np.concatenate([np.zeros((3000, 3)), cloud(1000)]), np.zeros((50, 3)), cloud(8)[:3]):
        assert not outliers.far_mask(points).any() and not outliers.outlier_mask(points).any()


def test_points_that_are_a_surface_do_not_stand_alone():
    """A thirtieth of the points of a rear side, which is farther apart than outliers are; the outliers do."""
    points = cloud(8000, "table")
    sparse = points[(points[:, 2] > 0) | (np.arange(8000) % 30 == 0)]
    assert not outliers.alone_mask(sparse).any() and not outliers.outlier_mask(sparse).any()
    around = np.random.default_rng(0).uniform(-0.7, 0.7, (200, 3))
    assert outliers.alone_mask(np.concatenate([points, around]))[8000:].mean() > 0.9


@pytest.mark.parametrize("family", ["chair", "lamp", "mug"])
@pytest.mark.parametrize(("count", "share"), [(1000, 0.05), (4000, 0.02), (4000, 0.1)])
def test_many_points_that_stand_alone_are_left_out(family, count, share):
    """Anywhere in and around the box: what is left has the box of the clean cloud, nearly."""
    points = cloud(count, family)
    around = np.random.default_rng(0).uniform(points.min(0) - 0.1, points.max(0) + 0.1, (round(share * count), 3))
    found = outliers.outlier_mask(np.concatenate([points, around]))
    assert found[:count].mean() < 0.025 and found[count:].mean() > 0.5
    left = np.concatenate([points, around])[~found]
    np.testing.assert_allclose([left.min(0), left.max(0)], [points.min(0), points.max(0)], atol=0.08)
    assert np.ptp(left, axis=0).max() < 1.04


def test_a_place_with_many_points_stands_alone_as_one():
    """Where scanners give the origin for what they did not see."""
    points = np.concatenate([cloud(1000) + 5, np.zeros((3000, 3))])
    np.testing.assert_array_equal(outliers.alone_mask(points), np.arange(4000) >= 1000)
    np.testing.assert_array_equal(outliers.outlier_mask(points), np.arange(4000) >= 1000)


@pytest.mark.parametrize("seed", range(20))
def test_equal_points_are_neighbors_of_each_other(seed, monkeypatch):
    """The way for many equal points gives the bits of the other one."""
    monkeypatch.setattr(outliers, "SAME", 1)
    rng = np.random.default_rng(seed)
    points = 0.37 * rng.integers(0, rng.integers(2, 9), (rng.integers(4, 300), 3))
    points[rng.random(len(points)) < rng.choice([0, 0.7])] = 0
    expected = cKDTree(points).query(points, 3)[0][:, 1:].mean(1)
    np.testing.assert_array_equal(outliers.neighbor_distance(points), expected)


def test_observations_lose_far_points_and_their_normals():
    points, normals = np.concatenate([cloud(), STRAYS[2]]), np.tile([0.0, 0, 1], (3003, 1))
    observed = given([cloud(), points], normals=[normals[:3000], normals])
    found = arguments.without_outliers(observed, "remove", "input", "ab")
    for rows in (*found.points, *found.normals):
        assert len(rows) == 3000
    np.testing.assert_array_equal(found.points[1], cloud())
    frames = arguments.transforms("input", "points", found.points, "sphere")
    np.testing.assert_array_equal(frames[0].as_array(), frames[1].as_array())  # the box of the clean cloud, to the bit


def test_one_warning_names_the_cloud_and_the_option():
    observed = given([cloud(), np.concatenate([cloud(), [[0, 0.9, 0]]]), np.concatenate([cloud(), [[0, 30, 0]]])])
    with pytest.warns(UserWarning) as caught:
        assert arguments.without_outliers(observed, "warn", "input", ["clean", "dusty", "lost"]) is observed
    (one,) = caught
    assert str(one.message).startswith("dusty (and 1 other shape): 1 of 3,001 points stands alone")
    assert "1.4 times as long" in str(one.message) and "outliers='remove'" in str(one.message)


def test_outliers_within_the_box_are_said_without_it():
    points = np.concatenate([cloud(), np.random.default_rng(0).uniform(-0.4, 0.4, (150, 3)) * np.ptp(cloud(), axis=0)])
    with pytest.warns(UserWarning, match=r"^one: \d+ of 3,150 points stand alone and are left out") as caught:
        arguments.without_outliers(given([points]), None, "input", ["one"])
    assert "box" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"^one: \d+ of 3,150 points stand alone; leave them out with"):
        arguments.without_outliers(given([points]), "warn", "input", ["one"])


def test_without_a_choice_they_are_left_out_and_said():
    observed = given([cloud(), np.concatenate([cloud(), [[0, 30, 0]]])])
    with pytest.warns(UserWarning, match="dusty: 1 of 3,001 points stands alone, would make .* is left out"):
        found = arguments.without_outliers(observed, None, "input", ["clean", "dusty"])
    np.testing.assert_array_equal(found.points[0], found.points[1])


def test_nothing_is_said_where_nothing_depends_on_the_box():
    lost = given([np.concatenate([cloud(), [[0, 30, 0]]])])
    with warnings.catch_warnings(action="error"):
        for observed, choice, frame in (
            (lost, "keep", "input"),
            (lost, "warn", "normalized"),
            (lost, None, "normalized"),
            (given([cloud()]), "warn", "input"),
            (ObservedArrays.checked(np.zeros((1, 5, 4))), "warn", "normalized"),
        ):
            assert arguments.without_outliers(observed, choice, frame, ["one"]) is observed


def test_impossible_choices_are_refused():
    with pytest.raises(InputError, match="outliers is 'drop', but must be 'warn' or 'remove' or 'keep'"):
        arguments.without_outliers(given([cloud()]), "drop", "input", ["one"])
    with pytest.raises(InputError, match="samples are given"):
        arguments.without_outliers(ObservedArrays.checked(np.zeros((1, 5, 4))), "remove", "normalized", ["one"])


def test_files_are_read_without_far_points(tmp_path):
    np.save(tmp_path / "clean.npy", cloud())
    np.save(tmp_path / "dusty.npy", np.concatenate([cloud(), STRAYS[2]]))
    clean, dusty = tmp_path / "clean.npy", tmp_path / "dusty.npy"
    with warnings.catch_warnings(action="error"):
        wanted, *others = (scans.read(clean, outliers=choice) for choice in outliers.CHOICES)
        kept, found = (scans.read(dusty, outliers=choice) for choice in ("keep", "remove"))
    for one in (*others, found):
        np.testing.assert_array_equal(one.similarity.as_array(), wanted.similarity.as_array())
        np.testing.assert_array_equal(one.points, wanted.points)
    assert kept.similarity.scale < wanted.similarity.scale / 100
    with pytest.warns(UserWarning, match=r"dusty.npy: 3 of 3,003 points .* are left out"):
        assert scans.read(dusty, outliers=None).similarity.scale == wanted.similarity.scale
    with pytest.warns(UserWarning, match=r"dusty.npy: 3 of 3,003 points .* --outliers=remove"):
        assert scans.read(dusty, outliers="warn").similarity.scale == kept.similarity.scale


def test_inputs_of_bulk_jobs_lose_far_points(tmp_path):
    np.save(tmp_path / "clean.npy", cloud())
    np.save(tmp_path / "dusty.npy", np.concatenate([cloud(), STRAYS[2]]))
    model = SimpleNamespace(inputs=Inputs("points", 300), is_fitted=False, frame="cube")
    read = inputs.reader(model, "remove")
    clean, dusty = (read(inputs.File(tmp_path / f"{name}.npy", name)) for name in ("clean", "dusty"))
    np.testing.assert_array_equal(dusty.data, clean.data)
    with pytest.raises(InputError, match="'remove', but this network takes images"):
        inputs.reader(SimpleNamespace(inputs=Inputs("images", 32), is_fitted=False, frame="cube"), "remove")
    assert work.reading("remove", "y", False) == work.reading(None, "y", False) == {}
    assert work.reading("warn", "y", False) == work.reading("keep", "y", False) != {}  # jobs continue with either
    assert len(work.reading("keep", "z", True)) == 3


def test_scans_lose_far_points(monkeypatch):
    seen = []

    class Seen(Exception):
        pass

    def keep(network, given, *_, **__):
        seen.append(given)
        raise Seen

    model = Model("deepsdf", load_chairs().network, "sphere")
    monkeypatch.setattr("jonet.inference.fitting.pose.fit_pose", keep)
    monkeypatch.setattr("jonet.inference.fitting.latents.fit", keep)
    scan = [np.concatenate([cloud(), STRAYS[0]])]
    normals, free_space = [np.tile([0.0, 0, 1], (3001, 1))], [np.zeros((2, 3))]
    with pytest.raises(Seen):
        model.complete(scan, normals=normals, free_space=free_space, outliers="remove", names=["scan.ply"])
    np.testing.assert_array_equal(seen[0].points[0], cloud())
    assert len(seen[0].normals[0]) == 3000 and len(seen[0].free_space[0]) == 2
    with pytest.warns(UserWarning, match="scan.ply: 1 of 3,001 points"), pytest.raises(Seen):
        model.complete(scan, names=["scan.ply"])
    assert len(seen[1].points[0]) == 3001
    with warnings.catch_warnings(action="error"), pytest.raises(Seen):
        model.complete(scan, similarities=[Similarity()])
