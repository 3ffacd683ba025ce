"""Rows of decoders that are evaluated at many points, for one code or condition."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from experiments.bench.rows import Bench, Unit, compare
from experiments.bench.trained import save_weights
from jonet.networks import deepsdf, occupancy
from jonet.networks.bound import BoundNetwork

RATE = "points per second"


def sdf_decoder(bench: Bench) -> dict:
    """DeepSDF's decoder of the published size, with random weights."""
    specs = deepsdf.Specs(latent_size=16, dims=(64,) * 8) if bench.quick else deepsdf.Specs()
    count = 4096 if bench.quick else 262_144
    network = deepsdf.DeepSDFDecoder(specs)
    code = np.random.default_rng(0).normal(size=specs.latent_size).astype(np.float32) / specs.latent_size**0.5
    shared = jax.jit(network.init)(jax.random.key(0), code[None], np.zeros((1, 1, 3), np.float32))
    weights = save_weights(bench.folder / "sdf.npz", shared["params"], code=code)
    matrices = BoundNetwork(network, shared).fields(code[None]).shared["kernels"]
    return measured(
        bench,
        f"{len(specs.dims)}×{specs.dims[0]}, code {specs.latent_size}, one code, {count} points",
        (network, shared, {}, code),
        np.random.default_rng(1).uniform(-1, 1, (count, 3)),
        matrices,
        "distances",
        {"weights": weights, "specs": dataclasses.asdict(specs)},
    )


def occupancy_decoder(bench: Bench) -> dict:
    """The decoder of Occupancy Networks with conditional batch norm, of the published size, with random weights."""
    width, condition, count = (64, 32, 4096) if bench.quick else (256, 256, 100_000)
    specs = occupancy.Specs(encoder="idx", c_dim=condition, hidden_size=width)
    network = occupancy.OccupancyNetwork(specs)
    shared, batch_stats = scattered(network.start(jax.random.key(0)))
    code = np.random.default_rng(0).normal(size=condition).astype(np.float32)
    tree = merged(shared["params"]["decoder"], batch_stats["decoder"])
    weights = save_weights(bench.folder / "occupancy.npz", tree, code=code)
    matrices = BoundNetwork(network, shared, batch_stats).fields(code[None]).shared
    return measured(
        bench,
        f"conditional batch norm, {width} wide, 5 blocks, condition {condition}, one condition, {count} points",
        (network, shared, batch_stats, code),
        np.random.default_rng(1).uniform(-0.55, 0.55, (count, 3)),
        [matrices["first"], *matrices["kernels"], matrices["last"]],
        "occupancies",
        {"weights": weights, "width": width},
    )


def measured(bench: Bench, workload, trained, points, matrices, program: str, arguments: dict) -> dict:
    """The row of a decoder, with the largest difference between both sides' values.

    trained: (network, parameters, batch_stats, code [L]).  points [N, 3].  matrices: of the folded network, whose
    products are counted as operations.  program, arguments: of the peer.
    """
    points = points.astype(np.float32)
    np.save(bench.folder / "points.npy", points)
    network, shared, batch_stats, code = trained
    values = []

    def ours():
        field = BoundNetwork(network, shared, batch_stats).fields(code[None])[0]
        values[:] = [np.asarray(field(points))]

    unit = Unit(RATE, len(points), rate=True)
    operations = 2 * len(points) * sum(math.prod(matrix.shape) for matrix in matrices)
    arguments = {**arguments, "points": str(bench.folder / "points.npy")}
    result = compare(bench, workload, unit, ours, program, arguments, operations)
    if bench.peers:
        bench.peers["theirs"].run(save=str(bench.folder / "values.npy"))
        result["difference"] = float(np.abs(np.load(bench.folder / "values.npy") - values[0]).max())
    return result


def scattered(trees, seed: int = 0):
    """Parameters and batch_stats with noise: half of the initial values are zeros, which a product could skip."""
    rng = np.random.default_rng(seed)
    shared, batch_stats = (jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape), tree) for tree in trees)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), (shared, batch_stats))


def merged(parameters: dict, batch_stats: dict) -> dict:
    """One nested dict of parameters and batch_stats."""
    both = dict(parameters)
    for name, value in batch_stats.items():
        both[name] = merged(both.get(name, {}), value) if isinstance(value, dict) else value
    return both
