"""Shared by the studies: command-line options, and rows of measurements that are stored and not repeated."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from jonet import parallel
from jonet.errors import ConfigError
from jonet.storage import atomic


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options of every study."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("run", type=Path, help="a finished run folder of deepsdf")
    found.add_argument("folder", type=Path, help="folder for the results")
    found.add_argument(
        "--rows", default="", help="measure only rows whose names start with one of these, separated by ;"
    )
    return found


def measured(
    options, name: str, wanted: dict, measure: Callable[..., dict], again: bool = False, **facts
) -> dict[str, dict]:
    """The rows by name, in the order of `wanted`; selected rows that are not stored yet are measure(wanted[row]).
    again: those that are stored, too.

    After every row they are written to the file `name` in the folder, with the device and the given facts.  Stored rows
    that are not wanted any more stay in the file.  Raises ConfigError if its rows were measured with other facts.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / name
    stored = json.loads(file.read_text("utf-8")) if file.exists() else {"rows": {}}
    if file.exists() and (changed := {fact: stored.get(fact) for fact in facts if stored.get(fact) != facts[fact]}):
        before = ", ".join(f"{fact} {value}" for fact, value in changed.items())
        raise ConfigError(f"the rows of {file} were measured with {before}; use that again, or choose another folder")
    rows = stored["rows"]
    for row, settings in wanted.items():
        if (again or row not in rows) and row.startswith(tuple(options.rows.split(";"))):
            rows[row] = measure(settings)
            rows = {row: rows[row] for row in (*wanted, *rows) if row in rows}
            atomic.write_json(file, {"device": parallel.describe(), **facts, "rows": rows})
    return {row: rows[row] for row in wanted if row in rows}
