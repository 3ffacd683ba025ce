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
    """The default `lookup`: a step uses rows [S, …] of `per_shape` unchanged."""
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSetup:
    """All that the training loop needs of a task; the signatures of the functions are in `training.loop`.

    shared, per_shape, batch_stats: initial values; per_shape has one row per training shape.  lookup: applied to the
    rows of per_shape of a step.  ema_decay: of the moving averages that are validated and saved; 0 without.
    steps: length of training; minutes: if above 0, as many steps as fit into this time on this machine instead.
    validate: called every `validate_every` steps (`loop.train`).  patience: validations without improvement after which
    training stops, 0 for never.  autotuned: settings measured on this machine; a run stores them and continues with
    them.
    """

    loss: Callable
    optimizer: Optimizer
    batches: Batches
    shared: Any
    per_shape: Any
    steps: int
    minutes: float = 0.0
    batch_stats: Any = None
    lookup: Callable = identity
    ema_decay: float = 0.0
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
