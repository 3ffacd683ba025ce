"""Lanes: a fixed assignment of training shapes to the slots of a batch.

A batch of W shapes has W lanes.  Every shape belongs to one lane, every lane to one device, and each step takes one
shape from each lane.  So a device holds the samples, codes and optimizer state of its own shapes only, and which shapes
a batch holds does not depend on the number of devices.

Notation: `S` shapes, `W` lanes, `b` lanes of one device, `R` places of a lane.

A shape has two numbers.  Its *index* is its number in the store; its *position* is its place among the training shapes,
which is the order of codes outside of training.  Per-shape rows on the devices are in the order of the lanes, which is
neither.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jonet.errors import ConfigError
from jonet.wording import counted


class Deal(NamedTuple):
    """Some lanes: their numbers [b], and the indices of their shapes [b, R], -1 for an empty place."""

    lane: Any
    index: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Lanes:
    """The lanes of all training shapes.

    indices [S]: the shapes' numbers in the store, by position.  dealt [W, R]: positions of the shapes of each lane, -1
    for an empty place; lanes without a shape come last.  steps: per epoch.  devices: each has W / devices lanes.
    """

    indices: np.ndarray
    dealt: np.ndarray
    steps: int
    devices: int

    @classmethod
    def deal(cls, indices: Sequence[int] | np.ndarray, batch: int, seed: int, devices: int) -> Lanes:
        """Deals shapes at random (by the seed) into `batch` lanes, or into one lane each if there are no more shapes.

        Empty lanes are added, up to a multiple of the devices, so that every device has as many lanes and the shapes
        of a batch do not depend on the devices.  Raises ConfigError if there is no shape, lane or device.
        """
        shapes, lanes = len(indices), min(batch, len(indices))
        if lanes < 1 or devices < 1:
            raise ConfigError(
                f"{counted(shapes, 'shape')} in batches of {batch} on {counted(devices, 'device')}: at least one of "
                "each is needed"
            )
        width = -(-lanes // devices) * devices  # lanes, rounded up to a multiple of the devices
        # round-robin in random order: lanes differ by at most one shape, and each has at least shapes // lanes
        order = np.random.default_rng([seed, zlib.crc32(b"lanes")]).permutation(shapes)
        positions = np.full((width, -(-shapes // lanes)), -1, np.int32)
        for lane in range(lanes):
            dealt = order[lane::lanes]
            positions[lane, : len(dealt)] = dealt
        return cls(np.asarray(indices, np.int32), positions, shapes // lanes, devices)

    @property
    def shapes(self) -> int:
        """Shapes per step."""
        return int((self.dealt[:, 0] >= 0).sum())

    @property
    def positions(self) -> np.ndarray:
        """Positions of the shapes of all per-shape rows, over all devices [W · R], -1 for padding."""
        return self.dealt.ravel()

    def deal_of(self, device: int | None = None) -> Deal:
        """The lanes of one device, or of all."""
        each = len(self.dealt) // self.devices
        lanes = slice(None) if device is None else slice(device * each, (device + 1) * each)
        positions = self.dealt[lanes]
        index = np.where(positions >= 0, self.indices[positions], -1).astype(np.int32)
        return Deal(np.arange(len(self.dealt), dtype=np.int32)[lanes], index)
