"""The training loop of all networks: gather rows, loss, gradient, update; mapped over devices, many steps per dispatch.

Networks differ only in a pure function of one device's part of the batch,

    loss(shared, per_shape, batch_stats, batch, key) → (sum over this device's shapes, (batch_stats, metrics))

where `per_shape` is already gathered, one row per shape of the batch, and metrics are sums over shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jonet import parallel
from jonet.errors import CheckpointError
from jonet.progress import Progress
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.monitor import DispatchMonitor, Interrupt, agreed

CAPACITY = 1024  # most steps per dispatch: their metrics are collected on the device
EVALUATED = ("shared", "per_shape", "batch_stats")  # the parts of a state that a model has, and averages
BY_POSITION = "per_shape_by_position"  # name of per-shape rows in checkpoints, distinct from that of rows in lanes


@struct.dataclass
class State:
    """Everything that training changes, and all that a checkpoint holds.

    shared: parameters of the network, replicated.
    per_shape: arrays with one row per shape, split: each row is on the device of its lane.  In a checkpoint the rows
    are ordered by position among the training shapes, for any number of devices.
    batch_stats: running statistics of batch norm, replicated.
    opt_state: of the optimizer, distributed as the parameters that it belongs to.  step [].
    ema: moving averages {"shared", "per_shape", "batch_stats"}, distributed as these; None without.
    """

    shared: Any
    per_shape: Any
    batch_stats: Any
    opt_state: Any
    step: Any
    ema: Any = None


class Batches(Protocol):
    """The source of batches: samples in the devices' memory (`batches.Resident`) or streamed to it (`Streamed`)."""

    positions: np.ndarray  # [R] position among the training shapes of each per-shape row, all devices; -1 for padding
    points: int  # points per step, over all devices
    specs: Any  # how the data of `segment` are distributed: parallel.SPLIT, REPLICATED, or a tree of them

    def segment(self, first: int, limit: int) -> tuple[Any, int]:
        """Data on the devices for steps from `first`, and for how many of `limit` steps they suffice."""
        ...

    def draw(self, data, step) -> Any:
        """One device's part of a batch (points, values, row, index, mask, epoch, …), inside a mapped function."""
        ...


def train_step(
    loss: Callable, lookup: Callable, optimizer, state: State, batch, key, progress=0.0, ema_decay: float = 0.0
):
    """One update on one device → (state, metrics); the loss and the metrics are means over the shapes of all devices.

    batch.row [S]: rows of this device's per-shape arrays.  lookup: changes these rows before the update (DeepSDF's
    bound on codes) and is not differentiated.  key: of this step, the same on every device.  progress: fraction of all
    steps that is done, for schedules.  ema_decay: of the moving averages (`averaged`); 0 without them.
    The metric `gradient` is the norm of the shared parameters' gradient (of the per-shape one if nothing is shared).
    """
    chex.assert_equal_shape([batch.row, batch.index, batch.mask])
    chex.assert_rank([batch.row, batch.epoch], [1, 0])
    # As PyTorch's Embedding with max_norm: the bounded codes are stored before the gradient is taken, so the bound
    # itself has no gradient and the optimizer's update starts from the bounded codes.
    rows = lookup(jax.tree.map(lambda leaf: leaf[batch.row], state.per_shape))
    learned = {
        "shared": state.shared,
        "per_shape": jax.tree.map(lambda leaf, new: leaf.at[batch.row].set(new), state.per_shape, rows),
    }
    # Each device divides its sum by the shapes of all devices.  Then a plain sum over devices is the global mean, even
    # if devices hold different numbers of shapes.
    shapes = parallel.sum(jnp.sum(batch.mask))

    def local_mean(learned):
        # gathered inside, so that the gradient has all rows: zero for those outside of the batch
        rows = jax.tree.map(lambda leaf: leaf[batch.row], learned["per_shape"])
        value, aux = loss(learned["shared"], rows, state.batch_stats, batch, key)
        chex.assert_rank(value, 0)
        return value / shapes, aux

    (value, (batch_stats, metrics)), gradients = jax.value_and_grad(local_mean, has_aux=True)(learned)
    # The only large collective of a step.  Per-shape gradients need none: a row's shapes are all on its own device.
    gradients["shared"] = parallel.sum(gradients["shared"])
    norm = optax.tree.norm(gradients["shared"])
    if not jax.tree.leaves(learned["shared"]):
        norm = jnp.sqrt(parallel.sum(optax.tree.norm(gradients["per_shape"]) ** 2))
    updates, opt_state = optimizer.update(gradients, state.opt_state, learned, epoch=batch.epoch, progress=progress)
    # of every row: as published, Adam on codes is dense
    learned = cast(dict[str, Any], optax.apply_updates(learned, updates))
    metrics = {name: total / shapes for name, total in parallel.sum(metrics).items()}
    metrics = {"loss": parallel.sum(value), **metrics, "gradient": norm, "epoch": batch.epoch}
    learned |= {"batch_stats": batch_stats, "opt_state": opt_state}
    state = dataclasses.replace(state, **learned, step=state.step + 1)
    return averaged(state, ema_decay) if ema_decay else state, metrics


