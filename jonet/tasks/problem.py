"""What a task hands to the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
