"""Shapes that lie among others are found, and upright ones are not."""

import warnings

import numpy as np
import pytest

from jonet.data import families, lying
from jonet.data.sampling import surface
from jonet.geometry import axes, mesh_files
from jonet.geometry.mesh import normalize


def points(mesh, seed=0):
    mesh, _ = normalize(mesh)
    return surface(mesh, 1000, np.random.default_rng(seed))[0]


class Clouds(list):
    """What is looked at of a store."""

    names = [f"c{i}" for i in range(16)]

    def surface(self, i):
        return self[i], None


@pytest.fixture(scope="module")
def chairs():
    return [points(families.make("chair", 0, i), i) for i in range(16)]


def test_upright_shapes_do_not_lie(chairs):
    assert lying.turned(chairs) == {}
    yaw = np.array([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])
    assert lying.turned([cloud @ yaw.T if i % 2 else cloud for i, cloud in enumerate(chairs)]) == {}
    assert lying.turned(chairs[:3]) == {}


@pytest.mark.parametrize("up", ["z", "-z", "x", "-x"])
def test_one_that_lies_is_found_with_the_axis_that_should_be_up(up, chairs):
    found = [lying.turned([*chairs[:i], chairs[i] @ axes.UP[up], *chairs[i + 1 :]]) for i in range(0, 16, 3)]
    assert sum(one == {i: up} for i, one in zip(range(0, 16, 3), found, strict=True)) >= 5
    assert all(one.keys() <= {i} for i, one in zip(range(0, 16, 3), found, strict=True))


def test_a_store_with_one_that_lies_is_a_warning(chairs):
    clouds = [*chairs[:-1], chairs[-1] @ axes.UP["z"]]
    with pytest.warns(UserWarning, match=r"1 shape lies perhaps on its side or head: c15 \(z up\) would"):
        lying.warn(Clouds(clouds))


@pytest.mark.parametrize("category", ["chair", "aeroplane"])
def test_real_meshes(category, data):
    """40 meshes of the train sets: none lies; of those that are laid down, nearly all are found."""
    with warnings.catch_warnings(action="ignore"):
        paths = sorted((data / "meshes" / category).rglob("*.ply"))[:40]
        clouds = [points(mesh_files.read(path)) for path in paths]
    assert lying.turned(clouds) == {}
    found = [lying.turned([*clouds[:i], clouds[i] @ axes.UP["z"], *clouds[i + 1 :]]) for i in range(0, 40, 4)]
    assert sum(i in one for i, one in zip(range(0, 40, 4), found, strict=True)) >= 8
