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

import chex
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


def huber(residual, huber_epsilon):
    """Huber's ρ [n] of residuals [n], quadratic within ±huber_epsilon (ε); see the module's docstring."""
    size = jnp.abs(residual)
    return jnp.where(size < huber_epsilon, size**2 / (2 * huber_epsilon), size - huber_epsilon / 2)


class Objective(NamedTuple):
    """Residuals and a penalty, as functions of unknowns `at` (any tree) that `moved` updates by steps."""

    linearize: Callable  # (at) → a function of observations [n, …] → residuals [n], Jacobian [n, D], weights [n]
    penalty: Callable  # (at) → value [], gradient [D], Hessian [D, D]
    moved: Callable  # (at, step [D]) → at


class Problem(NamedTuple):
    """An objective with its observations, of which the first `blocks` blocks are used."""

    objective: Objective
    block: Callable  # (k) → the k-th block of observations [n, …]
    blocks: Any  # number of blocks
    huber_epsilon: Any  # ε


class NewtonSolver(NamedTuple):
    """The solver (`solver.Solver`); see the module's docstring."""

    unknowns: int  # D
    damping: Any  # initial λ, or [B] of the B problems that `init` starts
    tolerance: float = 0.01  # a problem has converged when its loss falls by at most this fraction

    def init(self, at) -> State:
        """The initial state of one problem or, on the host, of B problems: `at` then has a leading axis of B."""
        # The gradient is zero and the Hessian the identity, so that the first step has length zero.  It only evaluates
        # the loss and its derivatives at the initial unknowns, and is accepted, since the loss here is infinite.
        several = np.shape(self.damping)
        hessian = np.broadcast_to(np.eye(self.unknowns, dtype=np.float32), (*several, self.unknowns, self.unknowns))
        zeros = np.zeros((*several, self.unknowns), np.float32)
        damping = self.damping if isinstance(self.damping, jax.Array) else np.asarray(self.damping, np.float32)
        return State(at, np.full(several, np.inf, np.float32), zeros, hessian, damping)

    @staticmethod
    def step(state: State, problem: Problem) -> State:
        """The state after one step, which is taken only if it lowers the loss."""
        damped = state.hessian + jnp.diag(state.damping * jnp.diag(state.hessian))
        change = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), state.gradient)
        at = problem.objective.moved(state.at, change)
        loss, gradient, hessian = _derivatives(problem, state, at)
        better = loss < state.loss  # false for nan: such a step is rejected, and the damping rises
        first = jnp.isinf(state.loss)  # the step of length zero says nothing about the damping
        damping = state.damping * jnp.where(first, 1, jnp.where(better, EASIER, HARDER))
        new = State(at, loss, gradient, hessian, jnp.clip(damping, LEAST, MOST))
        kept = state._replace(damping=new.damping)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, kept)

    def converged(self, before, after):
        """Whether the loss has fallen by a fraction of at most `tolerance`; never from or to one that is not finite."""
        return np.isfinite(after) & (before <= (1 + self.tolerance) * after + NOTHING)


def _derivatives(problem: Problem, state: State, at) -> list[jax.Array]:
    """Loss, gradient and Hessian at other unknowns, block by block, so that no whole Jacobian is in memory."""
    objective, block, blocks, huber_epsilon = problem
    rows = objective.linearize(at)

    def add(k, sums):
        residual, jacobian, weight = rows(block(k))
        chex.assert_equal_shape([residual, weight])
        chex.assert_shape(jacobian, (*residual.shape, *state.gradient.shape))
        # A residual of exactly 0 means that an interval contains its value.  It stays 0 nearby, so it must not add to
        # the Hessian as an exact measurement would.
        scale = jnp.where(residual == 0, 0, weight / jnp.maximum(jnp.abs(residual), huber_epsilon))
        scaled = jacobian * scale[:, None]
        new = weight @ huber(residual, huber_epsilon), residual @ scaled, jacobian.T @ scaled, weight.sum()
        return jax.tree.map(jnp.add, sums, new)

    sums = *(jnp.zeros_like(x) for x in (state.loss, state.gradient, state.hessian)), jnp.zeros_like(state.loss)
    *sums, weight = jax.lax.fori_loop(0, blocks, add, sums)
    return [s / weight + p for s, p in zip(sums, objective.penalty(at), strict=True)]


def phases(advance: Callable, solver: NewtonSolver, state, size: int, limit: int) -> tuple[Any, np.ndarray]:
    """The states of `size` problems after at most `limit` phases, and which of them have converged [size].

    advance(state, active) → state, losses [size] runs one phase (several steps) of the problems where active [size] is
    set.  A problem leaves when it has converged by the solver.  This is tested on the host between phases, so that the
    remaining problems run in full batches.
    """
    before, converged = np.full(size, np.inf), np.zeros(size, bool)
    for _ in range(limit):
        state, losses = advance(state, ~converged)
        converged |= solver.converged(before, losses)  # never in the first phase: before is infinite
        before = losses
        if converged.all():
            break
    return state, converged
