"""Occupancy Networks (Mescheder et al. 2019, section 3): the conditional network and the single-shape classifier."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal, NamedTuple, get_args, get_type_hints

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet.errors import ConfigError
from jonet.networks.encoders import ENCODERS, EncoderName, LatentEncoder
from jonet.networks.field import Field
from jonet.networks.layers import BatchReduction, Linear, Norm, ResidualBlock, affine, torch_uniform

HALF = 0.55  # half the side of the box that holds the surface: the longest side 1 and a padding of 0.1
DRAWN = 2048  # points whose moments instance norms have where a shape becomes a field; as many as in a published step
LEAK = 0.2  # slope below zero of the published leaky ReLU


@dataclasses.dataclass(frozen=True)
class Specs:
    """The published `model` options, with their published names where they have one.

    decoder, the layers between a first one of the point and a last one to the logit:
      simple               z and c are added to the first layer; residual blocks without norm
      batchnorm            the same with batch norm
      cbatchnorm           z is added to the first layer, c conditions the batch norms of all blocks
      cbatchnorm2          a linear function of z is added to c, which conditions the batch norms
      cbatchnorm_noresnet  linear layers in place of blocks, with conditional batch norms between them
    (`legacy` decoders are the same functions under other names.)
    encoder: `idx` (c is a row of an embedding, one per shape) and `null` (there is no c) are not networks; the
    published `resnet101` is a ResNet-50, `resnet101_full` has 101 layers; `pointnet_resnet_post` is `pointnet_resnet`
    with ReLU after the two layers of a block, not before each.
    """

    decoder: Literal["simple", "batchnorm", "cbatchnorm", "cbatchnorm2", "cbatchnorm_noresnet"] = "cbatchnorm"
    encoder: Literal[EncoderName, "idx", "null"] = "resnet18"
    c_dim: int = 256  # C, numbers in a condition; 0 for none
    z_dim: int = 0  # Z, numbers in the VAE's latent code; 0 for no VAE
    hidden_size: int = 256  # units of the decoder's layers
    n_blocks: int = 5  # residual blocks, or linear layers in place of them
    leaky: bool = False  # leaky ReLU before the last layer, or before every layer where there are no residual blocks
    norm: Literal["batch", "instance"] = "batch"  # statistics over the batch, or over each shape's points
    encoder_width: int | None = None  # units of the encoder's layers, or channels of its first one; None: as published
    latent_leaky: bool = False  # the latent encoder with leaky ReLU, and means over points in place of maxima
    threshold: float = 0.2  # τ, occupancy on the surface (published: 0.2; 0.5 for representation power)

    def __post_init__(self):
        for name in ("decoder", "encoder", "norm"):
            known = get_args(get_type_hints(Specs)[name])
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; there are {', '.join(known)}")
        for name, least in {"c_dim": 0, "z_dim": 0, "hidden_size": 1, "n_blocks": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be {least} or more")
        if (self.encoder == "null") != (self.c_dim == 0):
            raise ConfigError(f"encoder {self.encoder!r} with c_dim {self.c_dim}: null, and only null, has c_dim 0")
        _check(self.threshold)

    @property
    def latent_size(self) -> int:
        """Numbers in a code, which is z and c concatenated."""
        return self.z_dim + self.c_dim

    @property
    def conditional(self) -> bool:
        """Whether c conditions the norms."""
        return self.decoder.startswith("cbatchnorm")

    @property
    def residual(self) -> bool:
        """Whether the hidden layers are residual blocks."""
        return self.decoder != "cbatchnorm_noresnet"

    @property
    def slopes(self) -> tuple[float, ...]:
        """The slope below zero of each activation, in order."""
        last = LEAK if self.leaky else 0.0
        return (0.0,) * (2 * self.n_blocks) + (last,) if self.residual else (last,) * (self.n_blocks + 1)

    @property
    def norms(self) -> str:
        """The kind of the decoder's norms, "" for none."""
        return "" if self.decoder == "simple" else self.norm


