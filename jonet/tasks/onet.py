"""What the tasks of conditional Occupancy Networks share: options, training setup, validation and model."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp
import numpy as np

from jonet import config as configs
from jonet import parallel
from jonet.chips import Precision
from jonet.codes import Codes
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.encoders import ENCODERS, EncoderName
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.settings.metrics import MetricsConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks import batch
from jonet.tasks.base import Task, TimedConfig
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import Augmentation, EncoderInput, encoded
from jonet.tasks.setup import TrainingSetup, check_counts, history, identity, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import batches, conditional, costs
from jonet.training.batches import How
from jonet.training.lanes import Lanes
from jonet.training.optimizers import Optimizer, Schedule
from jonet.wording import counted

VALIDATION_POINTS = 8192  # points per validation shape
VALIDATION_ROWS = 64  # training shapes by which a network with the encoder `idx` is validated
SAMPLES = dataclasses.replace(RECIPES["onet"], surface=2_048, occupancies=8_192)
NEAR_SAMPLES = dataclasses.replace(SAMPLES, near_occupancies=4_096, sigma=0.02)  # for mixed points
ADAM = Optimizer(
    shared=Schedule("constant", initial=1e-4), per_shape=Schedule("constant", initial=1e-4)
)  # as published
MUON = Optimizer(
    "muon", shared=Schedule("cosine", initial=4e-3, final=4e-5), per_shape=Schedule("constant", initial=1e-3)
)
SMALL = {"shapes": Shapes(train=2500, test=48, val_fraction=0.015), "minutes": 30.0}
SMALL_SOLID = {  # for inputs that show the whole shape: twice the shapes, and half of the points inside
    "shapes": Shapes(train=5000, test=48, val_fraction=0.01),
    "points_sampling": "stratified",
    "cpu": Batch(16, 512),
    "minutes": 30.0,
}
PAPER = {  # the published settings of all tasks
    "data": "",
    "shapes": Shapes(train=30_000, test=8_000, val_fraction=0.1, sign="fusion"),
    "samples": RECIPES["onet"],
    "optimizer": ADAM,
    "compute_dtype": "float32",
    "batch_shapes": 64,
    "batch_points": 2048,
    "steps": 300_000,
    "validate_every": 2000,
    "surfaces": Surfaces(method="mise"),
}


@dataclasses.dataclass(frozen=True)
class Config(TimedConfig):
    """Options of conditional Occupancy Networks; every task adds its field `inputs`."""

    learned_samples: ClassVar[tuple[str, ...]] = ("occupancies",)

    data: str = "chair"  # a procedural family, families joined by commas, or a folder of meshes
    seed: int = 0  # seed of all random numbers, 0 or more
    shapes: Shapes = Shapes(train=600, val_fraction=0.04)  # which shapes are used, and how many
    samples: Recipe = SAMPLES  # what is sampled from each shape
    network: Specs = Specs()  # structure of encoder and decoder
    # dtype of the matrix products in training, auto: by platform; parameters are always float32
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: Optimizer = MUON  # optimizer and learning rates
    # points to learn from: uniform in the box; equal: half of them inside; stratified: half inside, weighted so that
    # the loss has the same expectation as with uniform; surface: near the surface (needs samples.near_occupancies);
    # mixed: half of them uniform, half near the surface (needs them, too)
    points_sampling: Literal["uniform", "equal", "stratified", "surface", "mixed"] = "uniform"
    batch_shapes: int = 0  # shapes per training step; 0: by platform (published: 64)
    # points of each shape per training step, K, even; 0: by platform (published: 2048; for voxels 1024)
    batch_points: int = 0
    cpu: Batch = Batch()  # what batch_shapes=0, batch_points=0 and compute_dtype=auto stand for on a CPU
    gpu: Batch = Batch(64, 2048, "bfloat16")  # and on a GPU: as published, in the type of matrix units
    tpu: Batch = Batch(16, 512, "bfloat16")  # and on a TPU, where the published batch takes six times as long
    # how the points of a step are drawn: single rows with replacement, or contiguous windows; auto: rows, and windows
    # of what is streamed
    draw: Literal["auto", "rows", "windows"] = "auto"
    # where samples are during training: on the devices (resident), there as float16 (half), or read from disk
    # (streamed); auto: the first that fits
    place: Literal["auto", "resident", "half", "streamed"] = "auto"
    steps: int = 10_000  # training steps, 1 or more; given without minutes, they replace the preset's minutes
    # training time in minutes, turned into steps by the speed measured at the start; 0: use `steps`; give one of both
    minutes: float = 0.0
    # steps between validations, 1 or more; the parameters with the best validation are kept (published: 2000)
    validate_every: int = 500
    patience: int = 0  # validations without improvement after which training stops; 0: never
    # decay of a moving average of all weights, above 0 and below 1, that is validated and becomes the model; 0: none
    ema_decay: float = configs.added(0.0)
    # weight of the KL divergence in the loss of a generative network, 0 or more (published: 1); 0: a plain autoencoder
    kl_weight: float = configs.added(1.0)
    surfaces: Surfaces = Surfaces()  # how meshes are extracted
    # of matrix products after training, off the CPU: highest (full float32), high (three bfloat16), default (one)
    precision: Precision = "high"
    scores: MetricsConfig = MetricsConfig()  # how many points the metrics use
    rebuilt_train: int = 8  # number of training shapes that are also rebuilt, for comparison; 0 or more
    # number of meshes between two unseen shapes, and, of a generative network, of samples from its prior; 0 or more
    generated: int = 6

    @property
    @abc.abstractmethod
    def inputs(self) -> EncoderInput:
        """What the encoder takes of each shape."""

    def __post_init__(self):
        batch.check_options(self)
        self._check_encoder()
        if self.points_sampling in ("surface", "mixed") and not self.samples.near_occupancies:
            raise ConfigError(
                f"points_sampling is {self.points_sampling}, so samples.near_occupancies must be above 0 (points of "
                "the box alone: points_sampling=stratified)"
            )
        check_counts(
            self, {"steps": 1, "validate_every": 1, "minutes": 0, "rebuilt_train": 0, "generated": 0, "patience": 0}
        )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}, but must be from 0 (no average) to below 1")
        if not 0 <= self.kl_weight < math.inf:
            raise ConfigError(f"kl_weight is {self.kl_weight}, but must be 0 or more")

    def unread(self) -> dict[str, str]:
        """Options that have no effect with the others, each with the reason."""
        unread = super().unread() | batch.unread(self) | self.optimizer.unread("optimizer")
        if self.network.encoder == "idx":
            unread["inputs"] = "network.encoder is idx, which takes no input"
        if not self.network.z_dim:
            unread["kl_weight"] = "network.z_dim is 0, so there is no KL divergence"
        return unread

    def _check_encoder(self):
        """ConfigError if the encoder does not take the task's input; `idx` (an embedding per shape) takes none."""
        encoder, given = self.network.encoder, self.inputs
        if encoder == "idx" and given.form.kind != "samples":
            if self.network.z_dim:
                raise ConfigError(
                    f"network.z_dim is {self.network.z_dim}, but must be 0 with network.encoder idx, whose codes "
                    "have a condition only"
                )
            return
        suits = [name for name in ENCODERS if accepts(name, given.form.shape)] or ["null"]
        if encoder not in suits:
            raise ConfigError(
                f"network.encoder is {encoder!r}, but {given.form.kind} are encoded by {', '.join(suits)} "
                "(or idx, which learns a condition for each training shape)"
            )


