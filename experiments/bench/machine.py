"""Measurements of this machine and process: matrix product rate, memory, load."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

SIDE = {"cpu": 2048}  # size of the square matrices whose product is measured, by kind of device
LARGE = 8192  # their size on other devices


def matrix_rate() -> Callable[[], float]:
    """A function that measures the rate of a square matrix product in JAX's default precision, in operations/second."""
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
    """The process's peak memory since the last reset, in gigabytes (Linux; nan elsewhere)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
    except (OSError, StopIteration):
        return float("nan")


def device_peak() -> float | None:
    """Peak memory use of the accelerator in gigabytes; None on a CPU."""
    import jax

    taken = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if taken is None else taken / 1e9


def load() -> float:
    """The average number of runnable processes in the last minute, including this one's threads."""
    return os.getloadavg()[0]
