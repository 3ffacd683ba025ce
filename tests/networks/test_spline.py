"""Splines on nested grids: against closed forms, against the sum over nodes, across borders, and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jonet import parallel
from jonet.fields import Spline
from jonet.geometry.mesh import Similarity
from jonet.networks import spline, spline_levels
from jonet.networks.field import Field
from jonet.networks.spline_levels import Level

CUBE = np.array(spline.CUBE)


def cells_within(resolution, low, high):
    cells = spline_levels.every_cell(resolution)
    middle = (cells + 0.5) * 2 / resolution - 1
    return cells[((middle > low) & (middle < high)).all(1)]


def random_levels(rng, finest=64):
    levels, resolution = [Level(8, spline_levels.every_cell(8), rng.normal(size=1000).astype(np.float32))], 16
    while resolution <= finest:
        low = rng.uniform(-0.9, 0, 3)
        cells = cells_within(resolution, low, low + 6 / resolution)
        values = rng.normal(size=len(spline_levels.around(cells, resolution))).astype(np.float32)
        levels.append(Level(resolution, cells, values))
        resolution *= 2
    return levels


def b_spline(x):
    """The quadratic B-spline of width 3 around 0."""
    x = np.abs(x)
    return np.where(x < 0.5, 0.75 - x**2, np.where(x < 1.5, 0.5 * (1.5 - x) ** 2, 0))


def summed(levels, points):
    """The sum over all nodes, by the definition."""
    total = np.zeros(len(points))
    for level in levels:
        for node, value in zip(level.nodes, level.values.astype(np.float64), strict=True):
            along = (points + 1) * level.resolution / 2 - 0.5 - node
            total += value * b_spline(along).prod(1)
    return total


def test_blocks_give_the_sum_over_nodes():
    rng = np.random.default_rng(0)
    levels = random_levels(rng)
    points = np.concatenate(
        [rng.uniform(-1, 1, (300, 3))]
        + [
            (level.nodes[rng.integers(0, len(level.nodes), 40)] + rng.uniform(-1, 2, (40, 3))) * 2 / level.resolution
            - 1
            for level in levels
        ]
    )
    points = np.clip(points, -1, 1).astype(np.float32)
    np.testing.assert_allclose(spline.field(levels)(points), summed(levels, points.astype(float)), atol=2e-5)


def test_whole_blocks_give_the_same_values_and_gradients():
    """What a TPU computes, to rounding."""
    field = spline.field(random_levels(np.random.default_rng(6)))
    points = np.random.default_rng(7).uniform(-1.2, 1.2, (2000, 3)).astype(np.float32)
    with parallel.assuming(parallel.Platform("tpu", 16 << 30)):
        other = spline.field(random_levels(np.random.default_rng(6)))
    assert other.architecture != field.architecture
    for first, second in zip(field.gradient(points), other.gradient(points), strict=True):
        np.testing.assert_allclose(first, second, atol=2e-5 * np.abs(first).max())


def test_quadratic_polynomials_are_exact():
    """Coefficients of x² are those of the squared centers, less a quarter of a squared cell (Marsden's identity)."""
    resolution = 8
    nodes = spline_levels.around(spline_levels.every_cell(resolution), resolution)
    x, y, z = ((nodes + 0.5) * 2 / resolution - 1).T
    quarter = (2 / resolution) ** 2 / 4
    level = Level(
        resolution, spline_levels.every_cell(resolution), (x**2 - quarter + x * y - 2 * z + 1).astype(np.float32)
    )
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)
    points[:27] = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)  # faces, edges and corners of the cube
    a, b, c = points.T
    values, gradients = spline.field([level]).gradient(points)
    np.testing.assert_allclose(values, a**2 + a * b - 2 * c + 1, atol=2e-6)
    np.testing.assert_allclose(gradients, np.stack([2 * a + b, a, np.full_like(c, -2)], 1), atol=2e-5)


def test_value_and_gradient_are_continuous_at_all_borders():
    """At faces of cells and blocks, among them those between blocks of different levels."""
    rng = np.random.default_rng(1)
    field = spline.field(random_levels(rng))
    points = rng.uniform(-1, 1, (2000, 3)).astype(np.float32)
    axis = rng.integers(0, 3, len(points))
    at = (rng.integers(1, 64, len(points)) / 32 - 1).astype(np.float32)
    sides = []
    for offset in (-1e-5, 1e-5):
        beside = points.copy()
        beside[np.arange(len(points)), axis] = at + np.float32(offset)
        sides.append(field.gradient(beside))
    (low, low_gradient), (high, high_gradient) = sides
    steepest = np.abs(low_gradient).max()
    np.testing.assert_allclose(low, high, atol=4e-5 * steepest)
    np.testing.assert_allclose(low_gradient, high_gradient, atol=0.01 * steepest)


