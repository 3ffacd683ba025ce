"""The report of a run as a single, self-contained HTML page, from a few dataclasses that any task can fill.

    write("runs/chairs/report.html", Report(
        title="DeepSDF on chairs",
        summary="48 chairs that the network never saw, each rebuilt from 8,000 distances.",
        scores={"unseen shapes": {"iou": {"median": 0.95, "mean": 0.94}}},
        galleries=[Gallery("Unseen shapes", [
            Row("chair 7", [Part("ground_truth", "", mesh), Part("predicted", "rebuilt", other)], {"iou": 0.96})])]))

Fields that are not given leave no empty section. Names and sentences are escaped. The page loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jonet.evaluation import figures, gallery
from jonet.evaluation.gallery import Gallery, Part, Row
from jonet.evaluation.measures import measure, number, scaled
from jonet.storage import atomic

__all__ = ["Chart", "Gallery", "Map", "Part", "Report", "Row", "Slice", "Table", "render", "write"]

_MESH_BYTES = 2_600_000  # target size of all meshes of the 3D viewer in a page
_FEW = 5  # shapes, below which the summary says that medians say little


@dataclass(frozen=True, eq=False)
class Chart:
    """Curves {name: (x [N], y [N])}; with `log`, y has a logarithmic axis, and values of 0 or below are left out."""

    title: str
    lines: Mapping[str, tuple]
    x: str = "step"
    log: bool = True
    note: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """A table whose cells are strings or numbers; None is shown as a dash."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice through the signs of one shape's training data (`figures.section`: [R, R]), and its diagnosis.

    doubtful: the signs may be wrong (no method but `views` applies), so the diagnosis is shown in red.
    """

    name: str
    values: np.ndarray
    diagnosis: str
    doubtful: bool = False


@dataclass(frozen=True, eq=False)
class Map:
    """Codes on a plane: points [N, 2] (`figures.plane`), each with a name, a group and an image (uint8, or None)."""

    points: np.ndarray
    names: Sequence[str]
    groups: Sequence[str]
    images: Sequence | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """The content of a page; every field but the title may be empty.

    scores: {group of shapes: {measure: {"median": …, "mean": …}}}; the first group is shown at the top ·
    seconds: {stage: seconds}, of the stages before the report · skipped: {"file", "reason"} of each file · details:
    {name: value} (settings, versions).
    """

    title: str
    summary: str = ""
    command: str = ""
    device: str = ""
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    scores_note: str = ""
    galleries: Sequence[Gallery] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    codes: Map | None = None
    slices: Sequence[Slice] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def write(path, report: Report) -> Path:
    """Writes the page atomically (to a temporary file that is renamed), and returns its path."""
    atomic.write_text(path, render(report))
    return Path(path)


def render(report: Report) -> str:
    """The page as an HTML string."""
    count = sum(len(row.parts) for g in report.galleries for _, row in g.chosen())
    faces = int(np.clip(_MESH_BYTES / 12 / max(count, 1), 600, 9000))  # a packed face takes about 12 bytes
    shapes: list[dict] = []
    galleries = [
        (f"gallery-{k}", g.title, _noted(g.note, gallery.show(g, shapes, faces) + _all_scores(g)))
        for k, g in enumerate(report.galleries)
        if g.rows
    ]
    sections = [
        ("viewer", "3D viewer", _file("viewer.html") if shapes else ""),
        *galleries,
        ("scores", "Scores", _noted(report.scores_note, _scores(report.scores))),
        *((f"table-{k}", t.title, _noted(t.note, _table(t.header, t.rows))) for k, t in enumerate(report.tables)),
        ("training", "Training", _charts(report.charts)),
        ("codes", "Latent space", _map(report.codes)),
        ("signs", "Sign slices", _slices(report.slices)),
        ("skipped", "Skipped files", _skipped(report.skipped)),
        ("notes", "Notes", "".join(f"<p>{escape(note)}</p>" for note in report.notes)),
        ("run", "Run", _run(report)),
    ]
    sections = [section for section in sections if section[2]]
    later = {"viewer": " hidden"}  # the script shows it: without scripts the viewer does not work
    summary = " ".join(sentence for sentence in (report.summary, _caution(report)) if sentence)
    fields = {
        "title": escape(report.title),
        "summary": f'<p class="summary">{escape(summary)}</p>' if summary else "",
        "headline": _headline(report),
        "links": "".join(f'<a href="#{n}"{later.get(n, "")}>{escape(t)}</a>' for n, t, _ in sections),
        "sections": "".join(
            f'<section id="{n}"{later.get(n, "")}><h2>{escape(title)}</h2>{html}</section>'
            for n, title, html in sections
        ),
        "shapes": json.dumps(shapes, separators=(",", ":")).replace("<", "\\u003c"),
        "style": _file("report.css"),
        "script": _file("report.js") + _file("viewer.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], _file("report.html"))


def _file(name):
    return (resources.files("jonet.evaluation") / name).read_text(encoding="utf-8")


def _noted(note, html):
    return f'<p class="note">{escape(note)}</p>{html}' if note and html else html


def _caution(report):
    """A sentence if the scores at the top are of few shapes: those of the first gallery that has scores."""
    counts = [len(g.rows) for g in report.galleries if any(row.scores for row in g.rows)]
    if not report.scores or not counts or counts[0] >= _FEW:
        return ""
    shapes = "one shape" if counts[0] == 1 else f"only {counts[0]} shapes"
    return f"The scores are of {shapes}: medians of so few shapes say little about others."


def _headline(report):
    """The numbers at the top: medians of the first group's usual scores, and the time of the earlier stages."""
    tiles = []
    for group, scores in list(report.scores.items())[:1]:
        usual = [name for name in ("iou", "chamfer_l1", "f_score") if name in scores]
        for name, values in ((name, scores[name]) for name in usual or list(scores)[:3]):
            kind = "median" if "median" in values else next(iter(values), None)
            if kind is not None:
                tiles.append((number(values[kind]), measure(name).label, f"{kind}, {group}"))
    if report.seconds:
        tiles.append((_time(sum(report.seconds.values())), "time before this report", report.device))
    cells = "".join(f"<div><dt>{escape(a)}<i>{escape(b)}</i></dt><dd>{v}</dd></div>" for v, a, b in tiles)
    return f'<dl class="headline">{cells}</dl>' if cells else ""


