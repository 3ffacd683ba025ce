"""The stages of a run: prepare → train → reconstruct → evaluate → report, the same for every task.

A stage is skipped when its result is there and nothing that it reads has changed (`run.state`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import pages
from experiments.pages import evenly, read_all
from jonet import learn, model, parallel
from jonet.codes import Codes
from jonet.data import meshes
from jonet.data import store as stores
from jonet.data.meshes import Mesh
from jonet.data.sampling import METHODS, Solid
from jonet.errors import ConfigError
from jonet.evaluation import baseline, metrics
from jonet.run import state
from jonet.run.state import RunState
from jonet.storage import atomic, names
from jonet.tasks import unseen

STAGES = ("prepare", "train", "reconstruct", "evaluate", "report")


def run(task, config, workdir: Path, stages=STAGES) -> None:
    """Runs the stages that are named and not done, then prints the table and where the results are.

    Of several processes all prepare and train; what comes after is the first one's work, and the others wait for it.
    """
    with state.opened(workdir, task, config) as run:
        print(f"{task.TITLE} · {parallel.describe()} · {run.folder}", file=sys.stderr, flush=True)
        run.announce = lambda stage: print(f"{stage} …", file=sys.stderr, flush=True)
        for stage in [stage for stage in state.EXPENSIVE if stage in stages]:
            do(run, stage)
        if parallel.is_main():
            with parallel.alone() if parallel.together() else contextlib.nullcontext():
                for stage in [stage for stage in STAGES if stage in stages and stage not in state.EXPENSIVE]:
                    do(run, stage)
                if run.is_done("evaluate"):
                    print_table(run)
    if not parallel.is_main():
        state.wait_for_end(run.folder)


def do(run: RunState, stage: str) -> None:
    """Does a stage, or says that it was done before.  ConfigError where one before it is not done."""
    missing = [name for name in STAGES[: STAGES.index(stage)] if not is_done(run, name)]
    if missing:
        raise ConfigError(f"stage {stage} needs {', '.join(missing)} first; add them to --stages")
    before = run.done.get(stage)
    if stage == "prepare":
        learn.prepare(run)
    elif stage == "train":
        learn.train_network(run, stores.open(run.folder / "store"))
    elif not run.is_done(stage):
        run.do(stage, lambda: state.stamps(WORK[stage](run)))
    if before is not None and run.done.get(stage) is before:
        print(f"{stage}: done before", file=sys.stderr)


def is_done(run: RunState, stage: str) -> bool:
    """Whether a stage was done with these options, and training with the store, model and weights there are now."""
    if stage != "train" or not run.is_done("train"):
        return run.is_done(stage)
    return run.is_done("train", run.inputs("train", stores.open(run.folder / "store")))


def reconstruct(run: RunState) -> list[Path]:
    """Codes and meshes of the unseen shapes, and of some training shapes from their own codes."""
    store, trained = stores.open(run.folder / "store"), learn.adjusted(run)
    folder, made = run.folder / "meshes", []
    rows, codes = unseen.unseen(store, trained), None
    if len(rows):
        codes = run.task.observe(run.config, trained, store, rows)
        run.claim("reconstruct", [run.folder / "codes.npz"])
        codes.save(run.folder / "codes.npz")
        made += [run.folder / "codes.npz", *write_all(run, trained.extract(codes), folder / "test")]
    known = known_codes(run, store, trained)
    if known is not None:
        made += write_all(run, trained.extract(known), folder / "known")
    for kind, found in generated(run, trained, known if codes is None else codes).items():
        named = [dataclasses.replace(mesh, name=f"{kind}_{i}") for i, mesh in enumerate(found)]
        made += write_all(run, named, folder / kind)
    return made


def generated(run: RunState, trained: model.Model, codes: Codes | None) -> dict[str, list[Mesh]]:
    """Meshes of samples of the network's prior, where it has one, and between the first two codes."""
    count, found = run.config.generated, {}
    if count and trained.prior is not None:
        found["sample"] = trained.sample(count, run.config.seed)
    if count > 1 and codes is not None and len(codes) > 1:
        found["between"] = trained.interpolate(codes[0], codes[1], count)
    return found


def write_all(run: RunState, made: list[Mesh], folder: Path) -> list[Path]:
    """Writes the meshes that have a surface, under safe names (`pages.read_all`); returns their files."""
    called = names.unique([mesh.name for mesh in made])
    paths = {folder / f"{name}.ply": mesh for name, mesh in zip(called, made, strict=True) if len(mesh.faces)}
    run.claim("reconstruct", paths)
    return [meshes.write(mesh, path) for path, mesh in paths.items()]


