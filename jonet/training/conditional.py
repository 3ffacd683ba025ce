"""Losses of Occupancy Networks (Mescheder et al. 2019, sections 3.1 and 3.2): cross-entropy and KL divergence."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jonet import parallel
from jonet.networks.layers import BatchReduction
from jonet.networks.occupancy import Classifier, OccupancyNetwork


def loss(
    shared,
    per_shape,
    batch_stats,
    batch,
    key,
    *,
    network: OccupancyNetwork,
    kl_weight: float = 1.0,
    gather: Callable = parallel.gather,
    train: bool = True,
):
    """Cross-entropy summed over points (not their mean), plus the KL divergence of z, summed over this device's shapes.

    batch: points [S, N, 3], values [S, N] (occupancies, 0 or 1), index [S], mask [S], inputs [S, ...] of the encoder,
    and weights of the points' cross-entropies, None or [S, N].
    per_shape [S, C]: c of each shape for the encoder `idx`, else unused.
    kl_weight: of the divergence; 1 as published, with 0 the network is an autoencoder without a prior.
    gather: rows of all devices for batch norm, as in `BatchReduction`; outside of a mapped function, the identity.
    train: if False, batch norm uses its running statistics, and the sum is the negative ELBO.
    Returns (sum, (batch_stats, metrics)); the metrics are sums over this device's shapes, too.
    """
    specs = network.specs
    occupancies = batch.values.astype(batch.points.dtype)
    if specs.encoder == "null":
        inputs = jnp.zeros((len(batch.mask), 0))
    else:
        inputs = per_shape if specs.encoder == "idx" else batch.inputs
    # drawn by a shape's index, so that z does not depend on the rest of the batch or on the devices
    noise = jax.vmap(lambda i: jax.random.normal(parallel.fold_in(key, "latent", i), (specs.z_dim,)))(batch.index)
    (logits, divergence), changed = network.apply(
        {**shared, "batch_stats": batch_stats},
        *(batch.points, occupancies, inputs, noise),
        BatchReduction(batch.mask, gather) if train else None,
        mutable=["batch_stats"] if train else [],
    )
    errors = cross_entropy(logits, occupancies)
    errors = (errors if batch.weights is None else batch.weights * errors).sum(-1)
    metrics = {"cross_entropy": jnp.sum(batch.mask * errors)}
    if specs.z_dim:
        metrics["kl"] = jnp.sum(batch.mask * divergence)
    if kl_weight:  # a divergence that nothing limits may overflow, and 0 · inf is nan
        errors = errors + kl_weight * divergence
    return jnp.sum(batch.mask * errors), (changed.get("batch_stats", batch_stats), metrics)


def classifier_loss(shared, per_shape, batch_stats, batch, key, *, network: Classifier):
    """Cross-entropy of single-shape classifiers: the mean over points, summed over this device's shapes.

    per_shape: codes [S, L], all parameters of each shape.  batch: points [S, N, 3], values [S, N], mask [S].
    """
    logits = jax.vmap(lambda code, points: network(shared, {"code": code}, points))(per_shape, batch.points)
    errors = cross_entropy(logits, batch.values.astype(logits.dtype)).mean(-1)
    total = jnp.sum(batch.mask * errors)
    return total, (batch_stats, {"cross_entropy": total})


def cross_entropy(logits, occupancies):
    """Binary cross-entropy [...] of each logit [...], without overflow: -o log σ(x) - (1 - o) log(1 - σ(x))."""
    return optax.sigmoid_binary_cross_entropy(logits, occupancies)


def iou(logits, occupancies, threshold: float):
    """Intersection over union of predicted and true occupancies at points, [S, N] each → [S], for validation.

    A point is predicted inside if its occupancy is at least the threshold.  If both have no point inside, it is 1 (the
    published code gives nan).
    """
    predicted, true = jax.nn.sigmoid(logits) >= threshold, occupancies >= 0.5
    union = (predicted | true).sum(-1)
    return jnp.where(union, (predicted & true).sum(-1) / jnp.maximum(union, 1), 1.0)


def initial(network: OccupancyNetwork | Classifier, shapes: int, key):
    """Initial shared parameters, per-shape rows [shapes, L], and batch_stats.

    Every row is drawn by its position.  It is c from N(0, 1) for the encoder `idx` (as PyTorch's embedding), the
    parameters of a classifier, or empty.
    """
    if isinstance(network, Classifier):
        return {}, jax.vmap(lambda i: network.start(parallel.fold_in(key, "code", i)))(jnp.arange(shapes)), {}
    shared, batch_stats = network.start(parallel.fold_in(key, "network"))
    length = network.specs.c_dim if network.specs.encoder == "idx" else 0
    draw = jax.vmap(lambda i: jax.random.normal(parallel.fold_in(key, "code", i), (length,)))
    return shared, draw(jnp.arange(shapes)), batch_stats
