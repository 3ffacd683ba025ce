"""The one loop: gather rows, loss, gradient, update; mapped over devices, many steps a dispatch.

Networks differ in one pure function of one device's share,

    loss(shared, own, statistics, batch, key) → (sum over this device's shapes, (statistics, metrics))

with `own` handed in already gathered, one row a shape of the batch, and metrics as sums over shapes.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from tqdm import tqdm

from jonet import parallel
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.watch import Interrupt, Watch, agreed

CAPACITY = 1024  # steps a dispatch at most: their metrics wait on the device


@struct.dataclass
class State:
    """Everything that training changes, and all that a checkpoint holds.

    shared: replicated.  own: leading axis of rows, each on the device whose lane it belongs to.  statistics:
    replicated, running ones of batch norm.  slots: the optimiser's, which lie as what they belong to.  step [].
    """

    shared: Any
    own: Any
    statistics: Any
    slots: Any
    step: Any


class Batches(Protocol):
    """Where batches come from: resident on the devices or streamed to them."""

    rows: np.ndarray  # [R] the shape of each row of `own`, over all devices; -1 for padding
    points: int  # points a step, over all devices
    specs: Any  # how the data of `segment` lie: parallel.SPLIT, REPLICATED, or a tree of them

    def segment(self, first: int, limit: int) -> tuple[Any, int]:
        """Data on the devices for steps from `first`, and for how many of at most `limit` they suffice."""
        ...

    def draw(self, data, step) -> Any:
        """One device's share of a batch (points, values, row, index, mask, epoch, …), inside a mapped function."""
        ...


def train_step(loss: Callable, lookup: Callable, optimizer, state: State, batch, key, progress=0.0):
    """One update on one device's share → (state, metrics): a mean over the shapes of all devices.

    batch.row [S] are rows of this device's `own`; `lookup` writes them back before the gradient, which knows nothing
    of it.  key: of this step, the same on every device.  progress: share of all steps that is done, for schedules.
    The metric `gradient` is the norm of the network's gradient (of the own one where nothing is shared).
    """
    chex.assert_equal_shape([batch.row, batch.index, batch.mask])
    chex.assert_rank([batch.row, batch.epoch], [1, 0])
    rows = lookup(jax.tree.map(lambda leaf: leaf[batch.row], state.own))
    learned = {
        "shared": state.shared,
        "own": jax.tree.map(lambda leaf, new: leaf.at[batch.row].set(new), state.own, rows),
    }
    shapes = parallel.sum(jnp.sum(batch.mask))  # over all devices: uneven shares weigh right

    def share_of_mean(learned):
        rows = jax.tree.map(lambda leaf: leaf[batch.row], learned["own"])
        value, aux = loss(learned["shared"], rows, state.statistics, batch, key)
        chex.assert_rank(value, 0)
        return value / shapes, aux

    (value, (statistics, metrics)), gradients = jax.value_and_grad(share_of_mean, has_aux=True)(learned)
    gradients["shared"] = parallel.sum(gradients["shared"])  # the one large collective of the step
    norm = optax.tree.norm(gradients["shared"])
    if not jax.tree.leaves(learned["shared"]):
        norm = jnp.sqrt(parallel.sum(optax.tree.norm(gradients["own"]) ** 2))
    updates, slots = optimizer.update(gradients, state.slots, learned, epoch=batch.epoch, progress=progress)
    learned = optax.apply_updates(learned, updates)  # every row moves: Adam on codes is dense
    metrics = {name: total / shapes for name, total in parallel.sum(metrics).items()}
    metrics = {"loss": parallel.sum(value), **metrics, "gradient": norm, "epoch": batch.epoch}
    return State(**learned, statistics=statistics, slots=slots, step=state.step + 1), metrics


