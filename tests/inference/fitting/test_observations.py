"""Packed observations of a shape: groups have equal weight, for any number of rows."""

import numpy as np
import pytest
from chairs import QUICK, load_chairs
from hypothesis import given, settings
from hypothesis import strategies as st

from jonet.errors import InputError
from jonet.inference.fitting import latents, observations
from jonet.model import Model


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


def sphere(count: int, free_space: int, oriented: bool) -> observations.Observations:
    rng = np.random.default_rng(count)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    space = rng.uniform(-1, 1, (free_space, 3))
    return observations.of_surface(0.5 * normals, normals if oriented else None, space, 0.01, None, rng)


@pytest.mark.parametrize(
    ("count", "free_space", "oriented"), [(500, 100_000, True), (20, 300_000, True), (1, 20_000, False)]
)
def test_much_free_space_leaves_all_of_the_surface(count, free_space, oriented):
    rows = sphere(count, free_space, oriented)
    packed = observations.pack(rows, 0.1, 8192, 0, 0)
    assert len(packed) == 8192 and packed[:, observations.MEASURED].sum() == count
    second, weights = packed[:, observations.GROUP] > 0, packed[:, observations.WEIGHT]
    assert (~second).sum() == (3 if oriented else 1) * count
    np.testing.assert_allclose([weights[second].sum(), weights[~second].sum()], 4096, rtol=1e-4)
    place = np.flatnonzero(~second)
    assert count == 1 or place.max() - place.min() > 4000  # shuffled among the others


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 600), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_no_group_drowns(first, second, limit, seed):
    """Whichever is the scarce one; what is not scarce is thinned by chance, as if there were no groups."""
    sides = np.repeat([False, True], [first, second])
    rng = np.random.default_rng(seed)
    order = rng.permutation(first + second)
    kept = observations._kept(sides, limit, order, rng)
    assert len(kept) == len(set(kept.tolist())) == min(limit, first + second)
    sizes, left = np.array([first, second]), np.bincount(sides[kept], minlength=2)
    if sizes.min() < sizes.sum() / 8:
        assert left[sizes.argmin()] >= min(sizes.min(), limit // 2, len(kept))
    else:
        np.testing.assert_array_equal(kept, order[:limit])


def test_a_few_points_amid_much_free_space_are_fitted_and_judged(chairs):
    points, normals = chairs.points[:1, :20], chairs.normals[:1, :20]
    free_space = np.random.default_rng(0).uniform(-1, 1, (1, 400_000, 3))
    free_space = free_space[:, np.abs(free_space[0]).max(1) > 0.9]
    known = {"prior": chairs.prior, "starts": chairs.codes, "config": QUICK}
    given = observations.ObservedArrays.checked(points=points, normals=normals, free_space=free_space)
    found = latents.fit(chairs.network, observations.observe(given, QUICK), **known)
    assert found.residual[0] < 0.02 and found.inlier_fraction[0] > 0.4


@pytest.mark.parametrize("frame", ["input", "normalized"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"free_space": []}, "free_space"),
        ({"free_space": [[], []]}, "free_space are of 2 shapes"),
        ({"free_space": [np.zeros((3, 4))]}, r"free_space\[0\] must have shape"),
        ({"normals": [np.eye(3)] * 2}, "normals are of 2 shapes"),
        ({"normals": [np.eye(4)]}, r"normals\[0\] must have shape"),
    ],
)
def test_what_belongs_to_points_is_as_many_as_they(chairs, frame, given, message):
    model = Model("deepsdf", chairs.network, "sphere")
    with pytest.raises(InputError, match=message):
        model.fit(points=[np.eye(3)], **given, frame=frame)


def test_no_free_space_is_an_empty_list(chairs):
    nothing, none = (
        observations.observe(observations.ObservedArrays.checked(points=[np.eye(3)], free_space=[free_space]))[0]
        for free_space in ([], np.zeros((0, 3)))
    )
    assert len(nothing.points) == 3 and not nothing.group.any() and len(none.points) == 3
