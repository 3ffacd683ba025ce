"""Purification of point clouds as a defense of classifiers: an Occupancy Network reconstructs the shape of a perturbed
cloud, and points sampled on the reconstructed surface replace the cloud.

Wu, Duan, Wang, Pan, Zhu, Wang: IF-Defense, 3D adversarial point cloud defense via implicit function based restoration,
2020, with the network of Mescheder et al.: Occupancy Networks, CVPR 2019.

    python experiments/run.py --task=purify                 four perturbations, 5 to 6 minutes on 2 cores
    python experiments/run.py --task=purify --model=RUN     with a trained network of onet_points or purify

Training perturbs the network's inputs by noise, missing parts and outliers, each of a random strength up to the tested
one, but not by the adversary.  `--no-corrupt` trains on clean clouds.  Test shapes that a given network was trained on
are left out.

Results on 30 unseen shapes, for noise, missing parts, outliers and the adversary alike: purified clouds are nearer to
the clean surface than attacked ones, and the classifier's accuracy recovers (outliers 0.33 to 1.0, adversary 0.57 to
1.0).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.spatial import KDTree

from jonet import parallel
from jonet.data import sampling
from jonet.data.splits import SPLITS
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Gallery, Part, Row
from jonet.evaluation.report import Table
from jonet.geometry import outliers
from jonet.model import Model, load
from jonet.settings.metrics import MetricsConfig
from jonet.storage import atomic
from jonet.tasks import onet, onet_points
from jonet.tasks.attacks import NAMES, Attacks, Classifier, attacked, corrupt
from jonet.tasks.onet import Onet
from jonet.tasks.onet_points import OnetPoints
from jonet.tasks.setup import TrainingSetup
from jonet.tasks.shapes import Shapes
from jonet.tasks.unseen import unseen
from jonet.wording import counted

SURFACE_POINTS = 10_000  # points on the clean surface that distances are measured to
LEARNED_POINTS = 4096  # points of each training shape, at most, that the classifier learns from
SHOWN = 3  # shapes per perturbation in the report
CLOUDS = "purified.npz"


@dataclasses.dataclass(frozen=True)
class Config(onet_points.Config):
    """Options of the purification of point clouds."""

    data: str = "car,chair,guitar"  # the classes: procedural families, or a folder with one folder of meshes per class
    model: str = ""  # run or model folder of a trained onet_points or purify network; empty: one is trained
    corrupt: bool = True  # train on clouds with noise, missing parts and outliers, up to the strengths in `attacks`
    attacks: Attacks = Attacks()  # strengths of the perturbations
    learning: int = 800  # training steps of the classifier, 1 or more
    # outliers are points whose distance to their neighbors exceeds the mean by this many standard deviations; above 0,
    # inf keeps all points
    spread: float = 1.1
    cells: int = 64  # grid cells per side of the box when clouds are purified, 2 or more

    def __post_init__(self):
        super().__post_init__()
        if self.learning < 1 or self.cells < 2 or not self.spread > 0:
            raise ConfigError("learning must be at least 1, cells at least 2 and spread above 0")
        if self.network.encoder == "idx":
            raise ConfigError("network.encoder is idx, which takes no point clouds; purify needs an encoder of points")

    def unread(self) -> dict[str, str]:
        """As for all conditional tasks, and settings of training beside a given model."""
        if not self.model:
            return super().unread()
        training = {"corrupt", *Onet.parts["train"]} - {"seed", "inputs"}
        return super().unread() | dict.fromkeys(training, f"model is {self.model}, so no network is trained")

    def check_later(self) -> None:
        """As for all conditional tasks; and there must be test shapes."""
        super().check_later()
        if self.shapes.untested(self.data):
            raise ConfigError(
                f"{self.data} leaves no shape to test with (shapes.test is {self.shapes.test}), but purify evaluates "
                "on clouds of test shapes"
            )


FEWER = MetricsConfig(volume_points=20_000, surface_points=20_000, chamfer_points=10_000)


def _purifying(config: onet_points.Config, **changes) -> Config:
    """The options of onet_points as options of purify, with some changed."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "data"}
    return Config(**parts | changes)


def loss(shared, per_shape, batch_stats, batch, key, *, loss, attacks: Attacks):
    """The given loss of a batch after its clouds, inputs [S, N, 3], are corrupted."""
    keys = jax.vmap(lambda i: parallel.fold_in(key, "disturbed", i))(batch.index)
    inputs = jax.vmap(functools.partial(corrupt, attacks=attacks))(batch.inputs, keys)
    return loss(shared, per_shape, batch_stats, batch._replace(inputs=inputs), key)


