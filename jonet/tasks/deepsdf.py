"""DeepSDF: a space of shapes, learned with one code a shape; new shapes are found in it by fitting codes.

Park, Florence, Straub, Newcombe, Lovegrove: DeepSDF, CVPR 2019, sections 4 to 6.1.

    python experiments/run.py --task=deepsdf                      4 to 5 minutes on 2 cores
    python experiments/run.py --task=deepsdf --data=FOLDER        the same on meshes of your own
    python experiments/run.py --task=deepsdf --data=mesh.obj      one shape, as exactly as the network can
    python experiments/run.py --task=deepsdf --preset=paper       the published settings, for accelerators

Unseen chairs: median IoU 0.96 (the nearest training shape: 0.61), Chamfer-L1 0.003 of the longest side.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
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
from jonet.inference import latents
from jonet.inference.latents import FitConfig
from jonet.inference.prior import Prior
from jonet.model import Model, Surfaces
from jonet.networks.deepsdf import Decoder, Specs
from jonet.tasks.problem import Problem, check_counts, check_frame, check_later, history, settled, training_codes
from jonet.tasks.shapes import Shapes
from jonet.training import autodecoder
from jonet.training.autodecoder import AutoDecoder
from jonet.training.optimizers import Optimizer, Schedule

NAME = "deepsdf"
TITLE = "DeepSDF"
FRAME = "sphere"


@dataclasses.dataclass(frozen=True)
class Config:
    """DeepSDF's options; the comment beside each is its help."""

    data: str = "chair"  # family, families joined by commas, folder of meshes, or one mesh
    seed: int = 0  # every draw follows from it
    shapes: Shapes = Shapes()
    samples: Recipe = RECIPES["default"]  # what is sampled of each shape
    network: Specs = Specs()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the training's products; parameters are float32
    learning: AutoDecoder = AutoDecoder()
    optimizer: Optimizer = Optimizer()
    batch_shapes: int = 16  # shapes a step (published: ScenesPerBatch, 64)
    batch_points: int = 256  # points of each shape a step (published: SamplesPerScene, 16384)
    draw: Literal["rows", "windows"] = "rows"  # rows with replacement, as published, or contiguous windows
    place: Literal["auto", "resident", "streamed"] = "auto"  # samples on the devices, or streamed from disk
    steps: int = 10_000  # of training; given without minutes it takes the place of the preset's minutes
    minutes: float = 0.0  # of training, above 0 in place of steps, by the pace measured at the start; give one of both
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()
    scores: Scoring = Scoring()
    known: int = 8  # training shapes that are rebuilt from their own codes, for comparison
    generated: int = 6  # samples of the codes' prior, and meshes between two unseen shapes

    def __post_init__(self):
        if self.batch_shapes < 1 or self.batch_points < 2 or self.batch_points % 2:
            raise ConfigError(
                f"batch_shapes is {self.batch_shapes} and batch_points {self.batch_points}: at least one shape, and an "
                "even number of points, half of them outside and half inside"
            )
        check_counts(self, {"steps": 1, "minutes": 0, "known": 0, "generated": 0})

    def unread(self) -> dict[str, str]:
        """Options that are not read beside the others, each with the reason."""
        return {"shapes.val_share": "nothing is validated in DeepSDF"} | self.shapes.unread(self.data)

    def check_later(self) -> None:
        """ConfigError where stages after training could not work with these options."""
        check_later(self, "near", "uniform")


def small(width: int, depth: int, latent_size: int) -> Specs:
    """A network for CPUs: weight norm everywhere, the input joined again in the middle, no dropout."""
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
    own=Schedule("cosine", initial=2e-3, final=2e-5),
)

