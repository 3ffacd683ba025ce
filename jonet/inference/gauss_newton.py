"""Gauss-Newton with Levenberg-Marquardt damping, for a few hundred unknowns and thousands of observations.

Minimised is  Σᵢ wᵢ ρ(rᵢ(u)) / Σᵢ wᵢ + penalty(u)  with Huber's ρ(r) = r²/2ε for |r| < ε, else |r| - ε/2: the L1 loss
but for its kink.  A step solves

    (H + λ diag H) s = -g,    g = Σ wᵢ φᵢ rᵢ Jᵢ,    H = Σ wᵢ φᵢ Jᵢ Jᵢᵀ,    φᵢ = 1 / max(|rᵢ|, ε),

where φ turns squares into ρ (iteratively reweighted least squares), and is taken if it lowers the loss; then the
damping λ falls, else it rises (Levenberg 1944; Marquardt 1963).  J has one row an observation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jonet.errors import ConfigError

EASIER, HARDER = 0.2, 4.0  # what the damping is multiplied with after a step that was taken, and one that was not
LEAST, MOST = 1e-7, 1e4
NOTHING = 1e-7  # a fall of the loss that is none, however small the loss


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Levels, each with more observations and less smoothing than the one before; entries belong together."""

    points: tuple[int, ...] = (1024, 2048, 8192)  # observations of a shape, rounded up to blocks of 1,024
    smooth: tuple[float, ...] = (0.03, 0.003, 0.001)  # ε, errors below which the loss is quadratic
    phases: tuple[int, ...] = (4, 4, 6)  # at most so many phases; shapes that have converged leave in between
    steps: int = 2  # steps a phase
    tolerance: float = 0.01  # a shape has converged when a phase lowers its loss by no more than this share
    damping: float = 0.1  # λ at the start

    def __post_init__(self):
        if not 0 < len(self.points) == len(self.smooth) == len(self.phases):
            raise ConfigError(
                f"points {self.points}, smooth {self.smooth} and phases {self.phases} must name as many levels each"
            )
        if min(*self.points, *self.phases, self.steps) < 1 or min(*self.smooth, self.damping) <= 0:
            raise ConfigError("points, phases and steps must be at least 1, smooth and damping above 0")


class State(NamedTuple):
    """Where one problem stands: the unknowns, and loss, gradient [D] and Hessian [D, D] there."""

    at: Any
    loss: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    damping: jax.Array


def start(at, count: int, unknowns: int, damping) -> State:
    """States of `count` problems that know nothing of their places: the first step stays there and looks around."""
    hessian = np.broadcast_to(np.eye(unknowns, dtype=np.float32), (count, unknowns, unknowns))
    zeros = np.zeros((count, unknowns), np.float32)
    damping = np.broadcast_to(np.float32(damping), count)
    return State(at, np.full(count, np.inf, np.float32), zeros, hessian, damping)


def huber(residual, smooth):
    """ρ, the L1 loss with its kink rounded off within ±smooth (ε)."""
    size = jnp.abs(residual)
    return jnp.where(size < smooth, size**2 / (2 * smooth), size - smooth / 2)


class Objective(NamedTuple):
    """What is minimised over unknowns of any form, of which `moved` makes others by a step [D]."""

    linearize: Callable  # (at) → rows → residuals [n], Jacobian [n, D], weights [n]
    penalty: Callable  # (at) → value [], gradient [D], Hessian [D, D]
    moved: Callable  # (at, step [D]) → at


def descend(objective: Objective, state: State, block: Callable, blocks, smooth, steps) -> State:
    """`steps` steps from a state.

    block(k): the k-th block of observations, of which the first `blocks` count.  smooth: ε.
    """

    def measure(at):
        rows = objective.linearize(at)

        def add(k, sums):
            residual, jacobian, weight = rows(block(k))
            # an interval that is kept has nothing to say about the step
            scale = jnp.where(residual == 0, 0, weight / jnp.maximum(jnp.abs(residual), smooth))
            scaled = jacobian * scale[:, None]
            new = weight @ huber(residual, smooth), residual @ scaled, jacobian.T @ scaled, weight.sum()
            return jax.tree.map(jnp.add, sums, new)

        sums = *(jnp.zeros_like(x) for x in (state.loss, state.gradient, state.hessian)), jnp.zeros_like(state.loss)
        *sums, weight = jax.lax.fori_loop(0, blocks, add, sums)
        return [s / weight + p for s, p in zip(sums, objective.penalty(at), strict=True)]

    def step(_, state: State) -> State:
        damped = state.hessian + jnp.diag(state.damping * jnp.diag(state.hessian))
        change = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), state.gradient)
        at = objective.moved(state.at, change)
        loss, gradient, hessian = measure(at)
        better = loss < state.loss  # false for what is not finite
        first = jnp.isinf(state.loss)
        damping = state.damping * jnp.where(first, 1, jnp.where(better, EASIER, HARDER))
        new = State(at, loss, gradient, hessian, jnp.clip(damping, LEAST, MOST))
        kept = state._replace(damping=new.damping)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, kept)

    return jax.lax.fori_loop(0, steps, step, state)


def phases(advance: Callable, state, size: int, limit: int, tolerance: float) -> tuple[Any, np.ndarray]:
    """The states of `size` problems after at most `limit` phases, and which of them have converged [size].

    advance(state, active) → state, losses [size] runs one phase of the problems where active [size] holds; those whose
    loss it lowered by no more than the share `tolerance` leave.
    """
    before, converged = np.full(size, np.inf), np.zeros(size, bool)
    for _ in range(limit):
        state, losses = advance(state, ~converged)
        # never in the phase that looked around first, nor where no finite loss was found
        converged |= np.isfinite(losses) & (before <= (1 + tolerance) * losses + NOTHING)
        before = losses
        if converged.all():
            break
    return state, converged
