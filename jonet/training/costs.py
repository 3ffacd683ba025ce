"""What a training step takes: operations and memory, counted in the traced program, so that nothing is compiled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jonet import parallel
from jonet.training.loop import State, train_step

VIEWS = ("reshape", "squeeze", "expand_dims", "copy")  # operations whose result needs no memory of its own


class Costs(NamedTuple):
    """Of one step on one device.

    operations: additions and multiplications of matrix products and convolutions, by the type of their operands.
    memory: the most bytes that are alive at once, parameters, optimizer and batch included, samples not.
    """

    operations: Counter[str]
    memory: int


def of_step(loss: Callable, lookup: Callable, optimizer, learned, batch_stats, batch, ema_decay: float = 0.0) -> Costs:
    """The costs of `loop.train_step`.

    learned: {"shared", "per_shape"}, per_shape as on one device.  batch: of one device, arrays or their shapes.
    """
    values = {**learned, "batch_stats": batch_stats or {}}

    def step(values, ema, batch):
        opt_state = optimizer.init({name: values[name] for name in learned})
        state = State(**values, opt_state=opt_state, step=jnp.int32(0), ema=ema)
        return train_step(loss, lookup, optimizer, state, batch, jax.random.key(0), ema_decay=ema_decay)

    trace = jax.make_jaxpr(step, axis_env=[(parallel.AXIS, parallel.count())])
    closed: Any = trace(values, values if ema_decay else None, batch)
    return Costs(_operations(closed.jaxpr), _memory(closed.jaxpr))


def _operations(jaxpr) -> Counter[str]:
    found: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            one, other = (part.aval for part in eqn.invars)
            if eqn.primitive.name == "dot_general":
                terms = math.prod(one.shape[axis] for axis in eqn.params["dimension_numbers"][0][0])
            else:  # as many terms as a filter has numbers for one output
                terms = other.size // other.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            found[one.dtype.name] += 2 * eqn.outvars[0].aval.size * terms
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in _inner(eqn):
            found.update({kind: times * count for kind, count in _operations(inner).items()})
    return found


def _memory(jaxpr) -> int:
    """The peak of what is alive when equations are computed in order: arguments always, others until their last use.

    A compiler joins equations, so that some values never exist, and copies others into another layout.
    """
    root: dict[Any, Any] = {}  # of views: what they are a view of
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in VIEWS and isinstance(eqn.invars[0], core.Var):
            root[eqn.outvars[0]] = root.get(eqn.invars[0], eqn.invars[0])

    def roots(variables) -> set:
        return {root.get(var, var) for var in variables if isinstance(var, core.Var)}

    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in (*roots(eqn.outvars), *roots(eqn.invars))}
    kept = roots((*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars))
    alive = most = sum(map(_bytes, roots((*jaxpr.invars, *jaxpr.constvars))))
    for i, eqn in enumerate(jaxpr.eqns):
        out = sum(_bytes(var) for var in eqn.outvars if var not in root)
        inside = max((_memory(inner) - sum(map(_bytes, inner.invars)) for inner in _inner(eqn)), default=0)
        most = max(most, alive + max(out, inside))
        done = {var for var in roots((*eqn.invars, *eqn.outvars)) - kept if last[var] == i}
        alive += out - sum(map(_bytes, done))
    return most


def _inner(eqn) -> Iterator[Any]:
    """The programs that an equation calls: bodies of loops, branches, compiled functions."""
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
        if hasattr(value, "eqns"):  # a Jaxpr, or one with its constants
            yield getattr(value, "jaxpr", value)


def _bytes(var) -> int:
    return math.prod(var.aval.shape) * getattr(var.aval.dtype, "itemsize", 0)