PRESETS = {
    "single": Config(
        samples=dataclasses.replace(RECIPES["default"], near=600_000, uniform=50_000, variances=(0.0009, 0.00005)),
        network=dataclasses.replace(small(256, 8, 0), xyz_in_all=True),
        learning=AutoDecoder(start="centred"),
        optimizer=MUON,
        batch_shapes=1,
        batch_points=1024,
        minutes=7.5,
        surfaces=Surfaces(resolution=256),
        known=1,
    ),
    "quick": Config(
        network=small(128, 6, 64),
        learning=AutoDecoder(start="centred"),
        optimizer=MUON,
        batch_points=64,  # many small steps beat few large ones, see docs/performance.md
        minutes=2.5,
    ),
    "small": Config(
        shapes=Shapes(train=768, test=48),
        network=small(256, 8, 128),
        learning=AutoDecoder(start="centred"),
        optimizer=MUON,
        batch_shapes=32,
        minutes=50.0,
    ),
    "paper": Config(
        shapes=Shapes(train=3281, test=832),
        samples=RECIPES["deepsdf"],
        network=Specs(),
        learning=AutoDecoder(prior="program", code_bound=1.0),
        optimizer=Optimizer(shared=Schedule("step", 5e-4), own=Schedule("step", 1e-3)),
        batch_shapes=64,
        batch_points=16384,
        steps=2001 * (3281 // 64),
        fitting=FitConfig(method="adam"),
        surfaces=Surfaces(resolution=255),  # 256 samples a side
    ),
}

PARTS = {  # the options that each stage reads
    "prepare": ("data", "seed", "shapes", "samples"),
    "train": (
        *("seed", "network", "compute_dtype", "learning", "optimizer", "batch_shapes", "batch_points", "draw", "place"),
        *("steps", "minutes"),
    ),
    "reconstruct": ("fitting", "surfaces", "known", "generated"),
    "evaluate": ("scores",),
    "report": (),
}


def usual_preset(data: str) -> str:
    """The preset where none is asked for: "single" for one mesh, else "quick"."""
    return "single" if Path(data).is_file() else "quick"


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem:
    """What the loop needs: decoder, one code a training shape, batches of samples.

    shapes: the training shapes' numbers in the store.  chosen: what an earlier start settled for; what is missing is
    measured now.
    """
    check_frame(store, FRAME)
    network = Decoder(config.network, jnp.dtype(config.compute_dtype))
    learning = config.learning
    shared, codes = autodecoder.initial(network, len(shapes), key, std=learning.code_std, start=learning.start)
    lanes = Lanes.deal(shapes, config.batch_shapes, config.seed, parallel.count())
    plan = batches.Plan(batches.Draw("sdf", config.batch_points, config.draw))

    def place() -> str:
        fits = config.place == "auto" and batches.fits(store.arrays, lanes, plan)
        return "resident" if fits or config.place == "resident" else "streamed"

    def micro_batch() -> int:
        each = min(config.batch_shapes, len(shapes))
        return autodecoder.measure_micro_batch(network, shared, each, config.batch_points, learning)

    source = batches.load(store.arrays, lanes, plan, key, settled(chosen, "place", place) == "resident")
    settings = learning
    if not learning.micro_batch:
        settings = dataclasses.replace(learning, micro_batch=settled(chosen, "micro_batch", micro_batch))
    return Problem(
        loss=functools.partial(autodecoder.loss, decoder=network, settings=settings),
        lookup=functools.partial(autodecoder.lookup, bound=learning.code_bound),
        optimizer=config.optimizer,
        batches=source,
        shared=shared,
        own=codes,
        steps=config.steps,
        chosen=chosen,
    )


def model(config: Config, store: Store, shapes, shared, own, statistics) -> Model:
    """The trained model: its training codes with what they leave unexplained, and their prior.

    shapes: the training shapes' numbers in the store, in the order of the rows of `own`.
    """
    network = Decoder(config.network)
    codes, prior = training_codes(store, shapes, own), None
    if config.network.latent_size:
        samples = [thinned(store.samples(i)) for i in shapes]
        residual, explained = latents.errors(network, shared, statistics, own, samples, config.fitting)
        codes = dataclasses.replace(codes, residual=residual, explained=explained)
        prior = Prior.of(own, residual)
    return Model(
        kind="deepsdf",
        network=network,
        shared=shared,
        statistics=statistics,
        frame=FRAME,
        codes=codes,
        prior=prior,
        fitting=config.fitting,
        surfaces=config.surfaces,
        history=history(NAME, config.data, store, shapes),
    )


def thinned(samples: np.ndarray, count: int = 4096) -> np.ndarray:
    """At most `count` rows of a shape's samples [N, 4], evenly spread over the list."""
    return np.asarray(samples[:: -(-len(samples) // count)])


def adjusted(config: Config, trained: Model) -> Model:
    """The model with this run's settings of fitting and extraction."""
    return dataclasses.replace(trained, fitting=config.fitting, surfaces=config.surfaces)


def observe(config: Config, trained: Model, store: Store, shapes) -> Codes:
    """Codes of shapes of the store that training never saw, fitted to their distances."""
    names = [store.names[i] for i in shapes]
    codes = trained.fit([np.asarray(store.samples(i)) for i in shapes], names=names)
    return codes.placed([store.similarities[i] for i in shapes])


def scored(config: Config, trained: Model, store: Store, codes: Codes) -> list[dict]:
    """What fitting says of each shape, beside the scores of its mesh."""
    return [
        {
            "residual": float(codes.residual[i]),
            "explained": float(codes.explained[i]),
            "converged": bool(codes.converged[i]),
            "stranger": bool(codes.stranger[i]),
        }
        for i in range(len(codes))
    ]


def inputs(config: Config, store: Store, shape: int) -> list:
    """What the network was given of a shape, for the report: distances cannot be pictured."""
    return []


def summary(unseen: int, known: int) -> str:
    """The report's first sentence."""
    if not unseen:
        return f"{known} shape{'s' * (known > 1)}, learned and rebuilt from the network."
    return (
        f"{unseen} shapes that the network never saw, each rebuilt from a code fitted to its distances; "
        f"the space was learned from {known} others."
    )
