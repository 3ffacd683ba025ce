"""A batch of independent small problems, split over the devices with their data.

Every device holds up to `capacity` of the B problems.  Capacities are powers of four, so that few programs are
compiled.  Which problems of a device are active is an argument of the program: converged problems can be left out of
later calls without a new compilation and without moving the data of the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel, products
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import bucket

MANY = 64  # problems solved at once on an accelerator; a power of four, so that it divides larger capacities


class ShardedBatch:
    """B problems, split over the devices with their data.

    Split arrays have a leading axis of devices × capacity, `places`; problem i is at `place[i]` of it.
    data: a tree of split arrays that `map` passes to the problems; `tries` consecutive ones have the same.
    """

    def __init__(self, size: int, tries: int = 1):
        self.size, self.devices, self.tries = size, parallel.count(), tries
        each = -(-size // (self.devices * tries)) * tries
        self.capacity = bucket(each)
        problem = np.arange(size)
        self.device, self.local = problem // each, problem % each
        self.place, self.places = self.device * self.capacity + self.local, self.devices * self.capacity
        self.data: Any = None

    def tried(self, tries: int) -> ShardedBatch:
        """A batch of several problems for each one of this batch, with its data."""
        batch = ShardedBatch(self.size * tries, tries)
        batch.data = self.data
        return batch

    def scatter(self, tree):
        """Host arrays [B, …] → arrays split over the devices, with zeros in unused places."""

        def padded(x):
            x = np.asarray(x)
            whole = np.zeros((self.places, *x.shape[1:]), x.dtype)
            whole[self.place] = x
            return whole

        return parallel.split(jax.tree.map(padded, tree))

    def gather(self, tree):
        """Arrays split over the devices → host arrays [B, …]; the inverse of `scatter`."""
        return jax.tree.map(lambda x: x[self.place], parallel.host(tree))

    def map(self, work: Callable, network: BoundNetwork, settings, problems, *arguments, active=None):
        """work(network, settings, problem, data, *arguments) → problem, mapped over problems where active [B] is set.

        Matrix products have the precision of the network.
        work: a pure function of one problem, defined at the top level of a module (it is a key of the compilation
        cache).  settings: static and hashable.  arguments: the same for all problems.
        problems: split over the devices; those that are not active are returned unchanged.  active: None for all.
        """
        mask = np.ones(self.size, bool) if active is None else np.asarray(active, bool)
        # the active problems of each device come first in `order`; the program stops after `count` of them
        order = np.zeros((self.devices, self.capacity), np.int32)
        count = np.zeros(self.devices, np.int32)
        for device in range(self.devices):
            chosen = self.local[mask & (self.device == device)]
            order[device, : len(chosen)] = chosen
            count[device] = len(chosen)
        order, count = parallel.split((order.reshape(-1), count))
        compiled = program(work, settings, len(arguments), parallel.platform(), self.tries)
        with products.precise(network.precision):
            return compiled(network, problems, self.data, order, count, *arguments)


@functools.lru_cache(maxsize=64)
def program(work: Callable, settings, arguments: int, platform: parallel.Platform, tries: int = 1) -> Callable:
    """The program of `ShardedBatch.map`: (network, problems, data, order, count, *arguments) → problems."""
    together = 1 if platform.is_cpu else MANY  # one problem at a time keeps its activations in a CPU's cache

    def on_device(network, problems, data, order, count, *rest):
        return map_active(
            lambda problem, data: work(network, settings, problem, data, *rest),
            *(problems, data, order, count[0], together, tries),
        )

    specs = (parallel.REPLICATED, *[parallel.SPLIT] * 4, *[parallel.REPLICATED] * arguments)
    return parallel.pmap(on_device, specs, parallel.SPLIT)


def map_active(fn: Callable, problems, data, order, count, together: int, tries: int = 1):
    """Applies fn(problem, data) → problem to one device's problems whose numbers are the first `count` of `order`.

    together: most problems at a time.  tries: how many consecutive problems share their data.
    """
    group = min(together, len(order))

    def solve_group(step, problems):
        at = jax.lax.dynamic_slice_in_dim(order, step * group, group)
        if group == 1:  # one problem at a time needs no vmap
            new = fn(*(jax.tree.map(lambda x, i=i: x[i], y) for y, i in ((problems, at[0]), (data, at[0] // tries))))
            return jax.tree.map(lambda x, y: x.at[at[0]].set(y), problems, new)
        new = jax.vmap(fn)(*(jax.tree.map(lambda x, i=i: x[i], y) for y, i in ((problems, at), (data, at // tries))))
        at = jnp.where(step * group + jnp.arange(group) < count, at, len(order))  # out of bounds: dropped
        return jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop"), problems, new)

    return jax.lax.fori_loop(0, -(-count // group), solve_group, problems)
