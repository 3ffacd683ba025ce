"""Experiment folders of the DeepSDF program: `specs.json`, `ModelParameters/`, `LatentCodes/` and what goes along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jonet import config
from jonet.data import archives, deepsdf_layout, splits
from jonet.errors import ConfigError, FormatError
from jonet.networks import weights
from jonet.networks.deepsdf import Decoder, Specs
from jonet.networks.pretrained import Pretrained, from_deepsdf

ABSENT = {  # what the program's decoder takes where the specification is silent
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
    """The network and the codes of one snapshot.

    checkpoint: the name of a file in `ModelParameters`, without suffix.  Names of shapes come from the train split and
    their scales from `NormalizationParameters`, where these files are found; what is missing is a note.
    Raises FormatError where specification, weights and codes do not fit together.
    """
    folder = Path(folder)
    given = archives.options(folder / "specs.json")
    specs, unknown = specification(given, folder / "specs.json")
    notes = [f"NetworkSpecs has {name}, which the published program does not know: ignored" for name in unknown]
    path = _snapshot(folder, checkpoint)
    saved = weights.load(path)
    if not isinstance(saved, Mapping) or "model_state_dict" not in saved:
        raise FormatError(f"{path}: lacks model_state_dict, which the program's checkpoints have")
    state = weights.state(saved["model_state_dict"], path)
    try:
        shared = from_deepsdf(state, specs)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    codes, epoch_of_codes = _codes(folder / "LatentCodes" / path.name, specs)
    epoch, names, similarities = weights.count(saved, "epoch"), (), None
    if codes is None:
        notes.append(f"there is no LatentCodes/{path.name}: the model has no training codes")
    else:
        if epoch != epoch_of_codes:
            notes.append(f"the network is of epoch {epoch}, but its codes are of epoch {epoch_of_codes}")
        names, similarities, missing = _shapes(folder, given, len(codes))
        notes += missing
    return Pretrained(
        kind="deepsdf",
        network=Decoder(specs),
        shared=shared,
        statistics={},
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
    """`specs.json` as our Specs, and the keys of NetworkSpecs that the program does not know."""
    if (kind := given.get("NetworkArch", "deep_sdf_decoder")) != "deep_sdf_decoder":
        raise FormatError(f"{path}: NetworkArch is {kind!r}, but only the published 'deep_sdf_decoder' can be imported")
    network = given.get("NetworkSpecs")
    if not isinstance(network, dict) or "dims" not in network or "CodeLength" not in given:
        raise FormatError(f"{path}: must have CodeLength, and NetworkSpecs with dims")
    known = {name: value for name, value in network.items() if name in (*ABSENT, "dims") and value is not None}
    try:
        specs = config.from_dict(Specs, {**ABSENT, **known, "latent_size": given["CodeLength"]}, "NetworkSpecs.")
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    return specs, sorted(f"{name}={value!r}" for name, value in network.items() if name not in (*ABSENT, "dims"))


def _snapshot(folder: Path, checkpoint: str) -> Path:
    path = folder / "ModelParameters" / f"{checkpoint}.pth"
    if not path.is_file():
        there = sorted(found.stem for found in path.parent.glob("*.pth"))
        raise FormatError(f"{path}: there is no such checkpoint; there are {', '.join(there) or 'none'}")
    return path


def _codes(path: Path, specs: Specs) -> tuple[np.ndarray | None, int | None]:
    """The code table [S, L] and its epoch: a table under its name, or, before October 2019, bare [S, 1, L]."""
    if not path.is_file():
        return None, None
    saved = weights.load(path)
    table = saved.get("latent_codes") if isinstance(saved, Mapping) else None
    if isinstance(table, Mapping):
        table = table.get("weight")
    if table is None:
        raise FormatError(f"{path}: lacks latent_codes, or their weight")
    return _rows(table, path, specs), weights.count(saved, "epoch")


def _rows(table, path: Path, specs: Specs) -> np.ndarray:
    codes = weights.array(table, "the table of codes", path)
    if codes.ndim == 3 and codes.shape[1] == 1:
        codes = codes[:, 0]
    if codes.ndim != 2 or codes.shape[1] != specs.latent_size or not len(codes):
        raise FormatError(f"{path}: codes have shape {list(codes.shape)}, but CodeLength is {specs.latent_size}")
    return codes


def _fitted(folder: Path, epoch: int | None, specs: Specs) -> dict[str, np.ndarray]:
    """Codes [L] that the program fitted to other shapes, by `<dataset>/<class>/<instance>`."""
    root = folder / "Reconstructions" / str(epoch) / "Codes"
    paths = sorted(root.rglob("*.pth")) if root.is_dir() else []
    return {str(path.relative_to(root).with_suffix("")): _rows(weights.load(path), path, specs)[0] for path in paths}


def _shapes(folder: Path, given: dict, count: int):
    """Names and similarities of the training shapes in the order of their codes, and notes on what is missing."""
    numbered = tuple(f"shape {i}" for i in range(count))
    split = _find(folder, given.get("TrainSplit"))
    if split is None:
        return numbered, None, [f"the train split {given.get('TrainSplit')!r} is not there: codes have no names"]
    instances = splits.read(split)
    if len(instances) != count:
        said = f"{split} names {len(instances)} shapes, but there are {count} codes: they have no names"
        return numbered, None, [said]
    names, data = tuple(splits.short(instances).values()), _find(folder, given.get("DataSource"))
    found = [data / "NormalizationParameters" / f"{instance}.npz" for instance in instances] if data else []
    if not found or not all(path.is_file() for path in found):
        return names, None, ["without NormalizationParameters of all shapes their own units are unknown"]
    return names, tuple(deepsdf_layout.read_similarity(path) for path in found), []


def _find(folder: Path, named) -> Path | None:
    """A path of the specification: absolute, or from the folder or one above it, or the bare name in the folder."""
    if not isinstance(named, str) or not named:
        return None
    places = [folder / named, *(above / named for above in folder.resolve().parents), folder / Path(named).name]
    return next((place for place in places if place.exists()), None)
