"""DeepSDF: a decoder trained with one latent code per shape; new shapes are represented by fitting their codes.

Park, Florence, Straub, Newcombe, Lovegrove: DeepSDF, CVPR 2019, sections 4 to 6.1.

    python experiments/run.py --task=deepsdf                      4 to 5 minutes on 2 cores
    python experiments/run.py --task=deepsdf --data=FOLDER        the same with your own meshes
    python experiments/run.py --task=deepsdf --data=mesh.obj      one shape, as splines, in seconds
    python experiments/run.py --task=deepsdf --preset=paper       the published settings, for accelerators

Results on unseen chairs: median IoU 0.96 (nearest training shape: 0.61), Chamfer-L1 0.003 of the longest side.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.chips import Precision
from jonet.codes import Codes, fits
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.inference.fitting import latents
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks import spline
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.progress import Progress
from jonet.settings.fitting import FitConfig
from jonet.settings.metrics import MetricsConfig
from jonet.settings.representation import SplineConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks import batch
from jonet.tasks.base import Task, TimedConfig
from jonet.tasks.batch import Batch
from jonet.tasks.setup import TrainingSetup, autotune, check_counts, history, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import autodecoder, batches, costs, splines
from jonet.training.autodecoder import AutoDecoder
from jonet.training.autotune import micro_batch as measured_micro_batch
from jonet.training.batches import How
from jonet.training.lanes import Lanes
from jonet.training.optimizers import Optimizer, Schedule
from jonet.wording import counted


@dataclasses.dataclass(frozen=True)
class Config(TimedConfig):
    """Options of DeepSDF."""

    learned_samples: ClassVar[tuple[str, ...]] = ("near", "uniform")

    data: str = "chair"  # a procedural family, families joined by commas, a folder of meshes, or one mesh file
    seed: int = 0  # seed of all random numbers, 0 or more
    shapes: Shapes = Shapes()  # which shapes are used, and how many
    samples: Recipe = RECIPES["default"]  # what is sampled from each shape
    # what represents the shapes: a network with a code for each, or, one shape alone, splines on nested grids
    representation: Literal["network", "spline"] = "network"
    spline: SplineConfig = SplineConfig()  # of one shape: how fine, and how large
    network: Specs = Specs()  # structure of the decoder
    # dtype of the matrix products of the hidden layers in training, auto: by platform; parameters are always float32
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    learning: AutoDecoder = AutoDecoder()  # loss, prior and start of the codes
    optimizer: Optimizer = Optimizer()  # optimizer and learning rates of network and codes
    batch_shapes: int = 0  # shapes per training step; 0: by platform (published: ScenesPerBatch, 64)
    # points of each shape per training step, even; 0: by platform (published: SamplesPerScene, 16384)
    batch_points: int = 0
    cpu: Batch = Batch()  # what batch_shapes=0, batch_points=0 and compute_dtype=auto stand for on a CPU
    gpu: Batch = Batch(64, 1024, "bfloat16")  # and on a GPU, where it takes hardly longer, see docs/accelerators.md
    tpu: Batch = Batch(64, 128, "bfloat16")  # and on a TPU, likewise
    # how the points of a step are drawn: single rows with replacement, or contiguous windows, both as published; auto:
    # rows, and windows of what is streamed
    draw: Literal["auto", "rows", "windows"] = "auto"
    # where samples are during training: on the devices (resident), there as float16 (half), or read from disk
    # (streamed); auto: the first that fits
    place: Literal["auto", "resident", "half", "streamed"] = "auto"
    steps: int = 10_000  # training steps, 1 or more; given alone, they replace the preset's minutes or epochs
    # training time in minutes, turned into steps by the speed measured at the start; 0: `epochs`, or else `steps`
    minutes: float = 0.0
    epochs: int = 0  # passes over the training shapes, in place of steps (published: 2001); 0: `steps`
    fitting: FitConfig = FitConfig()  # how the codes of unseen shapes are fitted
    surfaces: Surfaces = Surfaces()  # how meshes are extracted
    # of matrix products after training, off the CPU: highest (full float32), high (three bfloat16), default (one)
    precision: Precision = "high"
    scores: MetricsConfig = MetricsConfig()  # how many points the metrics use
    rebuilt_train: int = 8  # training shapes that are rebuilt from their trained codes for comparison, 0 or more
    generated: int = 6  # number of samples from the codes' prior, and of meshes between two unseen shapes; 0 or more

    def __post_init__(self):
        batch.check_options(self)
        check_counts(self, {"steps": 1, "minutes": 0, "epochs": 0, "rebuilt_train": 0, "generated": 0})

    def unread(self) -> dict[str, str]:
        """Options that have no effect with the others, each with the reason."""
        found = {
            "shapes.val_fraction": "DeepSDF has no validation",
            "surfaces.threshold": "the surface of distances is where they are 0",
        }
        found |= batch.unread(self) | super().unread()
        if self.representation == "network":
            if not self.network.latent_size:
                without = "network.latent_size is 0, so there are no codes"
                found |= dict.fromkeys(("fitting", "optimizer.per_shape", *autodecoder.OF_CODES), without)
            each = self.fitting.unread("fitting"), self.optimizer.unread("optimizer"), self.learning.unread("learning")
            return functools.reduce(operator.or_, each) | found | {"spline": "representation is network"}
        reason = "splines are solved, not trained, and have no codes (preset single_mlp trains a network of one mesh)"
        options = {*DeepSDF.parts["train"], "fitting"} - {"seed", "representation", "spline"}
        return found | dict.fromkeys(options, reason)


def small(width: int, depth: int, latent_size: int) -> Specs:
    """A decoder for CPUs: weight norm in all hidden layers, the input joined again in the middle, no dropout."""
    return Specs(
        latent_size=latent_size,
        dims=(width,) * depth,
        dropout=(),
        norm_layers=tuple(range(depth)),
        latent_in=(depth // 2,),
    )


MUON = Optimizer(  # twice as fast to the same quality as Adam, see docs/performance.md
    "muon",
    shared=Schedule("cosine", initial=4e-3, final=4e-5),
    per_shape=Schedule("cosine", initial=2e-3, final=2e-5),
)


class DeepSDF(Task[Config]):
    """A decoder and a code per shape, learned together; codes of unseen shapes are fitted."""

    name = "deepsdf"
    title = "DeepSDF"
    frame = "sphere"
    config = Config
    presets = {
        "single": Config(
            samples=dataclasses.replace(RECIPES["default"], near=1_000_000, uniform=50_000, variances=(1e-4, 4e-6)),
            representation="spline",
            surfaces=Surfaces(resolution=256),
            rebuilt_train=1,
        ),
        "single_mlp": Config(
            samples=dataclasses.replace(RECIPES["default"], near=600_000, uniform=50_000, variances=(0.0009, 0.00005)),
            network=dataclasses.replace(small(256, 8, 0), xyz_in_all=True),
            learning=AutoDecoder(start="centered"),
            optimizer=MUON,
            cpu=Batch(1, 1024),
            gpu=Batch(1, 16_384),
            tpu=Batch(1, 4096),
            minutes=7.5,
            surfaces=Surfaces(resolution=256),
            rebuilt_train=1,
        ),
        "quick": Config(
            network=small(128, 6, 64),
            learning=AutoDecoder(start="centered"),
            optimizer=MUON,
            cpu=Batch(16, 64),  # many small steps beat few large ones, see docs/performance.md
            minutes=2.5,
        ),
        "small": Config(
            shapes=Shapes(train=768, test=48),
            network=small(256, 8, 128),
            learning=AutoDecoder(start="centered"),
            optimizer=MUON,
            cpu=Batch(32, 256),
            gpu=Batch(64, 512, "bfloat16"),
            tpu=Batch(32, 256, "bfloat16"),
            minutes=50.0,
        ),
        "paper": Config(
            data="",
            shapes=Shapes(train=3281, test=832, sign="views"),
            samples=dataclasses.replace(RECIPES["deepsdf"], published_test=True),
            network=Specs(),
            compute_dtype="float32",
            learning=AutoDecoder(prior="program", code_bound=1.0),
            optimizer=Optimizer(shared=Schedule("step", 5e-4), per_shape=Schedule("step", 1e-3)),
            batch_shapes=64,
            batch_points=16384,
            epochs=2001,
            fitting=FitConfig(method="adam"),
            surfaces=Surfaces(resolution=255),  # 256 samples a side
        ),
    }
    parts = {  # the options that each stage reads
        "prepare": ("data", "seed", "shapes", "samples"),
        "train": (
            *("seed", "representation", "spline", "network", "compute_dtype", "learning", "optimizer"),
            *("batch_shapes", "batch_points", "cpu", "gpu", "tpu", "draw", "place", "steps", "minutes", "epochs"),
        ),
        "reconstruct": ("fitting", "surfaces", "precision", "rebuilt_train", "generated"),
        "evaluate": ("scores",),
        "report": (),
    }

    def usual_preset(self, data: str) -> str:
        """The default preset: "single" for one mesh file, else "quick"."""
        return "single" if Path(data).is_file() else "quick"

    def check_outline(self, config: Config, outline: Store) -> None:
        """As for all tasks; without codes there is one shape, and samples must fit where the options put them."""
        _check_one(config, outline)
        if config.representation == "network":
            batch.check_place(config, outline, spec)

    def training_setup(self, config: Config, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """What the training loop needs: decoder, one code per training shape, batches of samples."""
        _check_one(config, store)
        each, learning, optimizer = batch.of(config, autotuned), config.learning, config.optimizer.build()
        network = decoder(config.network, each.compute_dtype, parallel.platform())
        shared, codes = autodecoder.initial(network, len(shapes), key, std=learning.code_std, start=learning.start)
        lanes = Lanes.deal(shapes, each.shapes, config.seed, parallel.count())

        def micro_batch() -> int:
            of_device = len(lanes.dealt) // lanes.devices
            return measured_micro_batch(network, shared, of_device, each.points, learning)

        settings = learning
        if not learning.micro_batch:
            settings = dataclasses.replace(learning, micro_batch=autotune(autotuned, "micro_batch", micro_batch))
        loss = functools.partial(autodecoder.loss, decoder=network, settings=settings)
        lookup = functools.partial(autodecoder.lookup, bound=learning.code_bound)
        sampled = functools.partial(spec, each.points)

        def memory() -> int:
            example = batches.example(store.arrays, lanes, sampled("rows"))
            learned = {"shared": shared, "per_shape": codes}
            return costs.of_step(loss, lookup, optimizer, learned, None, example).memory

        place = batch.place(config, store.arrays, lanes, sampled, memory, autotuned)
        return TrainingSetup(
            loss=loss,
            lookup=lookup,
            optimizer=config.optimizer,
            batches=batches.load(store.arrays, lanes, sampled(batch.how(config, place)), key, place),
            shared=shared,
            per_shape=codes,
            steps=config.epochs * lanes.steps if config.epochs else config.steps,
            minutes=config.minutes,
            autotuned=autotuned,
        )

    def solved(self, config: Config, store: Store, shapes) -> Model | None:
        """The splines of the one shape, from its samples in the store."""
        if config.representation == "network":
            return None
        _check_one(config, store)
        rows = np.random.default_rng(config.seed).permutation(np.asarray(store.samples(shapes[0])))
        rows = rows[(np.abs(rows[:, :3]) <= 1).all(1)]
        samples = splines.Samples(rows[:, :3], rows[:, 3])
        with Progress("splines", "shape", 1):
            ((levels, error),) = splines.fit([samples], [config.spline])
        about = {"clamp": spline.BEYOND, "error": error}
        return Model(
            kind="spline",
            network=spline.SplineNetwork.of(levels),
            frame=self.frame,
            codes=training_codes(store, shapes, np.zeros((1, 0), np.float32)),
            surfaces=config.surfaces,
            history=history(self.name, config.data, store, shapes) | about,
        )

    def untrained(self, config: Config) -> str:
        """As for all tasks; splines are solved."""
        return "splines are solved in some 10 s" if config.representation == "spline" else super().untrained(config)

    def model(self, config: Config, store: Store, shapes, shared, per_shape, batch_stats) -> Model:
        """The trained model: its training codes with their residuals and inlier fractions, and their prior."""
        network = BoundNetwork(DeepSDFDecoder(config.network), shared, batch_stats)
        codes, prior = training_codes(store, shapes, per_shape), None
        if config.network.latent_size:
            residual, inlier_fraction = training_errors(network, store, shapes, per_shape, config.fitting)
            codes = dataclasses.replace(codes, residual=residual, inlier_fraction=inlier_fraction)
            prior = Prior.of(per_shape, residual)
        return Model(
            kind="deepsdf",
            network=network,
            frame=self.frame,
            codes=codes,
            prior=prior,
            fitting=config.fitting,
            surfaces=config.surfaces,
            history=history(self.name, config.data, store, shapes) | {"clamp": config.learning.clamp},
        )

    def adjusted(self, config: Config, trained: Model) -> Model:
        """The model with this config's settings of fitting (of codes, if it has any) and extraction."""
        if trained.kind == "spline":
            return super().adjusted(config, trained)
        return dataclasses.replace(trained, fitting=config.fitting, surfaces=config.surfaces)

    def observe(self, config: Config, trained: Model, store: Store, shapes) -> Codes:
        """Codes of unseen shapes, fitted to their signed distances."""
        names = [store.names[i] for i in shapes]
        codes = trained.fit([np.asarray(store.samples(i)) for i in shapes], names=names)
        return codes.placed([store.similarities[i] for i in shapes])

    def scored(self, config: Config, trained: Model, store: Store, codes: Codes) -> list[dict[str, Any]]:
        """Per shape: the quality of its fit, which is reported with the metrics of its mesh."""
        return [fit._asdict() for fit in fits(codes)]

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        if not unseen:
            return f"{counted(trained, 'training shape')}, reconstructed from what was learned of it."
        return (
            f"{counted(unseen, 'unseen shape')}, each reconstructed from a code fitted to its signed distances; the "
            f"network was trained on {counted(trained, 'other shape')}."
        )