def families(store: Store, shapes) -> tuple[list[str], np.ndarray]:
    """The names of the classes, and the class of each of these shapes, [K] int32.  shapes [K]: indices in the store.

    A shape's class is its family or the folder that it is in; in a folder without folders, the first part of its name
    (`chair_0007`).  Raises ConfigError unless there are several classes of several shapes.
    """
    first = [next((part for part in re.split("[_/]", name) if part not in SPLITS), name) for name in store.names]
    named = [category or part for category, part in zip(store.categories, first, strict=True)]
    classes = sorted(set(named))
    if len(classes) < 2 or len(classes) == len(named):
        found = f"only {classes[0]!r}" if len(classes) < 2 else f"{len(classes)} of one shape each"
        raise ConfigError(
            f"purify needs several classes, but data has {found}; give several families (--data=chair,mug), or a "
            "folder with one folder of meshes per class"
        )
    return classes, np.array([classes.index(named[i]) for i in shapes], np.int32)


def distances(points, surface) -> tuple[float, float]:
    """Mean distance from points [N, 3] to points of a surface [M, 3], and from these to those.

    Both are 1 for a cloud without points, as for a missing mesh.
    """
    if not len(points):
        return 1.0, 1.0
    return KDTree(surface).query(points)[0].mean(), KDTree(points).query(surface)[0].mean()


def regained(attacks: dict, attack: str) -> float | None:
    """The fraction of the accuracy lost by an attack that purification regains; None if none was lost."""
    before, after = attacks[attack]["accuracy"]["before"], attacks[attack]["accuracy"]["after"]
    lost = attacks["none"]["accuracy"]["before"] - before
    return (after - before) / lost if lost > 0 else None


