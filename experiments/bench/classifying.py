"""An occupancy decoder of the published size, trained briefly on one shape, for the rows that mesh it."""

from __future__ import annotations

import functools
import time

import jax
import numpy as np

from experiments.bench.rows import Bench
from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.networks import occupancy
from jonet.training import batches, conditional
from jonet.training.lanes import Lanes
from jonet.training.loop import Loop
from jonet.training.optimizers import Optimizer, Schedule

SMALLER = 0.5  # scale from the store's frame (unit ball) into the box of Occupancy Networks, [-0.55, 0.55]³
STEPS = 400


def occupancy_of(bench: Bench):
    """Trains an occupancy decoder on one training shape → (network, parameters, batch_stats, condition [C]).

    Labels are the signs of the shape's distance samples.
    """
    width, condition, steps, points = (32, 32, 200, 512) if bench.quick else (256, 256, STEPS, 2048)
    store = bench.trained.store
    shape = int(store.select("train")[0])
    samples = store.samples(shape)
    arrays = {
        "occupancy": RaggedArray(
            np.ascontiguousarray(samples[:, :3]) * SMALLER, np.zeros(1, int), store.counts[[shape]]
        )
    }
    network = occupancy.OccupancyNetwork(occupancy.Specs(encoder="idx", c_dim=condition, hidden_size=width))
    key = parallel.fold_in(jax.random.key(0), "classifying")
    spec = batches.BatchSpec(batches.RowSampling("occupancy", points, sides="any"), "occupancies")
    source = batches.load(arrays, Lanes.deal([0], 1, 0, parallel.count()), spec, key, "resident")
    optimizer = Optimizer("adam", Schedule("cosine", 2e-3, 2e-5), Schedule("constant", 1e-3))
    loop = Loop(functools.partial(conditional.loss, network=network), optimizer.build(), source, key)
    state = loop.start(*conditional.initial(network, 1, key))
    begun = time.perf_counter()
    for first in range(0, steps, 100):
        data, count = loop.batches.segment(first, min(100, steps - first))
        state, metrics, _ = loop.advance(state, data, count, steps)
    jax.block_until_ready(metrics)
    print(f"  trained an occupancy decoder in {time.perf_counter() - begun:.0f} s", flush=True)
    shared, batch_stats = parallel.host((state.shared, state.batch_stats))
    return network, shared, batch_stats, loop.per_shape(state)[0]
