"""Progress on stderr: a tqdm bar on a terminal, else (a file, a pipe) a line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

EVERY = 30.0  # seconds between lines
_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Switches the display of progress in this process off, or on again."""
    global _quiet
    _quiet = quiet


class Progress:
    """Shows the progress of some work within a context.

    what: name of the work.  unit: what is counted, in the singular.  total, done: the number of units, None if it is
    not known, and how many of them were done before.  shown: whether to show it at all; nothing is shown after
    `be_quiet` either.  Lines come also while a unit takes longer than the time between them.
    """

    def __init__(self, what: str, unit: str, total: int | None, done: int = 0, *, shown: bool = True):
        self.what, self.unit, self.total, self.done = what, unit, total, done
        self._first, self._begun = done, time.monotonic()
        self._printed = self._begun
        self._lines = shown and not _quiet and not sys.stderr.isatty()
        bar = shown and not _quiet and not self._lines
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr, disable=not bar)
        self._facts, self._lock, self._ended = "", threading.Lock(), threading.Event()

    def __enter__(self) -> Progress:
        if self._lines:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._bar.close()

    def update(self, done: int, facts: str = "") -> None:
        """Updates the display, also to a changed `total`.  done: number of units done so far.  facts: further text."""
        self._bar.total = self.total
        self._bar.set_postfix_str(facts, refresh=False)
        self._bar.update(done - self.done)
        self.done, self._facts = done, facts
        self._print()

    def _watch(self) -> None:
        """Prints lines while nothing is updated, in a thread of its own."""
        left = EVERY
        while not self._ended.wait(left):
            self._print()
            left = max(0.0, self._printed + EVERY - time.monotonic())

    def _print(self) -> None:
        """Prints a line if the last one is old enough."""
        with self._lock:
            now = time.monotonic()
            if self._lines and now - self._printed >= EVERY:
                self._printed = now
                print(self._line(now - self._begun), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        facts = [self._facts] if self._facts else []
        pace = (self.done - self._first) / seconds
        if pace > 0:
            facts.append(f"{pace:,.3g} {self.unit}s/s")
        if pace > 0 and self.total is not None:
            left = (self.total - self.done) / pace
            facts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        else:
            facts.append(f"{seconds / 60:.0f} min so far" if seconds >= 90 else f"{seconds:.0f} s so far")
        count = f"{self.unit} {self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")
        return ", ".join([f"{self.what}: {count}" if self.total or self.done else self.what, *facts])


def tracked(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    """The items one after the other, with the progress of the work on them; further arguments as of `Progress`."""
    with Progress(what, unit, total) as shown:
        for done, item in enumerate(items, 1):
            yield item
            shown.update(done)
