"""Fields in input units, and fields on grids, against closed forms."""

import warnings

import analytic
import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jonet.errors import InputError
from jonet.geometry.mesh import Similarity
from jonet.networks.input_field import InputField

pytestmark = pytest.mark.unoptimized

RADII, CENTERS = (0.4, 0.7), ((0.1, 0.0, -0.2), (0.0, 0.2, 0.0))
TRANSFORMS = tuple(
    Similarity(scale, Rotation.from_euler("xyz", angles).as_matrix(), shift)
    for scale, angles, shift in (
        (0.01, (0.3, 1.0, -0.4), (4e6, 5e5, 12.0)),  # surveyors' coordinates
        (30.0, (0.0, 2.0, 0.0), (0.1, 0.0, -0.3)),
    )
)


def balls(inside: int = -1):
    return analytic.batch(
        *(
            analytic.field(analytic.ball, radius=radius, center=center, inside=inside)
            for radius, center in zip(RADII, CENTERS, strict=True)
        )
    )


def around(count: int) -> np.ndarray:
    """Points in input units around both balls, [2, count, 3] float64."""
    points = np.random.default_rng(0).uniform(-1, 1, (2, count, 3))
    return np.stack([transform.inverse()(cloud) for transform, cloud in zip(TRANSFORMS, points, strict=True)])


def true(points) -> np.ndarray:
    """The distances to the balls in input units."""
    found = []
    for transform, radius, center, cloud in zip(TRANSFORMS, RADII, CENTERS, points, strict=True):
        middle = transform.inverse()(np.float64(center))
        found.append(np.linalg.norm(cloud - middle, axis=1) - radius / transform.scale)
    return np.stack(found)


def test_distances_and_gradients_are_in_input_units():
    fields, points = InputField(balls(), TRANSFORMS, 0.1), around(300)
    values, gradients = fields.gradient(points)
    scales = np.array([[0.01], [30.0]])
    np.testing.assert_allclose(fields(points) * scales, true(points) * scales, atol=1e-5)
    np.testing.assert_allclose(values, fields(points), rtol=1e-5)  # compiled together, rounding may differ
    np.testing.assert_array_equal(fields.contains(points), true(points) < 0)
    middles = np.stack([t.inverse()(np.float64(c)) for t, c in zip(TRANSFORMS, CENTERS, strict=True)])[:, None]
    wanted = (points - middles) / np.linalg.norm(points - middles, axis=-1, keepdims=True)
    np.testing.assert_allclose(gradients, wanted, atol=1e-4)


def test_logits_are_not_scaled_but_their_gradients_are():
    fields, points = InputField(balls(inside=1), TRANSFORMS), around(40)
    plain = balls(inside=1)
    inwards = np.stack([transform(cloud) for transform, cloud in zip(TRANSFORMS, points, strict=True)])
    np.testing.assert_allclose(fields(points), plain(inwards), atol=1e-6)
    np.testing.assert_allclose(fields.occupancy(points), plain.occupancy(inwards), atol=1e-6)
    lengths = np.linalg.norm(fields.gradient(points)[1], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to([[0.01], [30.0]], lengths.shape), rtol=1e-4)
    with pytest.raises(InputError, match="occupancies, not distances"):
        _ = fields.valid_distance
    assert "occupancy logits" in repr(fields)


def test_it_says_how_far_distances_hold():
    fields = InputField(balls(), TRANSFORMS, 0.1)
    np.testing.assert_allclose(fields.valid_distance, [10, 0.1 / 30])
    assert "valid up to 0.003333 to 10 from the surface" in repr(fields) and len(fields) == 2


def test_grids_hold_the_surface_and_have_its_values():
    fields = InputField(balls(), TRANSFORMS, 0.1)
    values, axes = fields.grid(8)
    assert values.shape == (2, 9, 9, 9) and axes.shape == (2, 3, 9) and axes.dtype == np.float64
    points = np.stack([np.stack(np.meshgrid(*each, indexing="ij"), -1).reshape(-1, 3) for each in axes])
    scales = np.array([[0.01], [30.0]])
    np.testing.assert_allclose(values.reshape(2, -1) * scales, true(points) * scales, atol=1e-5)
    borders = np.concatenate([np.take(values, (0, -1), axis).reshape(2, -1) for axis in (1, 2, 3)], 1)
    assert (borders > 0).all()


