"""Moved, turned, scaled, reordered, divided or thinned, shapes give the same samples, meshes, codes and scores."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import trimesh
from analytic import balls, batch, field
from chairs import fit, load_chairs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from jonet.codes import Codes
from jonet.data import sampling, scans, splits
from jonet.evaluation import metrics
from jonet.geometry import depth, diagnosis, inside
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.surfaces import extraction
from jonet.settings.metrics import MetricsConfig

FEW = MetricsConfig(
    volume_points=20_000, surface_points=20_000, chamfer_points=10_000, accuracy_points=1_000, emd_points=200
)
CHEAP = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def solid(*parts) -> Mesh:
    """Parts as one mesh, turned so that no face lies along the axes, where the side of a cell's middle is rounding."""
    whole = trimesh.util.concatenate(parts)
    turned = Rotation.from_euler("xyz", [3, 5, 7], degrees=True).as_matrix()
    return Mesh(whole.vertices @ turned.T, whole.faces)


BODY = solid(
    trimesh.creation.box((1, 0.4, 0.6)),
    trimesh.creation.box((0.2, 1, 0.2)).apply_translation((0.3, 0.3, 0.1)),
    trimesh.creation.icosphere(2, 0.3).apply_translation((-0.4, 0.5, 0)),
)
BOX = solid(trimesh.creation.box((1, 0.4, 0.6)))
OTHER = solid(trimesh.creation.box((1.05, 0.45, 0.6)).apply_translation((0.02, 0, 0)))

# Units and places as people have them: a shape in nanometers or kilometers, as far from the origin as a map is wide.
similarities = st.builds(
    lambda exponent, offset: Similarity(10.0**exponent, translation=offset),
    st.integers(-6, 6),
    st.tuples(*[st.floats(-1e4, 1e4)] * 3),
)
orders = st.integers(0, 2**16).map(np.random.default_rng)
rotations = st.integers(0, 2**16).map(lambda seed: Rotation.random(rng=np.random.default_rng(seed)).as_matrix())


def reordered(mesh: Mesh, rng) -> Mesh:
    """The same surface: its vertices and faces in another order, each face begun at another corner."""
    order = rng.permutation(len(mesh.vertices))
    faces = np.argsort(order)[mesh.faces][rng.permutation(len(mesh.faces))]
    begun = (np.arange(3) + rng.integers(0, 3, (len(faces), 1))) % 3
    return Mesh(mesh.vertices[order], np.take_along_axis(faces, begun, 1))


# Meshes


@given(similarities)
@settings(max_examples=5, **CHEAP)
def test_samples_move_and_grow_with_their_mesh(transform):
    points, distances = scans.sample_sdf(BODY, 400)
    moved, scaled = scans.sample_sdf(transform.apply(BODY), 400)
    assert len(moved) == len(points)
    np.testing.assert_allclose(moved, transform(points), rtol=1e-9, atol=1e-5 * transform.scale)
    np.testing.assert_allclose(scaled, transform.scale * distances, atol=1e-5 * transform.scale)


@given(orders, rotations, st.integers(-6, 6))
@settings(max_examples=5, **CHEAP)
def test_the_inside_is_the_same_whatever_the_order_and_pose(rng, rotation, exponent):
    """For places that are no rounding error away from the surface, and meshes near the origin."""
    points = rng.uniform(-1, 1, (500, 3))
    expected = inside.Inside(BODY)(points)
    away = np.abs(sampling.Solid(BODY).distances(points)) > 1e-4
    turned = Similarity(10.0**exponent, rotation, rng.uniform(-1, 1, 3))
    found = inside.Inside(turned.apply(reordered(BODY, rng)))(turned(points))
    np.testing.assert_array_equal(found[away], expected[away])


