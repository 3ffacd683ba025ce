"""The host's view of a training run: when dispatches end, whether losses are finite, how long devices wait."""

from __future__ import annotations

import collections
import concurrent.futures
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jonet import parallel
from jonet.errors import TrainingError

SECONDS = 2.0  # target duration of a dispatch: each one allocates its memory anew, which costs page faults on a CPU
DEAD = 10  # consecutive steps without any gradient after which the network is taken to be dead


class _Dispatch(NamedTuple):
    first: int  # its first step
    count: int  # its steps
    sent: float  # when it was dispatched
    index: jax.Array  # [S, CAPACITY] indices in the store of each step's shapes, -1 for empty lanes
    outcome: concurrent.futures.Future  # of (time of completion, metrics)


class DispatchMonitor:
    """Follows dispatches of at most `limit` steps each; the next dispatch runs while the last one is checked.

    points: per step, over all devices.  names: of all shapes of the store, by index, for errors.
    """

    def __init__(self, points: int, limit: int, names: Sequence[str] = ()):
        self.pace = 1  # steps that the next dispatch should have
        self._points, self._limit, self._names = points, limit, names
        self._pending: collections.deque[_Dispatch] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)  # records completion times while the host is busy
        self._done = None  # when the last dispatch was done; None after a pause
        self._num_drained = 0  # dispatches so far
        self._without_gradient = 0  # consecutive steps up to now

    def track(self, first: int, count: int, metrics, index) -> None:
        """Adds a dispatch that was just sent, with the (still pending) metrics and shapes of its steps."""

        def outcome():
            fetched = parallel.host(metrics)
            return time.monotonic(), fetched

        self._pending.append(_Dispatch(first, count, time.monotonic(), index, self._thread.submit(outcome)))

    def drain(self, everything: bool = False) -> Iterator[dict[str, Any]]:
        """Waits for all dispatches but the last one, or for `everything`, and yields a log entry for each.

        Raises TrainingError if a loss or gradient is not finite, or the gradient is zero for DEAD steps.
        """
        while len(self._pending) > (0 if everything else 1):
            yield self._entry(self._pending.popleft())
        if everything:
            self._done = None  # validation and checkpoints follow: the pause is not waiting for input

    def close(self) -> None:
        self._thread.shutdown()

    def _entry(self, dispatch: _Dispatch) -> dict[str, Any]:
        done, metrics = dispatch.outcome.result()
        metrics = {name: values[: dispatch.count] for name, values in metrics.items()}
        self._check(dispatch, metrics)
        free = dispatch.sent if self._done is None else self._done  # since when the devices were idle
        waited, self._done = max(0.0, dispatch.sent - free), done
        busy = max(done - max(dispatch.sent, free), 1e-6)
        self._num_drained += 1
        if self._num_drained > 1:  # the first one also compiled
            wanted = SECONDS * dispatch.count / agreed(busy)
            self.pace = max(1, min(int(wanted), 10 * dispatch.count, self._limit))
        entry = {"step": dispatch.first + dispatch.count, "epoch": int(metrics.pop("epoch")[-1])}
        entry |= {name: float(values.mean()) for name, values in metrics.items()}
        return entry | {"rate": self._points * dispatch.count / (busy + waited), "waited": waited / (busy + waited)}

    def _check(self, dispatch: _Dispatch, metrics) -> None:
        finite = np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient"])
        if not finite.all():
            place = int(np.argmin(finite))
            what = "loss" if not np.isfinite(metrics["loss"][place]) else "gradient"
            raise TrainingError(
                f"the {what} of step {dispatch.first + place} is {metrics[what][place]}; its batch holds "
                f"{self._shapes(parallel.host(dispatch.index)[:, place])}; look at their samples, or lower the rates"
            )
        moved = np.flatnonzero(metrics["gradient"])
        self._without_gradient = (
            dispatch.count - 1 - int(moved[-1]) if moved.size else self._without_gradient + dispatch.count
        )
        if self._without_gradient >= DEAD:
            since = dispatch.first + dispatch.count - self._without_gradient
            raise TrainingError(
                f"no gradient has reached the network since step {since}{' (a dead start)' if since == 0 else ''}: "
                "all its outputs are beyond the clamp, or all its units are off, and it can learn no more; "
                "choose a centered start, a wider clamp or lower learning rates"
            )

    def _shapes(self, index, most: int = 8) -> str:
        shapes = map(int, np.unique(index[index >= 0]))
        held = [self._names[i] if i < len(self._names) else f"shape {i}" for i in shapes]
        return ", ".join(held[:most]) + (f" and {len(held) - most} more" if len(held) > most else "")


def agreed(seconds: float) -> float:
    """A time that is equal in all processes (the mean over devices), so that all take the same decisions."""
    if jax.process_count() == 1:
        return seconds
    every = parallel.split(np.full(parallel.count(), seconds, np.float32))
    return float(parallel.host(_total(every))) / parallel.count()


_total = parallel.pmap(lambda values: parallel.sum(values.sum()), (parallel.SPLIT,), parallel.REPLICATED)


class Interrupt:
    """A context in which the first Ctrl-C only sets `asked`, so that a checkpoint can be written; a second interrupts.

    With several processes Ctrl-C interrupts at once: the others do not get the signal and would wait forever.
    """

    def __enter__(self) -> Interrupt:
        self.requested = False
        # signal handlers can only be set in the main thread
        possible = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        self._before = signal.signal(signal.SIGINT, self._ask) if possible else None
        return self

    def _ask(self, *_):
        self.requested = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
