"""Fitting of splines: against least squares written down, lanes, tolerance, bytes and the end of growing."""

import dataclasses

import jax
import numpy as np
import pytest

from jonet import parallel
from jonet.networks import spline_levels
from jonet.settings.representation import Representation
from jonet.training import splines
from jonet.training.splines import Samples

SMALL = Representation(resolution=64, tolerance=1e-3)


def ball(count, radius=0.6, seed=0, near=0.03) -> Samples:
    rng = np.random.default_rng(seed)
    around = rng.normal(size=(count, 3))
    around *= (radius + near * rng.normal(size=(count, 1))) / np.linalg.norm(around, axis=1, keepdims=True)
    points = rng.permutation(np.concatenate([around, rng.uniform(-1, 1, (count // 4, 3))])).astype(np.float32)
    return Samples(points, (np.linalg.norm(points, axis=1) - radius).astype(np.float32))


def dense_system(samples, resolution, nodes, ridge, bend):
    """The normal equations of a level, node by node."""
    along = (samples.points[:, None] + 1) * resolution / 2 - 0.5 - nodes
    x = np.abs(along)
    basis = np.where(x < 0.5, 0.75 - x**2, np.where(x < 1.5, 0.5 * (1.5 - x) ** 2, 0)).prod(-1)
    cells = splines.cells_of(samples.points, resolution)
    used = spline_levels.find(spline_levels.keys(nodes, resolution), spline_levels.keys(cells, resolution)) < len(nodes)
    weight = np.where(used, 1 / (np.abs(samples.distances) + 0.01) ** 2, 0)
    matrix = np.einsum("pn,p,pm->nm", basis, weight, basis) + ridge * np.eye(len(nodes))
    for cell in nodes[((nodes >= 0) & (nodes < resolution)).all(1)]:
        at = cell + 0.5 + PLACES
        matrix += bend * bending_of(at, nodes)
    return matrix, np.einsum("pn,p,p->n", basis, weight, samples.distances)


ROOTS, ROOT_WEIGHTS = (array / 2 for array in np.polynomial.legendre.leggauss(4))  # exact for polynomials in a cell
PLACES = np.stack(np.meshgrid(*[ROOTS] * 3, indexing="ij"), -1).reshape(-1, 3)
PLACE_WEIGHTS = np.einsum("a,b,c->abc", *[ROOT_WEIGHTS] * 3).ravel()


def bending_of(at, nodes):
    """∫ over a cell of products of second derivatives of the nodes' B-splines, in units of a cell."""
    along = at[:, None] - 0.5 - nodes
    x = np.abs(along)
    value = np.where(x < 0.5, 0.75 - x**2, np.where(x < 1.5, 0.5 * (1.5 - x) ** 2, 0))
    first = np.where(x < 0.5, -2 * along, np.where(x < 1.5, -np.sign(along) * (1.5 - x), 0))
    second = np.where(x < 0.5, -2.0, np.where(x < 1.5, 1.0, 0))
    derivatives = np.stack([value, first, second])
    total = 0
    for a in range(3):
        for b in range(3):
            orders = np.bincount([a, b], minlength=3)
            of = np.prod([derivatives[order][..., axis] for axis, order in enumerate(orders)], axis=0)
            total = total + of.T @ (PLACE_WEIGHTS[:, None] * of)
    return total


def test_a_level_is_the_least_squares_solution():
    samples, resolution = ball(300), 8
    cells = spline_levels.every_cell(resolution)[100:130]
    nodes = spline_levels.around(cells, resolution)
    given = splines.system(samples, samples.distances, resolution, nodes, np.zeros(len(nodes), np.float32))
    assert given.place.shape[1] == splines.SAMPLES[8]
    (found,) = splines.solve([given], len(nodes), 100, 2.0, 5.0)
    matrix, right = dense_system(samples, resolution, nodes, 2.0, 5.0)
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(found[: len(nodes)], expected, atol=2e-3 * np.abs(expected).max())
    assert not found[len(nodes) :].any()


def test_a_start_changes_the_path_and_not_the_end():
    samples = ball(300)
    nodes = spline_levels.around(spline_levels.every_cell(8), 8)
    starts = [np.zeros(len(nodes)), np.random.default_rng(0).normal(size=len(nodes))]
    systems = [splines.system(samples, samples.distances, 8, nodes, start.astype(np.float32)) for start in starts]
    first, second = (splines.solve([system], len(nodes), 100, 1.0, 1.0)[0] for system in systems)
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_shapes_are_solved_side_by_side_as_alone():
    """Three shapes in lanes of an accelerator, of which one is empty on two devices."""
    shapes = [ball(2000, radius, seed) for seed, radius in enumerate((0.4, 0.6, 0.8))]
    alone = [splines.fit([shape], [SMALL])[0] for shape in shapes]
    with parallel.assuming(parallel.Platform("gpu", 16 << 30)):
        assert splines.together() == splines.SIDE_BY_SIDE[-1] * len(jax.devices())
        together = splines.fit(shapes, [SMALL] * 3)
    for (levels, error), (others, another) in zip(alone, together, strict=True):
        assert [level.resolution for level in levels] == [level.resolution for level in others]
        assert error == pytest.approx(another, rel=0.02)  # a solver that rounds otherwise may stop an iteration earlier
        points = shapes[0].points[:500]
        np.testing.assert_allclose(splines.evaluate(levels, points), splines.evaluate(others, points), atol=3e-4)


def test_a_ball_is_fitted_and_held_out_samples_say_how_well():
    samples = ball(20_000)
    ((levels, error),) = splines.fit([samples], [SMALL])
    found = splines.evaluate(levels, samples.points)
    held = slice(len(found) - splines.held_out(samples), None)
    off = np.abs(found - samples.distances)[held] / (np.abs(samples.distances[held]) + 0.01)
    assert error == pytest.approx(off.mean(), rel=1e-5) and error < 0.02
    fresh = ball(2000, seed=9)
    near = np.abs(fresh.distances) < 0.02
    assert np.abs(splines.evaluate(levels, fresh.points) - fresh.distances)[near].max() < 2e-3


def test_distances_hold_where_samples_are_few():
    """A sample in every sixteenth cell far from the surface: what is between is smooth, up to the cube's corners."""
    ((levels, _),) = splines.fit([ball(8000)], [SMALL])
    points = np.random.default_rng(5).uniform(-1, 1, (5000, 3)).astype(np.float32)
    distances = np.linalg.norm(points, axis=1) - 0.6
    off = np.abs(splines.evaluate(levels, points) - distances)
    assert off[distances > 0.4].mean() < 0.03 and off[np.abs(distances) < 0.4].mean() < 0.03


def test_space_without_samples_is_as_far_as_it_is():
    """Samples near the surface alone say nothing about the cube's corners, but that the shape does not reach there."""
    near = ball(8000)
    near = Samples(*(array[np.abs(near.distances) < 0.08] for array in near))
    ((levels, _),) = splines.fit([near], [SMALL])
    points = np.random.default_rng(5).uniform(-1, 1, (5000, 3)).astype(np.float32)
    distances = np.linalg.norm(points, axis=1) - 0.6
    found = splines.evaluate(levels, points)
    beyond = distances > 0.1
    off = np.abs(found - distances)[beyond]
    assert (found[beyond] > 0).all() and off.max() < 0.2 and off.mean() < 0.03
    assert (found[distances < -0.05] < 0).all()


def test_samples_everywhere_are_left_as_they_are():
    everywhere = ball(40_000)
    assert splines.with_far(everywhere) is everywhere
    outside = everywhere.distances > 0
    alone = Samples(everywhere.points[outside][:9], everywhere.distances[outside][:9])
    assert splines.with_far(alone) is alone


def test_cells_are_refined_where_samples_are_off():
    """A box has flat faces, which the coarse grid holds, and edges, which it does not."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.6, 0.6, (60_000, 3)).astype(np.float32)
    over = np.abs(points) - 0.5
    distances = np.linalg.norm(np.maximum(over, 0), axis=1) + np.minimum(over.max(1), 0)
    ((levels, _),) = splines.fit([Samples(points, distances.astype(np.float32))], [SMALL])
    fine = next(level for level in levels if level.resolution == 64)
    middle = np.abs((fine.cells + 0.5) / 32 - 1)
    along_edges = (np.sort(middle, axis=1)[:, 1] > 0.42).mean()
    assert 0 < len(fine.cells) < 6 * 32**2 and along_edges > 0.85


def test_bytes_bound_the_nodes_and_the_worst_cells_are_taken():
    samples = ball(40_000, near=0.01)
    free = splines.fit([samples], [dataclasses.replace(SMALL, tolerance=1e-5)])[0][0]
    bound = splines.fit([samples], [dataclasses.replace(SMALL, tolerance=1e-5, bytes=6000)])[0][0]
    count = [sum(len(level.nodes) for level in levels[1:]) for levels in (free, bound)]
    assert 0 < count[1] <= 6000 / splines.BYTES < count[0]
    rest = samples.distances - splines.evaluate(free[:1], samples.points)
    cells = splines.refinable(samples, rest, 64, 1e-5, 2000)
    chosen = (splines.cells_of(samples.points, 64)[:, None] == cells[:50]).all(-1).any(1)
    near = np.abs(samples.distances) < splines.AT_SURFACE * 2 / 64
    assert np.abs(rest[near & chosen]).max() >= np.quantile(np.abs(rest[near]), 0.9)


def test_growing_ends_where_it_does_not_help():
    """Noise cannot be predicted: the first level that follows it is dropped."""
    samples = ball(4000)
    noisy = samples.distances + np.random.default_rng(0).normal(0, 0.02, len(samples.distances)).astype(np.float32)
    ((levels, _),) = splines.fit([samples._replace(distances=noisy)], [dataclasses.replace(SMALL, resolution=256)])
    assert levels[-1].resolution < 256


def test_coefficients_are_what_a_file_holds():
    ((levels, _),) = splines.fit([ball(4000)], [SMALL])
    for level, step in zip(levels, [spline_levels.COARSE_STEP] + [spline_levels.STEP] * len(levels), strict=False):
        steps = level.values / np.float32(step)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)
        assert np.abs(steps).max() <= 2**15 - 1


def test_another_number_of_samples_and_cells_compiles_nothing(compilations):
    splines.fit([ball(4000)], [SMALL])
    with compilations() as seen:
        splines.fit([ball(4100, seed=3)], [SMALL])
    assert not seen, seen


def test_another_number_of_shapes_compiles_nothing_on_accelerators(compilations):
    nodes = spline_levels.around(spline_levels.every_cell(8)[:50], 8)
    samples = ball(300)
    system = splines.system(samples, samples.distances, 8, nodes, np.zeros(len(nodes), np.float32))
    with parallel.assuming(parallel.Platform("gpu", 16 << 30)):
        (alone,) = splines.solve([system], len(nodes), 2, 1.0, 1.0)
        splines.solve([system] * 2, len(nodes), 2, 1.0, 1.0)
        with compilations() as seen:
            found = splines.solve([system] * 3, len(nodes), 2, 1.0, 1.0)
    assert not seen and len(found) == 3, seen
    for each in found:
        np.testing.assert_allclose(each, alone, atol=1e-5)
