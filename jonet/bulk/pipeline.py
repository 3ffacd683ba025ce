"""Concurrent reading, solving and writing: threads read inputs ahead and write results while batches are solved.

The pipeline does not depend on what is processed.  A batch for which memory runs out is halved, and later batches are
no larger.  A batch that raises a JonetError is also halved, until the input that causes it is alone and becomes a
failed row.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from jonet import resources
from jonet.bulk.manifest import FAILED, Row
from jonet.errors import JonetError, out_of_device_memory


def threads(cores: int) -> tuple[int, int]:
    """How many threads read, and how many write: reading one input waits for the disk and parses, and on a host with
    many cores two writers would be slower than an accelerator's meshes."""
    return max(4, cores), max(2, cores // 2)


def _nothing(source: Any) -> dict[str, Any]:
    return {}


class Stages(NamedTuple):
    """What a job does with an input: read (in another thread or process), solve in a batch, write (in a thread)."""

    read: Callable[[Any], Any]  # source → item; any exception makes a failed row
    together: Callable[[Any], Hashable]  # item → its group; batches contain items of one group
    solve: Callable[[list[Any]], Sequence[Any]]  # a batch of items → their results; in the calling thread
    write: Callable[[str, Any], Row]  # writes a result and returns its row; the pipeline adds the seconds
    stamp: Callable[[Any], dict[str, Any]] = _nothing  # source → identification of its content; runs where `read` does


class Outcome(NamedTuple):
    """What a call did.

    rows: of the written inputs.  seconds: wall time.  solving, reading, writing: the parts of it in which a batch was
    solved, and in which nothing was solved because inputs were not read yet, or results not written.  solved: number of
    inputs that were solved or failed; some rows may not be written yet.  total: number of all inputs.
    """

    rows: list[Row]
    seconds: float
    solving: float
    reading: float
    writing: float
    solved: int
    total: int


class _Item(NamedTuple):
    key: str
    held: Any
    seconds: float
    input: dict[str, Any]


class Pipeline:
    """Runs the stages of one job; see `run`."""

    def __init__(self, stages: Stages, keep: Callable[[Row], Row], batch: int, executor: Executor | None = None):
        """keep: stores each row, and returns it as stored.  batch: number of inputs solved at once.  executor: runs
        `read`, threads if None."""
        self.stages, self.keep, self.batch, self.executor = stages, keep, batch, executor
        self.rows: list[Row] = []
        self.solving = self.reading = self.writing = 0.0
        self.solved = 0
        self._written: collections.deque[Future] = collections.deque()

    def run(self, sources: Mapping[str, Any], progress: Callable[[Outcome], None] = lambda outcome: None) -> Outcome:
        """Processes all sources, given by name.  progress: called after each batch.

        Errors that are not caused by an input are raised: a full disk, a lost device.
        """
        begun = time.monotonic()
        groups: dict[Hashable, list[_Item]] = collections.defaultdict(list)

        def now() -> Outcome:
            waited = self.solving, self.reading, self.writing
            return Outcome(list(self.rows), time.monotonic() - begun, *waited, self.solved, len(sources))

        reading, writing = threads(resources.cores())
        with ThreadPoolExecutor(reading) as readers, ThreadPoolExecutor(writing) as writers:
            try:
                with contextlib.closing(self._read(iter(sources.items()), self.executor or readers)) as items:
                    for item in items:
                        group = groups[self.stages.together(item.held)]
                        group.append(item)
                        if len(group) >= self.batch:
                            self._solve(group, writers)
                            group.clear()
                            progress(now())
                for group in filter(None, groups.values()):
                    self._solve(group, writers)
                    progress(now())
                self._settle(0)
            except BaseException:
                readers.shutdown(cancel_futures=True)
                raise
        return now()

    def _read(self, sources: Iterator[tuple[str, Any]], executor: Executor) -> Generator[_Item, None, None]:
        """Items in order, read up to `batch` inputs ahead; inputs that cannot be read become failed rows."""
        waiting: collections.deque[tuple[str, Future]] = collections.deque()
        try:
            while True:
                while len(waiting) <= self.batch and (source := next(sources, None)) is not None:
                    task = executor.submit(_attempt, self.stages.stamp, self.stages.read, source[1])
                    waiting.append((source[0], task))
                if not waiting:
                    return
                key, task = waiting.popleft()
                begun = time.monotonic()
                stamp, held, cause, seconds = task.result()  # raises if a worker process was killed
                self.reading += time.monotonic() - begun
                if cause:
                    self._fail(key, cause, stamp)
                else:
                    yield _Item(key, held, seconds, stamp)
        finally:
            for _, task in waiting:
                task.cancel()

    def _solve(self, items: list[_Item], writers: Executor) -> None:
        """Solves a list in pieces of at most `batch`, and submits the results for writing."""
        pending = [list(items)]
        while pending:
            piece = pending.pop()
            if len(piece) > self.batch:
                pending += [piece[self.batch :], piece[: self.batch]]
                continue
            begun = time.monotonic()
            try:
                results = self.stages.solve([item.held for item in piece])
            except Exception as error:
                if not (ran_out := out_of_memory(error)) and not isinstance(error, JonetError):
                    raise
                if len(piece) == 1:
                    self._fail(piece[0].key, reason(error), piece[0].input)
                    continue
                half = -(-len(piece) // 2)
                if ran_out:
                    self.batch = half
                    print(f"memory ran out for {len(piece)} shapes at once: continuing with {half}", file=sys.stderr)
                pending += [piece[half:], piece[:half]]
                continue
            finally:
                took = time.monotonic() - begun
                self.solving += took
            self.solved += len(piece)
            for item, result in zip(piece, results, strict=True):
                seconds = item.seconds + took / len(piece)
                self._written.append(writers.submit(self._write, item, result, seconds))
            self._settle(2 * self.batch)

    def _write(self, item: _Item, result, seconds: float) -> Row:
        try:
            row, took = _timed(self.stages.write, item.key, result)
        except JonetError as error:
            row, took = Row(item.key, reason(error)), 0.0
        return self.keep(row._replace(seconds=seconds + took, input=item.input))

    def _settle(self, most: int) -> None:
        """Waits until at most `most` results are still to be written; raises their errors."""
        begun = time.monotonic()
        while len(self._written) > most or (self._written and self._written[0].done()):
            self.rows.append(self._written.popleft().result())
        self.writing += time.monotonic() - begun

    def _fail(self, key: str, cause: str, stamp: dict[str, Any]) -> None:
        row = self.keep(Row(key, cause, input=stamp))
        self.solved += 1
        self.rows.append(row)
        print(f"{key}: {row.status}", file=sys.stderr)


def reason(error: Exception) -> str:
    """The status of an input that could not be used."""
    cause = " ".join(str(error).split()) or "no reason given"
    kind = "" if isinstance(error, JonetError) else f"{type(error).__name__}: "
    return f"{FAILED}: {kind}{cause[:500]}"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the host or a device ran out of memory."""
    return isinstance(error, MemoryError) or bool(out_of_device_memory(error))


def _timed(do: Callable, *arguments):
    begun = time.monotonic()
    return do(*arguments), time.monotonic() - begun


def _attempt(stamp: Callable, read: Callable, source) -> tuple[dict[str, Any], Any, str, float]:
    """The source's stamp, its item, the cause if it could not be read (else ""), and the seconds of reading."""
    begun, stamped = time.monotonic(), {}
    try:
        stamped = stamp(source)  # before reading, so that a change meanwhile is noticed by the next call
        return stamped, read(source), "", time.monotonic() - begun
    except Exception as error:  # readers raise many kinds of errors for damaged files
        return stamped, None, reason(error), time.monotonic() - begun