def accepts(encoder: EncoderName, shape: tuple[int, ...]) -> bool:
    """Whether an encoder takes inputs of this shape."""
    expected = getattr(ENCODERS[encoder], "func", ENCODERS[encoder]).input_shape
    return len(expected) == len(shape) and all(a in (None, b) for a, b in zip(expected, shape, strict=True))


AnyConfig = TypeVar("AnyConfig", bound=Config)


def _check_shapes(config: Config, store: Store) -> None:
    """ConfigError where options need shapes or points that there are not, or test shapes that cannot be encoded."""
    embedded = config.network.encoder == "idx"
    if config.patience and not embedded and not len(store.select("val")):
        raise ConfigError(
            f"patience is {config.patience}, but there are no validation shapes; set shapes.val_fraction, or "
            "patience to 0"
        )
    if embedded and len(store.select("test")):
        raise ConfigError(
            "network.encoder is idx, which only represents its training shapes: set --shapes.test=0, for a folder "
            "--shapes.test-fraction=0"
        )
    train = store.select("train")
    if config.points_sampling in ("surface", "mixed"):
        bare = train[~store.arrays["occupancy_near"].counts[train].any(1)]
        if len(bare):
            raise ConfigError(
                f"points_sampling is {config.points_sampling}, but {counted(len(bare), 'shape')} of {len(train)} "
                f"(first {store.names[bare[0]]}) came as samples without points near the surface; set "
                "points_sampling=stratified, which takes points of the box alone"
            )


