"""Which points are inside: rays and winding numbers agree, and ambiguous rays are detected."""

import igl
import numpy as np
import pytest
import trimesh

from jonet.data import families, sampling
from jonet.geometry import boundary
from jonet.geometry.inside import ALONG, Inside, simple, winding, winding_numbers
from jonet.geometry.mesh import Mesh, normalize


def box(extents, center=(0, 0, 0)) -> trimesh.Trimesh:
    return trimesh.creation.box(extents, trimesh.transformations.translation_matrix(center))


def joined(*parts) -> Mesh:
    whole = trimesh.util.concatenate(parts)
    return Mesh(whole.vertices, whole.faces)


def test_bars_that_run_into_each_other_are_not_simple():
    assert not simple(joined(box((1.6, 0.3, 0.3)), box((0.3, 1.2, 0.2))))
    assert simple(joined(trimesh.creation.torus(0.6, 0.25)))


def tube(turns: float) -> Mesh:
    """A closed tube of eight sides around an arc; after more than a full turn its end intersects its start."""
    angle = np.linspace(0, 2 * np.pi * turns, 60)[:, None]
    side = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    radius = 0.6 + 0.15 * np.cos(side)
    ring = np.stack([radius * np.cos(angle), 0.15 * np.sin(side) + 0.02 * angle, -radius * np.sin(angle)], -1)
    here = np.arange(480).reshape(60, 8)
    a, b, c, d = here[:-1], np.roll(here[:-1], -1, 1), here[1:], np.roll(here[1:], -1, 1)
    faces = [np.stack([a, c, b], -1), np.stack([b, c, d], -1)]
    caps = [[[0, i, i + 1] for i in range(1, 7)], [[472, 473 + i, 472 + i] for i in range(1, 7)]]
    return Mesh(ring.reshape(-1, 3), np.concatenate([f.reshape(-1, 3) for f in map(np.array, faces + caps)]))


def test_one_surface_that_runs_through_itself_is_not_simple():
    through, short = tube(1.1), tube(0.8)
    assert short.watertight and short.volume > 0 and simple(short)
    assert through.watertight and through.volume > 0 and not simple(through)
    assert boundary.boundary_surface(through).area < through.area - 0.1
    np.testing.assert_allclose(boundary.boundary_surface(short).area, short.area)


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_simple_solids_get_the_signs_of_their_winding_numbers(family):
    for index in range(3):
        thing, _ = normalize(families.make(family, 0, index))
        if simple(thing):
            seeds, _ = sampling.surface(thing, 300, np.random.default_rng(index))
            points = seeds + 0.02 * np.random.default_rng(index).normal(size=seeds.shape)
            w = igl.winding_number(thing.vertices, thing.faces.astype(np.int64), points)
            np.testing.assert_array_equal(Inside(thing)(points), w > 0.5)


def turned(shape):
    return trimesh.Trimesh(shape.vertices, shape.faces[:, ::-1], process=False)


def ball(radius: float):
    return trimesh.creation.icosphere(2, radius=radius)


APART = box((0.4, 0.4, 0.4), (1.2, 0.3, 0.1))
PARTS = {  # closed surfaces in one mesh, and whether each has solid behind and nothing before it
    "two apart": ([ball(0.5), APART], True),
    "a hollow": ([ball(0.8), turned(ball(0.5))], True),
    "a ball in a hollow, a box apart": ([ball(0.8), turned(ball(0.5)), ball(0.3), APART], True),
    "a solid in a solid": ([ball(0.8), ball(0.5)], False),
    "all inside out": ([turned(ball(0.8))], False),
    "one of two inside out": ([ball(0.5), turned(APART)], False),
    "a hollow beside its solid": ([ball(0.5), turned(APART), ball(0.9)], False),
}


@pytest.mark.parametrize("name", PARTS)
def test_many_closed_surfaces_are_simple_if_each_is_oriented(name):
    parts, expected = PARTS[name]
    whole = joined(*parts)
    assert simple(whole) == expected
    points = np.random.default_rng(3).uniform(-1.4, 1.4, (4000, 3))
    w = igl.winding_number(whole.vertices, whole.faces.astype(np.int64), points)
    np.testing.assert_array_equal(Inside(whole)(points), w > 0.5)


def test_ambiguous_rays_are_decided_by_winding_numbers():
    """Points of a lattice on the corners, edges and faces of a box, and next to them."""
    cube = joined(box((1, 1, 1)))
    side = np.array([-0.5 - 1e-7, -0.5 + 1e-7, -0.25, 0.0, 0.25, 0.5 - 1e-7, 0.5 + 1e-7])
    points = np.stack(np.meshgrid(side, side, side), -1).reshape(-1, 3)
    np.testing.assert_array_equal(Inside(cube)(points), (np.abs(points) < 0.5).all(1))
    towards = (np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.1], [-0.5, 0.2, 0.5]])[:, None] - ALONG).reshape(-1, 3)
    np.testing.assert_array_equal(Inside(cube)(towards), (np.abs(towards) < 0.5).all(1))  # straight at corners, edges


def test_a_hairs_breadth_from_a_face_nothing_is_wrong():
    """Nearer than rays in float32 can tell, so that winding numbers decide."""
    cube = joined(box((1, 1, 1)))
    side = np.array([-0.5 - 3e-8, -0.5 + 3e-8, 0.0, 0.5 - 3e-8, 0.5 + 3e-8])
    points = np.stack(np.meshgrid(side, side, side), -1).reshape(-1, 3)
    np.testing.assert_array_equal(Inside(cube)(points), (np.abs(points) < 0.5).all(1))


def test_a_surface_folded_flat_onto_itself_is_not_simple():
    folded = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2], [2, 1, 0]])
    assert folded.watertight and not simple(folded)


def test_the_winding_numbers_of_few_points_are_those_of_the_tree():
    mesh, _ = normalize(families.make("chair", 0, 0))
    points = np.random.default_rng(0).uniform(*mesh.bounds, (300, 3))
    found = winding_numbers(mesh, points)
    np.testing.assert_allclose(found, winding(mesh).winding_number(points), atol=0.02)
    assert ((found > 0.5) == (np.asarray(winding(mesh).winding_number(points)) > 0.5)).all()
    np.testing.assert_allclose(found, igl.winding_number(mesh.vertices, mesh.faces.astype(np.int64), points), atol=1e-9)
