"""File names from shape names: valid on every system, and unique."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 160  # bytes of one part of a path: below the usual 255, with room for suffixes
_FORBIDDEN = re.compile('[<>:"|?*\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]')  # surrogates but those of surrogateescape
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def encoded(name: str) -> bytes:
    """The bytes of a name, for hashing: UTF-8, or the original bytes of a file name that is not (surrogateescape)."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, which JSON and Windows file names can hold
        return name.encode("utf-8", "surrogatepass")


def safe(name: str) -> str:
    """A name as a relative path that cannot leave its folder and is valid on every system.

    `/` and `\\` separate folders; empty parts, `.` and `..` are dropped, characters that Windows forbids become `_`,
    and a part that is too long is truncated, with a digest of the full part appended.
    """
    return "/".join(_part(part) for part in re.split(r"[/\\]", name) if part.strip(" .")) or "unnamed"


def _part(part: str) -> str:
    valid = _FORBIDDEN.sub("_", part).strip(" ").rstrip(".") or "_"
    if _RESERVED.fullmatch(valid):
        valid = f"_{valid}"
    return valid if len(encoded(valid)) <= LONGEST else f"{_cut(valid)}-{_digest(part, 12)}"


def _cut(part: str) -> str:
    """The beginning of a part, with room for "-" and a digest of 12 digits."""
    return encoded(part)[: LONGEST - 13].decode("utf-8", "ignore").rstrip(" .")


def unique(names: Sequence[str]) -> list[str]:
    """Safe names of shapes, in their order, distinct on every system (ignoring case and Unicode normalization).

    Names whose safe forms clash, or of which one would be a folder of the other, get a digest of the full name
    appended.  So a name depends on the others only if it clashes with one, and on their order only among equal names.
    """
    result, seen = [safe(name) for name in names], Counter()
    hashed = []  # what is hashed: the name, with a counter for repeated ones
    for name in names:
        hashed.append(name if not seen[name] else f"{name}\0{seen[name]}")
        seen[name] += 1
    rounds = 0
    while clashing := _clashing(result):  # a name with its digest may clash again, so other digests are tried
        for i in clashing:
            *above, last = safe(names[i]).split("/")
            result[i] = "/".join([*above, f"{_cut(last)}-{_digest(hashed[i] + rounds * chr(0), 12)}"])
        rounds += 1
    return result


def _clashing(names: Sequence[str]) -> list[int]:
    """Indices of names that some system takes for another one, or for a parent folder of another one."""
    forms = [unicodedata.normalize("NFC", name).casefold() for name in names]
    count = Counter(forms)
    folders = {form.rsplit("/", i)[0] for form in count for i in range(1, form.count("/") + 1)}
    return [i for i, form in enumerate(forms) if count[form] > 1 or form in folders]


def _digest(name: str, digits: int) -> str:
    return hashlib.sha256(encoded(name)).hexdigest()[:digits]
