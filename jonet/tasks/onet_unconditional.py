"""Occupancy Networks as a generative model: a variational autoencoder of shapes, sampled from its prior.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3.2 and 4.5.

    python experiments/run.py --task=onet_unconditional                  new chairs, a few minutes on 2 cores
    python experiments/run.py --task=onet_unconditional --data=FOLDER    the same with your own meshes
    python experiments/run.py --task=onet_unconditional --preset=paper   the published settings, for accelerators

Unseen shapes are reconstructed from the posterior's mean given points with occupancies; samples are drawn with
z ~ N(0, I).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel, products
from jonet.codes import Codes
from jonet.data.store import Store
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import padded_rows
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.tasks import onet
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import Labeled
from jonet.tasks.onet import Onet
from jonet.tasks.shapes import Shapes
from jonet.training import conditional
from jonet.wording import counted

GPU = Batch(16, 2048, "bfloat16")  # 64 shapes take three times as long as starting the kernels
TOGETHER = 64  # shapes whose bounds are computed at once


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of the generative Occupancy Network."""

    inputs: Labeled = Labeled()  # the points with occupancies that the latent encoder takes


def network(width: int, z_dim: int) -> Specs:
    """A smaller network of the published architecture, for CPUs."""
    return Specs(decoder="simple", encoder="null", c_dim=0, z_dim=z_dim, hidden_size=width, threshold=0.4)


def bounds(config: Config, store: Store, shapes, network: BoundNetwork) -> dict[str, np.ndarray]:
    """Reconstruction error, KL divergence and their sum −ELBO of shapes of the store, each [S].

    shapes: their indices in the store.  The error is the cross-entropy summed over the input's points, with one z
    drawn from the posterior, as in the published evaluation.
    """
    found = []
    for first in range(0, len(shapes), TOGETHER):
        some = shapes[first : first + TOGETHER]
        samples = padded_rows(np.stack([config.inputs.of(store, i, config.seed) for i in some]))
        with products.precise(network.precision):
            terms = _bounds(network, samples, padded_rows(np.int32(some)))
        found.append([np.asarray(term)[: len(some)] for term in terms])
    error, divergence = map(np.concatenate, zip(*found, strict=True))
    return {"reconstruction_error": error, "kl": divergence, "minus_elbo": error + divergence}


@jax.jit
def _bounds(network: BoundNetwork, samples, index):
    """samples [S, N, 4] → cross-entropy and KL divergence, each [S]."""
    key = jax.random.key(0)
    noise = jax.vmap(lambda i: jax.random.normal(parallel.fold_in(key, "latent", i), (network.specs.z_dim,)))(index)
    points, occupancies, none = samples[..., :3], samples[..., 3], jnp.zeros((len(samples), 0))
    logits, divergence = network.module.apply(network.variables, points, occupancies, none, noise)
    return conditional.cross_entropy(logits, occupancies).sum(-1), divergence


class OnetUnconditional(Onet[Config]):
    """A variational autoencoder of shapes, whose encoder takes labeled points."""

    name = "onet_unconditional"
    title = "Occupancy Networks without input"
    config = Config
    validated = "evidence bound (ELBO) of validation shapes"
    presets = {
        # K as published: the KL divergence is weighed against the sum over points, and the latent encoder's maximum
        # over points depends on their number, so training uses as many points as evaluation
        "quick": Config(
            network=network(128, 64), cpu=Batch(4, 2048), gpu=GPU, tpu=Batch(4, 2048, "bfloat16"), minutes=3.0
        ),
        "small": Config(
            **onet.SMALL, network=network(128, 128), cpu=Batch(8, 2048), gpu=GPU, tpu=Batch(8, 2048, "bfloat16")
        ),
        "paper": dataclasses.replace(
            Config(**onet.PAPER, network=Specs(decoder="simple", encoder="null", c_dim=0, z_dim=128, hidden_size=128)),
            shapes=Shapes(train=3_000, test=800, val_fraction=0.1, sign="fusion"),
        ),
    }

    def validation(self, config: Config, store: Store) -> Callable | None:
        """As for all conditional tasks, but the mean ELBO, with the weight that the divergence has in training."""
        shapes = store.select("val")
        if not len(shapes):
            return None
        module = OccupancyNetwork(config.network)

        def validate(shared, per_shape, batch_stats) -> float:
            network = BoundNetwork(module, *parallel.host((shared, batch_stats)))
            terms = bounds(config, store, shapes, network)
            return -float((terms["reconstruction_error"] + config.kl_weight * terms["kl"]).mean())

        return validate

    def model(self, config: Config, store: Store, shapes, shared, per_shape, batch_stats) -> Model:
        """The trained model, with N(0, I) as the prior of its codes."""
        prior = Prior.plain(config.network.z_dim, 1.0)
        return dataclasses.replace(super().model(config, store, shapes, shared, per_shape, batch_stats), prior=prior)

    def scored(self, config: Config, trained: Model, store: Store, codes: Codes) -> list[dict[str, Any]]:
        """Per shape: the terms of the ELBO, which are reported with the metrics of its mesh."""
        shapes = [store.names.index(name) for name in codes.names]
        found = bounds(config, store, shapes, trained.network)
        return [{name: float(values[i]) for name, values in found.items()} for i in range(len(shapes))]

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        return (
            f"A generative model trained on {counted(trained, 'shape')}; "
            f"{counted(unseen, 'unseen shape is', 'unseen shapes are')} reconstructed from the mean of the posterior."
        )


TASK = OnetUnconditional()
