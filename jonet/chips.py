"""Chips that programs are compiled for, with their limits from the makers' data sheets."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["cpu", "gpu", "tpu"]
Precision = Literal["highest", "high", "default"]  # of matrix products, see `products.precise`


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one device.

    kind: how programs are written for it.  memory: bytes.  rates: operations a second of dense matrix products by
    precision (`bfloat16`; `tf32`: products of float32 with 10 bits of mantissa, on GPUs; `float32`).
    bandwidth: bytes a second between chip and memory.  link: bytes a second that a chip sends to the others of its
    group, in one direction.  clock: cycles a second.
    """

    kind: Kind
    memory: float
    rates: dict[str, float]
    bandwidth: float
    link: float
    clock: float
    source: str

    def rate(self, precision: str) -> float:
        """Operations a second of matrix products by what their products are computed in.

        precision: `bfloat16`; for float32 operands `highest`, `high` or `default`, see `products.precise`.
        A TPU multiplies bfloat16: float32 needs six passes for `highest`, three for `high`, one for `default`.  A GPU
        multiplies float32 outside of its matrix units for `highest`, and as TF32 for `default`.
        """
        if precision == "bfloat16":
            return self.rates["bfloat16"]
        if self.kind == "tpu" or precision == "high":
            return self.rates["bfloat16"] / {"highest": 6, "high": 3, "default": 1}[precision]
        return self.rates["float32" if precision == "highest" else "tf32"]


GIB = 2**30
TPU = "docs.cloud.google.com/tpu/docs, the page of each version"
NVIDIA = "NVIDIA data sheet, SXM, dense"
HOPPER = {"bfloat16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}
AMPERE = {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12}
CHIPS = {
    "v5e": Chip("tpu", 16 * GIB, {"bfloat16": 197e12}, 819e9, 200e9, 1.5e9, TPU),
    "v6e": Chip("tpu", 32 * GIB, {"bfloat16": 918e12}, 1638e9, 400e9, 1.75e9, TPU),
    "a100": Chip("gpu", 40 * GIB, AMPERE, 1555e9, 300e9, 1.41e9, NVIDIA),
    "h100": Chip("gpu", 80 * GIB, HOPPER, 3352e9, 450e9, 1.98e9, NVIDIA),
    "h200": Chip("gpu", 141e9, HOPPER, 4800e9, 450e9, 1.98e9, NVIDIA),
}
