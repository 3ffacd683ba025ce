"""Trained networks as the authors' programs leave them: which program it was, and the reading of what it left."""

from __future__ import annotations

from pathlib import Path

from jonet.errors import FormatError
from jonet.networks import deepsdf_folder, onet_file
from jonet.networks.pretrained import Pretrained

ONET = ("model_best.pt", "model.pt")  # in an output folder of Occupancy Networks, the best one first


def read(path: str | Path, checkpoint: str | None = None, options: str | Path | None = None) -> Pretrained:
    """A DeepSDF experiment folder or a file in its `ModelParameters`; an Occupancy Networks `.pt` file or its folder.

    checkpoint: which one of a folder, a file's name without suffix (latest; model_best, else model).  options: the
    YAML of an Occupancy Network.  Raises FormatError where it is neither, is damaged, or does not fit together.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path}: there is no such file or folder")
    if path.is_file() and path.parent.name == "ModelParameters":
        path, checkpoint = path.parents[1], path.stem
    if (path / "specs.json").is_file():
        return deepsdf_folder.read(path, checkpoint or "latest")
    if path.is_file():
        return onet_file.read(path, options)
    wanted = ONET if checkpoint is None else (f"{checkpoint}.pt",)
    found = next((file for name in wanted if (file := path / name).is_file()), None)
    if found is None:
        raise FormatError(f"{path}: holds neither specs.json (of DeepSDF) nor {' or '.join(wanted)} (of ONet)")
    config = path / "config.yaml"
    return onet_file.read(found, config if options is None and config.is_file() else options)
