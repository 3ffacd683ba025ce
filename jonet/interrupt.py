"""How programs end: with a status and a sentence, never a traceback but for mistakes in the program itself.

At Ctrl-C the work stops at once, and the process ends within seconds whatever it is in the middle of.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from jonet.errors import JonetError

GRACE = 4.0  # seconds for what is under way; whatever is written is whole or not there, so nothing is lost by an end
CLOSED = 141  # exit status of a program whose reader has gone, as a shell gives it


def status(work: Callable[[], None], stopped: str) -> int:
    """Does a program's work.  stopped: said after Ctrl-C.

    The exit status: 0 done, 1 an error of which one sentence is said, 130 interrupted, 141 where nobody reads what it
    prints any more (`| head`), of which nothing is said.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show ends no program
            stream.reconfigure(errors="backslashreplace")
    try:
        with prompt(stopped):
            work()
            sys.stdout.flush()
        return 0
    except SystemExit:  # of the parser of options, which has said its word
        if _nobody_reads():
            return CLOSED
        raise
    except KeyboardInterrupt as interrupted:
        said, code = f"\n{str(interrupted) or stopped}", 130
    except JonetError as error:
        said, code = f"error: {error}", 1
    except OSError as error:
        if _nobody_reads():
            return CLOSED
        said, code = f"error: {system_error(error)}", 1
    except MemoryError as error:
        said, code = f"error: there is not enough memory{f' ({error})' if str(error) else ''}", 1
    except RecursionError:
        said, code = "error: something that was given is nested too deeply to be read", 1
    with contextlib.suppress(OSError, ValueError):
        print(said, file=sys.stderr, flush=True)
    return code


def system_error(error: OSError) -> str:
    """What the operating system refused, and of which file, in one sentence."""
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    cause = error.strerror or str(error) or type(error).__name__
    return f"{files}: {cause}" if files else cause


def _nobody_reads() -> bool:
    """Whether standard output or error is a pipe without a reader; what is left for it is then dropped."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            place = stream.fileno()
        except (AttributeError, OSError, ValueError):  # there is none, it was closed, or it is no file
            continue
        if hasattr(select, "poll"):  # what could not be written may be gone already, so that a flush would pass
            (waiting := select.poll()).register(place, select.POLLOUT)
            closed |= any(event & select.POLLERR for _, event in waiting.poll(0))
        try:
            stream.flush()
        except OSError as error:
            closed |= isinstance(error, BrokenPipeError)
            os.dup2(os.open(os.devnull, os.O_WRONLY), place)  # so that the end of Python finds no error
    return closed


def leave(code: int) -> NoReturn:
    """Ends the process; after an interrupt at once, since devices may still compute, which their tear-down forbids."""
    if code != 130:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


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
