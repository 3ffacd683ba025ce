"""Seconds of training to a stated quality: the default job's network, data, batches and schedule on both sides."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from experiments.bench.rows import Bench, Unit, row, timed
from experiments.bench.trained import save_weights
from jonet import parallel
from jonet.data.sampling import Solid
from jonet.inference import latents
from jonet.inference.prior import Prior
from jonet.networks.field import fold
from jonet.tasks import deepsdf
from jonet.training.loop import CAPACITY, Loop

WANTED = 0.90  # median IoU on unseen shapes
STEPS = 3000  # of a whole schedule


def time_to_quality(bench: Bench) -> dict:
    store, config = bench.trained.store, bench.trained.config
    steps = 20 if bench.quick else STEPS
    rows = store.select("train")
    key = parallel.fold(jax.random.key(0), "quality")
    problem = deepsdf.problem(config, store, rows, key, {"place": "resident"})
    loop = Loop(problem.loss, problem.optimizer.build(), problem.batches, key, lookup=problem.lookup)
    network = deepsdf.Decoder(config.network)
    truths = truth(store, 1000 if bench.quick else 20_000)

    warm = loop.start(problem.shared, problem.own)
    jax.block_until_ready(loop.advance(warm, loop.batches.segment(0, 1)[0], 1, steps))
    arguments = peer_arguments(bench, config, store, rows, problem, steps)
    answers = {}
    for name, peer in bench.peers.items():
        part = 1.0 if name == "theirs" else 0.1
        answers[name] = peer.start("small_training", arguments | {"part": part})
    learned = []

    def ours():
        state = loop.start(problem.shared, problem.own)
        for first in range(0, steps, CAPACITY):
            data, count = loop.batches.segment(first, min(CAPACITY, steps - first))
            state, metrics, _ = loop.advance(state, data, count, steps)
        jax.block_until_ready(metrics)
        learned[:] = [parallel.host(state.shared), loop.own(state)]

    rates = [bench.rate()]
    taken, parts = {"ours": [timed(ours)]}, {}
    for name, peer in bench.peers.items():
        save = {"save": str(bench.folder / "learned.npz")} if name == "theirs" else {}
        answer = peer.run(**save)
        taken[name], parts[name] = [answer["seconds"]], answer["part"]
        rates.append(bench.rate())
    scores = {"ours": quality(network, *learned, store, truths, config.fitting)}
    if bench.peers:
        shared, codes = read(bench.folder / "learned.npz", problem.shared)
        scores["theirs"] = quality(network, shared, codes, store, truths, config.fitting)
    workload = (
        f"{len(config.network.dims)}×{config.network.dims[0]}, code {config.network.latent_size}, {len(rows)} shapes, "
        f"{steps} steps of {config.batch_shapes} × {config.batch_points} points, {config.optimizer.name}, cosine; "
        f"median IoU of {len(truths)} unseen shapes from {len(truths[0][1])} points each"
    )
    return row(bench, workload, Unit("seconds of training"), taken, rates) | {
        "median_iou": scores,
        "reached": {name: score >= WANTED for name, score in scores.items()},
        "part": parts,
        "setting": {name: answer["setting"] for name, answer in answers.items()},
    }


def peer_arguments(bench: Bench, config, store, rows, problem, steps: int) -> dict:
    """The same start, samples and settings for the peer."""
    places = np.concatenate([np.arange(store.counts[i].sum()) + store.offsets[i] for i in rows])
    np.save(bench.folder / "train.npy", store.sdf[places])
    counts = store.counts[rows]
    offsets = np.cumsum(counts.sum(1)) - counts.sum(1)
    data = {"file": str(bench.folder / "train.npy"), "offsets": offsets.tolist(), "counts": counts.tolist()}
    learning, optimizer = config.learning, config.optimizer
    return {
        "specs": dataclasses.asdict(config.network),
        "shapes": len(rows),
        "data": data,
        "clamp": learning.clamp,
        "prior": learning.prior_weight,
        "bound": learning.code_bound or None,
        "ramp": learning.prior_ramp,
        "batch": config.batch_shapes,
        "points": config.batch_points,
        "steps": steps,
        "rates": {
            name: [getattr(optimizer, name).initial, getattr(optimizer, name).final] for name in ("shared", "own")
        },
        "weights": save_weights(bench.folder / "start.npz", problem.shared["params"], codes=np.asarray(problem.own)),
    }


def read(path, like) -> tuple[dict, np.ndarray]:
    """Parameters that a peer saved, as ours, and codes."""
    with np.load(path) as arrays:
        tree = {
            layer: {name: arrays[f"{layer}/{name}"].reshape(np.shape(leaf)) for name, leaf in leaves.items()}
            for layer, leaves in like["params"].items()
        }
        return {"params": tree}, arrays["codes"]


def truth(store, count: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Of each unseen shape its number, points spread evenly over the box around it, and whether they are inside."""
    found = []
    for i in store.select("test"):
        solid = Solid(store.mesh(i))
        low, high = solid.mesh.bounds
        points = np.random.default_rng([0, int(i)]).uniform(low, high, (count, 3))
        found.append((int(i), points.astype(np.float32), solid.inside(points)))
    return found


def quality(network, shared, codes, store, truths, fitting) -> float:
    """The median IoU over unseen shapes, their codes fitted to their distances."""
    samples = [np.asarray(store.samples(i)) for i, _, _ in truths]
    prior = Prior.of(codes, np.zeros(len(codes)))
    found = latents.fit(network, shared, {}, samples, config=fitting, prior=prior, starts=codes)
    fields = fold(network, shared, {}, found.values)
    inside = np.asarray(fields.contains(np.stack([points for _, points, _ in truths])))
    true = np.stack([inside for _, _, inside in truths])
    return float(np.median((inside & true).sum(1) / np.maximum((inside | true).sum(1), 1)))
