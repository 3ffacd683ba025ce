"""Error against bytes and against seconds of representations of single shapes.

    python -m experiments.levels_of_detail --out=FOLDER                                  two procedural shapes
    python -m experiments.levels_of_detail --shapes=mug,bunny.ply --minutes=0 --out=FOLDER    without the network
    python -m experiments.levels_of_detail --out=FOLDER --rows=splines --again           some rows measured again
    python -m experiments.levels_of_detail --out=FOLDER --write                          into docs/results.md

Each closed mesh is made a spline (`jonet.represent`), a DeepSDF network of its own, a code of a decoder of all shapes,
a bitmap, truncated distances and a simpler mesh, and from points with normals a spline, a Poisson reconstruction and
radial basis functions, each with several budgets; written to bytes, read back and scored.  FOLDER gets `levels.json`
(stored rows are not measured again).  Seconds are processor seconds, summed over all cores, which are little affected
by other programs; what is compiled is left out, but for the networks.  Poisson reconstruction is Open3D's, of the
extra `bench`, and left out without it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from experiments import document, study
from experiments.levels_of_detail import clouds, report
from experiments.levels_of_detail.methods import Made, Method, methods
from experiments.levels_of_detail.scores import Shape
from jonet.errors import ConfigError, JonetError, MeshError
from jonet.storage import atomic

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
FIGURE = RESULTS.parent / "images" / "levels_of_detail.svg"
COMPILED = 0.05  # part of the seconds that compiles programs, above which a measurement is repeated
REPEATS = 3  # of a measurement, at most


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; ConfigError for impossible ones."""
    parser = argparse.ArgumentParser(
        "python -m experiments.levels_of_detail",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", default="aeroplane,mug", help="procedural families and closed mesh files, joined by commas")
    add("--out", dest="folder", type=Path, required=True, help="folder for the results")
    add(
        "--minutes",
        type=float,
        default=7.5,
        help="minutes of training of a network of each shape, and of one of all; 0: no network",
    )
    add("--points", type=int, default=1_000_000, help="points from which the IoU is estimated; 20 or more")
    add(
        "--subdivide",
        type=int,
        default=0,
        help="times that each mesh becomes smooth and gets four times the faces first",
    )
    add("--rows", default="", help="measure only rows whose names start with one of these, separated by ;")
    add("--again", action="store_true", help="measure rows again that are stored")
    add("--write", action="store_true", help="write the table and the figure of docs/results.md")
    options = parser.parse_args(arguments)
    if options.points < 20 or options.minutes < 0 or options.subdivide < 0:
        raise ConfigError("--points must be 20 or more, --minutes and --subdivide 0 or more")
    return options


def run(options: argparse.Namespace, shapes: Sequence[Shape], rows: Sequence[Method]) -> list[dict]:
    """Measures all rows of all shapes, one dictionary each, without those that failed."""
    wanted = {
        f"{method.group}, {method.setting}, {shape.name}": (method, shape)
        for shape in shapes
        for method in rows
        if len(shape.mesh.faces) > method.faces
    }
    facts = {"points": options.points, "subdivide": options.subdivide}
    found = study.measured(options, "levels.json", wanted, measure, options.again, **facts)
    return [row for row in found.values() if "error" not in row]


def measure(pair: tuple[Method, Shape]) -> dict:
    """The row of a method and a shape."""
    method, shape = pair
    row = {"group": method.group, "setting": method.setting, "shape": shape.name, "faces": len(shape.mesh.faces)}
    try:
        made, seconds = timed(lambda: method.make(shape), 1 if method.once else REPEATS)
    except MeshError as error:  # simplified so much that it is not closed any more
        print(f"{method.group}, {method.setting}: {error}", flush=True)
        return row | {"error": str(error)}
    if made.seconds is not None:
        seconds = {"seconds": made.seconds, "elapsed": made.seconds}
    row |= {"bytes": made.size, **seconds, **shape.errors(made.surface())}
    print(f"{method.group}, {method.setting}, {shape.name}: {row['bytes']:,} bytes, {row['seconds']:.2f} s", flush=True)
    return row


def timed(make: Callable[[], Made], repeats: int) -> tuple[Made, dict[str, float]]:
    """What is made and the seconds that it takes, repeated while programs are compiled."""
    compiled: list[float] = []

    def note(event: str, seconds: float, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        while True:
            compiled.clear()
            begun = time.process_time(), time.perf_counter()
            made = make()
            seconds = {"seconds": time.process_time() - begun[0], "elapsed": time.perf_counter() - begun[1]}
            repeats -= 1
            if not repeats or sum(compiled) <= COMPILED * seconds["elapsed"]:
                return made, seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if why := clouds.lacking():
            print(why, file=sys.stderr)
        shapes = [Shape.of(name.strip(), options.points, options.subdivide) for name in options.shapes.split(",")]
        found = run(options, shapes, methods(options.minutes, shapes))
        print(report.table(found))
        if options.write:
            document.write(RESULTS, report.BEGIN, report.END, report.table(found))
            atomic.write_text(FIGURE, report.svg(found))
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
