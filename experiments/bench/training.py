"""Rows of training steps of both papers: sampling, loss, gradient and update."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import numpy as np

from experiments.bench.rows import Bench, Unit, compare, timed
from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.networks import deepsdf as networks
from jonet.networks import occupancy
from jonet.tasks import deepsdf
from jonet.training import batches, conditional, monitor
from jonet.training.lanes import Lanes
from jonet.training.loop import CAPACITY, Loop
from jonet.training.optimizers import Optimizer, Schedule


def deepsdf_train_step(bench: Bench) -> dict:
    """Training steps of DeepSDF with the published network and points per shape, on random samples."""
    shapes, points = (4, 2048) if bench.quick else (4, 16_384)
    specs = networks.Specs(latent_size=16, dims=(64,) * 8) if bench.quick else networks.Specs()
    config = dataclasses.replace(
        deepsdf.TASK.presets["paper"], network=specs, batch_shapes=shapes, batch_points=points, place="resident"
    )
    rows = np.random.default_rng(0).uniform(-1, 1, (shapes, 4 * points, 4)).astype(np.float32)
    rows[:, :, 3] = np.where(np.arange(4 * points) < 2 * points, 1, -1) * np.abs(rows[:, :, 3])
    store = SimpleNamespace(arrays={"sdf": ragged(rows, sides=2)})
    key = parallel.fold_in(jax.random.key(0), "bench")
    training_setup = deepsdf.TASK.training_setup(config, store, np.arange(shapes), key, {})
    loop = Loop(
        training_setup.loss, training_setup.optimizer.build(), training_setup.batches, key, lookup=training_setup.lookup
    )
    np.save(bench.folder / "rows.npy", rows.reshape(-1, 4))
    data = {
        "file": str(bench.folder / "rows.npy"),
        "offsets": store.arrays["sdf"].offsets.tolist(),
        "counts": store.arrays["sdf"].counts.tolist(),
    }
    arguments = {"specs": dataclasses.asdict(specs), "shapes": shapes, "points": points, "data": data}
    workload = (
        f"{len(specs.dims)}×{specs.dims[0]}, code {specs.latent_size}, dropout {specs.dropout_prob}, {shapes} shapes × "
        f"{points} points, Adam; ours in micro-batches of {training_setup.autotuned['micro_batch']} points (0: none)"
    )
    state = loop.start(training_setup.shared, training_setup.per_shape)
    return steps(bench, workload, loop, state, "deepsdf_step", arguments, deepsdf_operations(specs, shapes * points))


def onet_points_train_step(bench: Bench) -> dict:
    """Training steps of an Occupancy Network that is conditioned on point clouds, on random samples."""
    shapes, inputs, queries = (8, 300, 256) if bench.quick else (8, 300, 2048)
    condition, width, encoder_width = (32, 32, 32) if bench.quick else (512, 256, 512)
    specs = occupancy.Specs(encoder="pointnet_resnet", c_dim=condition, hidden_size=width, encoder_width=encoder_width)
    network = occupancy.OccupancyNetwork(specs)
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.55, 0.55, (shapes, 10 * queries, 3)).astype(np.float16)
    clouds = rng.uniform(-0.5, 0.5, (shapes, 10 * inputs, 3)).astype(np.float32)
    arrays = {"occupancy": ragged(points, sides=2), "surface_points": ragged(clouds, sides=1)}
    key = parallel.fold_in(jax.random.key(0), "bench")
    draws = batches.RowSampling("occupancy", queries, sides="any"), batches.RowSampling("surface_points", inputs)
    spec = batches.BatchSpec(draws[0], "occupancies", draws[1], noise=0.005)
    lanes = Lanes.deal(np.arange(shapes), shapes, 0, parallel.count())
    source = batches.load(arrays, lanes, spec, key, "resident")
    optimizer = Optimizer("adam", Schedule("constant", 1e-4), Schedule("constant", 1e-4))
    loop = Loop(functools.partial(conditional.loss, network=network), optimizer.build(), source, key)
    shared, per_shape, batch_stats = conditional.initial(network, shapes, key)
    sizes = {"shapes": shapes, "inputs": inputs, "queries": queries}
    arguments = sizes | {"condition": condition, "width": width, "encoder_width": encoder_width}
    rows, pooled = shapes * inputs, shapes
    encoder = rows * 3 * 2 * encoder_width + 5 * (rows + pooled) * 2 * encoder_width**2 + 5 * rows * encoder_width**2
    decoder = shapes * queries * (10 * width**2 + 4 * width)
    workload = (
        f"batch {shapes}, {inputs} points in, {queries} queries, encoder {encoder_width}, decoder {width} wide, Adam"
    )
    state = loop.start(shared, per_shape, batch_stats)
    return steps(bench, workload, loop, state, "points_step", arguments, 3 * 2 * (encoder + decoder))


def steps(bench: Bench, workload: str, loop: Loop, state, program: str, arguments: dict, operations: float) -> dict:
    """The row of consecutive steps, as many as the loop puts into one dispatch.  operations: of one step."""
    states = [state]

    def some(count: int):
        number = int(parallel.host(states[0].step))
        data, count = loop.batches.segment(number, count)
        states[0], metrics, _ = loop.advance(states[0], data, count, 1000)
        jax.block_until_ready((states[0], metrics))

    some(1)
    count = max(1, min(int(monitor.SECONDS / timed(lambda: some(1))), CAPACITY))
    return compare(
        bench,
        f"{workload}; {count} steps one after the other",
        Unit("seconds per step", count),
        lambda: some(count),
        program,
        arguments,
        operations * count,
        run={"count": count},
    )


def ragged(rows: np.ndarray, sides: int) -> RaggedArray:
    """Rows [S, N, …] of S shapes as a store's array; with two sides, the first half of a shape's rows is outside."""
    shapes, count = rows.shape[:2]
    counts = np.full((shapes, sides), count // sides, np.int64)
    return RaggedArray(rows.reshape(-1, *rows.shape[2:]), count * np.arange(shapes), counts)


def deepsdf_operations(specs: networks.Specs, points: int) -> float:
    """Operations of the matrix products in one step: forward, gradients of inputs except points, gradients of matrices.

    The code's products, which are computed once per shape, are left out.
    """
    inner = [0, *specs.widths[:-1]]  # inputs from the layer before
    outer = [3 * bool(specs.joined(k)) for k in range(len(specs.widths))]
    forward = sum((i + o) * width for i, o, width in zip(inner, outer, specs.widths, strict=True))
    to_inputs = sum(i * width for i, width in zip(inner, specs.widths, strict=True))
    return 2.0 * points * math.fsum([forward, forward, to_inputs])
