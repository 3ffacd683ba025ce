"""What a task hands to the one loop."""

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


def as_it_is(rows):
    """What a step sees of rows of `own` where nothing is done to them."""
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """All that training needs to know of a task; see `training.loop` for the functions' forms.

    shared, own, statistics: where training starts; own has one row a training shape.
    steps: of training, where no time is given.  validate: called every `validate_every` steps, see `training.loop`.
    chosen: what the program measured and settled for here; a run keeps it and goes on with it.
    """

    loss: Callable
    optimizer: Optimizer
    batches: Batches
    shared: Any
    own: Any
    steps: int
    statistics: Any = None
    lookup: Callable = as_it_is
    validate: Callable | None = None
    validate_every: int = 0
    patience: int = 0
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)


def settled(chosen: dict[str, Any], name: str, measure: Callable[[], Any]) -> Any:
    """What an earlier start settled for under this name; or else what the first process measures now, for all."""
    if name not in chosen:
        chosen[name] = parallel.from_main(measure() if parallel.is_main() else None)
    return chosen[name]


def check_counts(config, least: dict[str, int]) -> None:
    """ConfigError where numbers among a config's options are below these, or too large to count with."""
    for name, low in {"seed": 0, **least}.items():
        if not low <= (value := getattr(config, name)) < 2**31 or math.isnan(value):
            raise ConfigError(f"{name} is {value}, but must be {low} or more, and below 2³¹")


def check_later(config, *samples: str) -> None:
    """ConfigError where a run's later stages could not work with a config's options.

    samples: numbers of samples of which one at least must be above 0.
    """
    if not any(getattr(config.samples, name) for name in samples):
        raise ConfigError(
            f"{' and '.join(f'samples.{name}' for name in samples)} 0: there would be nothing to learn from"
        )
    if config.samples.surface < 1:
        raise ConfigError("samples.surface is 0, but scores and nearest shapes need points of each shape's surface")
    if not config.known and config.shapes.untested(config.data):
        raise ConfigError(
            f"known is 0 and {config.data} leaves no shape to test with, so nothing would be rebuilt; set known to 1 "
            "or more, or shapes.test"
        )


def resolved(config, given: set[str]):
    """The config of which these options were given (full names), the others being a preset's.

    Steps alone take the place of the preset's minutes.  Raises ConfigError for steps beside minutes, and for options
    that nothing reads beside the others.
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
    """ConfigError where a store is not in the frame that a task works in."""
    if store.frame != frame:
        raise ConfigError(
            f"the store {store.folder} is of the frame {store.frame!r}, but this task works in {frame!r}; "
            f"build one with frame={frame!r}, or choose another task"
        )


def training_codes(store: Store, shapes, own) -> Codes:
    """The codes that training leaves: rows `own` of the shapes with these numbers in the store, in their order."""
    return Codes(
        own,
        names=tuple(store.names[i] for i in shapes),
        similarities=tuple(store.similarities[i] for i in shapes),
        sources=tuple(store.contents[i] for i in shapes),
    )


def history(task: str, data: str, store: Store, shapes) -> dict[str, Any]:
    """Where a model came from, for `info`."""
    return {"task": task, "data": data, "shapes": len(shapes), "recipe": configs.to_dict(store.recipe)}
