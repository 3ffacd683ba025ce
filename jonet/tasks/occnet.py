"""The single-shape classifier: a shape as the decision boundary of a small network, nothing shared between shapes.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, section 3.1 in its plainest form: 3 → 64,
four hidden layers of 64, → 1; 16,961 parameters.  Many shapes are trained side by side, each by itself.

    python experiments/run.py --task=occnet                       five embedded shapes, 2 minutes on 2 cores
    python experiments/run.py --task=occnet --data=mesh.obj       a shape of your own
    python experiments/run.py --task=occnet --data=FOLDER         all shapes of a folder, side by side

Median IoU of the five 0.93, of a closed bunny 0.96.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from jonet import parallel
from jonet.codes import Codes
from jonet.data import batches
from jonet.data.lanes import Lanes
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Packed, Store
from jonet.errors import ConfigError
from jonet.evaluation.metrics import Scoring
from jonet.model import Model, Surfaces
from jonet.networks.field import fold
from jonet.networks.occupancy import Classifier, ClassifierSpecs
from jonet.tasks.problem import Problem, check_counts, check_frame, check_later, history, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import conditional
from jonet.training.optimizers import Optimizer, Schedule

NAME = "occnet"
TITLE = "Occupancy classifier"
FRAME = "cube"
VALIDATED = "minus the cross-entropy of held-out points"


@dataclasses.dataclass(frozen=True)
class Together(Shapes):
    """Shapes that are all trained on: what a classifier was not trained on it does not know."""

    train: int = 1  # shapes of each procedural family

    def sources(self, data: str, seed: int) -> list:
        """As of `Shapes`, all to train on."""
        return [source.into("train") for source in super().sources(data, seed)]

    def untested(self, data: str) -> bool:
        """All of them are trained on."""
        return True

    def unread(self, data: str) -> dict[str, str]:
        """As of `Shapes`, and what sets shapes aside."""
        reason = "all shapes are trained on"
        return super().unread(data) | {"shapes.test_share": reason, "shapes.val_share": reason}


@dataclasses.dataclass(frozen=True)
class Adam:
    """PyTorch's Adam, which moves each network by itself."""

    FORMER: ClassVar = ("name", "shared", "clip", "weight_decay")
    own: Schedule = Schedule("constant", initial=1e-3)  # learning rate


@dataclasses.dataclass(frozen=True)
class Config:
    """The classifier's options; the comment beside each is its help."""

    data: str = "chair,table,lamp,mug,aeroplane"  # families joined by commas, folder of meshes, or one mesh
    seed: int = 0  # every draw follows from it
    shapes: Together = Together(test=0)
    samples: Recipe = dataclasses.replace(RECIPES["onet"], surface=4_096)  # 100,000 points with occupancies
    network: ClassifierSpecs = ClassifierSpecs()
    optimizer: Adam = Adam()
    held_out: float = 0.2  # share of the points that validates
    batch_points: int = 512  # points of each shape a step
    epochs: int = 200  # passes over the training points; the best validation loss's parameters are kept
    validate_every: int = 1  # epochs between validations
    patience: int = 0  # validations without a better one after which training stops; 0 for never
    surfaces: Surfaces = Surfaces()
    scores: Scoring = Scoring()
    known: int = 24  # shapes that are rebuilt and scored
    generated: Literal[0] = 0  # parameters of classifiers have nothing between them

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}, but is a share of the points above 0 and below 1")
        check_counts(self, {"batch_points": 1, "epochs": 1, "validate_every": 1, "patience": 0, "known": 0})

    def unread(self) -> dict[str, str]:
        """Options that are not read beside the others, each with the reason."""
        return self.shapes.unread(self.data)

    def check_later(self) -> None:
        """ConfigError where stages after training could not work with these options."""
        check_later(self, "occupancies")


FALLING = Adam(own=Schedule("cosine", initial=3e-3, final=1e-5))
PRESETS = {
    "quick": Config(optimizer=FALLING, epochs=300),
    "small": Config(optimizer=FALLING, epochs=1000),
    "paper": Config(epochs=1000),  # PyTorch's Adam at its one rate
}

PARTS = {  # the options that each stage reads
    "prepare": ("data", "seed", "shapes", "samples"),
    "train": ("seed", "network", "optimizer", "held_out", "batch_points", "epochs", "validate_every", "patience"),
    "reconstruct": ("surfaces", "known", "generated"),
    "evaluate": ("scores",),
    "report": (),
}


