"""Residual networks for images (He et al. 2016, in torchvision's form): the image encoder of Occupancy Networks."""

from __future__ import annotations

import chex
import jax.numpy as jnp
from flax import linen as nn

from jonet.networks.convolutions import Convolution
from jonet.networks.layers import BatchReduction, Linear, Norm

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's red, green and blue in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)


def _convolution(features: int, size: int, stride: int = 1, **options) -> Convolution:
    """Without bias, padded to keep the size; kernels initialized as in torchvision: N(0, 2 / (size² · features))."""

    def kaiming(fan_in):
        return nn.initializers.normal((2 / (size**2 * features)) ** 0.5)

    return Convolution(features, size, stride, size // 2, kernel_init=kaiming, bias_init=None, **options)


class Block(nn.Module):
    """A residual block: two 3² convolutions, or as a `bottleneck` a 1², a 3² and a four times wider 1² convolution."""

    width: int
    stride: int
    bottleneck: bool
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x, reduction):
        width, stride = self.width, self.stride
        layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        if not self.bottleneck:
            layers = [(width, 3, stride), (width, 3, 1)]

        skip = x
        for i, (features, size, step) in enumerate(layers, 1):
            x = x if i == 1 else nn.relu(x)
            x = _convolution(features, size, step, dtype=self.dtype, name=f"conv{i}")(x)
            x = Norm(name=f"bn{i}")(x, reduction=reduction)
        if skip.shape != x.shape:
            skip = _convolution(x.shape[-1], 1, stride, dtype=self.dtype, name="downsample_0")(skip)
            skip = Norm(name="downsample_1")(skip, reduction=reduction)
        return nn.relu(skip + x)


class Resnet(nn.Module):
    """ResNet-18, 34, 50 or 101 with a linear layer to c, randomly initialized unless weights are imported.

    blocks: number in each of the four stages.  bottleneck: blocks of ResNet-50 and 101.  width: channels of the first
    stage (64 as published).
    """

    c_dim: int
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    dtype: jnp.dtype | None = None

    input_shape = (None, None, 3)

    @nn.compact
    def __call__(self, images, reduction: BatchReduction | None = None):
        """images [S, H, W, 3] in [0, 1] → c [S, C].  reduction: given in training, for batch norm."""
        chex.assert_shape(images, (None, *self.input_shape))
        x = (images - jnp.array(MEAN, images.dtype)) / jnp.array(DEVIATION, images.dtype)
        x = _convolution(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(Norm(name="bn1")(x, reduction=reduction))
        # flax documents pairs of numbers, but its stub follows the default, a string
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage and not i else 1
                block = Block(self.width << stage, stride, self.bottleneck, self.dtype, name=f"layer{stage + 1}_{i}")
                x = block(x, reduction)
        return Linear(self.c_dim, name="fc")(x.mean((1, 2)))
