"""`import`: a network of the authors' programs as a model of ours."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from jonet.codes import Codes
from jonet.commands import written
from jonet.commands.options import option
from jonet.errors import ConfigError
from jonet.inference.encode import Inputs
from jonet.inference.latents import FitConfig
from jonet.inference.prior import Prior
from jonet.model import Model, check_replaceable
from jonet.networks import published


def declare(verb) -> None:
    verb(
        "import",
        import_,
        "takes over a network that the authors' programs trained (needs torch: pip install 'jonet[import]')",
        option("source", help="DeepSDF experiment folder, or Occupancy Networks' .pt file"),
        option("--out", required=True, help="run folder"),
        option("--checkpoint", help="which one of a folder (default: latest, or model_best)"),
        option("--options", help="YAML of an Occupancy Network (default: the one beside it)"),
    )


def import_(options) -> None:
    """OUT/model, and its codes; they replace what an import made there before, and no trained run."""
    out = Path(options.out)
    if (out / "config.json").exists():
        raise ConfigError(f"{out} holds a run (config.json), whose model is not replaced; choose another --out")
    check_replaceable(out / "model")
    written.check(out, ["model/model.json"])
    found = published.read(options.source, options.checkpoint, options.options)
    codes, prior = None, None
    if found.codes is not None:
        codes = Codes(found.codes, found.names, found.similarities)
        prior = Prior.of(found.codes) if found.codes.shape[1] else None
    parts = {name: getattr(found, name) for name in ("kind", "network", "shared", "statistics", "frame", "history")}
    inputs = None if found.takes is None else Inputs(*found.takes)
    if inputs is not None and inputs.kind == "samples":  # a generative network
        prior = Prior.plain(found.network.specs.z_dim, 1.0)
    fitting = FitConfig(starts=4)  # a space of few shapes has several valleys
    model = Model(**parts, codes=codes, prior=prior, fitting=fitting, inputs=inputs)
    files = {"model/model.json": lambda path: model.save(path.parent)}
    if codes is not None:
        codes = dataclasses.replace(codes, network=model.digest)
        files["codes.npz"] = codes.save
    if found.fitted:
        fitted = Codes(np.stack(list(found.fitted.values())), tuple(found.fitted), network=model.digest)
        files["fitted.npz"] = fitted.save
    written.keep(out, "import", files, alone=True)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"model: {out / 'model'}")
    if codes is not None:
        print(f"{len(codes)} codes of training shapes: {out / 'codes.npz'}")
    if found.fitted:
        print(f"{len(found.fitted)} codes that were fitted to other shapes: {out / 'fitted.npz'}")
