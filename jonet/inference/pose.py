"""Code and pose together, for scans in unknown position: Gauss-Newton as for codes, with increments on the Lie algebra.

The field of code z lives in the normalised frame, a scan's points x in their own.  Sought are z and the similarity
x' = s (R x + t).  With the distance in the scan's measure, f(x') / s, the rows of the Jacobian for a step
(dz, ω, dt, d ln s) with R ← exp([ω]×) R are

    ∂f/∂z / s,    R x × ∇f,    ∇f,    (∇f · x' - f) / s.

Dividing by s keeps a scan from shrinking into one place of the surface, where every error is small.  Rotations have
many poor minima: a set of turns is tried at once, and fewer of them go on after each level.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.data.meshes import Similarity
from jonet.errors import ConfigError, InputError
from jonet.inference import codes as methods
from jonet.inference.gauss_newton import GaussNewton, Objective
from jonet.inference.jacobian import along_code
from jonet.inference.jobs import Net
from jonet.inference.latents import Fit, FitConfig, joined, known, pieces
from jonet.inference.observations import HIGH, LOW, WEIGHT, clouds, observe, pack, whole_blocks
from jonet.inference.prior import Prior

TURNING = 1e-6  # curvature of turns, which cost nothing, so that steps are defined where a scan does not tell them


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """Which turns are tried, and how their number shrinks."""

    turns: Literal["upright", "any"] = "upright"  # about the vertical, from where tilts of some 30° are found; or all
    tries: int = 16  # turns at the start ("any" wants some hundred)
    keep: tuple[int, ...] = (4, 1, 1)  # how many of them go on after each level of Gauss-Newton
    radius: float = 1 / 1.03  # of the ball that a scan is put into first; 0 if it has about its place and size already
    spread: float = 0.5  # how far, about, shift and log-scale lie from where that puts them
    fitting: FitConfig = FitConfig(  # of the code; its method is Gauss-Newton, its starts the tries
        prior=1e-3, gauss_newton=GaussNewton(smooth=(0.03, 0.005, 0.001), phases=(8, 5, 12), steps=3)
    )

    def __post_init__(self):
        levels = len(self.fitting.gauss_newton.points)
        if self.fitting.method != "gauss_newton":
            raise ConfigError(f"method is {self.fitting.method!r}, but code and pose are found by 'gauss_newton' alone")
        if len(self.keep) != levels or self.keep[-1] != 1 or list(self.keep) != sorted(self.keep, reverse=True):
            raise ConfigError(f"keep is {self.keep}, but must be {levels} numbers that do not rise and end with 1")
        if self.turns not in ("upright", "any") or self.tries < self.keep[0]:
            raise ConfigError(f"turns must be 'upright' or 'any', and tries at least {self.keep[0]}")
        if not (self.radius >= 0 and self.spread > 0):
            raise ConfigError(f"radius is {self.radius} and spread {self.spread}, but must be at least and above 0")

    @property
    def stiffness(self) -> float:
        """Of the penalty on shift and log-scale: one as large as `spread` costs half the weight of the prior."""
        return self.fitting.prior / self.spread**2


class PoseFit(NamedTuple):
    """Codes of B scans, and each scan's way from its own units to the normalised frame."""

    codes: Fit
    similarities: tuple[Similarity, ...]


class Pose(NamedTuple):
    """The unknowns of one scan, or of many with a leading axis."""

    code: Any  # z [L]
    rotation: Any  # R [3, 3]
    shift: Any  # t [3]
    log_scale: Any  # ln s []


