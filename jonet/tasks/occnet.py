"""The single-shape occupancy classifier: a shape as the decision boundary of a small network of its own.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, section 3.1 in its simplest form: 3 → 64,
four hidden layers of 64, → 1; 16,961 parameters.  Several shapes are trained in parallel, independently of each other.

    python experiments/run.py --task=occnet                       five procedural shapes, 2 minutes on 2 cores
    python experiments/run.py --task=occnet --data=mesh.obj       your own shape
    python experiments/run.py --task=occnet --data=FOLDER         all shapes of a folder, in parallel
    python experiments/run.py --task=occnet --data=points.npz     points with occupancies, without a mesh

Results: median IoU of the five shapes 0.93; of a closed bunny 0.96.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np

from jonet import parallel
from jonet.chips import Precision
from jonet.codes import Codes
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import RaggedArray, Store
from jonet.errors import ConfigError
from jonet.evaluation import figures
from jonet.evaluation.gallery import Gallery, Part, Row
from jonet.evaluation.report import Table
from jonet.formats import labeled_points
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.occupancy import Classifier, ClassifierSpecs
from jonet.settings.metrics import MetricsConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks.base import Task, TaskConfig
from jonet.tasks.setup import TrainingSetup, check_counts, history, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import batches, conditional
from jonet.training.lanes import Lanes
from jonet.training.optimizers import Optimizer, Schedule
from jonet.wording import counted


@dataclasses.dataclass(frozen=True)
class TrainingShapes(Shapes):
    """Shapes without a test split: a classifier only represents the shape that it is trained on."""

    train: int = 1  # number of shapes of each procedural family, 1 or more

    def sources(self, data: str, seed: int) -> list:
        """As for `Shapes`, all for training."""
        if labeled_points.is_file(data):
            return [labeled_points.PointsFile.of(data)]
        return [source.into("train") for source in super().sources(data, seed)]

    def untested(self, data: str) -> bool:
        """True: all shapes are trained on."""
        return True

    def unread(self, data: str) -> dict[str, str]:
        """As for `Shapes`, and the options of splits."""
        reason = "all shapes are trained on"
        if labeled_points.is_file(data):
            points = f"data are points with occupancies, {data}"
            return dict.fromkeys(["shapes", "samples"], points)
        return super().unread(data) | {"shapes.test_fraction": reason, "shapes.val_fraction": reason}


@dataclasses.dataclass(frozen=True)
class Adam:
    """PyTorch's Adam, applied to each network independently."""

    per_shape: Schedule = Schedule("constant", initial=1e-3)  # learning rate of every network


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Options of the single-shape occupancy classifier."""

    learned_samples: ClassVar[tuple[str, ...]] = ("occupancies",)

    # procedural families joined by commas, folder of meshes, one mesh, or points with occupancies (.npz, .csv)
    data: str = "chair,table,lamp,mug,aeroplane"
    seed: int = 0  # seed of all random numbers, 0 or more
    shapes: TrainingShapes = TrainingShapes(test=0)  # which shapes are used, and how many
    # what is sampled from each shape; by default 100,000 points with occupancies
    samples: Recipe = dataclasses.replace(RECIPES["onet"], surface=4_096)
    network: ClassifierSpecs = ClassifierSpecs()  # structure of each network
    optimizer: Adam = Adam()  # optimizer of each network
    held_out: float = 0.2  # fraction of each shape's points that is held out for validation, above 0 and below 1
    batch_points: int = 512  # points of each shape per training step, 1 or more
    # passes over the training points, 1 or more; of each shape the parameters with its best validation are kept
    epochs: int = 200
    validate_every: int = 1  # epochs between validations, 1 or more
    patience: int = 0  # validations without improvement after which training stops; 0: never
    surfaces: Surfaces = Surfaces()  # how meshes are extracted
    # of matrix products after training, off the CPU: highest (full float32), high (three bfloat16), default (one)
    precision: Precision = "high"
    scores: MetricsConfig = MetricsConfig()  # how many points the metrics use
    rebuilt_train: int = 24  # number of shapes that are rebuilt and evaluated, 0 or more
    generated: Literal[0] = 0  # always 0: the parameters of two classifiers cannot be interpolated

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}, but must be a fraction of the points above 0 and below 1")
        check_counts(self, {"batch_points": 1, "epochs": 1, "validate_every": 1, "patience": 0, "rebuilt_train": 0})

    def unread(self) -> dict[str, str]:
        """Options that have no effect with the others, each with the reason."""
        return super().unread() | self.optimizer.per_shape.unread("optimizer.per_shape")


PICTURED = 6  # shapes whose points and boundary the report shows
FALLING = Adam(per_shape=Schedule("cosine", initial=3e-3, final=1e-5))


def held_out(count: int, fraction: float, seed: int, shape: int) -> np.ndarray:
    """Which of a shape's `count` points are held out, bool.  shape: its index in the store."""
    return np.random.default_rng([seed, shape]).permutation(count) < round(fraction * count)


def divided(points: RaggedArray, fraction: float, seed: int) -> tuple[RaggedArray, RaggedArray]:
    """Training points and held-out points: each shape's points are split at random; outside points stay first."""
    parts: tuple[list, list] = [], []
    counts = np.zeros((2, *points.counts.shape), np.int64)
    for i, (offset, sides) in enumerate(zip(points.offsets, points.counts, strict=True)):
        total = int(sides.sum())
        held = held_out(total, fraction, seed, i)
        rows, inside = points.values[offset : offset + total], np.arange(total) >= sides[0]
        for part, chosen in enumerate((~held, held)):
            parts[part].append(rows[chosen])
            counts[part, i] = (chosen & ~inside).sum(), (chosen & inside).sum()
    arrays = []
    for part in range(2):
        each = counts[part].sum(1)
        arrays.append(RaggedArray(np.concatenate(parts[part]), np.cumsum(each) - each, counts[part]))
    return arrays[0], arrays[1]


