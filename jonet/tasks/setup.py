"""What a task gives to the training loop, and the checks of options that tasks share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jonet import config as configs
from jonet import parallel
from jonet.codes import Codes
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.training.loop import Batches
from jonet.training.optimizers import Optimizer


def identity(rows):
    """The default `lookup`: a step uses rows of `per_shape` unchanged."""
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSetup:
    """All that the training loop needs of a task; the signatures of the functions are in `training.loop`.

    shared, per_shape, batch_stats: initial values; per_shape has one row per training shape.  lookup: applied to the
    rows of per_shape of a step.  steps: length of training if no time is given.  validate: called every
    `validate_every` steps.  patience: validations without improvement after which training stops, 0 for never.
    autotuned: settings measured on this machine; a run stores them and continues with them.
    """

    loss: Callable
    optimizer: Optimizer
    batches: Batches
    shared: Any
    per_shape: Any
    steps: int
    batch_stats: Any = None
    lookup: Callable = identity
    validate: Callable | None = None
    validate_every: int = 0
    patience: int = 0
    autotuned: dict[str, Any] = dataclasses.field(default_factory=dict)


def autotune(autotuned: dict[str, Any], name: str, measure: Callable[[], Any]) -> Any:
    """The stored setting of this name; if there is none, the main process measures it now, for all processes."""
    if name not in autotuned:
        autotuned[name] = parallel.from_main(measure() if parallel.is_main() else None)
    return autotuned[name]


def check_counts(config, least: dict[str, int]) -> None:
    """ConfigError if the seed or a named option is below its least value, or 2³¹ or more."""
    for name, low in {"seed": 0, **least}.items():
        if not low <= (value := getattr(config, name)) < 2**31 or math.isnan(value):
            raise ConfigError(f"{name} is {value}, but must be {low} or more, and below 2³¹")


def check_later(config, *samples: str) -> None:
    """ConfigError if stages after training could not work with a config's options.

    samples: names of sample counts, of which at least one must be above 0.
    """
    if not any(getattr(config.samples, name) for name in samples):
        raise ConfigError(
            f"of {' and '.join(f'samples.{name}' for name in samples)} at least one must be above 0; with 0 there is "
            "nothing to learn from"
        )
    if config.samples.surface < 1:
        raise ConfigError("samples.surface is 0, but metrics and nearest shapes need points on each shape's surface")
    if not config.rebuilt_train and config.shapes.untested(config.data):
        raise ConfigError(
            f"rebuilt_train is 0 and {config.data} leaves no shape to test with, so nothing would be rebuilt; set "
            "rebuilt_train to 1 or more, or shapes.test"
        )


def resolved(config, given: set[str]):
    """A config after checking the options that the user gave; the others are a preset's.

    given: full names of these options.  Steps given without minutes replace the preset's minutes.  Raises ConfigError
    if both are given, and for a given option that has no effect with the others.
    """
    unread = config.unread()
    for option in sorted(given):
        for name, reason in unread.items():
            if f"{option}.".startswith(f"{name}."):
                raise ConfigError(f"{option} is given, but not read: {reason}")
    if "steps" in given and getattr(config, "minutes", 0):
        if "minutes" in given:
            raise ConfigError(
                f"steps is {config.steps} and minutes {config.minutes:g}, but only one of them says how long training "
                "lasts; leave the other out"
            )
        config = dataclasses.replace(config, minutes=0.0)
    return config


def check_frame(store: Store, frame: str) -> None:
    """ConfigError if a store is not in the task's normalized frame."""
    if store.frame != frame:
        raise ConfigError(
            f"the store {store.folder} is of the frame {store.frame!r}, but this task works in {frame!r}; "
            f"build one with frame={frame!r}, or choose another task"
        )


def training_codes(store: Store, shapes, per_shape) -> Codes:
    """The trained codes: row i of `per_shape` belongs to the shape with index shapes[i] in the store."""
    return Codes(
        per_shape,
        names=tuple(store.names[i] for i in shapes),
        similarities=tuple(store.similarities[i] for i in shapes),
        sources=tuple(store.contents[i] for i in shapes),
    )


def history(task: str, data: str, store: Store, shapes) -> dict[str, Any]:
    """The origin of a model, as `python -m jonet info` shows it."""
    return {"task": task, "data": data, "shapes": len(shapes), "recipe": configs.to_dict(store.recipe)}
