"""Stores of shapes that were never sampled: the sizes of a preset, without its data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config as configs
from jonet.data import shards
from jonet.data.store import RaggedArray, Store
from jonet.geometry.mesh import Similarity
from jonet.tasks.base import Task, TaskConfig

COUNTS = {  # rows of a shape by array, as the recipe's fields give them
    "sdf": lambda recipe: recipe.near + recipe.uniform,
    "occupancy": lambda recipe: recipe.occupancies,
    "occupancy_near": lambda recipe: recipe.near_occupancies,
    "surface_points": lambda recipe: recipe.surface,
    "surface_normals": lambda recipe: recipe.surface,
    "voxels": lambda recipe: 1,
    "images": lambda recipe: recipe.images,
    "cameras": lambda recipe: recipe.images,
}


class Few(NamedTuple):
    """The most shapes, and rows of each, of a store that is really in memory."""

    shapes: int = 256
    rows: int = 4096


def store(task: Task, config: TaskConfig, few: Few | None = None) -> Store:
    """The store of a config's training shapes.

    few: None for arrays of the full size that take no memory (one zero, broadcast); else fewer shapes and rows, of
    random numbers from -1 to 1 (bytes from 0 to 255).
    """
    sources = [source for source in config.shapes.sources(config.data, config.seed) if source.split == "train"]
    sources = sources if few is None else sources[: few.shapes]
    recipe, placed = config.samples, list(Similarity.identity().as_array())
    index = {
        "settings": {"recipe": configs.to_dict(recipe), "seed": config.seed, "frame": task.frame, "sign": "auto"},
        "sources": [{"name": source.name, "mark": {}} for source in sources],
        "shapes": [{"name": s.name, "split": s.split, "similarity": placed, "diagnosis": None} for s in sources],
        "skipped": [],
    }
    arrays = {}
    for name, (kind, row) in shards.columns(recipe).items():
        if name in COUNTS and (each := COUNTS[name](recipe)):
            each = each if few is None else min(each, few.rows)
            sides = (each - each // 2, each // 2) if name in shards.TWO_SIDED else (each,)
            counts = np.tile(np.array(sides, np.int64), (len(sources), 1))
            shape = (each * len(sources), *row)
            values = np.broadcast_to(np.zeros((), kind), shape) if few is None else drawn(kind, shape)
            arrays[name] = RaggedArray(values, each * np.arange(len(sources)), counts)
    return Store(Path("unsampled"), index, arrays)


def drawn(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of this type: zeros would cost a chip less power, and so less time, than data do."""
    rng = np.random.default_rng(0)
    if np.issubdtype(np.dtype(kind), np.integer):
        return rng.integers(0, 256, shape).astype(kind)
    return rng.uniform(-1, 1, shape).astype(kind)
