"""Floors under scans are found, and clouds of shapes alone have none."""

import numpy as np
import pytest

from jonet.data import families, scans
from jonet.data.sampling import surface
from jonet.geometry import planes
from jonet.geometry.mesh import normalize

TURN = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]


def shape(family: str, index: int = 0) -> np.ndarray:
    mesh, _ = normalize(families.make(family, 0, index))
    return surface(mesh, 3000, np.random.default_rng(index))[0].astype(np.float64)


def floor(points: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    flat = rng.uniform(-1.3, 1.3, (count, 3))
    flat[:, 1] = points[:, 1].min() + rng.normal(0, 0.002, count)
    return flat


@pytest.mark.parametrize("family", ["chair", "mug", "lamp", "car"])
def test_shapes_alone_have_no_floor(family):
    for index in range(4):
        assert not planes.plane_mask(shape(family, index)).any()


@pytest.mark.parametrize("family", ["chair", "mug", "lamp", "car"])
@pytest.mark.parametrize("count", [2000, 8000])
def test_a_floor_is_found_in_any_place(family, count):
    points = shape(family)
    both = np.concatenate([points, floor(points, count)]) @ TURN.T * 700 + [1e4, -2e4, 5e3]
    found = planes.plane_mask(both)
    assert found[3000:].mean() > 0.99 and found[:3000].mean() < 0.12
    strays = np.concatenate([both, [[9e6, 0, 0], [0, 9e6, 0]]])
    np.testing.assert_array_equal(planes.plane_mask(strays)[:-2], found)


def test_a_small_floor_is_no_floor():
    points = shape("chair")
    assert not planes.plane_mask(np.concatenate([points, floor(points, 800)])).any()


def test_a_plane_through_the_middle_is_no_floor():
    points = shape("chair")
    wall = floor(points, 4000) - [0, points[:, 1].min(), 0]
    assert not planes.plane_mask(np.concatenate([points, wall])).any()


def test_clouds_without_extent_have_none():
    for points in (np.zeros((9, 3)), np.zeros((2, 3)), np.arange(30.0).reshape(10, 3)):
        assert not planes.plane_mask(points).any()


def test_files_with_a_floor(tmp_path):
    points = shape("chair")
    np.save(tmp_path / "scan.npy", np.concatenate([points, floor(points, 3000)]))
    whole = scans.read(tmp_path / "scan.npy")
    with pytest.warns(UserWarning, match="scan.npy: a plane holds 5.% of its points, maybe a floor .* --remove-plane"):
        said = scans.read(tmp_path / "scan.npy", outliers=None)
    np.testing.assert_array_equal(said.points, whole.points)
    with pytest.warns(UserWarning, match="scan.npy: a plane holds 5.% of its points: left out"):
        found = scans.read(tmp_path / "scan.npy", outliers=None, remove_plane=True)
    size = np.ptp(found.similarity.inverse()(found.points), axis=0)
    np.testing.assert_allclose(size, np.ptp(points, axis=0), atol=0.03)
