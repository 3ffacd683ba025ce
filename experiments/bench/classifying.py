"""An occupancy decoder in the published size, trained for a short time on one shape, for the rows that mesh it."""

from __future__ import annotations

import functools
import time

import jax
import numpy as np

from experiments.bench.rows import Bench
from jonet import parallel
from jonet.data import batches
from jonet.data.lanes import Lanes
from jonet.data.store import Packed
from jonet.networks import occupancy
from jonet.training import conditional
from jonet.training.loop import Loop
from jonet.training.optimizers import Optimizer, Schedule

SMALLER = 0.5  # from the store's frame, a ball of radius 1, into the box of ±0.55
STEPS = 400


def occupancy_of(bench: Bench):
    """Network, parameters, statistics and condition of one training shape, learned from the signs of its distances."""
    width, condition, steps, points = (32, 32, 200, 512) if bench.quick else (256, 256, STEPS, 2048)
    store = bench.trained.store
    shape = int(store.select("train")[0])
    samples = store.samples(shape)
    arrays = {
        "occupancy": Packed(np.ascontiguousarray(samples[:, :3]) * SMALLER, np.zeros(1, int), store.counts[[shape]])
    }
    network = occupancy.OccupancyNetwork(occupancy.Specs(encoder="idx", c_dim=condition, hidden_size=width))
    key = parallel.fold(jax.random.key(0), "classifying")
    plan = batches.Plan(batches.Draw("occupancy", points, sides="any"), "occupancies")
    source = batches.load(arrays, Lanes.deal([0], 1, 0, parallel.count()), plan, key, resident=True)
    optimizer = Optimizer("adam", Schedule("cosine", 2e-3, 2e-5), Schedule("constant", 1e-3))
    loop = Loop(functools.partial(conditional.loss, network=network), optimizer.build(), source, key)
    state = loop.start(*conditional.initial(network, 1, key))
    begun = time.perf_counter()
    for first in range(0, steps, 100):
        data, count = loop.batches.segment(first, min(100, steps - first))
        state, metrics, _ = loop.advance(state, data, count, steps)
    jax.block_until_ready(metrics)
    print(f"  trained an occupancy decoder in {time.perf_counter() - begun:.0f} s", flush=True)
    shared, statistics = parallel.host((state.shared, state.statistics))
    return network, shared, statistics, loop.own(state)[0]
