"""A model of whole jobs: shapes a second of a machine, from the time of its chip, its cores and its disk.

    python -m experiments.accelerators.jobs --run=RUN --measure      measures the host's shares here, and what a job of
                                                                     this machine takes beside what the model predicts
    python -m experiments.accelerators.jobs --rows=rows.json --write     writes the table of docs/accelerators.md

A job reads, solves and writes at the same time, so what takes longest bounds it:

    chip          its programs and, where it waits for them, the thread that dispatches them
    dispatching   that thread alone, where another batch keeps the chip busy meanwhile, and threads that it waits for
    reading, writing     of the threads that do it
    cores         all of the host's work, shared by all cores; on a CPU the programs, too
    disk          bytes read and written
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import document
from experiments.accelerators import octahedra
from jonet import resources
from jonet.bulk.pipeline import threads
from jonet.errors import ConfigError, JonetError
from jonet.networks.layers import BLOCK
from jonet.storage import atomic

SHARES = Path(__file__).with_name("host.json")
DOCUMENT = Path(__file__).parents[2] / "docs" / "accelerators.md"
BEGIN, END = "<!-- jobs: python -m experiments.accelerators.jobs --write -->", "<!-- end of jobs -->"
PROGRAMS = {"extract": {f"extract/{part}" for part in octahedra.PASSES}, "fit": {"gauss_newton/high"}}  # of the chip
AIMS = {"extract": 500, "fit": 1000}  # shapes a second on an H100 with 16 cores
SHAPES, ROWS, RESOLUTION = 16, 8000, 128  # of the jobs that are measured
TOGETHER = 64  # codes that an accelerator fits at a time
START = 2.5e-6  # seconds in which a GPU starts a kernel


@dataclasses.dataclass(frozen=True)
class Share:
    """What one shape takes of each part of a machine.

    chip, dispatching, spread, reading, writing: seconds, of the chip and of one core each; spread: of threads on all
    cores, for which the dispatching one waits.  size: bytes read and written.  overlapped: whether the chip works on
    another batch while this one's thread does.
    """

    chip: float
    dispatching: float
    reading: float
    writing: float
    size: float
    spread: float = 0.0
    overlapped: bool = False


@dataclasses.dataclass(frozen=True)
class Machine:
    """cores: of the host.  disk: bytes a second.  is_cpu: whether the programs run on these cores."""

    cores: int
    disk: float = 1e9
    is_cpu: bool = False


MACHINES = {name: Machine(16) for name in ("h100-1", "h200-1", "v5e-1", "v6e-1")}


def bounds(share: Share, machine: Machine) -> dict[str, float]:
    """Seconds a shape of each part of a machine; the largest is what a long job takes for a shape."""
    readers, writers = (min(number, machine.cores) for number in threads(machine.cores))
    host = share.dispatching + share.spread + share.reading + share.writing + share.chip * machine.is_cpu
    dispatching = share.dispatching + share.spread / machine.cores
    return {
        "chip": share.chip + (0 if share.overlapped else dispatching),
        "dispatching": dispatching,
        "reading": share.reading / readers,
        "writing": share.writing / writers,
        "cores": host / machine.cores,
        "disk": share.size / machine.disk,
    }


def predicted(share: Share, machine: Machine) -> tuple[float, str]:
    """Shapes a second, and the part of the machine that bounds them."""
    found = bounds(share, machine)
    slowest = max(found, key=lambda name: found[name])
    return 1 / found[slowest], slowest


def of_chip(verb: str, measured: dict[str, Any], rates: dict[str, float]) -> float:
    """Seconds of a chip for one shape.

    measured: of `measure`, with the part of all phases that a fit takes.  rates: by program, codes or meshes a second.
    """
    if verb == "fit":
        return measured["phases"] / rates["gauss_newton/high"]
    return sum(1 / rates[program] for program in PROGRAMS[verb])


def rows_of(file: Path, decoder: str = "deepsdf/6x128") -> dict[str, dict[str, float]]:
    """By target, the rates of the programs of a decoder, of the rows of `experiments.accelerators`; with the time in
    which a GPU starts kernels, which these leave out."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(file.read_text("utf-8")):
        if row["program"].startswith(f"{decoder}/") and "rate" in row:
            started = 1e3 * START * (row["kernels"] or 0)
            rate = row["rate"] * row["milliseconds"] / (row["milliseconds"] + started)
            found.setdefault(row["target"], {})[row["program"].removeprefix(f"{decoder}/")] = rate
    return found


