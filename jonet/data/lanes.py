"""Shapes in lanes: dealt once, so that a device keeps its shapes and a batch does not depend on the number of devices.

`S` shapes, `W` lanes, `b` lanes of one device, `R` places (rows) of a lane.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jonet.errors import ConfigError


class Deal(NamedTuple):
    """Some lanes, for `batches.turn`: their numbers [b], and those of their shapes in the store [b, R], -1 for none."""

    lane: Any
    index: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Lanes:
    """Shapes in lanes.

    indices [S]: numbers of the shapes in the store. places [W, R]: which of them lies where, -1 for none; lanes without
    a shape stand at the end. steps: of an epoch. devices: each has W / devices whole lanes.
    """

    indices: np.ndarray
    places: np.ndarray
    steps: int
    devices: int

    @classmethod
    def deal(cls, indices: Sequence[int], batch: int, seed: int, devices: int) -> Lanes:
        """Deals shapes by the seed into `batch` lanes, or, where they are fewer, into one lane each.

        Only then are lanes added that stay empty, up to a multiple of the devices.
        Raises ConfigError where the devices do not divide the batch, or there is no shape.
        """
        indices = np.asarray(indices, np.int32)
        shapes, lanes = len(indices), min(batch, len(indices))
        if lanes < 1 or devices < 1:
            raise ConfigError(
                f"{shapes} shapes in batches of {batch} on {devices} devices: at least one of each is needed"
            )
        width = -(-lanes // devices) * devices
        if lanes == batch and lanes < width:
            fitting = [size for size in (batch // devices * devices, width) if size]
            raise ConfigError(
                f"a batch of {batch} shapes does not divide over {devices} devices; a batch of "
                f"{' or '.join(map(str, fitting))} does"
            )
        order = np.random.default_rng([seed, zlib.crc32(b"lanes")]).permutation(shapes)
        places = np.full((width, -(-shapes // lanes)), -1, np.int32)
        for lane in range(lanes):
            dealt = order[lane::lanes]
            places[lane, : len(dealt)] = dealt
        return cls(indices, places, shapes // lanes, devices)

    @property
    def shapes(self) -> int:
        """How many shapes a step sees."""
        return int((self.places[:, 0] >= 0).sum())

    @property
    def rows(self) -> np.ndarray:
        """Which of `indices` each row of `own` belongs to, over all devices [W · R], -1 for padding."""
        return self.places.ravel()

    def deal_of(self, device: int | None = None) -> Deal:
        """The lanes of a device, or all."""
        each = len(self.places) // self.devices
        lanes = slice(None) if device is None else slice(device * each, (device + 1) * each)
        places = self.places[lanes]
        index = np.where(places >= 0, self.indices[places], -1).astype(np.int32)
        return Deal(np.arange(len(self.places), dtype=np.int32)[lanes], index)
