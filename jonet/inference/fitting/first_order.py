"""Codes by first-order methods: the Adam loop of DeepSDF's published code, and L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.settings.fitting import LBFGS, Adam

MEAN, SQUARE, EPSILON = 0.9, 0.999, 1e-8  # Adam's β₁, β₂ and ε, as published
NOISE = 0.01  # published standard deviation of the initial codes


def adam(loss: Callable, code, draw: Callable, settings: Adam) -> tuple[jax.Array, jax.Array]:
    """The published loop as one scan: the code after every step [steps, L], and the loss before it [steps].

    draw(step) → rows of observations.  loss(code, rows) → their mean clamped error; the penalty on the code,
    decay · mean(z²), is added here.
    """
    # The bias corrections are computed here in float64: optax's 1 - βᵗ loses five digits in float32, enough to deviate
    # from the published iterates.
    number = np.arange(settings.steps)
    first, second = (1 - decay ** (number + 1.0) for decay in (MEAN, SQUARE))
    rates = settings.rate * settings.drop ** (number // (settings.steps // 2)) / first

    def step(carry, now):
        code, mean, square = carry
        number, rate, root = now
        rows = draw(number)
        value, gradient = jax.value_and_grad(lambda z: loss(z, rows) + settings.decay * jnp.mean(z**2))(code)
        mean = mean + (1 - MEAN) * (gradient - mean)
        square = SQUARE * square + (1 - SQUARE) * gradient**2
        code = code - rate * mean / (jnp.sqrt(square) / root + EPSILON)
        return (code, mean, square), (code, value)

    steps = number.astype(np.int32), rates.astype(np.float32), np.sqrt(second).astype(np.float32)
    _, (path, losses) = jax.lax.scan(step, (code, jnp.zeros_like(code), jnp.zeros_like(code)), steps)
    return path, losses


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


def lbfgs(loss: Callable, code, settings: LBFGS) -> tuple[jax.Array, jax.Array]:
    """L-BFGS on a smooth loss(code): the code [L] after the last step, and the loss before every step [steps]."""
    optimizer = optax.lbfgs(memory_size=settings.memory)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _) -> tuple[Any, Any]:
        code, opt_state = carry
        value, gradient = value_and_grad(code, state=opt_state)
        updates, opt_state = optimizer.update(gradient, opt_state, code, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(code, updates), opt_state), value

    (code, _), losses = jax.lax.scan(step, (code, optimizer.init(code)), None, length=settings.steps)
    return code, losses
