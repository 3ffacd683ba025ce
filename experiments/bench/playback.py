"""Work without its device: answers of the compiled programs are recorded in one call and played back in the next.

What remains is what the host does while a chip waits for it, or works on another batch.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jonet.inference import encode
from jonet.inference.fitting import methods, sharded_batch
from jonet.inference.surfaces import block_meshes, blocks
from jonet.networks import bound, field

MAKERS = (  # functions that give compiled programs
    (encode, "_program"),
    (methods, "_initial"),
    (sharded_batch, "program"),
    (block_meshes, "program"),
    (blocks, "program"),
    (field, "evaluation"),
)


class Host(NamedTuple):
    """Of one call: seconds of a core on the host and of wall time without the device, seconds of the device (of cores,
    where these are the device), programs that were dispatched."""

    host: float
    wall: float
    device: float
    device_cores: float
    programs: int


class Tape:
    """Answers of programs in the order of their calls, which must be the same in every call of the work."""

    def __init__(self):
        self.answers: list[Any] = []
        self.seconds = self.core_seconds = 0.0  # of the programs, while they were recorded
        self.place: int | None = None  # of the next answer that is played; None: programs run, and are recorded

    def of(self, program: Callable) -> Callable:
        """A program that is recorded, or whose answers are played."""

        def call(*arguments):
            if self.place is not None:
                self.place += 1
                return self.answers[self.place - 1]
            begun, core = time.perf_counter(), time.process_time()
            self.answers.append(jax.block_until_ready(program(*arguments)))
            self.seconds += time.perf_counter() - begun
            self.core_seconds += time.process_time() - core
            return self.answers[-1]

        return call


@contextlib.contextmanager
def taped() -> Iterator[Tape]:
    """Within this context all programs of `MAKERS`, and the folding of codes, are on a tape."""
    tape = Tape()
    before = [(owner, name, getattr(owner, name)) for owner, name in (*MAKERS, (bound, "_fold_all"))]
    try:
        for owner, name, maker in before[:-1]:
            setattr(owner, name, functools.cache(lambda *given, maker=maker, **named: tape.of(maker(*given, **named))))
        bound._fold_all = tape.of(before[-1][2])
        yield tape
    finally:
        for owner, name, maker in before:
            setattr(owner, name, maker)


def host(work: Callable[[], Any], repeats: int = 5) -> Host:
    """What a call of `work` costs the host: medians, after a call that compiles.

    Its programs must be dispatched from one thread, in the same order each time.
    """
    with taped() as tape:
        work()
        tape.answers.clear()
        tape.seconds = tape.core_seconds = 0.0
        work()
        cores, walls = [], []
        for _ in range(repeats):
            tape.place, core, wall = 0, time.process_time(), time.perf_counter()
            work()
            cores.append(time.process_time() - core)
            walls.append(time.perf_counter() - wall)
        return Host(
            statistics.median(cores), statistics.median(walls), tape.seconds, tape.core_seconds, len(tape.answers)
        )
