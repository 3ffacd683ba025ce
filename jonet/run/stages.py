"""The stages of a run: prepare → train → reconstruct → evaluate → report, the same for every task.

    prepare        store/, the samples of all shapes                      train.prepare
    train          model/, the trained network                            train.train_network
    reconstruct    codes.npz of unseen shapes, meshes/                    reconstruct
    evaluate       metrics.json, scores against the ground truth          evaluate
    report         report.html                                            report

A stage is skipped if it is done: its results exist and nothing that it reads has changed (`run.state`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jonet import model, parallel, resources
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data import workers
from jonet.data.sampling import METHODS, Solid
from jonet.errors import ConfigError
from jonet.evaluation import baseline, metrics
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.progress import Progress, tracked
from jonet.run import metrics_file, report_pages, state, train
from jonet.run.report_pages import evenly
from jonet.run.state import RunState
from jonet.tasks import unseen
from jonet.tasks.base import Task, TaskConfig
from jonet.tasks.names import STAGES
from jonet.wording import counted

TOGETHER = 64  # shapes whose meshes are in memory at once when they are extracted


def run(task: Task, config: TaskConfig, workdir: Path, stages: Sequence[str] = STAGES) -> None:
    """Runs the given stages except those that are done, then prints the scores and the paths of the results.

    All processes of a job prepare and train; the first one alone runs the later stages, while the others wait.
    """
    with state.opened(workdir, task, config) as run:
        print(f"{task.title} · {parallel.describe()} · {run.folder}", file=sys.stderr, flush=True)
        run.announce = lambda stage: print(f"{stage} …", file=sys.stderr, flush=True)
        for stage in [stage for stage in state.EXPENSIVE_STAGES if stage in stages]:
            if stage == "train" and "evaluate" in stages and run.is_done("prepare"):
                check_surfaces(run.task, stores.open(run.folder / "store"))
            do(run, stage)
        if parallel.is_main():
            with parallel.local_only() if parallel.is_multiprocess() else contextlib.nullcontext():
                for stage in [stage for stage in STAGES if stage in stages and stage not in state.EXPENSIVE_STAGES]:
                    do(run, stage)
                if run.is_done("evaluate"):
                    print_table(run)
    if not parallel.is_main():
        state.wait_for_end(run.folder)


def do(run: RunState, stage: str) -> None:
    """Runs a stage, or prints that it was done before; ConfigError if an earlier stage is not done."""
    missing = [name for name in STAGES[: STAGES.index(stage)] if not is_done(run, name)]
    if missing:
        raise ConfigError(f"stage {stage} needs {', '.join(missing)} first; add them to --stages")
    before = run.done.get(stage)
    if stage == "prepare":
        train.prepare(run)
    elif stage == "train":
        train.train_network(run, stores.open(run.folder / "store"))
    elif not run.is_done(stage):
        run.do(stage, lambda: state.stamps(WORK[stage](run)))
    # `begin` removes the entry of a stage, so an entry that is the same object means that nothing was run.
    if before is not None and run.done.get(stage) is before:
        print(f"{stage}: done before", file=sys.stderr)


def check_surfaces(task: Task, store: stores.Store) -> None:
    """ConfigError if a shape has neither a mesh nor points on its surface, which scores and nearest shapes need.

    A task that learns from points with occupancies is scored by such points.
    """
    bare = ~(store.arrays["faces"].counts.any(1) | store.arrays["surface_points"].counts.any(1))
    if task.learns_points:
        bare &= ~store.arrays["occupancy"].counts.any(1)
    if bare.any():
        raise ConfigError(
            f"no surface to be scored by: {bare.sum()} of {counted(len(store), 'shape')} (first "
            f"{store.names[int(bare.argmax())]}); put the surface samples and normalization parameters of the authors' "
            "program beside their samples, or leave out the evaluation with --stages=prepare,train,reconstruct"
        )


def is_done(run: RunState, stage: str) -> bool:
    """Whether a stage is done; for training also with the present content of store, given model and weights."""
    if stage != "train" or not run.is_done("train"):
        return run.is_done(stage)
    return run.is_done("train", run.inputs("train", stores.open(run.folder / "store")))


def reconstruct(run: RunState) -> list[Path]:
    """Fits or encodes the codes of unseen shapes, and extracts meshes; returns the paths of all files.

    Meshes are those of the unseen shapes, of some training codes, of samples of the prior, and between two codes.
    """
    store, trained = stores.open(run.folder / "store"), train.adjusted(run)
    folder, files = run.folder / "meshes", []
    rows, codes = unseen.unseen(store, trained), None
    if len(rows):
        with Progress("codes of unseen shapes", "shape", len(rows)):
            codes = run.task.observe(run.config, trained, store, rows)
        run.claim("reconstruct", [run.folder / "codes.npz"])
        codes.save(run.folder / "codes.npz")
        files += [run.folder / "codes.npz", *extract_all(run, trained, codes, folder / "test")]
    rebuilt = rebuilt_codes(run, store, trained)
    if rebuilt is not None:
        files += extract_all(run, trained, rebuilt, folder / "train")
    for kind, found in generated(run, trained, rebuilt if codes is None else codes).items():
        named = [dataclasses.replace(mesh, name=f"{kind}_{i}") for i, mesh in enumerate(found)]
        files += write_all(run, named, folder / kind)
    return files


def generated(run: RunState, trained: model.Model, codes: Codes | None) -> dict[str, list[Mesh]]:
    """Meshes by kind: "sample" from the network's prior, if it has one, and "between" the first two codes."""
    count, found = run.config.generated, {}
    if count and trained.prior is not None:
        with Progress("samples of the prior", "shape", count):
            found["sample"] = trained.sample(count, run.config.seed)
    if count > 1 and codes is not None and len(codes) > 1:
        with Progress("interpolation between two shapes", "shape", count):
            found["between"] = trained.interpolate(codes[0], codes[1], count)
    return found


