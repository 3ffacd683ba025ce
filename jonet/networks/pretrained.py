"""Weights of the authors' programs as ours: names to names, and an error that lists both sides where they differ."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jonet.data.meshes import Similarity
from jonet.errors import FormatError
from jonet.networks import weights
from jonet.networks.deepsdf import Decoder, Specs

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

# DeepSDF: what a layer's arrays are called, under both spellings of weight norm.
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
    """A network of the authors' programs, in our terms: what `Model` is made of.

    kind: "deepsdf" or "occupancy".  takes: what its encoder is given and how much of it, as kind and size of
    `inference.encode.Inputs`; None without one.  codes [S, L]: of the training shapes, with their names and, where
    known, the ways from own units to the normalised frame.  fitted: codes of other shapes by name, as the program
    found them.  history: where it came from, JSON; notes: what a person should know before trusting it.
    """

    kind: str
    network: Any
    shared: Any
    statistics: Any
    frame: str
    takes: tuple[str, int] | None = None
    codes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    similarities: tuple[Similarity, ...] | None = None
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    history: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    _match(expected, arrays)
    return unflatten_dict(arrays["parameters"]), unflatten_dict(arrays["statistics"])


def from_deepsdf(state: Mapping[str, np.ndarray], specs: Specs) -> dict:
    """A state dict of the published DeepSDF program as our decoder's shared parameters.

    With or without the prefix of DataParallel, under either spelling of weight norm.  A layer norm of the last layer,
    which the program makes and never applies, is dropped.  Raises FormatError as `from_torch` does.
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
            raise FormatError(f"{layer}.{leaf} stands in the file twice, under two spellings")
        arrays[layer, leaf] = value
    codes, points = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, specs.latent_size), (1, 1, 3)))
    expected = jax.eval_shape(Decoder(specs).init, jax.random.key(0), codes, points)["params"]
    _match({"parameters": flatten_dict(expected)}, {"parameters": arrays})
    return {"params": unflatten_dict(arrays)}


def imagenet(path: str | Path, parameters: dict, statistics: dict) -> tuple[dict, dict]:
    """An image encoder with ImageNet's weights in place of its fresh ones; its last layer, to c, stays as it is.

    path: torchvision's .pth file of the same ResNet, or a safetensors file with torchvision's names.
    parameters, statistics: of the fresh encoder.  Raises FormatError where the file is another network's.
    """
    state = {name: value for name, value in weights.state(weights.load(path), Path(path)).items() if "fc." not in name}
    body = {name: value for name, value in parameters.items() if name != "fc"}
    filled, running = from_torch(state, body, statistics)
    return {**filled, "fc": parameters["fc"]}, running


def _match(expected: Mapping[str, Mapping], found: Mapping[str, Mapping]) -> None:
    """FormatError that lists both sides, where names or shapes differ."""
    ours, theirs = ({_entry(*item) for kind in side.values() for item in kind.items()} for side in (expected, found))
    if ours != theirs:
        raise FormatError(
            "the weights do not fit the network; choose the configuration that they were trained with "
            "(- the network has it, + the file has it):\n" + _listed("-", ours - theirs) + _listed("+", theirs - ours)
        )


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
