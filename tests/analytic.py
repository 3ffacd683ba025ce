"""Shapes with known surfaces as fields: architectures of a few lines, for tests of whatever takes fields."""

import jax.numpy as jnp
import numpy as np

from jonet.networks.field import Field


def ball(shared, own, points):
    """Signed distance to a sphere."""
    return jnp.linalg.norm(points - own["center"], axis=-1) - own["radius"]


def torus(shared, own, points):
    """Signed distance to a torus about z."""
    ring = jnp.linalg.norm(points[:, :2], axis=-1) - own["radius"]
    return jnp.hypot(ring, points[:, 2]) - own["tube"]


def block(shared, own, points):
    """Signed distance to a box of half sides `half` around `center`."""
    beyond = jnp.abs(points - own["center"]) - own["half"]
    return jnp.linalg.norm(jnp.maximum(beyond, 0), axis=-1) + jnp.minimum(beyond.max(-1), 0)


def balls(shared, own, points):
    """Signed distance to a union of K spheres: centers [K, 3], radii [K]."""
    return (jnp.linalg.norm(points[:, None] - own["centers"], axis=-1) - own["radii"]).min(-1)


def rods(shared, own, points):
    """Signed distance to a union of K capsules: start [K, 3], end [K, 3], radii [K]."""
    start, way = own["start"], own["end"] - own["start"]
    along = jnp.clip(((points[:, None] - start) * way).sum(-1) / (way * way).sum(-1), 0, 1)
    return (jnp.linalg.norm(points[:, None] - start - along[..., None] * way, axis=-1) - own["radii"]).min(-1)


def logits(shared, own, points):
    """An occupancy network's kind of values: steep at a sphere, saturated away from it."""
    return 12 * jnp.tanh(own["steepness"] * (own["radius"] - jnp.linalg.norm(points, axis=-1)))


def waves(shared, own, points):
    """A gyroid: a surface without end, which every box cuts."""
    x, y, z = own["frequency"] * points.T
    return jnp.sin(x) * jnp.cos(y) + jnp.sin(y) * jnp.cos(z) + jnp.sin(z) * jnp.cos(x)


def constant(shared, own, points):
    return jnp.full(points.shape[:1], own["value"])


def field(architecture, level=0.0, box=((-1, -1, -1), (1, 1, 1)), inside=-1, **own) -> Field:
    """One field of an architecture above."""
    own = {"level": level, "box": box, **own}
    return Field({}, {name: np.asarray(value, np.float32) for name, value in own.items()}, architecture, inside)


def batch(*fields: Field) -> Field:
    return Field.stack(fields)