def test_a_finer_grid_can_hold_the_same_function():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(10, 10, 10)).astype(np.float32)
    fine = spline_levels.refined(values)
    assert fine.shape == (18,) * 3
    points = rng.uniform(-1, 1, (500, 3)).astype(np.float32)
    coarse = spline.field([Level(8, spline_levels.every_cell(8), values.ravel())])
    finer = spline.field([Level(16, spline_levels.every_cell(16), fine.ravel())])
    np.testing.assert_allclose(coarse(points), finer(points), atol=1e-6)


def test_outside_of_the_cube_values_are_a_lower_bound_of_distances():
    """Of a ball: exact within the cube up to the grid, and never more than the distance beyond."""
    resolution = 32
    nodes = spline_levels.around(spline_levels.every_cell(resolution), resolution)
    middle = (nodes + 0.5) * 2 / resolution - 1
    level = Level(
        resolution, spline_levels.every_cell(resolution), (np.linalg.norm(middle, axis=1) - 0.5).astype(np.float32)
    )
    points = np.random.default_rng(3).uniform(-4, 4, (2000, 3)).astype(np.float32)
    found, distance = np.asarray(spline.field([level])(points)), np.linalg.norm(points, axis=1) - 0.5
    outside = np.abs(points).max(1) > 1
    assert (found[outside] <= distance[outside] + 0.01).all() and (found[outside] > 0.3 * distance[outside]).all()
    grown = np.asarray(jax.grad(lambda p: jnp.sum(spline.field([level]).at(p)))(points))
    assert np.isfinite(grown).all()


def test_keys_are_in_lexicographic_order_and_inverse():
    nodes = np.random.default_rng(4).integers(-1, 17, (100, 3))
    numbers = spline_levels.keys(nodes, 16)
    np.testing.assert_array_equal(spline_levels.from_keys(numbers, 16), nodes)
    order = np.lexsort(nodes.T[::-1])
    np.testing.assert_array_equal(np.sort(numbers), numbers[order])


def test_missing_keys_are_found_to_be_missing():
    np.testing.assert_array_equal(spline_levels.find(np.array([2, 5, 9]), np.array([0, 2, 3, 9, 10])), [3, 0, 3, 2, 3])


def test_a_level_may_be_empty(tmp_path):
    """As a file may have it: what finer levels refine is the level before it."""
    first, fine = random_levels(np.random.default_rng(8), 8)[0], cells_within(32, -0.2, 0.1)
    empty = Level(16, np.zeros((0, 3), np.int32), np.zeros(0, np.float32))
    values = np.random.default_rng(9).normal(size=len(spline_levels.around(fine, 32))).astype(np.float32)
    points = np.random.default_rng(10).uniform(-1, 1, (200, 3)).astype(np.float32)
    for levels in ([first, empty, Level(32, fine, values)], [first, empty]):
        Spline("shape", Similarity(), tuple(levels), CUBE, error=0.0).save(tmp_path / "shape.npz")
        read = Spline.load(tmp_path / "shape.npz")
        np.testing.assert_allclose(read.field()(points), summed(read.levels, points.astype(float)), atol=2e-5)
        network = spline.SplineNetwork.of(read.levels)
        restored = network.module.restored(network.module.stored(network.shared))
        np.testing.assert_array_equal(restored["blocks"], network.shared["blocks"])
    assert spline_levels.find(np.zeros(0, int), np.array([3, 4])).tolist() == [0, 0]


def test_nodes_are_those_around_the_cells():
    cells = np.array([[0, 0, 0], [7, 3, 3]], np.int32)
    nodes = spline_levels.around(cells, 8)
    expected = np.unique((cells[:, None] + spline_levels.OFFSETS).reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(nodes, expected)
    assert len(spline_levels.around(spline_levels.every_cell(4), 4)) == 6**3


@pytest.mark.parametrize("count", [1, 5000])
def test_another_number_of_points_is_the_same_function(count):
    rng = np.random.default_rng(5)
    field = spline.field(random_levels(rng, 16))
    points = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    np.testing.assert_allclose(field(points), Field.stack([field])(points[None])[0], atol=0)
    np.testing.assert_allclose(field(points), field.at(jnp.asarray(points)), atol=1e-6)
