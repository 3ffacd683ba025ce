"""Measurement of one workload on both sides in turn; the result is a row, a dictionary for the JSON file."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench import machine
from experiments.bench.peers import Peer
from experiments.bench.trained import Trained
from jonet import parallel, resources

TARGETS = {  # ratio to tuned PyTorch, fraction of the matrix rate
    "deepsdf_train_step": (1.7, 0.85),
    "onet_points_train_step": (1.5, None),
    "occupancy_decoder": (2.2, 0.85),
    "sdf_decoder": (1.3, 0.90),
    "fit_codes": (60.0, None),
    "mesh_sdf_256": (50.0, None),
    "mesh_occupancy_128": (3.0, None),
    "meshes_batch_64": (1.5, None),
    "extract_device": (0.1, None),
    "bulk_fit": (0.7, None),
    "bulk_reconstruct": (0.7, None),
    "time_to_quality": (2.0, None),
    "represent_shape": (2.0, None),
}


@dataclasses.dataclass(eq=False)
class Bench:
    """Settings of the benchmark and what the rows have in common.

    peers: see `peers.both`.  rate: measures the matrix product rate (`machine.matrix_rate`).
    """

    peers: dict[str, Peer]
    rate: Callable[[], float]
    folder: Path  # for files that the processes exchange
    trained: Trained
    repeats: int = 5
    quick: bool = False
    whole: bool = False  # whether PyTorch also trains to the end, so that its quality is measured
    codes: Path | None = None  # file that keeps codes that take PyTorch minutes to fit


@dataclasses.dataclass(frozen=True)
class Unit:
    """Converts the seconds of one run: to seconds per item, for `amount` items, or to items per second (rate)."""

    name: str
    amount: float = 1.0
    rate: bool = False

    def figure(self, seconds: float) -> float:
        return self.amount / seconds if self.rate else seconds / self.amount


def compare(
    bench: Bench,
    workload: str,
    unit: Unit,
    ours: Callable[[], Any],
    program: str = "",
    arguments: dict[str, Any] | None = None,
    operations: float = 0.0,
    repeats: int | None = None,
    run: dict[str, Any] | None = None,
    sides: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Measures one workload: medians of interleaved repeats, after each side has run once.

    ours: one run, which returns when its results are computed.  program, arguments, run: of the peers, see
    `peer.__main__`.  operations: of the matrix products in one run of ours.  sides: other functions of ours, already
    compiled, that are measured in place of the peers.
    """
    ours()
    answers = {name: peer.start(program, arguments or {}) for name, peer in bench.peers.items() if program}
    others = dict(sides or {})
    taken: dict[str, list[float]] = {"ours": [], **{name: [] for name in [*answers, *others]}}
    rates, last, cpu = [], {}, {name: [] for name in taken}
    machine.peak(reset=True)
    for _ in range(repeats or bench.repeats):
        rates.append(bench.rate())
        for name, side in {"ours": ours, **others}.items():
            begun = time.process_time()
            taken[name].append(timed(side))
            cpu[name].append(time.process_time() - begun)
        for name in answers:
            last[name] = bench.peers[name].run(**(run or {}))
            taken[name].append(last[name]["seconds"])
            cpu[name].append(last[name].pop("cpu_seconds"))
    peaks = {"ours": round(machine.peak(), 3)} | {name: round(answer["peak_gb"], 3) for name, answer in last.items()}
    return row(bench, workload, unit, taken, rates, operations) | {
        "setting": {name: answer["setting"] for name, answer in answers.items()},
        "peak_gb": peaks,
        "device_peak_gb": machine.device_peak(),
        "cpu_seconds": {
            name: round(statistics.median(seconds), 4) for name, seconds in cpu.items()
        },  # of the peers as they ran, not extrapolated
        "peer": {name: {k: v for k, v in answer.items() if k != "peak_gb"} for name, answer in last.items()},
    }


def row(bench: Bench, workload, unit: Unit, taken: dict[str, list[float]], rates, operations=0.0) -> dict[str, Any]:
    """A row from the seconds of the repeats, by side, and the matrix rates measured between them."""
    middle = {name: statistics.median(times) for name, times in taken.items()}
    rate = statistics.median(rates)
    ours = middle["ours"]
    ratios = {name: round(seconds / ours, 3) for name, seconds in middle.items() if name != "ours"}
    return {
        "workload": workload,
        "ours": unit.figure(ours),
        "theirs": unit.figure(middle["theirs"]) if "theirs" in middle else None,
        "unit": unit.name,
        "ratio": ratios.get("theirs"),
        "of_peak": round(operations / ours / rate, 3) if operations else None,
        "device": parallel.describe(),
        "theirs_default": unit.figure(middle["theirs_default"]) if "theirs_default" in middle else None,
        "ratio_default": ratios.get("theirs_default"),
        "theirs_of_peak": round(operations / middle["theirs"] / rate, 3) if operations and "theirs" in middle else None,
        "floor": unit.figure(operations / rate) if operations else None,
        "matrix_rate_gflops": round(rate / 1e9, 1),
        "repeats": len(taken["ours"]),
        "spread": {name: [unit.figure(s) for s in sorted((min(times), max(times)))] for name, times in taken.items()},
        "ratio_of_best": round(min(taken["theirs"]) / min(taken["ours"]), 3) if "theirs" in taken else None,
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
        "threads": resources.cores(),
        "load": round(machine.load(), 1),
    }


def timed(work: Callable[[], Any]) -> float:
    """The seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
