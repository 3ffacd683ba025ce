"""Layers that both papers' networks are made of, with PyTorch's initialisation and parameter meaning."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet import parallel

BLOCK = 1024  # points a block: what is evaluated at once, and what one dropout key covers


def torch_uniform(fan_in: int):
    """PyTorch's default for linear layers, kernel and bias alike: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """An affine layer whose input may come in parts: y = Σ partᵢ Kᵢ + b, with K = [K₁; K₂; …] one kernel.

    Parts only need to broadcast: a code [B, 1, L] beside points [B, N, 3] is multiplied once a shape, not once a point.

    features: units out.  weight_norm: K = g · v / ‖v‖ with the norm over inputs, per unit (Salimans & Kingma 2016,
    eq. 2, no ε); v starts as PyTorch's kernel and g as ‖v‖, so that the start is the plain layer's.
    Parameters: kernel [in, out] (v under weight norm), scale [out] (g), bias [out].  dtype: of the products.
    """

    features: int
    weight_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        sizes = [part.shape[-1] for part in parts]
        init = torch_uniform(sum(sizes))
        kernel = self.param("kernel", init, (sum(sizes), self.features))
        if self.weight_norm:
            kernel = normalized(kernel, self.param("scale", lambda _: jnp.linalg.norm(kernel, axis=0)))
        bias = self.param("bias", init, (self.features,))
        rows = jnp.split(kernel.astype(self.dtype), list(itertools.accumulate(sizes))[:-1])
        products = (part.astype(self.dtype) @ k for part, k in zip(parts, rows, strict=True) if part.shape[-1])
        return sum(products, start=bias.astype(self.dtype))


def normalized(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Weight norm multiplied out: v [in, out], g [out] → g · v / ‖v‖ [in, out]."""
    return kernel * (scale / jnp.linalg.norm(kernel, axis=0))


def effective(parameters: dict) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a Linear's parameters, weight norm multiplied out."""
    kernel = parameters["kernel"]
    return (normalized(kernel, parameters["scale"]) if "scale" in parameters else kernel), parameters["bias"]


def dropout_factors(key: jax.Array, rate: float, shape: tuple[int, ...], first_block: int | jax.Array = 0) -> jax.Array:
    """0 or 1/kept for each unit [N, width] of one shape's points; one key a block of 1,024 points.

    Units are kept by comparing 8 random bits, so the share that is kept is k/256 with k = round(256 (1 - rate)), and
    the factor is its exact inverse.  first_block: the place of the first point's block, so that a batch evaluated in
    pieces of whole blocks draws what the whole batch draws.
    """
    rows, width = shape
    kept = round(256 * (1 - rate))
    size = min(rows, BLOCK)
    blocks = -(-rows // size)
    words = -(-size * width // 4)

    def block(number):
        bits = jax.random.bits(parallel.fold(key, number), (words,), jnp.uint32)
        octets = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(-1)[: size * width]
        return jnp.where(octets.reshape(size, width) < kept, 256 / kept, 0.0)

    factors = jax.vmap(block)(first_block + jnp.arange(blocks))
    return factors.reshape(blocks * size, width)[:rows]
