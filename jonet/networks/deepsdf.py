"""DeepSDF's auto-decoder network (Park et al. 2019, section 4; layers as in the published code)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet.errors import ConfigError
from jonet.networks.field import Field
from jonet.networks.layers import Linear, dropped_relu, normalized_together, resolve_weight_norm

SPHERE_BOX = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
LATENT_DROPOUT = 0.2  # fixed in the published code


@dataclasses.dataclass(frozen=True)
class Specs:
    """The published `NetworkSpecs` (and `CodeLength`), with their published names.

    Layers are numbered from 0; a network with n hidden layers has n + 1 linear layers.  Entries of `dropout` and
    `norm_layers` beyond the last layer are ignored, as in the published code.
    """

    latent_size: int = 256  # L, numbers in a code; 0 for a network of a single shape, without codes
    dims: tuple[int, ...] = (512,) * 8  # units of each hidden layer
    dropout: tuple[int, ...] = tuple(range(8))  # hidden layers with dropout
    dropout_prob: float = 0.2  # probability to drop a unit
    norm_layers: tuple[int, ...] = tuple(range(8))  # layers with weight norm, or layer norm if weight_norm is off
    latent_in: tuple[int, ...] = (4,)  # layers whose input is concatenated with (code, point)
    weight_norm: bool = True  # weight norm (on) or layer norm (off) in norm_layers
    xyz_in_all: bool = False  # the input of every layer is concatenated with the point
    use_tanh: bool = False  # a second tanh before the final one
    latent_dropout: bool = False  # dropout (rate 0.2) on the code, per point, at the first layer

    def __post_init__(self):
        for name in ("dims", "dropout", "norm_layers", "latent_in"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name) or ()))
        if not self.dims or min(self.dims) < 1:
            raise ConfigError(f"dims is {self.dims}, but a network needs hidden layers of at least one unit")
        if not 0 <= self.dropout_prob < 1:
            raise ConfigError(f"dropout_prob is {self.dropout_prob}, but it is a probability below 1 (published: 0.2)")
        if self.latent_size < 0:
            raise ConfigError(f"latent_size is {self.latent_size}, but a code has 0 or more numbers")
        for layer in self.latent_in:
            if not 1 <= layer <= len(self.dims):
                raise ConfigError(f"latent_in names layer {layer}, but the input can join layers 1 to {len(self.dims)}")
        if min(self.widths) < 1:
            raise ConfigError(
                f"dims {self.dims} with latent_in {self.latent_in} and xyz_in_all={self.xyz_in_all} leave a layer of "
                f"{min(self.widths)} units: a layer before a joined input must be wider than what joins it"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Output units of every linear layer; a layer before a concatenation is narrower by what is concatenated."""
        last = len(self.dims)
        joined = [
            self.latent_size + 3 if k + 1 in self.latent_in else 3 if self.xyz_in_all and k < last else 0
            for k in range(last)
        ]
        return (*(width - less for width, less in zip(self.dims, joined, strict=True)), 1)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names by which `DeepSDFDecoder` asks for dropout masks."""
        layers = self.dropout if self.dropout_prob > 0 else ()
        hidden = tuple(f"lin{k}" for k in layers if k < len(self.dims))
        return ("latent",) * self.latent_dropout + hidden

    def joined(self, layer: int) -> str:
        """What is concatenated with a layer's input: "input" (code and point), "point" or ""."""
        if layer == 0 or layer in self.latent_in:
            return "input"
        return "point" if self.xyz_in_all else ""

    def norm(self, layer: int) -> str:
        """How a layer is normalized: "weight", "layer" or ""; the last layer has no layer norm."""
        if layer not in self.norm_layers:
            return ""
        return "weight" if self.weight_norm else "layer" if layer < len(self.dims) else ""


