"""The roofline of each chip and its programs as an SVG: operations a second against operations a byte."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from experiments.accelerators import table
from jonet.chips import CHIPS, Chip

WIDTH, HEIGHT, MARGIN = 760, 340, 46
ACROSS, UP = (0.01, 1e5), (1e10, 2e15)  # ranges of the axes: operations a byte, operations a second
COLORS = {"v5e": "#1f77b4", "v6e": "#2ca02c", "h100": "#d62728", "h200": "#9467bd", "a100": "#8c564b"}
MARKS = {  # by kind of program: a path around the origin
    "training": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "fields and meshes": "M-3-3h6v6h-6z",
    "codes": "M0-4L4 3H-4z",
    "encoders": "M0-4L4 0L0 4L-4 0z",
}
MARKED = re.compile(r"<path [^>]*><title>(\S+) on (\S+): [^<]*</title></path>")  # as `mark` writes them


def svg(rows: Sequence[dict[str, Any]], before: str = "") -> str:
    """The figure of the rows of one chip, as the text of an SVG.

    before: the figure until now, of which the marks of other programs and targets stay.
    """
    drawn = [row for row in rows if row.get("milliseconds") and row["target"].endswith("-1") and row["operations"]]
    present = {(row["program"], row["target"]) for row in rows}
    kept = {found[0]: found[2] for found in MARKED.finditer(before) if (found[1], found[2]) not in present}
    chips = sorted({target.removesuffix("-1") for target in (*(row["target"] for row in drawn), *kept.values())})
    parts = [*axes(), *(part for name in chips for part in roof(name, CHIPS[name], chips.index(name))), *kept]
    for row in drawn:
        x = across(row["operations"] / row["bytes"])
        y = up(row["operations"] / row["milliseconds"] * 1e3)
        title = f"{row['program']} on {row['target']}: {row['milliseconds']:.3g} ms"
        parts.append(mark(kind(row), x, y, COLORS[row["target"].removesuffix("-1")], escape(title)))
    for place, name in enumerate(MARKS):
        x, y = across(1), up(UP[0]) - 12 - 15 * place
        parts += [mark(name, x, y, "#444"), f'<text x="{x + 10:.1f}" y="{y + 4:.1f}">{name}</text>']
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def kind(row: dict[str, Any]) -> str:
    """Which of `MARKS` a row has."""
    if table.trains(row):
        return "training"
    if row["program"].endswith("/encode"):
        return "encoders"
    return "codes" if row["unit"] == "codes" else "fields and meshes"


def mark(name: str, x: float, y: float, color: str, title: str = "") -> str:
    """One of `MARKS`, with a title that is shown when the pointer is over it."""
    inside = f"<title>{title}</title>" if title else ""
    return (
        f'<path d="{MARKS[name]}" transform="translate({x:.1f} {y:.1f})" fill="{color}" fill-opacity="0.7">'
        f"{inside}</path>"
    )


def across(value: float) -> float:
    """The x of operations a byte."""
    return MARGIN + (WIDTH - 2 * MARGIN) * _fraction(value, ACROSS)


def up(value: float) -> float:
    """The y of operations a second."""
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * _fraction(value, UP)


def _fraction(value: float, ends: tuple[float, float]) -> float:
    low, high = map(math.log, ends)
    return min(1, max(0, (math.log(value) - low) / (high - low)))


def axes() -> list[str]:
    """Lines and names of the powers of ten."""
    left, right, bottom, top = across(ACROSS[0]), across(ACROSS[1]), up(UP[0]), up(UP[1])
    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for power in range(round(math.log10(ACROSS[0])), round(math.log10(ACROSS[1])) + 1):
        parts.append(
            f'<text x="{across(10.0**power):.1f}" y="{bottom + 15}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for power in range(round(math.log10(UP[0])), 16, 2):
        parts.append(f'<text x="{left - 4}" y="{up(10.0**power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 32}" text-anchor="end">operations a byte of memory traffic</text>')
    parts.append(f'<text x="4" y="{top - 12}">matrix operations a second</text>')
    return parts


def roof(name: str, chip: Chip, place: int) -> list[str]:
    """The bound of a chip: bandwidth, then its matrix rate in bfloat16."""
    rate, corner = chip.rates["bfloat16"], chip.rates["bfloat16"] / chip.bandwidth
    path = f"M{across(ACROSS[0]):.1f} {up(chip.bandwidth * ACROSS[0]):.1f}L{across(corner):.1f} {up(rate):.1f}"
    path += f"H{across(ACROSS[1]):.1f}"
    color = COLORS[name]
    return [
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>',
        f'<text x="{across(ACROSS[1]) + 4:.1f}" y="{MARGIN + 60 + 14 * place}" fill="{color}">{name}</text>',
    ]
