"""The time that a program needs at least on a GPU: that of the bytes or of the operations of each kernel."""

from __future__ import annotations

from experiments.accelerators.counting import moved_bytes, operations_of
from experiments.accelerators.hlo import Module, Passes
from jonet.chips import Chip

HALF = ("bf16", "f16")


def seconds(module: Module, chip: Chip, precision: str, passes: Passes = ()) -> float:
    """The floor of one call: over all kernels, the larger of bytes over bandwidth and operations over rate.

    precision: of products of float32, as for `Chip.rate`.  The launches of the kernels are not in it.
    """
    total = 0.0
    for times, top, around in module.executed(passes):
        computed = sum(
            count / chip.rate("bfloat16" if dtype in HALF else precision)
            for dtype, count in operations_of(module, top, around).items()
        )
        total += times * max(moved_bytes(module, top, around) / chip.bandwidth, computed)
    return total
