"""From a code to a mesh: coarse to fine against dense grid and published octree, and many shapes in one call."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from scipy.spatial import cKDTree

from experiments.bench.classifying import occupancy_of
from experiments.bench.decoders import merged
from experiments.bench.rows import Bench, Unit, compare
from experiments.bench.trained import save_weights
from jonet.inference import surface
from jonet.networks.field import fold

SECONDS = Unit("seconds a mesh")


def mesh_sdf_256(bench: Bench) -> dict:
    samples = 48 if bench.quick else 256
    model = bench.trained.model
    code = model.codes.values[0]
    weights = save_weights(bench.folder / "mesh.npz", model.shared["params"], code=code)
    arguments = {"weights": weights, "specs": dataclasses.asdict(model.config), "samples": samples, "part": 1 / 16}
    made = []

    def ours():
        made[:] = surface.extract(model.field(code[None]), samples - 1, refine_steps=0, normals=False)

    workload = f"{bench.trained.said}; {samples} samples a side, vertices by linear interpolation, no normals"
    result = compare(bench, workload, SECONDS, ours, "mesh_distances", arguments, repeats=min(3, bench.repeats))
    with_all = Unit("s").figure(median_of(lambda: surface.extract(model.field(code[None]), samples - 1)))
    result |= {"faces": len(made[0].faces), "ours_on_the_level_with_normals": with_all}
    return result | same_surface(bench, made[0], 2 / (samples - 1))


def mesh_occupancy_128(bench: Bench) -> dict:
    coarse = 8 if bench.quick else 32
    trained = occupancy_of(bench)
    network, shared, statistics, code = trained
    tree = merged(shared["params"]["decoder"], statistics["decoder"])
    specs = network.specs
    field = fold(network, shared, statistics, code[None])
    arguments = {
        "weights": save_weights(bench.folder / "octree.npz", tree, code=code),
        "width": specs.hidden_size,
        "coarse": coarse,
        "steps": 2,
        "level": float(field.own["level"][0]),
        "side": 1.1,
    }
    made = []

    def ours():
        field = fold(network, shared, statistics, code[None])
        made[:] = surface.extract(field, 4 * coarse, refine_steps=0, normals=False)

    workload = (
        f"decoder {specs.hidden_size} wide with conditional batch norm, trained here on one shape; {coarse} cells and "
        "two refinements; theirs MISE"
    )
    result = compare(bench, workload, SECONDS, ours, "mesh_occupancies", arguments)
    result |= {"faces": len(made[0].faces), "points": asked_points(field, 4 * coarse)}
    return result | same_surface(bench, made[0], 1.1 / (4 * coarse))


def meshes_batch_64(bench: Bench) -> dict:
    count, resolution = (4, 32) if bench.quick else (64, 128)
    model = bench.trained.model
    codes = model.codes.values[:count]

    def together():
        model.extract(codes, resolution, frame="normalised")

    def alone():
        for code in codes:
            model.extract(code[None], resolution, frame="normalised")

    model.extract(codes[:1], resolution, frame="normalised")
    workload = f"{bench.trained.said}; {len(codes)} meshes at {resolution}³ in one call; theirs: jonet, one at a time"
    unit = Unit("meshes a second", len(codes), rate=True)
    return compare(bench, workload, unit, together, sides={"theirs": alone}, repeats=min(3, bench.repeats))


def same_surface(bench: Bench, mine, cell: float) -> dict:
    """How far our vertices lie from theirs, in cells: linear interpolation on the edges of one grid, by two tables."""
    if not bench.peers:
        return {}
    bench.peers["theirs"].run(save=str(bench.folder / "mesh_theirs.npz"))
    with np.load(bench.folder / "mesh_theirs.npz") as theirs:
        tree = cKDTree(theirs["vertices"])
        away = tree.query(mine.vertices)[0] / cell
        back = cKDTree(mine.vertices).query(theirs["vertices"])[0] / cell
        faces = len(theirs["faces"])
    return {
        "same_surface": {
            "vertices_within_0.001_cells": [float((d < 1e-3).mean()) for d in (away, back)],
            "farthest_cells": [float(away.max()), float(back.max())],
            "faces_theirs": faces,
        }
    }


def asked_points(field, resolution: int) -> int:
    """How many points we ask for one mesh."""
    asker = surface.Asker(field, surface.lattice(field, resolution), np.asarray(field.own["level"]))
    surface.locate(asker, "sparse", None, None)
    return asker.asked


def median_of(work, repeats: int = 3) -> float:
    import statistics

    from experiments.bench.rows import timed

    work()
    return statistics.median(timed(lambda: jax.block_until_ready(work())) for _ in range(repeats))
