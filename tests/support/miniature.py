"""DeepSDF in miniature: spheres of several radii, a network of some hundred parameters, ready to train."""

import functools

import jax
import numpy as np

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.training import autodecoder
from jonet.training.autodecoder import AutoDecoder
from jonet.training.batches import BatchSpec, RowSampling, load
from jonet.training.lanes import Lanes
from jonet.training.loop import Loop
from jonet.training.optimizers import Optimizer, Schedule

SPECS = Specs(latent_size=4, dims=(16,) * 3, dropout=(0, 1), norm_layers=(0, 1), latent_in=(2,))
DECODER = DeepSDFDecoder(SPECS)


def spheres(count: int, rows: int = 200) -> dict[str, RaggedArray]:
    """Signed distances around spheres, as a store packs them: of each shape the rows outside first."""
    rng = np.random.default_rng(count)
    values, counts = [], []
    for radius in np.linspace(0.3, 0.7, count):
        points = rng.uniform(-1, 1, (rows, 3))
        distances = np.linalg.norm(points, axis=-1) - radius
        order = np.argsort(distances <= 0, kind="stable")
        values.append(np.column_stack([points, distances])[order])
        counts.append([np.sum(distances > 0), np.sum(distances <= 0)])
    offsets = np.concatenate([[0], np.cumsum(np.sum(counts, axis=1))[:-1]])
    return {"sdf": RaggedArray(np.concatenate(values).astype(np.float32), offsets, np.array(counts))}


def batches(shapes: int = 6, batch: int = 4, points: int = 32, *, arrays=None, place="resident", how="windows"):
    """Where batches of spheres come from."""
    lanes = Lanes.deal(range(shapes), batch, 0, parallel.count())
    return load(arrays or spheres(shapes), lanes, BatchSpec(RowSampling("sdf", points, how)), jax.random.key(0), place)


def make(source=None, *, decoder=DECODER, rate: float = 5e-3, ema_decay: float = 0.0) -> Loop:
    """A loop over batches of spheres."""
    source, settings = source or batches(), AutoDecoder()
    optimizer = Optimizer(shared=Schedule("cosine", rate), per_shape=Schedule("constant", rate), clip=1.0)
    loss = functools.partial(autodecoder.loss, decoder=decoder, settings=settings)
    lookup = functools.partial(autodecoder.lookup, bound=settings.code_bound)
    return Loop(loss, optimizer.build(), source, jax.random.key(0), lookup=lookup, ema_decay=ema_decay)


@functools.cache
def shared_loop() -> Loop:
    """The loop that `make()` gives, compiled once for all tests."""
    return make()


def fresh(loop: Loop, decoder: DeepSDFDecoder = DECODER):
    """A state before the first step."""
    return loop.start(*start(decoder, 1 + int(loop.batches.positions.max())))


def once(function, *arguments):
    """`function` compiled without optimizing, since it runs a few times only; and its result."""
    lowered = function if hasattr(function, "lower") else jax.jit(function)
    compiled = lowered.lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return compiled, compiled(*arguments)


@functools.cache
def start(decoder: DeepSDFDecoder, shapes: int):
    """Initial parameters and codes, on the host."""
    return jax.device_get(autodecoder.initial(decoder, shapes, jax.random.key(0), start="centered"))


def bits(state) -> list[bytes]:
    """Everything in a state, to compare exactly."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parallel.host(state))]
