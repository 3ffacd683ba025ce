"""Shards of a store that is being built: one .npz per shape, written by any process, reused after an interruption.

They are in the folder of the unfinished store, with the settings and a lock file:

    settings.json             the settings of the first shard; builds with other settings are refused
    .lock                     held by the one process that builds (`storage/locks.py`)
    parts/<name>-<key>.npz    one shard: hash of the source's name, digest of the settings

A shard is valid if its file name has the current settings, the mark inside matches the source's content, and its zip
checksums hold.  Shards of other settings, of changed sources, or damaged ones are sampled again.
Workers need no lock: each shard has its own file, which is written atomically.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import multiprocessing
import os
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jonet import config
from jonet.data import workers
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape, Source
from jonet.errors import ConfigError, JonetError, MeshError, StoreError
from jonet.geometry.voxels import SIDE
from jonet.progress import Progress
from jonet.storage import atomic
from jonet.storage.names import encoded
from jonet.wording import counted

# arrays of every store, possibly with no rows: dtype and shape of a row
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "sdf": ("float32", (4,)),
    "occupancy": ("float16", (3,)),
    "surface_points": ("float32", (3,)),
    "surface_normals": ("float32", (3,)),
    "vertices": ("float32", (3,)),
    "faces": ("int32", (3,)),
}
TWO_SIDED = ("sdf", "occupancy", "occupancy_near")
MESH = {"vertices": 5_000, "faces": 10_000}  # more than most procedural shapes have
PATIENCE = 4.0  # seconds: less work than this is done in this process, since starting others takes as long
SETTINGS, LOCK = "settings.json", ".lock"
FILES = re.compile(r"settings\.json|parts/[0-9a-f]{24}-[0-9a-f]{16}\.npz")  # of an unfinished store
UNREADABLE = {  # system errors that say nothing about the file's content: reading may succeed another time
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EIO", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "ENOSPC", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
}


class Damaged(StoreError):
    """A shard that is incomplete, or whose source has changed.  source: the source of the shard."""

    def __init__(self, source: Source, message: str):
        super().__init__(message)
        self.source = source


def columns(recipe: Recipe) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a store by name: dtype and shape of a row.  Those of every store come first."""
    side, channels = recipe.image_size, recipe.image_channels
    found = dict(COLUMNS)
    if recipe.near_occupancies:
        found["occupancy_near"] = ("float16", (3,))
    if recipe.voxels != "none":
        found["voxels"] = ("uint8", (SIDE**3 // 8,))
    if recipe.images:
        found |= {"images": ("uint8", (side, side, channels)), "cameras": ("float32", (3, 4))}
    return found


def counts(recipe: Recipe) -> dict[str, int]:
    """How many rows of each array a mesh gives; of its vertices and faces those of a usual one, `MESH`."""
    found = MESH | {
        "sdf": recipe.near + recipe.uniform,
        "occupancy": recipe.occupancies,
        "occupancy_near": recipe.near_occupancies,
        "surface_points": recipe.surface,
        "surface_normals": recipe.surface,
        "voxels": 1,
        "images": recipe.images,
        "cameras": recipe.images,
    }
    return {name: found[name] for name in columns(recipe)}


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What workers need to sample: the folder of the unfinished store, and its settings.  Picklable."""

    folder: Path
    recipe: Recipe
    seed: int
    frame: str
    sign: str

    def settings(self) -> dict:
        return dict(recipe=config.to_dict(self.recipe), seed=self.seed, frame=self.frame, sign=self.sign)

    def part(self, source: Source) -> Path:
        """The path of a source's shard.  The settings are in its name, so that a leftover worker of a build with other
        settings cannot overwrite it."""
        name = hashlib.sha256(encoded(source.name)).hexdigest()[:24]
        return self.folder / "parts" / f"{name}-{config.digest('part', self.settings())}.npz"


def settings(folder: Path) -> dict | None:
    """The settings of an unfinished store; None if there are none, or damaged ones."""
    try:
        found = json.loads((folder / SETTINGS).read_text("utf-8"))
        config.from_dict(Recipe, found["recipe"])
        return found if {"version", "seed", "frame", "sign"} <= found.keys() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        return None


def is_ours(folder: Path) -> bool:
    """Whether a folder is an unfinished store, or does not exist.

    Only then may it be changed or removed.  It is ours by its valid settings; without them (a build was killed before
    they were complete) only if it holds nothing but files with our names.
    """
    if not folder.is_dir():
        return not os.path.lexists(folder)
    if settings(folder):
        return True
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    if files == [SETTINGS]:  # a common file name, and settings of ours would have been read above
        return False
    return all(FILES.fullmatch(f) or f == LOCK or any(map(atomic.is_temporary, f.split("/"))) for f in files)


def any_made(folder: Path) -> bool:
    """Whether an unfinished store has shards."""
    return any((folder / "parts").glob("*.npz"))


def remove(folder: Path) -> None:
    """Removes all files of an unfinished store except the lock, which the caller must hold."""
    sweep(folder)
    atomic.remove_known(folder, lambda path: bool(FILES.fullmatch(path)))


def sweep(folder: Path) -> None:
    """Removes temporary files of killed processes; the caller must hold the lock."""
    atomic.sweep(folder)
    atomic.sweep(folder / "parts")


def prepare(sources: Sequence[Source], job: ShardJob, executor, progress: bool) -> dict[str, str]:
    """Writes the shards that are missing or invalid; returns the reasons why sources cannot be used, by source name.

    executor: see `store.build`.  Without one this process samples; as soon as the estimated rest exceeds `PATIENCE`, a
    pool of processes is started for it.
    Raises StoreError if a shard cannot be written, or, after all others are done, if files cannot be read now.
    """
    todo = [source for source in sources if not _is_made(source, job)]
    skipped: dict[str, str] = {}
    unread: dict[str, OSError] = {}
    bar = Progress("sampling", "shape", len(sources), len(sources) - len(todo), shown=progress)

    def note(source: Source, result: Callable[[], str | None]):
        bar.update(bar.done + 1)
        try:
            reason = result()
        except StoreError:  # is an OSError, too, but of the disk that is written to: no other shard would succeed
            raise
        except OSError as error:  # not the source's fault: not skipped for good, but reported when the rest is done
            unread[source.file] = error
            return
        if reason:
            skipped[source.name] = reason
            warnings.warn(f"skipped {source.file}: {reason}", stacklevel=4)

    begun, done = time.monotonic(), 0
    # Here, one by one, as long as the mean time so far says that the rest takes less than PATIENCE.
    with bar:
        alone = multiprocessing.current_process().daemon  # which may start no processes
        while todo and not executor and (alone or not done or (time.monotonic() - begun) / done * len(todo) < PATIENCE):
            source = todo.pop(0)
            note(source, functools.partial(make, source, job))
            done += 1
        if todo:
            with contextlib.nullcontext(executor) if executor else workers.processes(len(todo)) as pool:
                _in_pool(todo, job, pool, note)
    if unread:
        name, error = next(iter(unread.items()))
        raise StoreError(
            f"{job.folder}: {counted(len(unread), 'file')} cannot be read now (first {name}: {error}); fix that or "
            "remove the files, and run again; finished shapes are kept"
        ) from error
    return skipped


def _in_pool(todo: Sequence[Source], job: ShardJob, pool: concurrent.futures.Executor, note: Callable) -> None:
    """`make` for each source in a pool; `note` as results come."""
    futures = {}
    try:
        for source in todo:
            futures[pool.submit(make, source, job)] = source
        for future in concurrent.futures.as_completed(futures):
            note(futures[future], future.result)
    except concurrent.futures.BrokenExecutor as error:
        raise StoreError(
            f"{job.folder}: a worker process died; either memory ran out, or your script calls this outside of "
            "`if __name__ == '__main__':`. Run again to resume"
        ) from error
    finally:  # after an error: do not start the rest, as the executor may be the caller's and live on
        for future in futures:
            future.cancel()


def make(source: Source, job: ShardJob) -> str | None:
    """Writes the shard of one source, in any process; returns the reason if the source cannot be used, else None.

    Raises OSError if reading may succeed another time (`UNREADABLE`), and StoreError if the shard cannot be written.
    """
    try:
        mark = source.mark()  # before the file is read: if it changes meanwhile, the mark does not match afterwards
        shape = source.shape(job.recipe, seed=job.seed, frame=job.frame, sign=job.sign)
        rows = {name: _checked(shape, name, *column) for name, column in columns(job.recipe).items()}
    except Exception as error:  # whatever it is, one file of thousands must not end the build; it is skipped and listed
        if unreadable := _unreadable(error):
            raise unreadable from error
        return str(error) if isinstance(error, JonetError) else f"{type(error).__name__}: {error}"
    facts = {
        "mark": mark,
        "similarity": shape.similarity.as_array().tolist(),
        "diagnosis": shape.diagnosis and shape.diagnosis.to_dict(),
        "rows": {name: [len(side) for side in sides] for name, sides in rows.items()},
    }
    arrays: dict[str, Any] = {f"{name}.{i}": side for name, sides in rows.items() for i, side in enumerate(sides)}
    path = job.part(source)
    try:
        with atomic.open_file(path, sync=False) as file:  # not synced: `_is_made` verifies checksums when resuming
            np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}); fix that, and run again to resume") from error
    return None


def _unreadable(error: BaseException | None) -> OSError | None:
    """The system error of `UNREADABLE` that caused `error`, if there is one in its chain of causes."""
    while error and not (isinstance(error, OSError) and error.errno in UNREADABLE):
        error = error.__cause__
    return error


def _checked(shape: Shape, name: str, kind: str, row: tuple[int, ...]) -> list[np.ndarray]:
    """The rows of one array as they are stored, by side; MeshError if not finite, or if only one side is empty."""
    count = 2 if name in TWO_SIDED else 1
    # Arrays that the source does not have become empty ones of the right row shape.
    sides = [np.asarray(side, kind).reshape(-1, *row) for side in shape.rows.get(name, [()] * count)]
    if len(sides) != count or not all(np.isfinite(side).all() for side in sides):
        raise MeshError(f"its rows for {name} are not finite, or not of {count} sides; sample it again")
    if any(len(side) for side in sides) and not all(len(side) for side in sides):
        raise MeshError(f"of its samples for {name} none are {'outside' if len(sides[1]) else 'inside'}")
    if name not in COLUMNS and not all(len(side) for side in sides):
        raise MeshError(f"it has no {name}, which the recipe requires")
    return sides


def facts(source: Source, job: ShardJob) -> dict:
    """The metadata in a source's shard: mark, similarity, diagnosis, rows (number of rows by array and side).

    Raises Damaged if it cannot be read, or if the source has changed since.
    """
    found = json.loads(_member(source, job, "facts").tobytes())
    if not source.unchanged(found["mark"]):
        raise Damaged(source, f"{source.file}: was changed while it was sampled; run again")
    return found


def rows(sources: Sequence[Source], job: ShardJob, name: str) -> Iterator[np.ndarray]:
    """The rows of one array of all sources, in order, each side as one array [N, …]; Damaged if a shard is incomplete.

    Dtype and shape of a row: see `columns`.
    """
    for source in sources:
        for i in range(2 if name in TWO_SIDED else 1):
            yield _member(source, job, f"{name}.{i}")


def _member(source: Source, job: ShardJob, name: str) -> np.ndarray:
    path = job.part(source)
    try:
        with np.load(path, allow_pickle=False) as part:
            return part[name]
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # zipfile and numpy raise errors of many types for damaged files
        raise Damaged(source, f"{path}: damaged ({error}); run again to sample it again") from error


def _is_made(source: Source, job: ShardJob) -> bool:
    """Whether a source's shard exists, is complete, and matches the source's content.  Reads all of it."""
    try:
        with zipfile.ZipFile(job.part(source)) as part:  # checksums first, then the mark, which raises if it differs
            return part.testzip() is None and bool(facts(source, job))
    except MemoryError:
        raise
    except Exception:  # missing, damaged or outdated: sampled again
        return False
