"""Joint fitting of code and pose, for scans in an unknown frame: Gauss-Newton with increments on the Lie algebra.

The field f of code z is defined in the normalized frame, the points x of a scan in the scan's frame.  Unknown are z and
the similarity x' = s (R x + t).  The residual is the distance in the units of the scan, f(x') / s.  Its Jacobian for a
step (dz, ω, dt, d ln s), with R ← exp([ω]×) R, has the rows

    ∂f/∂z / s,    R x × ∇f,    ∇f,    (∇f · x' - f) / s.

Dividing by s matters: else a scan could shrink onto one point of the surface, where all errors are small.
The rotation has many local minima, so several initial rotations are tried at once, and fewer continue after each level.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jonet import device_memory
from jonet.errors import InputError
from jonet.geometry.mesh import Similarity
from jonet.inference.fitting import methods
from jonet.inference.fitting.gauss_newton import Objective
from jonet.inference.fitting.jacobian import along_code
from jonet.inference.fitting.latents import FEWER, TOGETHER, Fit, joined, prior_and_starts
from jonet.inference.fitting.observations import (
    HIGH,
    LOW,
    WEIGHT,
    ObservedArrays,
    numbers,
    observe,
    pack_all,
    whole_blocks,
)
from jonet.inference.fitting.prior import Prior
from jonet.networks.bound import BoundNetwork
from jonet.settings.fitting import PoseConfig

TRIES = 2048  # initial rotations of all scans per device in one batch
TURNING = 1e-6  # Hessian of the rotation's (zero) penalty, so that steps are defined for rotationally symmetric scans


class PoseFit(NamedTuple):
    """Codes of B scans, and the similarity of each scan from its frame to the normalized frame."""

    codes: Fit
    similarities: tuple[Similarity, ...]


class Pose(NamedTuple):
    """The unknowns of one scan, or of many with a leading axis."""

    code: Any  # z [L]
    rotation: Any  # R [3, 3]
    shift: Any  # t [3]
    log_scale: Any  # ln s []


@device_memory.reporting("fitting codes and poses", f"{FEWER}, or tries")
def fit_pose(
    network: BoundNetwork,
    given: ObservedArrays,
    index=None,
    *,
    config: PoseConfig = PoseConfig(),
    prior: Prior | None = None,
    starts=None,
) -> PoseFit:
    """Codes and poses of B scans of unknown position, rotation and size.

    given: points [Nᵢ, 3] in any units, with or without normals and free space.  The other arguments and errors as in
    `latents.fit`; residual and inlier fraction are in the normalized frame.
    """
    fitting = config.fitting
    prior, starts = prior_and_starts(network, prior, starts, fitting)
    balls = [_ball(cloud.astype(np.float64), config.radius) if config.radius else Similarity() for cloud in given.rows]
    index = numbers(index, len(balls))
    limit = whole_blocks(max(fitting.gauss_newton.points))
    rows = observe(given.transformed(balls), fitting, index)
    packed = pack_all(rows, fitting, limit, index)
    network = network.replicated
    results = TOGETHER.map(
        lambda some: _solve(network, packed[some], prior, starts, config), len(packed), most=TRIES // config.tries
    )
    found = [transform for *_, transforms in results for transform in transforms]
    transforms = [transform @ ball for transform, ball in zip(found, balls, strict=True)]
    return PoseFit(joined([result for *result, _ in results], prior), tuple(transforms))


def _solve(network: BoundNetwork, packed, prior: Prior, starts, config: PoseConfig):
    """Codes, residuals, inlier fractions, whether converged, and transforms from the balls to the normalized frame."""
    fitting, size, length = config.fitting, len(packed), len(prior.mean)
    tried = rotations(config.rotations, config.tries)
    # The rows of each try are rotated on the host, so that every try starts from the identity; its rotation is
    # composed with the result below.
    rotated = [_moved(rows, Similarity(rotation=rotation)) for rows in packed for rotation in tried]
    first = methods.sharded([rows[: fitting.probe] for rows in rotated])
    best = methods.nearest(network, first, starts, 1, fitting.probe, fitting.clamp)[:, 0]
    count = len(rotated)
    identity = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3))
    at = Pose(best, identity, np.zeros((count, 3), np.float32), np.zeros(count, np.float32))
    arguments = methods.penalty(prior, fitting), np.float32(config.stiffness), np.float32(fitting.clamp)
    at, converged, tries = methods.levels(
        network, _newton, arguments, rotated, at, size, length + 7, config.keep, fitting.gauss_newton
    )
    transforms = [
        Similarity(np.exp(log_scale), _orthogonal(rotation @ tried[i % len(tried)]), shift)
        for rotation, shift, log_scale, i in zip(at.rotation, at.shift, at.log_scale, tries, strict=True)
    ]
    placed = methods.sharded([_moved(rows, transform) for rows, transform in zip(packed, transforms, strict=True)])
    return at.code, *methods.fit_quality(network, placed, at.code, fitting.clamp), converged, transforms


def _newton(network, _, state, data, arguments, limit, huber_epsilon, steps):
    gaussian, stiffness, clamp = arguments
    penalty = functools.partial(_penalty, gaussian=gaussian, stiffness=stiffness)
    objective = Objective(lambda pose: rows_of(network, pose, clamp), penalty, moved)
    return methods.phase(objective, state, data, limit, huber_epsilon, steps)


def rows_of(network: BoundNetwork, pose: Pose, clamp):
    """A function of packed rows [n, …] → residuals [n] in units of the scan, Jacobian [n, L + 7], weights [n]."""
    chex.assert_shape([pose.rotation, pose.shift, pose.log_scale], [(3, 3), (3,), ()])
    along, scale = along_code(network, pose.code), jnp.exp(pose.log_scale)

    def rows(block):
        rotated = block[:, :3] @ pose.rotation.T
        points = scale * (rotated + pose.shift)
        values, gradients, jacobian = along(points)
        # The residual is (f - nearest) / s, where nearest is the point of the interval next to f.  The intervals are
        # distances of the scan: in the normalized frame they scale by s, and only there the clamp applies.
        low, high = scale * block[:, LOW], scale * block[:, HIGH]
        nearest = values.clip(jnp.minimum(low, clamp), jnp.maximum(high, -clamp))
        # d nearest / d ln s is nearest itself if it is an end of the interval, and 0 if it is the clamp
        end = (jnp.abs(nearest) < clamp) | (nearest == low) | (nearest == high)
        by_scale = jnp.where(end, nearest, 0)
        along_scale = jnp.sum(gradients * points, axis=1) - values + nearest - by_scale
        columns = jacobian / scale, jnp.cross(rotated, gradients), gradients, along_scale[:, None] / scale
        return (values - nearest) / scale, jnp.concatenate(columns, axis=1), block[:, WEIGHT]

    return rows


def moved(pose: Pose, step) -> Pose:
    """The pose after a step (dz, ω, dt, d ln s) [L + 7]."""
    code, rotation_vector, shift, log_scale = jnp.split(step, len(step) - np.array([7, 4, 1]))
    return Pose(
        pose.code + code,
        exponential(rotation_vector) @ pose.rotation,
        pose.shift + shift,
        pose.log_scale + log_scale[0],
    )


def exponential(rotation_vector):
    """The rotation matrix exp([ω]×) [3, 3] about ω [3] by the angle ‖ω‖ (Rodrigues' formula); smooth at 0."""
    x, y, z = rotation_vector
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    square = rotation_vector @ rotation_vector
    # near 0 the limits of sin θ / θ and (1 - cos θ) / θ²; the maximum keeps the unused branch finite
    angle = jnp.sqrt(jnp.maximum(square, 1e-12))
    sine = jnp.where(square > 1e-12, jnp.sin(angle) / angle, 1.0)
    versine = jnp.where(square > 1e-12, 2 * jnp.square(jnp.sin(angle / 2) / angle), 0.5)
    return jnp.eye(3, dtype=rotation_vector.dtype) + sine * cross + versine * cross @ cross


def _penalty(pose: Pose, gaussian, stiffness):
    """The code's penalty plus stiffness · (‖t‖² + (ln s)²) / 2: value, gradient [L + 7], Hessian [L + 7, L + 7]."""
    value, gradient, matrix = methods.quadratic(pose.code, *gaussian)
    offset = jnp.concatenate([jnp.zeros_like(pose.shift), pose.shift, pose.log_scale[None]])  # rotations are free
    curvature = jnp.full(7, stiffness).at[:3].set(TURNING)
    return (
        value + stiffness * (offset @ offset) / 2,
        jnp.concatenate([gradient, stiffness * offset]),
        jax.scipy.linalg.block_diag(matrix, jnp.diag(curvature)),
    )


def rotations(kind: str, count: int) -> np.ndarray:
    """Evenly distributed rotations [count, 3, 3]: "yaw" about +y, or "any" (super-Fibonacci spiral; Alexa 2022)."""
    number = np.arange(count)
    if kind == "yaw":
        angle = 2 * np.pi * number / count
        sine, cosine, zero, one = np.sin(angle), np.cos(angle), np.zeros(count), np.ones(count)
        return np.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], -1).reshape(-1, 3, 3)
    # unit quaternions (x, y, z, w) on the spiral; √2 and 1.5337… are the published constants φ and ψ
    fraction = (number + 0.5) / count
    first, second = 2 * np.pi * (number + 0.5) / np.sqrt(2), 2 * np.pi * (number + 0.5) / 1.533751168755204288118041
    one, two = np.sqrt(fraction), np.sqrt(1 - fraction)
    x, y, z, w = one * np.sin(first), one * np.cos(first), two * np.sin(second), two * np.cos(second)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _ball(points: np.ndarray, radius: float) -> Similarity:
    """The similarity of the points' bounding ball to the ball of this radius about 0.

    The ball is nearly the smallest one (Badoiu & Clarkson 2003: the center moves towards the farthest point by ever
    smaller steps).
    """
    center = points.mean(axis=0)
    for step in range(1, 100):
        far = points[np.argmax(np.sum((points - center) ** 2, axis=1))]
        center = center + (far - center) / (step + 1)
    size = np.sqrt(np.max(np.sum((points - center) ** 2, axis=1)))
    if size == 0:
        raise InputError("all points of a scan coincide, so it has no size")
    return Similarity(radius / size, np.eye(3), -center)


def _moved(rows: np.ndarray, transform: Similarity) -> np.ndarray:
    """Packed rows under a similarity: points are transformed, and distances scaled."""
    result = rows.copy()
    result[:, :3] = transform(rows[:, :3])
    result[:, [LOW, HIGH]] *= transform.scale
    return result


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The nearest rotation matrix, which removes accumulated rounding."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64))
    return left @ right
