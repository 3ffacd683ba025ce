"""An encoder in front of DeepSDF's decoder: the code of a point cloud in one pass, and the field of a code."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_type_hints

import jax
import jax.numpy as jnp
from flax import linen as nn

from jonet.errors import ConfigError
from jonet.networks import deepsdf
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.networks.encoders import ENCODERS
from jonet.networks.field import Field


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Structure of the encoder."""

    encoder: Literal["pointnet_resnet", "pointnet_simple"] = "pointnet_resnet"  # as of Occupancy Networks, by name
    encoder_width: int | None = None  # units of the encoder's layers; None: as published

    def __post_init__(self):
        known = get_args(get_type_hints(type(self))["encoder"])
        if self.encoder not in known:
            raise ConfigError(f"encoder {self.encoder!r} is unknown; there are {', '.join(known)}")
        if self.encoder_width is not None and self.encoder_width < 1:
            raise ConfigError(f"encoder_width is {self.encoder_width}, but must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Specs(Encoder):
    """Structure of encoder and decoder."""

    decoder: deepsdf.Specs = deepsdf.Specs()

    @property
    def latent_size(self) -> int:
        """Numbers in a code, L."""
        return self.decoder.latent_size

    @property
    def c_dim(self) -> int:
        """Numbers that the encoder gives, as of Occupancy Networks: the whole code."""
        return self.latent_size

    @property
    def z_dim(self) -> int:
        """Numbers of a latent variable beside them, as of Occupancy Networks: none."""
        return 0


class EncodedDeepSDF(nn.Module):
    """A decoder of signed distances with an encoder of point clouds that gives its codes.

    Its parameters are {"params": {"encoder", "decoder"}}; those of the decoder are as of `DeepSDFDecoder`.
    dtype: of the encoder's matrix products (bfloat16 for tensor cores); parameters are float32.
    """

    specs: Specs
    dtype: jnp.dtype | None = None

    def setup(self):
        specs = self.specs
        width = {} if specs.encoder_width is None else {"width": specs.encoder_width}
        self.encoder = ENCODERS[specs.encoder](specs.latent_size, dtype=self.dtype, **width)

    def encode(self, inputs):
        """Clouds of S shapes [S, N, 3] → codes [S, L]."""
        return self.encoder(inputs)

    def start(self, key) -> dict:
        """Parameters of a new encoder {"params": {"encoder"}}, with PyTorch's initialization."""
        return jax.jit(self.init, static_argnames="method")(key, jnp.zeros((1, 1, 3)), method="encode")

    def fold(self, shared, batch_stats, code) -> Field:
        """The field of one shape with code [L]: that of the decoder."""
        return self.decoder.fold({"params": shared["params"]["decoder"]}, batch_stats, code)

    @property
    def decoder(self) -> DeepSDFDecoder:
        """The decoder alone."""
        return DeepSDFDecoder(self.specs.decoder, parent=None)  # not a part of the module, whose `encoder` is
