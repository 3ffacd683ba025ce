"""How codes are found, by method, and how they are judged: pure functions of one shape, and the calls that map them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.inference import first_order, gauss_newton
from jonet.inference.gauss_newton import Objective, huber
from jonet.inference.jacobian import along_code
from jonet.inference.jobs import Job, Net
from jonet.inference.observations import COLUMNS, GIVEN, WEIGHT, blocks, grouped, outside, whole_blocks
from jonet.inference.prior import Prior
from jonet.networks.field import fold
from jonet.networks.layers import BLOCK

EXPLAINED = 0.01  # error below which an observation counts as explained, in the normalised frame


def job(packed: Sequence[np.ndarray], **more) -> Job:
    """The packed rows of B shapes, and more of each [B, …], dealt over the devices."""
    data, used = blocks(packed)
    return Job({"rows": data, "blocks": used, **more}, len(packed))


# The best of the training codes


def nearest(net: Net, observed: Job, starts: np.ndarray, count: int, probe: int, clamp: float) -> np.ndarray:
    """The `count` codes among starts [S, L] that best explain the first `probe` rows of each shape, [B, count, L]."""
    problems = observed.out(np.zeros((observed.size, count, starts.shape[1]), np.float32))
    return observed.back(observed.run(_nearest, net, (min(probe, BLOCK), count), problems, starts, np.float32(clamp)))


def _nearest(net, settings, _, data, starts, clamp):
    probe, count = settings
    rows = data["rows"][0, :probe]
    fields = fold(net.module, net.shared, net.statistics, starts)

    def error(own):
        values = fields.architecture(fields.shared, own, rows[:, :3])
        return rows[:, WEIGHT] @ clamped(values, rows, clamp)

    errors = jax.lax.map(error, fields.own, batch_size=min(len(starts), 4 * BLOCK // probe))
    return starts[jax.lax.top_k(-errors, count)[1]]


# Gauss-Newton


def levels(net: Net, work, arguments, packed, at, size: int, unknowns: int, keep, settings, whole: Job | None = None):
    """Gauss-Newton through all levels, from k tries of each of `size` shapes to the best one.

    work: one phase of one problem.  packed: the rows of every try, those of a shape side by side.  at: where the tries
    start, [size · k, …].  keep: how many tries of a shape go on after each level, the last 1.  whole: a job of
    `packed`, if there is one.
    Returns the unknowns [size, …], which converged [size], and from which try they come [size].
    """
    damping, tries = settings.damping, np.arange(len(packed))
    for points, smooth, limit, kept in zip(settings.points, settings.smooth, settings.phases, keep, strict=True):
        rows = whole_blocks(points)
        if len(tries) == size:  # all levels in one job: one program
            level = whole = job(packed) if whole is None else whole
        else:
            level = job([shape[:rows] for shape in packed])
        more = arguments, np.int32(rows // BLOCK), np.float32(smooth), np.int32(settings.steps)

        def advance(state, active, level=level, more=more):
            state = level.run(work, net, None, state, *more, active=active)
            return state, level.back(state.loss)

        state = level.out(gauss_newton.start(at, len(tries), unknowns, damping))
        state, converged = gauss_newton.phases(advance, state, len(tries), limit, settings.tolerance)
        at, losses, damping = level.back((state.at, state.loss, state.damping))
        order = losses.reshape(size, -1).argsort(axis=1)[:, :kept]
        best = (np.arange(size)[:, None] * (len(tries) // size) + order).ravel()
        at, damping, converged, tries = jax.tree.map(lambda x, best=best: x[best], (at, damping, converged, tries))
        packed = [packed[i] for i in best]
    return at, converged, tries


def newton(net: Net, observed: Job, packed, starts, penalty, settings) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and which converged [B]; of starts [B, k, L] the best after the first level goes on."""
    size, tries, length = starts.shape
    packed = [rows for rows in packed for _ in range(tries)]
    keep = (1,) * len(settings.points)
    whole = observed if tries == 1 else None
    codes, converged, _ = levels(
        net, _newton, penalty, packed, starts.reshape(-1, length), size, length, keep, settings, whole
    )
    return codes, converged


def _newton(net, _, state, data, gaussian, limit, smooth, steps):
    def linearize(code):
        along = along_code(net, code)

        def rows(block):
            values, _, jacobian = along(block[:, :3])
            return outside(values, block), jacobian, block[:, WEIGHT]

        return rows

    objective = Objective(linearize, lambda code: quadratic(code, *gaussian), jnp.add)
    return phase(objective, state, data, limit, smooth, steps)


