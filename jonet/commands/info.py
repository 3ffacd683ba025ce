"""`info`: what this machine is, and what a model is."""

from __future__ import annotations

import json

from jonet import config as configs
from jonet import model, parallel
from jonet.commands.options import option


def declare(verb) -> None:
    verb("info", info, "devices, precision and versions; what a model is", option("model", nargs="?"))


def info(options) -> None:
    print(parallel.describe())
    if options.model:
        trained = model.load(options.model)
        print(json.dumps({"kind": trained.kind, "frame": trained.frame, **trained.history}, indent=2))
        print(json.dumps(configs.to_dict(trained.config), indent=2))
        print(f"{len(trained.codes or ())} training codes")
