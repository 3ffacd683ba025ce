"""`import`: a network trained by the authors' programs, converted to a model folder."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from jonet.codes import Codes
from jonet.commands import written
from jonet.errors import ConfigError
from jonet.inference.encode import Inputs
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.model_folder import check_replaceable
from jonet.networks.published import folders
from jonet.settings.fitting import FitConfig
from jonet.wording import counted


def import_(options, given: set[str]) -> None:
    """The verb: writes OUT/model, codes.npz of the training shapes, and fitted.npz, codes that were fitted there.

    They replace the files of an earlier import.  Raises ConfigError if OUT is a run folder.
    """
    out = Path(options.out)
    if (out / "config.json").exists():
        raise ConfigError(f"{out} is a run folder (config.json), whose model is not replaced; choose another --out")
    check_replaceable(out / "model")
    written.check(out, ["model/model.json"])
    found = folders.read(options.source, options.checkpoint, options.options)
    codes, prior = None, None
    if found.codes is not None:
        codes = Codes(found.codes, found.names, found.similarities)
        prior = Prior.of(found.codes) if found.codes.shape[1] else None
    parts = {name: getattr(found, name) for name in ("kind", "network", "frame", "history")}
    inputs = None if found.takes is None else Inputs(*found.takes)
    if inputs is not None and inputs.kind == "samples":  # the VAE, whose prior is N(0, 1)
        prior = Prior.plain(found.network.specs.z_dim, 1.0)
    fitting = FitConfig(starts=4)  # with few training shapes the objective has several local minima
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
        print(f"{counted(len(codes), 'code')} of training shapes: {out / 'codes.npz'}")
    if found.fitted:
        print(f"{counted(len(found.fitted), 'code')} fitted to other shapes: {out / 'fitted.npz'}")
