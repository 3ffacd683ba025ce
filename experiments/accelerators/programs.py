"""The programs: each is a mapped function of jonet with the arguments of one call, and what that call achieves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerators import octahedra, unsampled
from experiments.accelerators.hlo import Passes
from experiments.accelerators.unsampled import Few
from jonet import parallel, products
from jonet.chips import Precision
from jonet.inference import encode as encoding
from jonet.inference.fitting import methods, sharded_batch
from jonet.inference.fitting.gauss_newton import NewtonSolver
from jonet.inference.fitting.observations import COLUMNS, WEIGHT
from jonet.inference.fitting.prior import Prior
from jonet.inference.surfaces import block_meshes, blocks, device, refinement
from jonet.networks import deepsdf, field, occupancy, spline, spline_levels
from jonet.networks.bound import BoundNetwork
from jonet.networks.layers import BLOCK
from jonet.settings.fitting import Adam, FitConfig, GaussNewton
from jonet.settings.representation import SplineConfig
from jonet.tasks import names, registry
from jonet.training import splines
from jonet.training.loop import Loop

SHAPES = 8  # fields that are evaluated together
STEPS = 20  # of training in one call that is measured
KEY = jax.random.key


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """mapped(*arguments), one call of a program on the devices in use.

    amount: how many of `unit` the call computes with each of its `repeats`: passes of its outermost loop, whose
    number is an argument.  inner: passes of the loops within whose number is data, from outside or, of a call without
    repeats, by name (`hlo.Module`).
    context: in which it is dispatched, for the precision of its products.
    again(arguments, results): the arguments of the next call, since a call may use up its own.
    """

    mapped: Any
    arguments: tuple
    amount: float
    unit: str
    precision: str
    repeats: int = 1
    inner: tuple[int, ...] | dict[str, int] = ()
    context: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    again: Callable[[tuple, Any], tuple] = lambda arguments, results: arguments

    @property
    def passes(self) -> Passes:
        """Passes of its loops, for `hlo.Module.executed`."""
        return self.inner if isinstance(self.inner, dict) else (self.repeats, *self.inner)


# Training


def train(task: str, preset: str, few: Few | None = None, **changes) -> Call:
    """The training step of a preset.  few: random samples of fewer shapes; None for all shapes without samples.

    changes: of the config's fields.
    """
    found = registry.find(task)
    config = dataclasses.replace(found.presets[preset], **changes)
    store = unsampled.store(found, config, few)
    given = found.training_setup(config, store, np.arange(len(store)), KEY(0), {})
    loop = Loop(
        given.loss, given.optimizer.build(), given.batches, KEY(0), lookup=given.lookup, ema_decay=given.ema_decay
    )
    state = loop.start(given.shared, given.per_shape, given.batch_stats)
    data, steps = given.batches.segment(0, STEPS)
    return Call(
        loop.program(state),
        (state, data, loop.key, np.int32(steps), np.int32(1000)),
        amount=1,
        unit="steps",
        precision="bfloat16" if given.autotuned.get("compute_dtype") == "bfloat16" else "default",
        repeats=steps,
        again=lambda arguments, results: (results[0], *arguments[1:]),
    )


# Fields


@functools.cache
def decoder(specs: deepsdf.Specs) -> BoundNetwork:
    """A DeepSDF with its initial parameters."""
    module = deepsdf.DeepSDFDecoder(specs)
    shared = jax.jit(module.init)(KEY(0), jnp.zeros((1, specs.latent_size)), jnp.zeros((1, 1, 3)))
    return BoundNetwork(module, parallel.host(shared))


@functools.cache
def conditional(specs: occupancy.Specs) -> BoundNetwork:
    """An Occupancy Network with its initial parameters."""
    module = occupancy.OccupancyNetwork(specs)
    return BoundNetwork(module, *parallel.host(module.start(KEY(0))))


def random(*shape: int) -> np.ndarray:
    """Normally distributed numbers."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def evaluate(
    network: BoundNetwork,
    precision: Precision,
    gradient: bool = False,
    tiles: int = field.DISPATCH.most,
) -> Call:
    """The evaluation of fields at `tiles` tiles on each device: of grids and cells, and with gradients of normals."""
    fields = parallel.host(network.fields(random(SHAPES, network.latent_size)))
    devices = parallel.count()
    owner = np.tile(np.arange(tiles, dtype=np.int32) * SHAPES // tiles, (devices, 1))
    group = min(tiles // 2, field.FILLING) // (2 if gradient else 1)  # of one pass on an accelerator
    return Call(
        field.evaluation(parallel.platform(), gradient),
        (
            parallel.replicate(fields),
            *parallel.split((owner, random(devices, tiles, field.TILE, 3))),
            np.int32(tiles),
        ),
        amount=devices * group * field.TILE,
        unit="points",
        precision=precision,
        context=lambda: products.precise(precision),
        repeats=tiles // group,
    )


def refine(network: BoundNetwork, blocks: int = 64, shapes: int = SHAPES) -> Call:
    """A step of the published refinement of meshes, on `blocks` blocks of 1,024 faces on each device."""
    fields, devices = network.fields(random(shapes, network.latent_size)), parallel.count()
    faces = np.arange(devices * blocks * BLOCK * 3, dtype=np.int32).reshape(devices, blocks, BLOCK, 3) % BLOCK
    vertices = random(BLOCK, 3)
    moved, opt_state = parallel.replicate((vertices, refinement.optimizer(RATE).init(vertices)))
    drawn = parallel.split(np.abs(random(devices, blocks, BLOCK, 3)))
    owner = parallel.split(np.zeros((devices, blocks, BLOCK), np.int32))
    weights = parallel.split(np.ones((devices, blocks, BLOCK), np.float32))
    return Call(
        jax.jit(functools.partial(refinement.descend, rate=RATE)),
        (
            *(parallel.replicate(parallel.host(fields)), moved, opt_state, drawn, owner, parallel.split(faces)),
            *(weights, np.int32(blocks), np.float32(0.01)),
        ),
        amount=devices * blocks * BLOCK,
        unit="faces",
        precision="highest",
        context=lambda: products.precise("highest"),
        inner=(blocks,),
    )


def ball(resolution: int) -> list[spline_levels.Level]:
    """Splines of a ball with a random surface: a dense grid of 32³ and, up to `resolution`, cells at the surface."""
    levels = [spline_levels.Level(32, spline_levels.every_cell(32), random(34**3))]
    while (side := 2 * levels[-1].resolution) <= resolution:
        every = np.stack(np.unravel_index(np.arange(side**3), (side,) * 3), -1)
        distance = np.linalg.norm((every + 0.5) * 2 / side - 1, axis=1) - 0.6
        cells = every[np.abs(distance) < 1 / side].astype(np.int32)
        levels.append(spline_levels.Level(side, cells, random(len(spline_levels.around(cells, side)))))
    return levels


def evaluate_splines(resolution: int = 128, tiles: int = field.DISPATCH.most) -> Call:
    """The evaluation of the splines of one shape at `tiles` tiles on each device."""
    fields, devices = field.Field.stack([spline.field(ball(resolution))]), parallel.count()
    tile = random(devices, tiles, field.TILE, 3) / 4
    group = min(tiles // 2, field.FILLING)
    return Call(
        field.evaluation(parallel.platform(), False),
        (parallel.replicate(parallel.host(fields)), *parallel.split((np.zeros((devices, tiles), np.int32), tile)))
        + (np.int32(tiles),),
        amount=devices * group * field.TILE,
        unit="points",
        precision="highest",
        context=lambda: products.precise("highest"),
        repeats=tiles // group,
    )


def solve_splines(resolution: int = 128) -> Call:
    """The least squares of the finest level of splines, of as many shapes as an accelerator solves side by side.

    The amount is of an iteration.
    """
    level, devices, iterations = ball(resolution)[-1], parallel.count(), SplineConfig().iterations
    points = level.cells[np.random.default_rng(0).integers(0, len(level.cells), 300_000)] + abs(random(300_000, 3)) % 1
    points = (points * 2 / resolution - 1).astype(np.float32)
    samples = splines.Samples(points, (np.linalg.norm(points, axis=1) - 0.6).astype(np.float32))
    one = splines.system(samples, samples.distances, resolution, level.nodes, np.zeros(len(level.nodes), np.float32))
    several = splines.System(*(np.broadcast_to(leaf, (devices, splines.SIDE_BY_SIDE[-1], *leaf.shape)) for leaf in one))
    chunks = -(-len(level.nodes) // splines.CHUNK)
    return Call(
        splines._program(),
        (
            *parallel.split((several, np.full(devices, chunks, np.int32))),
            *(np.int32(iterations), np.float32(1), np.float32(1e-2)),
        ),
        amount=devices * splines.SIDE_BY_SIDE[-1] / iterations,
        unit="levels",
        precision="highest",
        context=lambda: products.precise("highest"),
        repeats=iterations,
        inner=(chunks,),  # also of the sums before the first iteration, which count as `iterations` chunks
    )


RATE = 1e-4  # of the published refinement


def extract(specs: deepsdf.Specs, part: str, precision: Precision, made: bool) -> Call:
    """A program of the extraction of octahedra at 128³: of their "blocks", or of "meshes" from these.

    made: whether the blocks are computed here, on the devices in use; without, they are zeros.
    """
    each, devices = octahedra.SHAPES, parallel.count()
    evaluator = octahedra.evaluator(octahedra.network(specs), devices * each)
    layout, rows, grids, count = octahedra.dealt(evaluator)
    fields, platform = parallel.host(evaluator.fields.padded), parallel.platform()
    search, arguments = blocks.program(platform, layout), (fields, rows, grids)
    size = device.places(each * octahedra.VERTICES)

    def context():
        return products.precise(precision)

    if part == "blocks":
        mapped, arguments = search, (*arguments, count)
    else:
        with context():
            if made:
                found, *_ = search(*arguments, count)
            else:
                shapes, *_ = jax.eval_shape(search, *arguments, count)
                found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        mapped = block_meshes.program(platform, layout, size, True)
        arguments = (*arguments, found, np.int32(octahedra.SECANTS))
    return Call(mapped, arguments, devices * each, "meshes", precision, inner=octahedra.PASSES[part], context=context)


# Codes


def newton(network: BoundNetwork, precision: Precision, codes: int = sharded_batch.MANY, blocks: int = 8) -> Call:
    """A phase of the last level of Gauss-Newton, for `codes` codes on each device.

    The amount is of whole fits that take every phase of the settings' levels; most converge earlier.
    """
    settings, length = GaussNewton(), network.latent_size
    phases = zip(settings.points, settings.phases, strict=True)
    tries = (4, *[1] * (len(settings.points) - 1))  # `FitConfig.starts`, of which one goes on
    whole = sum(most * k * -(-points // BLOCK) for (points, most), k in zip(phases, tries, strict=True))
    damping = np.full(codes, settings.damping, np.float32)
    start = NewtonSolver(length, damping, settings.tolerance).init(random(codes, length))
    gaussian = methods.penalty(Prior.plain(length), FitConfig())
    rest = gaussian, np.int32(blocks), np.float32(1e-3), np.int32(settings.steps)
    call = fit(network, precision, codes, blocks, methods._newton, None, start, rest, {})
    return dataclasses.replace(call, amount=call.amount * blocks / whole, inner=(settings.steps, blocks))


def adam(
    network: BoundNetwork, precision: Precision, codes: int = sharded_batch.MANY, blocks: int = 8, **options
) -> Call:
    """The published fit, for `codes` codes on each device.  options: of `settings.fitting.Adam`."""
    start = random(codes, network.latent_size), np.zeros(codes, bool)
    devices = parallel.count()
    more = {"counts": np.full((devices * codes, 2), blocks * BLOCK // 2, np.int32)}
    more["index"] = np.arange(devices * codes, dtype=np.int32)
    rest = np.int32(0), np.float32(0.1)
    return fit(network, precision, codes, blocks, methods._adam, (Adam(**options), None), start, rest, more)


def fit(
    network: BoundNetwork, precision, codes: int, blocks: int, work, settings, start, rest: tuple, more: dict
) -> Call:
    """A program of `ShardedBatch.map`.

    work, settings: of the method.  start: problems of one device.  rest: its further arguments.  more: its further
    data of all devices.
    """
    devices = parallel.count()
    rows = random(devices * codes, blocks, BLOCK, COLUMNS) / 4
    rows[..., WEIGHT:] = 1
    data = {"rows": rows, "blocks": np.full(devices * codes, blocks, np.int32), **more}
    problems = jax.tree.map(lambda leaf: np.concatenate([leaf] * devices), start)
    order, count = np.tile(np.arange(codes, dtype=np.int32), devices), np.full(devices, codes, np.int32)
    return Call(
        sharded_batch.program(work, settings, len(rest), parallel.platform()),
        (parallel.replicate(network), *parallel.split((problems, data, order, count)), *rest),
        amount=devices * codes,
        unit="codes",
        precision=precision,
        context=lambda: products.precise(precision),
    )


# Encoders


def encode(network: BoundNetwork, inputs: encoding.Inputs, shapes: int = encoding.TOGETHER.most) -> Call:
    """Codes of `shapes` shapes on each device by a network's encoder."""
    seen = random(parallel.count() * shapes, *inputs.shape)
    convolved = inputs.kind in encoding.CONVOLVED
    return Call(
        encoding._program(inputs.kind),
        (parallel.replicate(network), parallel.split(seen)),
        amount=len(seen),
        unit="shapes",
        precision="highest" if convolved and parallel.platform().kind == "gpu" else products.DEFAULT,
        context=lambda: products.precise(products.DEFAULT, convolved),
    )


# By name

DECODERS = {
    "deepsdf/6x128": lambda: decoder(registry.find("deepsdf").presets["quick"].network),
    "deepsdf/8x512": lambda: decoder(deepsdf.Specs()),
    "occupancy/5x256": lambda: conditional(registry.find("onet_points").presets["paper"].network),
}
CODED = ("deepsdf/6x128", "deepsdf/8x512")
PRESETS = ("quick", "small", "paper")


def programs(few: Few | None = None) -> dict[str, Callable[[], Call]]:
    """All programs by name.  few: as for `train`."""
    found: dict[str, Callable[[], Call]] = {}
    for task in names.BUILT_IN:
        for preset in [name for name in PRESETS if name in registry.find(task).presets]:
            found[f"{task}/{preset}/train"] = functools.partial(train, task, preset, few)
    found |= steps(few)
    for name, network in DECODERS.items():
        for precision in ("highest", "high", "default"):
            found[f"{name}/evaluate/{precision}"] = lambda n=network, p=precision: evaluate(n(), p)
        found[f"{name}/evaluate_gradient/highest"] = lambda n=network: evaluate(n(), "highest", gradient=True)
        found[f"{name}/refine"] = lambda n=network: refine(n())
    for name in CODED:
        for precision in ("highest", "high", "default"):
            found[f"{name}/gauss_newton/{precision}"] = lambda n=DECODERS[name], p=precision: newton(n(), p)
        found[f"{name}/adam/highest"] = lambda n=DECODERS[name]: adam(n(), "highest")
        for part in octahedra.PASSES:
            found[f"{name}/extract/{part}"] = lambda n=DECODERS[name], p=part: extract(
                n().specs, p, products.DEFAULT, few is not None
            )
    found |= {"spline/128/evaluate": evaluate_splines, "spline/128/solve": solve_splines}
    for task in ("onet_points", "onet_voxels", "onet_images"):
        config = registry.find(task).presets["paper"]
        found[f"{task}/paper/encode"] = lambda c=config: encode(conditional(c.network), c.inputs.form)
    return found


def steps(few: Few | None) -> dict[str, Callable[[], Call]]:
    """The published step of DeepSDF by precision and micro-batch, on the samples of 64 shapes, which fit anywhere."""
    config = registry.find("deepsdf").presets["paper"]
    shapes = dataclasses.replace(config.shapes, train=64, test=0)
    samples = dataclasses.replace(config.samples, near=47_000, uniform=3_000)
    learning = config.learning

    def step(dtype: str, size: int) -> Call:
        changed = dataclasses.replace(learning, micro_batch=size)
        return train(*("deepsdf", "paper", few), shapes=shapes, samples=samples, learning=changed, compute_dtype=dtype)

    whole = config.batch_shapes * config.batch_points
    return {
        f"deepsdf/paper/step/{dtype}/{'whole' if size == whole else size}": functools.partial(step, dtype, size)
        for dtype, size in (("float32", whole), ("bfloat16", whole), ("bfloat16", 8192))
    }
