"""Layers of both papers' networks, with PyTorch's initialization and parametrization."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet import parallel

BLOCK = 1024  # points per block: the unit of evaluation, and what one dropout key covers
GOLDEN = 0x9E3779B9  # 2³² / the golden ratio, odd: spreads the counter of dropout masks
EPSILON = 1e-5  # added to the variance of a norm
MOMENTUM = 0.1  # weight of a batch's statistics in the running ones (PyTorch's convention, 1 - flax's)


def torch_uniform(fan_in: int):
    """PyTorch's default initialization of linear layers, kernel and bias alike: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A linear layer of a concatenated input that is given in parts: y = Σ partᵢ Kᵢ + b, where K = [K₁; K₂; …].

    The products are computed per part, so that the parts are never concatenated and only need to broadcast: a code
    [B, 1, L] beside points [B, N, 3] is multiplied once per shape, not once per point.

    features: output units.  axis: the axis of the units, -1 (last) or 0 (first); see `times_columns`.
    matrix_unit: whether a single output unit is computed by an accelerator's matrix unit, see `times_one`.
    joined: with the units last, whether parts that need no broadcasting are concatenated, see `joined_parts`.
    weight_norm: K = g · v / ‖v‖ with the norm over inputs, per unit (Salimans & Kingma 2016, eq. 2, no ε); v is
    initialized as PyTorch's kernel and g as ‖v‖, so that the initial layer is the plain one.
    dtype: of the products; if None, as inputs and parameters promote.
    kernel_init, bias_init: functions of the fan-in that return an initializer; without a bias_init there is no bias.
    Parameters: kernel [in, out] (v under weight norm), scale [out] (g), bias [out].
    """

    features: int
    weight_norm: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = torch_uniform
    axis: int = -1
    matrix_unit: bool = False
    joined: bool = False

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
        kernels = jnp.split(kernel, list(itertools.accumulate(sizes))[:-1])  # one per part
        # a part of size 0 (no code) has no product
        pairs = [(part, k) for part, k, size in zip(parts, kernels, sizes, strict=True) if size]
        if self.joined:
            pairs = joined_parts(pairs)
        if self.axis == 0:
            bias = bias.reshape(-1, *(1,) * (parts[0].ndim - 1))
        product = times_columns if self.axis == 0 else times_one if self.matrix_unit else times
        return sum((product(part, k) for part, k in pairs), start=bias)


def joined_parts(pairs: list[tuple[jax.Array, jax.Array]]) -> list[tuple[jax.Array, jax.Array]]:
    """Parts [..., inᵢ] with their kernels [inᵢ, out]: those that differ in the last axis only are made one.

    On a GPU a product of three coordinates writes, and its sum reads, as many activations as the layer has.
    """
    groups: dict[tuple[int, ...], list[tuple[jax.Array, jax.Array]]] = {}
    for part, kernel in pairs:
        groups.setdefault(part.shape[:-1], []).append((part, kernel))
    return [
        (jnp.concatenate([part for part, _ in group], -1), jnp.concatenate([kernel for _, kernel in group]))
        for group in groups.values()
    ]


def times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] by a kernel [in, out] → [..., out], as one product of matrices.

    A CPU then computes the gradients without transposing a copy, which a batched product would need.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def times_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`times` for a kernel of one column [in, 1] → [..., 1], as a product with eight columns, of which seven are zero.

    XLA writes a product with one column, and those of its gradients, as multiplications and sums of whole activations.
    On a TPU these took a twelfth of the published training step longer than products of its matrix unit.
    """
    wide = times(x, jnp.pad(kernel, ((0, 0), (0, 7))))
    return jax.lax.optimization_barrier(wide)[..., :1]  # without it XLA would leave the seven out