def test_a_grid_of_one_shape_is_indexed_by_x_y_z():
    field = analytic.field(analytic.block, half=(0.2, 0.4, 0.6), center=(0.1, 0.0, 0.0))
    values, axes = field.grid(10, [[-1, -1, -1], [1, 1, 2]])
    assert values.shape == (11, 11, 11) and values.dtype == np.float32 and axes.shape == (3, 11)
    np.testing.assert_allclose(axes[2], np.linspace(-1, 2, 11))
    x, y, z = 3, 7, 9
    np.testing.assert_allclose(values[x, y, z], field(np.array([[axes[0, x], axes[1, y], axes[2, z]]]))[0], atol=1e-6)


def test_grids_are_the_same_whatever_is_evaluated_at_once(monkeypatch):
    whole = balls().grid(12).values
    monkeypatch.setattr("jonet.networks.field.PLANES", 200)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(balls().grid(12).values, whole, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resolution": 0}, "resolution is 0"),
        ({"resolution": 2.5}, "resolution is 2.5"),
        ({"resolution": 4, "box": [[0, 0, 0], [1, 0, 1]]}, "box must be its lowest and its highest corner"),
        ({"resolution": 4, "box": [0, 1]}, "box"),
    ],
)
def test_impossible_grids_are_refused(arguments, words):
    for fields in (balls(), InputField(balls(), TRANSFORMS, 0.1)):
        with pytest.raises(InputError, match=words):
            fields.grid(**arguments)


def test_points_of_another_number_of_shapes_are_refused():
    with pytest.raises(InputError, match="points must have shape"):
        InputField(balls(), TRANSFORMS, 0.1)(np.zeros((3, 5, 3)))


def test_one_shape_of_a_batch_takes_points_without_an_axis_of_shapes():
    for fields in (InputField(balls(), TRANSFORMS, 0.1), InputField(balls(inside=1), TRANSFORMS)):
        points = around(40)
        for i, one in enumerate(fields):
            np.testing.assert_allclose(one(points[i]), fields(points)[i], rtol=1e-5)
            for found, wanted in zip(one.gradient(points[i]), fields.gradient(points), strict=True):
                assert found.dtype == wanted.dtype and found.shape == wanted[i].shape
                np.testing.assert_allclose(found, wanted[i], rtol=1e-4)
            np.testing.assert_array_equal(one.contains(points[i]), fields.contains(points)[i])
            np.testing.assert_allclose(one.occupancy(points[i]), fields.occupancy(points)[i], rtol=1e-4)
            np.testing.assert_array_equal(one.box, fields.boxes[i])
            for found, wanted in zip(one.grid(4), fields.grid(4), strict=True):
                np.testing.assert_allclose(found, wanted[i], rtol=1e-4)
            assert one.grid(2, [[0, 0, 0], [1, 1, 1]]).values.shape == (3, 3, 3) and "1 shape," in repr(one)
            with pytest.raises(TypeError, match="one shape and has no length"):
                len(one)
            with pytest.raises(InputError, match=r"points must have shape \[any, 3\]"):
                one(points)
        assert i == 1
        with pytest.raises(InputError, match="take boxes"):
            _ = fields.box
        with pytest.raises(IndexError):
            fields[2]
    fields = InputField(balls(), TRANSFORMS, 0.1)
    np.testing.assert_allclose([one.valid_distance for one in fields], fields.valid_distance)
    assert np.ndim(fields[0].valid_distance) == 0 and "valid up to 10 from" in repr(fields[0])


@pytest.mark.parametrize("index", [slice(1, None), np.array([1, 0, 1]), np.array([False, True]), np.int64(-1)])
def test_a_smaller_batch_keeps_each_shape_with_its_similarity(index):
    fields, points = InputField(balls(), TRANSFORMS, 0.1), around(20)
    some = fields[index]
    np.testing.assert_allclose(some(points[index]), fields(points)[index], rtol=1e-5)
    assert some.batched == (np.ndim(some.valid_distance) == 1) and repr(fields[:1]).startswith(
        "InputField(batch of 1 shape, "
    )


def test_points_that_are_all_far_from_the_box_are_said():
    field = InputField(balls(), TRANSFORMS, 0.1)
    mixed = around(40)
    mixed[0, :39] += 1e6
    with warnings.catch_warnings(action="error"):
        field(mixed)
        field(mixed[:, :10])  # few points may be anywhere
    with pytest.warns(UserWarning, match=r"all points of shape 1 lie far outside of the box of the field.*transform"):
        field(np.stack([mixed[0], mixed[1] * 100 + 5]))
    with pytest.warns(UserWarning, match="all points lie far outside"):
        field[0](np.zeros((20, 3)))
