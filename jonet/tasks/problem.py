"""What a task hands to the one loop."""

from __future__ import annotations

import dataclasses
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
