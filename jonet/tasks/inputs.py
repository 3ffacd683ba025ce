"""Inputs of conditional networks (point cloud, voxels, image, labeled points): in training, evaluation and report."""

from __future__ import annotations

import abc
import dataclasses
import zlib
from typing import Literal, NamedTuple

import numpy as np

from jonet import parallel
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.inference import encode
from jonet.inference.encode import Inputs
from jonet.networks.bound import BoundNetwork
from jonet.storage import names
from jonet.training.batches import RowSampling
from jonet.wording import counted


class Augmentation(NamedTuple):
    """Random changes of a training step's inputs; the fields are those of `batches.BatchSpec`."""

    noise: float = 0.0
    scale_augmentation: float = 0.0


@dataclasses.dataclass(frozen=True)
class EncoderInput(abc.ABC):
    """What the encoder of a conditional network takes of each shape; its fields are options of the task."""

    @property
    @abc.abstractmethod
    def form(self) -> Inputs:
        """Kind and shape of the encoder's input."""

    @property
    def augmentation(self) -> Augmentation:
        """Random changes in training; by default none."""
        return Augmentation()

    @abc.abstractmethod
    def draw(self, how: Literal["rows", "windows"]) -> RowSampling | None:
        """How a training step samples the input from the store; None if the encoder sees the points of the step.

        how: for inputs that are some of many rows, how these are drawn.
        """

    @abc.abstractmethod
    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation, an array as in `form`, e.g. points [N, 3], the same in every call.

        shape: its index in the store.  seed: of what is drawn.
        """

    @abc.abstractmethod
    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input as shown in the report; arguments as for `of`."""


@dataclasses.dataclass(frozen=True)
class Points(EncoderInput):
    """Noisy points on the surface."""

    points: int = 300  # number of points per shape, 1 or more
    noise: float = 0.008  # standard deviation of the points' noise in the normalized frame (of radius 1), 0 or more

    def __post_init__(self):
        if self.points < 1 or self.noise < 0:
            raise ConfigError(f"inputs.points is {self.points} and noise {self.noise}, but must be at least 1 and 0")

    @property
    def form(self) -> Inputs:
        """Kind and shape of the encoder's input."""
        return Inputs("points", self.points)

    @property
    def augmentation(self) -> Augmentation:
        """Noise on the points."""
        return Augmentation(self.noise)

    def draw(self, how: Literal["rows", "windows"]) -> RowSampling:
        """Points of the surface."""
        return RowSampling("surface_points", self.points, how)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [points, 3] float32, the same in every call."""
        rng = np.random.default_rng([seed, zlib.crc32(b"inputs"), zlib.crc32(names.encoded(store.names[shape]))])
        points = store.surface(shape)[0]
        points = points[rng.integers(len(points), size=self.points)]
        return (points + self.noise * rng.standard_normal(points.shape)).astype(np.float32)

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input as shown in the report."""
        return Part("input", counted(self.points, "point"), self.of(store, shape, seed))


@dataclasses.dataclass(frozen=True)
class Cloud(Points):
    """Noisy points on the surface of a shape whose longest side is 1, and which may be scaled."""

    # standard deviation of the noise on the points, in longest sides of the shape; 0 or more (the published 0.05 is in
    # tenths of the longest side)
    noise: float = 0.005
    # in training, each axis of a shape is scaled by a factor of up to exp(±scale_augmentation), a new one each epoch;
    # 0 or more
    scale_augmentation: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.scale_augmentation < 0:
            raise ConfigError(f"inputs.scale_augmentation is {self.scale_augmentation}, but must be at least 0")

    @property
    def augmentation(self) -> Augmentation:
        """Noise on the points, and scaled axes."""
        return Augmentation(self.noise, self.scale_augmentation)


@dataclasses.dataclass(frozen=True)
class Voxels(EncoderInput):
    """A coarse voxel grid, by the method `samples.voxels`."""

    cells: Literal[32] = 32  # cells per side of the grid; the published encoder takes only 32

    @property
    def form(self) -> Inputs:
        """Kind and shape of the encoder's input."""
        return Inputs("voxels", self.cells)

    def draw(self, how: Literal["rows", "windows"]) -> RowSampling:
        """The grid of the shape."""
        return RowSampling("voxels", 1)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [R, R, R] bool."""
        return store.voxels(shape)

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input as shown in the report."""
        return Part("input", f"{self.cells}³ voxels", store.voxels(shape))


@dataclasses.dataclass(frozen=True)
class View(EncoderInput):
    """One of a shape's rendered views; in evaluation the first."""

    size: int = 224  # pixels per side of the image, equal to samples.image_size

    @property
    def form(self) -> Inputs:
        """Kind and shape of the encoder's input."""
        return Inputs("images", self.size)

    def draw(self, how: Literal["rows", "windows"]) -> RowSampling:
        """One of the shape's views."""
        return RowSampling("images", 1)

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [H, W, 3] float32 in [0, 1]."""
        return store.image(shape).astype(np.float32) / 255

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input as shown in the report."""
        return Part("input", "the view", store.image(shape))


@dataclasses.dataclass(frozen=True)
class Labeled(EncoderInput):
    """Points in the whole box with their occupancies, the input of the latent encoder."""

    points: int = 2048  # labeled points per shape in evaluation, 1 or more; in training the encoder sees the batch's

    @property
    def form(self) -> Inputs:
        """Kind and shape of the encoder's input."""
        return Inputs("samples", self.points)

    def draw(self, how: Literal["rows", "windows"]) -> None:
        """None: the encoder sees the points of the step."""
        return None

    def of(self, store: Store, shape: int, seed: int) -> np.ndarray:
        """The input of a shape in evaluation [points, 4] (x, y, z, occupancy), the same in every call."""
        points, inside = store.occupancy(shape)
        rng = np.random.default_rng([seed, zlib.crc32(b"inputs"), zlib.crc32(names.encoded(store.names[shape]))])
        chosen = rng.permutation(len(points))[: self.points]
        return np.column_stack([points[chosen].astype(np.float32), inside[chosen]])

    def picture(self, store: Store, shape: int, seed: int) -> Part:
        """The input as shown in the report: the points inside."""
        samples = self.of(store, shape, seed)
        return Part("input", "points inside", samples[samples[:, 3] > 0, :3])


def encoded(inputs: EncoderInput, seed: int, network: BoundNetwork, store: Store, shapes) -> np.ndarray:
    """Codes [B, L] of shapes of the store; the inputs of one batch are in memory at a time."""
    form, size = inputs.form, encode.TOGETHER.most * parallel.count()
    batched = [shapes[first : first + size] for first in range(0, len(shapes), size)]
    arrays = (form.check([inputs.of(store, i, seed) for i in some]) for some in batched)
    return np.concatenate([encode.encode(network, some, form.kind) for some in arrays])
