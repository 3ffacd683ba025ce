"""`evaluate`: meshes against the true ones."""

from __future__ import annotations

from jonet.commands.options import option
from jonet.data import meshes
from jonet.errors import ConfigError
from jonet.evaluation import metrics
from jonet.storage import atomic


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
    """Scores of meshes against the true ones of the same names, each in units of the true one's longest side."""
    made, truths = ({p.stem: p for p in meshes.find(folder)} for folder in (options.made, options.truth))
    if len(made) == len(truths) == 1:
        truths = dict(zip(made, truths.values(), strict=True))
    names = sorted(made.keys() & truths.keys())
    if not names:
        raise ConfigError(f"no file in {options.made} has the name of one in {options.truth}")
    pairs = []
    for name in names:
        truth, way = meshes.normalize(meshes.orient(meshes.read(truths[name])), "sphere")
        pairs.append((way.apply(meshes.read(made[name])), truth))
    scores = metrics.evaluate_all(pairs)
    if options.json:
        shapes = [{"name": name, **row} for name, row in zip(names, scores, strict=True)]
        atomic.write_json(options.json, {"summary": metrics.summary(scores), "shapes": shapes})
    print(metrics.table(metrics.summary(scores), len(scores)))