@given(orders, rotations)
@settings(max_examples=3, **CHEAP)
def test_a_diagnosis_does_not_know_order_or_pose(rng, rotation):
    before = diagnosis.diagnose(BODY)
    after = diagnosis.diagnose(Similarity(rotation=rotation).apply(reordered(BODY, rng)))
    assert (before.method, before.closed, before.parts, before.inverted) == (
        after.method,
        after.closed,
        after.parts,
        after.inverted,
    )
    assert after.overlap == pytest.approx(before.overlap, abs=0.15)  # 5 deviations of what 256 probes say


@given(similarities)
@settings(max_examples=3, **CHEAP)
def test_voxels_know_neither_units_nor_place(transform):
    (grid, _), (moved, _) = (scans.voxelized(mesh, 32) for mesh in (BODY, transform.apply(BODY)))
    assert (grid != moved).mean() < 1e-4  # cells whose middle lies in the surface


# Scores


@given(similarities)
@settings(max_examples=3, **CHEAP)
def test_scores_know_neither_units_nor_place(transform):
    """Of parts that do not overlap, whose boundary has the same faces wherever they are: the same points are drawn."""
    (plain,), (moved,) = (
        metrics.evaluate([t.apply(OTHER)], [t.apply(BOX)], FEW)["shapes"] for t in (Similarity(), transform)
    )
    for name, value in plain.items():
        unit = transform.scale if name in metrics.DEVIATIONS else 1.0
        if name != "name":
            assert moved[name] == pytest.approx(unit * value, rel=1e-3), name


@given(orders, rotations)
@settings(max_examples=3, **CHEAP)
def test_scores_know_neither_order_nor_pose(rng, rotation):
    """Up to the spread of random draws: 20,000 points on surfaces and in space."""
    turned = Similarity(rotation=rotation)
    (plain,) = metrics.evaluate([OTHER], [BODY], FEW)["shapes"]
    meshes = [[turned.apply(reordered(mesh, rng))] for mesh in (OTHER, BODY)]
    (found,) = metrics.evaluate(*meshes, FEW)["shapes"]
    side = [np.ptp(mesh.bounds, axis=0).max() for mesh in (BODY, meshes[1][0])]  # the unit depends on the axes
    assert found["iou"] == pytest.approx(plain["iou"], abs=0.02)
    assert found["normal_consistency"] == pytest.approx(plain["normal_consistency"], abs=0.02)
    for name in ("chamfer_l1", "accuracy", "completeness"):
        assert found[name] * side[1] == pytest.approx(plain[name] * side[0], rel=0.05), name
    for name in ("deviation_95", "deviation_max", "hausdorff"):
        assert found[name] == pytest.approx(plain[name], rel=0.1), name


def test_scores_of_many_are_those_of_each_alone():
    pairs = [(OTHER, BODY), (BODY, OTHER), (BODY, BODY)]
    together = metrics.evaluate(*map(list, zip(*pairs, strict=True)), FEW)["shapes"]
    alone = [metrics.evaluate([mesh], [ground_truth], FEW)["shapes"][0] for mesh, ground_truth in pairs]
    assert together == alone


# Clouds and views


@given(rotations, similarities)
@settings(max_examples=5, **CHEAP)
def test_estimated_normals_turn_with_their_points(rotation, transform):
    points, _ = sampling.surface(BODY, 300, np.random.default_rng(0), np.float64)
    eye, turned = np.array([3.0, 2.0, 4.0]), dataclasses.replace(transform, rotation=rotation)
    normals = depth.normals_towards(points, eye)
    found = depth.normals_towards(turned(points), turned(eye))
    same = np.einsum("nc,nc->n", found, normals @ rotation.T)
    assert (same > 0.999).mean() > 0.98  # at edges the plane, and from the side its direction, is a matter of rounding


@given(st.lists(st.text("abcdef/", min_size=1), min_size=2, max_size=20, unique=True), orders)
@settings(max_examples=20, **CHEAP)
def test_random_splits_do_not_know_the_order_of_names(names, rng):
    shuffled = [names[i] for i in rng.permutation(len(names))]
    assert splits.drawn(names, 0.3, 5) == splits.drawn(shuffled, 0.3, 5)


