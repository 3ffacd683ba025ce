"""Weights of the authors' programs as ours: names to names, and an error that lists both sides where they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jonet.errors import FormatError

# Occupancy Networks: the published name of a layer → ours, applied in order.
RENAMED = (
    (r"\b(?:conv|fc)_(gamma|beta)\b", r"\1"),  # conditional batch norms, as convolutions or (legacy) linear layers
    (r"\b(bn(?:_\d)?)\.bn\b", r"\1"),  # the norm inside a conditional one
    (r"\bblocks\.(\d+)", r"block\1"),  # DecoderCBatchNorm2 has its own words for some layers
    (r"\bconv_(p|out)\b", r"fc_\1"),
    (r"\bfeatures\.", ""),  # torchvision's network inside the image encoder
    (r"\b(layer\d|downsample)\.(\d+)", r"\1_\2"),
)
LEAVES = {"bias": "bias", "running_mean": "mean", "running_var": "variance"}


def from_torch(state: Mapping[str, np.ndarray], parameters: dict, statistics: dict) -> tuple[dict, dict]:
    """A state dict of the published Occupancy Networks program as parameters and statistics of our modules.

    state: arrays by name; `num_batches_tracked`, which affects nothing, is dropped.  An embedding (`encoder.weight` of
    the encoder `idx`) is the shapes' own: take it out before.  parameters, statistics: what the network expects, as
    trees of arrays or shapes.  Raises FormatError, which lists what is missing, unknown or of another shape.
    """
    arrays: dict[str, dict[tuple[str, ...], np.ndarray]] = {"parameters": {}, "statistics": {}}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        for published, ours in RENAMED:
            layer = re.sub(published, ours, layer)
        value = np.asarray(value, np.float32)
        if leaf == "weight":
            leaf, value = ("kernel", _kernel(value)) if value.ndim > 1 else ("scale", value)
        kind = "statistics" if leaf.startswith("running") else "parameters"
        arrays[kind][*layer.split("."), LEAVES.get(leaf, leaf)] = value
    expected = {"parameters": flatten_dict(parameters), "statistics": flatten_dict(statistics)}
    ours, theirs = ({_entry(*item) for kind in side.values() for item in kind.items()} for side in (expected, arrays))
    if ours != theirs:
        raise FormatError(
            "the weights do not fit the network; choose the configuration that they were trained with "
            "(- the network has it, + the file has it):\n" + _listed("-", ours - theirs) + _listed("+", theirs - ours)
        )
    return unflatten_dict(arrays["parameters"]), unflatten_dict(arrays["statistics"])


def _kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in, ...] → [..., in, out]; a convolution over points that is one wide is a plain product."""
    kernel = np.moveaxis(weight, (0, 1), (-1, -2))
    return kernel[0] if kernel.ndim == 3 and len(kernel) == 1 else kernel


def _entry(path: tuple[str, ...], array) -> str:
    return f"{'.'.join(path)} {list(array.shape)}"


def _listed(sign: str, entries: set[str], most: int = 20) -> str:
    lines = sorted(entries)
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"{sign} {line}\n" for line in lines[:most] + more)