def extract_all(run: RunState, trained: model.Model, codes: Codes, folder: Path) -> list[Path]:
    """Extracts and writes the meshes of codes as `write_all`, `TOGETHER` at a time."""
    paths = report_pages.mesh_paths(folder, codes.names)
    written = []
    with Progress(f"meshes/{folder.name}", "shape", len(codes)) as shown:
        for first in range(0, len(codes), TOGETHER):
            some = slice(first, first + TOGETHER)
            written += write_meshes(run, trained.extract(codes[some]), paths[some])
            shown.update(min(some.stop, len(codes)))
    return written


def write_all(run: RunState, meshes: list[Mesh], folder: Path) -> list[Path]:
    """Writes the meshes that have a surface as PLY where `report_pages.read_all` expects them; returns their paths."""
    return write_meshes(run, meshes, report_pages.mesh_paths(folder, [mesh.name for mesh in meshes]))


def write_meshes(run: RunState, meshes: list[Mesh], paths: list[Path]) -> list[Path]:
    """Writes the meshes that have a surface to the path of each; returns the paths of these."""
    written = {path: mesh for path, mesh in zip(paths, meshes, strict=True) if len(mesh.faces)}
    run.claim("reconstruct", written)
    return [mesh_files.write(mesh, path) for path, mesh in written.items()]


def rebuilt_codes(run: RunState, store: stores.Store, trained: model.Model) -> Codes | None:
    """At most `config.rebuilt_train` training codes, of shapes that are in the store; None if there are none."""
    found = unseen.rebuilt_codes(store, trained)
    if found is None:
        return None
    chosen = evenly(len(found), run.config.rebuilt_train)
    return found[chosen] if chosen else None


