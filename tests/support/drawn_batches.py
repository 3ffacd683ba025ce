"""Rows that say whose they are, plans of batches of them, and what is drawn."""

import jax
import numpy as np

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.training.batches import BatchSpec, RowSampling
from jonet.training.lanes import Lanes

KEY = jax.random.key(7)
PLANS = {
    "distances": BatchSpec(RowSampling("sdf", 12, "windows")),
    "few": BatchSpec(RowSampling("sdf", 300, "windows")),
    "conditional": BatchSpec(
        RowSampling("occupancy", 10, "windows", "any"),
        "occupancies",
        RowSampling("surface_points", 8, "windows"),
        noise=0.1,
        more_points=RowSampling("occupancy_near", 6, "windows", "any"),
    ),
    "stretched": BatchSpec(
        RowSampling("occupancy", 10, "windows"),
        "occupancies",
        RowSampling("surface_points", 8, "windows"),
        0.1,
        0.2,
        importance_weighted=True,
    ),
}


def packed(shapes=7, sides=2, width=4, few=False, dtype=np.float32, seed=0) -> RaggedArray:
    """Rows that say whose they are: shape, place (+ 1,000 · seed), 1 if inside, and ± a number."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, (shapes, sides)) if few else rng.integers(40, 90, (shapes, sides))
    offsets = np.cumsum(counts.sum(1)) - counts.sum(1)
    shape = np.repeat(np.arange(shapes), counts.sum(1))
    place = np.arange(counts.sum()) - offsets[shape]
    inside = place >= counts[shape, 0]
    values = np.column_stack([shape, place + 1_000 * seed, inside, np.where(inside, -1, 1) * (0.5 + place)])
    return RaggedArray(values[:, :width].astype(dtype), offsets, counts)


def arrays(**options):
    return {
        "sdf": packed(**options),
        "occupancy": packed(width=3, dtype=np.float16, **options),
        "occupancy_near": packed(seed=1, width=3, dtype=np.float16, **options),
        "surface_points": packed(sides=1, width=3, **options),
    }


def run(source, steps):
    """The batches of some steps as numpy, all devices together."""

    def fraction(data, step):
        batch = source.draw(data, step)
        return batch._replace(epoch=batch.epoch[None])

    out, fraction = {}, parallel.pmap(fraction, (source.specs, parallel.REPLICATED), parallel.SPLIT)
    for step in steps:
        data, count = source.segment(step, 10)
        assert count >= 1
        out[step] = parallel.host(fraction(data, np.int32(step)))
    return out


def lanes(shapes=7, batch=3, seed=0, devices=1, first=0):
    return Lanes.deal(np.arange(first, first + shapes), batch, seed, devices)
