"""Convolutions with PyTorch's meaning and start, and the plain convolutional encoders of Occupancy Networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jonet.errors import ConfigError
from jonet.networks.layers import Linear, Share, torch_uniform


class Convolution(nn.Module):
    """A convolution over the axes between the first (shapes) and the last (channels).

    size: of the kernel's sides.  padding: zeros on every side.  kernel_init, bias_init: as in `Linear`, given the
    number of inputs of an output; without a bias_init there is no bias.
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
        whole, sliced = (functools.partial(f, stride=self.stride) for f in (convolve, convolve_by_slices))
        if x.ndim == 5:  # on a CPU the platform's own 3-D convolution is an order of magnitude slower in reverse
            return jax.lax.platform_dependent(x, kernel, cpu=sliced, default=whole) + bias
        return whole(x, kernel) + bias


def convolve(x, kernel, stride: int):
    """The platform's convolution without padding: x [S, ..., in], kernel [..., in, out] → [S, ..., out]."""
    axes = "XYZ"[: x.ndim - 2]
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * len(axes), "VALID", dimension_numbers=layout)


def convolve_by_slices(x, kernel, stride: int):
    """The same as shifted slices and matrix products.

    Slices along all axes but the first are joined channel by channel; those along the first are multiplied one by one
    and summed, which keeps what is joined a third of the size.
    """

    def shifted(x, axis):
        count = (x.shape[axis] - kernel.shape[0]) // stride + 1
        stops = (start + stride * (count - 1) + 1 for start in range(kernel.shape[0]))
        return [jax.lax.slice_in_dim(x, start, stop, stride, axis) for start, stop in enumerate(stops)]

    for axis in range(x.ndim - 2, 1, -1):
        x = jnp.concatenate(shifted(x, axis), -1)
    matrices = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
    return sum(part @ matrix for part, matrix in zip(shifted(x, 1), matrices, strict=True))


class ConvEncoder(nn.Module):
    """The published `simple_conv`: five 3² convolutions with stride 2, the mean over what is left, a linear layer.

    width: channels of the first convolution, 32 as published; each of the others doubles them.
    """

    c_dim: int
    width: int = 32
    dtype: jnp.dtype | None = None

    input_shape = (None, None, 3)

    @nn.compact
    def __call__(self, images, share: Share | None = None):
        """images [S, H, W, 3] in [0, 1] → c [S, C]; the same in training."""
        chex.assert_shape(images, (None, *self.input_shape))
        if min(images.shape[1:3]) < 63:  # five times halved, less the border
            raise ConfigError(f"simple_conv takes pictures of at least 63 pixels a side, not {images.shape[1:3]}")
        x = images
        for i in range(5):
            layer = Convolution(self.width << i, stride=2, dtype=self.dtype, name=f"conv{i}")
            x = layer(nn.relu(x) if i else x)
        return Linear(self.c_dim, name="fc_out")(nn.relu(x.mean((1, 2))))


class VoxelEncoder(nn.Module):
    """The published `voxel_simple`: five 3³ convolutions on 32³ voxels, the last four of which halve the sides.

    width: channels of the first convolution, 32 as published; each of the others doubles them.
    """

    c_dim: int
    width: int = 32
    dtype: jnp.dtype | None = None

    input_shape = (32, 32, 32)

    @nn.compact
    def __call__(self, voxels, share: Share | None = None):
        """voxels [S, 32, 32, 32] of 0 and 1, axes x, y, z → c [S, C]; the same in training."""
        chex.assert_shape(voxels, (None, *self.input_shape))
        x = Convolution(self.width, padding=1, dtype=self.dtype, name="conv_in")(voxels[..., None])
        for i in range(4):
            layer = Convolution(self.width << (i + 1), stride=2, padding=1, dtype=self.dtype, name=f"conv_{i}")
            x = layer(nn.relu(x))
        x = nn.relu(jnp.moveaxis(x, -1, 1)).reshape(len(x), -1)  # the published order: channel, x, y, z
        return Linear(self.c_dim, name="fc")(x)