def times_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [in, ...] by a kernel [in, out] → [out, ...], with the units on the first axis.

    The gradient of the kernel is a sum over points.  With the units first, both of its operands are contiguous along
    the points, and a CPU computes it as fast as the forward product; with x [..., in] it is a quarter slower.
    """
    return _columns(kernel, x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


@jax.custom_jvp
def _columns(kernel, x):
    # the barrier makes XLA write the transposed kernel to memory; a product that transposes while reading is slower
    return jax.lax.optimization_barrier(kernel.T) @ x


@_columns.defjvp
def _columns_jvp(primals, tangents):
    (kernel, x), (kernel_dot, x_dot) = primals, tangents
    # written without the barrier, so that the transposed (backward) products need no transposed copies
    return _columns(kernel, x), kernel_dot.T @ x + kernel.T @ x_dot


def normalized(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Weight norm multiplied out: v [in, out], g [out] → g · v / ‖v‖ [in, out]."""
    return kernel * (scale / jnp.linalg.norm(kernel, axis=0))


def normalized_together(layers: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    """`normalized` of several kernels [inᵢ, outᵢ] with their scales [outᵢ], as one stack: fewer programs on a GPU.

    It is filled with rows of zeros and columns of ones, neither of which change the others.
    """
    if not layers:
        return {}
    rows, columns = (max(kernel.shape[axis] for kernel, _ in layers.values()) for axis in (0, 1))

    def filled(kernel: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        below, beside = (0, rows - kernel.shape[0]), (0, columns - kernel.shape[1])
        return jnp.pad(jnp.pad(kernel, (below, (0, 0))), ((0, 0), beside), constant_values=1), jnp.pad(scale, beside)

    stacks = (jnp.stack(parts) for parts in zip(*(filled(*pair) for pair in layers.values()), strict=True))
    together = zip(layers.items(), jax.vmap(normalized)(*stacks), strict=True)
    return {name: wide[: kernel.shape[0], : kernel.shape[1]] for (name, (kernel, _)), wide in together}


def resolve_weight_norm(parameters: dict) -> tuple[jax.Array, jax.Array]:
    """Kernel [in, out] and bias [out] of a Linear's parameters, weight norm multiplied out."""
    kernel = parameters["kernel"]
    return (normalized(kernel, parameters["scale"]) if "scale" in parameters else kernel), parameters["bias"]


def dropout_words(keys: jax.Array, points: int) -> jax.Array:
    """The random words that `dropout_mask` takes: keys [B] of shapes with N points → uint32 [B, blocks, 2].

    Every block of 1,024 points of a shape has its own key.
    """
    blocks = jnp.arange(-(-points // BLOCK))

    def words(key, block):
        return jax.random.bits(parallel.fold_in(key, block), (2,), jnp.uint32)

    return jax.vmap(lambda key: jax.vmap(lambda block: words(key, block))(blocks))(keys)


def dropout_mask(words: jax.Array, rate: float, shape: tuple[int, ...], axis: int = -1) -> jax.Array:
    """Which units of the points of B shapes are kept: those whose random byte is below a limit, see `dropout_factor`.

    words: of the shapes' blocks of points, see `dropout_words`.  shape: of the mask, [B, N, units], or [units, B, N]
    with axis 0 for the units.  A bit depends on the words of its point, on the unit, and on the point's place in the
    block, not on the layout; and a batch that is evaluated in pieces of whole blocks has the masks of the whole batch.
    """
    points, units = shape[2 if axis == 0 else 1], shape[axis]
    size = min(points, BLOCK)
    # the counter of units and places times GOLDEN, in terms of which few vary at a time
    unit = jnp.arange(units, dtype=jnp.uint32) * jnp.uint32(size * GOLDEN % 2**32)
    place = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    first, second = jnp.moveaxis(words, -1, 0)[..., None, None]
    start = unit[:, None] + (place + first) if axis == 0 else unit + (place[:, None] + first)
    kept = random_bytes(start, second) < _kept(rate)  # [B, blocks, units, size], or the last two exchanged
    if axis == 0:
        return jnp.moveaxis(kept, 2, 0).reshape(*shape[:2], -1)[..., :points]
    return kept.reshape(shape[0], -1, units)[:, :points]


def dropout_factor(rate: float) -> float:
    """The factor of kept units.

    A byte resolves the rate in steps of 1/256: k = round(256 (1 - rate)) of 256 values are kept, and the factor 256/k
    is exact for the rate that is used.
    """
    return 256 / _kept(rate)


def _kept(rate: float) -> int:
    return round(256 * (1 - rate))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropped_relu(x: jax.Array, mask: jax.Array, factor: float) -> jax.Array:
    """relu(x) · factor where the mask holds, else 0: x [...], mask [...] bool → [...].

    The backward pass reads only the result, which is positive exactly where the gradient passes and which the next
    layer stores anyway.  So neither x nor the mask is stored: memory traffic dominates for large activations.
    """
    return jnp.where(mask, nn.relu(x) * factor, 0)


def _dropped_and_kept(x, mask, factor) -> tuple[Any, Any]:
    result = dropped_relu(x, mask, factor)
    return result, result


dropped_relu.defvjp(
    _dropped_and_kept,
    lambda factor, result, gradient: (jnp.where(result > 0, gradient * factor, 0), None),
)


def random_bytes(start: jax.Array, word: jax.Array) -> jax.Array:
    """A random byte for each of several numbers, as uint32 [...], for dropout masks.

    start [...]: uint32, a counter times GOLDEN plus a random word.  word: another one.  They are mixed by the finalizer
    of MurmurHash3.  Each byte is the highest one of its own 32-bit word: mixing more words in vector registers costs
    less than splitting words into bytes.
    """
    x = (start ^ (start >> 16)) * jnp.uint32(0x85EBCA6B) ^ word
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x >> 24  # the last step of the finalizer, x ^ (x >> 16), leaves the highest byte as it is


def constant(value: float):
    """A constant initializer, as a function of the fan-in (which it ignores)."""
    return lambda fan_in: nn.initializers.constant(value)


class BatchReduction(NamedTuple):
    """How batch norm reduces over the global batch in training.

    mask [S]: 1 for this device's shapes that count, 0 for padding.  gather: a row of each device [1, F] → of all
    devices [devices, F] (`parallel.gather` inside a mapped function); the default is for one device.
    """

    mask: jax.Array
    gather: Callable = lambda row: row


class Norm(nn.Module):
    """Batch norm x ↦ γ · (x - mean) / √(variance + ε) + β; with a condition c, γ and β are affine functions of c.

    In training (a reduction is given) mean and variance of each unit are taken over the shapes and points of the
    global batch; the running statistics move by a tenth towards them, with the unbiased variance (n/(n - 1)).
    In evaluation the running statistics are used.  kind "instance": statistics over the points of each shape, in
    training and evaluation alike, without running ones; those of a call are collected as "moments" if it asks for them.
    Parameters: scale and bias, or Linears gamma and beta (a fresh network ignores c).  batch_stats: mean, variance.
    """

    kind: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array | None = None, reduction: BatchReduction | None = None) -> jax.Array:
        """x [S, ..., F]; c [S, C], or [S, N, C] with a condition per point → [S, ..., F]."""
        features, x = x.shape[-1], x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if c is None:
            scale = self.param("scale", nn.initializers.ones, (features,))
            shift = self.param("bias", nn.initializers.zeros, (features,))
        else:
            c = c.reshape(*c.shape[:-1], *(1,) * (x.ndim - c.ndim), c.shape[-1])
            scale = Linear(features, kernel_init=constant(0), bias_init=constant(1), name="gamma")(c)
            shift = Linear(features, kernel_init=constant(0), bias_init=constant(0), name="beta")(c)
        if self.kind == "instance":
            mean = x.mean(-2, keepdims=True)
            centered = x - mean
            variance = jnp.square(centered).mean(-2, keepdims=True)
            for name, moment in (("mean", mean), ("variance", variance)):
                self.sow("moments", name, moment, reduce_fn=lambda _, new: new, init_fn=lambda start=moment: start)
        else:
            centered, variance = self._over_batch(x, reduction)
        return centered * (scale * jax.lax.rsqrt(variance + EPSILON)) + shift

    def _over_batch(self, x, reduction):
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        running_variance = self.variable("batch_stats", "variance", jnp.ones, x.shape[-1])
        if reduction is None:
            return x - running_mean.value, running_variance.value
        axes = tuple(range(x.ndim - 1))
        weight = reduction.mask.reshape(-1, *(1,) * (x.ndim - 1))
        # Count, sum and squares around its own mean of each device are one collective, and joined as by Chan, Golub and
        # LeVeque (1979); E[x²] - E[x]² would cancel in float32.
        number = reduction.mask.sum() * math.prod(x.shape[1:-1])
        total = (weight * x).sum(axes)
        # the squares have their minimum at the mean, so the gradient through it is zero
        squares = (weight * jnp.square(x - jax.lax.stop_gradient(total / jnp.maximum(number, 1)))).sum(axes)
        rows = reduction.gather(jnp.concatenate([number[None], total, squares])[None])
        numbers, totals, squares = jnp.split(rows, [1, 1 + len(total)], axis=1)
        count = numbers.sum()
        mean = totals.sum(0) / count
        apart = numbers * jnp.square(totals / jnp.maximum(numbers, 1) - mean)
        variance = (squares + apart).sum(0) / count
        if not self.is_initializing():
            unbiased = variance * count / jnp.maximum(count - 1, 1)
            running_mean.value = (1 - MOMENTUM) * running_mean.value + MOMENTUM * mean
            running_variance.value = (1 - MOMENTUM) * running_variance.value + MOMENTUM * unbiased
        return x - mean, variance


def affine(parameters: dict, batch_stats: dict, c: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """A batch `Norm` in evaluation, for one condition c [C], as x ↦ scale · x + shift: scale [F] and shift [F]."""
    if "gamma" in parameters:
        gamma, beta = (c @ p["kernel"] + p["bias"] for p in (parameters["gamma"], parameters["beta"]))
    else:
        gamma, beta = parameters["scale"], parameters["bias"]
    scale = gamma * jax.lax.rsqrt(batch_stats["variance"] + EPSILON)
    return scale, beta - scale * batch_stats["mean"]


class PostActivationBlock(nn.Module):
    """A residual block with its only activation after both layers: shortcut(x) + relu(fc_1(fc_0(x))).

    features: output and hidden units.  The shortcut is a linear layer without bias.  Unlike in `ResidualBlock`, fc_1's
    kernel does not start at zero: units with a negative bias would then have no gradient, ever.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """parts [S, ..., Fᵢ], as for `Linear` → [S, ..., features]."""
        h = Linear(self.features, dtype=self.dtype, name="fc_0")(*parts)
        h = nn.relu(Linear(self.features, dtype=self.dtype, name="fc_1")(h))
        return h + Linear(self.features, dtype=self.dtype, bias_init=None, name="shortcut")(*parts)


class ResidualBlock(nn.Module):
    """A pre-activation residual block: shortcut(x) + fc_1(relu(norm(fc_0(relu(norm(x)))))).

    The published ResnetBlockFC (norm ""), ResnetBlockConv1d (norm "batch", no c) and CResnetBlockConv1d (with c).
    features: output units.  hidden: hidden units.  x may be given in parts, as in `Linear`.  The shortcut is a linear
    layer without bias if the sizes differ, else the identity.  fc_1's kernel is initialized to zero, its bias is not.
    """

    features: int
    hidden: int
    norm: str = ""
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, *parts: jax.Array, c: jax.Array | None = None, reduction: BatchReduction | None = None
    ) -> jax.Array:
        """parts [S, ..., Fᵢ]; c as for `Norm` → [S, ..., features]."""

        def active(name, x):
            return nn.relu(Norm(self.norm, name=name)(x, c, reduction) if self.norm else x)

        h = Linear(self.hidden, dtype=self.dtype, name="fc_0")(*(active("bn_0", part) for part in parts))
        fc_1 = Linear(self.features, dtype=self.dtype, kernel_init=constant(0), name="fc_1")
        shortcut, *others = parts
        if others or shortcut.shape[-1] != self.features:
            shortcut = Linear(self.features, dtype=self.dtype, bias_init=None, name="shortcut")(*parts)
        return shortcut + fc_1(active("bn_1", h))
