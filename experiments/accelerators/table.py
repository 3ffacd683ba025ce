"""Rows as lines, and as the tables of docs/accelerators.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import document
from experiments.accelerators import hlo
from jonet.chips import CHIPS
from jonet.storage import atomic

BEGIN, END = "<!-- tables: python -m experiments.accelerators --write -->", "<!-- end of tables -->"
Row = dict[str, Any]


def replaced(rows: list[Row], new: Row) -> list[Row]:
    """The rows with a new one in place of that of the same program and target."""
    return [row for row in rows if (row["program"], row["target"]) != (new["program"], new["target"])] + [new]


def save(file: Path, rows: list[Row]) -> None:
    """Writes rows as JSON."""
    atomic.write_text(file, json.dumps(rows, indent=1) + "\n")


def line(row: Row) -> str:
    """A row as one line of text."""
    text = f"{row['program']:42s} {row['target']:7s}"
    if "milliseconds" in row:
        text += f" [{row['mark']}] {row['precision']:8s} {number(row['milliseconds'])} ms, {percent(row['share'])}"
        text += f", {number(row['rate'])} {row['unit']}/s, {number(row['bytes'] / 1e9)} GB moved"
        text += f", {number(row['arguments'] / 1e9)} + {number(row['temporaries'] / 1e9)} GB held"
        text += f", {row['kernels']} kernels" if row.get("kernels") else ""
        text += "".join(f", {count} {kind}" for kind, count in row["collectives"].items())
    return text + (f": {row['error']}" if "error" in row else "")


def number(value: float) -> str:
    """Three digits, with thousands separated or as M (millions)."""
    if value >= 1e6:
        return f"{number(value / 1e6)} M"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def percent(share: float | None) -> str:
    """A share of the matrix rate."""
    return "–" if share is None else f"{100 * share:.2g} %"


def tables(rows: Sequence[Row]) -> str:
    """All tables, in Markdown."""
    steps = [row for row in rows if trains(row)]
    others = [row for row in rows if not trains(row)]
    parts = {
        "Milliseconds of a training step, and the share of the matrix rate in bfloat16": pivot(steps, step),
        "Kernels of a training step that a GPU launches": pivot([r for r in steps if r.get("kernels")], kernels),
        "GB of the arguments and the temporaries of training, on each chip": pivot(steps, held),
        "Fields, codes and encoders: how many a second, and the share of the matrix rate": pivot(others, rate),
        "Several chips": scaling(steps),
        "What does not compile, or does not fit": errors(rows),
        "The largest copies and transposes of a training step": moves(steps),
    }
    return "\n\n".join(f"**{title}.**\n\n{text}" for title, text in parts.items() if text)


def trains(row: Row) -> bool:
    """Whether a row is of a training step."""
    return row["program"].endswith("/train") or "/step/" in row["program"]


def pivot(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """A table with a line for each program and a column for each target of one chip."""
    targets = sorted({row["target"] for row in rows if row["target"].endswith(("-1", "here"))})
    programs = list(dict.fromkeys(row["program"] for row in rows if row["target"] in targets))
    at = {(row["program"], row["target"]): row for row in rows}
    body = [
        [f"`{program}`", *(cell(at[program, target]) if (program, target) in at else "" for target in targets)]
        for program in programs
    ]
    marks = {row["target"]: row["mark"] for row in rows if "error" not in row}
    head = [f"{target} [{marks[target]}]" if target in marks else target for target in targets]
    return markdown(["program", *head], body) if rows else ""


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])


def step(row: Row) -> str:
    if "milliseconds" not in row:
        return "no"
    bound = "≥ " * (row["mark"] == "B")
    return f"{bound}{number(row['milliseconds'])} ms, {percent(row['share'])}" + " (too large)" * ("error" in row)


def kernels(row: Row) -> str:
    return str(row["kernels"])


def held(row: Row) -> str:
    if "arguments" not in row:
        return "no"
    return f"{number(row['arguments'] / 1e9)} + {number(row['temporaries'] / 1e9)}"


def rate(row: Row) -> str:
    if "rate" not in row:
        return "no"
    bound = "≤ " * (row["mark"] == "B")
    return f"{bound}{number(row['rate'])} {row['unit']}, {percent(row['share'])}"


def errors(rows: Sequence[Row]) -> str:
    """Programs and targets by error."""
    by_error: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            by_error.setdefault(row["error"], []).append(f"`{row['program']}` on {row['target']}")
    return "\n".join(f"- {', '.join(where)}: {error}" for error, where in by_error.items())


def moves(rows: Sequence[Row], most: int = 12) -> str:
    """The largest copies of all rows of one chip."""
    found = [
        (move["bytes"], row["program"], row["target"], array(move["type"]), move["source"])
        for row in rows
        if row["target"].endswith("-1")
        for move in row.get("moves", ())
    ]
    body = [
        [f"`{program}`", target, number(size / 1e9), f"`{kind}`", f"`{source[-60:]}`"]
        for size, program, target, kind, source in sorted(found, reverse=True)[:most]
    ]
    return markdown(["program", "target", "GB", "array", "operation"], body) if body else ""


def array(kind: str) -> str:
    """The largest array of a type of a compiled program, without its layout."""
    largest = max(hlo.arrays(kind), key=lambda array: array.size)
    return f"{largest.dtype}[{','.join(map(str, largest.shape))}]"


def scaling(rows: Sequence[Row]) -> str:
    """Efficiency on several chips: the compiled step of each, and its sums over the links of the chips."""
    at = {(row["program"], row["target"]): row for row in rows if "milliseconds" in row}
    body = []
    for (program, name), several in at.items():
        chip, _, count = name.partition("-")
        one = at.get((program, f"{chip}-1"))
        if one is None or chip not in CHIPS or int(count) == 1:
            continue
        apart = communication(several, int(count), CHIPS[chip].link)
        strong = one["milliseconds"] / int(count) / (several["milliseconds"] + apart)
        weak = one["milliseconds"] / (one["milliseconds"] + apart)
        sums = ", ".join(f"{number} {kind}" for kind, number in several["collectives"].items())
        body.append(
            [
                *(f"`{program}`", name, sums, number(several["collective_bytes"] / 1e6)),
                *(number(several["milliseconds"]), number(apart), f"{strong:.0%}", f"{weak:.1%}"),
            ]
        )
    head = ["program", "target", "collectives", "MB", "ms computing", "ms in the links", "same batch", "same per chip"]
    return markdown(head, body) if body else ""


def communication(row: Row, count: int, link: float) -> float:
    """Milliseconds of the sums of one step in a ring of chips: each sends and receives 2 (n - 1) / n of the bytes."""
    return 1e3 * 2 * (count - 1) / count * row["collective_bytes"] / link


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes the tables between their two marks of a document."""
    document.write(path, BEGIN, END, tables(rows))
