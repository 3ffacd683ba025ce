"""What studies share: a finished run, a folder for results, and rows that are measured once and kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from jonet import parallel
from jonet.storage import atomic


def parser(doc: str) -> argparse.ArgumentParser:
    """The options of every study."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("run", type=Path, help="a finished run folder of deepsdf")
    found.add_argument("folder", type=Path, help="where results go")
    found.add_argument("--rows", default="", help="beginnings of the rows' names, ; between them; the default is all")
    return found


def measured(options, name: str, wanted: dict, measure: Callable[..., dict], **facts) -> dict[str, dict]:
    """The rows by name, in the order of `wanted`: measure(wanted[row]) of those that are asked for and not there yet.

    They are kept in the folder's file `name`, with the device and other facts, after every row.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / name
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    for row, settings in wanted.items():
        if row not in rows and row.startswith(tuple(options.rows.split(";"))):
            rows[row] = measure(settings)
            rows = {row: rows[row] for row in wanted if row in rows}
            atomic.write_json(file, {"device": parallel.describe(), **facts, "rows": rows})
    return rows
