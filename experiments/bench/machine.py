"""What this machine can do, and what a process takes of it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

SIDE = {"cpu": 2048}  # of the product by which the matrix rate is measured, by kind of device
LARGE = 8192


def threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def matrix_rate() -> Callable[[], float]:
    """A function that measures, in operations a second, a square product of jax on this device, in its precision."""
    import jax

    side = SIDE.get(jax.default_backend(), LARGE)
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side)) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()

    def rate() -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            product(a, b).block_until_ready()
            times.append(time.perf_counter() - begun)
        return 2 * side**3 / statistics.median(times)

    return rate


def peak(reset: bool = False) -> float:
    """Gigabytes of memory that this process had at most since the last reset (Linux; nan elsewhere)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
    except (OSError, StopIteration):
        return float("nan")


def device_peak() -> float | None:
    """Gigabytes of memory that were taken of an accelerator at most; None on a CPU."""
    import jax

    taken = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if taken is None else taken / 1e9


def load() -> float:
    """How many processes wanted to run in the last minute, on average: this one's threads, and what disturbs them."""
    return os.getloadavg()[0]
