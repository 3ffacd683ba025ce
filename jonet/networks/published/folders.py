"""Reads a network trained with a published program; detects which program wrote the file or folder."""

from __future__ import annotations

from pathlib import Path

from jonet.errors import FormatError
from jonet.networks.published import deepsdf_checkpoint, onet_checkpoint
from jonet.networks.published.pretrained import Pretrained

ONET = ("model_best.pt", "model.pt")  # checkpoints in an output folder of Occupancy Networks, in order of preference


def read(path: str | Path, checkpoint: str | None = None, options: str | Path | None = None) -> Pretrained:
    """Reads a network of either program.

    path: a DeepSDF experiment folder or a file in its `ModelParameters`, or an Occupancy Networks `.pt` file or its
    folder.  checkpoint: name of a file in the folder, without suffix; default `latest` for DeepSDF, `model_best` or
    else `model` for Occupancy Networks.  options: YAML configuration of an Occupancy Network.
    Raises FormatError if path is neither, if a file is damaged, or if the files do not match each other.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path}: there is no such file or folder")
    if path.is_file() and path.parent.name == "ModelParameters":
        path, checkpoint = path.parents[1], path.stem
    if (path / "specs.json").is_file():
        return deepsdf_checkpoint.read(path, checkpoint or "latest")
    if path.is_file():
        return onet_checkpoint.read(path, options)
    wanted = ONET if checkpoint is None else (f"{checkpoint}.pt",)
    found = next((file for name in wanted if (file := path / name).is_file()), None)
    if found is None:
        raise FormatError(f"{path}: has neither specs.json (DeepSDF) nor {' or '.join(wanted)} (Occupancy Networks)")
    config = path / "config.yaml"
    return onet_checkpoint.read(found, config if options is None and config.is_file() else options)