def averaged(state: State, decay: float) -> State:
    """The state after a step, with its averages moved: ema ← d · ema + (1 - d) · value.

    After t steps d = min(decay, (1 + t)/(10 + t)), as in TensorFlow's ExponentialMovingAverage: while steps are few, an
    average is that of about the last tenth of them, so that it forgets the start.  The running statistics are averaged
    like the parameters.
    """
    steps = state.step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
    values = {name: getattr(state, name) for name in EVALUATED}
    return dataclasses.replace(state, ema=optax.incremental_update(values, state.ema, rate))


class Loop:
    """A training step with its batches, compiled once for any number of steps per dispatch.

    loss: as in the module's docstring.  optimizer: over {"shared", "per_shape"}, see `optimizers.Optimizer.build`.
    lookup(rows) → rows: applied to per-shape rows when they are looked up.  key: of all random draws; every step folds
    its own key from it.  ema_decay: above 0, a moving average of what is learned is kept (`averaged`), and it is what
    is validated and becomes the model.
    """

    def __init__(
        self,
        loss: Callable,
        optimizer,
        batches: Batches,
        key,
        *,
        lookup: Callable = lambda rows: rows,
        ema_decay: float = 0.0,
    ):
        self.loss, self.optimizer, self.batches, self.lookup = loss, optimizer, batches, lookup
        self.ema_decay = ema_decay
        self.key = parallel.replicate(key)
        self._opt_state = self.dispatch = None  # compiled at their first use

    def start(self, shared, per_shape, batch_stats=None) -> State:
        """The state before the first step, on the devices.  per_shape: one row per training shape, by position."""
        batch_stats = {} if batch_stats is None else batch_stats

        def placed() -> dict[str, Any]:
            rows = jax.tree.map(self._in_lanes, per_shape)
            return {**parallel.replicate({"shared": shared, "batch_stats": batch_stats}), "per_shape": rows}

        start = placed()
        learned = {name: start[name] for name in ("shared", "per_shape")}
        if self._opt_state is None:
            specs = self._specs(learned)
            arguments = ({"shared": specs.shared, "per_shape": specs.per_shape},)
            self._opt_state = parallel.pmap(self.optimizer.init, arguments, specs.opt_state)
        opt_state = self._opt_state(learned)
        ema = placed() if self.ema_decay else None  # arrays of its own, since the state is donated
        return State(**start, opt_state=opt_state, step=parallel.replicate(np.int32(0)), ema=ema)

    def per_shape(self, state: State):
        """The state's per-shape rows as host arrays, by position among the training shapes."""
        return jax.tree.map(self._by_position, state.per_shape)

    def evaluated(self, state: State) -> tuple[Any, Any, Any]:
        """What is validated and saved: shared, per-shape rows as of `per_shape`, batch_stats; averages where kept."""
        values = {name: getattr(state, name) for name in EVALUATED} if state.ema is None else state.ema
        return values["shared"], jax.tree.map(self._by_position, values["per_shape"]), values["batch_stats"]

    def held(self, state: State) -> dict[str, Any]:
        """A state as in checkpoints, replicated: per-shape rows and their optimizer state by position, unpadded."""
        state = self._moved(state, lambda rows: parallel.replicate(self._by_position(rows)))
        parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return {BY_POSITION if name == "per_shape" else name: part for name, part in parts.items()}

    def with_rows(self, held: dict[str, Any], rows) -> dict[str, Any]:
        """A state as of `held` whose per-shape rows, as of `evaluated`, are these."""
        rows = parallel.replicate(rows)
        return held | ({BY_POSITION: rows} if held["ema"] is None else {"ema": held["ema"] | {"per_shape": rows}})

    def placed(self, held: dict[str, Any]) -> State:
        """The state of a checkpoint, with its per-shape rows in the lanes of the current devices."""
        state = State(**{"per_shape" if name == BY_POSITION else name: part for name, part in held.items()})
        return self._moved(state, lambda rows: self._in_lanes(parallel.host(rows)))

    def restore(self, checkpoints: Checkpoints, state: State, best: bool = False) -> tuple[State, dict] | None:
        """`Checkpoints.restore` of a state with this structure, saved by a run on any number of devices."""
        found = checkpoints.restore(self.held(state), best)
        return found and (self.placed(found[0]), found[1])

    def _moved(self, state: State, move: Callable) -> State:
        """A state whose per-shape rows, and their optimizer state, are moved by a function."""
        places = self._specs({"shared": state.shared, "per_shape": state.per_shape}).opt_state
        opt_state = jax.tree.map(lambda at, leaf: move(leaf) if at == parallel.SPLIT else leaf, places, state.opt_state)
        ema = state.ema and {**state.ema, "per_shape": jax.tree.map(move, state.ema["per_shape"])}
        return dataclasses.replace(state, per_shape=jax.tree.map(move, state.per_shape), opt_state=opt_state, ema=ema)

    def _in_lanes(self, rows) -> jax.Array:
        """Rows by position → rows in the order of the lanes, on the devices; padding is zeros without gradient."""
        rows, positions = np.asarray(rows), self.batches.positions
        in_lanes = np.zeros((len(positions), *rows.shape[1:]), rows.dtype)
        in_lanes[positions >= 0] = rows[positions[positions >= 0]]
        return parallel.split(in_lanes)

    def _by_position(self, rows) -> np.ndarray:
        """The inverse of `_in_lanes`, on the host."""
        rows, positions = parallel.host(rows), self.batches.positions
        real = positions >= 0
        ordered = np.empty((real.sum(), *rows.shape[1:]), rows.dtype)
        ordered[positions[real]] = rows[real]
        return ordered

    def advance(self, state: State, data, steps: int, total: int):
        """Dispatches `steps` training steps of `total` → (state, metrics, index).

        metrics: [CAPACITY] each, of which the first `steps` are set.  index [S, CAPACITY]: shapes of each step, -1 for
        empty lanes.
        Returns at once; `state` is donated.  One program runs any number of steps, so that the bits of the result do
        not depend on how steps are cut into dispatches.
        """
        return self.program(state)(state, data, self.key, np.int32(steps), np.int32(total))

    def program(self, state: State) -> Callable:
        """The mapped program of `advance`: (state, data, key, steps, total) → (state, metrics, index)."""
        if self.dispatch is None:
            specs = self._specs({"shared": state.shared, "per_shape": state.per_shape})
            arguments = (specs, self.batches.specs, *[parallel.REPLICATED] * 3)
            results = (specs, parallel.REPLICATED, parallel.SPLIT)
            self.dispatch = parallel.pmap(self._steps, arguments, results, donate=(0,))
        return self.dispatch

    def _steps(self, state: State, data, key, steps, total):
        def step(state: State):
            batch = self.batches.draw(data, state.step)
            key_now = parallel.fold_in(key, "step", state.step)
            progress = state.step / total
            state, metrics = train_step(
                self.loss, self.lookup, self.optimizer, state, batch, key_now, progress, self.ema_decay
            )
            return state, metrics, jnp.where(batch.mask > 0, batch.index, -1)

        def body(i, carry):
            state, metrics, index = carry
            state, now, shapes = step(state)
            # in bounds, which is not checked: that would be two more programs on a GPU
            metrics = metrics.at[i].set(ravel_pytree(now)[0], mode="promise_in_bounds")
            return state, metrics, index.at[:, i].set(shapes, mode="promise_in_bounds")

        _, metrics, index = jax.eval_shape(step, state)
        # one row per step: an accelerator writes it at once
        flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics))
        metrics = jnp.zeros((CAPACITY, *flat.shape), flat.dtype)
        index = jnp.zeros((*index.shape, CAPACITY), index.dtype)
        state, metrics, index = jax.lax.fori_loop(0, steps, body, (state, metrics, index))
        return state, jax.vmap(unravel)(metrics), index

    def _specs(self, learned) -> State:
        """How each part of the state is distributed over the devices.

        The structure of the optimizer's state is not known here.  It is evaluated for one and for two per-shape rows:
        arrays whose shape changes have one entry per row, and are split like the rows.
        """

        def opt_state(rows: int):
            per_shape = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), learned["per_shape"]
            )
            return jax.eval_shape(self.optimizer.init, {"shared": learned["shared"], "per_shape": per_shape})

        def place(one, two):
            return parallel.REPLICATED if one.shape == two.shape else parallel.SPLIT

        places = dict(zip(EVALUATED, (parallel.REPLICATED, parallel.SPLIT, parallel.REPLICATED), strict=True))
        opt_state = jax.tree.map(place, opt_state(1), opt_state(2))
        return State(**places, opt_state=opt_state, step=parallel.REPLICATED, ema=places if self.ema_decay else None)


