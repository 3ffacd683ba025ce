"""Many small problems of one kind, shared over devices: each is solved where its data lie, and those done are left out.

A job is a list of B problems.  Every device holds `capacity` of them, a power of four, so that few programs are
compiled; how many of these are worked on is an argument of the program, so that problems may leave between calls
without a new compilation and without moving the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.networks.field import bucket

TOGETHER = {"cpu": 1}  # problems worked on at once, by kind of device; one keeps activations in a CPU's cache
MANY = 64  # elsewhere; a power of four, as capacities are


class Net(NamedTuple):
    """A network and its parameters: inside a program, or on all devices."""

    module: Any
    shared: Any
    statistics: Any

    def fold(self, code):
        """The field of one code."""
        return self.module.fold(self.shared, self.statistics, code)


class Job:
    """B problems dealt over the devices with their data; problem i lies at `place[i]` of devices × capacity.

    data: host arrays [B, …] that the programs read.
    """

    def __init__(self, data, size: int):
        self.size, self.devices = size, parallel.count()
        each = -(-size // self.devices)
        self.capacity = bucket(each)
        problem = np.arange(size)
        self.device, self.local = problem // each, problem % each
        self.place = self.device * self.capacity + self.local
        self.data = self.out(data)

    def out(self, tree):
        """Host arrays [B, …] dealt over the devices, zeros where no problem lies."""

        def padded(x):
            x = np.asarray(x)
            whole = np.zeros((self.devices * self.capacity, *x.shape[1:]), x.dtype)
            whole[self.place] = x
            return whole

        return parallel.split(jax.tree.map(padded, tree))

    def back(self, tree):
        """The host's arrays [B, …] of dealt ones."""
        return jax.tree.map(lambda x: x[self.place], parallel.host(tree))

    def run(self, work: Callable, net: Net, settings, problems, *arguments, active=None):
        """work(net, settings, problem, data, *arguments) → problem, mapped over the problems where active [B] holds.

        work is a pure function of one problem, at the top level of its file; settings are static and hashable,
        arguments are the same for all.  problems: dealt; those that are not active come back as they are.
        """
        mask = np.ones(self.size, bool) if active is None else np.asarray(active, bool)
        order = np.zeros((self.devices, self.capacity), np.int32)
        count = np.zeros(self.devices, np.int32)
        for device in range(self.devices):
            chosen = self.local[mask & (self.device == device)]
            order[device, : len(chosen)] = chosen
            count[device] = len(chosen)
        order, count = parallel.split((order.reshape(-1), count))
        compiled = program(work, net.module, settings, len(arguments))
        return compiled(net.shared, net.statistics, problems, self.data, order, count, *arguments)


@functools.lru_cache(maxsize=64)
def program(work: Callable, module, settings, arguments: int) -> Callable:
    """The mapped program of `Job.run`: (shared, statistics, problems, data, order, count, *arguments) → problems."""

    def share(shared, statistics, problems, data, order, count, *rest):
        return over(
            lambda problem, data: work(Net(module, shared, statistics), settings, problem, data, *rest),
            problems,
            data,
            order,
            count[0],
        )

    specs = (*[parallel.REPLICATED] * 2, *[parallel.SPLIT] * 4, *[parallel.REPLICATED] * arguments)
    return parallel.pmap(share, specs, parallel.SPLIT)


def over(fn: Callable, problems, data, order, count):
    """fn(problem, data) → problem for the first `count` of one device's problems that `order` names."""
    group = min(TOGETHER.get(jax.default_backend(), MANY), len(order))

    def some(step, problems):
        at = jax.lax.dynamic_slice_in_dim(order, step * group, group)
        if group == 1:
            new = fn(*jax.tree.map(lambda x: x[at[0]], (problems, data)))
            return jax.tree.map(lambda x, y: x.at[at[0]].set(y), problems, new)
        new = jax.vmap(fn)(*jax.tree.map(lambda x: x[at], (problems, data)))
        at = jnp.where(step * group + jnp.arange(group) < count, at, len(order))  # out of bounds: dropped
        return jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop"), problems, new)

    return jax.lax.fori_loop(0, -(-count // group), some, problems)
