"""Fields of spheres about one center, points to evaluate them at, and their distances."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jonet.networks.field import Field


@dataclasses.dataclass(frozen=True)
class Sphere:
    """Distances to a sphere, or logits that rise inside."""

    sign: float = 1.0

    def __call__(self, shared, per_shape, points):
        return self.sign * (jnp.linalg.norm(points - shared["center"], axis=-1) - per_shape["radius"])


def sphere(radius: float, sign: float = 1.0, level: float = 0.0) -> Field:
    per_shape = {
        "radius": jnp.float32(radius),
        "level": jnp.float32(level),
        "box": jnp.asarray([[-1.0] * 3, [1.0] * 3]),
    }
    return Field({"center": jnp.asarray([0.1, 0.0, 0.0])}, per_shape, Sphere(sign), inside=-1 if sign > 0 else 1)


def cloud(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def distance(points, radius):
    return np.linalg.norm(points - [0.1, 0, 0], axis=-1) - radius
