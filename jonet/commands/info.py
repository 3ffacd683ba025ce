"""`info`: devices, precision and versions, and the contents of a model or a field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jonet import config as configs
from jonet import model, parallel
from jonet.fields import SUFFIX, Fields, Spline
from jonet.storage import atomic
from jonet.wording import counted


def info(options, given: set[str]) -> None:
    """The verb: prints a description of the devices, and of a model its kind, frame, precision, history and config.

    Of a field, its name, cells a side, count of coefficients, error, closed holes, unit, and box in input units.
    """
    print(parallel.describe())
    if options.model is None:
        return
    if options.model.lower().endswith(SUFFIX) and Path(options.model).is_file():
        print(atomic.json_text(_field(Spline.load(options.model)), indent=2))
        return
    trained = model.load(options.model)
    about = {"kind": trained.kind, "frame": trained.frame, "precision": trained.precision}
    print(atomic.json_text({**about, **trained.history}, indent=2))
    print(atomic.json_text(configs.to_dict(trained.config), indent=2))
    print(counted(len(trained.codes or ()), "training code"))


def _field(field: Spline) -> dict[str, Any]:
    about = {"kind": "field", "name": field.name, "resolution": field.resolution}
    about |= {"coefficients": field.num_parameters, "error": field.error, "closed": field.closed}
    about |= {} if field.unit is None else {"unit": field.unit}
    return about | {"box": Fields([field])[0].box.tolist()}
