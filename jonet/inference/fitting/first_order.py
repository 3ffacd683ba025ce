"""Codes by optax: the Adam loop of DeepSDF's published code, the same loop with any other optimizer, and L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.inference.fitting.solver import trace
from jonet.settings.fitting import LBFGS, Adam

MEAN, SQUARE, EPSILON = 0.9, 0.999, 1e-8  # Adam's β₁, β₂ and ε, as published
NOISE = 0.01  # published standard deviation of the initial codes


class Descent(NamedTuple):
    """The state of one problem: the unknowns, the loss before the last step, and the optimizer's state."""

    at: Any
    loss: Any
    opt_state: Any


class OptaxSolver(NamedTuple):
    """The solver (`solver.Solver`) that an optimizer of optax is.  A problem is a loss, (at) → number."""

    optimizer: optax.GradientTransformation
    fixed: bool = False  # every step has the same loss, so that the last value and gradient of a line search are reused
    tolerance: float = 0.01  # a problem has converged when its loss falls by at most this fraction

    def init(self, at) -> Descent:
        """The initial state of one problem."""
        return Descent(at, jnp.full((), jnp.inf, jnp.float32), self.optimizer.init(at))

    def step(self, state: Descent, problem: Callable) -> Descent:
        """The state after one update.  Optimizers that take them also get the loss, its value and its gradient."""
        if self.fixed:
            value, gradient = optax.value_and_grad_from_state(problem)(state.at, state=state.opt_state)
        else:
            value, gradient = jax.value_and_grad(problem)(state.at)
        chex.assert_rank(value, 0)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, state.at)
        update = optax.with_extra_args_support(self.optimizer).update
        known = {"value": value, "grad": gradient, "value_fn": problem}
        updates, opt_state = update(gradient, state.opt_state, state.at, **known)
        return Descent(optax.apply_updates(state.at, updates), value, opt_state)

    def converged(self, before, after):
        """Whether the loss has fallen by a fraction of at most `tolerance`."""
        return before - after <= self.tolerance * after


def published_adam(settings: Adam) -> optax.GradientTransformation:
    """Adam as PyTorch computes it, with the published learning rates, for `settings.steps` steps.

    The state is that of `optax.scale_by_adam`.
    """
    # The bias corrections are computed here in float64: optax's 1 - βᵗ loses five digits in float32, enough to deviate
    # from the published iterates.
    number = np.arange(settings.steps)
    first, second = (1 - decay ** (number + 1.0) for decay in (MEAN, SQUARE))
    rates = (settings.rate * settings.drop ** (number // (settings.steps // 2)) / first).astype(np.float32)
    roots = np.sqrt(second).astype(np.float32)

    def init(params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        rate, root = jnp.asarray(rates)[state.count], jnp.asarray(roots)[state.count]
        mean = jax.tree.map(lambda m, g: m + (1 - MEAN) * (g - m), state.mu, updates)
        square = jax.tree.map(lambda s, g: SQUARE * s + (1 - SQUARE) * g**2, state.nu, updates)
        steps = jax.tree.map(lambda m, s: -(rate * m / (jnp.sqrt(s) / root + EPSILON)), mean, square)
        return steps, optax.ScaleByAdamState(state.count + 1, mean, square)

    return optax.GradientTransformation(init, update)


def adam(
    loss: Callable, code, draw: Callable, settings: Adam, optimizer: optax.GradientTransformation | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The published loop as one scan: the code after every step [steps, L], the loss before it [steps], and whether
    the loss has stopped falling.

    draw(step) → rows of observations.  loss(code, rows) → their mean clamped error; the penalty on the code,
    decay · mean(z²), is added here.  optimizer: in place of `published_adam`.
    """

    def problem(step):
        rows = draw(step)
        return lambda code: loss(code, rows) + settings.decay * jnp.mean(code**2)

    return _descend(OptaxSolver(optimizer or published_adam(settings)), code, problem, settings.steps)


def lbfgs(loss: Callable, code, settings: LBFGS) -> tuple[jax.Array, jax.Array, jax.Array]:
    """L-BFGS on a smooth loss(code); returns what `adam` does."""
    solver = OptaxSolver(optax.lbfgs(memory_size=settings.memory), fixed=True)
    return _descend(solver, code, lambda step: loss, settings.steps)


def _descend(solver: OptaxSolver, code, problem: Callable, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes and losses of every step, and whether the mean of the last tenth of the losses is hardly below that of the
    tenth before."""
    path, losses = trace(solver, code, problem, steps)
    tenth = max(1, steps // 10)
    return path, losses, solver.converged(losses[-2 * tenth : -tenth].mean(), losses[-tenth:].mean())


def draw(key, step, counts, settings: Adam):
    """Indices of the rows of one step [rows], half from each of two groups; the groups are consecutive, of counts [2].

    `windows`: consecutive rows with a random start; from a group that is too small, single rows with replacement, as
    published.  `rows`: single rows.  If one group is empty, both halves are from the other.
    """
    half = settings.rows // 2
    neighbors = settings.draw == "windows"
    key = parallel.fold_in(key, "rows", step)

    def side(name, count, first):
        anywhere, begin = parallel.fold_in(key, name, "single"), parallel.fold_in(key, name, "window")
        single = jax.random.randint(anywhere, (half,), 0, count)
        window = jax.random.randint(begin, (), 0, jnp.maximum(count - half + 1, 1)) + jnp.arange(half)
        return first + jnp.where(neighbors & (count > half), window, single)

    one, two = counts
    return jnp.concatenate(
        [
            side("first", jnp.where(one > 0, one, two), 0),
            side("second", jnp.where(two > 0, two, one), jnp.where(two > 0, one, 0)),
        ]
    )