class OccupancyDecoder(nn.Module):
    """Logits of occupancy of points, given a shape's latent code z and condition c."""

    specs: Specs
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, points, z, c, reduction: BatchReduction | None = None):
        """points [S, N, 3], z [S, Z], c [S, C] → logits [S, N], positive inside.  reduction: given in training."""
        specs, shapes = self.specs, len(points)
        chex.assert_shape([points, z, c], [(shapes, None, 3), (shapes, specs.z_dim), (shapes, specs.c_dim)])
        x = self._linear("fc_p", points)
        if specs.z_dim and specs.decoder == "cbatchnorm2":
            c = c + Linear(specs.c_dim, name="fc_z")(z)
        elif specs.z_dim:
            x = x + self._linear("fc_z", z)[:, None]
        if specs.c_dim and not specs.conditional:
            x = x + self._linear("fc_c", c)[:, None]
        condition = c if specs.conditional else None

        def active(i, name, x):
            x = Norm(specs.norms, name=name)(x, condition, reduction) if specs.norms else x
            return leaky_relu(x, specs.slopes[i])

        for i in range(specs.n_blocks):
            if specs.residual:
                block = ResidualBlock(specs.hidden_size, specs.hidden_size, specs.norms, self.dtype, name=f"block{i}")
                x = block(x, c=condition, reduction=reduction)
            else:
                x = self._linear(f"fc_{i}", active(i, f"bn_{i}", x))
        x = active(-1, "bn" if specs.residual else f"bn_{specs.n_blocks}", x)
        return Linear(1, name="fc_out")(x)[..., 0]

    def _linear(self, name, x):
        return Linear(self.specs.hidden_size, dtype=self.dtype, name=name)(x)


def leaky_relu(x, slope: float):
    """x above zero, slope · x below."""
    return jnp.where(x > 0, x, slope * x)


class Folded(NamedTuple):
    """Evaluates a folded decoder: products with shared matrices, each activation after one scale and shift per unit."""

    residual: bool
    slopes: tuple[float, ...]

    def __call__(self, shared, per_shape, points):
        """points [N, 3] → logits [N]."""
        scales, shifts = {**shared, **per_shape}.get("scales"), per_shape["shifts"]

        def active(i, x):
            x = x + shifts[i] if scales is None else x * scales[i] + shifts[i]
            return leaky_relu(x, self.slopes[i])

        x, kernels = points @ shared["first"], shared["kernels"]
        if self.residual:
            for i in range(0, len(kernels), 2):
                x = x + active(i + 1, active(i, x) @ kernels[i]) @ kernels[i + 1]
        else:
            for i, kernel in enumerate(kernels):
                x = active(i, x) @ kernel
        return active(len(kernels), x) @ shared["last"] + shared["bias"]


def fold(specs: Specs, parameters: dict, batch_stats: dict, z, c) -> tuple[dict, dict, Folded]:
    """A decoder folded with one shape's z [Z] and c [C] → (shared arrays, per-shape arrays, architecture).

    Instance norms have the moments of a fixed draw of points (`moments`), so that a value depends on its point only.
    In evaluation every norm is a scale and a shift.  Biases, fc_z(z) and fc_c(c) are constants of the shape; each is
    carried forward to the next activation and added to its shift there, so that no layer needs a bias of its own.
    """
    if specs.norms == "instance":
        batch_stats = moments(specs, parameters, z, c)

    def linear(name, tree=parameters):
        return tree[name]["kernel"], tree[name]["bias"]

    def product(name, x):
        kernel, bias = linear(name)
        return x @ kernel + bias

    first, bias = linear("fc_p")
    if specs.z_dim and specs.decoder == "cbatchnorm2":
        c = c + product("fc_z", z)
    elif specs.z_dim:
        bias = bias + product("fc_z", z)
    if specs.c_dim and not specs.conditional:
        bias = bias + product("fc_c", c)
    scales, shifts, kernels = [], [], []

    def activation(bias, name, parameters=parameters, batch_stats=batch_stats):
        """Appends scale and shift of the next activation, whose input is evaluated without this bias."""
        if specs.norms:
            scale, shift = affine(parameters[name], batch_stats[name], c if specs.conditional else None)
            scales.append(scale)
            bias = scale * bias + shift
        shifts.append(bias)

    for i in range(specs.n_blocks):
        if specs.residual:
            block = parameters[f"block{i}"], batch_stats.get(f"block{i}")
            activation(bias, "bn_0", *block)
            kernel, inner = linear("fc_0", block[0])
            activation(inner, "bn_1", *block)
            outer, more = linear("fc_1", block[0])
            kernels += [kernel, outer]
            bias = bias + more  # the shortcut keeps the constants from before the block
        else:
            activation(bias, f"bn_{i}")
            kernel, bias = linear(f"fc_{i}")
            kernels.append(kernel)
    activation(bias, "bn" if specs.residual else f"bn_{specs.n_blocks}")
    last, bias = linear("fc_out")
    shared = {"first": first, "kernels": kernels, "last": last[:, 0], "bias": bias[0]}
    per_shape = {"shifts": jnp.stack(shifts)}
    if scales:  # the same for all shapes unless the norms are conditional, or their moments those of the shape
        of_shape = specs.conditional or specs.norms == "instance"
        (per_shape if of_shape else shared)["scales"] = jnp.stack(scales)
    return shared, per_shape, Folded(specs.residual, specs.slopes)