def fit_pose(
    network,
    shared,
    statistics,
    points,
    *,
    normals=None,
    free=None,
    box=((-1, -1, -1), (1, 1, 1)),
    config: PoseConfig = PoseConfig(),
    prior: Prior | None = None,
    starts=None,
    index=None,
) -> PoseFit:
    """Codes and poses of B scans in unknown position, turn and size.

    points: [B, N, 3] or a list of [Nᵢ, 3] on surfaces in any units, with outward normals alike or None.  free: as
    points, places known to be outside; None if the points are whole surfaces.  The rest as of `latents.fit`; residual
    and share explained are in the normalised frame.
    """
    fitting = config.fitting
    prior, starts = known(network, shared, statistics, prior, starts, fitting)
    points = clouds(points, "points", 3, dtype=np.float64)
    balls = [_ball(cloud, config.radius) if config.radius else Similarity() for cloud in points]
    points = [ball(cloud) for ball, cloud in zip(balls, points, strict=True)]
    if free is not None:
        free = clouds(free, "free", 3, empty=True, dtype=np.float64)
        if len(free) != len(points):
            raise InputError(f"free are of {len(free)} shapes, but points of {len(points)}")
        free = [ball(cloud) for ball, cloud in zip(balls, free, strict=True)]
    rows, index = observe(None, points, normals, free, index, offset=fitting.offset, box=box, seed=fitting.seed)
    limit = whole_blocks(max(fitting.gauss_newton.points))
    packed = [pack(shape, fitting.clamp, limit, fitting.seed, i) for shape, i in zip(rows, index.tolist(), strict=True)]
    results, ways = [], []
    with jax.default_matmul_precision("highest"):
        net = Net(network, *parallel.replicate((shared, statistics)))
        for some in pieces(len(packed)):
            *result, found = _solve(net, packed[some], prior, starts, config)
            results.append(result)
            ways += [way @ ball for way, ball in zip(found, balls[some], strict=True)]
    return PoseFit(joined(results, prior), tuple(ways))


def _solve(net: Net, packed, prior: Prior, starts, config: PoseConfig):
    """Codes, residuals, shares explained, whether converged, and the ways from the balls to the normalised frame."""
    fitting, size, length = config.fitting, len(packed), len(prior.mean)
    turns = rotations(config.turns, config.tries)
    turned = [_moved(rows, Similarity(rotation=turn)) for rows in packed for turn in turns]
    first = methods.job([rows[: fitting.probe] for rows in turned])
    best = methods.nearest(net, first, starts, 1, fitting.probe, fitting.clamp)[:, 0]
    count = len(turned)
    still = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3))
    at = Pose(best, still, np.zeros((count, 3), np.float32), np.zeros(count, np.float32))
    arguments = methods.penalty(prior, fitting.prior), np.float32(config.stiffness), np.float32(fitting.clamp)
    at, converged, tries = methods.levels(
        net, _newton, arguments, turned, at, size, length + 7, config.keep, fitting.gauss_newton
    )
    ways = [
        Similarity(np.exp(log_scale), _orthogonal(rotation @ turns[i % len(turns)]), shift)
        for rotation, shift, log_scale, i in zip(at.rotation, at.shift, at.log_scale, tries, strict=True)
    ]
    settled = methods.job([_moved(rows, way) for rows, way in zip(packed, ways, strict=True)])
    return at.code, *methods.judge(net, settled, at.code, fitting.clamp), converged, ways


def _newton(net, _, state, data, arguments, limit, smooth, steps):
    gaussian, stiffness, clamp = arguments
    penalty = functools.partial(_penalty, gaussian=gaussian, stiffness=stiffness)
    objective = Objective(lambda pose: rows_of(net, pose, clamp), penalty, moved)
    return methods.phase(objective, state, data, limit, smooth, steps)


def rows_of(net: Net, pose: Pose, clamp):
    """A function: packed rows [n, …] → residuals [n] in the scan's measure, Jacobian [n, L + 7], weights [n]."""
    along, scale = along_code(net, pose.code), jnp.exp(pose.log_scale)

    def rows(block):
        turned = block[:, :3] @ pose.rotation.T
        points = scale * (turned + pose.shift)
        values, gradients, jacobian = along(points)
        low, high = scale * block[:, LOW], scale * block[:, HIGH]
        nearest = values.clip(jnp.minimum(low, clamp), jnp.maximum(high, -clamp))
        end = (jnp.abs(nearest) < clamp) | (nearest == low) | (nearest == high)
        grows = jnp.where(end, nearest, 0)  # a distance grows with the scale, the clamp does not
        stretched = jnp.sum(gradients * points, axis=1) - values + nearest - grows
        columns = jacobian / scale, jnp.cross(turned, gradients), gradients, stretched[:, None] / scale
        return (values - nearest) / scale, jnp.concatenate(columns, axis=1), block[:, WEIGHT]

    return rows


