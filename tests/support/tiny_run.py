"""Whole runs of deepsdf on a few shapes in a second: folders of meshes, options and results."""

import json
import shutil
from pathlib import Path

import numpy as np
import program

from jonet.data.families import make
from jonet.geometry import mesh_files

OPTIONS = {
    "shapes.test-fraction": 0.25,
    "samples.near": 400,
    "samples.uniform": 100,
    "samples.surface": 200,
    "samples.occupancies": 0,
    "network.dims": "8 8",
    "network.latent-size": 2,
    "network.latent-in": 1,
    "network.norm-layers": 0,
    "batch-shapes": 2,
    "batch-points": 16,
    "minutes": 0,
    "steps": 3,
    "learning.micro-batch": 32,
    "fitting.gauss-newton.points": "64 64 64",
    "surfaces.resolution": 8,
    "surfaces.refine-steps": 1,
    "scores.volume-points": 200,
    "scores.surface-points": 200,
    "scores.chamfer-points": 200,
    "scores.accuracy-points": 100,
    "scores.emd-points": 20,
    "rebuilt-train": 1,
    "generated": 0,
}
STAGES = "prepare,train,reconstruct,evaluate"  # a page takes longer than all of these


def write_meshes(folder: Path, versions=(0, 0, 0, 0)) -> None:
    """Writes mugs m0.ply, m1.ply, …, each in one of several versions."""
    for i, version in enumerate(versions):
        mesh_files.write(make("mug", version, i), folder / f"m{i}.ply")


def start(workdir: Path, data: Path | str, stages: str = STAGES, task: str = "deepsdf", **changed) -> int:
    """Runs the stages; the exit status.  changed: options, `__` for a dot and `_` for a dash."""
    changed = {name.replace("__", ".").replace("_", "-"): value for name, value in changed.items()}
    words = ["--task", task, "--data", str(data), "--workdir", str(workdir), "--stages", stages]
    for name, value in {**OPTIONS, **changed}.items():
        words += [f"--{name}", *str(value).split()]
    return program.run(program.without_training(words) if "model" in changed else words)


def results(workdir: Path) -> dict:
    """What a run made, in a form that is equal where the results are."""
    found = json.loads((workdir / "metrics.json").read_text("utf-8"))
    found = {name: json.dumps(found[name]) for name in ("summary", "shapes", "train", "nearest", "bytes")}
    for path in sorted([workdir / "codes.npz", *workdir.glob("model/*.npz")]):
        kind = path.name.partition("-")[0].removesuffix(".npz")
        with np.load(path) as file:
            found |= {f"{path.parent.name == 'model'} {kind} {name}": file[name].tobytes() for name in file.files}
    return found | {path.name: path.read_bytes() for path in workdir.glob("meshes/*/*.ply") if path.name != "mine.ply"}


def copy(folder: Path, to: Path) -> None:
    """A copy whose files have other times."""
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
