"""The documentation's pictures, from run folders:  python -m experiments.pictures RUN PICTURE.png [--count=8]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from experiments.pages import evenly, read_all
from jonet.data import store as stores
from jonet.data import views


def banner(folder: Path, count: int, size: int) -> Image.Image:
    """Unseen shapes of a run, spread evenly from best to worst: the truth above, what the network made below."""
    store = stores.open(folder / "store")
    rows = json.loads((folder / "metrics.json").read_text("utf-8"))["shapes"]
    called = [row["name"] for row in rows]
    rows.sort(key=lambda row: -row["iou"])
    names = [rows[i]["name"] for i in evenly(len(rows), count)]
    index = [store.names.index(name) for name in names]
    true = [store.mesh(i) for i in index]
    made = dict(zip(called, read_all(folder / "meshes" / "test", called), strict=True))
    made = [store.similarities[i].apply(made[store.names[i]]) for i in index]
    return Image.fromarray(views.banner({"truth": true, "rebuilt": made}, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with metrics.json")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--count", type=int, default=8, help="shapes, from best to worst")
    parser.add_argument("--size", type=int, default=200, help="pixels a shape")
    options = parser.parse_args()
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    banner(options.run, options.count, options.size).quantize(200).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
