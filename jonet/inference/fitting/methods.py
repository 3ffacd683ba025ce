"""The methods of fitting codes, and the quality of a fit.

Each consists of a pure function of one shape (`_newton`, `_adam`, …) and of a function that maps it over a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.inference.fitting import first_order, gauss_newton
from jonet.inference.fitting.gauss_newton import NewtonSolver, Objective, Problem, huber
from jonet.inference.fitting.jacobian import along_code
from jonet.inference.fitting.observations import COLUMNS, MEASURED, WEIGHT, blocks, grouped, outside, whole_blocks
from jonet.inference.fitting.prior import Prior
from jonet.inference.fitting.sharded_batch import ShardedBatch
from jonet.inference.fitting.solver import advance
from jonet.networks.bound import BoundNetwork
from jonet.networks.layers import BLOCK
from jonet.settings.fitting import FitConfig

INLIER = 0.01  # error below which an observation is an inlier, in the normalized frame


def sharded(packed: Sequence[np.ndarray], **more) -> ShardedBatch:
    """The packed rows of B shapes, and further arrays [B, …], split over the devices."""
    batch = ShardedBatch(len(packed))
    rows, used = blocks(packed, batch.place, batch.places)
    batch.data = parallel.split({"rows": rows, "blocks": used}) | batch.scatter(more)
    return batch


# Starts: the best of the training codes


def nearest(
    network: BoundNetwork, observed: ShardedBatch, starts: np.ndarray, count: int, probe: int, clamp: float
) -> np.ndarray:
    """The `count` starts of [S, L] with the least error on the first `probe` rows of each shape, [B, count, L].

    Rows are shuffled when they are packed, so the first ones are a random sample.
    """
    problems = observed.scatter(np.zeros((observed.size, count, starts.shape[1]), np.float32))
    return observed.gather(
        observed.map(_nearest, network, (min(probe, BLOCK), count), problems, starts, np.float32(clamp))
    )


def _nearest(network, settings, _, data, starts, clamp):
    probe, count = settings
    rows = data["rows"][0, :probe]
    fields = network.fold_all(starts)

    def error(per_shape):
        values = fields.architecture(fields.shared, per_shape, rows[:, :3])
        return rows[:, WEIGHT] @ clamped(values, rows, clamp)

    # in batches of about four blocks of points, as many as fit a CPU's cache
    errors = jax.lax.map(error, fields.per_shape, batch_size=min(len(starts), 4 * BLOCK // probe))
    return starts[jax.lax.top_k(-errors, count)[1]]


# Gauss-Newton


def levels(
    network: BoundNetwork,
    work,
    arguments,
    packed,
    at,
    size: int,
    unknowns: int,
    keep,
    settings,
    whole: ShardedBatch | None = None,
):
    """Gauss-Newton through all levels, from k tries for each of `size` shapes to the best try.

    A level has a number of observations, an ε of Huber's loss and a limit of phases (`settings.fitting.GaussNewton`).
    The first levels use few observations and a smooth loss: they are cheap and have fewer local minima.  After each
    level only the best tries of a shape continue.

    work: one phase of one problem.  packed: the rows of every try; tries of a shape are consecutive.  at: the initial
    unknowns of the tries, [size · k, …].  keep: how many tries of a shape continue after each level; the last is 1.
    whole: the shapes' rows as a batch on the devices, if they are the same for all tries of a shape.
    Returns the unknowns [size, …], which converged [size], and the index of the try they come from [size].
    """
    damping, tries = np.full(len(packed), settings.damping, np.float32), np.arange(len(packed))
    for points, huber_epsilon, limit, kept in zip(
        settings.points, settings.huber_epsilon, settings.phases, keep, strict=True
    ):
        rows = whole_blocks(points)
        if whole is not None and len(tries) % whole.size == 0:
            level = whole if len(tries) == whole.size else whole.tried(len(tries) // whole.size)
        elif len(tries) == size:
            # One try is left: all remaining levels use one batch with all rows, so that they share one program.
            level = whole = sharded(packed)
        else:  # several tries: only the rows of this level are sent to the devices
            level = sharded([shape[:rows] for shape in packed])
        more = arguments, np.int32(rows // BLOCK), np.float32(huber_epsilon), np.int32(settings.steps)

        def phase_of(state, active, level=level, more=more):
            state = level.map(work, network, None, state, *more, active=active)
            return state, level.gather(state.loss)

        # The loss differs between levels, so a level starts with fresh derivatives, but with the damping so far.
        solver = NewtonSolver(unknowns, damping, settings.tolerance)
        state = _initial(unknowns)(*level.scatter((at, damping)))
        state, converged = gauss_newton.phases(phase_of, solver, state, len(tries), limit)
        at, losses, damping = level.gather((state.at, state.loss, state.damping))
        order = losses.reshape(size, -1).argsort(axis=1)[:, :kept]  # the best tries of each shape
        best = (np.arange(size)[:, None] * (len(tries) // size) + order).ravel()
        at, damping, converged, tries = jax.tree.map(lambda x, best=best: x[best], (at, damping, converged, tries))
        packed = [packed[i] for i in best]
    return at, converged, tries


@functools.lru_cache(maxsize=16)
def _initial(unknowns: int) -> Callable:
    """The mapped program of `NewtonSolver.init`: unknowns [S, …], damping [S] → states.  The Hessians of a batch, of
    256 numbers in a code 64 MB, are made where they are used."""

    def initial(at, damping):
        return jax.vmap(lambda at, damping: NewtonSolver(unknowns, damping).init(at))(at, damping)

    return parallel.pmap(initial, (parallel.SPLIT, parallel.SPLIT), parallel.SPLIT)


def newton(
    network: BoundNetwork, observed: ShardedBatch, packed, starts, penalty, settings
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and which converged [B]; of starts [B, k, L], the best one after the first level continues."""
    size, tries, length = starts.shape
    packed = [rows for rows in packed for _ in range(tries)]
    keep = (1,) * len(settings.points)
    codes, converged, _ = levels(
        network, _newton, penalty, packed, starts.reshape(-1, length), size, length, keep, settings, observed
    )
    return codes, converged


