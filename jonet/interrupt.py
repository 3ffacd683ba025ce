"""Ctrl-C in programs: the work stops at once, and the process ends within seconds whatever it is in the middle of."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

GRACE = 4.0  # seconds for what is under way; whatever is written is whole or not there, so nothing is lost by an end


def leave(status: int) -> NoReturn:
    """Ends the process; after an interrupt at once, since devices may still compute, which their tear-down forbids."""
    if status != 130:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def prompt(sentence: str) -> Iterator[None]:
    """Within this context Ctrl-C raises KeyboardInterrupt, and `GRACE` seconds later ends what has not ended by then
    (a compilation, a long computation, threads that are waited for), with exit status 130.

    sentence: for the user, in that case.  In other threads than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end():
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{sentence}", file=sys.stderr, flush=True)
        os._exit(130)

    def strike(*_):
        timer = threading.Timer(GRACE, end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt(sentence)

    before = signal.signal(signal.SIGINT, strike)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
