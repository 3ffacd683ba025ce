"""Rows of mesh extraction: coarse to fine against a dense grid and against MISE, and many shapes in one batch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from scipy.spatial import cKDTree

from experiments.bench.classifying import occupancy_of
from experiments.bench.decoders import merged
from experiments.bench.rows import Bench, Unit, compare
from experiments.bench.trained import save_weights
from jonet.inference.surfaces import extraction
from jonet.networks.bound import BoundNetwork

SECONDS = Unit("seconds per mesh")


def mesh_sdf_256(bench: Bench) -> dict:
    """One mesh of a DeepSDF network; PyTorch evaluates all points of the grid, as published."""
    samples = 48 if bench.quick else 256
    model = bench.trained.model
    code = model.codes.values[0]
    weights = save_weights(bench.folder / "mesh.npz", model.network.shared["params"], code=code)
    arguments = {"weights": weights, "specs": dataclasses.asdict(model.config), "samples": samples, "part": 1 / 16}
    meshes = []

    def ours():
        meshes[:] = extraction.extract(model.field(code[None]), samples - 1, refine_steps=0, normals=False)

    workload = f"{bench.trained.description}; {samples} samples per side, vertices by linear interpolation, no normals"
    result = compare(bench, workload, SECONDS, ours, "mesh_distances", arguments, repeats=min(3, bench.repeats))
    with_all = Unit("s").figure(median_of(lambda: extraction.extract(model.field(code[None]), samples - 1)))
    result |= {"faces": len(meshes[0].faces), "ours_on_the_level_with_normals": with_all}
    return result | same_surface(bench, meshes[0], 2 / (samples - 1))


def mesh_occupancy_128(bench: Bench) -> dict:
    """One mesh of an occupancy decoder; PyTorch uses MISE, as published."""
    coarse = 8 if bench.quick else 32
    trained = occupancy_of(bench)
    network, shared, batch_stats, code = trained
    tree = merged(shared["params"]["decoder"], batch_stats["decoder"])
    specs = network.specs
    field = BoundNetwork(network, shared, batch_stats).fields(code[None])
    arguments = {
        "weights": save_weights(bench.folder / "octree.npz", tree, code=code),
        "width": specs.hidden_size,
        "coarse": coarse,
        "steps": 2,
        "level": float(field.per_shape["level"][0]),
        "side": 1.1,
    }
    meshes = []

    def ours():
        field = BoundNetwork(network, shared, batch_stats).fields(code[None])
        meshes[:] = extraction.extract(field, 4 * coarse, refine_steps=0, normals=False)

    workload = (
        f"decoder {specs.hidden_size} wide with conditional batch norm, trained here on one shape; {coarse} cells and "
        "two refinements; theirs MISE"
    )
    result = compare(bench, workload, SECONDS, ours, "mesh_occupancies", arguments)
    result |= {"faces": len(meshes[0].faces), "points": evaluated_points(field, 4 * coarse)}
    return result | same_surface(bench, meshes[0], 1.1 / (4 * coarse))


def meshes_batch_64(bench: Bench) -> dict:
    """Meshes of 64 codes in one call of jonet, against one call per code."""
    count, resolution = (4, 32) if bench.quick else (64, 128)
    model = bench.trained.model
    codes = model.codes.values[:count]

    def together():
        model.extract(codes, resolution, frame="normalized")

    def alone():
        for code in codes:
            model.extract(code[None], resolution, frame="normalized")

    model.extract(codes[:1], resolution, frame="normalized")
    workload = (
        f"{bench.trained.description}; {len(codes)} meshes at {resolution}³ in one call; theirs: jonet, one at a time"
    )
    unit = Unit("meshes per second", len(codes), rate=True)
    return compare(bench, workload, unit, together, sides={"theirs": alone}, repeats=min(3, bench.repeats))


def same_surface(bench: Bench, mine, cell: float) -> dict:
    """Distances between both sides' vertices, in grid cells; both interpolate linearly on edges of the same grid."""
    if not bench.peers:
        return {}
    bench.peers["theirs"].run(save=str(bench.folder / "mesh_theirs.npz"))
    with np.load(bench.folder / "mesh_theirs.npz") as theirs:
        tree = cKDTree(theirs["vertices"])
        to_theirs = tree.query(mine.vertices)[0] / cell
        to_ours = cKDTree(mine.vertices).query(theirs["vertices"])[0] / cell
        faces = len(theirs["faces"])
    return {
        "same_surface": {
            "vertices_within_0.001_cells": [float((d < 1e-3).mean()) for d in (to_theirs, to_ours)],
            "farthest_cells": [float(to_theirs.max()), float(to_ours.max())],
            "faces_theirs": faces,
        }
    }


def evaluated_points(field, resolution: int) -> int:
    """The number of points that jonet evaluates for one mesh."""
    grid, level = extraction.lattice(field, resolution), np.asarray(field.per_shape["level"])
    evaluator = extraction.FieldEvaluator(field, grid, level)
    extraction.locate(evaluator, "sparse", None, None)
    return evaluator.num_evaluations


def median_of(work, repeats: int = 3) -> float:
    """The median time of `work` in seconds, after one call that compiles."""
    import statistics

    from experiments.bench.rows import timed

    work()
    return statistics.median(timed(lambda: jax.block_until_ready(work())) for _ in range(repeats))
