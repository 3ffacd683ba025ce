"""The report of a run: collects the contents of a run folder into the dataclasses of `jonet.evaluation.report`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jonet import config as configs
from jonet import model
from jonet.codes import Codes
from jonet.data import sampling
from jonet.data import store as stores
from jonet.evaluation import baseline, figures, report
from jonet.evaluation.measures import measure, number
from jonet.evaluation.metrics import scores_of
from jonet.evaluation.report import Chart, Gallery, Map, Part, Report, Row, Slice, Table
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.model import Model
from jonet.progress import Progress, tracked
from jonet.rendering import shading
from jonet.run import metrics_file
from jonet.run.state import RunState
from jonet.storage import names
from jonet.tasks import unseen
from jonet.tasks.base import Task
from jonet.training.log import Log
from jonet.version import __version__

SLICES = 12  # number of shapes whose signs are shown
THUMBNAILS = 120  # training shapes on the map of codes
LOSS = ("loss", "error", "prior", "kl")  # the loss and terms of it, which are in one chart
PROGRAM = {"step", "epoch", "gradient", "rate", "waited", "seconds"}  # numbers of log.jsonl that are not of the loss


def write(run: RunState) -> None:
    """Writes report.html of a run whose stage evaluate is done."""
    folder, task = run.folder, run.task
    store, trained = stores.open(folder / "store"), model.load(folder)
    values = metrics_file.read(folder)
    index = {name: i for i, name in enumerate(store.names)}
    codes = unseen_codes(run)
    train = unseen.training(store, trained)

    def shown(row: Row, entry: dict, group: str, path: Path, near: dict[int, list[int]]) -> Row:
        """A row with its parts and notes.  near: the nearest training shapes of test shapes."""
        i, predicted = index[row.name], read(path, row.name)
        parts = [*task.inputs(run.config, store, i)]
        if len((ground_truth := store.ground_truth(i)).vertices):  # not of points with occupancies alone
            parts.append(Part("ground_truth", "ground truth", ground_truth))
        parts.append(Part("predicted", "rebuilt", store.similarities[i].apply(predicted)))
        note = ""
        if group == "test":
            notes = []
            if near.get(i):
                nearest = near[i][0]
                parts.append(
                    Part("train", f"nearest training shape, {store.names[nearest]}", store.ground_truth(nearest))
                )
                notes.append("three nearest training shapes: " + ", ".join(store.names[j] for j in near[i]))
            notes += ["out of distribution"] if entry.get("out_of_distribution") else []
            notes += ["the fit has not converged"] if entry.get("converged") is False else []
            note = "; ".join(notes)
        scale = store.similarities[i].scale if group == "test" else None
        return dataclasses.replace(row, parts=parts, note=note, scale=scale)

    def gallery(title: str, entries: list[dict], group: str, pictures: int) -> Gallery:
        """A gallery in which only the rows with pictures have parts, since others are not in memory at once."""
        paths = mesh_paths(folder / "meshes" / group, [entry["name"] for entry in entries])
        rows = [
            Row(entry["name"], (), {k: v for k, v in scores_of(entry).items() if v is not None}) for entry in entries
        ]
        found = Gallery(title, rows, pictures=pictures)
        chosen = {row.name for _, row in found.chosen()}
        near = baseline.nearest(store, [index[name] for name in chosen], train, count=3) if group == "test" else {}
        each = tracked(zip(rows, entries, paths, strict=True), f"reading meshes/{group}", "shape", len(rows))
        rows = [shown(row, entry, group, path, near) if row.name in chosen else row for row, entry, path in each]
        return dataclasses.replace(found, rows=rows)

    tested = gallery("Unseen shapes", [] if codes is None else values["shapes"], "test", pictures=16)
    rebuilt_train = gallery("Training shapes", values["train"]["shapes"], "train", pictures=6)
    count = len(values["shapes"])
    scores = {"unseen shapes": values["summary"]} if tested.rows else {}
    if tested.rows and values["nearest"]["shapes"]:
        scores["baseline: nearest training shape"] = values["nearest"]["summary"]
    if rebuilt_train.rows:
        alone = trained.kind in ("classifier", "spline")  # each is its own network, and no code is rebuilt by another
        scores["shapes" if alone else "training shapes, from their trained codes"] = values["train"]["summary"]
    seconds, data = {name: done["seconds"] for name, done in run.done.items()}, Path(run.config.data)
    size = values["bytes"]
    with Progress(f"galleries of {task.name}", "gallery", None):
        galleries, tables = task.shown(run.config, trained, store, folder, values)
    page = Report(
        title=f"{task.title} on {(data.parent if data.name == 'store' else data).name}",
        summary=" ".join(
            filter(None, [task.summary(count if tested.rows else 0, unseen.count(trained)), below_baseline(values)])
        ),
        command=shlex.join(["python", *sys.argv]),
        device=values["device"],
        scores=scores,
        galleries=[
            *galleries,
            tested,
            rebuilt_train,
            *generated(folder / "meshes", store, train, run.config.generated),
        ],
        charts=charts(task, Log(folder / "log.jsonl").read()),
        tables=[
            *tables,
            Table(
                "Sizes",
                ("", "bytes"),
                [
                    ("network", size["network"]),
                    *([("code of one shape", size["code"])] if size["code"] else ()),
                    ("mesh (median)", size["mesh"]),
                ],
                note="The published decoder has 7.37 MB." if trained.kind == "deepsdf" else "",
            ),
        ],
        codes=code_map(store, trained, codes),
        slices=slices(store),
        skipped=store.skipped,
        seconds=seconds,
        details=details(run, values),
    )
    report.write(folder / "report.html", page)


def below_baseline(values: dict) -> str:
    """A sentence if the median IoU of unseen shapes is below that of their nearest training shapes; else "".

    values: the content of metrics.json.
    """
    ours, theirs = (found.get("iou", {}).get("median") for found in (values["summary"], values["nearest"]["summary"]))
    if ours is None or theirs is None or ours >= theirs:
        return ""
    return (
        f"The median IoU of unseen shapes, {number(ours)}, is below that of the baseline, {number(theirs)}: of the "
        "nearest training shape in place of each, unchanged."
    )


def unseen_codes(run: RunState) -> Codes | None:
    """The codes of the unseen shapes; None if there are none.  A codes.npz that the run did not write is ignored."""
    name = "codes.npz"
    return Codes.load(run.folder / name) if name in run.done["reconstruct"]["results"] else None


def generated(folder: Path, store, train, count: int) -> list[Gallery]:
    """Galleries of samples of the prior, each with its nearest training shape, and of an interpolation of two shapes.

    folder: of the meshes.  train: indices of all training shapes in the store; empty if one of them is not in it.
    count: of samples, and of meshes between the two shapes; those without a surface have no file.
    """
    meshes = {
        kind: read_all(folder / kind, [f"{kind}_{i}" for i in range(count)])
        for kind in ("sample", "between")
        if any((folder / kind).glob("*.ply"))
    }
    found = []
    if samples := [mesh for mesh in meshes.get("sample", ()) if len(mesh.faces)]:
        clouds = {mesh.name: sampling.surface(mesh, baseline.POINTS, np.random.default_rng(0))[0] for mesh in samples}
        near = baseline.nearest_to(clouds, store, train)
        nearest = {
            name: [Part("train", "nearest training shape", store.ground_truth(i)) for i in indices]
            for name, indices in near.items()
        }
        rows = [Row(mesh.name, [Part("predicted", "sample", mesh), *nearest[mesh.name]]) for mesh in samples]
        found.append(Gallery("Samples of the prior", rows, rank=None))
    if "between" in meshes:
        parts = [Part("predicted", f"{i / (count - 1):.0%}", mesh) for i, mesh in enumerate(meshes["between"])]
        note = "Codes at equal distances between those of two shapes, both included."
        found.append(Gallery("Interpolation between two shapes", [Row("between", parts)], note, rank=None))
    return found


def read_all(folder: Path, shape_names: Sequence[str]) -> list[Mesh]:
    """The meshes that `stages.write_all` wrote; without vertices and faces for shapes without a surface.

    shape_names: of all shapes of the folder, in the order in which they were written.
    """
    return [read(*each) for each in zip(mesh_paths(folder, shape_names), shape_names, strict=True)]


def mesh_paths(folder: Path, shape_names: Sequence[str]) -> list[Path]:
    """The files of shapes' meshes.  shape_names: of all shapes of the folder, also of those without a surface."""
    return [folder / f"{name}.ply" for name in names.unique(shape_names)]


