"""Runs one program at a time: one JSON request per line on standard input, one JSON answer per line on standard output.

{"start": name, "with": {...}} creates the program, which finds its fastest setting and runs once to warm up;
{"run": {...}} runs it once.  The answer contains "seconds", "cpu_seconds", "peak_gb", and what the program adds.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

from experiments.bench.machine import peak
from experiments.bench.peer import evaluation, grids, meshing, training
from experiments.bench.peer.lifetime import end_with_parent

PROGRAMS = {
    "deepsdf_step": training.DeepSDFStep,
    "points_step": training.PointsStep,
    "small_training": training.SmallTraining,
    "distances": evaluation.Distances,
    "occupancies": evaluation.Occupancies,
    "fit": evaluation.Fit,
    "mesh_distances": meshing.Dense,
    "mesh_occupancies": meshing.Octree,
    "grids": grids.GridTraining,
}


def main() -> None:
    end_with_parent()
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    torch.set_float32_matmul_precision("high")  # as JAX's default: TF32 on devices that have it
    answers, sys.stdout = sys.stdout, sys.stderr
    program = None
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            program = PROGRAMS[request["start"]](**request["with"])
            answer = {"setting": program.setting, "torch": torch.__version__}
            peak(reset=True)
        else:
            begun = time.process_time()
            answer = program(**request["run"])
            answer |= {"cpu_seconds": time.process_time() - begun, "peak_gb": peak()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
