"""The batch of a training step: its size and precision by platform, and where its samples are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from jonet import parallel
from jonet.data.store import RaggedArray, Store
from jonet.errors import ConfigError
from jonet.tasks.setup import autotune
from jonet.training import batches
from jonet.training.batches import BatchSpec, How, Place
from jonet.training.lanes import Lanes

ON_HOST = 0.5  # fraction of the memory for samples on a CPU, which has other uses for it
ON_DEVICE = 0.9  # fraction of an accelerator's memory for all of training


@dataclasses.dataclass(frozen=True)
class Batch:
    """A training step on one kind of device."""

    shapes: int = 16  # shapes per step, 1 or more
    points: int = 256  # points of each shape per step, even
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # dtype of the matrix products of hidden layers

    def __post_init__(self):
        check(self.shapes, self.points, least=1)


class Config(Protocol):
    """The options of a task that say what a batch is; 0 and "auto" are decided when training starts."""

    @property
    def batch_shapes(self) -> int: ...
    @property
    def batch_points(self) -> int: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def cpu(self) -> Batch: ...
    @property
    def gpu(self) -> Batch: ...
    @property
    def tpu(self) -> Batch: ...
    @property
    def seed(self) -> int: ...
    @property
    def draw(self) -> Literal["auto", "rows", "windows"]: ...
    @property
    def place(self) -> Literal["auto", "resident", "half", "streamed"]: ...


def check(shapes: int, points: int, least: int = 0) -> None:
    """ConfigError for an impossible number of shapes or points; least: 0 if that stands for a choice by platform."""
    if shapes < least or points < 2 * least or points % 2:
        zero = "" if least else ", or 0 for a choice by platform"
        raise ConfigError(
            f"a batch of {shapes} shapes × {points} points: there must be at least 1 shape and an even number of "
            f"points, as half of them are outside and half inside{zero}"
        )


def check_options(config: Config) -> None:
    """ConfigError for options of a batch that are impossible, or contradict each other."""
    check(config.batch_shapes, config.batch_points)
    if config.place == "streamed" and config.draw == "rows":
        raise ConfigError(
            "place is streamed and draw rows, but single rows are not read from the disk; set draw=windows, or auto"
        )


def unread(config: Config) -> dict[str, str]:
    """The groups of options by platform, where nothing is left to them."""
    if config.batch_shapes and config.batch_points and config.compute_dtype != "auto":
        reason = "batch_shapes, batch_points and compute_dtype are all given"
        return dict.fromkeys(("cpu", "gpu", "tpu"), reason)
    return {}


def of(config: Config, autotuned: dict[str, Any]) -> Batch:
    """The batch of this run: what the options say, else what suits the platform; kept in `autotuned`."""
    usual: Batch = getattr(config, parallel.platform().kind)
    shapes = autotune(autotuned, "batch_shapes", lambda: config.batch_shapes or usual.shapes)
    points = autotune(autotuned, "batch_points", lambda: config.batch_points or usual.points)
    given = None if config.compute_dtype == "auto" else config.compute_dtype
    return Batch(shapes, points, autotune(autotuned, "compute_dtype", lambda: given or usual.compute_dtype))


def check_place(config: Config, outline: Store, spec: Callable[[int, How], BatchSpec]) -> None:
    """ConfigError if the options put more samples on a device than it has memory; before they are sampled.

    spec: what a batch holds, by the points of a shape and how rows are drawn.
    """
    if config.place == "streamed" or (config.place == "auto" and config.draw != "rows"):
        return  # windows are streamed
    each, platform = of(config, {}), parallel.platform()
    lanes = Lanes.deal(outline.select("train"), each.shapes, config.seed, parallel.count())
    half = config.place == "half" or (config.place == "auto" and not platform.is_cpu)
    size = batches.resident_bytes(outline.arrays, lanes, spec(each.points, "rows"), half)
    fraction = 1.0 if config.place != "auto" else ON_HOST if platform.is_cpu else ON_DEVICE
    if size > fraction * platform.memory:
        kind = " as float16" if half else ""
        raise ConfigError(
            f"with place={config.place} and draw={config.draw}, the samples of {len(lanes.indices)} shapes take "
            f"{size / 1e9:.3g} GB{kind} of a device's {platform.memory / 1e9:.3g} GB; set both to auto, so that "
            "windows are streamed, use more devices, or train on fewer shapes or samples"
        )


def place(
    config: Config,
    arrays: Mapping[str, RaggedArray],
    lanes: Lanes,
    spec: Callable[[How], BatchSpec],
    memory: Callable[[], int],
    autotuned: dict[str, Any],
) -> Place:
    """Where the samples of this run are: what the option says, else the first place with enough memory; kept.

    spec: what a batch holds, by how rows are drawn.  memory: the bytes that a step takes on a device besides samples.
    On a CPU samples are resident or streamed; the devices' memory is that of the host, and only samples are counted.
    """

    def fitting() -> Place:
        platform, plan = parallel.platform(), spec("rows")
        room = ON_HOST * platform.memory if platform.is_cpu else ON_DEVICE * platform.memory - memory()
        if batches.resident_bytes(arrays, lanes, plan) <= room:
            return "resident"
        rounded = not platform.is_cpu and batches.resident_bytes(arrays, lanes, plan, half=True) <= room
        return "half" if rounded else "streamed"

    return autotune(autotuned, "place", lambda: fitting() if config.place == "auto" else config.place)


def how(config: Config, place: Place) -> How:
    """How rows are drawn from samples in this place."""
    if config.draw == "auto":
        return "windows" if place == "streamed" else "rows"
    return config.draw
