"""Shapes that lie are fitted far better when they stand; upright ones are not fitted better when they lie."""

import numpy as np
import pytest
from chairs import QUICK, fit, load_chairs

from jonet.geometry.axes import UP
from jonet.inference.fitting import observations, turned


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


def found(chairs, turn):
    points, normals = ([array @ turn for array in side] for side in (chairs.points, chairs.normals))
    given = observations.ObservedArrays.checked(points=points, normals=normals)
    index = np.arange(len(points))
    shapes = observations.observe(given, QUICK, index)
    residual = fit(chairs, points=points, normals=normals).residual
    return turned.axes(chairs.network, shapes, residual, index, config=QUICK, prior=chairs.prior, starts=chairs.codes)


def test_upright_chairs_do_not_lie(chairs):
    assert found(chairs, np.eye(3)) == [""] * 4


@pytest.mark.parametrize("up", ["z", "x"])
def test_chairs_that_lie_are_found(up, chairs):
    assert found(chairs, UP[up]).count(up) >= 3
    assert turned.axes(chairs.network, [], [], []) == []