class Onet(Task[AnyConfig]):
    """What all conditional Occupancy Networks share: an encoder sees the shape, and codes are found in one pass."""

    frame = "cube"
    validated = "IoU of validation shapes"
    parts = {  # the options that each stage reads
        "prepare": ("data", "seed", "shapes", "samples"),
        "train": (
            *("seed", "inputs", "network", "compute_dtype", "optimizer", "points_sampling", "batch_shapes"),
            *("batch_points", "cpu", "gpu", "tpu", "draw", "place", "steps", "minutes", "validate_every", "patience"),
            *("ema_decay", "kl_weight"),
        ),
        "reconstruct": ("surfaces", "precision", "rebuilt_train", "generated"),
        "evaluate": ("scores",),
        "report": (),
    }

    def check_outline(self, config: AnyConfig, outline: Store) -> None:
        """As for all tasks; the samples must fit where the options put them, and splits be those that options need."""
        _check_shapes(config, outline)
        batch.check_place(config, outline, functools.partial(spec, config))

    def training_setup(self, config: AnyConfig, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """What the training loop needs: network, batches of points and inputs, and the IoU on validation shapes."""
        _check_shapes(config, store)
        embedded = config.network.encoder == "idx"
        each, optimizer = batch.of(config, autotuned), config.optimizer.build()
        network = OccupancyNetwork(config.network, jnp.dtype(each.compute_dtype))
        shared, per_shape, batch_stats = conditional.initial(network, len(shapes), key)
        lanes = Lanes.deal(shapes, each.shapes, config.seed, parallel.count())
        loss = functools.partial(conditional.loss, network=network, kl_weight=config.kl_weight)

        sampled = functools.partial(spec, config, each.points)

        def memory() -> int:
            example = batches.example(store.arrays, lanes, sampled("rows"))
            learned = {"shared": shared, "per_shape": per_shape}
            return costs.of_step(loss, identity, optimizer, learned, batch_stats, example, config.ema_decay).memory

        place = batch.place(config, store.arrays, lanes, sampled, memory, autotuned)
        return TrainingSetup(
            loss=loss,
            optimizer=config.optimizer,
            batches=batches.load(store.arrays, lanes, sampled(batch.how(config, place)), key, place),
            shared=shared,
            per_shape=per_shape,
            steps=config.steps,
            minutes=config.minutes,
            batch_stats=batch_stats,
            ema_decay=config.ema_decay,
            validate=validation_of_rows(config, store, shapes) if embedded else self.validation(config, store),
            validate_every=config.validate_every,
            patience=config.patience,
            autotuned=autotuned,
        )

    def validation(self, config: AnyConfig, store: Store) -> Callable | None:
        """A function (shared, per_shape, batch_stats) → mean IoU of the validation shapes; None without such shapes."""
        shapes = store.select("val")
        if not len(shapes):
            return None
        module = OccupancyNetwork(config.network)
        labeled = [evenly(*store.occupancy(i)) for i in shapes]
        points, inside = (np.stack(part) for part in zip(*labeled, strict=True))

        def validate(shared, per_shape, batch_stats) -> float:
            shared, batch_stats = parallel.host((shared, batch_stats))
            network = BoundNetwork(module, shared, batch_stats)
            codes = encoded(config.inputs, config.seed, network, store, shapes)
            logits = network.fields(codes)(points.astype(np.float32))
            return float(conditional.iou(logits, inside, config.network.threshold).mean())

        return validate

    def model(self, config: AnyConfig, store: Store, shapes, shared, per_shape, batch_stats) -> Model:
        """The trained model; codes are the encoded inputs or, for `idx`, the rows of `per_shape`."""
        embedded = config.network.encoder == "idx"
        trained = Model(
            kind="occupancy",
            network=BoundNetwork(OccupancyNetwork(config.network), shared, batch_stats),
            frame=self.frame,
            surfaces=config.surfaces,
            inputs=None if embedded else config.inputs.form,
            history=history(self.name, config.data, store, shapes),
        )
        values = per_shape if embedded else self.observe(config, trained, store, shapes).values
        return dataclasses.replace(trained, codes=training_codes(store, shapes, values))

    def observe(self, config: AnyConfig, trained: Model, store: Store, shapes) -> Codes:
        """Codes of shapes of the store, encoded from their inputs."""
        names = [store.names[i] for i in shapes]
        similarities = tuple(store.similarities[i] for i in shapes)
        return Codes(
            encoded(config.inputs, config.seed, trained.network, store, shapes),
            tuple(names),
            similarities,
            network=trained.digest,
        )

    def inputs(self, config: AnyConfig, store: Store, shape: int) -> list[Part]:
        """The network's input as shown in the report; none for the encoder `idx`."""
        return [] if config.network.encoder == "idx" else [config.inputs.picture(store, shape, config.seed)]


def spec(config: Config, points: int, how: How) -> batches.BatchSpec:
    """What a batch holds of each shape.  points: of each; how: they are drawn."""
    embedded = config.network.encoder == "idx"
    near = {"surface": points, "mixed": points // 2}.get(config.points_sampling, 0)
    sides = "half" if config.points_sampling in ("equal", "stratified") else "any"
    arrays = {"occupancy": points - near, "occupancy_near": near}
    first, *more = [batches.RowSampling(name, count, how, sides) for name, count in arrays.items() if count]
    return batches.BatchSpec(
        first,
        "occupancies",
        None if embedded else config.inputs.draw(how),
        *(Augmentation() if embedded else config.inputs.augmentation),
        importance_weighted=config.points_sampling == "stratified",
        more_points=more[0] if more else None,
    )


def validation_of_rows(config: Config, store: Store, shapes) -> Callable:
    """As `Onet.validation`, for the encoder `idx`: of at most `VALIDATION_ROWS` training shapes, at equal steps.

    shapes: indices in the store of the rows of `per_shape`.
    """
    module = OccupancyNetwork(config.network)
    rows = np.unique(np.linspace(0, len(shapes) - 1, min(VALIDATION_ROWS, len(shapes))).round().astype(int))
    labeled = [evenly(*store.occupancy(shapes[row])) for row in rows]
    points, inside = (np.stack(part) for part in zip(*labeled, strict=True))

    def validate(shared, per_shape, batch_stats) -> float:
        shared, batch_stats = parallel.host((shared, batch_stats))
        logits = BoundNetwork(module, shared, batch_stats).fields(per_shape[rows])(points.astype(np.float32))
        return float(conditional.iou(logits, inside, config.network.threshold).mean())

    return validate


def evenly(points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`VALIDATION_POINTS` of a shape's points [K, 3] and labels [K], at equal steps, as one side comes first."""
    chosen = np.linspace(0, len(points) - 1, VALIDATION_POINTS).round().astype(int)
    return points[chosen], inside[chosen]
