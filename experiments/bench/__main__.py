"""Measures jonet against plain PyTorch programs, one row per workload.

    python -m experiments.bench                                     all rows (about half an hour on 2 cores)
    python -m experiments.bench --rows=sdf_decoder,fit_codes        some rows
    python -m experiments.bench --quick                             all rows on tiny workloads, to check that they run
    python -m experiments.bench --json=FILE --run=runs/deepsdf-quick

Both sides use the same processors, one after the other.  PyTorch runs in two other processes: one whose allocator keeps
freed memory, to which ratios refer, and one with the default allocator.  Without PyTorch, only jonet is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from experiments.bench import decoders, fitting, jobs, machine, meshing, peers, quality, representing, training
from experiments.bench.rows import TARGETS, Bench
from experiments.bench.trained import Trained
from jonet import parallel
from jonet.errors import ConfigError, JonetError
from jonet.storage import atomic

ROWS = {
    function.__name__: function
    for function in (
        training.deepsdf_train_step,
        training.onet_points_train_step,
        decoders.occupancy_decoder,
        decoders.sdf_decoder,
        fitting.fit_codes,
        meshing.mesh_sdf_256,
        meshing.mesh_occupancy_128,
        meshing.meshes_batch_64,
        jobs.extract_device,
        jobs.bulk_fit,
        jobs.bulk_reconstruct,
        quality.time_to_quality,
        representing.represent_shape,
    )
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to measure, joined by commas (default: all)")
    parser.add_argument("--json", type=Path, help="file to write the rows to; other rows in it are kept")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, which only check that the rows run")
    parser.add_argument(
        "--run", type=Path, help="finished run folder (deepsdf, quick) whose network and shapes are used"
    )
    parser.add_argument("--minutes", type=float, default=2.5, help="minutes of training if no --run is given")
    parser.add_argument("--whole", action="store_true", help="time_to_quality: PyTorch trains all steps, too")
    parser.add_argument("--codes", type=Path, help=".npy file for the codes that PyTorch fits, which takes minutes")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per row, 1 or more")
    options = parser.parse_args(arguments)
    options.rows = [name.strip() for name in options.rows.split(",") if name.strip()]
    if unknown := [name for name in options.rows if name not in ROWS]:
        raise ConfigError(f"--rows names {unknown[0]!r}, but the rows are {', '.join(ROWS)}")
    if options.repeats < 1:
        raise ConfigError("--repeats must be at least 1")
    return options


def measure(options: argparse.Namespace) -> list[dict]:
    """Measures the rows, one dictionary each, and writes them after every row."""
    both = peers.both()
    if not both:
        print("PyTorch is not installed (pip install -e '.[bench]'): measuring jonet only", file=sys.stderr)
    print(parallel.describe(), file=sys.stderr)
    done = []
    with tempfile.TemporaryDirectory(prefix="jonet-bench-") as folder:
        minutes = min(options.minutes, 0.05) if options.quick else options.minutes
        trained = Trained(Path(folder) / "run", options.run, minutes, options.quick)
        rate = machine.matrix_rate()
        bench = Bench(both, rate, Path(folder), trained, options.repeats, options.quick, options.whole, options.codes)
        try:
            for name in options.rows:
                print(f"{name} …", file=sys.stderr, flush=True)
                done.append({"row": name, **ROWS[name](bench)})
                print(line(done[-1]), flush=True)
                if options.json:
                    keep(options.json, done[-1])
        finally:
            for peer in both.values():
                peer.close()
    return done


def keep(file: Path, row: dict) -> None:
    """Writes a row into the list in a file, in the order of ROWS; it replaces an earlier row of the same name."""
    before = json.loads(file.read_text("utf-8")) if file.exists() else []
    rows = {old["row"]: old for old in before} | {row["row"]: row}
    atomic.write_text(file, json.dumps([rows[name] for name in ROWS if name in rows], indent=1) + "\n")


def line(row: dict) -> str:
    """A row as one line of text: both sides, ratios, and the fraction of the matrix product rate."""
    text = f"{row['row']:24s} ours {row['ours']:.4g} {row['unit']}"
    if row["theirs"] is not None:
        target = TARGETS[row["row"]][0]
        text += f" · theirs {row['theirs']:.4g} · ratio {row['ratio']:.2f} (aim {target:g})"
    if row["ratio_default"] is not None:
        text += f" · to its default allocator {row['ratio_default']:.2f}"
    if row["of_peak"] is not None:
        text += f" · {row['of_peak']:.0%} of the matrix rate of {row['matrix_rate_gflops']:g} GFLOP/s"
    return text


def main(arguments: list[str] | None = None) -> int:
    try:
        measure(parse(sys.argv[1:] if arguments is None else arguments))
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    sys.exit(main())
