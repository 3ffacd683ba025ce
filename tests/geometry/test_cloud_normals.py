"""Estimated normals: directions of closed forms, outward on every part, and clouds that are too small."""

import numpy as np
import pytest

from jonet.errors import InputError
from jonet.geometry import cloud_normals


def sphere(count, radius=1.0, center=(0, 0, 0), seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return radius * directions + center, directions


def test_normals_of_a_sphere_point_outwards():
    points, directions = sphere(2000)
    found = cloud_normals.estimated(points)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    assert (found * directions).sum(1).min() > 0.9


def test_each_part_is_oriented():
    """Two balls apart, and a torus, whose inner side faces its axis."""
    first, second = sphere(800, 0.5, (-2, 0, 0)), sphere(800, 0.7, (2, 1, 0), seed=1)
    found = cloud_normals.estimated(np.concatenate([first[0], second[0]]))
    assert ((found * np.concatenate([first[1], second[1]])).sum(1) > 0.8).all()
    around, across = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 4000))
    outward = np.stack([np.cos(around) * np.cos(across), np.sin(around) * np.cos(across), np.sin(across)], 1)
    ring = np.stack([np.cos(around), np.sin(around), np.zeros(4000)], 1)
    assert ((cloud_normals.estimated(ring + 0.3 * outward) * outward).sum(1) > 0.7).all()


def test_units_and_place_do_not_matter():
    points, _ = sphere(500)
    found = cloud_normals.estimated(points)
    np.testing.assert_allclose(cloud_normals.estimated(1000 * points + 5e4), found, atol=1e-4)


def test_too_few_points_are_refused():
    with pytest.raises(InputError, match="10 points are too few"):
        cloud_normals.estimated(sphere(10)[0])