class DeepSDFDecoder(nn.Module):
    """The signed distance of a point, given a shape's code.

    The code's part of a matrix product is computed once per shape and not once per point: the same function with a
    seventh fewer operations at the published size.
    dtype: of the hidden matrix products (float32, or bfloat16 on tensor cores); parameters are float32.
    axis: of the units in the activations, 0 (first: [units, B, N], faster on a CPU, see `layers.times_columns`) or -1
    (last: [B, N, units], faster on an accelerator, which would transpose the others).
    matrix_unit: with the units last, for the last layer's only unit, see `layers.times_one`.
    joined: with the units last, for a GPU, activations and points are multiplied together (`layers.joined_parts`), and
    kernels with weight norm are normalized together (`layers.normalized_together`).
    All of these are the same function to rounding.
    """

    specs: Specs
    dtype: jnp.dtype = jnp.float32
    axis: int = 0
    matrix_unit: bool = False
    joined: bool = False

    @nn.compact
    def __call__(
        self, codes, points, dropout: Callable[[str, float, tuple[int, ...]], tuple[jax.Array, float]] | None = None
    ):
        """codes [B, L], points [B, N, 3] in the normalized frame → distances [B, N], negative inside.

        dropout: None in evaluation; in training `dropout(layer's name, rate, shape of the activations)` returns a mask
        of the units that are kept, and the factor they are multiplied by (one over the fraction that is kept).
        """
        chex.assert_rank([codes, points], [2, 3])
        chex.assert_shape(codes, (points.shape[0], self.specs.latent_size))
        chex.assert_axis_dimension(points, 2, 3)
        specs, last = self.specs, len(self.specs.dims)
        shape, z = (*points.shape[:2], specs.latent_size), codes[:, None]  # [B, 1, L] beside points [B, N, 3]
        if self.axis == 0:
            shape, z, points = (shape[-1], *shape[:2]), codes.T[:, :, None], jnp.moveaxis(points, -1, 0)
        first_z = z  # latent dropout applies to the first layer only
        if dropout is not None and "latent" in specs.dropped:
            mask, factor = dropout("latent", LATENT_DROPOUT, shape)
            first_z = jnp.where(mask, z * factor, 0)
        hidden: list[Any] = []  # the activations, once there are some
        for k, width in enumerate(specs.widths):
            parts = {"input": (first_z if k == 0 else z, points), "point": (points,), "": ()}[specs.joined(k)]
            dtype = self.dtype if k < last else jnp.float32
            norm, one = specs.norm(k) == "weight", self.matrix_unit and k == last
            written = {"axis": self.axis, "matrix_unit": one, "joined": self.joined}
            x = Linear(width, weight_norm=norm, dtype=dtype, **written, name=f"lin{k}")(*hidden, *parts)
            if k < last:
                if specs.norm(k) == "layer":
                    x = nn.LayerNorm(epsilon=1e-5, reduction_axes=self.axis, feature_axes=self.axis, name=f"bn{k}")(x)
                if dropout is not None and f"lin{k}" in specs.dropped:
                    x = dropped_relu(x, *dropout(f"lin{k}", specs.dropout_prob, x.shape))
                else:
                    x = nn.relu(x)
            hidden = [x]
        return squash(specs, hidden[0][0] if self.axis == 0 else hidden[0][..., 0])

    def without_weight_norm(self, shared) -> tuple[DeepSDFDecoder, dict]:
        """The same function with weight norm multiplied out: its decoder and variables.  shared: this one's."""
        if not self.specs.weight_norm:
            return self, shared
        layers = shared["params"]
        if self.joined:
            normed = {name: (layer["kernel"], layer["scale"]) for name, layer in layers.items() if "scale" in layer}
            kernels = {name: layer["kernel"] for name, layer in layers.items()} | normalized_together(normed)
        else:
            kernels = {name: resolve_weight_norm(layer)[0] for name, layer in layers.items()}
        plain = {name: {"kernel": kernels[name], "bias": layer["bias"]} for name, layer in layers.items()}
        return self.clone(specs=dataclasses.replace(self.specs, norm_layers=())), {"params": plain}

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of one shape: weight norm is multiplied out, and the code's products become biases.

        shared: this network's parameters.  batch_stats: unused, since DeepSDF has no batch norm.  code [L].
        """
        chex.assert_shape(code, (self.specs.latent_size,))
        kernels, biases, code_biases, norms = [], [], [], []
        for k in range(len(self.specs.widths)):
            kernel, bias = resolve_weight_norm(shared["params"][f"lin{k}"])
            code_bias = None
            if self.specs.joined(k) == "input":
                # the kernel's rows are (activations, code, point); the code's rows move into this shape's bias
                rows = kernel.shape[0] - 3
                code_rows = rows - self.specs.latent_size
                bias, code_bias = None, bias + code @ kernel[code_rows:rows]
                kernel = jnp.concatenate([kernel[:code_rows], kernel[rows:]])
            kernels.append(kernel)
            biases.append(bias)
            code_biases.append(code_bias)
            norms.append(shared["params"].get(f"bn{k}") if self.specs.norm(k) == "layer" else None)
        folded = {"kernels": kernels, "biases": biases, "norms": norms}
        per_shape = {"code_biases": code_biases, "level": jnp.zeros(()), "box": jnp.asarray(SPHERE_BOX)}
        return Field(folded, per_shape, Folded(self.specs), inside=-1, code_dependent=("code_biases",))


def squash(specs: Specs, x):
    """The final tanh; two with `use_tanh`."""
    return jnp.tanh(jnp.tanh(x) if specs.use_tanh else x)


@dataclasses.dataclass(frozen=True)
class Folded:
    """Evaluates a folded decoder, where only the point still joins the activations.

    A layer's bias is in shared["biases"], or in per_shape["code_biases"] if the code enters the layer; the other list
    holds None in its place.
    """

    specs: Specs

    def __call__(self, shared, per_shape, points):
        """points [N, 3] → distances [N]."""
        last, x = len(self.specs.dims), points  # the first layer has no activations and does not read x
        layers = zip(shared["kernels"], shared["biases"], per_shape["code_biases"], shared["norms"], strict=True)
        for k, (kernel, bias, code_bias, norm) in enumerate(layers):
            inner = kernel.shape[0] - (3 if self.specs.joined(k) else 0)
            y = bias if code_bias is None else code_bias
            if inner:
                y = y + x @ kernel[:inner]
            if self.specs.joined(k):
                y = y + points @ kernel[inner:]
            if norm is not None:
                y = cast(jax.Array, nn.LayerNorm(epsilon=1e-5).apply({"params": norm}, y))
            x = nn.relu(y) if k < last else y
        return squash(self.specs, x[..., 0])