def phase(objective: Objective, state, data, limit, smooth, steps):
    """`steps` steps on the first `limit` blocks of a shape."""
    blocks = jnp.minimum(data["blocks"], limit)
    return gauss_newton.descend(objective, state, lambda k: data["rows"][k], blocks, smooth, steps)


def penalty(prior: Prior, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and matrix of the quadratic that keeps codes near the training's: weight · ½ (z - μ)ᵀ Σ⁻¹ (z - μ) / L."""
    return prior.mean, (weight / len(prior.mean) * prior.precision()).astype(np.float32)


def quadratic(code, mean, matrix):
    """½ (z - μ)ᵀ P (z - μ), its gradient and its Hessian."""
    gradient = matrix @ (code - mean)
    return (code - mean) @ gradient / 2, gradient, matrix


# First order


def adam(net: Net, packed, starts, index, seed: int, clamp: float, settings) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and whether their loss had stopped falling [B]; starts [B, L] serve where settings ask for them."""
    sorted_, counts = zip(*map(grouped, packed), strict=True)
    by_group = job(sorted_, counts=np.stack(counts), index=np.asarray(index, np.int32))
    problems = by_group.out((starts, np.zeros(by_group.size, bool)))
    return by_group.back(by_group.run(_adam, net, settings, problems, np.int32(seed), np.float32(clamp)))


def _adam(net, settings, problem, data, seed, clamp):
    code, _ = problem
    key = parallel.fold(jax.random.key(seed), "adam", data["index"])
    rows = data["rows"].reshape(-1, COLUMNS)
    if settings.start == "noise":
        code = first_order.NOISE * jax.random.normal(parallel.fold(key, "code"), code.shape)

    def draw(step):
        return rows[first_order.draw(key, step, data["counts"], settings)]

    def loss(code, some):
        return clamped(net.fold(code).at(some[:, :3]), some, clamp).mean()

    path, losses = first_order.adam(loss, code, draw, settings)
    return path[-1], _flat(losses)


def lbfgs(net: Net, observed: Job, starts, gaussian, settings) -> tuple[np.ndarray, np.ndarray]:
    """Codes [B, L] and whether their loss had stopped falling [B], from starts [B, L]."""
    problems = observed.out((starts, np.zeros(observed.size, bool)))
    return observed.back(observed.run(_lbfgs, net, settings, problems, gaussian))


def _lbfgs(net, settings, problem, data, gaussian):
    rows = data["rows"].reshape(-1, COLUMNS)

    def loss(code):
        errors = huber(outside(net.fold(code).at(rows[:, :3]), rows), settings.smooth)
        return rows[:, WEIGHT] @ errors / rows[:, WEIGHT].sum() + quadratic(code, *gaussian)[0]

    code, losses = first_order.lbfgs(loss, problem[0], settings)
    return code, _flat(losses)


def _flat(losses):
    """Whether the last tenth of the steps lowered the mean loss by no more than 1 %."""
    tenth = max(1, len(losses) // 10)
    before, last = losses[-2 * tenth : -tenth].mean(), losses[-tenth:].mean()
    return before - last <= 0.01 * last


# Judgement


def judge(net: Net, observed: Job, codes: np.ndarray, clamp: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean clamped error [B] and share explained [B] of the rows that were given."""
    nothing = np.zeros(observed.size, np.float32)
    problems = observed.out((codes, nothing, nothing))
    return observed.back(observed.run(_judge, net, None, problems, np.float32(clamp)))[1:]


def _judge(net, _, problem, data, clamp):
    code, *nothing = problem
    field = net.fold(code)

    def add(k, sums):
        rows = data["rows"][k]
        errors = clamped(field.at(rows[:, :3]), rows, clamp)
        new = rows[:, GIVEN] @ errors, rows[:, GIVEN] @ (errors < EXPLAINED), rows[:, GIVEN].sum()
        return jax.tree.map(jnp.add, sums, new)

    error, explained, count = jax.lax.fori_loop(0, data["blocks"], add, (jnp.zeros((), code.dtype),) * 3)
    return code, error / count, explained / count


def clamped(values, rows, clamp):
    """DeepSDF's clamped L1 (eq. 4) for intervals: for a distance s it is |clip(values, ±δ) - clip(s, ±δ)|."""
    return jnp.abs(outside(values.clip(-clamp, clamp), rows))
