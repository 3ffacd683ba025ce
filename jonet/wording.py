"""Words of messages, reprs and reports."""

from __future__ import annotations


def counted(number: int | None, one: str, many: str | None = None) -> str:
    """A number with what it counts: "1 shape", "2 shapes", "1,000 shapes"; "an unknown number of shapes" for None.

    one: the words after 1.  many: those after other numbers, `one` with an s if None: `counted(n, "code is", "codes
    are")`.
    """
    count = "an unknown number of" if number is None else f"{number:,}"
    return f"{count} {one if number == 1 else many or one + 's'}"
