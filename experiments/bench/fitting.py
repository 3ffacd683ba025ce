"""Codes of unseen shapes: Gauss-Newton on all of them at once, against the published loop on one after the other."""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments.bench.rows import Bench, Unit, row, timed
from experiments.bench.trained import save_weights
from jonet.inference import latents

PUBLISHED = 800  # Adam steps


def fit_codes(bench: Bench) -> dict:
    model, store = bench.trained.model, bench.trained.store
    shapes, count, steps, rows = (2, 1000, 20, 500) if bench.quick else (16, 8000, PUBLISHED, 8000)
    unseen = store.select("test")[:shapes]
    given, held = zip(*(divided(store.samples(i), count) for i in unseen), strict=True)
    found = []

    def ours():
        found[:] = [model.fit(list(given))]

    ours()
    taken, rates = {"ours": []}, []
    loss = {}
    codes = {name: [] for name in bench.peers}
    if bench.peers:
        code = np.zeros(model.config.latent_size, np.float32)
        weights = save_weights(bench.folder / "fit.npz", model.shared["params"], code=code)
        samples = bench.folder / "samples.npz"
        np.savez(samples, **{f"{i:04d}": array for i, array in enumerate(given)})
        arguments = {"weights": weights, "specs": dataclasses.asdict(model.config), "samples": str(samples)}
        # the codes of the tuned peer are judged, so it takes all steps; the other's time is that of a part
        parts = {"theirs": steps, "theirs_default": max(1, steps // 20)}
        for name, peer in bench.peers.items():
            peer.start("fit", arguments | {"steps": parts[name], "whole": steps, "rows": rows})
            taken[name] = []
    peaks, peer_parts = {}, {}
    for i in range(len(unseen)):
        rates.append(bench.rate())
        if i < bench.repeats or not bench.peers:
            taken["ours"].append(timed(ours) / len(unseen))
        for name, peer in bench.peers.items():
            if name == "theirs_default" and i >= bench.repeats:
                continue
            answer = peer.run(shapes=[i], save=str(bench.folder / "codes.npy"))
            taken[name].append(answer["seconds"])
            codes[name].append(np.load(bench.folder / "codes.npy")[0])
            peaks[name], peer_parts[name] = round(answer["peak_gb"], 3), answer["part"]
    for name, values in {"ours": found[0].values, **{k: v for k, v in codes.items() if k == "theirs" and v}}.items():
        config = dataclasses.replace(model.fitting, clamp=0.1)
        errors, _ = latents.errors(model.network, model.shared, {}, np.asarray(values), list(held), config)
        loss[name] = errors
    result = row(
        bench,
        f"{bench.trained.said}; {len(unseen)} unseen shapes, {count} samples each; theirs {steps} Adam steps × {rows} "
        f"rows, one shape after the other",
        Unit("seconds a shape"),
        taken,
        rates,
    )
    result |= {"held_out_loss": {name: float(errors.mean()) for name, errors in loss.items()}, "peak_gb": peaks}
    result["part"] = peer_parts
    if "theirs" in loss:
        result["loss_ratio"] = float(loss["ours"].mean() / loss["theirs"].mean())
        result["loss_by_shape"] = {name: [round(float(e), 6) for e in errors] for name, errors in loss.items()}
    return result


def divided(samples: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A shape's samples: `count` that are given, and the others, by which codes are judged."""
    order = np.random.default_rng(0).permutation(len(samples))
    samples = np.asarray(samples)[order]
    return samples[:count], samples[count:]
