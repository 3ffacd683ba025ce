"""Progress on stderr: a tqdm bar on a terminal, else (a file, a pipe) a line every 30 seconds."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between lines
_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Switches the display of progress in this process off, or on again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether the display of progress is switched off."""
    return _quiet


class Progress:
    """Shows the progress of some work within a context.

    what: name of the work.  unit: what is counted, in the singular.  total, done: the number of units, and how many of
    them were done before.  shown: whether to show it at all; nothing is shown after `be_quiet` either.
    """

    def __init__(self, what: str, unit: str, total: int, done: int = 0, *, shown: bool = True):
        self.what, self.unit, self.total, self.done = what, unit, total, done
        self._first, self._begun = done, time.monotonic()
        self._printed = self._begun
        self._lines = shown and not _quiet and not sys.stderr.isatty()
        bar = shown and not _quiet and not self._lines
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr, disable=not bar)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, done: int, facts: str = "") -> None:
        """Updates the display.  done: number of units done so far.  facts: further text (loss, rate)."""
        self._bar.set_postfix_str(facts, refresh=False)
        self._bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self._lines and now - self._printed >= EVERY:
            self._printed = now
            print(self._line(now - self._begun, facts), file=sys.stderr, flush=True)

    def _line(self, seconds: float, facts: str) -> str:
        text = f"{self.what}: {self.unit} {self.done:,} of {self.total:,}"
        pace = (self.done - self._first) / seconds
        if pace > 0:
            facts = ", ".join(filter(None, [facts, f"{pace:,.3g} {self.unit}s/s"]))
            left = (self.total - self.done) / pace
            facts += f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
        return f"{text}, {facts}" if facts else text
