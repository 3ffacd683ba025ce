"""The stages of a run: prepare → train → reconstruct → evaluate → report, the same for every task.

A stage is skipped when its result is there and nothing that it reads has changed (`learn.Record`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import pages
from experiments.pages import evenly, read_made
from jonet import learn, model, parallel
from jonet.codes import Codes
from jonet.data import meshes
from jonet.data import store as stores
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError
from jonet.evaluation import baseline, metrics
from jonet.learn import Record
from jonet.storage import atomic
from jonet.tasks import unseen

STAGES = ("prepare", "train", "reconstruct", "evaluate", "report")


def run(task, config, workdir: Path, stages=STAGES, command: str = "") -> None:
    """Runs the stages that are named and not done, then prints the table and where things lie."""
    if check := getattr(task, "check", None):  # of tasks that take a model trained before
        check(config)
    record = Record(workdir, task, config)
    print(f"{task.TITLE} · {parallel.describe()} · {record.folder}", file=sys.stderr, flush=True)
    for stage in STAGES:
        if stage not in stages:
            continue
        if record.is_done(stage):
            print(f"{stage}: done before", file=sys.stderr)
            continue
        missing = [name for name in STAGES[: STAGES.index(stage)] if not record.is_done(name)]
        if missing:
            raise ConfigError(f"stage {stage} needs {', '.join(missing)} first; add them to --stages")
        print(f"{stage} …", file=sys.stderr, flush=True)
        with record.doing(stage):
            DO[stage](record)
    if record.is_done("evaluate"):
        print_table(record)


def prepare(record: Record) -> None:
    learn.prepare(record)


def train(record: Record) -> None:
    learn.fit_network(record, stores.open(record.folder / "store"))


def reconstruct(record: Record) -> None:
    """Codes and meshes of the unseen shapes, and of some training shapes from their own codes."""
    store, trained = stores.open(record.folder / "store"), model.load(record.folder)
    trained = record.task.adjusted(record.config, trained)
    folder = record.folder / "meshes"
    shutil.rmtree(folder, ignore_errors=True)
    rows, codes = unseen.unseen(store, trained), None
    if len(rows):
        codes = record.task.observe(record.config, trained, store, rows)
        codes.save(record.folder / "codes.npz")
        write_all(trained.extract(codes), folder / "test")
    known = known_codes(record, store, trained)
    if known is not None:
        write_all(trained.extract(known), folder / "known")
    generate(record, trained, known if codes is None else codes)


def generate(record: Record, trained: model.Model, codes: Codes | None) -> None:
    """Meshes of samples of the network's prior, where it has one, and between the first two codes."""
    count, folder = record.config.generated, record.folder / "meshes"
    made = {}
    if count and trained.prior is not None:
        made["sample"] = trained.sample(count, record.config.seed)
    if count > 1 and codes is not None and len(codes) > 1:
        made["between"] = trained.interpolate(codes[0], codes[1], count)
    for kind, found in made.items():
        write_all([dataclasses.replace(mesh, name=f"{kind}_{i}") for i, mesh in enumerate(found)], folder / kind)


def write_all(made: list[Mesh], folder: Path) -> None:
    for mesh in made:
        if len(mesh.faces):
            meshes.write(mesh, folder / f"{mesh.name}.ply")


def known_codes(record: Record, store: stores.Store, trained: model.Model) -> Codes | None:
    """The training codes that are rebuilt for comparison, of shapes that the store holds; None where there are none."""
    found = unseen.known_codes(store, trained)
    chosen = [] if found is None else evenly(len(found), record.config.known)
    return found[chosen] if chosen else None


def evaluate(record: Record) -> None:
    """metrics.json: scores of the unseen shapes, of known ones, and of the nearest training shapes as a baseline."""
    store, trained = stores.open(record.folder / "store"), model.load(record.folder)
    codes_file = record.folder / "codes.npz"
    codes = Codes.load(codes_file) if codes_file.exists() else None
    index = {name: i for i, name in enumerate(store.names)}
    scoring = record.config.scores
    groups = {}
    for group, chosen in (("test", codes), ("known", known_codes(record, store, trained))):
        names = () if chosen is None else chosen.names
        folder = record.folder / "meshes" / group
        ways = [store.similarities[index[name]] for name in names]
        made = [way.apply(read_made(folder, name)) for way, name in zip(ways, names, strict=True)]
        truths = [store.truth(index[name]) for name in names]
        labelled = [store.labelled(index[name]) for name in names]
        scores = metrics.evaluate_all(list(zip(made, truths, strict=True)), scoring, labelled)
        groups[group] = [
            {"name": name, **row, "vertices": len(mesh.vertices), "faces": len(mesh.faces)}
            for name, row, mesh in zip(names, scores, made, strict=True)
        ]
    if codes is not None:
        about = dict(zip(codes.names, record.task.scored(record.config, trained, store, codes), strict=True))
        groups["test"] = [row | about[row["name"]] for row in groups["test"]]
    tested = [] if codes is None else [index[name] for name in codes.names]
    near = baseline.nearest(store, tested, unseen.training(store, trained))
    near = {i: found[0] for i, found in near.items() if found and len(store.mesh(found[0]).faces)}
    by_near = metrics.evaluate_all([(store.mesh(j), store.truth(i)) for i, j in near.items()], scoring)
    nearest = [
        {"name": store.names[i], "nearest": store.names[j], **scores}
        for (i, j), scores in zip(near.items(), by_near, strict=True)
    ]
    shapes = groups["test"] or groups["known"]
    parameters = jax.tree.leaves(trained.shared)
    values = {
        "task": record.task.NAME,
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
        "seconds": {name: done["seconds"] for name, done in record.done.items()},
    }
    if further := getattr(record.task, "further", None):  # of tasks that do more than rebuild shapes
        values |= further(record.config, trained, store, record.folder)
    atomic.write_json(record.folder / "metrics.json", values)


def report(record: Record) -> None:
    pages.write(record)


def print_table(record: Record) -> None:
    """The scores in plain units and in the papers', and where things lie."""
    values = json.loads((record.folder / "metrics.json").read_text())
    print(metrics.table(values["summary"], len(values["shapes"])))
    seconds = {name: done["seconds"] for name, done in record.done.items()}
    print(" · ".join(f"{name} {value:.0f} s" for name, value in {**seconds, "together": sum(seconds.values())}.items()))
    size = values["bytes"]
    print(f"network {size['network'] / 1e6:.2f} MB · code {size['code']} B · mesh {size['mesh'] / 1e3:.0f} kB (median)")
    for name in ("report.html", "meshes", "model"):
        print(f"{name:12s} {record.folder / name}")


DO: dict[str, Callable[[Record], None]] = {
    "prepare": prepare,
    "train": train,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "report": report,
}