# Surfaces


def shapes_at(offset, scale=1.0, axes=(0, 1, 2)):
    centers = np.array([[0.1, -0.05, 0.2], [-0.2, 0.15, -0.1]])[:, list(axes)]
    box = np.array([[-1.0] * 3, [1.0] * 3])
    return batch(
        field(
            balls,
            box=scale * box + offset,
            centers=scale * centers + offset,
            radii=scale * np.array([0.35, 0.3]),
        )
    )


PLAIN = np.zeros(3)


@pytest.mark.parametrize("method", ["sparse", "dense", "mise"])
def test_meshes_move_grow_and_turn_with_their_field(method):
    def mesh(*arguments):
        return extraction.extract(shapes_at(*arguments), 32, method=method)[0]

    plain, offset = mesh(PLAIN), np.array([0.5, -0.25, 2.0])  # whole cells, so that the grids are the same
    bound = 2e-3 * 2 / 32  # vertices are moved to within a thousandth of a cell
    moved, grown, turned = mesh(offset), mesh(PLAIN, 4.0), mesh(PLAIN, 1.0, (1, 2, 0))
    np.testing.assert_array_equal(moved.faces, plain.faces)
    np.testing.assert_allclose(moved.vertices - offset, plain.vertices, atol=bound)
    np.testing.assert_array_equal(grown.faces, plain.faces)
    np.testing.assert_allclose(grown.vertices / 4, plain.vertices, atol=bound)
    apart, nearest = cKDTree(turned.vertices).query(plain.vertices[:, [1, 2, 0]])
    assert apart.max() < bound and len(np.unique(nearest)) == len(turned.vertices)
    assert turned.volume == pytest.approx(plain.volume, rel=2e-3)


# Codes


@functools.cache
def chairs():
    return load_chairs()


def fitted(order) -> np.ndarray:
    """Codes [4, L] of the chairs, fitted to these of the 3,000 rows of their samples."""
    with jax.default_matmul_precision("highest"):
        return fit(chairs(), chairs().samples[:, order]).values


def errors(codes) -> np.ndarray:
    """Mean errors [4] of clamped distances at places that no fit has seen."""
    found = np.asarray(chairs().network.fields(codes)(chairs().held_out[..., :3]))
    return np.abs(np.clip(found, -0.1, 0.1) - np.clip(chairs().held_out[..., 3], -0.1, 0.1)).mean(1)


@given(orders)
@settings(max_examples=3, **CHEAP)
def test_codes_do_not_know_the_order_of_rows(rng):
    np.testing.assert_array_equal(fitted(rng.permutation(3000)), fitted(np.arange(3000)))


@given(orders)
@settings(max_examples=3, **CHEAP)
def test_clouds_do_not_know_the_order_of_points(rng):
    order = rng.permutation(chairs().points.shape[1])
    with jax.default_matmul_precision("highest"):
        found, again = (
            fit(chairs(), points=chairs().points[:, each], normals=chairs().normals[:, each])
            for each in (order, np.sort(order))
        )
    np.testing.assert_array_equal(found.values, again.values)


@given(orders)
@settings(max_examples=3, **CHEAP)
def test_half_of_the_rows_say_as_much_about_the_rest(rng):
    """Codes of this small network are hardly determined, and those of half of the rows are others; shapes are not."""
    assert (errors(fitted(rng.permutation(3000)[:1500])) < 1.15 * errors(fitted(np.arange(3000)))).all()


def test_codes_divided_and_joined_are_the_same():
    rng = np.random.default_rng(0)
    whole = Codes(
        rng.standard_normal((5, 3)).astype(np.float32), tuple("abcde"), residual=rng.random(5), network="0" * 16
    )
    again = Codes.joined([whole[:2], whole[2], whole[["d", "e"]]])
    for field_ in dataclasses.fields(Codes):
        np.testing.assert_array_equal(getattr(again, field_.name), getattr(whole, field_.name))