def validation(network: Classifier, held: RaggedArray, shapes) -> Callable:
    """A function (shared, per_shape, batch_stats) → minus the mean cross-entropy on held-out points of each shape [S].

    shapes: indices in the store of the rows of `per_shape`.
    """
    counts = held.counts[shapes].sum(1)
    points = np.zeros((len(shapes), counts.max(), 3), np.float32)
    inside, weight = np.zeros((2, *points.shape[:2]), np.float32)
    for i, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
        points[i, :count] = held.values[held.offsets[shape] :][:count]
        inside[i, held.counts[shape, 0] : count], weight[i, :count] = 1, 1 / count

    def validate(shared, per_shape, batch_stats) -> np.ndarray:
        logits = BoundNetwork(network, {}).fields(per_shape)(points)
        return -np.asarray((weight * conditional.cross_entropy(logits, inside)).sum(1))

    return validate


class OccNet(Task[Config]):
    """A network of its own for each shape; there are no unseen shapes."""

    name = "occnet"
    title = "Occupancy classifier"
    frame = "cube"
    config = Config
    validated = "minus the cross-entropy of held-out points"
    validated_loss = True
    learns_points = True
    presets = {
        "quick": Config(optimizer=FALLING, epochs=300),
        "small": Config(optimizer=FALLING, epochs=1000),
        "paper": Config(epochs=1000),  # PyTorch's Adam at a constant rate
    }
    parts = {  # the options that each stage reads
        "prepare": ("data", "seed", "shapes", "samples"),
        "train": ("seed", "network", "optimizer", "held_out", "batch_points", "epochs", "validate_every", "patience"),
        "reconstruct": ("surfaces", "precision", "rebuilt_train", "generated"),
        "evaluate": ("scores",),
        "report": (),
    }

    def training_setup(self, config: Config, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """What the training loop needs: one network per shape, batches of training points, the loss on held-out points.

        shapes: their indices in the store; every step has all of them.
        """
        network = Classifier(config.network)
        shared, codes, batch_stats = conditional.initial(network, len(shapes), key)
        train, held = divided(store.arrays["occupancy"], config.held_out, config.seed)
        epoch = -(-int(train.counts[shapes].sum(1).max()) // config.batch_points)  # steps per epoch
        lanes = Lanes.deal(shapes, len(shapes), config.seed, parallel.count())
        spec = batches.BatchSpec(
            batches.RowSampling("train", config.batch_points, sides="any"), "occupancies", passes=epoch
        )
        return TrainingSetup(
            loss=functools.partial(conditional.classifier_loss, network=network),
            optimizer=Optimizer(per_shape=config.optimizer.per_shape),
            batches=batches.load({"train": train}, lanes, spec, key, "resident"),
            shared=shared,
            per_shape=codes,
            batch_stats=batch_stats,
            validate=validation(network, held, shapes),
            steps=config.epochs * epoch,
            validate_every=config.validate_every * epoch,
            patience=config.patience,
            autotuned=autotuned,
        )

    def model(self, config: Config, store: Store, shapes, shared, per_shape, batch_stats) -> Model:
        """The trained networks as one model: each code is the parameters of one network."""
        return Model(
            kind="classifier",
            network=BoundNetwork(Classifier(config.network), {}),
            frame=self.frame,
            codes=training_codes(store, shapes, per_shape),
            surfaces=config.surfaces,
            history=history(self.name, config.data, store, shapes),
        )

    def observe(self, config: Config, trained: Model, store: Store, shapes) -> Codes:
        """ConfigError: a classifier has no codes of other shapes.  Its stores have no test shapes."""
        raise ConfigError("a classifier only represents the shapes that it was trained on")

    def labeled(self, config: Config, store: Store, shape: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The points that were held out, of a shape without a mesh."""
        if (found := store.labeled(shape)) is None:
            return None
        held = held_out(len(found[0]), config.held_out, config.seed, shape)
        return found[0][held], found[1][held]

    def shown(
        self, config: Config, trained: Model, store: Store, folder: Path, values: dict[str, Any]
    ) -> tuple[Sequence[Gallery], Sequence[Table]]:
        """Of a few shapes the points by label, and a slice of the field with its boundary."""
        index = {name: i for i, name in enumerate(store.names)}
        rows = []
        for entry in values["train"]["shapes"][:PICTURED]:
            points, inside = store.occupancy(index[entry["name"]])
            field = trained.field(cast(Codes, trained.codes)[[entry["name"]]])[0]
            box, tau = np.asarray(field.per_shape["box"]), config.surfaces.threshold
            level = float(field.per_shape["level"]) if tau is None else math.log(tau) - math.log1p(-tau)
            # points are stored by side, so a few of them are drawn at random
            some = np.random.default_rng(0).permutation(len(points))[:20_000]
            points, inside = points[some].astype(np.float64), inside[some]
            seen = figures.labeled_points(points, inside)
            learned = figures.boundary_picture(lambda x, f=field, at=level: at - f(x), box, points, inside)
            parts = [
                Part("input", "points: red inside, blue outside", seen),
                Part("predicted", "slice of what was learned, with its boundary", learned),
            ]
            rows.append(Row(entry["name"], parts))
        note = "Outside points in front are left out.  On the slice are the points next to it."
        return [Gallery("Points and decision boundary", rows, note, rank=None)], ()

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of shapes."""
        return f"{counted(trained, 'shape')}, each learned by its own classifier from points with occupancies."


TASK = OccNet()
