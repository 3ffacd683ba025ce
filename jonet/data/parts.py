"""Parts of a store that is being built: one file a shape, made by any process, found again after an interruption.

They lie in a folder of their own, with the settings and a lock.  A part is known by the settings in its name, by the
source's mark in it, and by its checksums: what is of other settings, of another content or damaged is made again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jonet import config
from jonet.data import workers
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape, Source
from jonet.data.voxels import SIDE
from jonet.errors import ConfigError, JonetError, MeshError, StoreError
from jonet.storage import atomic
from jonet.storage.names import encoded

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
SETTINGS, LOCK = "settings.json", ".lock"
FILES = re.compile(  # of the folder, as this version and 0.1.0 have them
    r"settings\.json(\.part)?|parts/[0-9a-f]{24}(-[0-9a-f]{16}\.npz|\.npz|\.[0-9a-f]{8})|packed/(index\.json|[a-z_]+\.npy)"
)
UNREADABLE = {  # what the system may say of a file that could be read another time
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EIO", "ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "ENOSPC", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
}


class Damaged(StoreError):
    """A part that is not whole, or no longer its source's.  source: whose."""

    def __init__(self, source: Source, said: str):
        super().__init__(said)
        self.source = source


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
        """Its file: of other settings it has another name, so that whatever process is still at work on those writes
        beside it."""
        name = hashlib.sha256(encoded(source.name)).hexdigest()[:24]
        return self.folder / "parts" / f"{name}-{config.digest('part', self.settings())}.npz"


def settings(folder: Path) -> dict | None:
    """The settings that an unfinished store is made with; None where there are none, or damaged ones."""
    try:
        found = json.loads((folder / SETTINGS).read_text("utf-8"))
        config.from_dict(Recipe, found["recipe"])
        return found if {"version", "seed", "frame", "sign"} <= found.keys() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        return None


