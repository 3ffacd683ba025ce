"""Occupancy Networks' encoders by name, with those of point clouds and the VAE's latent encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import chex
import jax.numpy as jnp
from flax import linen as nn

from jonet.networks.convolutions import ConvEncoder, VoxelEncoder
from jonet.networks.layers import BatchReduction, Linear, PostActivationBlock, ResidualBlock
from jonet.networks.resnet import Resnet


def _pooled(x):
    """The maximum over points [S, N, F] → [S, 1, F].

    Passed to `Linear` as a part of its own beside x, its half of the product is computed once per shape.
    """
    return x.max(1, keepdims=True)


class ResnetPointnet(nn.Module):
    """The published `pointnet_resnet`: residual blocks on each point's features and their maximum over the cloud.

    c_dim: numbers in c.  width: hidden units (512 as published).  blocks: 5 as published.  post: blocks with ReLU after
    their two layers, as descriptions of the network have them, in place of the program's with ReLU before each.
    """

    c_dim: int
    width: int = 512
    blocks: int = 5
    post: bool = False
    dtype: jnp.dtype | None = None

    input_shape = (None, 3)

    @nn.compact
    def __call__(self, points, reduction: BatchReduction | None = None):
        """points [S, N, 3] → c [S, C].  reduction is ignored: training and evaluation are the same."""
        chex.assert_shape(points, (None, *self.input_shape))
        parts = [Linear(2 * self.width, dtype=self.dtype, name="fc_pos")(points)]
        for i in range(self.blocks):
            if self.post:
                x = PostActivationBlock(self.width, dtype=self.dtype, name=f"block_{i}")(*parts)
            else:
                x = ResidualBlock(self.width, self.width, dtype=self.dtype, name=f"block_{i}")(*parts)
            parts = [x, _pooled(x)]
        return Linear(self.c_dim, name="fc_c")(nn.relu(parts[1][:, 0]))


class SimplePointnet(nn.Module):
    """The published `pointnet_simple`: as `ResnetPointnet`, with a linear layer in place of each block."""

    c_dim: int
    width: int = 128
    layers: int = 4
    dtype: jnp.dtype | None = None

    input_shape = (None, 3)

    @nn.compact
    def __call__(self, points, reduction: BatchReduction | None = None):
        """points [S, N, 3] → c [S, C].  reduction is ignored: training and evaluation are the same."""
        chex.assert_shape(points, (None, *self.input_shape))
        parts = [Linear(2 * self.width, dtype=self.dtype, name="fc_pos")(points)]
        for i in range(self.layers):
            x = Linear(self.width, dtype=self.dtype, name=f"fc_{i}")(*(nn.relu(part) for part in parts))
            parts = [x, _pooled(x)]
        return Linear(self.c_dim, name="fc_c")(nn.relu(parts[1][:, 0]))


class LatentEncoder(nn.Module):
    """The VAE's encoder: the posterior of z from points and their occupancies (Mescheder et al. 2019, section 3.2).

    width: 128 units, fixed in the published code.  leaky: leaky ReLU of slope 0.2, and means over points in place of
    maxima.
    """

    z_dim: int
    width: int = 128
    leaky: bool = False

    @nn.compact
    def __call__(self, points, occupancies, c):
        """points [S, N, 3], occupancies [S, N], c [S, C] → mean and log σ of z, each [S, Z]."""
        chex.assert_shape([points, occupancies], [(*occupancies.shape, 3), points.shape[:2]])
        activation = (lambda x: nn.leaky_relu(x, 0.2)) if self.leaky else nn.relu
        pool = (lambda x: x.mean(1, keepdims=True)) if self.leaky else _pooled
        x = Linear(self.width, name="fc_0")(occupancies[..., None]) + Linear(self.width, name="fc_pos")(points)
        if c.shape[-1]:
            x = x + Linear(self.width, name="fc_c")(c)[:, None]
        parts = [x]
        for name in ("fc_1", "fc_2", "fc_3"):
            x = Linear(self.width, name=name)(*(activation(part) for part in parts))
            parts = [x, pool(x)]
        return tuple(Linear(self.z_dim, name=name)(parts[1][:, 0]) for name in ("fc_mean", "fc_logstd"))


InputKind = Literal["points", "voxels", "images", "samples"]
EncoderName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet101_full",
    "simple_conv",
    "pointnet_resnet",
    "pointnet_simple",
    "pointnet_resnet_post",
    "voxel_simple",
]
ENCODERS: dict[EncoderName, Callable[..., nn.Module]] = {
    "resnet18": Resnet,
    "resnet34": partial(Resnet, blocks=(3, 4, 6, 3)),
    "resnet50": partial(Resnet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(Resnet, blocks=(3, 4, 6, 3), bottleneck=True),  # as published: a ResNet-50
    "resnet101_full": partial(Resnet, blocks=(3, 4, 23, 3), bottleneck=True),  # He et al. 2016
    "simple_conv": ConvEncoder,
    "pointnet_resnet": ResnetPointnet,
    "pointnet_simple": SimplePointnet,
    "pointnet_resnet_post": partial(ResnetPointnet, post=True),
    "voxel_simple": VoxelEncoder,
}
"""Encoders by their published names, each constructed with c_dim (`idx` and `null` have no network).

`resnet101_full` and `pointnet_resnet_post` are as descriptions have what the program has otherwise.

`input_shape` is the shape of one shape's input, None along axes of any size."""
