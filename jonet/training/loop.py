"""The one loop: gather rows, loss, gradient, update; mapped over devices, many steps a dispatch.

Networks differ in one pure function of one device's share,

    loss(shared, own, statistics, batch, key) → (sum over this device's shapes, (statistics, metrics))

with `own` handed in already gathered, one row a shape of the batch, and metrics as sums over shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from jonet.errors import CheckpointError
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.watch import Interrupt, Watch, agreed

CAPACITY = 1024  # steps a dispatch at most: their metrics wait on the device
BY_POSITION = "own_by_position"  # what checkpoints call own rows, so that no other order is taken for it


@struct.dataclass
class State:
    """Everything that training changes, and all that a checkpoint holds.

    shared: replicated.  own: leading axis of rows, each on the device whose lane it belongs to; in a checkpoint by
    position among the training shapes, whatever the devices.  statistics: replicated, running ones of batch norm.
    slots: the optimiser's, which lie as what they belong to.  step [].
    """

    shared: Any
    own: Any
    statistics: Any
    slots: Any
    step: Any


class Batches(Protocol):
    """Where batches come from: resident on the devices or streamed to them."""

    positions: np.ndarray  # [R] among the training shapes, of each row of `own` over all devices; -1 for padding
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
        """The state before the first step, on the devices.  own: one row a training shape, by position."""
        learned = {"shared": parallel.replicate(shared), "own": jax.tree.map(self._in_lanes, own)}
        if self._slots is None:
            specs = self._specs(learned)
            arguments = ({"shared": specs.shared, "own": specs.own},)
            self._slots = parallel.pmap(self.optimizer.init, arguments, specs.slots)
        slots = self._slots(learned)
        statistics = parallel.replicate({} if statistics is None else statistics)
        return State(**learned, statistics=statistics, slots=slots, step=parallel.replicate(np.int32(0)))

    def own(self, state: State):
        """The state's own rows as host arrays, by position among the training shapes."""
        return jax.tree.map(self._by_position, state.own)

    def held(self, state: State) -> dict[str, Any]:
        """A state as checkpoints hold it: own rows and their slots by position, without padding, on every device."""
        state = self._moved(state, lambda rows: parallel.replicate(self._by_position(rows)))
        parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return {BY_POSITION if name == "own" else name: part for name, part in parts.items()}

    def placed(self, held: dict[str, Any]) -> State:
        """The state of a checkpoint, its own rows in the lanes of the devices that there are."""
        state = State(**{"own" if name == BY_POSITION else name: part for name, part in held.items()})
        return self._moved(state, lambda rows: self._in_lanes(parallel.host(rows)))

    def restore(self, checkpoints: Checkpoints, state: State, best: bool = False) -> tuple[State, dict] | None:
        """`Checkpoints.restore` of a state like this one, of a run on any number of devices."""
        try:
            found = checkpoints.restore(self.held(state), best)
        except CheckpointError as error:
            try:  # version 0.1.0 left rows in lanes: it goes on with as many devices
                return checkpoints.restore(state, best)
            except CheckpointError:
                raise error from None
        return found and (self.placed(found[0]), found[1])

    def _moved(self, state: State, move: Callable) -> State:
        """A state with its own rows and their slots moved."""
        places = self._specs({"shared": state.shared, "own": state.own}).slots
        slots = jax.tree.map(lambda at, leaf: move(leaf) if at == parallel.SPLIT else leaf, places, state.slots)
        return state.replace(own=jax.tree.map(move, state.own), slots=slots)

    def _in_lanes(self, rows) -> jax.Array:
        """Rows by position, as they lie on the devices; padding is zeros, which no gradient reaches."""
        rows, positions = np.asarray(rows), self.batches.positions
        laid = np.zeros((len(positions), *rows.shape[1:]), rows.dtype)
        laid[positions >= 0] = rows[positions[positions >= 0]]
        return parallel.split(laid)

    def _by_position(self, rows) -> np.ndarray:
        """The reverse, on the host."""
        rows, positions = parallel.host(rows), self.batches.positions
        real = positions >= 0
        ordered = np.empty((real.sum(), *rows.shape[1:]), rows.dtype)
        ordered[positions[real]] = rows[real]
        return ordered

    def advance(self, state: State, data, steps: int, total: int):
        """Dispatches `steps` training steps of `total` → (state, metrics [CAPACITY] each, index [S, CAPACITY], -1 for
        empty lanes).

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
            return state, metrics, jnp.where(batch.mask > 0, batch.index, -1)

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
    validate(shared, own, statistics) → a score, higher is better: asked every `validate_every` steps and at the end,
    with own rows as `Loop.own` gives them; the best state stays beside the latest (`Loop.restore`, best).
    patience: validations without a better score after which training stops; 0 for never.  names: of the store's
    shapes by index, for errors.
    Raises TrainingError where a loss is not finite, or no gradient reaches the network; CheckpointError where the best
    state of a run that goes on is gone.  Ctrl-C finishes the dispatch,
    writes a checkpoint and raises KeyboardInterrupt with a sentence that says how to go on.
    """
    watch = Watch(loop.batches.points, CAPACITY, names)
    history = {"seconds": 0.0, "best": None, "best_step": None, "stale": 0}
    if checkpoints and (found := loop.restore(checkpoints, state)):
        state, history = found
        if history["best_step"] is not None and loop.restore(checkpoints, state, best=True) is None:
            raise CheckpointError(
                f"{checkpoints.folder}: the best state so far, of step {history['best_step']}, is not there any more; "
                "put it back, or remove the folder to train anew"
            )
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
            checkpoints.save(step, loop.held(state), meta)

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
                score = float(validate(state.shared, loop.own(state), state.statistics))
                note(step=step, validation=score)
                before = -math.inf if history["best"] is None else history["best"]
                better = score > before  # a nan never is
                history["stale"] = 0 if better else history["stale"] + 1
                kept = better or before == -math.inf  # as long as no score is a number, the latest state
                if kept:
                    history |= {"best": score if better else None, "best_step": step}
                if kept and checkpoints:
                    best = jax.tree.map(jnp.copy, loop.held(state))  # the next dispatch takes the state's memory
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
