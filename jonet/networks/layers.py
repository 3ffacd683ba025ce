"""Layers that both papers' networks are made of, with PyTorch's initialisation and parameter meaning."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet import parallel

BLOCK = 1024  # points a block: what is evaluated at once, and what one dropout key covers
EPSILON = 1e-5  # added to the variance of a norm
MOMENTUM = 0.1  # the share of a batch's statistics in the running ones: PyTorch's sense


def torch_uniform(fan_in: int):
    """PyTorch's default for linear layers, kernel and bias alike: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """An affine layer whose input may come in parts: y = Σ partᵢ Kᵢ + b, with K = [K₁; K₂; …] one kernel.

    Parts only need to broadcast: a code [B, 1, L] beside points [B, N, 3] is multiplied once a shape, not once a point.
    axis: where units are, -1 for the last or 0 for the first; see `times_columns`.

    features: units out.  weight_norm: K = g · v / ‖v‖ with the norm over inputs, per unit (Salimans & Kingma 2016,
    eq. 2, no ε); v starts as PyTorch's kernel and g as ‖v‖, so that the start is the plain layer's.
    Parameters: kernel [in, out] (v under weight norm), scale [out] (g), bias [out].  dtype: of the products,
    as inputs and parameters promote if None.
    kernel_init, bias_init: the start, given the number of inputs; without a bias_init there is no bias.
    """

    features: int
    weight_norm: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = torch_uniform
    axis: int = -1

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        sizes = [part.shape[self.axis] for part in parts]
        kernel = self.param("kernel", self.kernel_init(sum(sizes)), (sum(sizes), self.features))
        if self.weight_norm:
            kernel = normalized(kernel, self.param("scale", lambda _: jnp.linalg.norm(kernel, axis=0)))
        bias = jnp.zeros((), kernel.dtype)
        if self.bias_init is not None:
            bias = self.param("bias", self.bias_init(sum(sizes)), (self.features,))
        if self.dtype is not None:
            kernel, bias, parts = jax.tree.map(lambda x: x.astype(self.dtype), (kernel, bias, parts))
        rows = jnp.split(kernel, list(itertools.accumulate(sizes))[:-1])
        if self.axis == 0:
            bias = bias.reshape(-1, *(1,) * (parts[0].ndim - 1))
        product = times if self.axis else times_columns
        products = (product(part, k) for part, k, size in zip(parts, rows, sizes, strict=True) if size)
        return sum(products, start=bias)


def times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] by a kernel [in, out], as one product of matrices: its reverse then transposes nothing on a CPU."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def times_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [in, ...] by a kernel [in, out] → [out, ...], with the units first.

    The gradient of the kernel then sums along the axis on which both operands lie in order: on a CPU that product runs
    at the rate of the others, where x [..., in] makes it a quarter slower.
    """
    return _columns(kernel, x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


@jax.custom_jvp
def _columns(kernel, x):
    return jax.lax.optimization_barrier(kernel.T) @ x  # a product that transposes its operand in place is slower


@_columns.defjvp
def _columns_jvp(primals, tangents):
    (kernel, x), (kernel_dot, x_dot) = primals, tangents
    return _columns(kernel, x), kernel_dot.T @ x + kernel.T @ x_dot  # whose reverses transpose nothing


def normalized(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Weight norm multiplied out: v [in, out], g [out] → g · v / ‖v‖ [in, out]."""
    return kernel * (scale / jnp.linalg.norm(kernel, axis=0))


def effective(parameters: dict) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a Linear's parameters, weight norm multiplied out."""
    kernel = parameters["kernel"]
    return (normalized(kernel, parameters["scale"]) if "scale" in parameters else kernel), parameters["bias"]


def dropout_mask(key: jax.Array, rate: float, shape: tuple[int, ...], first_block: int | jax.Array = 0) -> jax.Array:
    """Which units [width, N] of one shape's points stay; one key a block of 1,024 points.

    Units are kept by comparing 8 random bits; see `dropout_factor`.  first_block: the place of the first point's block,
    so that a batch evaluated in pieces of whole blocks draws what the whole batch draws.
    """
    width, points = shape
    size = min(points, BLOCK)
    blocks = -(-points // size)

    def block(number):
        return octets(parallel.fold(key, number), width * size).reshape(width, size) < _kept(rate)

    kept = jax.vmap(block, out_axes=1)(first_block + jnp.arange(blocks))
    return kept.reshape(width, blocks * size)[:, :points]


def dropout_factor(rate: float) -> float:
    """What kept units are multiplied with: k of 256 are kept, k = round(256 (1 - rate)), and this is 256/k exactly."""
    return 256 / _kept(rate)


def _kept(rate: float) -> int:
    return round(256 * (1 - rate))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropped_relu(x: jax.Array, mask: jax.Array, factor: float) -> jax.Array:
    """relu(x) · factor where the mask holds, else 0.  Its reverse needs nothing but the result, which the next layer
    keeps anyway: of large activations it is memory that takes time."""
    return jnp.where(mask, nn.relu(x) * factor, 0)


dropped_relu.defvjp(
    lambda x, mask, factor: (dropped_relu(x, mask, factor),) * 2,
    lambda factor, result, gradient: (jnp.where(result > 0, gradient * factor, 0), None),
)


def octets(key: jax.Array, count: int) -> jax.Array:
    """Random bytes [count], as uint32, for masks: a counter mixed with 64 bits of the key by the steps that close
    MurmurHash3.

    A byte is the highest of a word of its own: words are mixed in vectors, which costs less than parting them.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    x = jax.lax.iota(jnp.uint32, count) * jnp.uint32(0x9E3779B9) + first
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B) ^ second
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) >> 24


def constant(value: float):
    """A start that does not look at the number of inputs."""
    return lambda fan_in: nn.initializers.constant(value)


class Share(NamedTuple):
    """One device's part of a training batch: what batch statistics are taken over.

    mask [S]: 1 for shapes that count, 0 for padding.  sum: over all devices, `parallel.sum` inside a mapped function.
    """

    mask: jax.Array
    sum: Callable = lambda tree: tree


class Norm(nn.Module):
    """Batch norm x ↦ γ · (x - mean) / √(variance + ε) + β; given a condition c, γ and β are affine functions of it.

    In training (a `share` is given) mean and variance of each unit are those of the whole global batch, over shapes
    and points; the running ones take a tenth of them, the variance then with n/(n - 1).  In evaluation the running ones
    are used.  kind "instance": over the points of each shape, in training and evaluation, and nothing is remembered.
    Parameters: scale and bias, or Linears gamma and beta (a fresh network ignores c).  Statistics: mean, variance.
    """

    kind: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array | None = None, share: Share | None = None) -> jax.Array:
        """x [S, ..., F]; c [S, C], or [S, N, C] with a code a point; → [S, ..., F]."""
        features, x = x.shape[-1], x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if c is None:
            scale = self.param("scale", nn.initializers.ones, (features,))
            shift = self.param("bias", nn.initializers.zeros, (features,))
        else:
            c = c.reshape(*c.shape[:-1], *(1,) * (x.ndim - c.ndim), c.shape[-1])
            scale = Linear(features, kernel_init=constant(0), bias_init=constant(1), name="gamma")(c)
            shift = Linear(features, kernel_init=constant(0), bias_init=constant(0), name="beta")(c)
        if self.kind == "instance":
            centred = x - x.mean(-2, keepdims=True)
            variance = jnp.square(centred).mean(-2, keepdims=True)
        else:
            centred, variance = self._over_batch(x, share)
        return centred * (scale * jax.lax.rsqrt(variance + EPSILON)) + shift

    def _over_batch(self, x, share):
        running_mean = self.variable("statistics", "mean", jnp.zeros, x.shape[-1])
        running_variance = self.variable("statistics", "variance", jnp.ones, x.shape[-1])
        if share is None:
            return x - running_mean.value, running_variance.value
        axes = tuple(range(x.ndim - 1))
        weight = share.mask.reshape(-1, *(1,) * (x.ndim - 1))
        count = share.sum(share.mask.sum()) * math.prod(x.shape[1:-1])
        mean = share.sum((weight * x).sum(axes)) / count
        centred = x - mean
        variance = share.sum((weight * jnp.square(centred)).sum(axes)) / count
        if not self.is_initializing():
            unbiased = variance * count / jnp.maximum(count - 1, 1)
            running_mean.value = (1 - MOMENTUM) * running_mean.value + MOMENTUM * mean
            running_variance.value = (1 - MOMENTUM) * running_variance.value + MOMENTUM * unbiased
        return centred, variance


def affine(parameters: dict, statistics: dict, c: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """A `Norm` in evaluation, for one condition c [C], as x ↦ scale · x + shift: scale and shift [F]."""
    if "gamma" in parameters:
        gamma, beta = (c @ p["kernel"] + p["bias"] for p in (parameters["gamma"], parameters["beta"]))
    else:
        gamma, beta = parameters["scale"], parameters["bias"]
    scale = gamma * jax.lax.rsqrt(statistics["variance"] + EPSILON)
    return scale, beta - scale * statistics["mean"]


class ResidualBlock(nn.Module):
    """shortcut(x) + fc_1(relu(norm(fc_0(relu(norm(x)))))): activations before each layer, none after the sum.

    The published ResnetBlockFC (norm ""), ResnetBlockConv1d (norm "batch", no c) and CResnetBlockConv1d (with c).
    features: units out.  hidden: units between.  x may come in parts, as in `Linear`.  The shortcut is a linear layer
    without bias where the sizes differ.  fc_1's kernel starts at zero, its bias does not.
    """

    features: int
    hidden: int
    norm: str = ""
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, *parts: jax.Array, c: jax.Array | None = None, share: Share | None = None) -> jax.Array:
        def active(name, x):
            return nn.relu(Norm(self.norm, name=name)(x, c, share) if self.norm else x)

        h = Linear(self.hidden, dtype=self.dtype, name="fc_0")(*(active("bn_0", part) for part in parts))
        fc_1 = Linear(self.features, dtype=self.dtype, kernel_init=constant(0), name="fc_1")
        if len(parts) > 1 or parts[0].shape[-1] != self.features:
            parts = [Linear(self.features, dtype=self.dtype, bias_init=None, name="shortcut")(*parts)]
        return parts[0] + fc_1(active("bn_1", h))
