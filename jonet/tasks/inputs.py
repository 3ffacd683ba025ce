"""What conditional networks see of a shape: a cloud, voxels or an image; in training, in evaluation, in the report."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Literal

import numpy as np

from jonet.data.batches import Draw
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.inference.encode import Inputs
from jonet.storage.names import encoded


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Noisy points of the surface."""

    points: int = 300  # of each shape
    noise: float = 0.005  # standard deviation; 1 is the longest side (published: 0.05, tenths of it)
    stretch: float = 0.0  # in training shapes are drawn out anew each epoch, each axis by up to exp(±stretch)

    def __post_init__(self):
        if self.points < 1 or min(self.noise, self.stretch) < 0:
            raise ConfigError(
                f"inputs.points is {self.points}, noise {self.noise} and stretch {self.stretch}: at least 1, 0 and 0"
            )

    @property
    def form(self) -> Inputs:
        """What the network takes."""
        return Inputs("points", self.points)

    def draw(self, how: str) -> Draw:
        """The rows of a step."""
        return Draw("surface_points", self.points, how)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [points, 3]: the same whenever it is asked for."""
        rng = np.random.default_rng([seed, zlib.crc32(b"inputs"), zlib.crc32(encoded(store.names[shape]))])
        points = store.surface(shape)[0]
        points = points[rng.integers(len(points), size=self.points)]
        return (points + self.noise * rng.standard_normal(points.shape)).astype(np.float32)

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input for the report."""
        return Part("input", f"{self.points} points", self.of(store, shape, seed))


@dataclasses.dataclass(frozen=True)
class Voxels:
    """A coarse voxel grid, as `samples.voxels` makes it."""

    cells: Literal[32] = 32  # a side; the published encoder takes no other

    @property
    def form(self) -> Inputs:
        """What the network takes."""
        return Inputs("voxels", self.cells)

    def draw(self, how: str) -> Draw:
        """The rows of a step."""
        return Draw("voxels", 1)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [R, R, R] bool."""
        return store.voxels(shape)

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input for the report."""
        return Part("input", f"{self.cells}³ voxels", store.voxels(shape))


@dataclasses.dataclass(frozen=True)
class View:
    """One of a shape's views; in evaluation the first."""

    size: int = 224  # pixels a side, those of `samples.image_size`

    @property
    def form(self) -> Inputs:
        """What the network takes."""
        return Inputs("images", self.size)

    def draw(self, how: str) -> Draw:
        """The rows of a step."""
        return Draw("images", 1)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [H, W, 3] float32 in [0, 1]."""
        return store.image(shape).astype(np.float32) / 255

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input for the report."""
        return Part("input", "the view", store.image(shape))


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Points all through the box with their occupancies: what the latent encoder infers a shape from."""

    points: int = 2048  # of each shape; in training those of the step

    @property
    def form(self) -> Inputs:
        """What the network takes."""
        return Inputs("samples", self.points)

    def draw(self, how: str) -> None:
        """Nothing beside the points of the step."""
        return None

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [points, 4]: the same whenever it is asked for."""
        points, inside = store.occupancy(shape)
        rng = np.random.default_rng([seed, zlib.crc32(b"inputs"), zlib.crc32(encoded(store.names[shape]))])
        chosen = rng.permutation(len(points))[: self.points]
        return np.column_stack([points[chosen].astype(np.float32), inside[chosen]])

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input for the report: the points inside."""
        samples = self.of(store, shape, seed)
        return Part("input", "points inside", samples[samples[:, 3] > 0, :3])
