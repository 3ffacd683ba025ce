"""Samples: closed forms, signs by two methods, the published recipes, and what is refused."""

import os
from pathlib import Path

import igl
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from jonet.data import sampling
from jonet.data.sampling import RECIPES, Recipe, Solid
from jonet.errors import ConfigError, InputError, MeshError
from jonet.geometry.mesh import Mesh, normalize
from jonet.geometry.mesh_files import read


def mesh(t, name="made") -> Mesh:
    return Mesh(t.vertices, t.faces, name=name)


def box(extents, center=(0, 0, 0)) -> trimesh.Trimesh:
    t = trimesh.creation.box(extents)
    t.apply_translation(center)
    return t


def joined(*parts) -> Mesh:
    return mesh(trimesh.util.concatenate(parts))


def box_distance(points, half):
    """The signed distance to a box around the origin, in closed form."""
    q = np.abs(points) - half
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)


CROSS = joined(box((1.6, 0.3, 0.3)), box((0.3, 1.2, 0.2)))  # two bars that run into each other


# Distances


@settings(max_examples=20, deadline=None)
@given(half=st.tuples(*[st.floats(0.1, 0.9)] * 3), seed=st.integers(0, 99))
def test_distances_to_a_box(half, seed):
    points = np.random.default_rng(seed).uniform(-1.2, 1.2, (300, 3))
    got = sampling.signed_distances(mesh(box(2 * np.array(half))), points)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, box_distance(points, half), atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "winding"])
def test_distances_to_overlapping_parts_ignore_inner_surfaces(method):
    """The surface of one bar inside the other is not boundary; the union has a closed form outside."""
    solid = Solid(CROSS, method)
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    apart = box_distance(points, [0.8, 0.15, 0.15]), box_distance(points, [0.15, 0.6, 0.1])
    got, outside = solid.distances(points), np.minimum(*apart) > 0
    np.testing.assert_array_equal(got > 0, outside)
    np.testing.assert_allclose(got[outside], np.minimum(*apart)[outside], atol=1e-6)
    # the nearest boundary of the cross: its flat side, then the edges where the bars meet
    within = solid.distances([[0.0, 0.0, 0.1], [0.12, 0.149, 0.0], [0.1, -0.1, 0.0]])
    np.testing.assert_allclose(within, [-0.05, -np.hypot(0.03, 0.001), -np.hypot(0.05, 0.05)], atol=0.01)
    ground_truth = trimesh.boolean.union([box((1.6, 0.3, 0.3)), box((0.3, 1.2, 0.2))], engine="manifold")
    np.testing.assert_allclose(got, Solid(mesh(ground_truth)).distances(points), atol=0.02)
    assert abs(solid.boundary_surface.area - ground_truth.area) < 0.05 < CROSS.area - ground_truth.area


def test_the_fast_sign_equals_the_winding_number():
    """On a surface without self-intersections, signs by normals and by winding numbers agree."""
    torus = mesh(trimesh.creation.torus(0.6, 0.25))
    points = np.random.default_rng(1).uniform(-1, 1, (5000, 3))
    w = igl.winding_number(torus.vertices, torus.faces.astype(np.int64), points)
    np.testing.assert_array_equal(sampling.inside(torus, points), w > 0.5)
    squared = igl.point_mesh_squared_distance(points, torus.vertices, torus.faces.astype(np.int64))[0]
    np.testing.assert_allclose(np.abs(sampling.signed_distances(torus, points)), np.sqrt(squared), atol=1e-7)


def test_sheets_without_thickness_are_no_boundary():
    sheet = box((0.6, 0.6, 0.0), (0.5, 0, 0))
    solid = Solid(joined(box((0.5, 0.5, 0.5)), sheet))
    assert solid.distances([[0.6, 0, 0.01]])[0] == pytest.approx(0.35)
    assert solid.boundary_surface.area == pytest.approx(6 * 0.25)


