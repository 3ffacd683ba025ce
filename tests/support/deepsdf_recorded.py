"""Recorded outputs of the published DeepSDF program (recorded/deepsdf)."""

import json

from paths import RECORDED

FOLDER = RECORDED / "deepsdf"
CASES = json.loads((FOLDER / "cases.json").read_text())


def to_tree(arrays: dict) -> dict:
    """A PyTorch state dict → the decoder's parameters."""
    names = {"weight": "kernel", "weight_v": "kernel", "weight_g": "scale", "bias": "bias"}
    tree = {}
    for key, array in arrays.items():
        layer, name = key.split(".")
        if layer.startswith("bn"):
            tree.setdefault(layer, {})[{"weight": "scale"}.get(name, name)] = array
        else:
            array = array[:, 0] if name == "weight_g" else array.T if name.startswith("weight") else array
            tree.setdefault(layer, {})[names[name]] = array
    return tree


def below(recorded, prefix: str) -> dict:
    """The recorded arrays below a prefix, as a tree."""
    return to_tree({key.removeprefix(prefix): recorded[key] for key in recorded if key.startswith(prefix)})
