"""The trained network that rows ask, fit and mesh: of a run folder, or trained here for a stated time."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

import jonet
from jonet import learn, model
from jonet.data import store as stores
from jonet.run import state
from jonet.storage import atomic
from jonet.tasks import deepsdf
from jonet.tasks.shapes import Shapes


@dataclasses.dataclass(eq=False)
class Trained:
    """The default job's network and shapes.

    run: a finished run folder, or None to train one of one's own in `folder`, for so many minutes.  quick: few shapes.
    """

    folder: Path
    run: Path | None = None
    minutes: float = 2.5
    quick: bool = False

    @functools.cached_property
    def config(self) -> deepsdf.Config:
        config = dataclasses.replace(deepsdf.PRESETS["quick"], minutes=self.minutes)
        if not self.quick:
            return config
        samples = dataclasses.replace(config.samples, near=2000, uniform=500, surface=256)
        return dataclasses.replace(config, shapes=Shapes(train=16, test=4), samples=samples)

    @functools.cached_property
    def store(self) -> stores.Store:
        if self.run:
            return stores.open(self.run / "store")
        with state.opened(self.folder, deepsdf, self.config) as run:
            return learn.prepare(run)

    @functools.cached_property
    def model(self) -> model.Model:
        if self.run:
            return jonet.load(self.run)
        with state.opened(self.folder, deepsdf, self.config) as run:
            return learn.train_network(run, self.store)

    @property
    def said(self) -> str:
        """What the workload says of the network."""
        specs = self.model.config
        where = "of a run folder" if self.run else f"trained for {self.minutes:g} minutes"
        return f"{len(specs.dims)}×{specs.dims[0]}, code {specs.latent_size}, {where}"


def save_weights(path: Path, tree, **more: np.ndarray) -> str:
    """Parameters as an .npz under their names, for a peer; more: arrays beside them."""
    arrays = {"/".join(names): np.asarray(leaf) for names, leaf in flatten_dict(tree).items()}
    with atomic.open_file(path, sync=False) as file:
        np.savez(file, **arrays, **more)
    return str(path)
