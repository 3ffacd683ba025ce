"""Rows as lines, and in the tables of docs/accelerators.md, whose cells of other programs and targets stay."""

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
Cells = Sequence[Sequence[str]]  # of a table: its head, and its lines
NONE: Cells = ()


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
        text += f", {number(row['rate'])} {row['unit']}/s"
        text += f", {number(row['operations'] / 1e9)} GFLOP, {number(row['bytes'] / 1e9)} GB moved"
        text += f", {number(row['arguments'] / 1e9)} + {number(row['temporaries'] / 1e9)} GB held"
        text += f", {row['kernels']} kernels" if row.get("kernels") else ""
        text += (
            f", {number(row['single_items'])} single items" if row.get("single_items") and row["mark"] == "C" else ""
        )
        text += "".join(f", {count} {kind}" for kind, count in row["collectives"].items())
        text += f", largest copy {number(row['moves'][0]['bytes'] / 1e9)} GB" if row["moves"] else ""
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


def tables(rows: Sequence[Row], before: str = "", order: Sequence[str] = ()) -> str:
    """All tables, in Markdown.

    before: those until now, of which the cells of other programs and targets stay.  order: of the programs' names.
    """
    steps = [row for row in rows if trains(row)]
    launching = [row for row in steps if row.get("kernels")]
    others = [row for row in rows if not trains(row)]
    parts = {
        "Milliseconds of a training step, and the share of the matrix rate in bfloat16": lambda old: pivot(
            steps, step, old, order
        ),
        "Kernels of a training step that a GPU launches": lambda old: pivot(launching, kernels, old, order),
        "GB of the arguments and the temporaries of training, on each chip": lambda old: pivot(steps, held, old, order),
        "Fields, codes and encoders: how many a second, and the share of the matrix rate": lambda old: pivot(
            others, rate, old, order
        ),
        "Several chips": lambda old: scaling(steps, old),
        "What does not compile, or does not fit": lambda old: errors(rows),
        "The largest copies and transposes of a training step": lambda old: moves(steps, old),
    }
    found = {title: make(cells_of(before, title)) for title, make in parts.items()}
    return "\n\n".join(f"**{title}.**\n\n{text}" for title, text in found.items() if text)


def cells_of(text: str, title: str) -> Cells:
    """The cells of the table below a title; none if there is no such table."""
    _, _, below = text.partition(f"**{title}.**\n\n")
    lines = [line[2:-2].split(" | ") for line in below.partition("\n\n")[0].splitlines() if line.startswith("| ")]
    return lines[:1] + lines[2:]  # without the line below the head


def others_than(rows: Sequence[Row], old: Cells) -> list[list[str]]:
    """Lines of a table that begin with a program and a target, without its head, of others than the rows'."""
    present = {(f"`{row['program']}`", row["target"]) for row in rows}
    return [list(cells) for cells in old[1:] if (cells[0], cells[1]) not in present]


def trains(row: Row) -> bool:
    """Whether a row is of a training step."""
    return row["program"].endswith("/train") or "/step/" in row["program"]


def pivot(rows: Sequence[Row], cell: Callable[[Row], str], old: Cells = NONE, order: Sequence[str] = ()) -> str:
    """A table with a line for each program and a column for each target of one chip.

    old: the table until now.  order: of the programs' names.
    """
    heads = {name.split(" [")[0]: name for name in (old[0][1:] if old else ())}
    at = {
        (program.strip("`"), target): text
        for program, *texts in old[1:]
        for target, text in zip(heads, texts, strict=True)
        if text
    }
    for row in rows:
        if row["target"].endswith(("-1", "here")):
            at[row["program"], row["target"]] = cell(row)
            if "error" not in row or row["target"] not in heads:
                heads[row["target"]] = row["target"] if "error" in row else f"{row['target']} [{row['mark']}]"
    targets, place = sorted({target for _, target in at}), {name: i for i, name in enumerate(order)}
    programs = sorted(dict.fromkeys(program for program, _ in at), key=lambda name: place.get(name, len(place)))
    body = [[f"`{program}`", *(at.get((program, target), "") for target in targets)] for program in programs]
    return markdown(["program", *(heads[target] for target in targets)], body) if at else ""


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


def moves(rows: Sequence[Row], old: Cells = NONE, most: int = 12) -> str:
    """The largest copies of all rows of one chip.  old: the table until now."""
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
    body = sorted(body + others_than(rows, old), key=lambda cells: -float(cells[2].replace(",", "")))[:most]
    return markdown(["program", "target", "GB", "array", "operation"], body) if body else ""


def array(kind: str) -> str:
    """The largest array of a type of a compiled program, without its layout."""
    largest = max(hlo.arrays(kind), key=lambda array: array.size)
    return f"{largest.dtype}[{','.join(map(str, largest.shape))}]"


def scaling(rows: Sequence[Row], old: Cells = NONE) -> str:
    """Efficiency on several chips: the compiled step of each, and its sums over the links of the chips.

    old: the table until now.  Programs are shown whose step on one chip is among the rows.
    """
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
    body += others_than(rows, old)
    head = ["program", "target", "collectives", "MB", "ms computing", "ms in the links", "same batch", "same per chip"]
    return markdown(head, body) if body else ""


def communication(row: Row, count: int, link: float) -> float:
    """Milliseconds of the sums of one step in a ring of chips: each sends and receives 2 (n - 1) / n of the bytes."""
    return 1e3 * 2 * (count - 1) / count * row["collective_bytes"] / link


def write(path: Path, rows: Sequence[Row], order: Sequence[str] = ()) -> None:
    """Writes the rows into the tables between their two marks of a document.  order: of the programs' names."""
    document.write(path, BEGIN, END, tables(rows, path.read_text("utf-8"), order))