def is_ours(folder: Path) -> bool:
    """Whether a folder is an unfinished store's, or not there: by its settings, or since nothing else is in it."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    if settings(folder):
        return True
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    if files == [SETTINGS]:  # anybody may have a file of that name: ours, if it was cut off
        with contextlib.suppress(OSError, ValueError):
            json.loads((folder / SETTINGS).read_text("utf-8"))
            return False
    if SETTINGS not in files and any(f.startswith("packed/") for f in files):  # anybody may have arrays called so
        return False
    return all(FILES.fullmatch(f) or f == LOCK or any(map(atomic.is_temporary, f.split("/"))) for f in files)


def any_made(folder: Path) -> bool:
    """Whether an unfinished store has parts."""
    return any((folder / "parts").glob("*.npz"))


def remove(folder: Path) -> None:
    """Removes what an unfinished store has, but for the lock; to be called by who has that."""
    sweep(folder)
    atomic.remove_known(folder, lambda path: bool(FILES.fullmatch(path)))


def sweep(folder: Path) -> None:
    """Removes what killed processes left half written."""
    atomic.sweep(folder)
    atomic.sweep(folder / "parts")


def prepare(sources: Sequence[Source], job: Job, executor, progress: bool) -> dict[str, str]:
    """Makes the parts that are missing or damaged; returns why sources cannot be used, by name.

    executor: see `store.build`; without one the work is done here while less than `PATIENCE` is left.
    Raises StoreError where a part cannot be written, or, when all others are made, where files cannot be read now.
    """
    todo = [source for source in sources if not _is_made(source, job)]
    skipped: dict[str, str] = {}
    unread: dict[str, OSError] = {}
    bar = tqdm(
        total=len(sources),
        initial=len(sources) - len(todo),
        desc="sampling",
        unit="shape",
        file=sys.stderr,
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )

    def note(source: Source, made: Callable[[], str | None]):
        bar.update()
        try:
            reason = made()
        except StoreError:
            raise
        except OSError as error:
            unread[source.file] = error
            return
        if reason:
            skipped[source.name] = reason
            warnings.warn(f"skipped {source.file}: {reason}", stacklevel=4)

    begun, done = time.monotonic(), 0
    with bar:
        while todo and not executor and (not done or (time.monotonic() - begun) / done * len(todo) < PATIENCE):
            source = todo.pop(0)
            note(source, functools.partial(make, source, job))
            done += 1
        if todo:
            with contextlib.nullcontext(executor) if executor else workers.processes(len(todo)) as pool:
                _together(todo, job, pool, note)
    if unread:
        name, error = next(iter(unread.items()))
        raise StoreError(
            f"{job.folder}: {len(unread)} files cannot be read now (first {name}: {error}); put that right, or take "
            "them away, and run again; what was made is kept"
        ) from error
    return skipped


def _together(todo: Sequence[Source], job: Job, pool: concurrent.futures.Executor, note: Callable) -> None:
    futures = {}
    try:
        for source in todo:
            futures[pool.submit(make, source, job)] = source
        for future in concurrent.futures.as_completed(futures):
            note(futures[future], future.result)
    except concurrent.futures.BrokenExecutor as error:
        raise StoreError(
            f"{job.folder}: a process that samples shapes ended; either memory ran out, or your script does "
            "this outside of `if __name__ == '__main__':`. Run again to go on"
        ) from error
    finally:
        for future in futures:
            future.cancel()


def make(source: Source, job: Job) -> str | None:
    """Makes the part of one source, in any process; returns why the source cannot be used, if so.

    Raises OSError where it could be used another time (`UNREADABLE`), and StoreError where its part cannot be written.
    """
    try:
        mark = source.mark()
        shape = source.shape(job.recipe, seed=job.seed, frame=job.frame, sign=job.sign)
        rows = {name: _checked(shape, name, *column) for name, column in columns(job.recipe).items()}
    except Exception as error:  # one file of thousands must not end the work; it is named, and listed
        if unreadable := _unreadable(error):
            raise unreadable from error
        return str(error) if isinstance(error, JonetError) else f"{type(error).__name__}: {error}"
    facts = {
        "mark": mark,
        "similarity": shape.similarity.as_array().tolist(),
        "verdict": shape.verdict and shape.verdict.to_dict(),
        "rows": {name: [len(side) for side in sides] for name, sides in rows.items()},
    }
    arrays = {f"{name}.{i}": side for name, sides in rows.items() for i, side in enumerate(sides)}
    path = job.part(source)
    try:
        with atomic.open_file(path, sync=False) as file:  # after a power cut it is looked at again
            np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}); put that right, and run again to go on") from error
    return None


def _unreadable(error: BaseException | None) -> OSError | None:
    """The error of the system behind another one, if it says nothing of what the file holds."""
    while error and not (isinstance(error, OSError) and error.errno in UNREADABLE):
        error = error.__cause__
    return error


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
    """What a part says of itself: mark, similarity, verdict, and rows (their numbers by array and side).

    Raises Damaged where it cannot be read, or is of what the source was before.
    """
    found = json.loads(_member(source, job, "facts").tobytes())
    if not source.unchanged(found["mark"]):
        raise Damaged(source, f"{source.file}: was changed while its samples were made; run again")
    return found


def rows(sources: Sequence[Source], job: Job, name: str) -> Iterator[np.ndarray]:
    """The rows of one array of all sources, side by side and one after another; Damaged where a part is not whole."""
    for source in sources:
        for i in range(2 if name in TWO_SIDED else 1):
            yield _member(source, job, f"{name}.{i}")


def _member(source: Source, job: Job, name: str) -> np.ndarray:
    path = job.part(source)
    try:
        with np.load(path, allow_pickle=False) as part:
            return part[name]
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes zipfile and numpy raise
        raise Damaged(source, f"{path}: damaged ({error}); run again to make it anew") from error


def _is_made(source: Source, job: Job) -> bool:
    """Whether a part is there, whole, and of what the source holds; all of it is read."""
    try:
        with zipfile.ZipFile(job.part(source)) as part:
            return part.testzip() is None and bool(facts(source, job))
    except MemoryError:
        raise
    except Exception:  # as above
        return False
