"""Converts weights of the published programs to jonet's parameters; names or shapes that do not match are listed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jonet.errors import FormatError
from jonet.geometry.mesh import Similarity
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.encoders import InputKind
from jonet.networks.published import weights
from jonet.wording import counted

# Occupancy Networks: regular expressions from published to jonet's names of layers, applied in order.
RENAMED = (
    (r"\b(?:conv|fc)_(gamma|beta)\b", r"\1"),  # conditional batch norm: convolutions or (legacy) linear layers
    (r"\b(bn(?:_\d)?)\.bn\b", r"\1"),  # the batch norm inside a conditional batch norm
    (r"\bblocks\.(\d+)", r"block\1"),  # DecoderCBatchNorm2 has other names for some layers
    (r"\bconv_(p|out)\b", r"fc_\1"),
    (r"\bfeatures\.", ""),  # torchvision's ResNet inside the image encoder
    (r"\b(layer\d|downsample)\.(\d+)", r"\1_\2"),
)
LEAVES = {"bias": "bias", "running_mean": "mean", "running_var": "variance"}

# DeepSDF: names of a layer's arrays, in both of PyTorch's implementations of weight norm.
DEEPSDF_LEAVES = {
    "bias": "bias",
    "weight": "kernel",
    "weight_g": "scale",
    "weight_v": "kernel",
    "parametrizations.weight.original0": "scale",
    "parametrizations.weight.original1": "kernel",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A network of a published program, converted to jonet's modules; the input of `Model`.

    kind: "deepsdf" or "occupancy".  takes: kind and size of the encoder's input, as in `inference.encode.Inputs`; None
    without an encoder.  codes [S, L]: of the training shapes, with names and, if known, similarities from input units
    to the normalized frame.  fitted: codes [L] that the program fitted to other shapes, by name.
    history: provenance, as JSON.  notes: warnings for the user, such as files that were missing.
    """

    kind: str
    network: BoundNetwork
    frame: str
    takes: tuple[InputKind, int] | None = None
    codes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    similarities: tuple[Similarity, ...] | None = None
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    history: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def from_torch(state: Mapping[str, np.ndarray], parameters: dict, batch_stats: dict) -> tuple[dict, dict]:
    """A state dict of the published Occupancy Networks program → parameters and batch_stats.

    state: arrays by name; `num_batches_tracked`, which has no effect, is dropped.  An embedding (`encoder.weight` of
    the encoder `idx`) is per shape and must be removed first.  parameters, batch_stats: those that the network
    expects, as trees of arrays or of `jax.ShapeDtypeStruct`.  Kernels [out, in, …] become […, in, out].
    Raises FormatError, which lists arrays that are missing, unexpected or of another shape.
    """
    arrays: dict[str, dict[tuple[str, ...], np.ndarray]] = {"parameters": {}, "batch_stats": {}}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        for published, ours in RENAMED:
            layer = re.sub(published, ours, layer)
        value = np.asarray(value, np.float32)
        if leaf == "weight":
            leaf, value = ("kernel", _kernel(value)) if value.ndim > 1 else ("scale", value)
        kind = "batch_stats" if leaf.startswith("running") else "parameters"
        arrays[kind][*layer.split("."), LEAVES.get(leaf, leaf)] = value
    expected = {"parameters": flatten_dict(parameters), "batch_stats": flatten_dict(batch_stats)}
    _match(expected, arrays)
    return unflatten_dict(arrays["parameters"]), unflatten_dict(arrays["batch_stats"])


def from_deepsdf(state: Mapping[str, np.ndarray], specs: Specs) -> dict:
    """A state dict of the published DeepSDF program → shared parameters of `DeepSDFDecoder`.

    Names may have the prefix of DataParallel, and weight norm may be of either of PyTorch's implementations.  The layer
    norm of the last layer, which the program creates but never applies, is dropped.  Kernels [out, in] become
    [in, out], and scales [out, 1] become [out].  Errors: as `from_torch`.
    """
    arrays: dict[tuple[str, ...], np.ndarray] = {}
    unused = "" if specs.weight_norm else f"bn{len(specs.dims)}"
    for name, value in state.items():
        layer, _, leaf = name.removeprefix("module.").partition(".")
        if layer == unused:
            continue
        leaf, value = DEEPSDF_LEAVES.get(leaf, leaf), np.asarray(value, np.float32)
        if leaf == "scale":
            value = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
        elif leaf == "kernel":
            leaf, value = ("scale", value) if layer.startswith("bn") else ("kernel", value.T)
        if (layer, leaf) in arrays:
            raise FormatError(f"{layer}.{leaf} is in the file twice, under two names")
        arrays[layer, leaf] = value
    if len(specs.dims) > len(arrays):  # each layer has several; to build the network would take very long
        raise FormatError(
            f"the specification has {counted(len(specs.dims), 'layer')}, but the weights are "
            f"{counted(len(arrays), 'array')}"
        )
    codes, points = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, specs.latent_size), (1, 1, 3)))
    expected = jax.eval_shape(DeepSDFDecoder(specs).init, jax.random.key(0), codes, points)["params"]
    _match({"parameters": flatten_dict(expected)}, {"parameters": arrays})
    return {"params": unflatten_dict(arrays)}


def imagenet(path: str | Path, parameters: dict, batch_stats: dict) -> tuple[dict, dict]:
    """Parameters and batch_stats of an image encoder with ImageNet weights; its last layer, to c, is not changed.

    path: torchvision's .pth file of the same ResNet, or a safetensors file with torchvision's names.
    parameters, batch_stats: of the newly initialized encoder.  Raises FormatError if the file is of another network.
    """
    state = {name: value for name, value in weights.state(weights.load(path), Path(path)).items() if "fc." not in name}
    body = {name: value for name, value in parameters.items() if name != "fc"}
    filled, running = from_torch(state, body, batch_stats)
    return {**filled, "fc": parameters["fc"]}, running


def _match(expected: Mapping[str, Mapping], found: Mapping[str, Mapping]) -> None:
    """Raises a FormatError that lists the differences if names or shapes of arrays differ."""
    ours, theirs = ({_entry(*item) for kind in side.values() for item in kind.items()} for side in (expected, found))
    if ours != theirs:
        raise FormatError(
            "the weights do not match the network; use the configuration that they were trained with "
            "(- only in the network, + only in the file):\n" + _listed("-", ours - theirs) + _listed("+", theirs - ours)
        )


def _kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in, …] → […, in, out]; a 1-D convolution with kernel size 1 becomes a dense kernel [in, out]."""
    kernel = np.moveaxis(weight, (0, 1), (-1, -2))
    return kernel[0] if kernel.ndim == 3 and len(kernel) == 1 else kernel


def _entry(path: tuple[str, ...], array) -> str:
    return f"{'.'.join(path)} {list(array.shape)}"


def _listed(sign: str, entries: set[str], most: int = 20) -> str:
    lines = sorted(entries)
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"{sign} {line}\n" for line in lines[:most] + more)
