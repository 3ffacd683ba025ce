"""Compares trained networks on the same unseen shapes:  python -m experiments.compare RUN_A RUN_B --data=chair,lamp

A network with an encoder gets noisy points on each surface, in one pass.  A network whose codes are fitted is fitted
once to signed distances around the shape, as in training, and once to the same points without normals; from the code
of its encoder if it has one, too (`deepsdf_points`); with --adam, others also by the published loop.  Shapes of
procedural families are generated with their own seed; of a folder, the runs' test shapes are used.  Shapes that one of
the networks was trained on or validated with are left out; they are identified by their content, not their name.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import interrupt, model
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data.sampling import RECIPES, Solid
from jonet.data.sources import Source, content
from jonet.errors import ConfigError
from jonet.evaluation import metrics
from jonet.geometry.mesh import Mesh
from jonet.model import Model
from jonet.settings.fitting import FitConfig
from jonet.storage import atomic
from jonet.storage.names import encoded
from jonet.tasks import unseen as training_shapes
from jonet.tasks.shapes import Shapes
from jonet.wording import counted

RECIPE = dataclasses.replace(RECIPES["default"], surface=4_096)
ADAM = "fitted by Adam"
SHOWN = ("iou", "chamfer_l1", "f_score", "normal_consistency")


class Seen(NamedTuple):
    """A shape in a network's frame: ground-truth mesh, points with signed distances [N, 4], noisy points [M, 3]."""

    ground_truth: Mesh | Solid
    samples: np.ndarray
    points: np.ndarray


def unseen(data: str, networks: dict[Path, Model], count: int, seed: int) -> list[Source]:
    """At most `count` shapes that no network was trained on or validated with, identified by their content.

    data: a procedural family, whose shapes are generated with the seed, or a folder of meshes.  If a model does not
    record its training shapes, shapes with names in its run's store are left out.  Raises ConfigError if no shape is
    left.
    """
    found = Shapes(train=1, test=count).sources(data, seed)
    if not Path(data).exists():
        found = [source for source in found if source.split == "test"]
    contents, names = set(), set()
    for folder, trained in networks.items():
        learned = training_shapes.learned(trained)
        contents |= learned or set()
        if (folder / "store" / "index.json").exists():  # a run's store also records the validation shapes
            store = stores.open(folder / "store")
            kept = [i for i in range(len(store)) if store.splits[i] != "test"]
            contents |= {store.contents[i] for i in kept}
            names |= {store.names[i] for i in kept} if learned is None else set()
        elif learned is None:
            print(f"{folder} does not say which shapes its network learned from, so none is left out", file=sys.stderr)
    left = [s for s in found if content(s.mark()) not in contents and s.name not in names]
    if not left:
        raise ConfigError(
            f"{data}: of {counted(len(found), 'shape')} there is none that no network learned from; give other "
            "shapes, for a procedural family another --seed"
        )
    if len(left) < len(found):
        print(
            f"{data}: {len(found) - len(left)} of {counted(len(found), 'shape')} left out, from which a network "
            "learned",
            file=sys.stderr,
        )
    return left[:count]


def seen(source: Source, trained: Model, points: int, noise: float, seed: int) -> Seen:
    """A shape's observations, with the same surface points in every frame.  noise: in longest sides of the shape."""
    recipe = dataclasses.replace(RECIPE, surface=max(RECIPE.surface, points))
    shape = source.shape(recipe, seed=seed, frame=trained.frame, sign="auto")
    rng = np.random.default_rng([seed, zlib.crc32(encoded(source.name))])  # other noise for each shape
    surface = shape.rows["surface_points"][0]
    side = np.ptp(shape.rows["vertices"][0], axis=0).max()
    cloud = surface[rng.permutation(len(surface))[:points]] + noise * side * rng.standard_normal((points, 3))
    ground_truth = Mesh(shape.rows["vertices"][0], shape.rows["faces"][0], name=source.name)
    ground_truth = metrics.as_learned(ground_truth, shape.diagnosis.method)
    return Seen(ground_truth, np.concatenate(shape.rows["sdf"]), cloud)


