"""Occupancy Networks as a generative model: a variational autoencoder of shapes, sampled from its prior.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3.2 and 4.5.

    python experiments/run.py --task=onet_unconditional                  a few minutes on 2 cores: new chairs
    python experiments/run.py --task=onet_unconditional --data=FOLDER    the same on meshes of your own
    python experiments/run.py --task=onet_unconditional --preset=paper   the published settings, for accelerators

Unseen shapes are rebuilt from the posterior's mean, given labelled points; samples come from z ~ N(0, I).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.data.store import Store
from jonet.inference.prior import Prior
from jonet.model import Model
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.tasks import onet
from jonet.tasks.inputs import Labelled
from jonet.tasks.onet import FRAME, PARTS, adjusted, inputs, observe, usual_preset
from jonet.tasks.problem import Problem
from jonet.tasks.shapes import Shapes
from jonet.training import conditional

__all__ = ["FRAME", "PARTS", "adjusted", "inputs", "observe", "usual_preset"]

NAME = "onet_unconditional"
TITLE = "Occupancy Networks without input"
VALIDATED = "evidence bound (ELBO) of validation shapes"


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of the task; the comment beside each is its help."""

    NAME: ClassVar[str] = NAME
    inputs: Labelled = Labelled()


def network(width: int, z_dim: int) -> Specs:
    """A smaller network of the published kind, for CPUs."""
    return Specs(decoder="simple", encoder="null", c_dim=0, z_dim=z_dim, hidden_size=width, threshold=0.4)


PRESETS = {
    # K as published: the sum over points is what the divergence is weighed against, and a posterior's maximum over
    # points grows with their number, so as many are learned from as are asked with
    "quick": Config(network=network(128, 64), batch_shapes=4, batch_points=2048, minutes=3.0),
    "small": Config(**onet.SMALL, network=network(128, 128), batch_shapes=8, batch_points=2048),
    "paper": Config(
        **onet.PAPER | {"shapes": Shapes(train=3_000, test=800, val_share=0.1)},
        network=Specs(decoder="simple", encoder="null", c_dim=0, z_dim=128, hidden_size=128),
    ),
}


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem:
    """As of all conditional tasks; validated by the evidence bound."""
    return dataclasses.replace(onet.problem(config, store, shapes, key, chosen), validate=validation(config, store))


def validation(config: Config, store: Store) -> Callable | None:
    """(shared, own, statistics) → the evidence lower bound, the mean over validation shapes; None without such."""
    shapes = store.select("val")
    return (
        None
        if not len(shapes)
        else lambda *learned: -float(bounds(config, store, shapes, *learned)["minus_elbo"].mean())
    )


def bounds(config: Config, store: Store, shapes, shared, own, statistics) -> dict[str, np.ndarray]:
    """Of shapes of the store [S each]: reconstruction error, KL divergence, and their sum, −ELBO.

    The error is the cross-entropy summed over the points of the input, with one z drawn from the posterior, as the
    published evaluation does.
    """
    shared, statistics = parallel.host((shared, statistics))
    seen = np.stack([config.inputs.of(store, i, config.seed) for i in shapes])
    network = OccupancyNetwork(config.network)
    error, divergence = jax.tree.map(np.asarray, _bounds(network, shared, statistics, seen, np.int32(shapes)))
    return {"reconstruction_error": error, "kl": divergence, "minus_elbo": error + divergence}


@functools.partial(jax.jit, static_argnums=0)
def _bounds(network: OccupancyNetwork, shared, statistics, samples, index):
    """samples [S, N, 4] → cross-entropy and KL, [S] each."""
    key = jax.random.key(0)
    noise = jax.vmap(lambda i: jax.random.normal(parallel.fold(key, "latent", i), (network.specs.z_dim,)))(index)
    points, occupancies, none = samples[..., :3], samples[..., 3], jnp.zeros((len(samples), 0))
    variables = {**shared, "statistics": statistics}
    logits, divergence = network.apply(variables, points, occupancies, none, noise)
    return conditional.cross_entropy(logits, occupancies).sum(-1), divergence


def model(config: Config, store: Store, shapes, shared, own, statistics) -> Model:
    """The trained model, which samples from N(0, I)."""
    prior = Prior.plain(config.network.z_dim, 1.0)
    return dataclasses.replace(onet.model(config, store, shapes, shared, own, statistics), prior=prior)


def scored(config: Config, trained: Model, store: Store, codes) -> list[dict]:
    """What the bound says of each rebuilt shape, beside the scores of its mesh."""
    shapes = [store.names.index(name) for name in codes.names]
    found = bounds(config, store, shapes, trained.shared, None, trained.statistics)
    return [{name: float(values[i]) for name, values in found.items()} for i in range(len(shapes))]


def summary(unseen: int, known: int) -> str:
    """The report's first sentence."""
    return f"A generative model of {known} shapes; {unseen} shapes never seen, rebuilt from their posterior's mean."
