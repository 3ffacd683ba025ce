"""Grids: recorded and closed forms, pieces against wholes, and lowering for other platforms."""

import jax
import numpy as np
import pytest
from analytic import ball, batch, field, waves
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import RECORDED

from jonet import parallel
from jonet.errors import InputError
from jonet.inference.surfaces import grid
from jonet.networks import field as fields_module


@pytest.mark.parametrize("size", [5, 8])
def test_make_grid_gives_the_recorded_points(size):
    recorded = np.load(RECORDED / "surface" / "grid.npz")
    np.testing.assert_allclose(grid.make_grid(-1, 1, size), recorded[f"grid{size}_right"], rtol=0, atol=2e-7)


def test_make_grid_gives_the_recorded_points_of_the_published_size():
    recorded = np.load(RECORDED / "surface" / "grid.npz")
    points = grid.make_grid(-1, 1, 256)[recorded["grid256_pick"]]
    np.testing.assert_allclose(points, recorded["grid256_right"], rtol=0, atol=2e-7)


def test_make_grid_counts_samples_with_its_ends_and_x_is_slowest():
    points = grid.make_grid((0, 10, 20), (1, 12, 23), 4)
    assert points.shape == (64, 3) and points.dtype == np.float32
    volume = points.reshape(4, 4, 4, 3)
    np.testing.assert_array_equal(volume[0, 0, 0], [0, 10, 20])
    np.testing.assert_array_equal(volume[-1, -1, -1], [1, 12, 23])
    np.testing.assert_allclose(volume[:, 1, 2, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(volume[2, 3, :, 2], [20, 21, 22, 23], atol=1e-5)


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (1, -1, 8), (0, 0, 8), (np.nan, 1, 8), ((0, 0), 1, 8)])
def test_make_grid_refuses_what_is_no_grid(arguments):
    with pytest.raises((InputError, ValueError)):
        grid.make_grid(*arguments)


def test_whole_grids_are_the_field_at_the_grid_points(monkeypatch):
    fields = batch(
        field(ball, center=(0.1, 0.2, 0.3), radius=0.5),
        field(ball, center=(0, 0, 0), radius=0.2, box=((-2, -1, 0), (1, 1, 1))),
    )
    values = grid.evaluate(fields, 9)
    assert values.shape == (2, 10, 10, 10)
    points = [grid.make_grid(*f.box, 10) for f in (fields[0], fields[1])]
    for one, at, found in zip((fields[0], fields[1]), points, values, strict=True):
        np.testing.assert_allclose(found.ravel(), one(at), rtol=0, atol=1e-6)
    monkeypatch.setattr("jonet.networks.field.PLANES", 777)  # three planes at a time, which fill no tiles
    np.testing.assert_array_equal(grid.evaluate(fields, 9), values)
    boxed = grid.evaluate(fields, 4, box=[(0, 0, 0), (1, 1, 1)])
    np.testing.assert_allclose(boxed[1].ravel(), fields[1](grid.make_grid(0, 1, 5)), rtol=0, atol=1e-6)


def test_points_of_many_shapes_get_their_own_fields_values():
    fields = batch(*(field(waves, frequency=f) for f in (3.0, 5.0, 7.0, 9.0)))
    rng = np.random.default_rng(0)
    shape = np.sort(rng.choice([0, 2, 3], 3000, p=[0.7, 0.1, 0.2]))  # one shape has none, one more than a block
    points = rng.uniform(-1, 1, (3000, 3)).astype(np.float32)
    values, gradients = grid.evaluate_points(fields, shape, points, gradient=True)
    only, none = grid.evaluate_points(fields, shape, points)
    assert none is None
    for i in range(4):
        expected, slope = (
            fields[i].gradient(points[shape == i]) if (shape == i).any() else (np.zeros(0), np.zeros((0, 3)))
        )
        np.testing.assert_allclose(values[shape == i], expected, atol=1e-6)
        np.testing.assert_allclose(only[shape == i], expected, atol=1e-6)
        np.testing.assert_allclose(gradients[shape == i], slope, atol=1e-5)
    empty, _ = grid.evaluate_points(fields, np.zeros(0, int), np.zeros((0, 3)))
    assert empty.shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1024), st.data())