def _time(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{seconds / 60:.1f} min" if seconds < 600 else f"{minutes} min"


def _scores(scores):
    """One row per measure: median and mean of each group in plain units, then the first group in the papers' units."""
    groups = {group: list(dict.fromkeys(k for m in values.values() for k in m)) for group, values in scores.items()}
    groups = {group: kinds for group, kinds in groups.items() if kinds}
    if not groups:
        return ""
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    first = next(iter(groups))
    papers = any(measure(name).papers for name in names)
    spans = "".join(f'<th colspan="{len(k)}" scope="colgroup">{escape(g)}</th>' for g, k in groups.items())
    kinds = "".join(f'<th scope="col">{escape(kind)}</th>' for k in groups.values() for kind in k)
    last = f'<th rowspan="2" scope="col">in a paper’s units<i>{escape(first)}</i></th>' if papers else ""
    lines = []
    for name in names:
        known = measure(name)
        arrow = {1: "higher is better", -1: "lower is better", 0: ""}[known.better]
        cells = "".join(
            f"<td>{number(scores[group].get(name, {}).get(kind))}</td>" for group, k in groups.items() for kind in k
        )
        converted = "".join(
            ", ".join(
                f"{number(scaled(value, factor))} {escape(kind)}" for kind, value in scores[first].get(name, {}).items()
            )
            + f"<i>{escape(paper)}</i>"
            for paper, factor in known.papers
        )
        about = f"<i>{escape(', '.join(filter(None, (known.meaning, known.unit and f'in {known.unit}', arrow))))}</i>"
        tail = f'<td class="paper">{converted}</td>' if papers else ""
        lines.append(f'<tr><th scope="row">{escape(known.label)}{about}</th>{cells}{tail}</tr>')
    return (
        f'<div class="wide"><table class="scores"><thead><tr><th rowspan="2" scope="col">measure</th>{spans}{last}</tr>'
        f"<tr>{kinds}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _table(header, rows):
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(number(cell))}</th>' if k == 0 else f"<td>{escape(number(cell))}</td>"
            for k, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _all_scores(shown):
    names = list(dict.fromkeys(name for row in shown.rows for name in row.scores))
    if not names or len(shown.rows) < 2:
        return ""
    table = _table(
        ["shape", *(", ".join(filter(None, (measure(name).label, measure(name).unit))) for name in names)],
        [[row.name, *(row.scores.get(name) for name in names)] for row in shown.rows],
    )
    return f"<details><summary>Scores of all {len(shown.rows)}</summary>{table}</details>"


def _charts(charts):
    drawn = [(chart, figures.chart(chart.lines, chart.x, chart.log)) for chart in charts]
    drawn = [f"<div><h3>{escape(chart.title)}</h3>{_noted(chart.note, html)}</div>" for chart, html in drawn if html]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _map(codes):
    if codes is None or not len(codes.points):
        return ""
    return _noted(codes.note, figures.scatter(codes.points, codes.names, codes.groups, codes.images))


def _slices(slices):
    if not slices:
        return ""
    shown = "".join(
        f'<figure class="{"doubtful" if s.doubtful else "sure"}">'
        f'<img src="{figures.data_uri(figures.slice_picture(s.values))}" alt="slice through {escape(s.name)}">'
        f"<figcaption><b>{escape(s.name)}</b>{escape(s.diagnosis)}</figcaption></figure>"
        for s in slices
    )
    return (
        '<p class="note">Slices through the signs and distances of the training data: '
        '<span class="swatch in"></span> inside, <span class="swatch out"></span> outside; the bands show the distance '
        "from the surface. Below each is the diagnosis of its mesh, in red if the signs are doubtful.</p>"
        f'<div class="slices">{shown}</div>'
    )


def _skipped(skipped):
    return _table(["file", "reason"], [[one["file"], one["reason"]] for one in skipped])


def _run(report):
    html = f"<pre><code>{escape(report.command)}</code></pre>" if report.command else ""
    if report.seconds:
        total = sum(report.seconds.values()) or 1.0
        bars = [
            (stage, f'<i style="width:{100 * s / total:.2f}%"></i>{_time(s)}') for stage, s in report.seconds.items()
        ]
        html += _pairs("stages", bars)
    details = ({"device": report.device} if report.device else {}) | dict(report.details)
    return html + _pairs(
        "details", [(k, escape(number(v) if isinstance(v, float) else str(v))) for k, v in details.items()]
    )


def _pairs(kind, pairs):
    lines = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{html}</dd></div>" for name, html in pairs)
    return f'<dl class="{kind}">{lines}</dl>' if lines else ""
