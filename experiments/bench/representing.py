"""The row of one shape from its samples, without a trained network: splines against features on grids."""

from __future__ import annotations

import time

import numpy as np

from experiments.bench.rows import Bench, Unit, compare
from jonet import representation
from jonet.data.families import make
from jonet.data.sampling import Solid
from jonet.geometry.diagnosis import diagnose, orient
from jonet.settings.representation import Representation

FAMILY = "aeroplane"
MOST = 8000  # steps of the longest schedule that PyTorch trains
TOGETHER = 4  # shapes in one call
PART = 0.2  # of PyTorch's steps that are timed again


def represent_shape(bench: Bench) -> dict:
    """A shape from signed distances; PyTorch trains schedules of twice the steps until one has our IoU.

    The finest grids of both have as many cells.  Also the shapes a second in one call with several.
    """
    resolution, near, count, most = (64, 20_000, 10_000, 125) if bench.quick else (128, 300_000, 500_000, MOST)
    options = Representation(resolution=resolution, near=near, uniform=near // 10)
    mesh = make(FAMILY, 1, 0)
    observed = representation.of_mesh(FAMILY, mesh, options)
    mesh, samples = observed.similarity.apply(orient(mesh, diagnose(mesh))), observed.samples
    rows = np.column_stack([samples.points, samples.distances]).astype(np.float32)
    points = np.random.default_rng(1).uniform(*mesh.bounds, (count, 3)).astype(np.float32)
    inside = Solid(mesh).inside(points)
    np.save(bench.folder / "shape.npy", rows)
    np.savez(bench.folder / "held.npz", points=points, inside=inside)
    found = []

    def ours():
        found[:] = representation.represent(samples=[rows], options=options)

    ours()
    predicted = found[0].contains(points)
    scores = {"ours": float((predicted & inside).sum() / (predicted | inside).sum())}
    files = {"samples": str(bench.folder / "shape.npy"), "held": str(bench.folder / "held.npz"), "fine": resolution}
    whole = most
    if bench.peers:
        bench.peers["theirs"].start("grids", files)
        reached = bench.peers["theirs"].run(whole=most, wanted=scores["ours"])
        scores["theirs"], whole = reached["iou"], reached["steps"]
    workload = (
        f"one {FAMILY}, {len(rows):,} distances, finest grid {resolution}³; IoU from {count:,} points; theirs "
        f"features on grids, two layers of 64, {whole} Adam steps of 8,192 samples"
    )
    part = {"whole": whole, "steps": max(1, round(PART * whole))}
    result = compare(bench, workload, Unit("seconds per shape"), ours, "grids", files, run=part)
    begun = time.perf_counter()
    representation.represent(samples=[rows] * TOGETHER, options=options)
    together = TOGETHER / (time.perf_counter() - begun)
    return result | {"iou": scores, "reached": scores.get("theirs", 0) >= scores["ours"], "shapes_per_second": together}
