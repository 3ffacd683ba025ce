"""Tables that programs write into documents, between two marks."""

from __future__ import annotations

from pathlib import Path

from jonet.errors import ConfigError
from jonet.storage import atomic


def write(document: Path, begin: str, end: str, text: str) -> None:
    """Replaces what is between the marks of a document; ConfigError if it lacks one."""
    before, found, rest = document.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ConfigError(f"{document} lacks the mark {begin!r} or, after it, {end!r}")
    atomic.write_text(document, f"{before}{begin}\n\n{text}\n\n{end}{after}")
