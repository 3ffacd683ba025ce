"""Timing on the peer's device, and the choice of the fastest setting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch


def seconds(work: Callable[[], object]) -> float:
    """The seconds that `work` takes, until the device has computed its results."""
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def fastest(settings: Sequence, work: Callable[[object], object]):
    """The setting with which `work(setting)` runs fastest, the better of two rounds; skips those out of memory."""
    times = {}
    for setting in [*settings, *settings]:
        try:
            times[setting] = min(times.get(setting, math.inf), seconds(lambda setting=setting: work(setting)))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(times, key=times.get)