def evaluate(run: RunState) -> list[Path]:
    """Writes metrics.json, and the files of tasks that have more; returns their paths.

    Scores are those of unseen shapes, of rebuilt training shapes, and of a baseline: for each unseen shape the nearest
    training shape, scored as if it were the reconstruction.
    """
    store, trained = stores.open(run.folder / "store"), model.load(run.folder)
    codes = report_pages.unseen_codes(run)
    index = {name: i for i, name in enumerate(store.names)}
    scoring = run.config.scores
    groups = {}
    for group, chosen in (("test", codes), ("train", rebuilt_codes(run, store, trained))):
        shape_names = () if chosen is None else chosen.names
        paths = report_pages.mesh_paths(run.folder / "meshes" / group, shape_names)

        def scored(name: str, path: Path) -> dict:
            i = index[name]
            # Meshes are written in input units; scores are computed in the normalized frame, as the ground truth.
            transform = store.similarities[i]
            mesh = transform.apply(report_pages.read(path, name))
            labeled = run.task.labeled(run.config, store, i)
            arguments = mesh, ground_truth(store, i), scoring, labeled, transform.scale
            row = pool.submit(metrics.score, *arguments).result()
            return {"name": name, **row, "vertices": len(mesh.vertices), "faces": len(mesh.faces)}

        with workers.executor(len(shape_names)) as pool:
            groups[group] = in_threads(scored, f"scores of meshes/{group}", shape_names, paths)
    if codes is not None:
        with Progress("further scores of unseen shapes", "shape", len(codes)):
            extra = dict(zip(codes.names, run.task.scored(run.config, trained, store, codes), strict=True))
        groups["test"] = [row | extra[row["name"]] for row in groups["test"]]
    tested = [] if codes is None else [index[name] for name in codes.names]
    near = baseline.nearest(store, tested, unseen.training(store, trained))
    near = {i: found[0] for i, found in near.items() if found and len(store.mesh(found[0]).faces)}  # needs a mesh

    def compared(i: int, j: int) -> dict:
        arguments = store.mesh(j), ground_truth(store, i), scoring, None, store.similarities[i].scale
        scores = pool.submit(metrics.score, *arguments).result()
        return {"name": store.names[i], "nearest": store.names[j], **scores}

    with workers.executor(len(near)) as pool:
        nearest = in_threads(compared, "scores of nearest training shapes", near.keys(), near.values())
    shapes = groups["test"] or groups["train"]
    parameters = jax.tree.leaves(trained.network.stored)
    length = trained.config.latent_size  # without shared parameters, a code is all of a network
    alone = not parameters
    values = {
        "task": run.task.name,
        "device": parallel.describe(),
        "summary": metrics.summary(shapes),
        "shapes": shapes,
        "train": {"summary": metrics.summary(groups["train"]), "shapes": groups["train"]},
        "nearest": {"summary": metrics.summary(nearest), "shapes": nearest},
        "bytes": {
            "network": 4 * length if alone else sum(np.asarray(leaf).nbytes for leaf in parameters),
            "code": 0 if alone else 4 * length,
            "mesh": int(np.median([24 * row["vertices"] + 13 * row["faces"] for row in shapes] or [0])),
        },
        "parameters": length if alone else trained.network.num_parameters,
        "skipped": store.skipped,
        "seconds": {name: done["seconds"] for name, done in run.done.items()},
    }
    files = [run.folder / name for name in (metrics_file.NAME, *run.task.files)]
    run.claim("evaluate", files)
    with Progress(f"further scores of {run.task.name}", "part", None):
        values |= run.task.further(run.config, trained, store, run.folder)
    metrics_file.write(run.folder, values)
    return files


def in_threads(work: Callable[..., dict], what: str, names: Collection, others: Iterable) -> list[dict]:
    """`work` of each shape, one per core at a time: so only these shapes' meshes are in memory.

    what: the work in words.  names, others: its arguments of each shape.
    """
    with ThreadPoolExecutor(resources.cores()) as pool:
        return list(tracked(pool.map(work, names, others), what, "shape", len(names)))


def ground_truth(store: stores.Store, shape: int) -> Mesh | Solid:
    """The reference for the scores of a shape; its inside is decided by the same method as for its samples."""
    diagnosis, mesh = store.diagnoses[shape], store.ground_truth(shape)
    if diagnosis is None:
        return mesh
    return metrics.as_learned(mesh, store.sign if store.sign in METHODS else diagnosis.method)


def report(run: RunState) -> list[Path]:
    """Writes report.html and returns its path."""
    run.claim("report", [run.folder / "report.html"])
    report_pages.write(run)
    return [run.folder / "report.html"]


def print_table(run: RunState) -> None:
    """Prints the scores, in plain units and in those of the papers, times, sizes, and the paths of the results."""
    values = metrics_file.read(run.folder)
    print(metrics.table(values["summary"], len(values["shapes"])))
    seconds = {name: done["seconds"] for name, done in run.done.items()}
    print(" · ".join(f"{name} {value:.0f} s" for name, value in {**seconds, "total": sum(seconds.values())}.items()))
    size = values["bytes"]
    print(f"network {size['network'] / 1e6:.2f} MB · code {size['code']} B · mesh {size['mesh'] / 1e3:.0f} kB (median)")
    for name in ("report.html", "meshes", "model"):
        print(f"{name:12s} {run.folder / name}")


# The stages of the first process: functions that write the results and return their paths.
WORK: dict[str, Callable[[RunState], list[Path]]] = {
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "report": report,
}