class Purify(Onet[Config]):
    """Occupancy Networks from points, and how well they clean perturbed clouds."""

    name = "purify"
    title = "Clouds purified by Occupancy Networks"
    config = Config
    files = (CLOUDS,)
    presets = {
        "quick": _purifying(
            OnetPoints.presets["quick"],
            shapes=Shapes(train=280, test=10, val_fraction=0.03),
            minutes=2.25,
            scores=FEWER,
            samples=onet.SAMPLES,  # of the box alone, with which its results were measured
            points_sampling="stratified",
            ema_decay=0.0,
        ),
        "small": _purifying(OnetPoints.presets["small"], shapes=Shapes(train=300, test=20, val_fraction=0.02)),
        "paper": _purifying(
            OnetPoints.presets["paper"], shapes=Shapes(train=6_000, test=200, val_fraction=0.1, sign="fusion")
        ),
    }
    parts = {
        **Onet.parts,
        "train": ("model", "corrupt", "attacks", *Onet.parts["train"]),
        "evaluate": ("learning", "spread", "cells", *Onet.parts["evaluate"]),
    }

    def check_store(self, config: Config, store: Store) -> None:
        """As for all tasks; and there must be several classes, and shapes to test with."""
        super().check_store(config, store)
        families(store, ())
        if not len(store.select("test")):
            raise ConfigError(f"{config.data} has no shape to test with, but purify evaluates on clouds of test shapes")

    def given_model(self, config: Config) -> Model | None:
        """The model named by the option `model`; ConfigError if it does not take points."""
        if not config.model:
            return None
        trained = load(config.model)
        if trained.inputs is None or trained.inputs.kind != "points" or trained.frame != self.frame:
            raise ConfigError(f"model {config.model} does not take points; give a run of onet_points or purify")
        return trained

    def training_setup(self, config: Config, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """As for all conditional tasks, but of perturbed clouds."""
        found = super().training_setup(config, store, shapes, key, autotuned)
        if not config.corrupt:
            return found
        return dataclasses.replace(found, loss=functools.partial(loss, loss=found.loss, attacks=config.attacks))

    def further(self, config: Config, trained: Model, store: Store, folder: Path) -> dict[str, Any]:
        """Attacks and purifies clouds of the unseen shapes: returns an entry of metrics.json, and writes `files`.

        {"purify": {"classes", "points", "attacks": {attack: {"distance", "chamfer_l1", "accuracy"}: {"before",
        "after"}}, "shapes": [...]}}, with the attack "none" for unchanged clouds.  distance: median of the mean
        distance from a cloud's points to the clean surface.  chamfer_l1: median of the mean over both directions.
        accuracy: fraction of the clouds classified correctly.  Before and after purification.
        """
        train, tested = store.select("train"), unseen(store, trained)
        key = parallel.fold_in(jax.random.key(config.seed), self.name)
        count = config.inputs.points
        classes, labels = families(store, train)
        fewest = min(LEARNED_POINTS, *(len(store.surface(i)[0]) for i in train))
        classifier = Classifier.trained(
            np.stack([store.surface(i)[0][:fewest] for i in train]),
            labels,
            len(classes),
            points=count,
            jitter=config.inputs.noise,
            steps=config.learning,
            key=parallel.fold_in(key, "classifier"),
        )
        labels = families(store, tested)[1]
        clean = np.stack([config.inputs.of(store, i, config.seed) for i in tested])
        rng = np.random.default_rng(config.seed)
        surfaces = [sampling.surface(store.mesh(i), SURFACE_POINTS, rng)[0] for i in tested]
        clouds = {"none": list(clean)} | attacked(config.attacks, classifier, clean, labels, key)
        shapes = [{"name": store.names[i], "family": classes[label]} for i, label in zip(tested, labels, strict=True)]
        attacks, arrays = {}, {}
        for attack, before in clouds.items():
            after = trained.purify(before, count, spread=config.spread, resolution=config.cells, seed=config.seed)
            attacks[attack] = {"distance": {}, "chamfer_l1": {}, "accuracy": {}}
            for when, each in (("before", before), ("after", after)):
                to_surface, to_cloud = np.transpose([distances(*pair) for pair in zip(each, surfaces, strict=True)])
                correct = classifier(each) == labels
                attacks[attack]["distance"][when] = float(np.median(to_surface))
                attacks[attack]["chamfer_l1"][when] = float(np.median((to_surface + to_cloud) / 2))
                attacks[attack]["accuracy"][when] = float(correct.mean())
                for shape, *values, right in zip(shapes, to_surface, (to_surface + to_cloud) / 2, correct, strict=True):
                    scores = dict(zip(("distance", "chamfer_l1"), map(float, values), strict=True))
                    shape.setdefault(attack, {})[when] = scores | {"right": bool(right)}
                arrays |= {f"{attack}/{when}/{i}": points for i, points in enumerate(each)}
        arrays["names"] = np.array([shape["name"] for shape in shapes])  # not every file name is possible in an archive
        with atomic.open_file(folder / CLOUDS) as file:
            np.savez(file, **arrays)
        return {self.name: {"classes": classes, "points": count, "attacks": attacks, "shapes": shapes}}

    def shown(
        self, config: Config, trained: Model, store: Store, folder: Path, values: dict
    ) -> tuple[list[Gallery], list[Table]]:
        """Galleries and tables of the report: some attacked and purified clouds, and the metrics of every attack."""
        found, index = values[self.name], {name: i for i, name in enumerate(store.names)}
        with np.load(folder / CLOUDS) as file:
            clouds = dict(file)
        rows, numbers = [], range(0, len(found["shapes"]), -(-len(found["shapes"]) // SHOWN))
        some = [found["shapes"][i] for i in numbers]
        for attack in NAMES:
            before, after = ([clouds[f"{attack}/{when}/{i}"] for i in numbers] for when in ("before", "after"))
            inliers = [points[outliers.inlier_mask(points, config.spread)] for points in before]
            rebuilt = trained.reconstruct(points=inliers, resolution=config.cells)
            for shape, mesh, first, last in zip(some, rebuilt, before, after, strict=True):
                parts = [
                    Part("input", "attacked", first),
                    Part("predicted", "rebuilt", mesh),
                    Part("predicted", "purified", last if len(last) else None),
                    Part("ground_truth", "ground truth", store.mesh(index[shape["name"]])),
                ]
                scores = {f"chamfer-L1 {when}": shape[attack][when]["chamfer_l1"] for when in ("before", "after")}
                said = " → ".join(
                    "correct" if shape[attack][when]["right"] else "wrong" for when in ("before", "after")
                )
                rows.append(Row(f"{shape['name']}, {attack}", parts, scores, f"classified: {said}"))
        attacks = found["attacks"]
        header = ["", "distance before", "after", "Chamfer-L1 before", "after", "accuracy before", "after", "regained"]
        columns = [(what, when) for what in ("distance", "chamfer_l1", "accuracy") for when in ("before", "after")]
        table = [
            [attack, *(attacks[attack][what][when] for what, when in columns), regained(attacks, attack)]
            for attack in attacks
        ]
        note = (
            f"{counted(len(found['shapes']), 'unseen shape')} of {len(found['classes'])} families, {found['points']} "
            "points each. Distance: median of the mean distance from a cloud's points to the clean surface. "
            "Chamfer-L1: both directions (never 0, since few points do not cover a surface). Accuracy: of a PointNet "
            "trained on clean clouds. Regained: fraction of the lost accuracy. The adversary knows the classifier, "
            "but not the Occupancy Network."
        )
        return [Gallery("Purified", rows, rank=None)], [Table("Attacked and purified", header, table, note)]

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentences.  trained: the number of training shapes, None if unknown."""
        learned = "" if trained is None else f"; trained on {counted(trained, 'other shape')}"
        return (
            f"Point clouds of {counted(unseen, 'unseen shape')}, perturbed by four attacks and purified by "
            f"reconstructing the shape{learned}. The first gallery below shows reconstructions from unperturbed "
            "clouds."
        )


TASK = Purify()
