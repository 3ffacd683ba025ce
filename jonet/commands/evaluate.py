"""`evaluate`: scores of meshes against ground-truth meshes of the same names."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from jonet import resources
from jonet.bulk import inputs
from jonet.bulk.job import is_job
from jonet.bulk.manifest import Manifest
from jonet.bulk.pipeline import reason
from jonet.data import scans
from jonet.errors import ConfigError
from jonet.evaluation import metrics
from jonet.geometry import mesh_files, mesh_parsers, units
from jonet.progress import tracked
from jonet.run import metrics_file
from jonet.settings.metrics import MetricsConfig
from jonet.storage import atomic, search
from jonet.storage.names import unique
from jonet.wording import counted

METERS = (".glb", ".gltf")  # files that count in meters
SUFFIXES = (
    *mesh_parsers.SUFFIXES,
    *scans.CLOUDS,
    *scans.TABLES,
    *scans.PICTURES,
)  # of inputs from which meshes are reconstructed


def evaluate(options, given: set[str]) -> None:
    """The verb: prints scores of meshes and writes them as JSON.

    Lengths are in units of the longest side of each ground truth, deviations in those of the ground truths.  A mesh of
    GLB that is in meters is brought to the unit of its ground truth, where that is known.
    Pairs are matched by name (`matched`).  Prints ground-truth shapes without a mesh, meshes without a ground truth,
    and pairs that could not be scored; means are over the other pairs.
    """
    predicted, ground_truths = (
        _found(options.predicted, options.ground_truth),
        _found(options.ground_truth, options.predicted),
    )
    if options.json:
        atomic.check_outputs([options.json], [*predicted.values(), *ground_truths.values()])
        _check_replaceable(Path(options.json))
    pairs, missing, unmatched = matched(predicted, ground_truths)
    if not pairs:
        raise ConfigError(f"no file in {options.predicted} has the name of one in {options.ground_truth}")
    with ThreadPoolExecutor(resources.cores()) as pool:
        rows = pool.map(lambda pair: _score(pair[0], pair[1], options.scores, options.units), pairs.values())
        results = list(tracked(rows, "scores", "shape", len(pairs)))
    found = [row for row, _ in results]
    brought = Counter(unit for _, unit in results if unit)
    scores = {name: row for name, row in zip(pairs, found, strict=True) if not isinstance(row, str)}
    failed = {name: cause for name, cause in zip(pairs, found, strict=True) if isinstance(cause, str)}
    if not scores:
        name, cause = next(iter(failed.items()))
        raise ConfigError(f"none of {counted(len(pairs), 'shape')} could be scored; {name}: {cause}")
    summary = metrics.summary(list(scores.values()))
    if options.json:
        values = {"version": metrics_file.VERSION, "summary": summary}
        values["shapes"] = [{"name": name, **row} for name, row in scores.items()]
        values |= {"missing": missing, "failed": failed, "without_ground_truth": unmatched}
        atomic.write_json(options.json, values)
    unit = options.units or next(filter(None, (units.of_file(path) for _, path in pairs.values())), None)
    print(metrics.table(summary, len(scores), unit))
    for name, count in brought.items():
        words = counted(count, "mesh of GLB is in meters, and was", "meshes of GLB are in meters, and were")
        print(f"{words} compared in {name}")
    for names, what in (
        (missing, f"of {counted(len(ground_truths), 'ground-truth shape')} without a mesh, not in the means"),
        (unmatched, f"of {counted(len(predicted), 'mesh', 'meshes')} without a ground truth"),
    ):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
    for name, cause in failed.items():
        print(f"{name}: {cause}")


def matched(
    predicted: Mapping[str, Path], ground_truths: Mapping[str, Path]
) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """Pairs (predicted, ground truth) by name, names of unmatched ground truths, names of unmatched predicted meshes.

    Keys of both are paths within their folders.  They match if they are equal; else without suffixes, if that is
    unambiguous; else if the predicted file has the name that `fit`, `reconstruct` and `purify` give to the shape or its
    file.  Two single files match, whatever their names.
    """
    of_predicted, of_ground_truths = _labels(predicted), _labels(ground_truths)
    if len(predicted) == len(ground_truths) == 1:
        ((key, path),), (ground_truth,) = predicted.items(), ground_truths.values()
        return {of_predicted[key]: (path, ground_truth)}, [], []
    partner = {key: key for key in ground_truths if key in predicted}
    shape_names = inputs.names(ground_truths)
    file_names = dict(zip(shape_names, unique(list(shape_names.values())), strict=True))
    for names in (of_ground_truths, shape_names, file_names):  # each for what the ones before have not matched
        left = {label: key for key, label in of_predicted.items() if key not in partner.values()}
        partner |= {key: left[name] for key, name in names.items() if key not in partner and name in left}
    pairs = {of_ground_truths[key]: (predicted[partner[key]], ground_truths[key]) for key in sorted(partner)}
    missing = [of_ground_truths[key] for key in sorted(ground_truths) if key not in partner]
    return pairs, missing, sorted(of_predicted[key] for key in predicted.keys() - set(partner.values()))


def _labels(keys: Iterable[str]) -> dict[str, str]:
    """By path, the path without its suffix; with it if the short forms of several paths are equal."""
    short = {key: key.removesuffix(_suffix(key)) for key in keys}
    count = Counter(short.values())
    return {key: label if count[label] == 1 else key for key, label in short.items()}


def _suffix(key: str) -> str:
    found = PurePosixPath(key).suffix
    return found if found.lower() in SUFFIXES else ""


def _found(folder: str, other: str) -> dict[str, Path]:
    """The meshes of a folder (or one file) by their paths in it; of a bulk job, by the paths of its inputs.

    other: the folder that these meshes are compared to, which is not searched if it is within this one.
    """
    if len(places := search.matching(folder)) > 1:
        return {path.name: path for place in places for path in mesh_files.find(place)}
    (root,) = places
    paths = mesh_files.find(root)
    if root.is_file():
        return {root.name: root}
    found = {
        path.relative_to(root).as_posix(): path for path in inputs.searched(paths, root, {os.path.realpath(other)})
    }
    if not is_job(root):
        return found
    rows = [row for rows in Manifest(root).rows().values() for row in rows if not row.file.startswith("shapes/")]
    sources = {place: row.file for row in rows for place in row.files}
    return {sources.get(place, place): path for place, path in found.items()}


def _score(
    predicted: Path, ground_truth: Path, scoring: MetricsConfig, unit: str | None
) -> tuple[dict[str, float] | str, str | None]:
    """The scores of a pair, or the reason why it could not be scored, and the unit to which the first was brought.

    unit: of the ground truth; None for that which the file names, if it does.
    """
    brought = None
    try:
        mesh, truth = mesh_files.read(predicted), mesh_files.read(ground_truth)
        if predicted.suffix.lower() in METERS and ground_truth.suffix.lower() not in METERS:
            own = units.of_file(ground_truth) if unit is None else unit
            if own is not None and (scaled := units.from_meters(mesh, own, truth)) is not mesh:
                mesh, brought = scaled, own
        (found,) = metrics.evaluate(mesh, truth, scoring)["shapes"]
        return {name: value for name, value in found.items() if name != "name"}, brought
    except Exception as error:  # a damaged file may raise anything, and must not stop the others
        return reason(error), brought


def _check_replaceable(path: Path) -> None:
    """ConfigError if a file exists that does not hold scores, so that a wrong path cannot replace it."""
    if not os.path.lexists(path):
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"summary", "shapes"} <= found.keys():
        raise ConfigError(f"{path} exists and holds no scores, so it is not replaced; choose another --json")
