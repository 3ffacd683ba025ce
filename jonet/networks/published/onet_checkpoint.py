"""Reads checkpoints of the Occupancy Networks program: `.pt` files, with or without their YAML configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jonet.errors import ConfigError, FormatError, shown
from jonet.networks.bound import BoundNetwork
from jonet.networks.encoders import InputKind
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.networks.published import weights
from jonet.networks.published.pretrained import Pretrained, from_torch
from jonet.storage import archives

DEFAULT = {  # from the program's configs/default.yaml, which every YAML extends
    "method": "onet",
    "model": {"decoder": "simple", "encoder": "resnet18", "encoder_latent": None, "c_dim": 512, "z_dim": 64},
    "data": {"pointcloud_n": 256, "img_size": 224},
    "test": {"threshold": 0.5},
}
# by prefix of an encoder's name: kind of input, its published size, and the YAML option of another size
TAKES: dict[str, tuple[InputKind, int, str]] = {
    "pointnet": ("points", 300, "pointcloud_n"),
    "voxel": ("voxels", 32, ""),
    "resnet": ("images", 224, "img_size"),
    "simple_conv": ("images", 224, "img_size"),
    "null": ("samples", 2048, ""),  # for the latent encoder, which accepts any number
}
RESNETS = {  # by number of blocks in the third stage, and whether they are bottlenecks
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
}
MOST_BLOCKS = 100  # the published networks have 5
SAME = {"resnet101": "resnet50"}  # the program builds a ResNet-50 under both names


def read(path: str | Path, options: str | Path | None = None) -> Pretrained:
    """The network of a checkpoint, and the codes of its training shapes if it has an embedding (encoder `idx`).

    options: its YAML; default: the file of the same name in the same folder, if there is one.  Layers and sizes are
    inferred from the weights.  Only the YAML has leaky activations, τ and the size of inputs; without it they are as
    published, and `notes` has a warning.
    Raises FormatError if YAML and weights contradict each other, or if the weights match no published network.
    """
    path = Path(path)
    saved = weights.load(path)
    if not isinstance(saved, Mapping) or "model" not in saved:
        raise FormatError(f"{path}: has no entry 'model', so it is not a checkpoint of the Occupancy Networks program")
    state = weights.state(saved["model"], path)
    found, state = recognized(state, path)
    options = _yaml_of(path) if options is None else Path(options)
    if options is None:
        found["threshold"] = 0.5 if found["encoder"] == "idx" else 0.2
        notes = [f"no YAML was found: activations are not leaky and τ is {found['threshold']}, as published"]
        data = {}
    else:
        given = _yaml(options)
        found, notes, data = _with_yaml(found, given, options), [], given["data"]
    try:
        network = OccupancyNetwork(Specs(**found))
    except ConfigError as error:
        raise FormatError(f"{path}: matches no published network ({error})") from error
    codes = state.pop("encoder.weight") if found["encoder"] == "idx" else None
    try:
        shared, batch_stats = from_torch(state, *_expected(network))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    return Pretrained(
        kind="occupancy",
        network=BoundNetwork(network, {"params": shared}, batch_stats),
        frame="cube",
        takes=takes(network.specs, data, options or path),
        codes=codes,
        names=() if codes is None else tuple(f"shape {i}" for i in range(len(codes))),
        history={
            "program": "Occupancy Networks",
            "source": str(path),
            "options": None if options is None else str(options),
            "epoch": weights.count(saved, "epoch_it"),
            "iteration": weights.count(saved, "it"),
            "shapes": 0 if codes is None else len(codes),
            "notes": notes,
        },
        notes=tuple(notes),
    )


def recognized(state: dict[str, np.ndarray], path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Options of the network, inferred from names and shapes of its weights, and the weights.

    An image encoder without a last layer gets an identity [C, C] as its last layer.
    """

    def size(name: str, axis: int, otherwise: int = 0) -> int:
        return state[name].shape[axis] if name in state and state[name].ndim > axis else otherwise

    def numbered(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    def any_of(start: str) -> bool:
        return any(name.startswith(start) for name in state)

    first = "decoder.conv_p" if any_of("decoder.conv_p.") else "decoder.fc_p"
    if f"{first}.weight" not in state:
        raise FormatError(
            f"{path}: has no decoder.fc_p.weight, so it is not a checkpoint of the Occupancy Networks program; it "
            f"has {', '.join(sorted(state)[:8]) or 'no weights'}"
        )
    gamma = next((name for name in sorted(state) if re.search(r"_gamma\.weight$", name)), "")
    if first == "decoder.conv_p":
        decoder, blocks = "cbatchnorm2", numbered(r"decoder\.blocks\.(\d+)\.")
    elif any_of("decoder.bn_0."):
        decoder, blocks = "cbatchnorm_noresnet", numbered(r"decoder\.fc_(\d+)\.")
    else:
        decoder = "cbatchnorm" if gamma else "batchnorm" if any_of("decoder.block0.bn_0.") else "simple"
        blocks = numbered(r"decoder\.block(\d+)\.")
    if blocks > MOST_BLOCKS:
        raise FormatError(f"{path}: has {blocks} blocks, but networks of the program have at most {MOST_BLOCKS}")
    encoder, width = _encoder(state, numbered)
    if encoder.startswith("resnet") and "encoder.fc.weight" not in state:  # use_linear: false, so c is the features
        features = size("encoder.features.layer4.0.downsample.0.weight", 0)
        state = state | {"encoder.fc.weight": np.eye(features, dtype=np.float32)}
        state["encoder.fc.bias"] = np.zeros(features, np.float32)
    found = {
        "decoder": decoder,
        "encoder": encoder,
        "c_dim": size(gamma, 1) or size("decoder.fc_c.weight", 1),
        "z_dim": size("decoder.fc_z.weight", 1),
        "hidden_size": size(f"{first}.weight", 0),
        "n_blocks": blocks,
        "encoder_width": width,
    }
    return found, state


def takes(specs: Specs, data: Mapping[str, Any], path: Path) -> tuple[InputKind, int] | None:
    """Kind and size of the input of a network's encoder, as `Pretrained.takes`.  data: the group `data` of the YAML."""
    found = [row for start, row in TAKES.items() if specs.encoder.startswith(start)]
    if not found or (specs.encoder == "null" and not specs.z_dim):
        return None
    kind, size, option = found[0]
    size = data.get(option, size)
    if not isinstance(size, int) or size < 1:
        raise FormatError(f"{path}: data.{option} is {shown(size)}, but must be a positive number of points or pixels")
    return kind, size


def _encoder(state: Mapping[str, np.ndarray], numbered) -> tuple[str, int | None]:
    """Name of the encoder, and its width (units of its layers, or channels of its first layer)."""

    def width(name: str) -> int:
        return state[f"encoder.{name}"].shape[0]

    names = {name.removeprefix("encoder.") for name in state if name.startswith("encoder.")}
    if "features.conv1.weight" in names:
        blocks = numbered(r"encoder\.features\.layer3\.(\d+)\."), "features.layer1.0.conv3.weight" in names
        return RESNETS.get(blocks, "resnet18"), width("features.conv1.weight")
    if "fc_pos.weight" in names:
        residual = any(name.startswith("block_") for name in names)
        return "pointnet_resnet" if residual else "pointnet_simple", width("fc_pos.weight") // 2
    if "conv_in.weight" in names:
        return "voxel_simple", width("conv_in.weight")
    if "conv0.weight" in names:
        return "simple_conv", width("conv0.weight")
    return ("idx" if names == {"weight"} else "null"), None


def _with_yaml(found: dict[str, Any], given: dict, path: Path) -> dict[str, Any]:
    """Adds the options that only the YAML has; FormatError if the YAML contradicts the weights."""
    model, threshold = given["model"], given["test"].get("threshold")
    if given["method"] != "onet":
        raise FormatError(f"{path}: method is {shown(given['method'])}, but only 'onet' can be imported")
    inner = {name: model.get(f"{name}_kwargs") or {} for name in ("decoder", "encoder", "encoder_latent")}
    if not all(isinstance(kwargs, dict) for kwargs in inner.values()):
        raise FormatError(f"{path}: decoder_kwargs, encoder_kwargs and encoder_latent_kwargs must be mappings")
    if inner["encoder"].get("normalize") is False:
        raise FormatError(f"{path}: its encoder expects images without ImageNet normalization, which is not supported")
    options = {
        "decoder": model["decoder"],
        "encoder": SAME.get(model["encoder"], model["encoder"]) or ("idx" if found["encoder"] == "idx" else "null"),
        "c_dim": model["c_dim"],
        "z_dim": model["z_dim"],
        "hidden_size": inner["decoder"].get("hidden_size", found["hidden_size"]),
        "encoder_width": inner["encoder"].get("hidden_dim", found["encoder_width"]),
    }
    if different := [
        f"{name}: {found[name]!r} → {shown(value)}" for name, value in options.items() if found[name] != value
    ]:
        raise FormatError(f"{path}: describes another network ({'; '.join(different)}: weights → YAML)")
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise FormatError(f"{path}: test.threshold is {shown(threshold)}, but must be between 0 and 1")
    leaky = {"leaky": inner["decoder"].get("leaky", False), "latent_leaky": inner["encoder_latent"].get("leaky", False)}
    return found | {"threshold": float(threshold)} | {name: bool(value) for name, value in leaky.items()}


def _yaml_of(path: Path) -> Path | None:
    return next((found for suffix in (".yaml", ".yml") if (found := path.with_suffix(suffix)).is_file()), None)


def _yaml(path: Path, depth: int = 0) -> dict:
    """A YAML file merged with the files that it inherits from and the program's defaults."""
    given = archives.yaml_options(path)
    if depth > 8:
        raise FormatError(f"{path}: may inherit from a chain of at most 8 files")
    parent = DEFAULT
    if inherited := given.get("inherit_from"):
        candidates = [above / str(inherited) for above in path.resolve().parents]
        found = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
        if found is None:
            raise FormatError(
                f"{path}: inherits from {shown(inherited)}, which is neither in its folder nor in a parent"
            )
        parent = _yaml(found, depth + 1)
    merged = _merged(parent, given)
    if not all(isinstance(merged[name], dict) for name in ("model", "test", "data")):
        raise FormatError(f"{path}: model, test and data must be mappings")
    return merged


def _merged(under: dict, over: dict) -> dict:
    """Merges two mappings recursively; `over` has precedence."""
    both = {
        name for name in under.keys() & over.keys() if isinstance(under[name], dict) and isinstance(over[name], dict)
    }
    return {**under, **over, **{name: _merged(under[name], over[name]) for name in both}}


def _expected(network: OccupancyNetwork) -> tuple[dict, dict]:
    """Shapes of a network's parameters and batch_stats."""
    shared, batch_stats = jax.eval_shape(network.start, jax.random.key(0))
    return shared["params"], batch_stats