def test_the_cavity_of_a_hollow_shell_is_outside():
    outer, inner = trimesh.creation.icosphere(3, 0.9), trimesh.creation.icosphere(3, 0.5)
    inner.invert()
    solid = Solid(joined(outer, inner))
    points = np.array([[0, 0, 0.0], [0.7, 0, 0], [1.0, 0, 0], [0, 0.45, 0]])
    np.testing.assert_allclose(solid.distances(points), [0.5, -0.2, 0.1, 0.05], atol=0.01)


def test_open_meshes():
    bowl = trimesh.creation.icosphere(3, 0.8)
    bowl.update_faces(bowl.triangles_center[:, 1] < 0.7)
    with pytest.raises(MeshError, match="open edges.*'winding' or 'views'"):
        Solid(mesh(bowl))
    inside = sampling.inside(mesh(bowl), [[0, -0.3, 0], [0, 0.9, 0], [0.9, 0, 0]], "winding")
    assert inside.tolist() == [True, False, False]
    with pytest.raises(InputError, match="'magic'.*exact, winding, views"):
        Solid(mesh(bowl), "magic")


def test_views_see_a_solid_without_looking_at_its_winding():
    ball = trimesh.creation.icosphere(3, 0.3)
    flipped = ball.faces.copy()
    flipped[::3] = flipped[::3, ::-1]
    solid = Solid(Mesh(ball.vertices, flipped), "views")
    points = np.random.default_rng(2).normal(size=(2000, 3))
    points *= np.random.default_rng(3).uniform(0.1, 0.5, (2000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    ground_truth = np.linalg.norm(points, axis=1) - 0.3
    clear = np.abs(ground_truth) > 0.005  # the facets of the ball lie up to 0.002 below it
    np.testing.assert_allclose(solid.distances(points)[clear], ground_truth[clear], atol=0.005)
    np.testing.assert_array_equal(solid.inside(points)[clear], ground_truth[clear] < 0)


def test_votes_that_disagree_are_dropped_if_unanimous_is_set():
    """Around a sheet, which is seen from both sides, the nearest points of the shell vote for either."""
    solid = Solid(joined(box((0.3, 0.3, 0.3)), box((0.3, 0.3, 0.0), (0.3, 0, 0))), "views")
    counts = [
        sum(map(len, sampling.sdf_samples(solid, Recipe(4000, 0, unanimous=unanimous), np.random.default_rng(0))))
        for unanimous in (False, True)
    ]
    assert counts[0] == 4000 and 2000 < counts[1] < 3500
    assert solid.inside([[0.0, 0, 0], [0.3, 0.0, 0.001], [0.3, 0, -0.001]]).tolist() == [True, False, False]


def test_a_sheet_alone_has_no_inside_to_see():
    with pytest.raises(MeshError, match="sheet: its surface is seen from both sides.*encloses nothing"):
        Solid(mesh(box((0.3, 0.3, 0.0)), "sheet"), "views")


# Recipes


def test_counts_and_spread_of_the_samples():
    recipe = Recipe(near=20_000, uniform=5_000, variances=(0.005, 0.0005))
    outside, inside = sampling.sdf_samples(mesh(box((0.8, 0.8, 0.8))), recipe, np.random.default_rng(0))
    assert outside.dtype == inside.dtype == np.float32 and len(outside) + len(inside) == 25_000
    assert (outside[:, 3] > 0).all() and (inside[:, 3] <= 0).all()
    both = np.concatenate([outside, inside])
    # far from edges the distance is the noise along the normal: a mixture of N(0, 0.005) and N(0, 0.0005)
    flat = both[(np.abs(both[:, :3]) < 0.15).sum(1) == 2]
    near = np.abs(flat[:, 3]) < 0.1
    expected = 0.5 * np.array([0.8427, 1.0])  # P(|x| < 0.1) of each: erf(1), 1
    small = 0.5 * np.array([0.1125, 0.3453])  # P(|x| < 0.01)
    assert np.mean(np.abs(flat[near, 3]) < 0.01) == pytest.approx(small.sum() / expected.sum(), abs=0.04)


class Unshuffled(np.random.Generator):
    def permutation(self, x, axis=0):
        self.kept = x
        return x


def test_both_samples_of_a_surface_point_have_their_own_noise():
    """Their distance is that of two draws: with equal variances v, each coordinate's has the variance 2 v."""
    rng, variance = Unshuffled(np.random.PCG64(0)), 0.0025
    sampling.sdf_samples(mesh(box((0.8, 0.8, 0.8))), Recipe(20_000, 0, variances=(variance, variance)), rng)
    first, second = rng.kept.reshape(-1, 2, 3).swapaxes(0, 1).astype(np.float64)
    apart = first - second
    assert apart.var(0) == pytest.approx([2 * variance] * 3, rel=0.06) and np.abs(apart.mean(0)).max() < 0.003


def test_the_ball_is_filled_evenly_and_the_cube_frame_shrinks_all_lengths():
    recipe = Recipe(near=0, uniform=20_000, region="ball")
    thing = mesh(box((0.5, 0.5, 0.5)))
    both = np.concatenate(sampling.sdf_samples(thing, recipe, np.random.default_rng(0)))
    radius = np.linalg.norm(both[:, :3], axis=1)
    assert radius.max() <= 1 and np.mean(radius < 0.5) == pytest.approx(1 / 8, abs=0.01)
    cube = np.concatenate(
        sampling.sdf_samples(thing, Recipe(near=0, uniform=4000), np.random.default_rng(0), frame="cube")
    )
    assert 0.54 < np.abs(cube[:, :3]).max() <= 0.55


def test_published_recipes():
    deepsdf, test, paper = RECIPES["deepsdf"], RECIPES["deepsdf_test"], RECIPES["paper"]
    assert deepsdf.near + deepsdf.uniform == 500_000 and deepsdf.near == 500_000 * 47 // 50
    assert test.near + test.uniform == 250_000 and test.variances == (0.05, 0.0005)
    assert deepsdf.variances == (0.005, 0.0005) and deepsdf.unanimous
    assert (paper.variances, paper.uniform, paper.region) == ((0.0025, 0.00025), 25_000, "ball")
    assert RECIPES["onet"].occupancies == RECIPES["onet"].surface == 100_000


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"near": 11}, "near is 11.*even"),
        ({"uniform": -1}, "uniform is -1"),
        ({"surface": 1.5}, "surface is 1.5"),
        ({"variances": (0.1,)}, "variances"),
        ({"variances": (0.1, 0.0)}, "variances"),
        ({"region": "sphere"}, "region is 'sphere'"),
        ({"padding": -1.0}, "padding"),
    ],
)
def test_recipes_that_make_no_sense(wrong, match):
    with pytest.raises(ConfigError, match=match):
        Recipe(**wrong)


