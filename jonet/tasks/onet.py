"""What the conditional tasks of Occupancy Networks share: options, the problem of training, the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.codes import Codes
from jonet.data import batches
from jonet.data.lanes import Lanes
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.metrics import Scoring
from jonet.inference import encode
from jonet.model import Model, Surfaces
from jonet.networks import field as fields_
from jonet.networks.encoders import ENCODERS
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.tasks.inputs import Voxels
from jonet.tasks.problem import Problem, check_counts, check_frame, check_later, history, settled, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import conditional
from jonet.training.optimizers import Optimizer, Schedule

FRAME = "cube"
VALIDATED = "IoU of validation shapes"
ASKED = 8192  # points of each validation shape
ROWS = 64  # training shapes that validate a network which knows no others
SAMPLES = dataclasses.replace(RECIPES["onet"], surface=2_048, occupancies=8_192)
ADAM = Optimizer(shared=Schedule("constant", initial=1e-4), own=Schedule("constant", initial=1e-4))  # as published
MUON = Optimizer("muon", shared=Schedule("cosine", initial=4e-3, final=4e-5), own=Schedule("constant", initial=1e-3))
SMALL = {"shapes": Shapes(train=2500, test=48, val_share=0.015), "minutes": 30.0}
SMALL_SOLID = {  # of inputs that tell the whole shape: twice the shapes, and points of which half lie inside
    "shapes": Shapes(train=5000, test=48, val_share=0.01),
    "points_sampling": "stratified",
    "batch_points": 512,
    "minutes": 30.0,
}
PAPER = {  # as published, for every task
    "shapes": Shapes(train=30_000, test=8_000, val_share=0.1),
    "samples": RECIPES["onet"],
    "optimizer": ADAM,
    "batch_shapes": 64,
    "batch_points": 2048,
    "steps": 300_000,
    "validate_every": 2000,
    "surfaces": Surfaces(method="mise"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of conditional Occupancy Networks; the comment beside each is its help."""

    data: str = "chair"  # family, families joined by commas, or a folder of meshes
    seed: int = 0  # every draw follows from it
    shapes: Shapes = Shapes(train=600, val_share=0.04)
    samples: Recipe = SAMPLES
    network: Specs = Specs()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the training's products; parameters are float32
    optimizer: Optimizer = MUON
    # of the box; half of them inside; half inside, weighed so that sums mean the same; or near the surface
    points_sampling: Literal["uniform", "equal", "stratified", "surface"] = "uniform"
    batch_shapes: int = 16  # shapes a step (published: 64)
    batch_points: int = 256  # points of each shape a step, K (published: 2048; 1024 of voxels)
    draw: Literal["rows", "windows"] = "rows"  # rows with replacement, or contiguous windows
    place: Literal["auto", "resident", "streamed"] = "auto"  # samples on the devices, or streamed from disk
    steps: int = 10_000  # of training; given without minutes it takes the place of the preset's minutes
    minutes: float = 0.0  # of training, above 0 in place of steps, by the pace measured at the start; give one of both
    validate_every: int = 500  # steps between validations; the best network by IoU is kept (published: 2000)
    patience: int = 0  # validations without a better one after which training stops; 0 for never
    surfaces: Surfaces = Surfaces()
    scores: Scoring = Scoring()
    known: int = 8  # training shapes that are rebuilt as well, for comparison
    generated: int = 6  # meshes between two unseen shapes; of a generative network, also samples of its prior

    def __post_init__(self):
        if self.batch_shapes < 1 or self.batch_points < 2 or self.batch_points % 2:
            raise ConfigError(
                f"batch_shapes is {self.batch_shapes} and batch_points {self.batch_points}: at least one shape, and an "
                "even number of points"
            )
        self._check_encoder()
        if self.points_sampling == "surface" and not self.samples.near_occupancies:
            raise ConfigError("points_sampling is surface, so samples.near_occupancies must count points near it")
        check_counts(self, {"steps": 1, "validate_every": 1, "minutes": 0, "known": 0, "generated": 0, "patience": 0})

    def unread(self) -> dict[str, str]:
        """Options that are not read beside the others, each with the reason."""
        unread = self.shapes.unread(self.data)
        if self.network.encoder == "idx":
            unread["inputs"] = "network.encoder is idx, which sees nothing of a shape"
        return unread

    def check_later(self) -> None:
        """ConfigError where stages after training could not work with these options."""
        check_later(self, "occupancies")
        if self.samples.voxels == "none" and isinstance(getattr(self, "inputs", None), Voxels):
            raise ConfigError("samples.voxels is none, but this network sees voxels; samples.voxels=ray makes them")

    def _check_encoder(self):
        """The encoder takes what the task shows; `idx`, for which shapes are numbers, takes none of it."""
        encoder, taken = self.network.encoder, getattr(self, "inputs", None)
        if self.network.norm == "instance":
            raise ConfigError(
                "network.norm is instance, with which a network is no field and has no surface to rebuild"
            )
        if taken is None:
            return
        if encoder == "idx" and taken.form.kind != "samples":
            if self.network.z_dim:
                raise ConfigError(
                    f"network.z_dim is {self.network.z_dim}, but must be 0 with network.encoder idx, whose shapes "
                    "have a condition alone"
                )
            return
        suits = [name for name in ENCODERS if fits(name, taken.form.shape)] or ["null"]
        if encoder not in suits:
            raise ConfigError(
                f"network.encoder is {encoder!r}, but {taken.form.kind} are encoded by {', '.join(suits)} "
                "(or idx, which learns a condition for each training shape)"
            )


