"""Rows of extraction by the devices' programs and of bulk jobs: with what the host does apart from the device."""

from __future__ import annotations

import shutil

import numpy as np

from experiments.bench import playback
from experiments.bench.rows import Bench, Unit, compare
from jonet import bulk
from jonet.data.sampling import surface
from jonet.geometry import mesh_files
from jonet.inference.surfaces import extraction


def extract_device(bench: Bench) -> dict:
    """Meshes by the programs of accelerators, on this machine's devices, against the backend `host`."""
    count, resolution = (2, 16) if bench.quick else (4, 128)
    model = bench.trained.model
    fields = model.field(model.codes.values[:count])

    def by(backend: str):
        return lambda: extraction.extract(fields, resolution, backend=backend)

    by("host")()
    workload = f"{bench.trained.description}; {count} meshes at {resolution}³; theirs: jonet, backend host"
    unit = Unit("seconds per mesh", count)
    result = compare(bench, workload, unit, by("device"), sides={"theirs": by("host")}, repeats=min(3, bench.repeats))
    apart = {name: playback.host(by(name), min(3, bench.repeats)) for name in ("device", "host")}
    return result | {"apart": {name: shares(found, count) for name, found in apart.items()}}


def bulk_fit(bench: Bench) -> dict:
    """A bulk job from point clouds in files to codes, against one call with the same clouds in memory."""
    return job(bench, meshes=False)


def bulk_reconstruct(bench: Bench) -> dict:
    """A bulk job from point clouds in files to meshes in files, against the same calls with clouds in memory."""
    return job(bench, meshes=True)


def job(bench: Bench, meshes: bool) -> dict:
    count, points, resolution = (2, 500, 16) if bench.quick else (16, 5000, 64)
    model, store = bench.trained.model, bench.trained.store
    folder, out, clouds = bench.folder / "clouds", bench.folder / "job", []
    folder.mkdir(exist_ok=True)
    for i in store.select("train")[:count]:
        cloud, normals = surface(store.mesh(i), points, np.random.default_rng(int(i)))
        clouds.append((cloud, normals))
        np.savetxt(folder / f"{i:04d}.xyz", np.column_stack([cloud, normals]), "%.6f")
    done = []

    def ours():
        shutil.rmtree(out, ignore_errors=True)
        more = {"resolution": resolution} if meshes else {}
        done[:] = [(bulk.reconstruct if meshes else bulk.fit)(model, folder, out, **more)]

    def alone():
        codes = model.fit(
            points=[cloud for cloud, _ in clouds], normals=[normals for _, normals in clouds], frame="input"
        )
        if meshes:
            for i, mesh in enumerate(model.extract(codes, resolution)):
                mesh_files.write(mesh, bench.folder / f"{i}.ply")

    alone()
    what = f"meshes at {resolution}³" if meshes else "codes"
    workload = (
        f"{bench.trained.description}; {count} clouds of {points} points in text files to {what}; theirs: jonet in "
        "one call, from memory"
    )
    unit = Unit(f"{'meshes' if meshes else 'codes'} per second", count, rate=True)
    result = compare(bench, workload, unit, ours, sides={"theirs": alone}, repeats=min(3, bench.repeats))
    outcome = done[0].outcome
    waited = {name: round(getattr(outcome, name), 3) for name in ("seconds", "solving", "reading", "writing")}
    return result | {"waited": waited, "apart": shares(playback.host(alone, min(3, bench.repeats)), count)}


def shares(found: playback.Host, count: int) -> dict[str, float]:
    """Milliseconds of each of `count` shapes, and programs of all."""
    each = {"host_ms": found.host, "host_wall_ms": found.wall, "device_ms": found.device}
    return {name: round(1e3 * seconds / count, 3) for name, seconds in each.items()} | {"programs": found.programs}
