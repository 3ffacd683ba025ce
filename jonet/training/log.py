"""`log.jsonl`: one line a dispatch, cut to the restored step when a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jonet import parallel


class Log:
    """A file of JSON lines, each with its `step`; only the main process writes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self) -> list[dict]:
        """The entries so far; a line that was cut off by a kill is left out."""
        entries = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return entries

    def cut(self, step: int) -> None:
        """Forgets what came after `step`."""
        if parallel.is_main() and self.path.exists():
            kept = [entry for entry in self.read() if entry["step"] <= step]
            beside = self.path.with_name(self.path.name + ".part")
            beside.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            os.replace(beside, self.path)

    def write(self, entry: dict) -> None:
        """Appends an entry."""
        if parallel.is_main():
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
