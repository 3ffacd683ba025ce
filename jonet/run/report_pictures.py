"""Pictures of run folders for the documentation:  python -m jonet.run.report_pictures RUN PICTURE.png [--count=8]"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from jonet.data import store as stores
from jonet.rendering import sheets
from jonet.run import metrics_file
from jonet.run.report_pages import evenly, read_all


def banner(folder: Path, count: int, size: int) -> Image.Image:
    """Unseen shapes of a run, evenly from the best to the worst IoU: ground truth above, reconstruction below.

    size: pixels per shape.
    """
    store = stores.open(folder / "store")
    rows = metrics_file.read(folder)["shapes"]
    all_names = [row["name"] for row in rows]  # in the order of the files: `read_all` needs all names in it
    rows.sort(key=lambda row: -row["iou"])
    names = [rows[i]["name"] for i in evenly(len(rows), count)]
    index = [store.names.index(name) for name in names]
    ground_truths = [store.mesh(i) for i in index]
    by_name = dict(zip(all_names, read_all(folder / "meshes" / "test", all_names), strict=True))
    predicted = [store.similarities[i].apply(by_name[store.names[i]]) for i in index]
    return Image.fromarray(sheets.banner({"ground truth": ground_truths, "rebuilt": predicted}, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with metrics.json")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--count", type=int, default=8, help="number of shapes, from best to worst")
    parser.add_argument("--size", type=int, default=200, help="pixels per shape")
    options = parser.parse_args()
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    banner(options.run, options.count, options.size).quantize(200).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