def table(shares: dict[str, dict[str, Any]], rates: dict[str, dict[str, float]]) -> str:
    """The jobs of every machine, in Markdown."""
    from experiments.accelerators.table import markdown, number

    body = []
    for target, machine in MACHINES.items():
        for verb in AIMS:
            if not PROGRAMS[verb] <= rates.get(target, {}).keys():
                continue
            measured = shares[verb]
            share = Share(chip=of_chip(verb, measured, rates[target]), **measured["share"])
            rate, slowest = predicted(share, machine)
            parts = [number(1e3 * seconds) for seconds in bounds(share, machine).values()]
            what = {"extract": f"meshes at {RESOLUTION}³", "fit": "codes of samples"}[verb]
            bound = "≤ " * (verb == "extract" and target.startswith("v"))  # of TPUs, whose gathers have no time
            body.append([target, what, *parts, f"{bound}{number(rate)} ({slowest})"])
    head = ["chip, 16 cores", "shapes", *(f"ms: {name}" for name in bounds(Share(1, 1, 1, 1, 1), Machine(1)))]
    return markdown([*head, "a second (bound)"], body)


# Measurement


def measure(run: Path, shapes: int = SHAPES, resolution: int = RESOLUTION) -> dict[str, dict[str, Any]]:
    """The host's shares of both jobs on this machine, and the rates that were predicted and measured here.

    Both are by seconds of cores, so that other programs on the machine do not count.
    run: a finished run folder of the preset quick of deepsdf.
    """
    import jonet
    from jonet.data import store as stores

    model, store = jonet.load(run), stores.open(run / "store")
    here = Machine(resources.cores(), is_cpu=True)
    rng = np.random.default_rng(0)
    samples = [rng.permutation(np.asarray(store.samples(i % len(store))))[:ROWS] for i in range(shapes)]
    with tempfile.TemporaryDirectory(prefix="jonet-jobs-") as folder:
        found = {
            "extract": _meshes(model, Path(folder), shapes, resolution),
            "fit": _fits(model, Path(folder), samples),
        }
    for of_verb in found.values():
        own = of_verb["share"] | {"dispatching": of_verb["dispatching_here"]}
        of_verb |= {"predicted": predicted(Share(chip=of_verb["chip_here"], **own), here)[0], "cores": here.cores}
    return found