def moved(pose: Pose, step) -> Pose:
    """The pose after a step (dz, ω, dt, d ln s), [L + 7]."""
    code, turn, shift, log_scale = jnp.split(step, len(step) - np.array([7, 4, 1]))
    return Pose(
        pose.code + code,
        exponential(turn) @ pose.rotation,
        pose.shift + shift,
        pose.log_scale + log_scale[0],
    )


def exponential(turn):
    """The rotation exp([ω]×) [3, 3] about ω [3] by ‖ω‖ (Rodrigues); smooth at 0."""
    x, y, z = turn
    cross = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    square = turn @ turn
    angle = jnp.sqrt(jnp.maximum(square, 1e-12))
    sine = jnp.where(square > 1e-12, jnp.sin(angle) / angle, 1.0)
    versine = jnp.where(square > 1e-12, 2 * jnp.square(jnp.sin(angle / 2) / angle), 0.5)
    return jnp.eye(3, dtype=turn.dtype) + sine * cross + versine * cross @ cross


def _penalty(pose: Pose, gaussian, stiffness):
    """That of the code, and stiffness · (‖t‖² + (ln s)²) / 2: value, gradient [L + 7], Hessian."""
    value, gradient, matrix = methods.quadratic(pose.code, *gaussian)
    loose = jnp.concatenate([jnp.zeros_like(pose.shift), pose.shift, pose.log_scale[None]])
    curvature = jnp.full(7, stiffness).at[:3].set(TURNING)
    return (
        value + stiffness * (loose @ loose) / 2,
        jnp.concatenate([gradient, stiffness * loose]),
        jax.scipy.linalg.block_diag(matrix, jnp.diag(curvature)),
    )


def rotations(turns: str, count: int) -> np.ndarray:
    """[count, 3, 3] rotations, evenly: about the vertical (+y), or over all (super-Fibonacci spiral; Alexa 2022)."""
    number = np.arange(count)
    if turns == "upright":
        angle = 2 * np.pi * number / count
        sine, cosine, zero, one = np.sin(angle), np.cos(angle), np.zeros(count), np.ones(count)
        return np.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], -1).reshape(-1, 3, 3)
    share = (number + 0.5) / count
    first, second = 2 * np.pi * (number + 0.5) / np.sqrt(2), 2 * np.pi * (number + 0.5) / 1.533751168755204288118041
    one, two = np.sqrt(share), np.sqrt(1 - share)
    x, y, z, w = one * np.sin(first), one * np.cos(first), two * np.sin(second), two * np.cos(second)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _ball(points: np.ndarray, radius: float) -> Similarity:
    """The way into a ball about 0 that holds the points: nearly their smallest (Badoiu & Clarkson 2003)."""
    centre = points.mean(axis=0)
    for step in range(1, 100):
        far = points[np.argmax(np.sum((points - centre) ** 2, axis=1))]
        centre = centre + (far - centre) / (step + 1)
    size = np.sqrt(np.max(np.sum((points - centre) ** 2, axis=1)))
    if size == 0:
        raise InputError("all points of a scan are one place, which has no size")
    return Similarity(radius / size, np.eye(3), -centre)


def _moved(rows: np.ndarray, way: Similarity) -> np.ndarray:
    """Packed rows taken along a similarity; distances grow with its scale."""
    result = rows.copy()
    result[:, :3] = way(rows[:, :3])
    result[:, [LOW, HIGH]] *= way.scale
    return result


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The nearest rotation, free of what rounding has left."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64))
    return left @ right
