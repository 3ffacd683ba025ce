"""What a run's report shows: gathers a run folder into the dataclasses of `jonet.evaluation.report`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

import jonet
from jonet import config as configs
from jonet import model
from jonet.codes import Codes
from jonet.data import meshes, sampling, views
from jonet.data import store as stores
from jonet.data.meshes import Mesh
from jonet.evaluation import baseline, figures, report
from jonet.evaluation.report import Chart, Gallery, Map, Part, Report, Row, Slice, Table
from jonet.model import Model
from jonet.run.state import RunState
from jonet.storage import names
from jonet.tasks import unseen
from jonet.training.log import Log

SLICES = 12  # shapes whose signs are shown
THUMBNAILS = 120  # training shapes on the map of codes


def write(record: RunState) -> None:
    """Writes report.html."""
    folder, task = record.folder, record.task
    store, trained = stores.open(folder / "store"), model.load(folder)
    values = json.loads((folder / "metrics.json").read_text())
    index = {name: i for i, name in enumerate(store.names)}
    codes = unseen_codes(record)
    train = unseen.training(store, trained)
    near = baseline.nearest(store, [index[name] for name in codes.names] if codes else [], train, count=3)

    def row(entry: dict, group: str, made: Mesh) -> Row:
        i = index[entry["name"]]
        parts = [
            *task.inputs(record.config, store, i),
            Part("truth", "truth", store.truth(i)),
            Part("made", "rebuilt", store.similarities[i].apply(made)),
        ]
        note = ""
        if group == "test":
            said = []
            if near.get(i):
                nearest = near[i][0]
                parts.append(Part("known", f"nearest training shape, {store.names[nearest]}", store.truth(nearest)))
                said.append("three nearest training shapes: " + ", ".join(store.names[j] for j in near[i]))
            said += ["a stranger to the space"] if entry.get("stranger") else []
            said += ["the fit had not converged"] if entry.get("converged") is False else []
            note = "; ".join(said)
        return Row(entry["name"], parts, {k: v for k, v in entry.items() if isinstance(v, float)}, note)

    def rows(entries: list[dict], group: str) -> list[Row]:
        made = read_all(folder / "meshes" / group, [entry["name"] for entry in entries])
        return [row(entry, group, mesh) for entry, mesh in zip(entries, made, strict=True)]

    tested = [] if codes is None else rows(values["shapes"], "test")
    known = rows(values["known"]["shapes"], "known")
    count = len(values["shapes"])
    scores = {"unseen shapes": values["summary"]} if tested else {}
    if tested and values["nearest"]["shapes"]:
        scores["the nearest training shape instead"] = values["nearest"]["summary"]
    if known:
        scores["known shapes, from their own codes"] = values["known"]["summary"]
    seconds = {name: done["seconds"] for name, done in record.done.items()}
    size = values["bytes"]
    shown = getattr(task, "shown", None)  # of tasks that do more than rebuild shapes
    galleries, tables = shown(record.config, trained, store, folder, values) if shown else ((), ())
    page = Report(
        title=f"{task.TITLE} on {Path(record.config.data).name}",
        summary=task.summary(count if tested else 0, unseen.count(trained)),
        command=shlex.join(["python", *sys.argv]),
        device=values["device"],
        scores=scores,
        galleries=[
            *galleries,
            Gallery("Unseen shapes", tested),
            Gallery("Known shapes", known, pictures=6),
            *generated(folder / "meshes", store, train, record.config.generated),
        ],
        charts=charts(task, Log(folder / "log.jsonl").read()),
        tables=[
            *tables,
            Table(
                "What it takes",
                ("", "bytes"),
                [("network", size["network"]), ("code of a shape", size["code"]), ("mesh (median)", size["mesh"])],
                note="The published decoder takes 7.37 MB." if trained.kind == "deepsdf" else "",
            ),
        ],
        codes=code_map(store, trained, codes),
        slices=slices(store),
        skipped=store.skipped,
        seconds=seconds,
        details=details(record, values),
    )
    report.write(folder / "report.html", page)


def unseen_codes(record: RunState) -> Codes | None:
    """The codes of the unseen shapes that the run found; None where it has none, whatever file lies there."""
    name = "codes.npz"
    return Codes.load(record.folder / name) if name in record.done["reconstruct"]["results"] else None


def generated(folder: Path, store, train, count: int) -> list[Gallery]:
    """Samples of the prior beside the nearest training shape of each, and the way between two shapes in one row.

    train: indices of the shapes that the network learned from, none where they are not all here.  count: how many of
    each were asked for; what has no surface was not written.
    """
    made = {
        kind: read_all(folder / kind, [f"{kind}_{i}" for i in range(count)])
        for kind in ("sample", "between")
        if any((folder / kind).glob("*.ply"))
    }
    found = []
    if samples := [mesh for mesh in made.get("sample", ()) if len(mesh.faces)]:
        clouds = {mesh.name: sampling.surface(mesh, baseline.POINTS, np.random.default_rng(0))[0] for mesh in samples}
        near = baseline.nearest_to(clouds, store, train)
        known = {
            name: [Part("known", "nearest training shape", store.truth(i)) for i in found]
            for name, found in near.items()
        }
        rows = [Row(mesh.name, [Part("made", "sample", mesh), *known[mesh.name]]) for mesh in samples]
        found.append(Gallery("Samples of the prior", rows, rank=None))
    if "between" in made:
        parts = [Part("made", f"{i / (count - 1):.0%}", mesh) for i, mesh in enumerate(made["between"])]
        note = "Codes evenly between those of two shapes, both ends included."
        found.append(Gallery("From one shape to another", [Row("between", parts)], note, rank=None))
    return found


def read_all(folder: Path, called: Sequence[str]) -> list[Mesh]:
    """The meshes that `stages.write_all` wrote, by their names; without faces where there was no surface."""
    found = []
    for name, file in zip(called, names.unique(called), strict=True):
        path = folder / f"{file}.ply"
        mesh = meshes.read(path) if path.exists() else Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
        found.append(dataclasses.replace(mesh, name=name))
    return found


def evenly(length: int, count: int) -> list[int]:
    """At most `count` indices spread evenly over a list."""
    return sorted({int(i) for i in np.linspace(0, length - 1, min(count, length)).round()})


def charts(task: ModuleType, entries: list[dict]) -> list[Chart]:
    """Loss curves and validation from a log."""
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return []
    names = [name for name in ("loss", "error", "prior", "kl") if all((entry.get(name) or 0) > 0 for entry in steps)]
    x = [entry["step"] for entry in steps]
    found = [Chart("Training loss", {name: (x, [entry[name] for entry in steps]) for name in names})]
    checked = [entry for entry in entries if "validation" in entry]
    if checked:
        line = ([entry["step"] for entry in checked], [entry["validation"] for entry in checked])
        found.append(Chart("Validation", {task.VALIDATED: line}, log=False))
    return found


def code_map(store, trained: Model, tested: Codes | None) -> Map | None:
    """Training codes and those of unseen shapes on their plane of principal axes, with thumbnails."""
    known = trained.codes
    if known is None or len(known) < 3 or known.values.shape[1] < 2:
        return None
    values = np.concatenate([known.values, *([] if tested is None else [tested.values])])
    names = [*known.names, *(() if tested is None else tested.names)]
    pictured = dict(unseen.known(store, trained))  # place on the map: number in the store
    if tested is not None:
        pictured |= {len(known) + row: store.names.index(name) for row, name in enumerate(tested.names)}
    groups = ["known"] * len(known) + ["unseen"] * (len(names) - len(known))
    points, share = figures.plane(values)
    chosen = set(evenly(len(names), THUMBNAILS))
    images = [None] * len(names)
    for i, index in pictured.items():
        if i in chosen and len((mesh := store.mesh(index)).faces):
            images[i] = views.shade(mesh, size=72, supersample=1)
    note = f"Two principal axes, which hold {share:.0%} of the codes' variance."
    return Map(points, names, groups, images, note)


def slices(store) -> list[Slice]:
    """Slices through the signs of training data: doubtful verdicts first, then others."""
    doubtful = [i for i, verdict in enumerate(store.verdicts) if verdict is not None and verdict.method != "exact"]
    others = [i for i, verdict in enumerate(store.verdicts) if verdict is not None and i not in set(doubtful)]
    found = []
    for i in (doubtful + others)[:SLICES]:
        verdict, mesh = store.verdicts[i], store.mesh(i)
        method = verdict.method if store.sign in ("auto", "fusion") else store.sign
        solid = sampling.Solid(mesh, method)
        box = mesh.bounds + 0.04 * np.ptp(mesh.bounds, axis=0).max() * np.array([[-1], [1]])
        found.append(
            Slice(store.names[i], figures.section(solid.distances, box, 96), verdict.reason, verdict.method != "exact")
        )
    return found


def details(record: RunState, values: dict) -> dict:
    """Settings and versions, flat."""
    flat = {}

    def put(prefix, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                put(f"{prefix}{name}.", value)
            else:
                flat[f"{prefix}{name}"] = str(value)

    put("", configs.to_dict(record.config))
    put("chosen.", record.chosen)
    return {"jonet": jonet.__version__, "parameters": values["parameters"], **flat}