def train(
    loop: Loop,
    state: State,
    steps: int,
    *,
    checkpoints: Checkpoints | None = None,
    save_every: float = 60.0,
    log: Log | None = None,
    validate: Callable[[Any, Any, Any], float | np.ndarray] | None = None,
    validate_every: int = 0,
    patience: int = 0,
    names: Sequence[str] = (),
    bar: bool = True,
) -> State:
    """Trains until `steps` steps are done, from the newest checkpoint if there is one, and returns the state.

    save_every: seconds between checkpoints; a checkpoint is written only after its losses were checked to be finite.
    validate(shared, per_shape, batch_stats) → a score, higher is better: called every `validate_every` steps and at the
    end, with what `Loop.evaluated` returns; the state with the best score is kept beside the latest ones
    (`Loop.restore(…, best=True)`).  Where nothing is shared it may be a score of each row: then each row is kept as it
    was when its own score was best.
    patience: validations without a better score (of any row) after which training stops; 0 for never.
    names: of the store's shapes by index, for errors.
    Raises TrainingError if a loss is not finite, or no gradient reaches the network; CheckpointError if the best state
    of a resumed run is missing.  Ctrl-C finishes the dispatch, writes a checkpoint and raises KeyboardInterrupt with a
    sentence that says how to continue.
    """
    monitor = DispatchMonitor(loop.batches.points, CAPACITY, names)
    history = {"seconds": 0.0, "best": None, "best_step": None, "stale": 0}
    best_rows = None  # of per_shape, where each row has a score of its own
    if checkpoints and (found := loop.restore(checkpoints, state)):
        state, history = found
        if history["best_step"] is not None:
            if (kept_best := loop.restore(checkpoints, state, best=True)) is None:
                raise CheckpointError(
                    f"{checkpoints.folder}: the best state so far, of step {history['best_step']}, is missing; "
                    "put it back, or remove the folder to start a new training"
                )
            best_rows = loop.evaluated(kept_best[0])[1]
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
                checkpoints.wait()  # on disk before the latest checkpoint, whose history refers to it
            checkpoints.save(step, loop.held(state), meta)

    with (
        contextlib.closing(monitor),
        Progress("training", "step", steps, step, shown=bar and parallel.is_main()) as shown,
        Interrupt() as interrupt,
    ):
        while step < steps and not 0 < patience <= history["stale"]:
            stop = min(steps, (step // validate_every + 1) * validate_every) if validate_every else steps
            data, count = loop.batches.segment(step, min(monitor.pace, stop - step))
            state, metrics, index = loop.advance(state, data, count, steps)
            monitor.track(step, count, metrics, index)
            step += count
            old = agreed(time.monotonic() - saved) >= save_every
            due = step == stop or interrupt.requested or old
            for entry in monitor.drain(everything=due):
                note(**entry)
                shown.update(entry["step"], f"loss {entry['loss']:.4g}, {entry['rate']:,.0f} points/s")
            if not due:
                continue
            if step == stop and validate:
                values = loop.evaluated(state)
                score = np.asarray(validate(*values), np.float64)
                note(step=step, validation=float(score.mean()))
                before = _scores(history["best"], score.shape)
                better = score > before  # false for nan
                history["stale"] = 0 if better.any() else history["stale"] + 1
                kept = better | np.isneginf(before)  # until a score is finite, the latest state counts as the best
                if kept.any():
                    history |= {"best": _listed(np.where(better, score, before)), "best_step": step}
                if kept.any() and checkpoints:
                    best = jax.tree.map(jnp.copy, loop.held(state))  # a copy: the next dispatch donates the state
                    if score.ndim:
                        best_rows = values[1] if best_rows is None else _chosen(kept, values[1], best_rows)
                        best = loop.with_rows(best, best_rows)
            stopping = step == steps or interrupt.requested or 0 < patience <= history["stale"]
            if old or stopping:
                save()
                saved, best = time.monotonic(), None
            if interrupt.requested:
                break
    if checkpoints:
        checkpoints.wait()
    if interrupt.requested:
        kept = "the same command continues from there" if checkpoints else "nothing was saved"
        raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {kept}")
    return state


def _scores(best: float | list[float | None] | None, shape: tuple[int, ...]) -> np.ndarray:
    """The best scores of a history as an array: -∞ where there is none yet."""
    if not isinstance(best, list):
        return np.full(shape, -math.inf if best is None else best)
    return np.array([-math.inf if score is None else score for score in best])


def _listed(scores: np.ndarray) -> float | list[float | None] | None:
    """The inverse of `_scores`, for JSON."""
    found = [None if np.isneginf(score) else float(score) for score in np.atleast_1d(scores)]
    return found if scores.ndim else found[0]


def _chosen(which: np.ndarray, rows, others):
    """Rows [S, …] of trees: the first one's where `which` [S] is set."""
    return jax.tree.map(lambda a, b: np.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), rows, others)
