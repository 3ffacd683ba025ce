"""The rows as the table of docs/results.md and as a figure: medians over the shapes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

BEGIN, END = "<!-- table: python -m experiments.levels_of_detail --write -->", "<!-- end of the table -->"
Row = dict[str, Any]

COLORS = {  # of groups, in the order of the legend
    "splines": "#d6601d",
    "network": "#7b3fa0",
    "codes": "#c2185b",
    "bitmap": "#8c8c8c",
    "truncated distances": "#2a7f3f",
    "mesh": "#1f5fa8",
    "splines of points": "#d6601d",
    "Poisson of points": "#111111",
    "RBF of points": "#b8860b",
}
HOLLOW = (
    "splines of points",
    "Poisson of points",
    "RBF of points",
)  # drawn with hollow marks: they have seen points only
WIDTH, HEIGHT = 800, 420
LEFT, TOP, WIDE, HIGH, GAP = 62, 34, 318, 262, 62  # of the panels, in pixels
LEAST = 1e-5  # of errors and seconds that are drawn


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row for each group and setting: medians over shapes, and the lowest IoU."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["group"], row["setting"]), []).append(row)
    return [
        {"group": group, "setting": setting, "shapes": len(some), "worst": min(row["iou"] for row in some)}
        | {
            name: statistics.median(row[name] for row in some)
            for name in ("bytes", "seconds", "iou", "chamfer_l1", "normals")
        }
        for (group, setting), some in found.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    shapes = len({row["shape"] for row in rows})
    lines = [
        "| representation | setting | kB | seconds | IoU | worst | Chamfer-L1 | normals |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in medians(rows):
        setting = row["setting"] + (f" ({row['shapes']} of {shapes} shapes)" if row["shapes"] < shapes else "")
        numbers = [f"{row['bytes'] / 1e3:.3g}" if row["bytes"] < 1e6 else f"{row['bytes'] / 1e3:,.0f}"]
        numbers += [f"{row['seconds']:.2g}" if row["seconds"] < 10 else f"{row['seconds']:.0f}"]
        numbers += [f"{row['iou']:.4f}", f"{row['worst']:.4f}", f"{row['chamfer_l1']:.5f}", f"{row['normals']:.1f}°"]
        lines.append("| " + " | ".join([row["group"], setting, *numbers]) + " |")
    return "\n".join(lines)


def svg(rows: Sequence[Row]) -> str:
    """The figure as the text of an SVG: 1 - IoU against bytes and against seconds."""
    found = medians(rows)
    panels = [("bytes", "bytes", 0), ("seconds", "processor seconds to make it", 1)]
    body = [part for key, title, place in panels for part in panel(found, key, title, LEFT + place * (WIDE + GAP))]
    names = [name for name in COLORS if any(row["group"] == name for row in found)]
    for i, name in enumerate(names):
        x, y = LEFT + 180 * (i % 4), TOP + HIGH + 66 + 22 * (i // 4)
        body.append(mark(x, y - 4, name, name))
        body.append(f'<text x="{x + 12}" y="{y}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def panel(found: Sequence[Row], key: str, title: str, left: float) -> list[str]:
    """One of both diagrams: 1 - IoU, which grows upwards, against `key`; both logarithmic."""
    errors = [max(LEAST, 1 - row["iou"]) for row in found]
    amounts = [max(LEAST, row[key]) for row in found]
    across, up = scale(amounts, left, left + WIDE), scale(errors, TOP + HIGH, TOP)
    parts = []
    for ticks, place, is_x in ((powers(amounts), across, True), (powers(errors), up, False)):
        for tick in ticks:
            at = place(tick)
            line = f"M{at:.1f} {TOP}V{TOP + HIGH}" if is_x else f"M{left} {at:.1f}H{left + WIDE}"
            parts.append(f'<path d="{line}" stroke="#e2e2e2"/>')
            spot = f'x="{at:.1f}" y="{TOP + HIGH + 18}" text-anchor="middle"'
            if not is_x:
                spot = f'x="{left - 6}" y="{at + 4:.1f}" text-anchor="end"'
            parts.append(f"<text {spot}>{number(tick, key if is_x else '')}</text>")
    parts.append(f'<text x="{left + WIDE / 2}" y="{TOP + HIGH + 38}" text-anchor="middle">{title}</text>')
    parts.append(f'<text x="{left}" y="{TOP - 14}">1 − IoU</text>')
    for name in COLORS:
        places = zip(amounts, errors, found, strict=True)
        points = [(across(x), up(y), row["setting"], row["iou"]) for x, y, row in places if row["group"] == name]
        points.sort(key=lambda point: point[3])
        if len(points) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{COLORS[name]}" stroke-width="1.5"/>')
        parts += [mark(x, y, name, f"{name}, {setting}: IoU {iou:.4f}") for x, y, setting, iou in points]
    return parts


def mark(x: float, y: float, name: str, title: str) -> str:
    """The point of a group."""
    fill = "white" if name in HOLLOW else COLORS[name]
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{COLORS[name]}" stroke-width="2">'
        f"<title>{escape(title)}</title></circle>"
    )


def scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """From the logarithms of values, with a margin, to places from start to end."""
    low, high = math.log(min(values)), math.log(max(values))
    margin = 0.05 * (high - low) + 0.1
    return lambda value: start + (end - start) * (math.log(value) - low + margin) / (high - low + 2 * margin)


def powers(values: Sequence[float]) -> list[float]:
    """The powers of ten within the range of values, each exactly."""
    first, last = math.ceil(math.log10(min(values))), math.floor(math.log10(max(values)))
    return [float(f"1e{power}") for power in range(first, last + 1)]


def number(value: float, key: str) -> str:
    """A tick: bytes with their unit."""
    if key != "bytes":
        return f"{value:g}"
    return f"{value / 1e6:g} MB" if value >= 1e6 else f"{value / 1e3:g} kB" if value >= 1e3 else f"{value:g} B"
