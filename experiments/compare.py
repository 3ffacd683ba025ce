"""Trained networks on the same unseen shapes:  python -m experiments.compare RUN_A RUN_B --data=chair,lamp

A network with an encoder sees noisy points of each surface, in one pass.  One whose codes are fitted is fitted to
signed distances all around the shape, as it was trained, and once more to the same points, without normals.  Shapes
of families are drawn by a seed of their own; of a folder they are those that the runs kept for testing.  What one of
the networks learned from, or was validated by, is left out, whatever it is called.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import interrupt, model
from jonet.data import store as stores
from jonet.data.meshes import Mesh
from jonet.data.sampling import RECIPES, Solid
from jonet.data.sources import Source, content
from jonet.errors import ConfigError
from jonet.evaluation import metrics
from jonet.model import Model
from jonet.storage import atomic
from jonet.tasks import unseen as told
from jonet.tasks.shapes import Shapes

RECIPE = dataclasses.replace(RECIPES["default"], surface=4_096)
SHOWN = ("iou", "chamfer_l1", "f_score", "normal_consistency")


class Seen(NamedTuple):
    """A shape in a network's frame: the true mesh, signed distances [N, 4] and noisy points [M, 3]."""

    truth: Mesh | Solid
    samples: np.ndarray
    points: np.ndarray


def unseen(data: str, networks: dict[Path, Model], count: int, seed: int) -> list[Source]:
    """At most `count` shapes that none of the networks learned from, or was validated by, told by their contents.

    data: a family, of which shapes are drawn by the seed, or a folder of meshes.  Of a run whose network does not say
    what it learned from, the names in its store are left out.  Raises ConfigError where no shape is left.
    """
    found = Shapes(train=1, test=count).sources(data, seed)
    if not Path(data).exists():
        found = [source for source in found if source.split == "test"]
    contents, names = set(), set()
    for folder, trained in networks.items():
        learned = told.learned(trained)
        contents |= learned or set()
        if (folder / "store" / "index.json").exists():  # of a run, which also says what validated its network
            store = stores.open(folder / "store")
            kept = [i for i in range(len(store)) if store.splits[i] != "test"]
            contents |= {store.contents[i] for i in kept}
            names |= {store.names[i] for i in kept} if learned is None else set()
        elif learned is None:
            print(f"{folder} does not say which shapes its network learned from: none is left out", file=sys.stderr)
    left = [s for s in found if content(s.mark()) not in contents and s.name not in names]
    if not left:
        raise ConfigError(
            f"{data}: of {len(found)} shapes there is none that no network learned from; take other shapes, of a "
            "family another --seed"
        )
    if len(left) < len(found):
        print(f"{data}: {len(found) - len(left)} of {len(found)} shapes are left out as known", file=sys.stderr)
    return left[:count]


def seen(source: Source, trained: Model, points: int, noise: float, seed: int) -> Seen:
    """What is known of a shape; the same points of the surface in every frame.  noise: 1 is the longest side."""
    shape = source.shape(RECIPE, seed=seed, frame=trained.frame, sign="auto")
    rng = np.random.default_rng(seed)
    surface = shape.rows["surface_points"][0]
    side = np.ptp(shape.rows["vertices"][0], axis=0).max()
    cloud = surface[rng.permutation(len(surface))[:points]] + noise * side * rng.standard_normal((points, 3))
    truth = Mesh(shape.rows["vertices"][0], shape.rows["faces"][0], name=source.name)
    truth = metrics.as_learned(truth, shape.verdict.method)
    return Seen(truth, np.concatenate(shape.rows["sdf"]), cloud)


def ways(trained: Model, points: int) -> dict:
    """How the network comes to codes, in words: a function of what is seen."""
    if trained.inputs is not None:
        return {f"one pass, {points} points": lambda found: trained.encode(points=[one.points for one in found])}
    distances = RECIPE.near + RECIPE.uniform
    return {
        f"fitted, {distances:,} distances": lambda found: trained.fit([one.samples for one in found]),
        f"fitted, {points} points": lambda found: trained.fit(points=[one.points for one in found]),
    }


def timed(do, *arguments):
    """What a second call gives, and its seconds: in the first, programs are compiled."""
    do(*arguments)
    begun = time.perf_counter()
    return do(*arguments), time.perf_counter() - begun


def compare(folders: list[Path], data: str, count: int, points: int, noise: float, seed: int) -> list[dict]:
    """One row for each category, network and way: medians of the scores, and seconds a shape for code and mesh."""
    rows, networks = [], {folder: model.load(folder) for folder in folders}
    for category in data.split(","):
        sources = unseen(category, networks, count, seed)
        for folder, trained in networks.items():
            found = [seen(source, trained, points, noise, seed) for source in sources]
            for way, codes_of in ways(trained, points).items():
                codes, coding = timed(codes_of, found)
                made, meshing = timed(trained.extract, codes)
                scores = metrics.evaluate_all([(mesh, one.truth) for mesh, one in zip(made, found, strict=True)])
                medians = {name: entry["median"] for name, entry in metrics.summary(scores).items() if name in SHOWN}
                seconds = {"code_seconds": coding / len(found), "mesh_seconds": meshing / len(found)}
                task = trained.history.get("task", trained.kind)
                rows.append({"data": category, "network": task, "run": str(folder), "way": way, **medians, **seconds})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| shapes | network | IoU | Chamfer-L1 | F-score | normals | code, s | mesh, s |", "|---" * 8 + "|"]
    for row in rows:
        digits = {name: 4 if name == "chamfer_l1" else 3 for name in SHOWN}
        numbers = ["–" if row[name] is None else f"{row[name]:.{digits[name]}f}" for name in SHOWN]
        numbers += [f"{row[name]:.3f}" for name in ("code_seconds", "mesh_seconds")]
        lines.append("| " + " | ".join([row["data"], f"{row['network']}: {row['way']}", *numbers]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The table, printed; the exit status, as of `interrupt.status`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run or model folders")
    parser.add_argument("--data", default="chair,lamp", help="families or folders of meshes, joined by commas")
    parser.add_argument("--count", type=int, default=16, help="shapes of each category")
    parser.add_argument("--points", type=int, default=300, help="of each cloud")
    parser.add_argument("--noise", type=float, default=0.005, help="of the points; 1 is the longest side")
    parser.add_argument("--seed", type=int, default=1, help="that families are drawn by")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)

    def work():
        rows = compare(options.runs, options.data, options.count, options.points, options.noise, options.seed)
        if options.json:
            atomic.write_json(options.json, {"rows": rows})
        print(table(rows))

    return interrupt.status(work, "stopped")


if __name__ == "__main__":
    sys.exit(main())