def usual_preset(data: str) -> str:
    """The preset where none is asked for."""
    return "quick"


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem:
    """What the loop needs: one network a shape, batches of the points to train on, and the loss on those held out.

    shapes: their numbers in the store; all of them are in every step.
    """
    check_frame(store, FRAME)
    network = Classifier(config.network)
    shared, codes, statistics = conditional.initial(network, len(shapes), key)
    train, held = divided(store.arrays["occupancy"], config.held_out, config.seed)
    epoch = -(-int(train.counts[shapes].sum(1).max()) // config.batch_points)  # steps, each with all shapes
    lanes = Lanes.deal(shapes, len(shapes), config.seed, parallel.count())
    plan = batches.Plan(batches.Draw("train", config.batch_points, sides="any"), "occupancies", passes=epoch)
    return Problem(
        loss=functools.partial(conditional.classifier_loss, network=network),
        optimizer=Optimizer(own=config.optimizer.own),
        batches=batches.load({"train": train}, lanes, plan, key, resident=True),
        shared=shared,
        own=codes,
        statistics=statistics,
        validate=validation(network, held, shapes),
        steps=config.epochs * epoch,
        validate_every=config.validate_every * epoch,
        patience=config.patience,
        chosen=chosen,
    )


def divided(points: Packed, share: float, seed: int) -> tuple[Packed, Packed]:
    """Points to train on and points held out: each shape's own, divided at random, outside ones still first."""
    parts: tuple[list, list] = [], []
    counts = np.zeros((2, *points.counts.shape), np.int64)
    for i, (offset, sides) in enumerate(zip(points.offsets, points.counts, strict=True)):
        total = int(sides.sum())
        held = np.random.default_rng([seed, i]).permutation(total) < round(share * total)
        rows, inside = points.values[offset : offset + total], np.arange(total) >= sides[0]
        for part, chosen in enumerate((~held, held)):
            parts[part].append(rows[chosen])
            counts[part, i] = (chosen & ~inside).sum(), (chosen & inside).sum()
    packed = []
    for part in range(2):
        each = counts[part].sum(1)
        packed.append(Packed(np.concatenate(parts[part]), np.cumsum(each) - each, counts[part]))
    return packed[0], packed[1]


def validation(network: Classifier, held: Packed, shapes) -> Callable:
    """(shared, own, statistics) → minus the mean cross-entropy of the points held out, the mean over shapes.

    shapes: numbers in the store of the rows of `own`.
    """
    counts = held.counts[shapes].sum(1)
    points = np.zeros((len(shapes), counts.max(), 3), np.float32)
    inside, weight = np.zeros((2, *points.shape[:2]), np.float32)
    for i, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
        points[i, :count] = held.values[held.offsets[shape] :][:count]
        inside[i, held.counts[shape, 0] : count], weight[i, :count] = 1, 1 / count

    def validate(shared, own, statistics) -> float:
        logits = fold(network, {}, {}, own)(points)
        return -float((weight * conditional.cross_entropy(logits, inside)).sum(1).mean())

    return validate


def model(config: Config, store: Store, shapes, shared, own, statistics) -> Model:
    """The trained networks: as many codes, each all of a network's parameters."""
    return Model(
        kind="classifier",
        network=Classifier(config.network),
        shared={},
        statistics={},
        frame=FRAME,
        codes=training_codes(store, shapes, own),
        surfaces=config.surfaces,
        history=history(NAME, config.data, store, shapes),
    )


def adjusted(config: Config, trained: Model) -> Model:
    """The model with this run's settings of extraction."""
    return dataclasses.replace(trained, surfaces=config.surfaces)


def inputs(config: Config, store: Store, shape: int) -> list:
    """What the network was given of a shape, for the report: points all through the box cannot be pictured."""
    return []


def scored(config: Config, trained: Model, store: Store, codes: Codes) -> list[dict]:
    """What is known of each code beside the scores of its mesh: nothing."""
    return [{} for _ in codes.names]


def summary(unseen: int, known: int) -> str:
    """The report's first sentence."""
    return f"{known} shape{'s' * (known > 1)}, each learned by a classifier of its own from labelled points."
