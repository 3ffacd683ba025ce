"""`export`: a model as one file that runs without jonet, or a store in the layouts of the authors' programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jonet import model
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.errors import ConfigError
from jonet.formats import detect
from jonet.inference import export as exports
from jonet.storage import atomic
from jonet.wording import counted


def export(options, given: set[str]) -> None:
    """The verb: writes a model as a serialized function, or with `--layout` a store as a folder of samples.

    With one code it is a function of points, else of codes and points (`inference.export`).
    """
    if options.layout:
        if options.codes or options.shape or options.gradients:
            raise ConfigError("CODES, --shape and --gradients are for models, but --layout exports a store")
        folder = Path(options.source)
        store = stores.open(folder / "store" if (folder / "store").is_dir() else folder)
        detect.export(store, options.out, options.layout)
        print(f"{counted(len(store.names), 'shape')} in the layout of {options.layout}: {options.out}")
        return
    if options.codes is not None:
        atomic.check_outputs([options.out], [options.codes])
    exports.check_replaceable(options.out)
    trained = model.load(options.source)
    codes = trained.codes if options.codes is None else Codes.load(options.codes)
    if codes is not None:
        codes.check_network(trained.digest)
    if options.shape is not None:
        if codes is None or options.shape not in codes.names:
            raise ConfigError(f"no code is named {options.shape!r}; there are {_some(codes)}")
        codes = codes[options.shape]
    settings = {"gradients": options.gradients}
    if codes is not None and len(codes) == 1:
        transform = None if codes.similarities is None else codes.similarities[0]
        exports.write_field(options.out, trained.field(codes)[0], similarity=transform, **settings)
        print(f"{codes.names[0]}, points [N, 3] → [N]: {options.out}")
        return
    arrays = {} if codes is None else {"codes": codes.values, "names": np.array(codes.names)}
    exports.write_network(options.out, trained.network, arrays=arrays, **settings)
    print(f"codes [B, {trained.network.latent_size}] and points [B, N, 3] → [B, N]: {options.out}")


def _some(codes: Codes | None) -> str:
    """The first names of codes, for messages."""
    names = () if codes is None else codes.names
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