def test_keys_sort_by_shape_and_place_and_move_by_addition(resolution, data):
    shapes = 9
    lattice = grid.Lattice(np.tile([[[-1.0] * 3, [1.0] * 3]], (shapes, 1, 1)), resolution)
    place = st.tuples(st.integers(0, shapes - 1), *[st.integers(-1, resolution + 1)] * 3)
    places = np.array(sorted(data.draw(st.lists(place, min_size=2, max_size=8, unique=True))))
    keys = lattice.keys(places[:, 0], places[:, 1:])
    assert (np.diff(keys) > 0).all()
    np.testing.assert_array_equal(lattice.shape(keys), places[:, 0])
    np.testing.assert_array_equal(lattice.index(keys), places[:, 1:])
    np.testing.assert_array_equal(
        lattice.outside_box(keys), ((places[:, 1:] < 0) | (places[:, 1:] > resolution)).any(1)
    )
    inner = places[(places[:, 1:] >= 0).all(1) & (places[:, 1:] < resolution).all(1)]
    moved = lattice.keys(inner[:, 0], inner[:, 1:]) + lattice.steps([1, -1, 1])
    np.testing.assert_array_equal(lattice.index(moved), inner[:, 1:] + [1, -1, 1])


def test_the_ends_of_the_lattice_are_the_corners_of_the_box():
    box = np.array([[-0.3, 0.1, 5], [0.4, 0.2, 9]])
    lattice = grid.Lattice(box[None], 37)
    np.testing.assert_array_equal(lattice.to_coordinates(0, np.array([[0, 0, 0], [37, 37, 37]])), box)


@pytest.mark.parametrize("resolution", [0, -4, 2.5])
def test_a_grid_has_a_whole_number_of_cells(resolution):
    with pytest.raises(InputError, match="cells"):
        grid.lattice(batch(field(ball, center=(0, 0, 0), radius=0.5)), resolution)


def test_a_single_field_is_refused_where_a_batch_is_needed():
    with pytest.raises(InputError, match="stack"):
        grid.evaluate(field(ball, center=(0, 0, 0), radius=0.5), 4)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kind, platform", [("tpu", "tpu"), ("gpu", "cuda")])
def test_block_evaluation_is_lowered_for_other_platforms(kind, platform, gradient):
    fields = batch(*(field(waves, frequency=f) for f in (3.0, 5.0)))
    arguments = (fields, np.zeros((1, 4), np.int32), np.zeros((1, 4, fields_module.TILE, 3), np.float32), np.int32(3))
    program = fields_module.evaluation(parallel.Platform(kind, 16 << 30), gradient)
    exported = jax.export.export(program.jitted(), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,) and "sine" in exported.mlir_module()


def test_the_classic_notebooks_order_has_y_slowest():
    points = grid.make_grid((-1, -2, -3), (1, 2, 3), 4, indexing="xy")
    ticks = [np.linspace(-k, k, 4) for k in (1, 2, 3)]
    wanted = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 3)  # as torch.meshgrid(…, indexing="xy"), flattened
    np.testing.assert_allclose(points, wanted, atol=1e-6)
    assert (points[:16, 1] == -2).all() and points[4, 0] > points[0, 0]
    cube = points.reshape(4, 4, 4, 3).swapaxes(0, 1).reshape(-1, 3)
    np.testing.assert_array_equal(cube, grid.make_grid((-1, -2, -3), (1, 2, 3), 4))
    with pytest.raises(InputError, match="indexing is 'yx'"):
        grid.make_grid(-1, 1, 4, indexing="yx")
