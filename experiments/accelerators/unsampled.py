"""Stores of shapes that were never sampled: the sizes of a preset, without its data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet.data import store as stores
from jonet.data.store import RaggedArray, Store
from jonet.tasks.base import Task, TaskConfig
from jonet.tasks.shapes import STAND_IN


class Few(NamedTuple):
    """The most shapes, and rows of each, of a store that is really in memory."""

    shapes: int = 256
    rows: int = 4096


def store(task: Task, config: TaskConfig, few: Few | None = None) -> Store:
    """The store of a config's training shapes.

    few: None for arrays of the full size that take no memory (one zero, broadcast); else fewer shapes and rows, of
    random numbers from -1 to 1 (bytes from 0 to 255).
    """
    found = config.shapes.sources(config.data or STAND_IN, config.seed)
    sources = [source for source in found if source.split == "train"]
    whole = stores.outline(sources if few is None else sources[: few.shapes], config.samples, frame=task.frame)
    if few is None:
        return whole
    arrays = {}
    for name, array in whole.arrays.items():
        counts = np.minimum(array.counts, few.rows // array.counts.shape[1])
        each = counts.sum(1)
        values = drawn(array.values.dtype, (int(each.sum()), *array.values.shape[1:]))
        arrays[name] = RaggedArray(values, np.cumsum(each) - each, counts)
    return Store(whole.folder, whole.index, arrays)


def drawn(kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of this type: zeros would cost a chip less power, and so less time, than data do."""
    rng = np.random.default_rng(0)
    if np.issubdtype(kind, np.integer):
        return rng.integers(0, 256, shape).astype(kind)
    return rng.uniform(-1, 1, shape).astype(kind)