def read(path: Path, name: str) -> Mesh:
    """The mesh of a shape under its name; without vertices and faces if there is no file, since it has no surface."""
    mesh = mesh_files.read(path) if path.exists() else Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
    return dataclasses.replace(mesh, name=name)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` indices spread evenly over a list."""
    return sorted({int(i) for i in np.linspace(0, length - 1, min(count, length)).round()})


def charts(task: Task, entries: list[dict]) -> list[Chart]:
    """The loss with its terms, a chart of every other metric of training, and the validation, from a log.

    A validation that is a loss, too, is in one chart with that of training.
    """
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return []
    names = dict.fromkeys(name for entry in steps for name, value in entry.items() if isinstance(value, int | float))
    lines = {
        name: ([entry["step"] for entry in steps if name in entry], [entry[name] for entry in steps if name in entry])
        for name in names.keys() - PROGRAM
    }
    positive = {name: all(value is not None and value > 0 for value in y) for name, (_, y) in lines.items()}
    checked = [entry for entry in entries if "validation" in entry]
    losses = {name: lines[name] for name in LOSS if positive.get(name)}
    if checked and task.validated_loss:
        held = ([entry["step"] for entry in checked], [-entry["validation"] for entry in checked])
        found = [Chart("Training and validation loss", losses | {"loss of held-out points": held})]
    else:
        found = [Chart("Training loss", losses)]
    others = [name for name in names if name in lines.keys() - set(LOSS) and lines[name] != lines["loss"]]
    found += [Chart(measure(name).label, {name: lines[name]}, log=positive[name]) for name in others]
    if checked and not task.validated_loss:
        line = ([entry["step"] for entry in checked], [entry["validation"] for entry in checked])
        found.append(Chart("Validation", {task.validated: line}, log=False))
    return found


def code_map(store, trained: Model, tested: Codes | None) -> Map | None:
    """Training codes and codes of unseen shapes, projected to two principal axes, with thumbnails of some shapes.

    tested: codes of the unseen shapes.  None if there are too few training codes for it.
    """
    train_codes = trained.codes
    if train_codes is None or len(train_codes) < 3 or train_codes.values.shape[1] < 2:
        return None
    values = np.concatenate([train_codes.values, *([] if tested is None else [tested.values])])
    all_names = [*train_codes.names, *(() if tested is None else tested.names)]
    pictured = dict(unseen.matched_training(store, trained))  # point on the map → index in the store
    if tested is not None:
        index = {name: i for i, name in enumerate(store.names)}
        pictured |= {len(train_codes) + row: index[name] for row, name in enumerate(tested.names)}
    groups = ["train"] * len(train_codes) + ["unseen"] * (len(all_names) - len(train_codes))
    points, fraction = figures.plane(values)
    chosen = set(evenly(len(all_names), THUMBNAILS))
    images: list[np.ndarray | None] = [None] * len(all_names)
    for i, index in tracked(pictured.items(), "pictures of the map of codes", "shape", len(pictured)):
        if i in chosen and len((mesh := store.mesh(index)).faces):
            images[i] = shading.shade(mesh, size=72, supersample=1)
    note = f"Two principal axes, which explain {fraction:.0%} of the codes' variance."
    return Map(points, all_names, groups, images, note)


def slices(store) -> list[Slice]:
    """Planar sections of the signed distances of some shapes' samples: shapes with doubtful signs first."""
    doubtful = [
        i for i, diagnosis in enumerate(store.diagnoses) if diagnosis is not None and diagnosis.method != "exact"
    ]
    others = [i for i, diagnosis in enumerate(store.diagnoses) if diagnosis is not None and i not in set(doubtful)]
    found = []
    for i in tracked(chosen := (doubtful + others)[:SLICES], "slices", "shape", len(chosen)):
        diagnosis, mesh = store.diagnoses[i], store.mesh(i)
        # the method that determined the signs of the samples; a fused mesh was diagnosed after the fusion
        method = diagnosis.method if store.sign in ("auto", "fusion") else store.sign
        solid = sampling.Solid(mesh, method)
        box = mesh.bounds + 0.04 * np.ptp(mesh.bounds, axis=0).max() * np.array([[-1], [1]])
        found.append(
            Slice(
                store.names[i], figures.section(solid.distances, box, 96), diagnosis.reason, diagnosis.method == "views"
            )
        )
    return found


def details(run: RunState, values: dict) -> dict:
    """Version, number of parameters, options and autotuned settings, as a flat dict."""
    flat = {}

    def put(prefix, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                put(f"{prefix}{name}.", value)
            else:
                flat[f"{prefix}{name}"] = str(value)

    put("", configs.to_dict(run.config))
    put("autotuned.", run.autotuned)
    return {"jonet": __version__, "parameters": values["parameters"], **flat}
