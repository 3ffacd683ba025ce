"""Locks of the operating system: one process works in a folder, and its lock dies with it, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from jonet.errors import BusyError

_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None


@contextlib.contextmanager
def locked(path: str | Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Within this context the lock file `path` is held by this process.

    shared: with others that share it (processes of one job); else alone.  wait: until it is free, in place of
    BusyError, which names the process that has it.  The file lies there while the lock is held.  Where a file system
    knows no locks, a warning says so and the work goes on.
    """
    path = Path(path)
    descriptor = _acquire(path, shared, wait)
    try:
        yield
    finally:
        if descriptor is not None:
            _release(path, descriptor)


def _acquire(path: Path, shared: bool, wait: bool) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if os.path.lexists(path):  # a link that leads nowhere
                raise
            continue  # its last holder has just removed the folder, too
        try:
            if not _lock(descriptor, shared, wait):
                raise BusyError(f"{path.parent}: {_holder(path)}; wait until that has ended, or stop it first")
            there = os.stat(path)
            mine = os.fstat(descriptor)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):  # else its holder has just removed it
                _sign(descriptor)
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _UNSUPPORTED and not isinstance(error, BusyError):
                os.close(descriptor)
                warnings.warn(
                    f"{path}: this file system knows no locks ({error}); see to it that one process works "
                    "there at a time",
                    stacklevel=4,
                )
                return None
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, shared: bool, wait: bool) -> bool:
    """Takes the lock; False where another process has it."""
    if fcntl is None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text, which others read meanwhile
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.2)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int) -> None:
    about = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:200],
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(about).encode())


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        about = json.loads(path.read_bytes())
        return "process {process} on {host} works here since {since} ({command})".format(**about)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process works here"


def _release(path: Path, descriptor: int) -> None:
    """Removes the file while the lock is still held alone, so that whoever waits sees that it has gone."""
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where others share it
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
