"""Galleries: rows of images with inputs, ground truth, predictions and the nearest training shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np

from jonet import resources
from jonet.errors import InputError
from jonet.evaluation.figures import (
    ERROR_SCALE,
    Frame,
    data_uri,
    deviation_legend,
    deviations,
    differences,
    errors,
    pack,
    simplify,
    subdivide,
)
from jonet.evaluation.measures import measure, number
from jonet.geometry.mesh import Mesh
from jonet.geometry.voxels import blocks
from jonet.progress import tracked
from jonet.rendering.sheets import BLUE, CLAY, GRAY, picture
from jonet.wording import counted

COLORS = {"ground_truth": CLAY, "predicted": BLUE, "input": GRAY, "train": (0.36, 0.44, 0.34)}
NOWHERE = Frame(np.zeros(3), 1.0)  # of a row without surfaces or points
_DRAFT = 40_000  # most faces of a mesh in an image: more are not visible at its size


class Part(NamedTuple):
    """One item of a row.  kind: "ground_truth", "predicted" (by the network), "input" or "train" (a training shape).

    thing: a Mesh · points [N, 3] · a grid [R, R, R] of bools in the cube frame · an image [H, W, 3 or 4] uint8 · None,
    or a mesh without vertices, if there is no surface.  All 3D parts of a row are shown from the same viewpoint.
    """

    kind: str
    caption: str
    thing: Any

    @property
    def solid(self) -> Mesh | None:
        """The thing as a mesh (points: a mesh without faces); None for images and missing surfaces."""
        if self.thing is None or isinstance(self.thing, Mesh):
            return self.thing if self.thing is not None and len(self.thing.vertices) else None
        thing = np.asarray(self.thing)
        if thing.dtype == np.uint8:
            return None
        return blocks(thing) if thing.dtype == bool else Mesh(thing, np.zeros((0, 3), np.int32))


@dataclass(frozen=True, eq=False)
class Row:
    """One shape: its parts from left to right.  If a predicted mesh has a ground truth beside it, errors are shown.

    scale: of the similarity from input units to the frame of the parts.  If it is given and the scores have deviations,
    these are shown on the predicted mesh, in input units.
    """

    name: str
    parts: Sequence[Part]
    scores: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scale: float | None = None

    def __post_init__(self):
        for part in self.parts:
            if part.kind not in COLORS:
                raise InputError(f"{self.name}: a part is of kind {part.kind!r}; it must be one of {', '.join(COLORS)}")


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows, ordered by the score `rank`: best, median and worst first (in the given order if it is None).

    pictures: largest number of rows with images, spread evenly over the ranks; the table of scores has all rows.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    rank: str | None = "iou"
    pictures: int = 16

    def ranked(self) -> bool:
        return self.rank is not None and len(self.rows) > 1 and any(self.rank in row.scores for row in self.rows)

    def chosen(self) -> list[tuple[str, Row]]:
        """The rows to show with their ranks in words: best, median, worst, then others from best to worst."""
        rows, rank = list(self.rows), self.rank
        if rank is None or not self.ranked():
            return [("", row) for row in rows[: self.pictures]]
        better = measure(rank).better or 1
        rows.sort(key=lambda row: np.nan_to_num(better * row.scores.get(rank, np.nan), nan=-np.inf), reverse=True)
        first = {0: "best", len(rows) - 1: "worst"}
        if len(rows) > 2:
            first = {0: "best", (len(rows) - 1) // 2: "median", len(rows) - 1: "worst"}
        others = [k for k in range(len(rows)) if k not in first]
        count = max(self.pictures - len(first), 0)
        if len(others) > count:
            others = [others[int((k + 0.5) * len(others) / count)] for k in range(count)]
        return [(first.get(k) or f"{k + 1} of {len(rows)}", rows[k]) for k in (*first, *others)]


def show(gallery: Gallery, shapes: list[dict], faces: int) -> str:
    """The gallery as HTML; its meshes, with at most `faces` faces each, are packed and appended to `shapes`."""
    rows = gallery.chosen()
    lead = 3 if gallery.ranked() else len(rows) if len(rows) <= 6 else 4
    places, sizes = range(len(shapes), len(shapes) + len(rows)), [288 if k < lead else 192 for k in range(len(rows))]
    with ThreadPoolExecutor(resources.cores()) as pool:  # threads: the work is in compiled code without the GIL
        drawn = pool.map(lambda row, *rest: _card(row[0], row[1], faces, *rest), rows, places, sizes)
        results = list(tracked(drawn, f"pictures of {gallery.title.lower()}", "shape", len(rows)))
    cards = [card for card, _ in results]
    shapes += [shape for _, shape in results]
    html = f'<div class="rows">{"".join(cards[:lead])}</div>'
    if cards[lead:]:
        more = f"{len(cards) - lead} more" + (", from best to worst" if gallery.ranked() else "")
        if len(gallery.rows) > len(rows):
            more += f" ({counted(len(gallery.rows) - len(rows), 'other is', 'others are')} in the table only)"
        html += f'<h3>{more}</h3><div class="rows small">{"".join(cards[lead:])}</div>'
    return html


def _card(rank, row, faces, place, size):
    """The row as HTML, and its meshes for the viewer, which will be number `place` of its shapes."""
    solids = [part.solid for part in row.parts]
    kinds = [part.kind for part in row.parts]
    meshes = {k: s for k, s in zip(kinds, solids, strict=True) if s is not None and len(s.faces)}
    # Errors are shown on both surfaces, each against the other, if the row has a single prediction.
    compared = (
        {"predicted": meshes.get("ground_truth"), "ground_truth": meshes.get("predicted")}
        if kinds.count("predicted") == 1
        else {}
    )
    points = [s.vertices for s in solids if s is not None]
    fixed = [s.vertices for s, kind in zip(solids, kinds, strict=True) if s is not None and kind != "predicted"]
    # The camera is fitted to the parts that are no predictions, so that a bad prediction does not change the view.
    frame, view = (Frame.around(*points), np.concatenate(fixed or points)) if points else (NOWHERE, None)
    figures, panels = [], []
    for part, solid in zip(row.parts, solids, strict=True):
        panel, image = {"kind": part.kind, "caption": part.caption}, None
        other = compared.get(part.kind)
        if solid is not None:  # a prediction has the floor of the ground truth, so that an offset is visible
            ground = meshes.get("ground_truth", solid) if part.kind == "predicted" else solid
            shown = {"frame": view, "floor": ground.vertices[:, 1].min(), "background": "transparent"}
        if solid is not None and len(solid.faces):
            image = picture(simplify(solid, _DRAFT), size, COLORS[part.kind], **shown)
            small = simplify(solid, faces)
            small = small if other is None else subdivide(small, faces)
            panel |= pack(small, frame, None if other is None else errors(small, other))
        elif solid is not None:
            image = picture(solid.vertices, size, COLORS[part.kind], **shown)
            panel |= pack(solid, frame)
        elif part.thing is not None and not isinstance(part.thing, Mesh):
            image = picture(part.thing, size)
        figures.append(_figure(part.kind, part.caption, image, row.name))
        panels.append(panel | {"image": len(figures) - 1})
        if part.kind == "predicted" and solid is not None and other is not None and len(solid.faces):
            both, colors = differences(simplify(solid, _DRAFT), simplify(other, _DRAFT))
            image = picture(both, size, colors, **shown)
            figures.append(_figure("error", f"errors to {100 * ERROR_SCALE:.0f} %", image, row.name))
            most, largest = (row.scores.get(name) for name in ("deviation_95", "deviation_max"))
            if row.scale is not None and most and largest:
                colored, colors = deviations(simplify(solid, _DRAFT), other, most * row.scale, largest * row.scale)
                image, caption = picture(colored, size, colors, **shown), f"deviation, {measure('deviation_max').unit}"
                figures.append(_figure("deviation", caption, image, row.name, deviation_legend(most, largest)))
    shape = {"name": row.name, "rank": rank, "panels": panels}
    button = f'<button type="button" class="rotate" data-shape="{place}" hidden>Rotate</button>' if points else ""
    word = rank if rank in ("best", "median", "worst") else "other"
    rank = f'<b class="rank {word}">{rank}</b>' if rank else ""
    leading = list(row.scores.items())[:3]
    scores = "".join(f"<span>{escape(measure(name).label)} <b>{number(value)}</b></span>" for name, value in leading)
    note = f'<p class="note">{escape(row.note)}</p>' if row.note else ""
    html = (
        f'<article class="row"><header>{rank}<h4>{escape(row.name)}</h4>{button}<p class="values">{scores}</p></header>'
        f'<div class="parts of-{len(figures)}" style="--parts:{len(figures)}">{"".join(figures)}</div>{note}</article>'
    )
    return html, shape


def _figure(kind, caption, image, name, legend=""):
    if image is None:
        inner = '<div class="nothing">no surface</div>'
    else:
        size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
        inner = f'<img src="{data_uri(image)}" alt="{escape(f"{name}: {caption}")}" {size}>'
    return f'<figure class="part {kind}">{inner}<figcaption>{escape(caption)}{legend}</figcaption></figure>'
