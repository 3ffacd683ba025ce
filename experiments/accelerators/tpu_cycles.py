"""The time of a program on a TPU by its compiler's estimate of the cycles of each instruction."""

from __future__ import annotations

import re

from experiments.accelerators.hlo import Module, Passes
from jonet.chips import Chip


def cycles(module: Module, passes: Passes = ()) -> int:
    """Cycles of one call; instructions without an estimate (slices of memory, waiting for a collective) count as 0."""
    total = 0
    for times, top, _ in module.executed(passes):
        found = re.search(r'estimated_cycles":"(\d+)"', top.attributes)
        total += times * int(found[1]) if found else 0
    return total


def seconds(module: Module, chip: Chip, passes: Passes = ()) -> float:
    """Seconds of one call at the chip's clock."""
    return cycles(module, passes) / chip.clock
