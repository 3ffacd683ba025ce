"""Optimizers and learning-rate schedules by name.

A schedule is a function of the epoch (from 1, as published) and of the fraction of training that is done.  Both are
traced, so that the planned number of steps is data and another number needs no new compilation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jonet import parallel
from jonet.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over training; "step", "warmup" and "constant" are those of DeepSDF's `specs.json`.

    step: initial · factor^(epoch // interval).  warmup: linear from initial at epoch 0 to final at epoch `length`, then
    constant.  constant: initial.  cosine: from initial to final along half a cosine over the whole training.
    """

    kind: Literal["step", "warmup", "constant", "cosine"] = "step"  # how the rate changes in training
    initial: float = 5e-4  # the rate at the start
    final: float = 0.0  # warmup, cosine: the rate at the end
    interval: int = 500  # step: epochs between two changes
    factor: float = 0.5  # step: the factor of each change
    length: int = 100  # warmup: number of epochs

    def __post_init__(self):
        if self.kind not in ("step", "warmup", "constant", "cosine"):
            raise ConfigError(f"schedule {self.kind!r} is unknown; there are step, warmup, constant and cosine")
        if not (self.initial >= 0 and self.final >= 0 and math.isfinite(self.initial + self.final)):
            raise ConfigError(f"learning rates {self.initial} and {self.final} must be 0 or above")
        if self.interval < 1 or self.length < 1:
            raise ConfigError(f"a schedule's interval {self.interval} and length {self.length} are at least one epoch")

    def unread(self, group: str) -> dict[str, str]:
        """Options, below the name of their group, that this kind does not read, each with the reason."""
        read = {"step": ("interval", "factor"), "warmup": ("final", "length"), "constant": (), "cosine": ("final",)}
        others = {"final", "interval", "factor", "length"}.difference(read[self.kind])
        return {f"{group}.{name}": f"{group}.kind is {self.kind}" for name in others}

    def __call__(self, epoch, progress) -> jax.Array:
        """The rate in an epoch (integer, from 1), after a fraction `progress` in [0, 1] of all steps."""
        if self.kind == "step":
            return self.initial * jnp.power(self.factor, epoch // self.interval)
        if self.kind == "warmup":
            return self.initial + (self.final - self.initial) * jnp.minimum(1.0, epoch / self.length)
        if self.kind == "cosine":
            return self.final + (self.initial - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, progress)))
        return jnp.asarray(self.initial)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with two learning rates: of the shared parameters and of the per-shape ones (codes).

    adam: PyTorch's (β 0.9 and 0.999, ε 1e-8), as published.  adamw: with decoupled weight decay.  muon: orthogonalized
    momentum (Jordan et al. 2024) for matrices, scaled to Adam's root mean square so that Adam's learning rates apply,
    and Adam for the rest.
    Per-shape parameters always use dense Adam, as published: codes of shapes outside the batch move by their momentum.
    """

    name: Literal["adam", "adamw", "muon"] = "adam"  # of the shared parameters; codes take Adam
    shared: Schedule = Schedule(initial=5e-4)  # learning rate of the network
    per_shape: Schedule = Schedule(initial=1e-3)  # learning rate of the codes
    clip: float = 0.0  # largest global norm of the network's gradient; 0 does not clip
    weight_decay: float = 1e-2  # adamw: decay per step of the network's parameters, times the rate

    def __post_init__(self):
        if self.name not in ("adam", "adamw", "muon"):
            raise ConfigError(f"optimizer {self.name!r} is unknown; there are adam, adamw and muon")
        if not self.clip >= 0:
            raise ConfigError(
                f"clip is {self.clip}, but a gradient's norm is clipped to a number above 0 (0: no clipping)"
            )

    def unread(self, group: str) -> dict[str, str]:
        """Options, below the name of their group, that have no effect with the others, each with the reason."""
        found = self.shared.unread(f"{group}.shared") | self.per_shape.unread(f"{group}.per_shape")
        return found if self.name == "adamw" else found | {f"{group}.weight_decay": f"{group}.name is {self.name}"}

    def build(self) -> optax.GradientTransformationExtraArgs:
        """A transformation of gradients {"shared": …, "per_shape": …}; `update(…, epoch=, progress=)` for schedules.

        Its state has the same structure on every platform.
        """
        stacked = not parallel.platform().is_cpu
        by_name = {
            "adam": lambda: optax.scale_by_adam(),
            "adamw": lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(self.weight_decay)),
            "muon": lambda: optax.partition({"matrix": muon(stacked=stacked), "other": optax.scale_by_adam()}, _kinds),
        }
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        transforms: dict[Hashable, optax.GradientTransformation] = {
            "shared": optax.chain(clip, by_name[self.name](), _scheduled(self.shared)),
            "per_shape": optax.chain(optax.scale_by_adam(), _scheduled(self.per_shape)),
        }
        return optax.partition(transforms, {"shared": "shared", "per_shape": "per_shape"})


class Momentum(NamedTuple):
    """The state of `muon`: the moving average of the gradient of each matrix, and the number of updates."""

    mean: optax.Updates
    count: jax.Array


def muon(decay: float = 0.95, rms: float = 0.2, stacked: bool = False) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels: orthogonalized Nesterov momentum with bias correction.

    An update has the root mean square `rms`, which is that of Adam (Liu et al. 2025, section 2.2).  Kernels are
    matrices [inputs, outputs]; in convolutions all axes but the last are inputs.  Equal to `optax.contrib.muon` up to
    rounding.
    stacked: many matrices are orthogonalized at once, equal to rounding (`orthogonal_stacks`).  An accelerator starts a
    program for every product, which takes longer than a small product; two cores work faster on one matrix each.
    """

    def init(params):
        return Momentum(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        count = state.count + 1
        mean = optax.tree.update_moment(updates, state.mean, decay, 1)
        ahead = optax.tree.update_moment(
            optax.tree.bias_correction(updates, decay, count),
            optax.tree.bias_correction(mean, decay, count + 1),
            decay,
            1,
        )

        kernels, structure = jax.tree.flatten(ahead)
        matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
        found = orthogonal_stacks(matrices) if stacked else map(orthogonal, matrices)
        steps = [
            rms * max(matrix.shape) ** 0.5 * matrix.reshape(kernel.shape)
            for matrix, kernel in zip(found, kernels, strict=True)
        ]
        return jax.tree.unflatten(structure, steps), Momentum(mean, count)

    return optax.GradientTransformation(init, update)


COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan's


def orthogonal(matrix: jax.Array) -> jax.Array:
    """A matrix [m, n] with its singular values moved close to 1, by five of Jordan's Newton-Schulz steps.

    X ← aX + (bA + cA²)X with A = XXᵀ, starting from ‖X‖ = 1.
    """
    # A is symmetric, and its products are written with its transpose: XLA then runs several matrices in parallel on a
    # CPU, each of which is too small for two cores.
    a, b, c = COEFFICIENTS
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (jnp.linalg.norm(x) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * (square.T @ square)).T @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def orthogonal_stack(x: jax.Array) -> jax.Array:
    """`orthogonal` of a stack [k, m, n] with m ≤ n, to rounding: X ← (aI + bA + cA²)X, with fewer sums of matrices."""
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    for _ in range(5):
        square = x @ x.mT
        x = (a * identity + b * square + c * (square @ square)) @ x
    return x


def orthogonal_stacks(matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """`orthogonal` of each matrix [n, m]; all whose longer sides are equal are one stack.

    Their shorter sides are filled with zeros, which stay zeros and change nothing else.
    """
    wide = [matrix.T if len(matrix) > matrix.shape[1] else matrix for matrix in matrices]
    for length in sorted({matrix.shape[1] for matrix in wide}):
        members = [i for i, matrix in enumerate(wide) if matrix.shape[1] == length]
        height = max(len(wide[i]) for i in members)
        filled = jnp.stack([jnp.pad(wide[i], ((0, height - len(wide[i])), (0, 0))) for i in members])
        for i, matrix in zip(members, orthogonal_stack(filled), strict=True):
            wide[i] = matrix[: len(wide[i])]
    return [x.T if len(matrix) > matrix.shape[1] else x for matrix, x in zip(matrices, wide, strict=True)]


def _kinds(parameters):
    """Labels of the parameters: "matrix" for kernels, "other" for vectors."""
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "other", parameters)


def _scheduled(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the current learning rate."""

    def update(updates, state, params=None, **now):
        rate = schedule(now["epoch"], now["progress"])
        return jax.tree.map(lambda u: (-rate).astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
