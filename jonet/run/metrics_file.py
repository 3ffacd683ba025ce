"""metrics.json of a run: the scores of its shapes, with the version of the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jonet.errors import FormatError
from jonet.storage import atomic

NAME = "metrics.json"
VERSION = 2  # as of the other files of a run


def write(folder: Path, values: dict[str, Any]) -> None:
    """Writes the scores of a run folder (`stages.evaluate`)."""
    atomic.write_json(folder / NAME, {"version": VERSION, **values})


def read(folder: Path) -> dict[str, Any]:
    """The scores of a run folder; FormatError if they cannot be read or are of another version."""
    path = Path(folder) / NAME
    again = "remove the file, and run the stage evaluate again"
    try:
        values = json.loads(path.read_text("utf-8"))
        version = values.get("version", 1)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read ({error}); {again}") from error
    if version != VERSION:
        raise FormatError(f"{path} has format {version}, but this version of jonet reads {VERSION}; {again}")
    return values
