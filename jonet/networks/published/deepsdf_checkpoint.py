"""Reads experiment folders of the DeepSDF program: `specs.json`, `ModelParameters/`, `LatentCodes/` and others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jonet import config
from jonet.data import splits
from jonet.errors import ConfigError, FormatError, shown
from jonet.formats import deepsdf_samples
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.published import weights
from jonet.networks.published.pretrained import Pretrained, from_deepsdf
from jonet.storage import archives
from jonet.wording import counted

DEFAULTS = {  # of the program's decoder, for options that NetworkSpecs does not have
    "dropout": [],
    "dropout_prob": 0.0,
    "norm_layers": [],
    "latent_in": [],
    "weight_norm": False,
    "xyz_in_all": False,
    "use_tanh": False,
    "latent_dropout": False,
}


def read(folder: str | Path, checkpoint: str = "latest") -> Pretrained:
    """The network and the training codes of one checkpoint.

    checkpoint: the name of a file in `ModelParameters`, without suffix.  Names of shapes are read from the train split
    and their similarities from `NormalizationParameters`, if these files are found; if not, `notes` has a warning.
    Raises FormatError if specification, weights and codes do not match.
    """
    folder = Path(folder)
    given = archives.options(folder / "specs.json")
    specs, unknown = specification(given, folder / "specs.json")
    notes = [f"NetworkSpecs has {name}, which is not an option of the published program: ignored" for name in unknown]
    path = _checkpoint_file(folder, checkpoint)
    saved = weights.load(path)
    if not isinstance(saved, Mapping) or "model_state_dict" not in saved:
        raise FormatError(f"{path}: has no model_state_dict, so it is not a checkpoint of the DeepSDF program")
    state = weights.state(saved["model_state_dict"], path)
    try:
        shared = from_deepsdf(state, specs)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    codes, epoch_of_codes = _codes(folder / "LatentCodes" / path.name, specs)
    epoch, names, similarities = weights.count(saved, "epoch"), (), None
    if codes is None:
        notes.append(f"LatentCodes/{path.name} was not found: the model has no training codes")
    else:
        if epoch != epoch_of_codes:
            notes.append(f"the network is from epoch {epoch}, but its codes are from epoch {epoch_of_codes}")
        names, similarities, missing = _shapes(folder, given, len(codes))
        notes += missing
    return Pretrained(
        kind="deepsdf",
        network=BoundNetwork(DeepSDFDecoder(specs), shared),
        frame="sphere",
        codes=codes,
        names=names,
        similarities=similarities,
        fitted=_fitted(folder, epoch, specs),
        history={
            "program": "DeepSDF",
            "source": str(path),
            "epoch": epoch,
            "description": given.get("Description", ""),
            "shapes": 0 if codes is None else len(codes),
            "notes": notes,
        },
        notes=tuple(notes),
    )


def specification(given: dict, path: Path) -> tuple[Specs, list[str]]:
    """The contents of `specs.json` as Specs, and the entries of NetworkSpecs that are not options of the program."""
    if (kind := given.get("NetworkArch", "deep_sdf_decoder")) != "deep_sdf_decoder":
        raise FormatError(
            f"{path}: NetworkArch is {shown(kind)}, but only the published 'deep_sdf_decoder' can be imported"
        )
    network = given.get("NetworkSpecs")
    if not isinstance(network, dict) or "dims" not in network or "CodeLength" not in given:
        raise FormatError(f"{path}: must have CodeLength, and NetworkSpecs with dims")
    known = {name: value for name, value in network.items() if name in (*DEFAULTS, "dims") and value is not None}
    try:
        specs = config.from_dict(Specs, {**DEFAULTS, **known, "latent_size": given["CodeLength"]}, "NetworkSpecs.")
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    return specs, sorted(f"{name}={shown(value)}" for name, value in network.items() if name not in (*DEFAULTS, "dims"))


def _checkpoint_file(folder: Path, checkpoint: str) -> Path:
    path = folder / "ModelParameters" / f"{checkpoint}.pth"
    if not path.is_file():
        available = sorted(found.stem for found in path.parent.glob("*.pth"))
        raise FormatError(f"{path}: there is no such checkpoint; available: {', '.join(available) or 'none'}")
    return path


def _codes(path: Path, specs: Specs) -> tuple[np.ndarray | None, int | None]:
    """The training codes [S, L] and their epoch; None and None if there is no file.

    `latent_codes` is the state dict of an embedding, or, before October 2019, a tensor [S, 1, L].
    """
    if not path.is_file():
        return None, None
    saved = weights.load(path)
    table = saved.get("latent_codes") if isinstance(saved, Mapping) else None
    if isinstance(table, Mapping):
        table = table.get("weight")
    if table is None:
        raise FormatError(f"{path}: has no latent_codes, or no weight in them")
    return _rows(table, path, specs), weights.count(saved, "epoch")


def _rows(table, path: Path, specs: Specs) -> np.ndarray:
    codes = weights.array(table, "the array of codes", path)
    if codes.ndim == 3 and codes.shape[1] == 1:
        codes = codes[:, 0]
    if codes.ndim != 2 or codes.shape[1] != specs.latent_size or not len(codes):
        raise FormatError(f"{path}: codes have shape {list(codes.shape)}, but CodeLength is {specs.latent_size}")
    return codes


def _fitted(folder: Path, epoch: int | None, specs: Specs) -> dict[str, np.ndarray]:
    """Codes [L] that the program fitted to test shapes, by `<dataset>/<class>/<instance>`."""
    root = folder / "Reconstructions" / str(epoch) / "Codes"
    paths = sorted(root.rglob("*.pth")) if root.is_dir() else []
    return {str(path.relative_to(root).with_suffix("")): _rows(weights.load(path), path, specs)[0] for path in paths}


def _shapes(folder: Path, given: dict, count: int):
    """Names and similarities of the training shapes in the order of their codes, and warnings about missing files."""
    numbered = tuple(f"shape {i}" for i in range(count))
    split = _find(folder, given.get("TrainSplit"))
    if split is None:
        return numbered, None, [f"the train split {shown(given.get('TrainSplit'))} was not found: codes have no names"]
    instances = splits.read(split)
    if len(instances) != count:
        note = (
            f"{split} names {counted(len(instances), 'shape')}, but the file has {counted(count, 'code')}: codes "
            "have no names"
        )
        return numbered, None, [note]
    names, data = tuple(splits.short(instances).values()), _find(folder, given.get("DataSource"))
    found = [data / "NormalizationParameters" / f"{instance}.npz" for instance in instances] if data else []
    if not found or not all(map(os.path.isfile, found)):
        return names, None, ["NormalizationParameters of some shapes were not found: input units are unknown"]
    return names, tuple(deepsdf_samples.read_similarity(path) for path in found), []


def _find(folder: Path, named) -> Path | None:
    """Resolves a path in `specs.json`: absolute, relative to the folder or a parent, or a name in the folder."""
    if not isinstance(named, str) or not named:
        return None
    candidates = [folder / named, *(above / named for above in folder.resolve().parents), folder / Path(named).name]
    return next((path for path in candidates if os.path.exists(path)), None)
