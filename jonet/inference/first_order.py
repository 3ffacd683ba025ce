"""Codes by first-order methods: the published program's Adam loop, and L-BFGS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.errors import ConfigError

MEAN, SQUARE, EPSILON = 0.9, 0.999, 1e-8  # Adam's β₁, β₂ and ε, as published
NOISE = 0.01  # the published spread of codes before fitting


@dataclasses.dataclass(frozen=True)
class Adam:
    """DeepSDF's program (`reconstruct.py`): 800 steps on fresh rows, the rate divided by ten after half of them."""

    steps: int = 800
    rows: int = 8000  # observations a step, half of each group
    rate: float = 5e-3  # learning rate of the first half
    drop: float = 0.1  # what the rate is multiplied with after every int(steps / 2) steps
    decay: float = 1e-4  # weight of the mean of the code's squares
    draw: Literal["windows", "rows"] = "windows"  # neighbours after one permutation, as published; or each by itself
    start: Literal["noise", "best"] = "noise"  # N(0, 0.01²), as published; or the best training code

    def __post_init__(self):
        if self.steps < 2 or self.rows < 2 or self.rows % 2:
            raise ConfigError(f"steps is {self.steps} and rows {self.rows}, but both must be at least 2 and rows even")


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a zoom line search on the smoothed loss that Gauss-Newton minimises last."""

    steps: int = 100
    memory: int = 10  # pairs of steps and gradients that stand for the Hessian
    points: int = 8192  # observations of a shape, rounded up to blocks of 1,024
    smooth: float = 0.001  # ε, errors below which the loss is quadratic, in the normalised frame

    def __post_init__(self):
        if min(self.steps, self.memory, self.points) < 1 or self.smooth <= 0:
            raise ConfigError("steps, memory and points must be at least 1, smooth above 0")


def adam(loss: Callable, code, draw: Callable, settings: Adam) -> tuple[jax.Array, jax.Array]:
    """The published loop as one scan: the code after every step [steps, L], and the loss before it [steps].

    draw(step) → rows;  loss(code, rows) → the mean clamped error, without the decay of the code that is added here.
    """
    # optax.adam's bias corrections 1 - βᵗ lose five digits in float32, enough to leave the published path
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
    """The rows of one step [rows]: half from each of two groups that lie one after the other, counts [2].

    By windows of neighbours that start anywhere (groups too small for one: each row by itself, with replacement, as
    published); or all rows by themselves.  Where one group is empty the other gives both halves.
    """
    half = settings.rows // 2
    neighbours = settings.draw == "windows"
    key = parallel.fold(key, "rows", step)

    def side(name, count, first):
        anywhere, begin = parallel.fold(key, name, "single"), parallel.fold(key, name, "window")
        single = jax.random.randint(anywhere, (half,), 0, count)
        window = jax.random.randint(begin, (), 0, jnp.maximum(count - half + 1, 1)) + jnp.arange(half)
        return first + jnp.where(neighbours & (count > half), window, single)

    one, two = counts
    return jnp.concatenate(
        [
            side("first", jnp.where(one > 0, one, two), 0),
            side("second", jnp.where(two > 0, two, one), jnp.where(two > 0, one, 0)),
        ]
    )


def lbfgs(loss: Callable, code, settings: LBFGS) -> tuple[jax.Array, jax.Array]:
    """Code [L] after the last step, and the loss before every step [steps]; loss(code) is smooth."""
    optimizer = optax.lbfgs(memory_size=settings.memory)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        code, slots = carry
        value, gradient = value_and_grad(code, state=slots)
        updates, slots = optimizer.update(gradient, slots, code, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(code, updates), slots), value

    (code, _), losses = jax.lax.scan(step, (code, optimizer.init(code)), None, length=settings.steps)
    return code, losses
