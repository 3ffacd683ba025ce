"""The precision of matrix products in what is done with trained networks: evaluation, encoding and fits."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import jax

from jonet import parallel
from jonet.chips import Precision

DEFAULT: Precision = "high"  # surfaces and codes as with full float32, in half of a TPU's passes
# "high" of JAX is three products of bfloat16 on TPUs only; on GPUs it is one of TF32 or full float32, as XLA chooses.
THREE = "BF16_BF16_F32_X3"
OLD = re.compile(r"[1-7]\.\d")  # compute capabilities of GPUs without bfloat16, on which XLA refuses it


def precise(precision: Precision, convolutions: bool = False) -> AbstractContextManager[None]:
    """Within this context, in this thread, products of float32 matrices have a precision, whatever the caller has set.

    precision: "highest": full float32.  "high": the sum of three products of operands split into two bfloat16 (errors
    of 2⁻¹⁶).  "default": one product, of bfloat16 (2⁻⁸) on a TPU and of TF32 (2⁻¹¹) on a GPU.  On a CPU, and where
    there are no such products, all are full float32.
    convolutions: whether there are some; GPUs have them in TF32 or full float32 only, and "high" is the latter.
    """
    kind, device = parallel.platform().kind, parallel.working()[0]
    whole = convolutions or OLD.fullmatch(getattr(device, "compute_capability", ""))
    if kind == "cpu" or (kind == "gpu" and precision == "high" and whole):
        precision = "highest"
    three = kind == "gpu" and device.platform != "cpu"  # which refuses algorithms where it stands in for a GPU
    return jax.default_matmul_precision(THREE if precision == "high" and three else precision)
