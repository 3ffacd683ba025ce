"""An encoder in front of a trained DeepSDF: the code of a point cloud in one pass, from which a fit can start.

The decoder of a finished run of DeepSDF (Park et al., CVPR 2019) stays as it is.  The encoder is that of Occupancy
Networks for points (Mescheder et al., CVPR 2019, section 3); its loss is DeepSDF's (eq. 4) with the encoder's codes.

    python experiments/run.py --task=deepsdf --workdir=RUN             the decoder
    python experiments/run.py --task=deepsdf_points --model=RUN        the encoder, on the shapes of that run

Results on 8 unseen chairs, 192 shapes trained on: median IoU 0.69 in one pass over 300 noisy points, 0.86 after a fit
to the same points from there (0.84 without an encoder, in half as much time again).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.chips import Precision
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.model import Model, load
from jonet.networks.bound import BoundNetwork
from jonet.networks.encoded_deepsdf import EncodedDeepSDF, Encoder, Specs
from jonet.settings.fitting import FitConfig
from jonet.settings.metrics import MetricsConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks import batch, deepsdf, onet
from jonet.tasks.base import Task, TimedConfig
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import Points, encoded
from jonet.tasks.setup import TrainingSetup, check_counts, history, identity, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import batches, costs, encoding
from jonet.training.batches import How
from jonet.training.lanes import Lanes
from jonet.training.optimizers import Optimizer
from jonet.wording import counted

PLANNED = deepsdf.small(256, 8, 128)  # decoder that plans count where no model is named: of DeepSDF's preset small


@dataclasses.dataclass(frozen=True)
class Config(TimedConfig):
    """Options of the encoder in front of a trained DeepSDF."""

    learned_samples: ClassVar[tuple[str, ...]] = ("near", "uniform")

    model: str = ""  # run folder of a trained DeepSDF, whose decoder is taken; it is not changed
    # shapes to learn from; empty: the store of that run with its splits, so that its test shapes stay unseen; else a
    # procedural family, families joined by commas, a folder of meshes, or a store
    data: str = ""
    seed: int = 0  # seed of all random numbers, 0 or more
    shapes: Shapes = Shapes()  # which shapes are used, and how many; not of a store
    samples: Recipe = RECIPES["default"]  # what is sampled from each shape; not of a store
    inputs: Points = Points()  # the point cloud that the encoder takes
    network: Encoder = Encoder()  # structure of the encoder; that of the decoder is the model's
    # dtype of the matrix products in training, auto: by platform; parameters are always float32
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: Optimizer = onet.MUON  # optimizer and learning rate of the encoder
    batch_shapes: int = 0  # shapes per training step; 0: by platform
    batch_points: int = 0  # points of each shape per training step, even; 0: by platform
    cpu: Batch = Batch(16, 256)  # what batch_shapes=0, batch_points=0 and compute_dtype=auto stand for on a CPU
    gpu: Batch = Batch(64, 1024, "bfloat16")  # and on a GPU
    tpu: Batch = Batch(64, 256, "bfloat16")  # and on a TPU
    # how the points of a step are drawn: single rows with replacement, or contiguous windows; auto: rows, and windows
    # of what is streamed
    draw: Literal["auto", "rows", "windows"] = "auto"
    # where samples are during training: on the devices (resident), there as float16 (half), or read from disk
    # (streamed); auto: the first that fits
    place: Literal["auto", "resident", "half", "streamed"] = "auto"
    steps: int = 10_000  # training steps, 1 or more; given without minutes, they replace the preset's minutes
    # training time in minutes, turned into steps by the speed measured at the start; 0: use `steps`; give one of both
    minutes: float = 0.0
    fitting: FitConfig = FitConfig(starts=2)  # how the model fits codes, from that of the encoder and one trained code
    surfaces: Surfaces = Surfaces()  # how meshes are extracted
    # of matrix products after training, off the CPU: highest (full float32), high (three bfloat16), default (one)
    precision: Precision = "high"
    scores: MetricsConfig = MetricsConfig()  # how many points the metrics use
    rebuilt_train: int = 8  # training shapes that are rebuilt from their codes for comparison, 0 or more
    generated: int = 6  # number of samples from the codes' prior, and of meshes between two unseen shapes; 0 or more

    def __post_init__(self):
        batch.check_options(self)
        check_counts(self, {"steps": 1, "minutes": 0, "rebuilt_train": 0, "generated": 0})

    @property
    def no_data(self) -> str:
        """What to say where no data are named: those of the model are taken, so there is no model, either."""
        return NO_MODEL

    def unread(self) -> dict[str, str]:
        """Options that have no effect with the others, each with the reason."""
        found = {
            "shapes.val_fraction": "this task has no validation",
            "surfaces.threshold": "the surface of distances is where they are 0",
            "optimizer.per_shape": "no codes are learned",
        }
        each = self.fitting.unread("fitting"), self.optimizer.unread("optimizer"), batch.unread(self), super().unread()
        return functools.reduce(operator.or_, each) | found

    def resolved(self, given: set[str]) -> Config:
        """As for every config; without data, those are the store of the model's run."""
        config = self
        if self.model and not self.data:
            decoder_of(self.model)  # raises for what is no model
            folder = Path(self.model) / "store"
            if not stores.is_there(folder):
                raise ConfigError(f"model {self.model} has no store beside it; name the shapes to learn from by --data")
            config = dataclasses.replace(self, data=str(folder))
        return super(Config, config).resolved(given)


