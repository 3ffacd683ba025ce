"""Parts of a store that is being built: one file a shape, made by any process, found again after an interruption."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import secrets
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jonet import config
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape, Source
from jonet.data.voxels import SIDE
from jonet.errors import JonetError, MeshError, StoreError

COLUMNS = {  # arrays of every store, maybe without rows: type, shape of a row
    "sdf": ("float32", (4,)),
    "occupancy": ("float16", (3,)),
    "surface_points": ("float32", (3,)),
    "surface_normals": ("float32", (3,)),
    "vertices": ("float32", (3,)),
    "faces": ("int32", (3,)),
}
TWO_SIDED = ("sdf", "occupancy", "occupancy_near")
PATIENCE = 4.0  # seconds of work for which no processes are started


def columns(recipe: Recipe) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a store, by name: the type and the shape of a row; those that are always there come first."""
    side, channels = recipe.image_size, recipe.image_channels
    found = dict(COLUMNS)
    if recipe.near_occupancies:
        found["occupancy_near"] = ("float16", (3,))
    if recipe.voxels != "none":
        found["voxels"] = ("uint8", (SIDE**3 // 8,))
    if recipe.images:
        found |= {"images": ("uint8", (side, side, channels)), "cameras": ("float32", (3, 4))}
    return found


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to know: the folder of the unfinished store, and its settings."""

    folder: Path
    recipe: Recipe
    seed: int
    frame: str
    sign: str

    def settings(self) -> dict:
        return dict(recipe=config.to_dict(self.recipe), seed=self.seed, frame=self.frame, sign=self.sign)

    def part(self, source: Source) -> Path:
        return self.folder / "parts" / f"{hashlib.sha256(source.name.encode()).hexdigest()[:24]}.npz"


def prepare(sources: Sequence[Source], job: Job, executor, progress: bool) -> dict[str, str]:
    """Makes the parts that are missing; returns why sources cannot be used, by name.

    executor: see `store.build`; without one the work is done here while less than `PATIENCE` is left.
    """
    (job.folder / "parts").mkdir(parents=True, exist_ok=True)
    todo = [source for source in sources if not _is_made(source, job)]
    skipped: dict[str, str] = {}
    bar = tqdm(
        total=len(sources),
        initial=len(sources) - len(todo),
        desc="sampling",
        unit="shape",
        file=sys.stderr,
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )

    def note(source: Source, reason: str | None):
        bar.update()
        if reason:
            skipped[source.name] = reason
            warnings.warn(f"skipped {source.file}: {reason}", stacklevel=4)

    begun, done = time.monotonic(), 0
    with bar:
        while todo and not executor and (not done or (time.monotonic() - begun) / done * len(todo) < PATIENCE):
            note(todo[0], make(todo.pop(0), job))
            done += 1
        if not todo:
            return skipped
        with contextlib.nullcontext(executor) if executor else _processes(len(todo)) as pool:
            futures = {pool.submit(make, source, job): source for source in todo}
            try:
                for future in concurrent.futures.as_completed(futures):
                    note(futures[future], future.result())
            except concurrent.futures.BrokenExecutor as error:
                raise StoreError(
                    f"{job.folder}: a process that samples shapes ended; either memory ran out, or your script does "
                    "this outside of `if __name__ == '__main__':`. Run again to go on"
                ) from error
            finally:
                for future in futures:
                    future.cancel()
    return skipped


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Spawned processes, one a core: forked ones hang once JAX has started its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(min(cores, count), context, initializer=_one_thread)


def _one_thread():
    for name in ("LIBIGL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def make(source: Source, job: Job) -> str | None:
    """Makes the part of one source, in any process; returns why the source cannot be used, if so."""
    try:
        mark = source.mark()
        shape = source.shape(job.recipe, seed=job.seed, frame=job.frame, sign=job.sign)
        rows = {name: _checked(shape, name, *column) for name, column in columns(job.recipe).items()}
    except JonetError as error:
        return str(error)
    except Exception as error:  # one file of thousands must not end the work; it is named, and listed
        return f"{type(error).__name__}: {error}"
    facts = {
        "mark": mark,
        "similarity": shape.similarity.as_array().tolist(),
        "verdict": shape.verdict and shape.verdict.to_dict(),
        "rows": {name: [len(side) for side in sides] for name, sides in rows.items()},
    }
    arrays = {f"{name}.{i}": side for name, sides in rows.items() for i, side in enumerate(sides)}
    path = job.part(source)
    beside = path.with_suffix("." + secrets.token_hex(4))
    with beside.open("wb") as file:
        np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    os.replace(beside, path)
    return None


def _checked(shape: Shape, name: str, kind: str, row: tuple[int, ...]) -> list[np.ndarray]:
    """The rows of one array as they are stored, by side; MeshError where they are not finite, or a side is empty."""
    count = 2 if name in TWO_SIDED else 1
    sides = [np.asarray(side, kind).reshape(-1, *row) for side in shape.rows.get(name, [()] * count)]
    if len(sides) != count or not all(np.isfinite(side).all() for side in sides):
        raise MeshError(f"its rows for {name} are not finite, or not of {count} sides; make them anew")
    if any(len(side) for side in sides) and not all(len(side) for side in sides):
        raise MeshError(f"of its samples for {name} none are {'outside' if len(sides[1]) else 'inside'}")
    if name not in COLUMNS and not all(len(side) for side in sides):
        raise MeshError(f"there are no {name} of it, which the recipe asks for")
    return sides


def facts(source: Source, job: Job) -> dict:
    """What a part says of itself: mark, similarity, verdict, and rows (their numbers by array and side)."""
    with np.load(job.part(source), allow_pickle=False) as part:
        return json.loads(part["facts"].tobytes())


def _is_made(source: Source, job: Job) -> bool:
    try:
        return source.unchanged(facts(source, job)["mark"])
    except Exception:  # missing, or whatever a damaged file makes numpy raise: then it is made again
        return False


def rows(sources: Sequence[Source], job: Job, name: str) -> Iterator[np.ndarray]:
    """The rows of one array of all sources, side by side and one after another."""
    for source in sources:
        with np.load(job.part(source), allow_pickle=False) as part:
            for i in range(2 if name in TWO_SIDED else 1):
                yield part[f"{name}.{i}"]
