"""Analytic shapes as fields: small architectures with known surfaces."""

import jax.numpy as jnp
import numpy as np

from jonet.networks.field import Field


def ball(shared, per_shape, points):
    """Signed distance to a sphere."""
    return jnp.linalg.norm(points - per_shape["center"], axis=-1) - per_shape["radius"]


def torus(shared, per_shape, points):
    """Signed distance to a torus about z."""
    ring = jnp.linalg.norm(points[:, :2], axis=-1) - per_shape["radius"]
    return jnp.hypot(ring, points[:, 2]) - per_shape["tube"]


def block(shared, per_shape, points):
    """Signed distance to a box of half sides `half` around `center`."""
    beyond = jnp.abs(points - per_shape["center"]) - per_shape["half"]
    return jnp.linalg.norm(jnp.maximum(beyond, 0), axis=-1) + jnp.minimum(beyond.max(-1), 0)


def balls(shared, per_shape, points):
    """Signed distance to a union of K spheres: centers [K, 3], radii [K]."""
    return (jnp.linalg.norm(points[:, None] - per_shape["centers"], axis=-1) - per_shape["radii"]).min(-1)


def rods(shared, per_shape, points):
    """Signed distance to a union of K capsules: start [K, 3], end [K, 3], radii [K]."""
    start, segment = per_shape["start"], per_shape["end"] - per_shape["start"]
    along = jnp.clip(((points[:, None] - start) * segment).sum(-1) / (segment * segment).sum(-1), 0, 1)
    return (jnp.linalg.norm(points[:, None] - start - along[..., None] * segment, axis=-1) - per_shape["radii"]).min(-1)


def logits(shared, per_shape, points):
    """An occupancy network's kind of values: steep at a sphere, saturated away from it."""
    return 12 * jnp.tanh(per_shape["steepness"] * (per_shape["radius"] - jnp.linalg.norm(points, axis=-1)))


def waves(shared, per_shape, points):
    """A gyroid: a surface without end, which every box cuts."""
    x, y, z = per_shape["frequency"] * points.T
    return jnp.sin(x) * jnp.cos(y) + jnp.sin(y) * jnp.cos(z) + jnp.sin(z) * jnp.cos(x)


def constant(shared, per_shape, points):
    return jnp.full(points.shape[:1], per_shape["value"])


def field(architecture, level=0.0, box=((-1, -1, -1), (1, 1, 1)), inside=-1, **per_shape) -> Field:
    """One field of an architecture above."""
    per_shape = {"level": level, "box": box, **per_shape}
    return Field({}, {name: np.asarray(value, np.float32) for name, value in per_shape.items()}, architecture, inside)


def batch(*fields: Field) -> Field:
    return Field.stack(fields)
