"""A disk that stops, or fails, at the n-th change that is made below a folder: for tests of what is left behind.

The interpreter's audit events of opening for writing, making, renaming, cutting and removing are counted; at the chosen
one either everything ends (`Stopped`, after which no change succeeds any more, as in a process that was killed) or the
one change fails with an error of the operating system.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_EVENTS = {  # which arguments of an event are paths that it changes
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.truncate": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
}
_disk: Disk | None = None


class Stopped(BaseException):
    """The process was killed here."""


class Disk:
    """What happens below `root`.  at: which change, from 0; error: an errno, None to stop for good."""

    def __init__(self, root: Path, at: int | None, error: int | None = None):
        self.root, self.at, self.error, self.count = os.path.realpath(root), at, error, 0

    def event(self, name: str, arguments) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                return
            paths = [path]
        elif name in _EVENTS:
            paths = [arguments[i] for i in _EVENTS[name]]
        else:
            return
        if not any(os.path.abspath(os.fsdecode(path)).startswith(self.root + os.sep) for path in paths):
            return
        now, self.count = self.count, self.count + 1
        if self.at is None or now < self.at:
            return
        if self.error is None:
            raise Stopped(f"{name} {arguments}")
        if now == self.at:
            raise OSError(self.error, os.strerror(self.error), os.fsdecode(paths[0]))


def _hook(name: str, arguments) -> None:
    if _disk is not None:
        _disk.event(name, arguments)


sys.addaudithook(_hook)


@contextlib.contextmanager
def disk(root: Path, at: int | None = None, error: int | None = None) -> Iterator[Disk]:
    """Within this context changes below `root` are counted, and the `at`-th does not happen."""
    global _disk
    _disk = Disk(root, at, error)
    try:
        yield _disk
    finally:
        _disk = None


def each(root: Path, prepare: Callable[[], None], work: Callable[[], None], error: int | None = None) -> Iterator[int]:
    """For every change that `work` makes below `root`: prepares, works until that change fails, and yields its number.

    What is raised on the way is swallowed: the caller looks at what is there then.
    """
    at = 0
    while True:
        prepare()
        with disk(root, at, error) as seen:
            with contextlib.suppress(Stopped, Exception):
                work()
        if seen.count <= at:
            return
        yield at
        at += 1
