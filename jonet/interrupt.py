"""Exit statuses of the command line: expected errors end in one message, only bugs in a traceback.

Ctrl-C raises KeyboardInterrupt at once, and the process ends within `GRACE` seconds even inside compiled code.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from jonet.errors import JonetError, out_of_device_memory

GRACE = 4.0  # seconds for a clean end after Ctrl-C; all writes are atomic, so a hard exit corrupts no file
CLOSED = 141  # exit status after SIGPIPE (128 + 13), as shells report it


def status(work: Callable[[], None], stopped: str) -> int:
    """Runs `work` and returns the exit status.  stopped: the message after Ctrl-C.

    Status: 0 success, 1 an error (one message on stderr), 130 interrupted, 141 if the reader of the output has closed
    its pipe (`| head`; no message).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot encode must not raise
            stream.reconfigure(errors="backslashreplace")
    try:
        with prompt(stopped):
            work()
            sys.stdout.flush()
        return 0
    except SystemExit:  # from the option parser, which has printed its own message
        if _nobody_reads():
            return CLOSED
        raise
    except KeyboardInterrupt as interrupted:
        message, code = f"\n{str(interrupted) or stopped}", 130
    except JonetError as error:
        message, code = f"error: {error}", 1
    except OSError as error:
        if _nobody_reads():
            return CLOSED
        message, code = f"error: {system_error(error)}", 1
    except MemoryError as error:
        message, code = f"error: there is not enough memory{f' ({error})' if str(error) else ''}", 1
    except RecursionError:
        message, code = "error: an input is nested too deeply to be read", 1
    except RuntimeError as error:
        if not (cause := out_of_device_memory(error)):
            raise
        message, code = f"error: a device has not enough memory ({cause}); give it fewer shapes or points at once", 1
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
    return code


def system_error(error: OSError) -> str:
    """The message of an OSError on one line: file names and cause."""
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    cause = error.strerror or str(error) or type(error).__name__
    return f"{files}: {cause}" if files else cause


def _nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe without a reader; if so its buffered output is discarded."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # no stream, a closed one, or one without a file descriptor
            continue
        if hasattr(select, "poll"):  # the failed write may have emptied the buffer, and then the flush below succeeds
            (poll := select.poll()).register(descriptor, select.POLLOUT)
            closed |= any(event & select.POLLERR for _, event in poll.poll(0))
        try:
            stream.flush()
        except OSError as error:
            closed |= isinstance(error, BrokenPipeError)
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # so that Python's flush at exit does not fail
    return closed


def leave(code: int) -> NoReturn:
    """Exits with `code`; after an interrupt without tear-down, which is unsafe while devices still compute."""
    if code != 130:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def prompt(sentence: str) -> Iterator[None]:
    """Within this context Ctrl-C raises KeyboardInterrupt; if the context has not ended `GRACE` seconds later (a
    compilation, a long computation, a join on threads), the process exits with status 130.

    sentence: the message printed in that case.  Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers only there
        yield
        return

    def end():
        with contextlib.suppress(OSError, ValueError):
            print(f"\n{sentence}", file=sys.stderr, flush=True)
        os._exit(130)

    # The exception is delivered only between bytecodes, so compiled code would delay it; the timer thread does not.
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