def _fits(model, folder: Path, samples: list[np.ndarray]) -> dict[str, Any]:
    """Fits of samples in memory, and codes in files of their own."""
    from experiments.bench import playback
    from jonet.inference.fitting import methods, observations

    taken, settings, before = [], model.fitting.gauss_newton, methods.gauss_newton.phases

    def phases(advance, solver, state, size, limit):
        def counted(state, active):
            taken[-1].append(int(active.sum()))
            return advance(state, active)

        taken.append([])
        return before(counted, solver, state, size, limit)

    methods.gauss_newton.phases = phases
    try:
        codes = model.fit(samples)
    finally:
        methods.gauss_newton.phases = before

    def job():
        for i, code in enumerate(map(model.fit(samples).__getitem__, range(len(samples)))):
            code.save(folder / f"{i}.npz", sync=False)

    job()
    measured = len(samples) * resources.cores() / _seconds(job, time.process_time, 3)
    several = (samples * TOGETHER)[:TOGETHER]
    shapes = observations.observe(observations.ObservedArrays(samples=several))
    index, limit = np.arange(TOGETHER), max(settings.points)
    spread = _seconds(lambda: observations.pack_all(shapes, model.fitting, limit, index), time.process_time) / TOGETHER
    host = playback.host(lambda: model.fit(several))
    blocks = [-(-points // BLOCK) for points in settings.points]
    all_phases = zip(blocks, settings.phases, (model.fitting.starts, 1, 1), strict=True)
    most = len(samples) * sum(n * limit * tries for n, limit, tries in all_phases)
    done = sum(n * sum(level) for n, level in zip(blocks, taken, strict=True))
    share = {
        "dispatching": host.host / TOGETHER - spread,
        "spread": spread,
        "reading": 0.0,
        "overlapped": True,
        "writing": _seconds(lambda: codes[0].save(folder / "a.npz", sync=False)),
        "size": float((folder / "a.npz").stat().st_size),
    }
    here = {"chip_here": host.device_cores / TOGETHER, "dispatching_here": share["dispatching"]}
    return {"share": share, "phases": done / most, "programs": host.programs, "measured": measured, **here}


def _meshes(model, folder: Path, shapes: int, resolution: int) -> dict[str, Any]:
    """A bulk job from codes to meshes in files."""
    from experiments.bench import playback
    from jonet import bulk
    from jonet.geometry import mesh_files

    model.codes[range(shapes)].save(folder / "codes.npz")

    def job():
        shutil.rmtree(folder / "meshes", ignore_errors=True)
        bulk.extract(model, folder / "codes.npz", folder / "meshes", resolution=resolution)

    job()
    measured = shapes * resources.cores() / _seconds(job, time.process_time, 3)
    count = {"device": shapes, "host": min(4, shapes)}  # one batch of each backend
    codes, by = model.codes.values, {}
    for name, several in count.items():
        one = dataclasses.replace(model, surfaces=dataclasses.replace(model.surfaces, backend=name))
        by[name] = playback.host(lambda one=one, several=several: one.extract(codes[:several], resolution))
    mesh = model.extract(codes[:1], resolution)[0]
    writing = _seconds(lambda: mesh_files.write(mesh, folder / "a.ply"))
    share = {"dispatching": by["device"].host / shapes, "reading": 0.0, "writing": writing, "overlapped": True}
    return {
        "share": share | {"size": float((folder / "a.ply").stat().st_size)},
        "measured": measured,
        "programs": by["device"].programs,
        "chip_here": by["host"].device_cores / count["host"],
        "dispatching_here": by["host"].host / count["host"],
    }


def _seconds(work: Callable[[], Any], clock: Callable[[], float] = time.thread_time, repeats: int = 7) -> float:
    """The median seconds of `work`, of a core or by another clock."""
    taken = []
    for _ in range(repeats):
        begun = clock()
        work()
        taken.append(clock() - begun)
    return float(np.median(taken))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m experiments.accelerators.jobs", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--run", type=Path, help="finished run folder (deepsdf, quick) whose network and shapes are used"
    )
    parser.add_argument("--measure", action="store_true", help="measure the host's shares on this machine")
    parser.add_argument("--rows", type=Path, help="rows of experiments.accelerators")
    parser.add_argument("--write", action="store_true", help="write the table of docs/accelerators.md")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.measure:
            if options.run is None:
                raise ConfigError("--measure needs the network and shapes of a run; give --run=FOLDER")
            found = measure(options.run)
            atomic.write_text(SHARES, json.dumps(found, indent=1) + "\n")
            for verb, one in found.items():
                print(f"{verb}: {one['predicted']:.3g} a second predicted, {one['measured']:.3g} measured here")
        if options.rows is not None:
            text = table(json.loads(SHARES.read_text("utf-8")), rows_of(options.rows))
            print(text)
            if options.write:
                document.write(DOCUMENT, BEGIN, END, text)
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
