"""What the host sees of a run: when dispatches were done, whether their losses are finite, how long devices waited."""

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

SECONDS = 2.0  # what a dispatch should last: each one takes its memory anew, which a CPU pays for page by page
DEAD = 10  # steps in a row without any gradient after which nothing will ever be learned


class _Dispatch(NamedTuple):
    first: int  # its first step
    count: int  # its steps
    sent: float  # when it was dispatched
    index: jax.Array  # [S, CAPACITY] numbers in the store of each step's shapes, -1 for empty lanes
    outcome: concurrent.futures.Future  # of (when it was done, its metrics)


class Watch:
    """Follows dispatches, at most `limit` steps each, while the next ones are already under way.

    points: a step, over all devices.  names: of all shapes of the store, by index, for errors.
    """

    def __init__(self, points: int, limit: int, names: Sequence[str] = ()):
        self.pace = 1  # steps that the next dispatch should have
        self._points, self._limit, self._names = points, limit, names
        self._pending: collections.deque[_Dispatch] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)  # notes when a dispatch is done, whatever the host does
        self._done = None  # when the last dispatch was; None after a pause
        self._settled = 0  # dispatches so far
        self._without_gradient = 0  # steps up to now

    def follow(self, first: int, count: int, metrics, index) -> None:
        """Notes a dispatch that was just sent, with the metrics and shapes of its steps, still to come."""

        def outcome():
            held = parallel.host(metrics)
            return time.monotonic(), held

        self._pending.append(_Dispatch(first, count, time.monotonic(), index, self._thread.submit(outcome)))

    def settle(self, everything: bool = False) -> Iterator[dict[str, Any]]:
        """One entry for each dispatch that is done; all but the last one are waited for, or that one as well.

        Raises TrainingError if a loss or gradient is not finite, or no gradient has come for long.
        """
        while len(self._pending) > (0 if everything else 1):
            yield self._entry(self._pending.popleft())
        if everything:
            self._done = None  # the host now has other things to do, and no device waits for input

    def close(self) -> None:
        self._thread.shutdown()

    def _entry(self, dispatch: _Dispatch) -> dict[str, Any]:
        done, metrics = dispatch.outcome.result()
        metrics = {name: values[: dispatch.count] for name, values in metrics.items()}
        self._check(dispatch, metrics)
        free = dispatch.sent if self._done is None else self._done
        waited, self._done = max(0.0, dispatch.sent - free), done
        busy = max(done - max(dispatch.sent, free), 1e-6)
        self._settled += 1
        if self._settled > 1:  # the first one also compiled
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
                "all its outputs lie beyond the clamp, or all its units are off, and it can learn no more; "
                "choose a centred start, a wider clamp or lower learning rates"
            )

    def _shapes(self, index, most: int = 8) -> str:
        held = [self._names[i] if i < len(self._names) else f"shape {i}" for i in np.unique(index[index >= 0])]
        return ", ".join(held[:most]) + (f" and {len(held) - most} more" if len(held) > most else "")


def agreed(seconds: float) -> float:
    """A time as all processes see it, so that all decide alike: the mean over devices."""
    if jax.process_count() == 1:
        return seconds
    every = parallel.split(np.full(parallel.count(), seconds, np.float32))
    return float(parallel.host(_total(every))) / parallel.count()


_total = parallel.pmap(lambda share: parallel.sum(share.sum()), (parallel.SPLIT,), parallel.REPLICATED)


class Interrupt:
    """Within this context the first Ctrl-C only sets `asked`, so that work can be put in order; a second one strikes.

    One process of many is struck at once: the others cannot know, and would wait for it.
    """

    def __enter__(self) -> Interrupt:
        self.asked = False
        ours = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        self._before = signal.signal(signal.SIGINT, self._ask) if ours else None
        return self

    def _ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
