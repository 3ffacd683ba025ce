"""Gauss-Newton with Levenberg-Marquardt damping, for a few hundred unknowns and thousands of observations.

It minimizes over the unknowns u

    Σᵢ wᵢ ρ(rᵢ(u)) / Σᵢ wᵢ + penalty(u)

with Huber's ρ(r) = r²/2ε for |r| < ε, else |r| - ε/2: the L1 loss with a smooth minimum.  A step s solves

    (H + λ diag H) s = -g,    g = Σ wᵢ φᵢ rᵢ Jᵢ,    H = Σ wᵢ φᵢ Jᵢ Jᵢᵀ,    φᵢ = 1 / max(|rᵢ|, ε),

where Jᵢ is the gradient of rᵢ and the weights φ make the squares equivalent to ρ (iteratively reweighted least
squares).  The sums are normalized as the loss, and the penalty adds its gradient and Hessian.  The step is accepted if
it lowers the loss; then the damping λ falls, else it rises (Levenberg 1944; Marquardt 1963).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EASIER, HARDER = 0.2, 4.0  # factors of the damping after an accepted and after a rejected step
LEAST, MOST = 1e-7, 1e4  # bounds of the damping
NOTHING = 1e-7  # absolute tolerance: a decrease of the loss that counts as none, however small the loss


class State(NamedTuple):
    """The state of one problem: the unknowns, the loss, gradient [D] and Hessian [D, D] there, and the damping."""

    at: Any
    loss: jax.Array | np.ndarray
    gradient: jax.Array | np.ndarray
    hessian: jax.Array | np.ndarray
    damping: jax.Array | np.ndarray


def start(at, count: int, unknowns: int, damping) -> State:
    """Initial states of `count` problems; `at` has a leading axis of this length."""
    # The gradient is zero and the Hessian the identity, so that the first step has length zero.  It only evaluates the
    # loss and its derivatives at the initial unknowns, and is accepted, since the loss here is infinite.
    hessian = np.broadcast_to(np.eye(unknowns, dtype=np.float32), (count, unknowns, unknowns))
    zeros = np.zeros((count, unknowns), np.float32)
    damping = np.broadcast_to(np.float32(damping), count)
    return State(at, np.full(count, np.inf, np.float32), zeros, hessian, damping)


def huber(residual, huber_epsilon):
    """Huber's ρ [n] of residuals [n], quadratic within ±huber_epsilon (ε); see the module's docstring."""
    size = jnp.abs(residual)
    return jnp.where(size < huber_epsilon, size**2 / (2 * huber_epsilon), size - huber_epsilon / 2)


class Objective(NamedTuple):
    """The problem: residuals and a penalty, as functions of unknowns `at` (any tree) that `moved` updates by steps."""

    linearize: Callable  # (at) → a function of observations [n, …] → residuals [n], Jacobian [n, D], weights [n]
    penalty: Callable  # (at) → value [], gradient [D], Hessian [D, D]
    moved: Callable  # (at, step [D]) → at


def descend(objective: Objective, state: State, block: Callable, blocks, huber_epsilon, steps) -> State:
    """`steps` steps from a state.

    block(k): the k-th block of observations, of which the first `blocks` are used.  huber_epsilon: ε.
    """

    def measure(at):  # block by block, so that no Jacobian of all observations is in memory
        rows = objective.linearize(at)

        def add(k, sums):
            residual, jacobian, weight = rows(block(k))
            # A residual of exactly 0 means that an interval contains its value.  It stays 0 nearby, so it must not add
            # to the Hessian as an exact measurement would.
            scale = jnp.where(residual == 0, 0, weight / jnp.maximum(jnp.abs(residual), huber_epsilon))
            scaled = jacobian * scale[:, None]
            new = weight @ huber(residual, huber_epsilon), residual @ scaled, jacobian.T @ scaled, weight.sum()
            return jax.tree.map(jnp.add, sums, new)

        sums = *(jnp.zeros_like(x) for x in (state.loss, state.gradient, state.hessian)), jnp.zeros_like(state.loss)
        *sums, weight = jax.lax.fori_loop(0, blocks, add, sums)
        return [s / weight + p for s, p in zip(sums, objective.penalty(at), strict=True)]

    def step(_, state: State) -> State:
        damped = state.hessian + jnp.diag(state.damping * jnp.diag(state.hessian))
        change = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), state.gradient)
        at = objective.moved(state.at, change)
        loss, gradient, hessian = measure(at)
        better = loss < state.loss  # false for nan: such a step is rejected, and the damping rises
        first = jnp.isinf(state.loss)  # the step of length zero says nothing about the damping
        damping = state.damping * jnp.where(first, 1, jnp.where(better, EASIER, HARDER))
        new = State(at, loss, gradient, hessian, jnp.clip(damping, LEAST, MOST))
        kept = state._replace(damping=new.damping)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, kept)

    return jax.lax.fori_loop(0, steps, step, state)


def phases(advance: Callable, state, size: int, limit: int, tolerance: float) -> tuple[Any, np.ndarray]:
    """The states of `size` problems after at most `limit` phases, and which of them have converged [size].

    advance(state, active) → state, losses [size] runs one phase (several steps) of the problems where active [size] is
    set.  A problem has converged, and leaves, when a phase lowers its loss by a fraction of at most `tolerance`.
    Convergence is tested on the host between phases, so that the remaining problems run in full batches.
    """
    before, converged = np.full(size, np.inf), np.zeros(size, bool)
    for _ in range(limit):
        state, losses = advance(state, ~converged)
        # never in the first phase (before is infinite), nor if the loss is not finite yet
        converged |= np.isfinite(losses) & (before <= (1 + tolerance) * losses + NOTHING)
        before = losses
        if converged.all():
            break
    return state, converged