def code_methods(trained: Model, points: int, adam: bool = False) -> dict[str, Callable[[list[Seen]], Codes]]:
    """The methods to get codes from observations, by their description: encoding, fitting, and both in turn.

    adam: networks whose codes are fitted, from no code of an encoder, are fitted by the published loop, too.
    """
    found: dict[str, Callable[[list[Seen]], Codes]] = {}
    if trained.inputs is not None:
        found[f"encoded, {points} points"] = lambda found: trained.encode(points=[one.points for one in found])
    if not trained.is_fitted:
        return found
    distances, how = RECIPE.near + RECIPE.uniform, "fitted" if trained.inputs is None else "encoded, then fitted"
    settings = {how: None} | ({ADAM: FitConfig("adam")} if adam and trained.inputs is None else {})
    for how, config in settings.items():
        found[f"{how}, {distances:,} distances"] = lambda found, config=config: trained.fit(
            [one.samples for one in found], config=config
        )
        found[f"{how}, {points} points"] = lambda found, config=config: trained.fit(
            points=[one.points for one in found], config=config
        )
    return found


def timed(function, *arguments, warm: bool = True):
    """The result and the processor seconds, summed over all cores, of a second call, since the first one compiles; of
    the first if not `warm`."""
    if warm:
        function(*arguments)
    begun = time.process_time()
    return function(*arguments), time.process_time() - begun


def compare(
    folders: list[Path], data: str, count: int, points: int, noise: float, seed: int, adam: bool = False
) -> list[dict]:
    """One row per category, network and method: medians of the metrics, and processor seconds per shape."""
    rows, networks = [], {folder: model.load(folder) for folder in folders}
    for category in data.split(","):
        sources = unseen(category, networks, count, seed)
        for folder, trained in networks.items():
            found = [seen(source, trained, points, noise, seed) for source in sources]
            for method, codes_of in code_methods(trained, points, adam).items():
                codes, coding = timed(codes_of, found, warm=not method.startswith(ADAM))  # which takes far longer
                predicted, meshing = timed(trained.extract, codes)
                scores = metrics.evaluate_all(
                    [(mesh, one.ground_truth) for mesh, one in zip(predicted, found, strict=True)]
                )
                medians = {name: entry["median"] for name, entry in metrics.summary(scores).items() if name in SHOWN}
                seconds = {"code_seconds": coding / len(found), "mesh_seconds": meshing / len(found)}
                task = trained.history.get("task", trained.kind)
                rows.append(
                    {"data": category, "run": str(folder), "network": task, "method": method, **medians, **seconds}
                )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| shapes | run | codes | IoU | Chamfer-L1 | F-score | normals | code, s | mesh, s |", "|---" * 9 + "|"]
    for row in rows:
        digits = {name: 4 if name == "chamfer_l1" else 3 for name in SHOWN}
        numbers = ["–" if row[name] is None else f"{row[name]:.{digits[name]}f}" for name in SHOWN]
        numbers += [f"{row[name]:.3f}" for name in ("code_seconds", "mesh_seconds")]
        run = f"{row['run']} ({row['network']})"
        lines.append("| " + " | ".join([row["data"], run, row["method"], *numbers]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status, as `interrupt.status` does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run or model folders")
    parser.add_argument(
        "--data", default="chair,lamp", help="procedural families or folders of meshes, joined by commas"
    )
    parser.add_argument("--count", type=int, default=16, help="number of shapes of each family or folder")
    parser.add_argument("--points", type=int, default=300, help="number of points of each point cloud")
    parser.add_argument("--noise", type=float, default=0.005, help="standard deviation of the points, in longest sides")
    parser.add_argument("--seed", type=int, default=1, help="seed of the procedural shapes")
    parser.add_argument("--adam", action="store_true", help="also fit by the published loop, 800 steps of Adam")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args(arguments)

    def work():
        given = (getattr(options, name) for name in ("runs", "data", "count", "points", "noise", "seed", "adam"))
        rows = compare(*given)
        if options.json:
            atomic.write_json(options.json, {"rows": rows})
        print(table(rows))

    return interrupt.status(work, "stopped")


if __name__ == "__main__":
    sys.exit(main())
