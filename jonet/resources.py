"""Cores and memory of the host that this process may use: within the limits of its container or batch job."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

T = TypeVar("T")

ROOT = Path("/")  # of the file system with /proc and /sys


def cores(root: Path = ROOT) -> int:
    """How many cores this process may use, at least 1: those that it is bound to, less if its cgroups have a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = list(_settings(root, "", "cpu.max"))
    of_v1 = (_settings(root, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += [quota + period for quota, period in zip(*of_v1, strict=False)]
    # the quota is "max" or -1 if there is none
    return max(1, min([count, *(math.ceil(int(quota) / int(period)) for quota, period in quotas if quota.isdigit())]))


def in_threads(function: Callable[..., T], *columns: Iterable) -> list[T]:
    """function(*row) of each row of columns of equal length, in threads: for work in libraries that do not hold
    Python's lock.  Where there is one core, or one row, handing over to a thread would only hold up."""
    rows = list(zip(*columns, strict=True))
    if (count := min(cores(), len(rows))) < 2:
        return [function(*row) for row in rows]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda row: function(*row), rows))


def memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use: all of the machine's, less if its cgroups have a limit."""
    limits = [*_settings(root, "", "memory.max"), *_settings(root, "", "memory.high")]
    limits += _settings(root, "memory", "memory.limit_in_bytes")
    return min([_machine_memory(), *(int(limit) for limit, *_ in limits if limit.isdigit())])


def _settings(root: Path, controller: str, name: str) -> Iterator[list[str]]:
    """The words in the file of this name, of the process's cgroup and of each that contains it.

    controller: of cgroups v1; "" for cgroups v2.  Nothing on systems without cgroups.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / controller
        for part in ("", *PurePosixPath(path).parts[1:]):  # in a container the outer ones may be missing
            folder /= part
            if words := _text(folder / name).split():
                yield words


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("ascii", "replace")
    return ""


def _machine_memory() -> int:
    if sys.platform == "win32":
        status = (ctypes.c_ulonglong * 8)(64)  # MEMORYSTATUSEX: its size and the load, the memory, …
        ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return status[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
