"""Code and pose together: increments, rows of the Jacobian, rotations, and scans found again in unknown position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chairs import load_chairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jonet.errors import ConfigError, InputError
from jonet.geometry.mesh import Similarity
from jonet.inference.fitting import methods, observations, pose
from jonet.inference.fitting.observations import ObservedArrays
from jonet.inference.fitting.pose import Pose, fit_pose
from jonet.model import Model
from jonet.settings.fitting import FitConfig, GaussNewton, PoseConfig


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


def angle(one, two) -> float:
    """Between two rotations, in degrees."""
    return np.degrees(Rotation.from_matrix(one @ two.T).magnitude())


@given(turn=st.tuples(*[st.floats(-4, 4)] * 3))
@settings(max_examples=30, deadline=None)
def test_the_exponential_is_the_rotation_by_a_vector(turn):
    got = pose.exponential(jnp.array(turn, jnp.float32))
    np.testing.assert_allclose(got, Rotation.from_rotvec(turn).as_matrix(), atol=2e-6)


def test_rows_of_the_jacobian_are_those_of_the_residual(chairs):
    """Against forward mode through a step, with distances below, at and beyond the clamp, and half-open intervals."""
    net = chairs.network
    samples = chairs.samples[0, :200].copy()
    samples[:, 3] *= 2
    rows = observations.pack(observations.of_samples(samples), 0.1, None, 0, 0)
    ends = [observations.LOW, observations.HIGH]
    rows[::5, observations.LOW] = -np.inf
    rows[:, ends] = rows[:, ends].clip(-9, 9)  # as good as no end, but the plain derivative of 0 · ∞ is nan
    turn = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
    here = Pose(*(jnp.asarray(x, jnp.float32) for x in (chairs.codes[3], turn, [0.1, 0.05, -0.1], 0.2)))

    @jax.jit
    def both(step):
        residual, jacobian, _ = pose.rows_of(net, here, 0.1)(rows)
        plain = jax.jacfwd(lambda step: pose.rows_of(net, pose.moved(here, step), 0.1)(rows)[0])(step)
        return residual, jacobian, plain

    with jax.default_matmul_precision("highest"):
        residual, jacobian, plain = both(jnp.zeros(23))
    off = np.abs(residual) > 0  # a kept interval has no slope
    assert 50 < off.sum() < 200
    np.testing.assert_allclose(jacobian[off], plain[off], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("turns", "count", "apart"), [("yaw", 12, 15), ("any", 300, 32)])
def test_rotations_leave_no_gap(turns, count, apart):
    tried = pose.rotations(turns, count)
    np.testing.assert_allclose(tried @ np.moveaxis(tried, 1, 2), np.broadcast_to(np.eye(3), tried.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(tried), 1)
    if turns == "yaw":
        np.testing.assert_allclose(tried[:, 1], np.broadcast_to([0, 1, 0], (count, 3)), atol=1e-12)
        wanted = Rotation.from_euler("y", np.linspace(0, 360, 50)[:, None], degrees=True).as_matrix()
    else:
        wanted = Rotation.random(200, random_state=0).as_matrix()
    assert max(min(angle(a, b) for b in tried) for a in wanted[:: max(1, len(wanted) // 20)]) <= apart


@given(scale=st.floats(1e-3, 1e3), shift=st.tuples(*[st.floats(-100, 100)] * 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_ball_holds_a_scan_wherever_it_is(scale, shift, seed):
    rng = np.random.default_rng(seed)
    points = scale * rng.normal(size=(50, 3)) + scale * np.array(shift)
    length = np.linalg.norm(pose._ball(points, 0.9)(points), axis=1)
    np.testing.assert_allclose(length.max(), 0.9, rtol=1e-9)
    assert np.sum(length > 0.9 * 0.9) >= 2  # touched on more than one side


def test_scans_in_unknown_position_are_found_again(chairs):
    """Training chairs at any azimuth and tilted, at half and double size."""
    rng = np.random.default_rng(1)
    ground_truth, points, normals = [], [], []
    for i, size in enumerate((0.5, 2.0)):
        turn = Rotation.from_euler("xzy", [*rng.uniform(-20, 20, 2), rng.uniform(0, 360)], degrees=True).as_matrix()
        transform = Similarity(size, turn, rng.normal(size=3))  # normalized frame → scan
        ground_truth.append(transform.inverse())
        points.append(transform(chairs.points[i]))
        normals.append(chairs.normals[i] @ turn.T)
    newton = GaussNewton(points=(1024, 4096), huber_epsilon=(0.03, 0.003), phases=(8, 8), steps=3)
    config = PoseConfig(tries=12, keep=(3, 1), fitting=FitConfig(prior=1e-3, gauss_newton=newton))
    given = ObservedArrays.checked(points=points, normals=normals)
    found = fit_pose(chairs.network, given, config=config, prior=chairs.prior, starts=chairs.codes)
    assert found.codes.values.shape == (2, 16)
    for got, wanted in zip(found.similarities, ground_truth, strict=True):
        assert angle(got.rotation, wanted.rotation) < 5
        assert abs(np.log(got.scale / wanted.scale)) < 0.1
        np.testing.assert_allclose(np.linalg.det(got.rotation), 1)
    ends = found.similarities[0](points[0])
    np.testing.assert_allclose(ends, chairs.points[0], atol=0.1)
    assert (found.codes.inlier_fraction > 0.5).all() and (found.codes.residual < 0.02).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no shape"),
        ([np.zeros((5, 2))], "shape"),
        ([np.full((5, 3), np.inf)], "finite"),
        ([np.ones((5, 3))], "no size"),
    ],
)
def test_what_is_no_scan_is_refused(chairs, points, message):
    with pytest.raises(InputError, match=message):
        Model("deepsdf", chairs.network, "sphere").fit_pose(points)


@pytest.mark.parametrize(
    "settings_",
    [
        {"rotations": "sideways"},
        {"tries": 2},
        {"keep": (4, 2, 2)},
        {"keep": (4, 1)},
        {"fitting": FitConfig(method="adam")},
    ],
)
def test_impossible_settings_are_refused(settings_):
    with pytest.raises(ConfigError):
        PoseConfig(**settings_)


AWAY = np.array([5e5, 120, 4.2e6])  # surveyors' coordinates, where float32 has steps of 0.5
FEW = PoseConfig(
    tries=2,
    keep=(1,),
    fitting=FitConfig(prior=1e-3, gauss_newton=GaussNewton(points=(1024,), huber_epsilon=(0.01,), phases=(4,))),
)


def test_scans_far_from_the_origin_are_found_as_at_the_origin(chairs):
    points, normals = chairs.points[:1].astype(np.float64), chairs.normals[:1]
    free_space = points + 0.1 * normals
    here, there = (
        fit_pose(
            chairs.network,
            ObservedArrays.checked(points=points + offset, normals=normals, free_space=free_space + offset),
            config=FEW,
            prior=chairs.prior,
            starts=chairs.codes,
        )
        for offset in (0, AWAY)
    )
    np.testing.assert_allclose(there.codes.values, here.codes.values, atol=0.02)  # 1e-9 of place, through few steps
    np.testing.assert_allclose(there.codes.residual, here.codes.residual, rtol=0.02)
    (one,), (other,) = here.similarities, there.similarities
    np.testing.assert_allclose(other(points[0] + AWAY), one(points[0]), atol=5e-3)


def test_free_space_is_of_as_many_scans_as_points(chairs):
    with pytest.raises(InputError, match="2 shapes"):
        ObservedArrays.checked(points=chairs.points[:1], free_space=list(chairs.points[:2]))


def test_what_the_prior_costs_and_how_it_curves(chairs):
    """Half its weight for a shift by the spread; the Hessian is the value's, up to tiny terms in rotations."""
    config, mean = PoseConfig(spread=0.25), jnp.asarray(chairs.prior.mean)
    gaussian = methods.penalty(chairs.prior, config.fitting)
    at = Pose(mean, jnp.eye(3), jnp.array([0.25, 0, 0]), jnp.zeros(()))
    cost, *_ = pose._penalty(at, gaussian, config.stiffness)
    assert cost == pytest.approx(config.fitting.prior / 2, rel=1e-5)
    here = Pose(mean + 0.1, jnp.eye(3), jnp.array([0.1, -0.2, 0.3]), jnp.array(0.2))
    _, gradient, hessian = pose._penalty(here, gaussian, config.stiffness)

    def value(step):
        return pose._penalty(pose.moved(here, step), gaussian, config.stiffness)[0]

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(gradient, jax.grad(value)(jnp.zeros(23)), rtol=1e-4, atol=1e-6)
        wanted = jax.hessian(value)(jnp.zeros(23))
    np.testing.assert_allclose(hessian, wanted, rtol=1e-4, atol=2e-6)
    assert np.linalg.eigvalsh(hessian).min() > 0


def test_scans_are_found_where_float64_is_the_default(chairs):
    known = {"config": FEW, "prior": chairs.prior, "starts": chairs.codes}
    given = ObservedArrays.checked(points=chairs.points[:1], normals=chairs.normals[:1])
    plain = fit_pose(chairs.network, given, **known)
    with jax.enable_x64(True):
        found = fit_pose(chairs.network, given, **known)
    np.testing.assert_allclose(found.codes.residual, plain.codes.residual, rtol=0.05)


def test_few_scans_of_many_tries_are_in_a_batch(chairs, monkeypatch):
    known = {"config": FEW, "prior": chairs.prior, "starts": chairs.codes}
    given = ObservedArrays.checked(points=chairs.points[:3], normals=chairs.normals[:3])
    solve, sizes, found = pose._solve, [], []
    monkeypatch.setattr(
        pose, "_solve", lambda network, packed, *more: sizes.append(len(packed)) or solve(network, packed, *more)
    )
    for tries in (2048, 2):
        monkeypatch.setattr(pose, "TRIES", tries)
        found.append(fit_pose(chairs.network, given, **known).codes.values)
    assert sizes == [3, 1, 1, 1]
    np.testing.assert_allclose(*found, atol=1e-5)
