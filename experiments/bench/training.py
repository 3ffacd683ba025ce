"""Training steps of either paper, in the package's own loop: draws, loss, gradient, update."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import numpy as np

from experiments.bench.rows import Bench, Unit, compare, timed
from jonet import parallel
from jonet.data import batches
from jonet.data.lanes import Lanes
from jonet.data.store import Packed
from jonet.networks import deepsdf as networks
from jonet.networks import occupancy
from jonet.tasks import deepsdf
from jonet.training import conditional, watch
from jonet.training.loop import CAPACITY, Loop
from jonet.training.optimizers import Optimizer, Schedule


def deepsdf_train_step(bench: Bench) -> dict:
    shapes, points = (4, 2048) if bench.quick else (4, 16_384)
    specs = networks.Specs(latent_size=16, dims=(64,) * 8) if bench.quick else networks.Specs()
    config = dataclasses.replace(
        deepsdf.PRESETS["paper"], network=specs, batch_shapes=shapes, batch_points=points, place="resident"
    )
    rows = np.random.default_rng(0).uniform(-1, 1, (shapes, 4 * points, 4)).astype(np.float32)
    rows[:, :, 3] = np.where(np.arange(4 * points) < 2 * points, 1, -1) * np.abs(rows[:, :, 3])
    store = SimpleNamespace(frame=deepsdf.FRAME, arrays={"sdf": packed(rows, sides=2)})
    key = parallel.fold(jax.random.key(0), "bench")
    problem = deepsdf.problem(config, store, np.arange(shapes), key, {})
    loop = Loop(problem.loss, problem.optimizer.build(), problem.batches, key, lookup=problem.lookup)
    np.save(bench.folder / "rows.npy", rows.reshape(-1, 4))
    data = {
        "file": str(bench.folder / "rows.npy"),
        "offsets": store.arrays["sdf"].offsets.tolist(),
        "counts": store.arrays["sdf"].counts.tolist(),
    }
    arguments = {"specs": dataclasses.asdict(specs), "shapes": shapes, "points": points, "data": data}
    workload = (
        f"{len(specs.dims)}×{specs.dims[0]}, code {specs.latent_size}, dropout {specs.dropout_prob}, {shapes} shapes × "
        f"{points} points, Adam; ours in micro-batches of {problem.chosen['micro_batch']} points (0: none)"
    )
    state = loop.start(problem.shared, problem.own)
    return steps(bench, workload, loop, state, "deepsdf_step", arguments, deepsdf_operations(specs, shapes * points))


def onet_points_train_step(bench: Bench) -> dict:
    shapes, inputs, queries = (8, 300, 256) if bench.quick else (8, 300, 2048)
    condition, width, encoder_width = (32, 32, 32) if bench.quick else (512, 256, 512)
    specs = occupancy.Specs(encoder="pointnet_resnet", c_dim=condition, hidden_size=width, encoder_width=encoder_width)
    network = occupancy.OccupancyNetwork(specs)
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.55, 0.55, (shapes, 10 * queries, 3)).astype(np.float16)
    clouds = rng.uniform(-0.5, 0.5, (shapes, 10 * inputs, 3)).astype(np.float32)
    arrays = {"occupancy": packed(points, sides=2), "surface_points": packed(clouds, sides=1)}
    key = parallel.fold(jax.random.key(0), "bench")
    draws = batches.Draw("occupancy", queries, sides="any"), batches.Draw("surface_points", inputs)
    plan = batches.Plan(draws[0], "occupancies", draws[1], noise=0.005)
    lanes = Lanes.deal(np.arange(shapes), shapes, 0, parallel.count())
    source = batches.load(arrays, lanes, plan, key, resident=True)
    optimizer = Optimizer("adam", Schedule("constant", 1e-4), Schedule("constant", 1e-4))
    loop = Loop(functools.partial(conditional.loss, network=network), optimizer.build(), source, key)
    shared, own, statistics = conditional.initial(network, shapes, key)
    sizes = {"shapes": shapes, "inputs": inputs, "queries": queries}
    arguments = sizes | {"condition": condition, "width": width, "encoder_width": encoder_width}
    rows, pooled = shapes * inputs, shapes
    encoder = rows * 3 * 2 * encoder_width + 5 * (rows + pooled) * 2 * encoder_width**2 + 5 * rows * encoder_width**2
    decoder = shapes * queries * (10 * width**2 + 4 * width)
    workload = (
        f"batch {shapes}, {inputs} points in, {queries} queries, encoder {encoder_width}, decoder {width} wide, Adam"
    )
    state = loop.start(shared, own, statistics)
    return steps(bench, workload, loop, state, "points_step", arguments, 3 * 2 * (encoder + decoder))


def steps(bench: Bench, workload: str, loop: Loop, state, program: str, arguments: dict, operations: float) -> dict:
    """Steps one after the other, as many as the loop puts into one dispatch.  operations: of one step."""
    states = [state]

    def some(count: int):
        number = int(parallel.host(states[0].step))
        data, count = loop.batches.segment(number, count)
        states[0], metrics, _ = loop.advance(states[0], data, count, 1000)
        jax.block_until_ready((states[0], metrics))

    some(1)
    count = max(1, min(int(watch.SECONDS / timed(lambda: some(1))), CAPACITY))
    return compare(
        bench,
        f"{workload}; {count} steps one after the other",
        Unit("seconds a step", count),
        lambda: some(count),
        program,
        arguments,
        operations * count,
        run={"count": count},
    )


def packed(rows: np.ndarray, sides: int) -> Packed:
    """Rows [S, N, ...] as a store has them, the same number on each of one or two sides."""
    shapes, count = rows.shape[:2]
    counts = np.full((shapes, sides), count // sides, np.int64)
    return Packed(rows.reshape(-1, *rows.shape[2:]), count * np.arange(shapes), counts)


def deepsdf_operations(specs: networks.Specs, points: int) -> float:
    """Of the products in one step: forward, gradient of each input but the points', gradient of each matrix.

    The code's products, once a shape, are left out.
    """
    inner = [0, *specs.widths[:-1]]  # what comes from the layer before
    outer = [3 * bool(specs.joined(k)) for k in range(len(specs.widths))]
    forward = sum((i + o) * width for i, o, width in zip(inner, outer, specs.widths, strict=True))
    to_inputs = sum(i * width for i, width in zip(inner, specs.widths, strict=True))
    return 2.0 * points * math.fsum([forward, forward, to_inputs])
