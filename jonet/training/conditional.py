"""Losses of Occupancy Networks (Mescheder et al. 2019, sections 3.1 and 3.2): cross-entropy of occupancies, and KL."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jonet import parallel
from jonet.networks.layers import Share
from jonet.networks.occupancy import Classifier, OccupancyNetwork


def loss(
    shared,
    own,
    statistics,
    batch,
    key,
    *,
    network: OccupancyNetwork,
    over_devices: Callable = parallel.sum,
    train: bool = True,
):
    """Cross-entropy summed over points (not their mean), plus the KL divergence of z, summed over this device's shapes.

    batch: points [S, N, 3], values [S, N] (occupancies, 0 or 1), index [S], mask [S], inputs [S, ...], what the encoder
    sees, and weights, None or [S, N], which the points' cross-entropies are multiplied by.  own [S, C]: c of each shape
    under the encoder `idx`, else unused.  over_devices: how batch statistics sum over all devices; outside of a mapped
    function, the identity.  train: off, running statistics are used, and the sum is the negative ELBO.
    → (sum, (statistics, metrics)), the metrics sums over this device's shapes as well.
    """
    specs = network.specs
    occupancies = batch.values.astype(batch.points.dtype)
    if specs.encoder == "null":
        seen = jnp.zeros((len(batch.mask), 0))
    else:
        seen = own if specs.encoder == "idx" else batch.inputs
    noise = jax.vmap(lambda i: jax.random.normal(parallel.fold(key, "latent", i), (specs.z_dim,)))(batch.index)
    (logits, divergence), changed = network.apply(
        {**shared, "statistics": statistics},
        *(batch.points, occupancies, seen, noise),
        Share(batch.mask, over_devices) if train else None,
        mutable=["statistics"] if train else [],
    )
    errors = cross_entropy(logits, occupancies)
    errors = (errors if batch.weights is None else batch.weights * errors).sum(-1)
    metrics = {"cross_entropy": jnp.sum(batch.mask * errors)}
    if specs.z_dim:
        metrics["kl"] = jnp.sum(batch.mask * divergence)
    return jnp.sum(batch.mask * (errors + divergence)), (changed.get("statistics", statistics), metrics)


def classifier_loss(shared, own, statistics, batch, key, *, network: Classifier):
    """Cross-entropy of single-shape classifiers, the mean over points, summed over this device's shapes.

    own: codes [S, L], all parameters of each shape.  batch: points [S, N, 3], values [S, N], mask [S].
    """
    logits = jax.vmap(lambda code, points: network(shared, {"code": code}, points))(own, batch.points)
    errors = cross_entropy(logits, batch.values.astype(logits.dtype)).mean(-1)
    total = jnp.sum(batch.mask * errors)
    return total, (statistics, {"cross_entropy": total})


def cross_entropy(logits, occupancies):
    """Binary cross-entropy of each logit, without overflow: -o log σ(x) - (1 - o) log(1 - σ(x))."""
    return optax.sigmoid_binary_cross_entropy(logits, occupancies)


def iou(logits, occupancies, threshold: float):
    """Intersection over union of what a network and the labels call inside: [S, N] each → [S], for validation.

    Inside is an occupancy of at least the threshold.  Where neither has a point inside they agree: 1 (the published
    program gives nan).
    """
    predicted, true = jax.nn.sigmoid(logits) >= threshold, occupancies >= 0.5
    union = (predicted | true).sum(-1)
    return jnp.where(union, (predicted & true).sum(-1) / jnp.maximum(union, 1), 1.0)


def initial(network: OccupancyNetwork | Classifier, shapes: int, key):
    """The start: shared parameters, own rows [shapes, L] each drawn by its position, and statistics.

    A row is c from N(0, 1) under the encoder `idx` (PyTorch's embedding), a classifier's parameters, or empty.
    """
    if isinstance(network, Classifier):
        return {}, jax.vmap(lambda i: network.start(parallel.fold(key, "code", i)))(jnp.arange(shapes)), {}
    shared, statistics = network.start(parallel.fold(key, "network"))
    length = network.specs.c_dim if network.specs.encoder == "idx" else 0
    draw = jax.vmap(lambda i: jax.random.normal(parallel.fold(key, "code", i), (length,)))
    return shared, draw(jnp.arange(shapes)), statistics