def test_samples_are_a_function_of_their_seed():
    one, two, other = (
        sampling.sdf_samples(CROSS, Recipe(1000, 100), np.random.default_rng([7, seed])) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[1][:100], other[1][:100])


def test_what_encloses_nothing_is_refused_by_name():
    plane = Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], name="plane")
    with pytest.raises(MeshError, match="plane.*nothing is enclosed"):
        sampling.sdf_samples(plane, Recipe(100, 100), np.random.default_rng(0), "winding")
    speck = Mesh(1e-3 * box((1, 1, 1)).vertices, box((1, 1, 1)).faces, name="speck")
    with pytest.raises(MeshError, match="speck: none of 500 sampled distances is inside"):
        sampling.sdf_samples(speck, Recipe(0, 500), np.random.default_rng(0))


# Occupancies and surface points


def test_occupancies_fill_the_padded_cube():
    """In the cube frame ±0.55, as published; the fraction inside is the volume over that of the cube."""
    thing, _ = normalize(mesh(box((3, 1, 1), (5, 0, 0))), "cube")
    points, inside = sampling.occupancies(thing, 40_000, np.random.default_rng(0))
    assert points.dtype == np.float32 and inside.dtype == bool
    np.testing.assert_allclose([points.min(0), points.max(0)], [[-0.55] * 3, [0.55] * 3], atol=1e-3)
    assert inside.mean() == pytest.approx(1 / 9 / 1.1**3, abs=0.005)
    np.testing.assert_array_equal(inside, (np.abs(points) < [1 / 2, 1 / 6, 1 / 6]).all(1))


