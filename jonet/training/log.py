"""`log.jsonl`: one line per dispatch, truncated to the restored step when a run is resumed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from jonet import parallel
from jonet.storage import atomic


class Log:
    """A file of JSON lines, each with its `step`; only the main process writes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self) -> list[dict]:
        """The entries so far, without damaged lines (a killed run may leave an incomplete one)."""
        entries = []
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                    entries.append(entry)
        return entries

    def cut(self, step: int) -> None:
        """Removes the entries after `step`."""
        if parallel.is_main() and self.path.exists():
            kept = [entry for entry in self.read() if entry["step"] <= step]
            atomic.write_text(self.path, "".join(atomic.json_text(entry) + "\n" for entry in kept))

    def write(self, entry: dict) -> None:
        """Appends an entry."""
        if parallel.is_main():
            atomic.append(self.path, (atomic.json_text(entry) + "\n").encode())
