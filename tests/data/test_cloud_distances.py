"""Signed distances from point clouds: of balls and slabs, with noise, holes and uneven density."""

import dataclasses

import numpy as np
import pytest

from jonet.data.cloud_distances import WIDTHS, Cloud


def sphere(count, radius=0.7, seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return radius * directions, directions


def test_distances_of_a_ball():
    cloud = Cloud.of(*sphere(5000))
    points, distances = cloud.samples(20_000, np.random.default_rng(0))
    exact = np.linalg.norm(points, axis=1) - 0.7
    assert points.dtype == distances.dtype == np.float32 and np.abs(points).max() <= 1
    near = np.abs(exact) < cloud.spacing
    assert np.abs(distances - exact)[near].mean() < 0.05 * cloud.spacing
    assert np.abs(distances - exact).max() < cloud.spacing
    apart = np.abs(exact) > 0.5 * cloud.spacing
    np.testing.assert_array_equal(distances[apart] < 0, exact[apart] < 0)


def test_spheres_follow_the_surface_between_points():
    """Planes through the nearest points are 0.012 of a spacing off here."""
    cloud = Cloud.of(*sphere(2000))
    rng = np.random.default_rng(1)
    asked = sphere(4000, seed=2)[1] * (0.7 + cloud.spacing * rng.uniform(-0.5, 0.5, (4000, 1)))
    off = cloud.distances(asked) - (np.linalg.norm(asked, axis=1) - 0.7)
    assert np.abs(off).mean() < 2e-3 * cloud.spacing


def test_noise_widens_the_spheres():
    """A torus, which no sphere is, clean and with noise: the error is near that of the best of all widths."""
    around, across = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 5000))
    normals = np.stack([np.cos(around) * np.cos(across), np.sin(around) * np.cos(across), np.sin(across)], 1)
    points = 0.5 * np.stack([np.cos(around), np.sin(around), 0 * around], 1) + 0.2 * normals
    noise = np.random.default_rng(1).normal(size=points.shape, scale=0.01)
    clean, noisy = Cloud.of(points, normals), Cloud.of(points + noise, normals)
    assert clean.width < noisy.width
    for cloud in (clean, noisy):
        asked = points + 0.3 * cloud.spacing * np.random.default_rng(2).normal(size=points.shape)
        exact = np.hypot(np.hypot(asked[:, 0], asked[:, 1]) - 0.5, asked[:, 2]) - 0.2
        errors = {
            width: np.abs(np.abs(dataclasses.replace(cloud, width=width).distances(asked)) - np.abs(exact)).mean()
            for width in WIDTHS
        }
        assert errors[cloud.width] < 1.2 * min(errors.values()) < max(errors.values())


def test_points_that_are_there_twice_count_once():
    """A scan that was merged with itself: else a point left out of its sphere would still be in it."""
    points, directions = sphere(1000)
    rng = np.random.default_rng(0)
    points = points + rng.normal(size=points.shape, scale=0.02)
    once = Cloud.of(points, directions)
    twice = Cloud.of(np.concatenate([points, points[::-1]]), np.concatenate([directions, directions[::-1]]))
    assert twice.width == once.width and twice.spacing == once.spacing
    asked = rng.uniform(-1, 1, (500, 3))
    np.testing.assert_array_equal(twice.distances(asked), once.distances(asked))
    often = Cloud.of(np.repeat(points, 9, 0))
    np.testing.assert_array_equal(often.distances(asked), Cloud.of(points).distances(asked))


def test_samples_are_in_random_order_near_and_everywhere():
    cloud = Cloud.of(*sphere(2000))
    points, distances = cloud.samples(8000, np.random.default_rng(0))
    assert len(points) == 9000
    first, last = np.split(np.abs(distances), 2)
    assert np.median(first) == pytest.approx(np.median(last), rel=0.1)


def test_density_that_varies_tenfold():
    points, directions = sphere(20_000)
    kept = (points[:, 0] > 0) | (np.arange(len(points)) % 10 == 0)
    cloud = Cloud.of(points[kept], directions[kept])
    asked = np.random.default_rng(1).uniform(-1, 1, (5000, 3))
    exact = np.linalg.norm(asked, axis=1) - 0.7
    clear = np.abs(exact) > 0.06
    np.testing.assert_array_equal(cloud.inside(asked[clear]), exact[clear] < 0)


def test_a_sparse_part_has_its_own_spacing():
    """A tenth of the points on one side: distances there hold as far as three times as far apart."""
    points, directions = sphere(20_000)
    kept = (points[:, 0] > 0) | (np.arange(len(points)) % 10 == 0)
    cloud = Cloud.of(points[kept], directions[kept])
    asked = sphere(4000, seed=2)[1]
    asked = asked[asked[:, 0] < -0.3] * (0.7 + np.random.default_rng(3).uniform(-0.03, 0.03))
    off = np.abs(np.abs(cloud.distances(asked)) - np.abs(np.linalg.norm(asked, axis=1) - 0.7))
    assert cloud.spacings.max() > 2 * cloud.spacing and off.mean() < 2e-3


def test_points_off_the_surface_are_left_out():
    points, directions = sphere(5000)
    strays = 1.1 * sphere(50, seed=7)[0]
    cloud = Cloud.of(np.concatenate([points, strays]), np.concatenate([directions, sphere(50, seed=8)[1]]))
    assert 4990 < len(cloud.points) and (np.linalg.norm(cloud.points, axis=1) > 0.72).sum() <= 10


def test_spheres_end_at_edges():
    """Outside of a box's edge, in the plane of a face: the distance is that to the edge, not 0."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (12_000, 3))
    axis, side = rng.integers(0, 3, 12_000), rng.choice([-1.0, 1.0], 12_000)
    normals = np.zeros((12_000, 3))
    points[np.arange(12_000), axis], normals[np.arange(12_000), axis] = side / 2, side
    cloud = Cloud.of(points, normals)
    beyond = cloud.spacing * 0.8
    asked = np.column_stack([np.full(200, 0.5 + beyond), np.full(200, 0.5), np.linspace(-0.4, 0.4, 200)])
    assert np.median(cloud.distances(asked)) > 0.4 * beyond and cloud.distances(asked).min() > 0.1 * beyond


def test_a_hole_is_closed_and_said():
    points, directions = sphere(8000)
    kept = points[:, 2] < 0.45
    cloud = Cloud.of(points[kept], directions[kept])
    asked = np.array([[0, 0, 0.3], [0, 0, 0.9], [0, 0, 0], [0.9, 0, 0]])
    np.testing.assert_array_equal(cloud.inside(asked), [True, False, True, False])
    cap = points[~kept][points[~kept][:, 2] > 0.6]
    assert cloud.closed(points[kept]) == 0 and cloud.closed(cap) > 0.8


def test_normals_are_estimated_where_there_are_none():
    points, _ = sphere(3000)
    asked = np.random.default_rng(1).uniform(-1, 1, (2000, 3))
    clear = np.abs(np.linalg.norm(asked, axis=1) - 0.7) > 0.04
    inside = Cloud.of(points).inside(asked[clear])
    np.testing.assert_array_equal(inside, np.linalg.norm(asked[clear], axis=1) < 0.7)


def test_normals_of_any_length_count_as_unit_ones():
    points, directions = sphere(1000)
    asked = np.random.default_rng(1).uniform(-1, 1, (500, 3))
    one, other = Cloud.of(points, directions), Cloud.of(points, 7 * directions)
    np.testing.assert_allclose(one.distances(asked), other.distances(asked), atol=1e-6)
