"""`info`: devices, precision and versions, and the contents of a model."""

from __future__ import annotations

from jonet import config as configs
from jonet import model, parallel
from jonet.storage import atomic
from jonet.wording import counted


def info(options, given: set[str]) -> None:
    """The verb: prints a description of the devices, and of a model its kind, frame, precision, history and config."""
    print(parallel.describe())
    if options.model is None:
        return
    trained = model.load(options.model)
    about = {"kind": trained.kind, "frame": trained.frame, "precision": trained.precision}
    print(atomic.json_text({**about, **trained.history}, indent=2))
    print(atomic.json_text(configs.to_dict(trained.config), indent=2))
    print(counted(len(trained.codes or ()), "training code"))
