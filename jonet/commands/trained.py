"""The model of a verb, with the settings that were given on the command line."""

from __future__ import annotations

import dataclasses

from jonet import config as configs
from jonet import model as models
from jonet import parser
from jonet.model import Model


def load(options, given: set[str]) -> Model:
    """Loads `options.model`; given settings of fitting, surfaces and precision replace the model's, others are kept."""
    trained = models.load(options.model).with_precision(options.precision)
    changes = {}
    for group in ("fitting", "surfaces"):
        if hasattr(options, group) and (values := parser.changes(options, given, group)):
            changes[group] = configs.changed(getattr(trained, group), values, f"{group}.")
    return dataclasses.replace(trained, **changes) if changes else trained
