"""Perturbations of point clouds: noise, missing parts, outliers, and an adversarial attack on a small classifier.

All lengths are in the cube frame, in which a shape's longest side is 1.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.encoders import SimplePointnet
from jonet.networks.field import bucket, padded_rows

BOX = 0.55  # half the side of the box that outliers are drawn from
BATCH = 32  # clouds per training step of the classifier


@dataclasses.dataclass(frozen=True)
class Attacks:
    """Strengths of the perturbations; lengths are in longest sides of the shape."""

    noise: float = 0.03  # standard deviation of the Gaussian noise on every point, in longest sides; 0 or more
    dropped: float = 0.4  # fraction of the points that is removed, from 0 to below 1
    parts: int = 3  # number of points around which points are removed, 1 or more
    outliers: float = 0.15  # number of outliers added in the box, as a fraction of the number of points; 0 or more
    reach: float = 0.1  # largest distance by which the adversary moves a point, in longest sides; 0 or more
    steps: int = 40  # gradient steps of the adversary, 1 or more

    def __post_init__(self):
        if min(self.noise, self.outliers, self.reach) < 0 or not 0 <= self.dropped < 1:
            raise ConfigError("attacks: noise, outliers and reach must be 0 or more, dropped from 0 to below 1")
        if self.parts < 1 or self.steps < 1:
            raise ConfigError("attacks: parts and steps must be at least 1")


NAMES = ("noise", "dropped", "outliers", "adversarial")


def drop_parts(points, fraction, parts: int, key):
    """Mask [N] of the points of a cloud [N, 3] that remain after a fraction of them is dropped.

    Dropped are the points nearest to `parts` randomly chosen points.
    """
    centers = jax.random.choice(parallel.fold_in(key, "parts"), points, (parts,))
    distance = jnp.linalg.norm(points[:, None] - centers, axis=-1).min(1)
    return distance >= jnp.sort(distance)[(fraction * len(points)).astype(int)]


def uniform_outliers(count: int, key):
    """Points [count, 3] uniform in the box of ±0.55."""
    return jax.random.uniform(parallel.fold_in(key, "strays"), (count, 3), minval=-BOX, maxval=BOX)


def noise(points, scale, key):
    """The points [N, 3] with Gaussian noise of standard deviation `scale`."""
    return points + scale * jax.random.normal(parallel.fold_in(key, "noise"), points.shape)


def corrupt(points, key, attacks: Attacks):
    """A cloud [N, 3] as training sees it: missing parts, noise, and outliers that replace points.

    Each strength is drawn uniformly between 0 and that of `attacks`.  A dropped point is replaced by a copy of a
    remaining one, which does not change a maximum over points.
    """
    strength = jax.random.uniform(parallel.fold_in(key, "strength"), (3,))
    kept = drop_parts(points, strength[0] * attacks.dropped, attacks.parts, key)
    points = noise(jnp.where(kept[:, None], points, points[jnp.argmax(kept)]), strength[1] * attacks.noise, key)
    is_outlier = jax.random.uniform(parallel.fold_in(key, "stray"), (len(points),)) < strength[2] * attacks.outliers
    return jnp.where(is_outlier[:, None], uniform_outliers(len(points), key), points)


def attacked(attacks: Attacks, classifier: Classifier, clouds: np.ndarray, labels: np.ndarray, key) -> dict[str, list]:
    """Clouds [B, N, 3] under each perturbation: a dict from `NAMES` to a list of [Nᵢ, 3]."""
    keys = [parallel.fold_in(key, "cloud", i) for i in range(len(clouds))]
    extra = round(attacks.outliers * clouds.shape[1])
    fraction = jnp.float32(attacks.dropped)
    return {
        "noise": [np.asarray(noise(c, attacks.noise, k)) for c, k in zip(clouds, keys, strict=True)],
        "dropped": [
            c[np.asarray(drop_parts(c, fraction, attacks.parts, k))] for c, k in zip(clouds, keys, strict=True)
        ],
        "outliers": [np.concatenate([c, uniform_outliers(extra, k)]) for c, k in zip(clouds, keys, strict=True)],
        "adversarial": list(classifier.pgd_attack(clouds, labels, attacks.reach, attacks.steps)),
    }


class Classifier(NamedTuple):
    """A PointNet that classifies the families.  `network` is static, `variables` are its parameters."""

    network: SimplePointnet
    variables: dict

    @staticmethod
    def trained(clouds, labels, classes: int, *, points: int, jitter: float, steps: int, key) -> Classifier:
        """Trained by Adam on clouds [S, M, 3] with `labels` [S]; a step sees `points` points of each, with noise.

        jitter: standard deviation of that noise.
        """
        network = SimplePointnet(classes, width=64)
        variables = network.init(parallel.fold_in(key, "network"), clouds[:1, :2])
        rows = padded_rows(clouds), padded_rows(labels), np.int32(len(clouds))
        return Classifier(network, _train(network, points, variables, *rows, jitter, steps, key))

    def __call__(self, clouds: list) -> np.ndarray:
        """The class of each cloud [Nᵢ, 3]; -1 for a cloud without points."""
        longest = max((len(cloud) for cloud in clouds), default=0)
        if not longest:
            return np.full(len(clouds), -1)
        # filled with their own points, again and again, which do not change a maximum over points
        places = np.arange(bucket(longest))
        filled = [c[places % len(c)] if len(c) else np.zeros((len(places), 3)) for c in clouds]
        rows = padded_rows(np.stack(filled).astype(np.float32))
        found = np.asarray(_apply(self.network, self.variables, rows))[: len(clouds)].argmax(1)
        return np.where([len(cloud) > 0 for cloud in clouds], found, -1)

    def pgd_attack(self, clouds, labels, reach: float, steps: int) -> np.ndarray:
        """Clouds [B, N, 3] attacked by projected gradient ascent on the loss (Madry et al. 2018).

        No point moves by more than `reach`.  Each step moves all points on which the loss depends
        (others have no gradient) by the same length, 4 · reach / steps.
        """
        arguments = padded_rows(clouds), padded_rows(labels), np.float32(reach), steps
        return np.asarray(_pgd_attack(self.network, self.variables, *arguments))[: len(clouds)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, variables, clouds):
    return network.apply(variables, clouds)


def _loss(network, variables, clouds, labels):
    logits = network.apply(variables, clouds)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(network, points: int, variables, clouds, labels, count, jitter, steps, key):
    optimizer = optax.scale_by_adam()

    def step(i, carry):
        variables, opt_state = carry
        now = parallel.fold_in(key, "step", i)
        rows = jax.random.randint(parallel.fold_in(now, "shapes"), (BATCH,), 0, count)
        places = jax.random.randint(parallel.fold_in(now, "points"), (BATCH, points), 0, clouds.shape[1])
        seen = noise(clouds[rows[:, None], places], jitter, now)
        gradient = jax.grad(_loss, argnums=1)(network, variables, seen, labels[rows])
        updates, opt_state = optimizer.update(jax.tree.map(lambda g: g / BATCH, gradient), opt_state)
        rate = 2e-3 * (1 - i / steps)
        return jax.tree.map(lambda v, u: v - rate * u, variables, updates), opt_state

    return jax.lax.fori_loop(0, steps, step, (variables, optimizer.init(variables)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _pgd_attack(network, variables, clouds, labels, reach, steps):
    def step(_, moved):
        gradient = jax.grad(_loss, argnums=2)(network, variables, clouds + moved, labels)
        moved = moved + 4 * reach / steps * gradient / jnp.maximum(_length(gradient), 1e-12)
        return moved * jnp.minimum(1.0, reach / jnp.maximum(_length(moved), 1e-12))

    return clouds + jax.lax.fori_loop(0, steps, step, jnp.zeros_like(clouds))


def _length(vectors):
    return jnp.linalg.norm(vectors, axis=-1, keepdims=True)