def fits(encoder: str, shape: tuple[int, ...]) -> bool:
    """Whether an encoder takes inputs of this shape."""
    takes = getattr(ENCODERS[encoder], "func", ENCODERS[encoder]).input_shape
    return len(takes) == len(shape) and all(a in (None, b) for a, b in zip(takes, shape, strict=True))


PARTS = {  # the options that each stage reads
    "prepare": ("data", "seed", "shapes", "samples"),
    "train": (
        *("seed", "inputs", "network", "compute_dtype", "optimizer", "points_sampling", "batch_shapes", "batch_points"),
        *("draw", "place", "steps", "minutes", "validate_every", "patience"),
    ),
    "reconstruct": ("surfaces", "known", "generated"),
    "evaluate": ("scores",),
    "report": (),
}


def usual_preset(data: str) -> str:
    """The preset where none is asked for."""
    return "quick"


def problem(config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem:
    """What the loop needs: network, batches of points and inputs, and the IoU on validation shapes.

    shapes: the training shapes' numbers in the store.  chosen: what an earlier start settled for; what is missing is
    measured now.
    """
    check_frame(store, FRAME)
    embedded = config.network.encoder == "idx"
    if config.patience and not embedded and not len(store.select("val")):
        raise ConfigError(
            f"patience is {config.patience}, but there are no validation shapes whose scores it could wait for; set "
            "shapes.val_share, or patience to 0"
        )
    network = OccupancyNetwork(config.network, jnp.dtype(config.compute_dtype))
    shared, own, statistics = conditional.initial(network, len(shapes), key)
    lanes = Lanes.deal(shapes, config.batch_shapes, config.seed, parallel.count())
    array = "occupancy_near" if config.points_sampling == "surface" else "occupancy"
    sides = "half" if config.points_sampling in ("equal", "stratified") else "any"
    points = batches.Draw(array, config.batch_points, config.draw, sides)
    if embedded and len(store.select("test")):
        raise ConfigError(
            "network.encoder is idx, which knows its training shapes alone: --shapes.test=0, of a folder "
            "--shapes.test-share=0"
        )
    seen = None if embedded else config.inputs.draw(config.draw)
    noise, stretch = (0.0 if embedded else getattr(config.inputs, name, 0.0) for name in ("noise", "stretch"))
    weighed = config.points_sampling == "stratified"
    plan = batches.Plan(points, "occupancies", seen, noise, stretch, weighed)

    def place() -> str:
        room = config.place == "auto" and batches.fits(store.arrays, lanes, plan)
        return "resident" if room or config.place == "resident" else "streamed"

    return Problem(
        loss=functools.partial(conditional.loss, network=network),
        optimizer=config.optimizer,
        batches=batches.load(store.arrays, lanes, plan, key, settled(chosen, "place", place) == "resident"),
        shared=shared,
        own=own,
        steps=config.steps,
        statistics=statistics,
        validate=validation_of_rows(config, store, shapes) if embedded else validation(config, store),
        validate_every=config.validate_every,
        patience=config.patience,
        chosen=chosen,
    )


def validation(config, store: Store) -> Callable | None:
    """(shared, own, statistics) → mean IoU of the validation shapes' points; None where there are no such shapes."""
    shapes = store.select("val")
    if not len(shapes):
        return None
    network = OccupancyNetwork(config.network)
    seen = config.inputs.form.check([config.inputs.of(store, i, config.seed) for i in shapes])
    asked = [evenly(*store.occupancy(i)) for i in shapes]
    points, inside = (np.stack(part) for part in zip(*asked, strict=True))

    def validate(shared, own, statistics) -> float:
        shared, statistics = parallel.host((shared, statistics))
        codes = encode.encode(network, shared, statistics, seen, config.inputs.form.kind)
        logits = fields_.fold(network, shared, statistics, codes)(points.astype(np.float32))
        return float(conditional.iou(logits, inside, config.network.threshold).mean())

    return validate


def validation_of_rows(config, store: Store, shapes) -> Callable:
    """The same of training shapes, `ROWS` at most, under the encoder `idx`.

    shapes: numbers in the store of the rows of `own`, over which those that are asked are spread evenly.
    """
    network = OccupancyNetwork(config.network)
    rows = np.unique(np.linspace(0, len(shapes) - 1, min(ROWS, len(shapes))).round().astype(int))
    asked = [evenly(*store.occupancy(shapes[row])) for row in rows]
    points, inside = (np.stack(part) for part in zip(*asked, strict=True))

    def validate(shared, own, statistics) -> float:
        shared, statistics = parallel.host((shared, statistics))
        logits = fields_.fold(network, shared, statistics, own[rows])(points.astype(np.float32))
        return float(conditional.iou(logits, inside, config.network.threshold).mean())

    return validate


def evenly(points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`ASKED` of a shape's points [K, 3] and labels [K], spread evenly over the list, which has one side first."""
    chosen = np.linspace(0, len(points) - 1, ASKED).round().astype(int)
    return points[chosen], inside[chosen]


def model(config, store: Store, shapes, shared, own, statistics) -> Model:
    """The trained model, with the codes of its training shapes: what the encoder makes of their inputs, or its rows.

    shapes: the training shapes' numbers in the store, in the order of the rows of `own`.
    """
    embedded = config.network.encoder == "idx"
    trained = Model(
        kind="occupancy",
        network=OccupancyNetwork(config.network),
        shared=shared,
        statistics=statistics,
        frame=FRAME,
        surfaces=config.surfaces,
        inputs=None if embedded else config.inputs.form,
        history=history(config.NAME, config.data, store, shapes),
    )
    values = own if embedded else observe(config, trained, store, shapes).values
    return dataclasses.replace(trained, codes=training_codes(store, shapes, values))


def adjusted(config, trained: Model) -> Model:
    """The model with this run's settings of extraction."""
    return dataclasses.replace(trained, surfaces=config.surfaces)


def observe(config, trained: Model, store: Store, shapes) -> Codes:
    """Codes of shapes of the store, encoded from what the network is given of them."""
    names = [store.names[i] for i in shapes]
    seen = [config.inputs.of(store, i, config.seed) for i in shapes]
    codes = trained.encode(**{config.inputs.form.kind: seen}, names=names)
    return codes.placed([store.similarities[i] for i in shapes])


def inputs(config, store: Store, shape: int) -> list:
    """What the network was given of a shape, for the report."""
    return [] if config.network.encoder == "idx" else [config.inputs.picture(store, shape, config.seed)]


def scored(config, trained: Model, store: Store, codes: Codes) -> list[dict]:
    """What is known of each code beside the scores of its mesh: nothing."""
    return [{} for _ in codes.names]
