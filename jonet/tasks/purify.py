"""Cleaning clouds of points by rebuilding their shapes, as a defence of classifiers: an Occupancy Network sees a cloud
that was perturbed, and points of the surface that it makes take the cloud's place.

Wu, Duan, Wang, Pan, Zhu, Wang: IF-Defense, 3D adversarial point cloud defense via implicit function based restoration,
2020, with the network of Mescheder et al.: Occupancy Networks, CVPR 2019.

    python experiments/run.py --task=purify                 5 to 6 minutes on 2 cores: four perturbations
    python experiments/run.py --task=purify --model=RUN     with a network of onet_points (or purify) trained before

Training disturbs what the network sees by noise, missing parts and outliers, each from none to the strength that is
tested; of the adversary it sees nothing.  `--no-disturbed` trains on clean clouds.  Test shapes that a network trained
before has learned from are left out.

Of 30 unseen shapes, after noise, missing parts, outliers and the adversary alike: purified clouds lie nearer to the
clean surface than attacked ones, and the classifier is right again (outliers 0.33 to 1.0, adversary 0.57 to 1.0).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from scipy.spatial import cKDTree

from jonet import parallel
from jonet.data import sampling, strays
from jonet.data.splits import SPLITS
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Gallery, Part, Row
from jonet.evaluation.metrics import Scoring
from jonet.evaluation.report import Table
from jonet.model import Model, load
from jonet.storage import atomic
from jonet.tasks import onet, onet_points
from jonet.tasks.attacks import NAMES, Attacks, Classifier, attacked, disturbed
from jonet.tasks.onet import FRAME, VALIDATED, adjusted, inputs, model, observe, scored, usual_preset
from jonet.tasks.problem import Problem
from jonet.tasks.shapes import Shapes
from jonet.tasks.unseen import unseen

__all__ = ["FRAME", "VALIDATED", "adjusted", "inputs", "model", "observe", "scored", "usual_preset"]

NAME = "purify"
TITLE = "Clouds purified by Occupancy Networks"
TRUE = 10_000  # points of the clean surface that distances are measured to
SHOWN = 3  # shapes of each perturbation in the report
CLOUDS = "purified.npz"
FILES = (CLOUDS,)  # of a run folder, beside what every task leaves there


@dataclasses.dataclass(frozen=True)
class Config(onet_points.Config):
    """Options of the task; the comment beside each is its help."""

    NAME: ClassVar[str] = NAME
    data: str = "car,chair,guitar"  # the classifier's classes: families, or a folder with a folder of meshes for each
    model: str = ""  # run or model folder of a network from points trained before; without it one is trained
    disturbed: bool = True  # training sees noise, missing parts and outliers, up to the strengths of `attacks`
    attacks: Attacks = Attacks()
    learning: int = 800  # steps of the classifier
    spread: float = 1.1  # how far alone a point may stand before it is left out; inf keeps all (`strays.kept`)
    cells: int = 64  # of the box a side, where clouds are purified

    def __post_init__(self):
        super().__post_init__()
        if self.learning < 1 or self.cells < 2 or not self.spread > 0:
            raise ConfigError("learning is at least 1, cells at least 2 and spread above 0")
        if self.network.encoder == "idx":
            raise ConfigError("network.encoder is idx, which sees no clouds: purify needs one of points")

    def check_later(self) -> None:
        """As of all conditional tasks; and there must be clouds to attack."""
        super().check_later()
        if self.shapes.untested(self.data):
            raise ConfigError(
                f"{self.data} leaves no shape to test with (shapes.test is {self.shapes.test}), but purify attacks and "
                "cleans clouds of such shapes"
            )


FEWER = Scoring(volume_points=20_000, surface_points=20_000, chamfer_points=10_000)


def _purifying(config: onet_points.Config, **changes) -> Config:
    """The options of a network from points, and of purifying with it."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "data"}
    return Config(**parts | changes)


PRESETS = {
    "quick": _purifying(
        onet_points.PRESETS["quick"], shapes=Shapes(train=280, test=10, val_share=0.03), minutes=2.25, scores=FEWER
    ),
    "small": _purifying(onet_points.PRESETS["small"], shapes=Shapes(train=300, test=20, val_share=0.02)),
    "paper": _purifying(onet_points.PRESETS["paper"], shapes=Shapes(train=6_000, test=200, val_share=0.1)),
}

