"""Names of files made of names of shapes: safe on every system, and each its own."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 160  # bytes of one part of a path: what file systems allow, less endings and temporary names
_FORBIDDEN = re.compile('[<>:"|?*\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]')  # the last stand for no bytes
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def encoded(name: str) -> bytes:
    """The bytes of a name: UTF-8, where a file has others its own (surrogateescape); of any text, to be hashed."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, which JSON and Windows can have
        return name.encode("utf-8", "surrogatepass")


def safe(name: str) -> str:
    """A name as a path that stays below its folder and that any system can have.

    `/` and `\\` separate folders; parts that lead nowhere or upwards are dropped, what Windows forbids becomes `_`, and
    a part that is too long keeps its beginning and a digest of the whole.
    """
    return "/".join(_part(part) for part in re.split(r"[/\\]", name) if part.strip(" .")) or "unnamed"


def _part(part: str) -> str:
    made = _FORBIDDEN.sub("_", part).strip(" ").rstrip(".") or "_"
    if _RESERVED.fullmatch(made):
        made = f"_{made}"
    return made if len(encoded(made)) <= LONGEST else f"{_cut(made)}-{_digest(part, 12)}"


def _cut(part: str) -> str:
    """The beginning of a part, so that a digest has room behind it."""
    return encoded(part)[: LONGEST - 13].decode("utf-8", "ignore").rstrip(" .")


def unique(names: Sequence[str]) -> list[str]:
    """Safe names of shapes, in their order, no two alike on any system (case and composed letters aside).

    Names that are alike when they are safe, or of which one is a folder of the other, end in a digest of the whole: a
    name depends on others only where it must, and never on their order (but among names that are equal).
    """
    made, seen = [safe(name) for name in names], Counter()
    own = []
    for name in names:
        own.append(name if not seen[name] else f"{name}\0{seen[name]}")
        seen[name] += 1
    rounds = 0
    while clashing := _clashing(made):
        for i in clashing:
            *above, last = safe(names[i]).split("/")
            made[i] = "/".join([*above, f"{_cut(last)}-{_digest(own[i] + rounds * chr(0), 12)}"])
        rounds += 1
    return made


def _clashing(names: Sequence[str]) -> list[int]:
    """Which names some system takes for another, or for a folder of another."""
    forms = [unicodedata.normalize("NFC", name).casefold() for name in names]
    count = Counter(forms)
    folders = {form.rsplit("/", i)[0] for form in count for i in range(1, form.count("/") + 1)}
    return [i for i, form in enumerate(forms) if count[form] > 1 or form in folders]


def _digest(name: str, digits: int) -> str:
    return hashlib.sha256(encoded(name)).hexdigest()[:digits]
