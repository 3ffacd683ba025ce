"""The loss of an encoder in front of a trained decoder of signed distances, whose parameters stay as they are."""

from __future__ import annotations

from typing import cast

import chex
import jax
import jax.numpy as jnp

from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.networks.encoded_deepsdf import EncodedDeepSDF
from jonet.training.autodecoder import clamped


def loss(shared, per_shape, batch_stats, batch, key, *, network: EncodedDeepSDF, decoder: DeepSDFDecoder, clamp: float):
    """DeepSDF's clamped L1 (eq. 4) with the encoder's codes, summed over this device's shapes: Σ_shapes mean |f̄ - d̄|.

    shared: the encoder's parameters.  per_shape: unused.  batch_stats: {"decoder"}, the decoder's variables; they are
    no parameters, so they have neither gradient nor optimizer state, and are returned as they came.
    batch: points [S, N, 3], values [S, N] (signed distances), inputs [S, M, 3] (points of the surface), mask [S].
    clamp: δ.  Returns (loss, (batch_stats, metrics)).  Metrics: length ‖z‖.
    """
    chex.assert_equal_shape_prefix([batch.points, batch.values], 2)
    codes = cast(jax.Array, network.apply(shared, batch.inputs, method="encode"))
    predicted = cast(jax.Array, decoder.apply(batch_stats["decoder"], codes, batch.points))
    gap = jnp.abs(clamped(predicted, clamp) - clamped(batch.values, clamp))
    length = jnp.sum(batch.mask * jnp.linalg.norm(jax.lax.stop_gradient(codes), axis=-1))
    return jnp.sum(batch.mask * gap.mean(-1)), (batch_stats, {"length": length})
