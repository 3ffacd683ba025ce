"""Pools of worker processes that end with the process that started them, however it ends."""

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

from jonet import resources

SEVERAL = 4  # tasks of half a second for each process, that are worth starting it


@contextlib.contextmanager
def executor(count: int) -> Iterator[concurrent.futures.Executor]:
    """A pool for `count` tasks of about half a second that can be sent to other processes, one per core: threads, or
    processes if there are more than two cores and enough tasks, since some libraries hold Python's lock (embree while
    it builds a scene, igl)."""
    cores = resources.cores()
    if cores > 2 and count >= SEVERAL * cores:
        with processes(cores) as pool:
            yield pool
    else:
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            yield pool


@contextlib.contextmanager
def processes(count: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of `count` processes, at most one per core; if the block ends by an exception, Ctrl-C included, they are
    killed at once."""
    context = _Context()
    executor = concurrent.futures.ProcessPoolExecutor(min(resources.cores(), count), context, initializer=_begin)
    try:
        yield executor
    except BaseException:
        for process in context.started:
            if process.pid is not None:
                process.kill()
        executor.shutdown(wait=False, cancel_futures=True)  # waiting could hang: its thread may be blocked on a pipe
        raise
    executor.shutdown()


def is_beginning() -> bool:
    """Whether this is a spawned process that is still importing the main script of its parent: code outside of
    `if __name__ == "__main__":` then runs a second time."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


class _Process(multiprocessing.context.SpawnProcess):
    """A spawned process: forked ones can deadlock once JAX has started its threads."""

    def start(self) -> None:
        """Starts with SIGINT blocked, as children inherit the mask: the terminal sends Ctrl-C to all processes of the
        group, but only the parent should react.  `_begin` then ignores it."""
        if not hasattr(signal, "pthread_sigmask"):
            return super().start()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """Remembers the processes that it started, to kill them."""

    def __init__(self):
        self.started: list[_Process] = []

    def Process(self, *args, **options) -> _Process:  # the name that multiprocessing expects
        self.started.append(_Process(*args, **options))
        return self.started[-1]


def _begin() -> None:
    """Runs first in every worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    # One thread per worker: there is one worker per core.
    for name in ("LIBIGL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _end_with(parent) -> None:
    """Exits as soon as the parent has ended, even if it was killed and could not say so."""
    multiprocessing.connection.wait([parent])
    os._exit(1)
