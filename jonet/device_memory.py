"""A device that runs out of memory: lists go on in smaller pieces, what does not fit is one sentence."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from jonet import parallel
from jonet.errors import DeviceMemoryError, out_of_device_memory


@contextlib.contextmanager
def reporting(work: str, remedy: str) -> Iterator[None]:
    """Within this context (or function: it is a decorator, too) a device out of memory raises DeviceMemoryError.

    work: what needs the memory.  remedy: what to lower.
    """
    try:
        yield
    except RuntimeError as error:
        if not (cause := out_of_device_memory(error)):
            raise
        raise DeviceMemoryError(f"{work} needs more memory than the device has ({cause}); {remedy}") from error


class Pieces:
    """Long lists in pieces, computed one after the other, whose size the program chose.

    items: what the lists hold, as a plural.  most: items per device in a piece.  fewer: as many once a device has run
    out of memory.  Lists are padded to a few capacities, so `fewer` must have a smaller one, of less work at a time.
    """

    def __init__(self, items: str, most: int, fewer: int):
        self.items, self.most, self.fewer = items, most, fewer

    def map(
        self,
        work: Callable[[slice], Any],
        size: int,
        fetch: Callable[[slice, Any], Any] | None = None,
        most: int | None = None,
    ) -> list:
        """[fetch(piece, work(piece)), …] for consecutive slices of a list of `size` items.

        A piece's `work` is dispatched before the results of the one before are fetched.  fetch: None for the results of
        `work` themselves.  most: fewer items per device in a piece, since these are large; 1 if it is less.
        If a device runs out of memory, this list continues, and all later ones of this process are cut, at `fewer`
        items, with a warning.  The error is raised if that does not help, and by one of several processes, which must
        all dispatch the same pieces.
        """
        most, first = self.most if most is None else max(1, min(most, self.most)), 0
        results, pending = [], []
        while first < size or pending:
            try:
                if first < size:
                    piece = slice(first, min(first + most * parallel.count(), size))
                    pending.append((piece, work(piece)))
                    first = piece.stop
                if len(pending) > 1 or first == size or fetch is None:
                    piece, result = pending[0]
                    results.append(result if fetch is None else fetch(piece, result))
                    del pending[0]
            except RuntimeError as error:
                least = min(most, -(-size // parallel.count())) <= self.fewer
                if least or parallel.is_multiprocess() or not out_of_device_memory(error):
                    raise
                warnings.warn(
                    f"a device ran out of memory for {most} {self.items} at once; continuing with {self.fewer}",
                    stacklevel=3,
                )
                # kept for later lists, since a device may wait for seconds until it says that there is no memory
                most = self.most = self.fewer
                first = pending[0][0].start if pending else first
                pending.clear()
        return results