def _check_one(config: Config, shapes: Store) -> None:
    """ConfigError if there are several shapes and no codes to tell them apart, or unseen ones that would need codes."""
    if config.representation == "network" and config.network.latent_size:
        return
    train, test = (len(shapes.select(split)) for split in ("train", "test"))
    if train == 1 and not test:
        return
    reason = "representation is spline" if config.representation == "spline" else "network.latent_size is 0"
    raise ConfigError(
        f"{reason}, which holds one shape, but there are {counted(train, 'training shape')} and "
        f"{counted(test, 'test shape')}; jonet represent makes splines of each of many, and a network with codes "
        "(preset quick) learns them together"
    )


def decoder(specs: Specs, compute_dtype: str, platform: parallel.Platform) -> DeepSDFDecoder:
    """The decoder as it is trained on a platform."""
    axis, kind = 0 if platform.is_cpu else -1, platform.kind  # the axis of the units
    return DeepSDFDecoder(specs, jnp.dtype(compute_dtype), axis, matrix_unit=kind == "tpu", joined=kind == "gpu")


def spec(points: int, how: How) -> batches.BatchSpec:
    """What a batch holds of each shape.  points: of each; how: they are drawn."""
    return batches.BatchSpec(batches.RowSampling("sdf", points, how))


def training_errors(network: BoundNetwork, store: Store, shapes, codes, fitting: FitConfig):
    """`latents.errors` of training shapes; the samples of one batch are in memory at a time."""
    size = latents.TOGETHER.most * parallel.count()
    some = [slice(first, first + size) for first in range(0, len(shapes), size)]
    samples = ([thinned(store.samples(i)) for i in shapes[each]] for each in some)
    found = [latents.errors(network, codes[each], rows, fitting) for each, rows in zip(some, samples, strict=True)]
    return map(np.concatenate, zip(*found, strict=True))


def thinned(samples: np.ndarray, count: int = 4096) -> np.ndarray:
    """At most `count` rows of a shape's samples [N, 4], at equal steps through the array."""
    return np.asarray(samples[:: -(-len(samples) // count)])


TASK = DeepSDF()
