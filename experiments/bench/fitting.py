"""The row of fitting codes of unseen shapes: Gauss-Newton on all shapes at once against Adam on one after the other."""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments.bench.rows import Bench, Unit, compare
from experiments.bench.trained import save_weights
from jonet.inference.fitting import latents

PUBLISHED = 800  # Adam steps


def fit_codes(bench: Bench) -> dict:
    """Codes of 16 unseen shapes, with their errors on held-out samples.

    PyTorch's time is extrapolated from a part of its steps; the codes that are evaluated are fitted with all steps.
    """
    model, store = bench.trained.model, bench.trained.store
    shapes, count, steps, rows = (2, 1000, 20, 500) if bench.quick else (16, 8000, PUBLISHED, 8000)
    unseen = store.select("test")[:shapes]
    given, held = zip(*(divided(store.samples(i), count) for i in unseen), strict=True)
    code = np.zeros(model.config.latent_size, np.float32)
    samples = bench.folder / "samples.npz"
    np.savez(samples, **{f"{i:04d}": array for i, array in enumerate(given)})
    arguments = {
        "weights": save_weights(bench.folder / "fit.npz", model.network.shared["params"], code=code),
        "specs": dataclasses.asdict(model.config),
        "samples": str(samples),
        "whole": steps,
        "rows": rows,
    }
    codes = {}
    if bench.peers:
        codes["theirs"] = published_codes(bench, arguments | {"steps": steps}, list(range(len(unseen))))

    def ours():
        codes["ours"] = model.fit(list(given)).values

    workload = (
        f"{bench.trained.description}; {len(unseen)} unseen shapes, {count} samples each; theirs {steps} Adam "
        f"steps × {rows} rows, one shape after the other"
    )
    unit = Unit("seconds per shape", len(unseen))
    part = arguments | {"steps": max(1, steps // 20), "shapes": len(unseen)}
    result = compare(bench, workload, unit, ours, "fit", part, run={"shapes": [0]})
    errors = {name: held_out_errors(model, values, held) for name, values in codes.items()}
    result["held_out_loss"] = {name: float(each.mean()) for name, each in errors.items()}
    result["held_out_loss_by_shape"] = {name: [round(float(e), 6) for e in each] for name, each in errors.items()}
    if "theirs" in errors:
        result["loss_ratio"] = float(errors["ours"].mean() / errors["theirs"].mean())
    return result


def published_codes(bench: Bench, arguments: dict, shapes: list[int]) -> np.ndarray:
    """Codes [B, L] fitted by the published loop; this takes minutes, so they are kept in `bench.codes` if given."""
    file = bench.codes or bench.folder / "codes.npy"
    if not file.exists():
        bench.peers["theirs"].start("fit", arguments)
        bench.peers["theirs"].run(shapes=shapes, save=str(file))
    return np.load(file)


def held_out_errors(model, codes: np.ndarray, held) -> np.ndarray:
    """The mean clamped error [B] of each code on the held-out samples of its shape."""
    return latents.errors(model.network, codes, list(held), model.fitting)[0]


def divided(samples: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A shape's samples split at random into `count` for fitting and the rest for evaluation."""
    order = np.random.default_rng(0).permutation(len(samples))
    samples = np.asarray(samples)[order]
    return samples[:count], samples[count:]