def _newton(network, _, state, data, gaussian, limit, huber_epsilon, steps):
    def linearize(code):
        along = along_code(network, code)

        def rows(block):
            values, _, jacobian = along(block[:, :3])
            return outside(values, block), jacobian, block[:, WEIGHT]

        return rows

    objective = Objective(linearize, lambda code: quadratic(code, *gaussian), jnp.add)
    return phase(objective, state, data, limit, huber_epsilon, steps)


def phase(objective: Objective, state, data, limit, huber_epsilon, steps):
    """`steps` steps on the first `limit` blocks of a shape."""
    chex.assert_shape(data["rows"], (None, BLOCK, COLUMNS))
    blocks = jnp.minimum(data["blocks"], limit)
    solver = NewtonSolver(len(state.gradient), state.damping)
    return advance(solver, state, Problem(objective, lambda k: data["rows"][k], blocks, huber_epsilon), steps)


def penalty(prior: Prior, config: FitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean [L] and matrix [L, L] of the quadratic penalty on codes, weight · ½ (z - μ)ᵀ Σ⁻¹ (z - μ) / L.

    With `prior_sigma` it is the paper's, ‖z‖²/σ² divided by the number of observations.
    """
    length, weight = len(prior.mean), config.prior
    if config.code_weight:
        return np.zeros(length, np.float32), 2 * np.float32(config.code_weight) * np.eye(length, dtype=np.float32)
    return prior.mean, (weight / length * prior.precision()).astype(np.float32)


def quadratic(code, mean, matrix):
    """½ (z - μ)ᵀ P (z - μ), its gradient and its Hessian."""
    gradient = matrix @ (code - mean)
    return (code - mean) @ gradient / 2, gradient, matrix


# First order


def adam(
    network: BoundNetwork, packed, starts, index, seed: int, clamp: float, settings, optimizer=None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and whether their loss has stopped falling [B]; starts [B, L] are used for the setting "best".

    optimizer: an optax.GradientTransformation in place of the published Adam; the same object compiles once.
    """
    sorted_, counts = zip(*map(grouped, packed), strict=True)
    by_group = sharded(sorted_, counts=np.stack(counts), index=np.asarray(index, np.int32))
    problems = by_group.scatter((starts, np.zeros(by_group.size, bool)))
    more = np.int32(seed), np.float32(clamp)
    return by_group.gather(by_group.map(_adam, network, (settings, optimizer), problems, *more))


def _adam(network, settings, problem, data, seed, clamp):
    code, _ = problem
    settings, optimizer = settings
    key = parallel.fold_in(jax.random.key(seed), "adam", data["index"])
    rows = data["rows"].reshape(-1, COLUMNS)
    if settings.start == "noise":
        code = first_order.NOISE * jax.random.normal(parallel.fold_in(key, "code"), code.shape)

    def draw(step):
        return rows[first_order.draw(key, step, data["counts"], settings)]

    def loss(code, some):
        return clamped(network.fold(code).at(some[:, :3]), some, clamp).mean()

    path, losses, converged = first_order.adam(loss, code, draw, settings, optimizer)
    return path[-1], converged


def lbfgs(network: BoundNetwork, observed: ShardedBatch, starts, gaussian, settings) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and whether their loss has stopped falling [B], from starts [B, L]."""
    problems = observed.scatter((starts, np.zeros(observed.size, bool)))
    return observed.gather(observed.map(_lbfgs, network, settings, problems, gaussian))


def _lbfgs(network, settings, problem, data, gaussian):
    rows = data["rows"].reshape(-1, COLUMNS)

    def loss(code):
        errors = huber(outside(network.fold(code).at(rows[:, :3]), rows), settings.huber_epsilon)
        return rows[:, WEIGHT] @ errors / rows[:, WEIGHT].sum() + quadratic(code, *gaussian)[0]

    path, _, converged = first_order.lbfgs(loss, problem[0], settings)
    return path[-1], converged


# Fit quality


def losses(network: BoundNetwork, observed: ShardedBatch, codes: np.ndarray, gaussian, clamp: float) -> np.ndarray:
    """The loss of codes [B, L] at the observations of each shape: mean clamped error and penalty on codes, [B]."""
    problems = observed.scatter((codes, np.zeros(observed.size, np.float32)))
    return observed.gather(observed.map(_losses, network, None, problems, np.float32(clamp), gaussian))[1]


def _losses(network, _, problem, data, clamp, gaussian):
    code, _ = problem
    field = network.fold(code)

    def add(k, sums):
        rows = data["rows"][k]
        errors = clamped(field.at(rows[:, :3]), rows, clamp)
        return jax.tree.map(jnp.add, sums, (rows[:, WEIGHT] @ errors, rows[:, WEIGHT].sum()))

    error, count = jax.lax.fori_loop(0, data["blocks"], add, (jnp.zeros((), code.dtype),) * 2)
    return code, error / count + quadratic(code, *gaussian)[0]


def fit_quality(
    network: BoundNetwork, observed: ShardedBatch, codes: np.ndarray, clamp: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean clamped error [B] and inlier fraction [B] of the measured rows."""
    zeros = np.zeros(observed.size, np.float32)  # places of the results
    problems = observed.scatter((codes, zeros, zeros))
    return observed.gather(observed.map(_fit_quality, network, None, problems, np.float32(clamp)))[1:]


def _fit_quality(network, _, problem, data, clamp):
    code, *_ = problem
    field = network.fold(code)

    def add(k, sums):
        rows = data["rows"][k]
        errors = clamped(field.at(rows[:, :3]), rows, clamp)
        new = rows[:, MEASURED] @ errors, rows[:, MEASURED] @ (errors < INLIER), rows[:, MEASURED].sum()
        return jax.tree.map(jnp.add, sums, new)

    error, inlier_fraction, count = jax.lax.fori_loop(0, data["blocks"], add, (jnp.zeros((), code.dtype),) * 3)
    return code, error / count, inlier_fraction / count


def clamped(values, rows, clamp):
    """DeepSDF's clamped L1 error (eq. 4), for intervals: of a single distance s, |clip(values, ±δ) - clip(s, ±δ)|.

    values [n], observations as rows [n, COLUMNS] → [n].
    """
    chex.assert_shape(rows, (*values.shape, COLUMNS))
    return jnp.abs(outside(values.clip(-clamp, clamp), rows))