PARTS = {
    **onet.PARTS,
    "train": ("model", "disturbed", "attacks", *onet.PARTS["train"]),
    "evaluate": ("learning", "spread", "cells", *onet.PARTS["evaluate"]),
}


def check(config: Config) -> Model | None:
    """The model that was trained before, if one is named; ConfigError where it does not rebuild shapes from points."""
    if not config.model:
        return None
    trained = load(config.model)
    if trained.inputs is None or trained.inputs.kind != "points" or trained.frame != FRAME:
        raise ConfigError(f"model {config.model} does not take points; give a run of onet_points or purify")
    return trained


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem | Model:
    """Training on disturbed clouds, or the model that was trained before, which must not have seen all test shapes."""
    families(store, shapes)
    if not len(store.select("test")):
        raise ConfigError(
            f"{config.data} has no shape to test with, but purify attacks and cleans clouds of such shapes"
        )
    if trained := check(config):
        unseen(store, trained)
        return trained
    found = onet.problem(config, store, shapes, key, chosen)
    if not config.disturbed:
        return found
    return dataclasses.replace(found, loss=functools.partial(loss, loss=found.loss, attacks=config.attacks))


def loss(shared, own, statistics, batch, key, *, loss, attacks: Attacks):
    """Another loss of a batch whose clouds are disturbed first."""
    keys = jax.vmap(lambda i: parallel.fold(key, "disturbed", i))(batch.index)
    seen = jax.vmap(functools.partial(disturbed, attacks=attacks))(batch.inputs, keys)
    return loss(shared, own, statistics, batch._replace(inputs=seen), key)


def families(store: Store, shapes) -> tuple[list[str], np.ndarray]:
    """The classes, and that of each of these shapes (numbers in the store): its family, or the folder that it lies in.

    In a folder without folders the first part of a name tells its class (`chair_0007`).  Raises ConfigError where there
    are not several classes of several shapes.
    """
    first = [next((part for part in re.split("[_/]", name) if part not in SPLITS), name) for name in store.names]
    named = [category or part for category, part in zip(store.categories, first, strict=True)]
    classes = sorted(set(named))
    if len(classes) < 2 or len(classes) == len(named):
        found = f"{classes[0]!r} alone" if len(classes) < 2 else f"{len(classes)} of one shape each"
        raise ConfigError(
            f"purify needs several classes, but data has {found}; name several families (--data=chair,mug), or a "
            "folder with a folder of meshes for each class"
        )
    return classes, np.array([classes.index(named[i]) for i in shapes], np.int32)


def further(config: Config, trained: Model, store: Store, folder: Path) -> dict:
    """What attacks do to clouds of the unseen shapes, and purifying to these: a part of metrics.json; writes FILES.

    {"purify": {"classes", "attacks": {way: {"distance", "chamfer_l1", "accuracy"}: {"before", "after"}}, "shapes":
    [...]}}, with the way "none" for clouds that nobody touched: medians of the mean distance from the points to
    the clean surface and of both ways, and the share classified rightly.
    """
    known, tested = store.select("train"), unseen(store, trained)
    key = parallel.fold(jax.random.key(config.seed), NAME)
    count = config.inputs.points
    classes, labels = families(store, known)
    fewest = min(len(store.surface(i)[0]) for i in known)
    classifier = Classifier.trained(
        np.stack([store.surface(i)[0][:fewest] for i in known]),
        labels,
        len(classes),
        points=count,
        jitter=config.inputs.noise,
        steps=config.learning,
        key=parallel.fold(key, "classifier"),
    )
    labels = families(store, tested)[1]
    clean = np.stack([config.inputs.of(store, i, config.seed) for i in tested])
    rng = np.random.default_rng(config.seed)
    true = [sampling.surface(store.mesh(i), TRUE, rng)[0] for i in tested]
    clouds = {"none": list(clean)} | attacked(config.attacks, classifier, clean, labels, key)
    shapes = [{"name": store.names[i], "family": classes[label]} for i, label in zip(tested, labels, strict=True)]
    ways, kept = {}, {}
    for way, before in clouds.items():
        after = trained.purify(before, count, spread=config.spread, resolution=config.cells, seed=config.seed)
        ways[way] = {"distance": {}, "chamfer_l1": {}, "accuracy": {}}
        for when, those in (("before", before), ("after", after)):
            there, back = np.transpose([apart(*pair) for pair in zip(those, true, strict=True)])
            right = classifier(those) == labels
            ways[way]["distance"][when] = float(np.median(there))
            ways[way]["chamfer_l1"][when] = float(np.median((there + back) / 2))
            ways[way]["accuracy"][when] = float(right.mean())
            for shape, *values, good in zip(shapes, there, (there + back) / 2, right, strict=True):
                scores = dict(zip(("distance", "chamfer_l1"), map(float, values), strict=True))
                shape.setdefault(way, {})[when] = scores | {"right": bool(good)}
            kept |= {f"{way}/{when}/{i}": points for i, points in enumerate(those)}
    kept["names"] = np.array([shape["name"] for shape in shapes])  # not every name of a file can be one in an archive
    with atomic.open_file(folder / CLOUDS) as file:
        np.savez(file, **kept)
    return {NAME: {"classes": classes, "points": count, "attacks": ways, "shapes": shapes}}


