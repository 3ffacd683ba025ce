"""The row of training time to a given quality, with the same network, data, batches and schedule on both sides."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from experiments.bench.rows import Bench, Unit, row, timed
from experiments.bench.trained import save_weights
from jonet import parallel
from jonet.data.sampling import Solid
from jonet.inference.fitting import latents
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.inference.fitting.prior import Prior
from jonet.networks.bound import BoundNetwork
from jonet.tasks import deepsdf
from jonet.training.loop import CAPACITY, Loop

WANTED = 0.90  # median IoU on unseen shapes
STEPS = 6000  # of a complete schedule
ROUNDS = 4  # in which both sides alternate
PART = 0.05  # fraction of the steps that the peer runs if it does not train to the end


def time_to_quality(bench: Bench) -> dict:
    """Time of a complete training of the preset quick of deepsdf, and the median IoU on unseen shapes.

    PyTorch's time is extrapolated from a part of the steps, unless `bench.whole` is set.
    """
    store, config = bench.trained.store, bench.trained.config
    steps = 20 if bench.quick else STEPS
    rows = store.select("train")
    key = parallel.fold_in(jax.random.key(0), "quality")
    setup = deepsdf.TASK.training_setup(config, store, rows, key, {"place": "resident"})
    loop = Loop(setup.loss, setup.optimizer.build(), setup.batches, key, lookup=setup.lookup)
    network = deepsdf.DeepSDFDecoder(config.network)
    ground_truths = ground_truth(store, 1000 if bench.quick else 20_000)

    state = loop.start(setup.shared, setup.per_shape)  # once to compile
    jax.block_until_ready(loop.advance(state, loop.batches.segment(0, 1)[0], 1, steps))
    arguments = peer_arguments(bench, config, store, rows, setup, steps)
    parts = {name: 1.0 if bench.whole and name == "theirs" else PART for name in bench.peers}
    answers = {name: peer.start("small_training", arguments) for name, peer in bench.peers.items()}
    state = loop.start(setup.shared, setup.per_shape)
    taken, rates = {name: [] for name in ["ours", *answers]}, []
    ends = np.linspace(0, steps, ROUNDS + 1).astype(int).tolist()

    def some(first: int, stop: int):
        nonlocal state
        while first < stop:
            data, count = loop.batches.segment(first, min(CAPACITY, stop - first))
            state, _, _ = loop.advance(state, data, count, steps)
            first += count
        jax.block_until_ready(state)

    for first, stop in zip(ends[:-1], ends[1:], strict=True):
        rates.append(bench.rate())
        taken["ours"].append(timed(lambda first=first, stop=stop: some(first, stop)) * steps / (stop - first))
        for name, peer in bench.peers.items():
            count = max(1, round(parts[name] * (stop - first)))
            taken[name].append(peer.run(count=count, save=str(bench.folder / f"{name}.npz"))["seconds"])
    scores = {
        "ours": quality(
            network, parallel.host(state.shared), loop.per_shape(state), store, ground_truths, config.fitting
        )
    }
    if bench.peers and bench.whole:
        shared, codes = read(bench.folder / "theirs.npz", setup.shared)
        scores["theirs"] = quality(network, shared, codes, store, ground_truths, config.fitting)
    batch = setup.autotuned
    workload = (
        f"{len(config.network.dims)}×{config.network.dims[0]}, code {config.network.latent_size}, {len(rows)} shapes, "
        f"{steps} steps of {batch['batch_shapes']} × {batch['batch_points']} points, {config.optimizer.name}, cosine; "
        f"median IoU of {len(ground_truths)} unseen shapes from {len(ground_truths[0][1])} points each"
    )
    return row(bench, workload, Unit("seconds of training"), taken, rates) | {
        "wanted_iou": WANTED,
        "median_iou": scores,
        "reached": {name: score >= WANTED for name, score in scores.items()},
        "part": parts,
        "setting": {name: answer["setting"] for name, answer in answers.items()},
    }


def peer_arguments(bench: Bench, config, store, rows, setup, steps: int) -> dict:
    """Arguments of the peer's program, with the same initial weights, samples and settings."""
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
        "batch": setup.autotuned["batch_shapes"],
        "points": setup.autotuned["batch_points"],
        "steps": steps,
        "rates": {
            name: [getattr(optimizer, name).initial, getattr(optimizer, name).final] for name in ("shared", "per_shape")
        },
        "weights": save_weights(bench.folder / "start.npz", setup.shared["params"], codes=np.asarray(setup.per_shape)),
    }


def read(path, like) -> tuple[dict, np.ndarray]:
    """Parameters that a peer saved, nested like `like`, and codes."""
    with np.load(path) as arrays:
        tree = {
            layer: {name: arrays[f"{layer}/{name}"].reshape(np.shape(leaf)) for name, leaf in leaves.items()}
            for layer, leaves in like["params"].items()
        }
        return {"params": tree}, arrays["codes"]


def ground_truth(store, count: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """For each unseen shape: index in the store, uniform points [N, 3] in its bounding box, labels inside [N] bool."""
    found = []
    for i in store.select("test"):
        solid = Solid(store.mesh(i))
        low, high = solid.mesh.bounds
        points = np.random.default_rng([0, int(i)]).uniform(low, high, (count, 3))
        found.append((int(i), points.astype(np.float32), solid.inside(points)))
    return found


def quality(network, shared, codes, store, ground_truths, fitting) -> float:
    """The median IoU of unseen shapes whose codes are fitted to their signed distances."""
    samples = [np.asarray(store.samples(i)) for i, _, _ in ground_truths]
    prior = Prior.of(codes, np.zeros(len(codes)))
    bound = BoundNetwork(network, shared)
    observed = observe(ObservedArrays.checked(samples), fitting)
    found = latents.fit(bound, observed, config=fitting, prior=prior, starts=codes)
    fields = bound.fields(found.values)
    inside = np.asarray(fields.contains(np.stack([points for _, points, _ in ground_truths])))
    true = np.stack([inside for _, _, inside in ground_truths])
    return float(np.median((inside & true).sum(1) / np.maximum((inside | true).sum(1), 1)))
