"""Identity of files: equal size and times mean unchanged without reading; otherwise the SHA-256 decides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 22  # bytes read at once


def digest(path: str | Path) -> str:
    """32 hex digits of the SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    for block in _blocks(path):
        found.update(block)
    return found.hexdigest()[:32]


def stamp(path: str | Path) -> dict[str, Any]:
    """Size, times and digest of a file, as JSON: {"bytes", "modified", "changed", "sha256"}; {} if there is none."""
    path = Path(path)
    if not os.path.isfile(path):  # never raises, whatever the name (too long, invalid)
        return {}
    return _status(path) | {"sha256": digest(path)}


def unchanged(path: str | Path, stamped: dict[str, Any]) -> bool:
    """Whether a file has the content it had when it was stamped, even if it was moved or touched since.

    A file with equal size and times is not read again.
    """
    return renewed(path, stamped) is not None


def renewed(path: str | Path, stamped: dict[str, Any]) -> dict[str, Any] | None:
    """The stamp with the file's current times, or None if its content has changed."""
    path = Path(path)
    if not os.path.isfile(path) or not stamped:  # a missing file matches the empty stamp alone
        return stamped if not stamped and not os.path.exists(path) else None
    now = _status(path)
    if now["bytes"] != stamped.get("bytes"):
        return None
    # The change time (ctime) too: `cp -p` and `rsync -t` preserve the modification time, but nothing can set this one.
    if all(now[time] == stamped.get(time) for time in ("modified", "changed")):
        return stamped
    return {**stamped, **now} if digest(path) == stamped.get("sha256") else None


def _blocks(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _status(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "modified": found.st_mtime_ns, "changed": found.st_ctime_ns}
