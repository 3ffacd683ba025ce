"""Processes that work for this one, and end when it does, however it ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def processes(count: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """At most `count` processes, at most one a core; where the block ends by an exception, Ctrl-C among them, they are
    ended at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    context = _Context()
    executor = concurrent.futures.ProcessPoolExecutor(min(cores, count), context, initializer=_begin)
    try:
        yield executor
    except BaseException:
        for process in context.started:
            if process.pid is not None:
                process.kill()
        executor.shutdown(wait=False, cancel_futures=True)  # its thread may be at a pipe that nobody empties any more
        raise
    executor.shutdown()


def is_beginning() -> bool:
    """Whether this is a spawned process that is still running the script which started it: what a script does outside
    of `if __name__ == "__main__":` it does once more there."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


class _Process(multiprocessing.context.SpawnProcess):
    """Spawned, since forked processes hang once JAX has started its threads."""

    def start(self) -> None:
        """Begins with Ctrl-C blocked: the terminal sends it to all, but it is for the parent alone."""
        if not hasattr(signal, "pthread_sigmask"):
            return super().start()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """Knows what it started."""

    def __init__(self):
        self.started: list[_Process] = []

    def Process(self, *args, **options) -> _Process:  # called as multiprocessing does
        self.started.append(_Process(*args, **options))
        return self.started[-1]


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name in ("LIBIGL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _end_with(parent) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)