def apart(points, surface) -> tuple[float, float]:
    """Mean distances from points [N, 3] to points all over a surface [M, 3], and from these to those; 1 without points,
    as of a missing mesh."""
    if not len(points):
        return 1.0, 1.0
    return cKDTree(surface).query(points)[0].mean(), cKDTree(points).query(surface)[0].mean()


def regained(ways: dict, way: str) -> float | None:
    """The share of the accuracy that an attack took that purifying gives back; None where it took none."""
    before, after = ways[way]["accuracy"]["before"], ways[way]["accuracy"]["after"]
    lost = ways["none"]["accuracy"]["before"] - before
    return (after - before) / lost if lost > 0 else None


def shown(
    config: Config, trained: Model, store: Store, folder: Path, values: dict
) -> tuple[list[Gallery], list[Table]]:
    """Galleries and tables of the report: what was done to some unseen shapes, what was made of it, and all figures."""
    found, index = values[NAME], {name: i for i, name in enumerate(store.names)}
    with np.load(folder / CLOUDS) as file:
        clouds = dict(file)
    rows, numbers = [], range(0, len(found["shapes"]), -(-len(found["shapes"]) // SHOWN))
    some = [found["shapes"][i] for i in numbers]
    for way in NAMES:
        before, after = ([clouds[f"{way}/{when}/{i}"] for i in numbers] for when in ("before", "after"))
        seen = [points[strays.kept(points, config.spread)] for points in before]
        rebuilt = trained.reconstruct(points=seen, resolution=config.cells)
        for shape, mesh, first, last in zip(some, rebuilt, before, after, strict=True):
            parts = [
                Part("input", "attacked", first),
                Part("made", "rebuilt", mesh),
                Part("made", "purified", last if len(last) else None),
                Part("truth", "truth", store.mesh(index[shape["name"]])),
            ]
            scores = {f"chamfer-L1 {when}": shape[way][when]["chamfer_l1"] for when in ("before", "after")}
            said = " → ".join("right" if shape[way][when]["right"] else "wrong" for when in ("before", "after"))
            rows.append(Row(f"{shape['name']}, {way}", parts, scores, f"classified: {said}"))
    ways = found["attacks"]
    header = ["", "distance before", "after", "Chamfer-L1 before", "after", "right before", "after", "regained"]
    columns = [(what, when) for what in ("distance", "chamfer_l1", "accuracy") for when in ("before", "after")]
    table = [[way, *(ways[way][what][when] for what, when in columns), regained(ways, way)] for way in ways]
    note = (
        f"{len(found['shapes'])} unseen shapes of {len(found['classes'])} families, {found['points']} points each; "
        "medians of the distance from a cloud's points to the clean surface and of both ways (never 0, since a few "
        "points are far from most of a surface), and the accuracy of a PointNet that learned from clean clouds. "
        "Regained: the share of the accuracy that the attack took. The adversary knows the classifier, not the network."
    )
    return [Gallery("Purified", rows, rank=None)], [Table("Attacked and purified", header, table, note)]


def summary(unseen: int, known: int | None) -> str:
    """The report's first sentence.  known: how many shapes the network learned from, None where it does not say."""
    learned = "" if known is None else f"; learned from {known} others"
    return (
        f"Clouds of {unseen} shapes never seen, perturbed in four ways and cleaned by rebuilding the shape{learned}. "
        f"Below, first, the shapes rebuilt from clouds that nobody touched."
    )
