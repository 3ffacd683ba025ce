"""Convolutions with PyTorch's semantics and initialization, and the convolutional encoders of Occupancy Networks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jonet.errors import ConfigError
from jonet.networks.layers import BatchReduction, Linear, torch_uniform


class Convolution(nn.Module):
    """A convolution over the axes between the first (shapes) and the last (channels).

    size: length of each side of the kernel.  padding: zeros added on every side.  kernel_init, bias_init: as in
    `Linear`, called with the fan-in; without a bias_init there is no bias.
    Parameters: kernel [size, ..., in, out], bias [out].
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 0
    kernel_init: Callable = torch_uniform
    bias_init: Callable | None = torch_uniform
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*(self.size,) * (x.ndim - 2), x.shape[-1], self.features)
        fan_in = math.prod(shape[:-1])
        kernel = self.param("kernel", self.kernel_init(fan_in), shape)
        bias = jnp.zeros((), kernel.dtype)
        if self.bias_init is not None:
            bias = self.param("bias", self.bias_init(fan_in), (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, [(0, 0), *[(self.padding,) * 2] * (x.ndim - 2), (0, 0)])
        whole, blocks = (functools.partial(f, stride=self.stride) for f in (convolve, convolve_by_blocks))
        if x.ndim == 5:  # the backward pass of XLA's own 3-D convolution is an order of magnitude slower on a CPU
            return jax.lax.platform_dependent(x, kernel, cpu=blocks, default=whole) + bias
        return whole(x, kernel) + bias


def convolve(x, kernel, stride: int):
    """XLA's convolution without padding: x [S, ..., in], kernel [..., in, out] → [S, ..., out]."""
    axes = "XYZ"[: x.ndim - 2]
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * len(axes), "VALID", dimension_numbers=layout)


def convolve_by_blocks(x, kernel, stride: int):
    """`convolve` in 3-D with stride 1 or 2, by slices and one matrix product (im2col).

    x [S, X, Y, Z, in], kernel [K, K, K, in, out] → [S, X', Y', Z', out].
    """
    # One shape at a time, and the columns are recomputed in the backward pass: both keep them in the CPU's cache.
    one = jax.checkpoint({1: _stride_1, 2: _stride_2}[stride])
    return jax.lax.map(lambda x: one(x, kernel), x)


def _stride_2(x, kernel):
    """Stride 2 for one shape: x [X, Y, Z, in], kernel [K, K, K, in, out] → [X', Y', Z', out].

    x is cut into blocks of 2³ cells whose channels are contiguous.  With stride 2 every output starts at a block, so
    that the columns of all outputs are a few slices over whole blocks.
    """
    size = len(kernel)
    counts = [(n - size) // 2 + 1 for n in x.shape[:3]]  # outputs along each axis
    blocks = [count - 1 + -(-size // 2) for count in counts]  # blocks that the outputs read
    x = jnp.pad(x, [(0, max(0, 2 * b - n)) for b, n in zip(blocks, x.shape, strict=False)] + [(0, 0)])
    x = x[tuple(slice(2 * b) for b in blocks)].reshape(*(size for b in blocks for size in (b, 2)), -1)
    x = x.transpose(0, 2, 4, 1, 3, 5, 6)
    parts, matrices = [], []
    for first in itertools.product(range(0, size, 2), repeat=3):
        cells = [slice(min(2, size - start)) for start in first]  # an odd kernel covers only half of its last block
        where = [slice(start // 2, start // 2 + count) for start, count in zip(first, counts, strict=True)]
        rows = tuple(slice(start, start + 2) for start in first)
        parts.append(x[(*where, *cells)].reshape(*counts, -1))
        matrices.append(kernel[rows].reshape(parts[-1].shape[-1], -1))
    return jnp.concatenate(parts, -1) @ jnp.concatenate(matrices)


def _stride_1(x, kernel):
    """Stride 1 for one shape, by `_stride_2`: the 2³ outputs of a block become channels of one larger kernel.

    That kernel has K + 1 cells a side and holds the original one shifted by 0 or 1 along each axis.
    """
    counts = [n - len(kernel) + 1 for n in x.shape[:3]]
    moved = [jnp.pad(kernel, [(k, 1 - k) for k in cell] + [(0, 0)] * 2) for cell in np.ndindex(2, 2, 2)]
    y = _stride_2(jnp.pad(x, [(0, n % 2) for n in counts] + [(0, 0)]), jnp.concatenate(moved, -1))
    blocks = y.shape[:3]
    y = y.reshape(*blocks, 2, 2, 2, -1).transpose(0, 3, 1, 4, 2, 5, 6).reshape(*(2 * b for b in blocks), -1)
    return y[tuple(slice(n) for n in counts)]


class ConvEncoder(nn.Module):
    """The published `simple_conv`: five 3² convolutions with stride 2, the mean over pixels, a linear layer.

    width: channels of the first convolution (32 as published); each of the others doubles them.
    """

    c_dim: int
    width: int = 32
    dtype: jnp.dtype | None = None

    input_shape = (None, None, 3)

    @nn.compact
    def __call__(self, images, reduction: BatchReduction | None = None):
        """images [S, H, W, 3] in [0, 1] → c [S, C].  reduction is ignored: training and evaluation are the same."""
        chex.assert_shape(images, (None, *self.input_shape))
        if min(images.shape[1:3]) < 63:  # five halvings, each of which also loses a border pixel
            raise ConfigError(f"simple_conv takes images of at least 63 pixels a side, not {images.shape[1:3]}")
        x = images
        for i in range(5):
            layer = Convolution(self.width << i, stride=2, dtype=self.dtype, name=f"conv{i}")
            x = layer(nn.relu(x) if i else x)
        return Linear(self.c_dim, name="fc_out")(nn.relu(x.mean((1, 2))))


class VoxelEncoder(nn.Module):
    """The published `voxel_simple`: five 3³ convolutions on 32³ voxels, the last four with stride 2.

    width: channels of the first convolution (32 as published); each of the others doubles them.
    """

    c_dim: int
    width: int = 32
    dtype: jnp.dtype | None = None

    input_shape = (32, 32, 32)

    @nn.compact
    def __call__(self, voxels, reduction: BatchReduction | None = None):
        """voxels [S, 32, 32, 32] of 0 and 1, axes x, y, z → c [S, C].  reduction is ignored, as in `ConvEncoder`."""
        chex.assert_shape(voxels, (None, *self.input_shape))
        x = Convolution(self.width, padding=1, dtype=self.dtype, name="conv_in")(voxels[..., None])
        for i in range(4):
            layer = Convolution(self.width << (i + 1), stride=2, padding=1, dtype=self.dtype, name=f"conv_{i}")
            x = layer(nn.relu(x))
        x = nn.relu(jnp.moveaxis(x, -1, 1)).reshape(len(x), -1)  # flattened in the published order: channel, x, y, z
        return Linear(self.c_dim, name="fc")(x)