NO_MODEL = (
    "no model is named, whose decoder gets an encoder; give --model=RUN, a finished run of deepsdf (jonet run "
    "--task=deepsdf --workdir=RUN)"
)


def decoder_of(folder: str) -> Model:
    """The trained DeepSDF of a run or model folder; ConfigError if there is none, or one without codes."""
    if not folder:
        raise ConfigError(NO_MODEL)
    trained = load(folder)
    if trained.kind != "deepsdf" or trained.frame != "sphere" or not trained.config.latent_size:
        raise ConfigError(
            f"model {folder} is of kind {trained.kind}, and no DeepSDF with codes, whose decoder could get an encoder; "
            "give a run of deepsdf or deepsdf_completion"
        )
    return trained


class DeepSDFPoints(Task[Config]):
    """An encoder of points that gives the codes of a trained decoder of signed distances."""

    name = "deepsdf_points"
    title = "DeepSDF from points"
    frame = "sphere"
    config = Config
    extends_model = True
    presets = {
        "quick": Config(network=Encoder(encoder_width=64), minutes=2.5),
        "small": Config(network=Encoder(encoder_width=128), cpu=Batch(32, 256), minutes=20.0),
    }
    parts = {  # the options that each stage reads
        "prepare": ("data", "seed", "shapes", "samples"),
        "train": (
            *("model", "seed", "inputs", "network", "compute_dtype", "optimizer", "batch_shapes", "batch_points"),
            *("cpu", "gpu", "tpu", "draw", "place", "steps", "minutes"),
        ),
        "reconstruct": ("fitting", "surfaces", "precision", "rebuilt_train", "generated"),
        "evaluate": ("scores",),
        "report": (),
    }

    def check_outline(self, config: Config, outline: Store) -> None:
        """As for all tasks; and the samples must fit where the options put them."""
        batch.check_place(config, outline, functools.partial(spec, config))

    def given_model(self, config: Config) -> Model:
        """The model named by the option `model`; ConfigError if it is not a DeepSDF with codes."""
        return decoder_of(config.model)

    def training_setup(self, config: Config, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """What the training loop needs: encoder, frozen decoder, batches of samples and of points on surfaces."""
        each, optimizer = batch.of(config, autotuned), config.optimizer.build()
        specs, variables, clamp = frozen(config)
        network = EncodedDeepSDF(specs, jnp.dtype(each.compute_dtype))
        trained = deepsdf.decoder(specs.decoder, each.compute_dtype, parallel.platform())
        decoder, variables = trained.without_weight_norm(variables)  # once, since it does not change
        shared = network.start(parallel.fold_in(key, "network"))
        per_shape, batch_stats = np.zeros((len(shapes), 0), np.float32), {"decoder": parallel.host(variables)}
        lanes = Lanes.deal(shapes, each.shapes, config.seed, parallel.count())
        loss = functools.partial(encoding.loss, network=network, decoder=decoder, clamp=clamp)
        sampled = functools.partial(spec, config, each.points)

        def memory() -> int:
            example = batches.example(store.arrays, lanes, sampled("rows"))
            learned = {"shared": shared, "per_shape": per_shape}
            return costs.of_step(loss, identity, optimizer, learned, batch_stats, example).memory

        place = batch.place(config, store.arrays, lanes, sampled, memory, autotuned)
        return TrainingSetup(
            loss=loss,
            optimizer=config.optimizer,
            batches=batches.load(store.arrays, lanes, sampled(batch.how(config, place)), key, place),
            shared=shared,
            per_shape=per_shape,
            batch_stats=batch_stats,
            steps=config.steps,
            minutes=config.minutes,
            autotuned=autotuned,
        )

    def model(self, config: Config, store: Store, shapes, shared, per_shape, batch_stats) -> Model:
        """The decoder of the given model, bit for bit, with the trained encoder.

        Codes are those that the decoder was trained with, then the encoder's of shapes that the decoder did not learn.
        """
        given = self.given_model(config)
        specs, variables, clamp = frozen(config)
        parameters = {"encoder": shared["params"]["encoder"], "decoder": variables["params"]}
        found = Model(
            kind="encoded_deepsdf",
            network=BoundNetwork(EncodedDeepSDF(specs), {"params": parameters}),
            frame=self.frame,
            prior=given.prior,
            fitting=config.fitting,
            surfaces=config.surfaces,
            inputs=config.inputs.form,
            history=history(self.name, config.data, store, shapes) | {"clamp": clamp},
        )
        parts = [] if given.codes is None else [dataclasses.replace(given.codes, network=None)]
        known = set() if given.codes is None else set(given.codes.sources or ())
        if new := [i for i in shapes if store.contents[i] not in known]:
            values = encoded(config.inputs, config.seed, found.network, store, new)
            residual, inlier_fraction = deepsdf.training_errors(found.network, store, new, values, config.fitting)
            codes = training_codes(store, new, values)
            parts.append(dataclasses.replace(codes, residual=residual, inlier_fraction=inlier_fraction))
        return dataclasses.replace(found, codes=Codes.joined(parts))

    def adjusted(self, config: Config, trained: Model) -> Model:
        """The model with this config's settings of fitting and extraction."""
        return dataclasses.replace(trained, fitting=config.fitting, surfaces=config.surfaces)

    def observe(self, config: Config, trained: Model, store: Store, shapes) -> Codes:
        """Codes of shapes of the store, encoded from points on their surfaces in one pass."""
        values = encoded(config.inputs, config.seed, trained.network, store, shapes)
        names = tuple(store.names[i] for i in shapes)
        return Codes(values, names, tuple(store.similarities[i] for i in shapes), network=trained.digest)

    def inputs(self, config: Config, store: Store, shape: int) -> list[Part]:
        """The point cloud as shown in the report."""
        return [config.inputs.picture(store, shape, config.seed)]

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        return (
            f"{counted(unseen, 'unseen shape')}, each reconstructed from points on its surface in one pass, by an "
            f"encoder in front of a trained decoder; trained on {counted(trained, 'other shape')}. Training shapes are "
            "rebuilt from the decoder's own codes, not in one pass."
        )


def frozen(config: Config) -> tuple[Specs, dict[str, Any], float]:
    """The structure of encoder and decoder, the decoder's variables as the model has them, and the clamp δ.

    Where no model is named, as in plans, the decoder is `PLANNED` with parameters of 0.
    """
    encoder = dataclasses.asdict(config.network)
    if config.model:
        given = decoder_of(config.model)
        return (
            Specs(**encoder, decoder=given.config),
            given.network.shared,
            given.history.get("clamp", given.fitting.clamp),
        )
    start = deepsdf.DeepSDFDecoder(PLANNED).init
    shapes = jax.eval_shape(start, jax.random.key(0), jnp.zeros((1, PLANNED.latent_size)), jnp.zeros((1, 1, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return Specs(**encoder, decoder=PLANNED), variables, FitConfig.clamp


def spec(config: Config, points: int, how: How) -> batches.BatchSpec:
    """What a batch holds of each shape: samples, and points of the surface.  points: of each; how: they are drawn."""
    return batches.BatchSpec(
        batches.RowSampling("sdf", points, how), inputs=config.inputs.draw(how), noise=config.inputs.noise
    )


TASK = DeepSDFPoints()
