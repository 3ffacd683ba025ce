"""Shapes in lanes: dealt once, so that a device keeps its shapes and a batch does not depend on the number of devices.

`S` shapes, `W` lanes, `b` lanes of one device, `R` places of a lane.

Two numberings meet here, and each has its own word.  A shape's *index* is its number in the store; its *position* is
its place among the training shapes, in whose order codes stand outside of training.  Rows of `own` lie as lanes do: in
neither order.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jonet.errors import ConfigError


class Deal(NamedTuple):
    """Some lanes, for `batches.turn`: their numbers [b], and the indices of their shapes [b, R], -1 for none."""

    lane: Any
    index: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Lanes:
    """Shapes in lanes.

    indices [S]: numbers of the training shapes in the store, in the order of their positions. dealt [W, R]: positions
    of the shapes of each lane, -1 for none; lanes without a shape stand at the end. steps: of an epoch. devices: each
    has W / devices whole lanes.
    """

    indices: np.ndarray
    dealt: np.ndarray
    steps: int
    devices: int

    @classmethod
    def deal(cls, indices: Sequence[int], batch: int, seed: int, devices: int) -> Lanes:
        """Deals shapes by the seed into `batch` lanes, or, where they are no more than these, into one lane each.

        Only then are lanes added that stay empty, up to a multiple of the devices: shapes that take turns in a lane
        would take other turns, and steps see other shapes.
        Raises ConfigError where the devices do not divide the batch, or there is no shape.
        """
        indices = np.asarray(indices, np.int32)
        shapes, lanes = len(indices), min(batch, len(indices))
        if lanes < 1 or devices < 1:
            raise ConfigError(
                f"{shapes} shapes in batches of {batch} on {devices} devices: at least one of each is needed"
            )
        width = -(-lanes // devices) * devices
        if lanes < shapes and lanes < width:
            fitting = [size for size in (batch // devices * devices, width) if size]
            raise ConfigError(
                f"a batch of {batch} shapes does not divide over {devices} devices; a batch of "
                f"{' or '.join(map(str, fitting))} does"
            )
        order = np.random.default_rng([seed, zlib.crc32(b"lanes")]).permutation(shapes)
        positions = np.full((width, -(-shapes // lanes)), -1, np.int32)
        for lane in range(lanes):
            dealt = order[lane::lanes]
            positions[lane, : len(dealt)] = dealt
        return cls(indices, positions, shapes // lanes, devices)

    @property
    def shapes(self) -> int:
        """How many shapes a step sees."""
        return int((self.dealt[:, 0] >= 0).sum())

    @property
    def positions(self) -> np.ndarray:
        """Positions of the shapes of all rows of `own`, over all devices [W · R], -1 for padding."""
        return self.dealt.ravel()

    def deal_of(self, device: int | None = None) -> Deal:
        """The lanes of a device, or all."""
        each = len(self.dealt) // self.devices
        lanes = slice(None) if device is None else slice(device * each, (device + 1) * each)
        positions = self.dealt[lanes]
        index = np.where(positions >= 0, self.indices[positions], -1).astype(np.int32)
        return Deal(np.arange(len(self.dealt), dtype=np.int32)[lanes], index)
