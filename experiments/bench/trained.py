"""The trained network of several rows: from a run folder, or trained for a given time."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

import jonet
from jonet import model
from jonet.data import store as stores
from jonet.run import state, train
from jonet.storage import atomic
from jonet.tasks import deepsdf
from jonet.tasks.shapes import Shapes


@dataclasses.dataclass(eq=False)
class Trained:
    """Network and shapes of the preset quick of deepsdf.

    run: a finished run folder, or None to train a network in `folder` for the given minutes.  quick: few shapes.
    """

    folder: Path
    run: Path | None = None
    minutes: float = 2.5
    quick: bool = False

    @functools.cached_property
    def config(self) -> deepsdf.Config:
        config = dataclasses.replace(deepsdf.TASK.presets["quick"], minutes=self.minutes)
        if not self.quick:
            return config
        samples = dataclasses.replace(config.samples, near=2000, uniform=500, surface=256)
        return dataclasses.replace(config, shapes=Shapes(train=16, test=4), samples=samples)

    @functools.cached_property
    def store(self) -> stores.Store:
        if self.run:
            return stores.open(self.run / "store")
        with state.opened(self.folder, deepsdf.TASK, self.config) as run:
            return train.prepare(run)

    @functools.cached_property
    def model(self) -> model.Model:
        if self.run:
            return jonet.load(self.run)
        store = self.store  # before the folder is locked again
        with state.opened(self.folder, deepsdf.TASK, self.config) as run:
            return train.train_network(run, store)

    @property
    def description(self) -> str:
        """The description of the network in a row's workload."""
        specs = self.model.config
        where = "of a run folder" if self.run else f"trained for {self.minutes:g} minutes"
        return f"{len(specs.dims)}×{specs.dims[0]}, code {specs.latent_size}, {where}"


def save_weights(path: Path, tree, **more: np.ndarray) -> str:
    """Writes parameters by their path, and more arrays, into an .npz for a peer; returns its path."""
    arrays = {"/".join(names): np.asarray(leaf) for names, leaf in flatten_dict(tree).items()}
    with atomic.open_file(path, sync=False) as file:
        np.savez(file, **arrays, **more)
    return str(path)
