"""Random choices for the parameters of families."""

from __future__ import annotations

import numpy as np


def pick(rng: np.random.Generator, **weights: float) -> str:
    """One of the names at random, with the given weights."""
    names = list(weights)
    bounds = np.cumsum(list(weights.values()))
    return names[min(int(np.searchsorted(bounds, rng.uniform(0, bounds[-1]), side="right")), len(names) - 1)]


def count(rng: np.random.Generator, low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(rng.integers(low, high + 1))
