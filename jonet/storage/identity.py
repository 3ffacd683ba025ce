"""What tells a file: size and times show cheaply that nothing changed; where they differ, the content decides."""

from __future__ import annotations

import hashlib
import os
import zlib
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
    """What a file is known by, as JSON: {"bytes", "modified", "changed", "sha256"}; {} where there is none."""
    path = Path(path)
    if not os.path.isfile(path):  # no error for names that no file can have
        return {}
    return _status(path) | {"sha256": digest(path)}


def unchanged(path: str | Path, stamped: dict[str, Any]) -> bool:
    """Whether a file holds what it held when it was stamped, wherever it lies now and whatever its times are.

    A file whose size and times are as they were is not read again.  Stamps of version 0.1.0 have a crc32 in place of
    the digest.
    """
    return renewed(path, stamped) is not None


def renewed(path: str | Path, stamped: dict[str, Any]) -> dict[str, Any] | None:
    """The stamp with the file's times as they are now, or None where the file holds something else."""
    path = Path(path)
    if not os.path.isfile(path) or not stamped:
        return stamped if not stamped and not os.path.exists(path) else None
    now = _status(path)
    if now["bytes"] != stamped.get("bytes"):
        return None
    if all(now[time] == stamped.get(time) for time in ("modified", "changed")):
        return stamped
    same = digest(path) == stamped["sha256"] if "sha256" in stamped else _crc32(path) == stamped.get("crc32")
    return {**stamped, **now} if same else None


def _blocks(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _crc32(path: Path) -> int:
    found = 0
    for block in _blocks(path):
        found = zlib.crc32(block, found)
    return found


def _status(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "modified": found.st_mtime_ns, "changed": found.st_ctime_ns}