def moments(specs: Specs, parameters: dict, z, c) -> dict:
    """The means and variances of the decoder's instance norms for one shape, in the structure of batch_stats.

    They are those of `DRAWN` points, uniform in the box and the same for all shapes.  Shapes are evaluated one after
    the other, since the activations of all points are in memory.
    """

    @jax.custom_batching.sequential_vmap
    def of_shape(parameters, z, c):
        points = jax.random.uniform(jax.random.key(0), (1, DRAWN, 3), minval=-HALF, maxval=HALF)
        decoder = OccupancyDecoder(specs, parent=None)  # not a part of the module whose `fold` this is
        _, found = decoder.apply({"params": parameters}, points, z[None], c[None], mutable=["moments"])
        return jax.tree.map(lambda moment: moment.reshape(moment.shape[-1]), found["moments"])

    return of_shape(parameters, z, c)


class OccupancyNetwork(nn.Module):
    """A decoder with its encoders: of inputs to c, and the VAE's of occupancies to z.

    dtype: of the hidden matrix products (bfloat16 for tensor cores); parameters are float32.
    """

    specs: Specs
    dtype: jnp.dtype | None = None

    def setup(self):
        specs = self.specs
        self.decoder = OccupancyDecoder(specs, self.dtype)
        if specs.encoder in ENCODERS:
            width = {} if specs.encoder_width is None else {"width": specs.encoder_width}
            self.encoder = ENCODERS[specs.encoder](specs.c_dim, dtype=self.dtype, **width)
        if specs.z_dim:
            self.encoder_latent = LatentEncoder(specs.z_dim, leaky=specs.latent_leaky)

    def __call__(self, points, occupancies, inputs, noise, reduction: BatchReduction | None = None):
        """The forward pass of training: logits [S, N] of points [S, N, 3], and the KL divergence [S] (0 without z).

        occupancies [S, N]: of the points, from which z is inferred.  inputs: of the encoder, or c [S, C] itself if
        there is no encoder.  noise [S, Z]: standard normal, z = mean + σ · noise.  reduction: given in training, for
        batch norm.
        """
        c = self.encode(inputs, reduction)
        if self.specs.z_dim:
            mean, logstd = self.infer(points, occupancies, c)
            z, divergence = mean + jnp.exp(logstd) * noise, kl(mean, logstd)
        else:
            z, divergence = jnp.zeros((len(points), 0)), jnp.zeros(len(points))
        return self.decoder(points, z, c, reduction), divergence

    def encode(self, inputs, reduction: BatchReduction | None = None):
        """Inputs of S shapes → c [S, C]."""
        return self.encoder(inputs, reduction) if self.specs.encoder in ENCODERS else inputs

    def infer(self, points, occupancies, c):
        """The posterior of z: points [S, N, 3], occupancies [S, N], c [S, C] → mean and log σ [S, Z]."""
        return self.encoder_latent(points, occupancies, c)

    def decode(self, points, codes):
        """points [S, N, 3], codes [S, Z + C] → logits [S, N], in evaluation."""
        z_dim = self.specs.z_dim
        return self.decoder(points, codes[:, :z_dim], codes[:, z_dim:])

    def start(self, key) -> tuple[dict, dict]:
        """Shared parameters and batch_stats of a new network, with PyTorch's initialization."""
        specs = self.specs
        inputs = jnp.zeros((1, specs.c_dim))
        if specs.encoder in ENCODERS:  # 64 stands for any size: no parameter depends on the number of points or pixels
            encoder = ENCODERS[specs.encoder]  # a module, or a `partial` of one
            inputs = jnp.zeros((1, *(size or 64 for size in getattr(encoder, "func", encoder).input_shape)))
        variables = jax.jit(self.init)(
            key, jnp.zeros((1, 1, 3)), jnp.zeros((1, 1)), inputs, jnp.zeros((1, specs.z_dim))
        )
        return {"params": variables["params"]}, variables.get("batch_stats", {})

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of one shape with code [Z + C]; see the function `fold`."""
        specs = self.specs
        chex.assert_shape(code, (specs.latent_size,))
        decoder = shared["params"]["decoder"], batch_stats.get("decoder", {})
        matrices, per_shape, architecture = fold(specs, *decoder, code[: specs.z_dim], code[specs.z_dim :])
        with_surface = per_shape | _surface(specs.threshold)
        return Field(matrices, with_surface, architecture, inside=1, code_dependent=tuple(per_shape))


def kl(mean, logstd):
    """KL divergence of N(mean, exp(logstd)²) from N(0, 1), summed over the dimensions of z: [S, Z] → [S]."""
    return (0.5 * (jnp.exp(2 * logstd) + jnp.square(mean) - 1) - logstd).sum(-1)


def _check(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold is {threshold}, but it is an occupancy between 0 and 1 (published: 0.2)")


def _surface(threshold: float) -> dict:
    """The per-shape arrays of every occupancy field: the level (τ as a logit) and the box."""
    level = math.log(threshold) - math.log1p(-threshold)
    return {"level": jnp.float32(level), "box": jnp.array([[-HALF] * 3, [HALF] * 3], jnp.float32)}


@dataclasses.dataclass(frozen=True)
class ClassifierSpecs:
    """Options of the single-shape classifier."""

    dims: tuple[int, ...] = (64,) * 5  # units of each hidden layer
    threshold: float = 0.5  # τ, occupancy on the surface

    def __post_init__(self):
        if not self.dims or min(self.dims) < 1:
            raise ConfigError(f"dims is {self.dims}, but a network needs hidden layers of at least one unit")
        _check(self.threshold)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        return list(itertools.pairwise((3, *self.dims, 1)))

    @property
    def latent_size(self) -> int:
        """Numbers in a code: 16,961 with the default layers."""
        return sum((rows + 1) * columns for rows, columns in self.sizes)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """One shape as the decision boundary of a classifier: an MLP with ReLU that shares nothing between shapes.

    A shape's code is the vector of all of its parameters: kernel [in, out] and bias of each layer, in order.
    """

    specs: ClassifierSpecs = ClassifierSpecs()

    def start(self, key) -> jax.Array:
        """A code [L] with PyTorch's initialization."""
        parts = zip(jax.random.split(key, len(self.specs.sizes)), self.specs.sizes, strict=True)
        return jnp.concatenate([torch_uniform(rows)(k, ((rows + 1) * columns,)) for k, (rows, columns) in parts])

    def __call__(self, shared, per_shape, points):
        """per_shape["code"] [L], points [N, 3] → logits [N], positive inside."""
        x, rest = points, per_shape["code"]
        for rows, columns in self.specs.sizes:
            kernel, bias, rest = jnp.split(rest, [rows * columns, (rows + 1) * columns])
            x = x @ kernel.reshape(rows, columns) + bias
            x = nn.relu(x) if rest.size else x
        return x[..., 0]

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of one shape; `shared` and `batch_stats` are empty."""
        chex.assert_shape(code, (self.specs.latent_size,))
        return Field({}, {"code": code} | _surface(self.specs.threshold), self, inside=1, code_dependent=("code",))
