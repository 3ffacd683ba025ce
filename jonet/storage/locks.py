"""Advisory file locks (flock) for folders: the system releases them when the process ends, however it ends."""

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
    """Within this context this process holds the lock file `path`, which is removed afterwards.

    shared: a shared lock (processes of one job) instead of an exclusive one.  wait: block until the lock is free,
    instead of raising BusyError, which names the process that holds it.  On a file system without locks, warns and goes
    on without one.
    """
    path = Path(path)
    descriptor = _acquire(path, shared, wait)
    try:
        yield
    finally:
        if descriptor is not None:
            _release(path, descriptor)


def _acquire(path: Path, shared: bool, wait: bool) -> int | None:
    """A descriptor that holds the lock, or None on a file system without locks.

    Holders remove the lock file when they are done, so between our open and our lock it may have been replaced: a lock
    on the old, unlinked inode excludes nobody.  Hence the comparison of inodes, and the loop.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if os.path.lexists(path):  # a dangling symbolic link
                raise
            continue  # the last holder has just removed the folder as well
        try:
            if not _lock(descriptor, shared, wait):
                raise BusyError(f"{path.parent}: {_holder(path)}; wait until that has ended, or stop it first")
            current = os.stat(path)
            ours = os.fstat(descriptor)
            if (current.st_dev, current.st_ino) == (ours.st_dev, ours.st_ino):
                _sign(descriptor)
                return descriptor
        except FileNotFoundError:  # of os.stat: the file was removed, so we locked a file that is gone; try again
            pass
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                os.close(descriptor)
                warnings.warn(
                    f"{path}: this file system has no locks ({error}); make sure that only one process works "
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
    """Takes the lock; False if another process holds it."""
    if fcntl is None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # Windows locks byte ranges: beyond the text that `_holder` reads
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
    """Writes who holds the lock into the lock file."""
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
    """Describes the process that holds a lock, for error messages."""
    try:
        about = json.loads(path.read_bytes())
        return "process {process} on {host} works here since {since} ({command})".format(**about)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process works here"


def _release(path: Path, descriptor: int) -> None:
    """Removes the lock file, then releases the lock: in this order waiting processes notice the removal (`_acquire`).

    The last holder of a shared lock removes it: only then can the lock be made exclusive.
    """
    try:
        if fcntl is not None:  # Windows does not remove open files
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while others share it
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
