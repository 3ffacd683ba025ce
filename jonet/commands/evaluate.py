"""`evaluate`: meshes against the true ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from jonet.bulk import inputs
from jonet.bulk.job import is_job
from jonet.bulk.manifest import Manifest
from jonet.bulk.pipeline import reason
from jonet.commands.options import option
from jonet.data import files, meshes, observed
from jonet.errors import ConfigError
from jonet.evaluation import metrics
from jonet.storage import atomic
from jonet.storage.names import unique

SUFFIXES = (*files.SUFFIXES, *observed.CLOUDS, *observed.PICTURES)  # of what shapes are made of


def declare(verb) -> None:
    verb(
        "evaluate",
        evaluate,
        "scores meshes against true ones of the same names",
        option("made"),
        option("truth"),
        option("--json", help="file for all scores"),
    )


def evaluate(options) -> None:
    """Scores of meshes against the true ones of the same paths, each in units of the true one's longest side.

    True shapes without a mesh are said, meshes without a true shape, and those that could not be scored; the means are
    over the rest.
    """
    made, truths = _found(options.made, options.truth), _found(options.truth, options.made)
    if options.json:
        atomic.check_outputs([options.json], [*made.values(), *truths.values()])
        _check_replaceable(Path(options.json))
    pairs, missing, alone = matched(made, truths)
    if not pairs:
        raise ConfigError(f"no file in {options.made} has the name of one in {options.truth}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda pair: _score(*pair), pairs.values()))
    scores = {name: one for name, one in zip(pairs, found, strict=True) if not isinstance(one, str)}
    failed = {name: one for name, one in zip(pairs, found, strict=True) if isinstance(one, str)}
    if not scores:
        name, cause = next(iter(failed.items()))
        raise ConfigError(f"none of {len(pairs)} shapes could be scored; {name}: {cause}")
    summary = metrics.summary(list(scores.values()))
    if options.json:
        shapes = [{"name": name, **row} for name, row in scores.items()]
        told = {"missing": missing, "failed": failed, "without_truth": alone}
        atomic.write_json(options.json, {"summary": summary, "shapes": shapes, **told})
    print(metrics.table(summary, len(scores)))
    for names, what in (
        (missing, f"of {len(truths)} true shapes have no mesh and are not in the means"),
        (alone, f"of {len(made)} meshes have no true shape"),
    ):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
    for name, cause in failed.items():
        print(f"{name}: {cause}")


def matched(
    made: Mapping[str, Path], truths: Mapping[str, Path]
) -> tuple[dict[str, tuple[Path, Path]], list[str], list[str]]:
    """Pairs (made, true) by name, names of the true shapes without one, and of the made.

    Names are paths without suffix where that is enough, else what verbs call such a shape and its file; one file goes
    with one file, whatever they are called.
    """
    of_made, of_truths = _labels(made), _labels(truths)
    if len(made) == len(truths) == 1:
        return {of_made[key]: (path, *truths.values()) for key, path in made.items()}, [], []
    partner = {key: key for key in truths if key in made}
    called = inputs.names(truths)
    for names in (of_truths, called, dict(zip(called, unique(list(called.values())), strict=True))):
        left = {label: key for key, label in of_made.items() if key not in partner.values()}
        partner |= {key: left[name] for key, name in names.items() if key not in partner and name in left}
    pairs = {of_truths[key]: (made[partner[key]], truths[key]) for key in sorted(partner)}
    missing = [of_truths[key] for key in sorted(truths) if key not in partner]
    return pairs, missing, sorted(of_made[key] for key in made.keys() - set(partner.values()))


def _labels(keys: Iterable[str]) -> dict[str, str]:
    short = {key: key.removesuffix(_suffix(key)) for key in keys}
    count = Counter(short.values())
    return {key: label if count[label] == 1 else key for key, label in short.items()}


def _suffix(key: str) -> str:
    found = PurePosixPath(key).suffix
    return found if found.lower() in SUFFIXES else ""


def _found(folder: str, other: str) -> dict[str, Path]:
    """The meshes of a folder by their paths below it; of a bulk job, by those of the inputs that they were made of."""
    root = Path(folder)
    paths = meshes.find(root)
    if root.is_file():
        return {root.name: root}
    found = {
        path.relative_to(root).as_posix(): path for path in inputs.searched(paths, root, {os.path.realpath(other)})
    }
    if not is_job(root):
        return found
    rows = [row for rows in Manifest(root).rows().values() for row in rows if not row.file.startswith("shapes/")]
    sources = {row.output: row.file for row in rows}
    return {sources.get(place, place): path for place, path in found.items()}


def _score(made: Path, truth: Path) -> dict[str, float] | str:
    """The scores of a pair, or why there are none."""
    try:
        (found,) = metrics.evaluate(meshes.read(made), meshes.read(truth))["shapes"]
        return {name: value for name, value in found.items() if name != "name"}
    except Exception as error:  # whatever a damaged file does
        return reason(error)


def _check_replaceable(path: Path) -> None:
    """ConfigError where something else than scores is there."""
    if not os.path.lexists(path):
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"summary", "shapes"} <= found.keys():
        raise ConfigError(f"{path} is there already and holds no scores, so it is not replaced; choose another --json")
