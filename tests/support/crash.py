"""A disk that stops, or fails, at the n-th change that is made below a folder: for tests of what is left behind.

Opening for writing, making, renaming, cutting and removing are counted; at the chosen change either everything ends
(`Stopped`, after which no change succeeds any more, as in a process that was killed) or the one change fails with an
error of the operating system.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

CHANGES = {  # how many of a function's first arguments are paths that it changes
    "rename": 2,
    "replace": 2,
    "remove": 1,
    "unlink": 1,
    "rmdir": 1,
    "mkdir": 1,
    "truncate": 1,
    "ftruncate": 0,
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Stopped(BaseException):
    """The process was killed here."""


class Disk:
    """What happens below `root`.  at: which change, from 0; error: an errno, None to stop for good."""

    def __init__(self, root: Path, at: int | None, error: int | None = None):
        self.root, self.at, self.error, self.count = os.path.realpath(root), at, error, 0

    def change(self, name: str, paths, *, folder: int | None = None) -> None:
        above = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        found = [os.path.join(above, os.fsdecode(path)) for path in paths if not isinstance(path, int)]
        if not any(os.path.abspath(path).startswith(self.root + os.sep) for path in found):
            return
        now, self.count = self.count, self.count + 1
        if self.at is None or now < self.at:
            return
        if self.error is None:
            raise Stopped(f"{name} {found}")
        if now == self.at:
            raise OSError(self.error, os.strerror(self.error), found[0])


@contextlib.contextmanager
def disk(root: Path, at: int | None = None, error: int | None = None) -> Iterator[Disk]:
    """Within this context changes below `root` are counted, and the `at`-th does not happen."""
    seen = Disk(root, at, error)

    def changing(name: str, real: Callable):
        @functools.wraps(real)
        def call(*arguments, **named):
            seen.change(name, arguments[: CHANGES[name]], folder=named.get("dir_fd"))
            return real(*arguments, **named)

        return call

    def opening(path, flags, *arguments, real=os.open, **named):
        if flags & WRITING:
            seen.change("open", [path], folder=named.get("dir_fd"))
        return real(path, flags, *arguments, **named)

    def opening_files(path, mode="r", *arguments, real=io.open, **named):
        if set(mode) & set("wax+"):
            seen.change("open", [path])
        return real(path, mode, *arguments, **named)

    with contextlib.ExitStack() as stack:
        for name in CHANGES:
            stack.enter_context(mock.patch.object(os, name, changing(name, getattr(os, name))))
        stack.enter_context(mock.patch.object(os, "open", opening))
        for module in (builtins, io):
            stack.enter_context(mock.patch.object(module, "open", opening_files))
        yield seen


def each(root: Path, prepare: Callable[[], None], work: Callable[[], None], error: int | None = None) -> Iterator[int]:
    """For every change that `work` makes below `root`: prepares, works until that change fails, and yields its number.

    Exceptions of `work` are suppressed: the caller checks what is on disk.
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