class Loop:
    """A training step with its batches, compiled once for any number of steps a dispatch.

    loss: see above.  optimizer: over {"shared", "own"}, see `optimizers.Optimizer.build`.  lookup(rows) → rows: what
    happens to own rows when they are looked up.  key: the root of every draw; a step's key is folded from it.
    """

    def __init__(self, loss: Callable, optimizer, batches: Batches, key, *, lookup: Callable = lambda rows: rows):
        self.loss, self.optimizer, self.batches, self.lookup = loss, optimizer, batches, lookup
        self.key = parallel.replicate(key)
        self._slots = self.dispatch = None  # compiled at their first use

    def start(self, shared, own, statistics=None) -> State:
        """The state before the first step, on the devices.  own: one row a shape, in the order of the store."""
        rows = np.maximum(self.batches.rows, 0)  # padding repeats a row: harmless numbers that no gradient reaches
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], own)
        learned = {"shared": parallel.replicate(shared), "own": parallel.split(own)}
        if self._slots is None:
            specs = self._specs(learned)
            arguments = ({"shared": specs.shared, "own": specs.own},)
            self._slots = parallel.pmap(self.optimizer.init, arguments, specs.slots)
        slots = self._slots(learned)
        statistics = parallel.replicate({} if statistics is None else statistics)
        return State(**learned, statistics=statistics, slots=slots, step=parallel.replicate(np.int32(0)))

    def own(self, state: State):
        """The state's own rows as host arrays in the order of the store."""
        held = self.batches.rows >= 0
        shapes = self.batches.rows[held]

        def ordered(leaf):
            out = np.empty((len(shapes), *leaf.shape[1:]), leaf.dtype)
            out[shapes] = leaf[held]
            return out

        return jax.tree.map(ordered, parallel.host(state.own))

    def advance(self, state: State, data, steps: int, total: int):
        """Dispatches `steps` training steps of `total` → (state, metrics [CAPACITY] each, index [S, CAPACITY]).

        Returns at once; the memory of `state` is taken.  One program serves any number of steps, so that how steps
        are cut into dispatches cannot change a bit.
        """
        if self.dispatch is None:
            specs = self._specs({"shared": state.shared, "own": state.own})
            arguments = (specs, self.batches.specs, *[parallel.REPLICATED] * 3)
            results = (specs, parallel.REPLICATED, parallel.SPLIT)
            self.dispatch = parallel.pmap(self._steps, arguments, results, donate=(0,))
        return self.dispatch(state, data, self.key, np.int32(steps), np.int32(total))

    def _steps(self, state: State, data, key, steps, total):
        def step(state: State):
            batch = self.batches.draw(data, state.step)
            key_now = parallel.fold(key, "step", state.step)
            progress = state.step / total
            state, metrics = train_step(self.loss, self.lookup, self.optimizer, state, batch, key_now, progress)
            return state, metrics, batch.index

        def body(i, carry):
            state, metrics, index = carry
            state, *now = step(state)
            metrics = jax.tree.map(lambda kept, new: kept.at[i].set(new), metrics, now[0])
            return state, metrics, index.at[:, i].set(now[1])

        _, metrics, index = jax.eval_shape(step, state)
        metrics = jax.tree.map(lambda leaf: jnp.zeros(CAPACITY, leaf.dtype), metrics)
        index = jnp.zeros((*index.shape, CAPACITY), index.dtype)
        return jax.lax.fori_loop(0, steps, body, (state, metrics, index))

    def _specs(self, learned) -> State:
        """Where each part of the state lies; a slot whose size follows the number of own rows lies with them."""

        def slots(rows: int):
            own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), learned["own"])
            return jax.eval_shape(self.optimizer.init, {"shared": learned["shared"], "own": own})

        def place(one, two):
            return parallel.REPLICATED if one.shape == two.shape else parallel.SPLIT

        slots = jax.tree.map(place, slots(1), slots(2))
        return State(parallel.REPLICATED, parallel.SPLIT, parallel.REPLICATED, slots, parallel.REPLICATED)


def train(
    loop: Loop,
    state: State,
    steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    save_every: float = 60.0,
    log: Log | None = None,
    validate: Callable[[Any, Any, Any], float] | None = None,
    validate_every: int = 0,
    patience: int = 0,
    names: Sequence[str] = (),
    bar: bool = True,
) -> State:
    """Trains until `steps` steps are done, going on from the newest checkpoint where there is one → the state.

    save_every: seconds between checkpoints; a checkpoint is written only after its losses were seen finite.
    validate(shared, own, statistics) → a score, higher is better: asked every `validate_every` steps and at the end;
    the best state stays beside the latest (`checkpoints.restore(state, best=True)`).  patience: validations without a
    better score after which training stops; 0 for never.  names: of the store's shapes, for errors.
    Raises TrainingError where a loss is not finite, or no gradient reaches the network.  Ctrl-C finishes the dispatch,
    writes a checkpoint and raises KeyboardInterrupt with a sentence that says how to go on.
    """
    watch = Watch(loop.batches.points, CAPACITY, names)
    history = {"seconds": 0.0, "best": None, "best_step": None, "stale": 0}
    if checkpoints and (found := checkpoints.restore(state)):
        state, history = found
    step = int(parallel.host(state.step))
    if log:
        log.cut(step)
    begun = time.monotonic() - history["seconds"]
    saved, best = time.monotonic(), None

    def note(**entry):
        if log:
            log.write({**entry, "seconds": round(time.monotonic() - begun, 3)})

    def save():
        if checkpoints:
            meta = {**history, "seconds": time.monotonic() - begun}
            if best is not None:
                checkpoints.save(history["best_step"], best, meta, best=True)
                checkpoints.wait()  # no checkpoint speaks of a best state that is not there
            checkpoints.save(step, state, meta)

    quiet = not bar or not parallel.is_main()
    with (
        contextlib.closing(watch),
        tqdm(total=steps, initial=step, unit="step", file=sys.stderr, disable=quiet) as shown,
        Interrupt() as interrupt,
    ):
        while step < steps and not 0 < patience <= history["stale"]:
            stop = min(steps, (step // validate_every + 1) * validate_every) if validate_every else steps
            data, count = loop.batches.segment(step, min(watch.pace, stop - step))
            state, metrics, index = loop.advance(state, data, count, steps)
            watch.follow(step, count, metrics, index)
            step += count
            old = agreed(time.monotonic() - saved) >= save_every
            due = step == stop or interrupt.asked or old
            for entry in watch.settle(everything=due):
                note(**entry)
                shown.set_postfix_str(f"loss {entry['loss']:.4g}, {entry['rate']:,.0f} points/s", refresh=False)
                shown.update(entry["step"] - shown.n)
            if not due:
                continue
            if step == stop and validate:
                score = float(validate(state.shared, state.own, state.statistics))
                note(step=step, validation=score)
                better = score > (-math.inf if history["best"] is None else history["best"])  # a nan never is
                history |= {"best": score, "best_step": step, "stale": 0} if better else {"stale": history["stale"] + 1}
                if better and checkpoints:
                    best = jax.tree.map(jnp.copy, state)  # the next dispatch takes the state's memory
            stopping = step == steps or interrupt.asked or 0 < patience <= history["stale"]
            if old or stopping:
                save()
                saved, best = time.monotonic(), None
            if interrupt.asked:
                break
    if checkpoints:
        checkpoints.wait()
    if interrupt.asked and step < steps:
        kept = "the same command goes on from there" if checkpoints else "nothing was kept"
        raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {kept}")
    return state