def test_rounded_points_keep_their_right_side():
    """Labels belong to the points that are stored; the program rounds after it has labeled them."""
    ball = mesh(trimesh.creation.icosphere(4, 0.5))
    points, inside = sampling.occupancies(ball, 20_000, np.random.default_rng(0), dtype=np.float16)
    assert points.dtype == np.float16
    np.testing.assert_array_equal(sampling.inside(ball, points.astype(np.float64)), inside)


@settings(max_examples=10, deadline=None)
@given(extents=st.tuples(*[st.floats(0.1, 2.0)] * 3), seed=st.integers(0, 99))
def test_surface_points_lie_on_faces_in_proportion_to_area(extents, seed):
    thing = mesh(box(extents))
    points, normals = sampling.surface(thing, 5000, np.random.default_rng(seed))
    half = np.array(extents) / 2
    np.testing.assert_allclose(np.max(np.abs(points) - half, axis=1), 0, atol=1e-6)
    axis = np.abs(normals).argmax(1)
    np.testing.assert_allclose(np.abs(normals[np.arange(5000), axis]), 1, atol=1e-6)
    np.testing.assert_allclose((points * normals)[np.arange(5000), axis], half[axis], atol=1e-6)
    areas = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    np.testing.assert_allclose(np.bincount(axis, minlength=3) / 5000, areas / areas.sum(), atol=0.04)


def test_a_surface_without_area_has_no_points():
    line = Mesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], name="line")
    with pytest.raises(MeshError, match="line.*no area"):
        sampling.surface(line, 10, np.random.default_rng(0))


def test_what_no_view_sees_is_named():
    """Thinner than a pixel: a needle of length 1."""
    needle = Mesh(np.eye(4, 3) * [1, 1e-9, 1e-9], [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], name="needle")
    with pytest.raises(MeshError, match="needle: views from all sides see 0 points"):
        sampling.Solid(needle, "views")


def test_the_error_of_a_ball_on_a_far_larger_plane_names_the_plane():
    corners = 1e6 * np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]) - [0, 1, 0]
    plane = trimesh.Trimesh(corners, [[0, 2, 1], [0, 3, 2]])
    whole = trimesh.util.concatenate([trimesh.creation.icosphere(2), plane])
    with pytest.raises(MeshError, match="encloses nothing; close it, and remove sheets such as a ground plane"):
        Solid(normalize(mesh(whole))[0], "views")


def test_points_are_validated():
    with pytest.raises(InputError, match="points must have shape"):
        sampling.inside(CROSS, [[0.0, 0.0]])
    with pytest.raises(InputError, match="points must be finite"):
        sampling.signed_distances(CROSS, [[0.0, np.nan, 0.0]])


# Real meshes


@pytest.mark.skipif("JONET_DATA" not in os.environ, reason="JONET_DATA names no folder of real meshes")
@pytest.mark.parametrize("name", ["armadillo", "bunny_closed", "fandisk", "fertility", "horse", "spot"])
def test_signs_of_real_meshes(name):
    """The exact winding number agrees at every sample."""
    thing, _ = normalize(read(Path(os.environ["JONET_DATA"]) / "shapes" / f"{name}.ply"))
    outside, inside = sampling.sdf_samples(thing, Recipe(1500, 500), np.random.default_rng(0))
    both = np.concatenate([outside, inside]).astype(np.float64)
    w = igl.winding_number(thing.vertices, thing.faces.astype(np.int64), both[:, :3])
    np.testing.assert_array_equal(w > 0.5, both[:, 3] <= 0)
