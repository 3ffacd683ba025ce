"""What happens to clouds of points: noise, missing parts, outliers, and an adversary of a small classifier.

All lengths are of the cube frame, in which the longest side is 1.
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

BOX = 0.55  # outliers lie within ± this
TOGETHER = 32  # clouds a step of the classifier's training


@dataclasses.dataclass(frozen=True)
class Attacks:
    """How strong each perturbation is."""

    noise: float = 0.03  # standard deviation of Gaussian noise on every point; 1 is the longest side
    dropped: float = 0.4  # share of the points that is missing
    parts: int = 3  # in so many pieces
    outliers: float = 0.15  # share of the points that is added, anywhere in the box
    reach: float = 0.1  # farthest that the adversary moves a point
    steps: int = 40  # of the adversary, along the classifier's gradient

    def __post_init__(self):
        if min(self.noise, self.outliers, self.reach) < 0 or not 0 <= self.dropped < 1:
            raise ConfigError("attacks: noise, outliers and reach are 0 or more, and dropped is a share below 1")
        if self.parts < 1 or self.steps < 1:
            raise ConfigError("attacks: parts and steps are at least 1")


NAMES = ("noise", "dropped", "outliers", "adversarial")


def left(points, share, parts: int, key):
    """Which points [N] remain of a cloud [N, 3] when a share of them is dropped: those nearest to `parts` of them."""
    centres = jax.random.choice(parallel.fold(key, "parts"), points, (parts,))
    near = jnp.linalg.norm(points[:, None] - centres, axis=-1).min(1)
    return near >= jnp.sort(near)[(share * len(points)).astype(int)]


def strays(count: int, key):
    """Points spread evenly over the box [count, 3]."""
    return jax.random.uniform(parallel.fold(key, "strays"), (count, 3), minval=-BOX, maxval=BOX)


def noise(points, scale, key):
    """The points [N, 3] with Gaussian noise."""
    return points + scale * jax.random.normal(parallel.fold(key, "noise"), points.shape)


def disturbed(points, key, attacks: Attacks):
    """One cloud [N, 3] as training sees it: parts missing, noise, outliers in place of points, each from none to all
    of its strength.  A missing point is another one again, which a maximum over points does not see."""
    strength = jax.random.uniform(parallel.fold(key, "strength"), (3,))
    stay = left(points, strength[0] * attacks.dropped, attacks.parts, key)
    points = noise(jnp.where(stay[:, None], points, points[jnp.argmax(stay)]), strength[1] * attacks.noise, key)
    stray = jax.random.uniform(parallel.fold(key, "stray"), (len(points),)) < strength[2] * attacks.outliers
    return jnp.where(stray[:, None], strays(len(points), key), points)


def attacked(attacks: Attacks, classifier: Classifier, clouds: np.ndarray, labels: np.ndarray, key) -> dict[str, list]:
    """Clouds [B, N, 3] perturbed in each way: lists of [Nᵢ, 3] by `NAMES`."""
    keys = [parallel.fold(key, "cloud", i) for i in range(len(clouds))]
    extra = round(attacks.outliers * clouds.shape[1])
    share = jnp.float32(attacks.dropped)
    return {
        "noise": [np.asarray(noise(c, attacks.noise, k)) for c, k in zip(clouds, keys, strict=True)],
        "dropped": [c[np.asarray(left(c, share, attacks.parts, k))] for c, k in zip(clouds, keys, strict=True)],
        "outliers": [np.concatenate([c, strays(extra, k)]) for c, k in zip(clouds, keys, strict=True)],
        "adversarial": list(classifier.fooled(clouds, labels, attacks.reach, attacks.steps)),
    }


class Classifier(NamedTuple):
    """A PointNet that tells the families apart.  `network` is static, `variables` its parameters."""

    network: SimplePointnet
    variables: dict

    @staticmethod
    def trained(clouds, labels, classes: int, *, points: int, jitter: float, steps: int, key) -> Classifier:
        """Learned by Adam from clouds [S, M, 3] of `labels` [S], of which a step sees `points` points with noise."""
        network = SimplePointnet(classes, width=64)
        variables = network.init(parallel.fold(key, "network"), clouds[:1, :2])
        return Classifier(network, _train(network, points, variables, clouds, labels, jitter, steps, key))

    def __call__(self, clouds: list) -> np.ndarray:
        """The class of each cloud [Nᵢ, 3]; -1 of one without points."""
        longest = max((len(cloud) for cloud in clouds), default=0)
        if not longest:
            return np.full(len(clouds), -1)
        filled = [c[np.arange(longest) % len(c)] if len(c) else np.zeros((longest, 3)) for c in clouds]
        found = np.asarray(_apply(self.network, self.variables, np.stack(filled).astype(np.float32))).argmax(1)
        return np.where([len(cloud) > 0 for cloud in clouds], found, -1)

    def fooled(self, clouds, labels, reach: float, steps: int) -> np.ndarray:
        """Clouds [B, N, 3] whose points moved by at most `reach` up the gradient of the loss (projected, as Madry et
        al. 2018): in each step all by the same length, in all `steps` by four times the reach."""
        return np.asarray(_fool(self.network, self.variables, clouds, labels, np.float32(reach), steps))


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, variables, clouds):
    return network.apply(variables, clouds)


def _loss(network, variables, clouds, labels):
    logits = network.apply(variables, clouds)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(network, points: int, variables, clouds, labels, jitter, steps, key):
    optimizer = optax.scale_by_adam()

    def step(i, carry):
        variables, slots = carry
        now = parallel.fold(key, "step", i)
        rows = jax.random.randint(parallel.fold(now, "shapes"), (TOGETHER,), 0, len(clouds))
        places = jax.random.randint(parallel.fold(now, "points"), (TOGETHER, points), 0, clouds.shape[1])
        seen = noise(clouds[rows[:, None], places], jitter, now)
        gradient = jax.grad(_loss, argnums=1)(network, variables, seen, labels[rows])
        updates, slots = optimizer.update(jax.tree.map(lambda g: g / TOGETHER, gradient), slots)
        rate = 2e-3 * (1 - i / steps)
        return jax.tree.map(lambda v, u: v - rate * u, variables, updates), slots

    return jax.lax.fori_loop(0, steps, step, (variables, optimizer.init(variables)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _fool(network, variables, clouds, labels, reach, steps):
    def step(_, moved):
        gradient = jax.grad(_loss, argnums=2)(network, variables, clouds + moved, labels)
        moved = moved + 4 * reach / steps * gradient / jnp.maximum(_length(gradient), 1e-12)
        return moved * jnp.minimum(1.0, reach / jnp.maximum(_length(moved), 1e-12))

    return clouds + jax.lax.fori_loop(0, steps, step, jnp.zeros_like(clouds))


def _length(vectors):
    return jnp.linalg.norm(vectors, axis=-1, keepdims=True)