def known_codes(run: RunState, store: stores.Store, trained: model.Model) -> Codes | None:
    """The training codes that are rebuilt for comparison, of shapes that the store holds; None where there are none."""
    found = unseen.known_codes(store, trained)
    chosen = [] if found is None else evenly(len(found), run.config.known)
    return found[chosen] if chosen else None


def evaluate(run: RunState) -> list[Path]:
    """metrics.json: scores of the unseen shapes, of known ones, and of the nearest training shapes as a baseline."""
    store, trained = stores.open(run.folder / "store"), model.load(run.folder)
    codes = pages.unseen_codes(run)
    index = {name: i for i, name in enumerate(store.names)}
    scoring = run.config.scores
    groups = {}
    for group, chosen in (("test", codes), ("known", known_codes(run, store, trained))):
        called = () if chosen is None else chosen.names
        folder = run.folder / "meshes" / group
        ways = [store.similarities[index[name]] for name in called]
        made = [way.apply(mesh) for way, mesh in zip(ways, read_all(folder, called), strict=True)]
        truths = [truth(store, index[name]) for name in called]
        labelled = [store.labelled(index[name]) for name in called]
        scores = metrics.evaluate_all(list(zip(made, truths, strict=True)), scoring, labelled)
        groups[group] = [
            {"name": name, **row, "vertices": len(mesh.vertices), "faces": len(mesh.faces)}
            for name, row, mesh in zip(called, scores, made, strict=True)
        ]
    if codes is not None:
        about = dict(zip(codes.names, run.task.scored(run.config, trained, store, codes), strict=True))
        groups["test"] = [row | about[row["name"]] for row in groups["test"]]
    tested = [] if codes is None else [index[name] for name in codes.names]
    near = baseline.nearest(store, tested, unseen.training(store, trained))
    near = {i: found[0] for i, found in near.items() if found and len(store.mesh(found[0]).faces)}
    by_near = metrics.evaluate_all([(store.mesh(j), truth(store, i)) for i, j in near.items()], scoring)
    nearest = [
        {"name": store.names[i], "nearest": store.names[j], **scores}
        for (i, j), scores in zip(near.items(), by_near, strict=True)
    ]
    shapes = groups["test"] or groups["known"]
    parameters = jax.tree.leaves(trained.shared)
    values = {
        "task": run.task.NAME,
        "device": parallel.describe(),
        "summary": metrics.summary(shapes),
        "shapes": shapes,
        "known": {"summary": metrics.summary(groups["known"]), "shapes": groups["known"]},
        "nearest": {"summary": metrics.summary(nearest), "shapes": nearest},
        "bytes": {
            "network": int(sum(leaf.nbytes for leaf in parameters)),
            "code": int(4 * trained.config.latent_size),
            "mesh": int(np.median([24 * row["vertices"] + 13 * row["faces"] for row in shapes] or [0])),
        },
        "parameters": int(sum(leaf.size for leaf in parameters)),
        "skipped": store.skipped,
        "seconds": {name: done["seconds"] for name, done in run.done.items()},
    }
    made = [run.folder / name for name in ("metrics.json", *getattr(run.task, "FILES", ()))]
    run.claim("evaluate", made)
    if further := getattr(run.task, "further", None):  # of tasks that do more than rebuild shapes
        values |= further(run.config, trained, store, run.folder)
    atomic.write_json(run.folder / "metrics.json", values)
    return made


def truth(store: stores.Store, shape: int) -> Mesh | Solid:
    """What a shape is scored against, with inside told as for its samples."""
    verdict, mesh = store.verdicts[shape], store.truth(shape)
    if verdict is None:
        return mesh
    return metrics.as_learned(mesh, store.sign if store.sign in METHODS else verdict.method)


def report(run: RunState) -> list[Path]:
    """report.html."""
    run.claim("report", [run.folder / "report.html"])
    pages.write(run)
    return [run.folder / "report.html"]


def print_table(run: RunState) -> None:
    """The scores in plain units and in the papers', and where things lie."""
    values = json.loads((run.folder / "metrics.json").read_text("utf-8"))
    print(metrics.table(values["summary"], len(values["shapes"])))
    seconds = {name: done["seconds"] for name, done in run.done.items()}
    print(" · ".join(f"{name} {value:.0f} s" for name, value in {**seconds, "together": sum(seconds.values())}.items()))
    size = values["bytes"]
    print(f"network {size['network'] / 1e6:.2f} MB · code {size['code']} B · mesh {size['mesh'] / 1e3:.0f} kB (median)")
    for name in ("report.html", "meshes", "model"):
        print(f"{name:12s} {run.folder / name}")


WORK: dict[str, Callable[[RunState], list[Path]]] = {
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "report": report,
}
