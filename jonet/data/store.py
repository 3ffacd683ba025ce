"""The packed store: samples of many shapes as a few long memory-mapped arrays on disk, with an index.

    index.json                settings, sources, shapes (name, split, similarity, diagnosis, rows), skipped, checksums
    sdf.npy                   [T, 4] float32: x, y, z, distance; of each shape the rows outside, then those inside
    occupancy.npy             [T, 3] float16: points; of each shape those outside, then those inside
    surface_points.npy        [T, 3] float32, with surface_normals.npy
    vertices.npy, faces.npy   [T, 3] float32 and int32: the oriented mesh in the normalized frame

and, if the recipe includes them,

    occupancy_near.npy        [T, 3] float16, as occupancy.npy: points near the surface
    voxels.npy                [S, 4096] uint8: packed bits of a 32³ grid, axes x, y, z
    images.npy                [T, H, W, 1 or 3] uint8: views
    cameras.npy               [T, 3, 4] float32: extrinsics in the normalized frame (`network_views.matrices`)

Rows are in random order within a side, so any contiguous window of them is a random sample.

How a store is built (`build`):

1. One process locks `<folder>.partial`; others raise BusyError, or wait and then open the finished store.
2. Workers write one shard per shape there (`shards.py`).  Interrupted builds resume from valid shards.
3. The shards are packed into arrays in a temporary folder within `<folder>.partial`.
4. That folder is synced and renamed to `<folder>`: a store is complete or absent.
5. The shards and the lock are removed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config
from jonet.data import sampling, shards, workers
from jonet.data.sampling import Recipe
from jonet.data.shards import TWO_SIDED, ShardJob, columns
from jonet.data.sources import MeshFile, Procedural, Shape, Source, content, discover
from jonet.data.splits import SPLITS
from jonet.errors import BusyError, ConfigError, StoreError
from jonet.geometry import voxels
from jonet.geometry.diagnosis import MeshDiagnosis
from jonet.geometry.mesh import Mesh, Similarity
from jonet.storage import atomic, locks
from jonet.wording import counted

__all__ = ["MeshFile", "RaggedArray", "Procedural", "Shape", "Source", "Store", "build", "discover", "open"]

VERSION = 2  # of the store's format
SIGNS = ("auto", *sampling.METHODS, "fusion")
BLOCK = 1 << 26  # bytes read or written at once
AGAIN = "remove the folder and build it again"


class RaggedArray(NamedTuple):
    """Rows of S shapes, concatenated: values [T, ...], offsets [S], counts [S, 2] (outside, inside) or [S, 1]."""

    values: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray


class Store:
    """An opened store; shapes have indices in the order of `names`.

    names, splits [S]; similarities (input units to the normalized frame); diagnoses (None if samples came without a
    mesh); contents: digests of the sources' content (`sources.content`); categories: families or folders, "" if
    unknown; skipped: unusable sources, {"file", "reason"}; recipe, seed, frame, sign: the settings; arrays:
    `RaggedArray` by name (`shards.columns`), memory-mapped.
    """

    def __init__(self, folder: Path, index: dict, arrays: dict[str, RaggedArray]):
        self.folder, self.index, self.arrays = folder, index, arrays
        shapes, settings = index["shapes"], index["settings"]
        self.names = [shape["name"] for shape in shapes]
        self.splits = np.array([shape["split"] for shape in shapes])
        self.similarities = [Similarity.from_array(shape["similarity"]) for shape in shapes]
        self.diagnoses = [shape["diagnosis"] and MeshDiagnosis.from_dict(shape["diagnosis"]) for shape in shapes]
        self.skipped = index["skipped"]
        marks = {source["name"]: source["mark"] for source in index["sources"]}
        self.contents = [content(marks[name]) for name in self.names]
        categories = {source["name"]: source.get("category", "") for source in index["sources"]}  # older stores: none
        self.categories = [categories[name] for name in self.names]
        self.recipe = config.from_dict(Recipe, settings["recipe"])
        self.seed, self.frame, self.sign = settings["seed"], settings["frame"], settings["sign"]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        splits = ", ".join(f"{len(self.select(split))} {split}" for split in SPLITS if len(self.select(split)))
        return f"Store({str(self.folder)!r}, {splits}, {self.frame} frame, arrays {', '.join(self.arrays)})"

    def select(self, split: str) -> np.ndarray:
        """Indices [K] of the shapes of a split, ascending."""
        return np.flatnonzero(self.splits == split)

    @property
    def sdf(self) -> np.ndarray:
        """Distance samples of all shapes [T, 4]; those of shape i begin at offsets[i]."""
        return self.arrays["sdf"].values

    @property
    def counts(self) -> np.ndarray:
        """Numbers of distance samples of each shape outside and inside [S, 2]."""
        return self.arrays["sdf"].counts

    @property
    def offsets(self) -> np.ndarray:
        """Index of each shape's first distance sample [S]."""
        return self.arrays["sdf"].offsets

    def rows(self, name: str, i: int) -> np.ndarray:
        """The rows [N, …] of shape i in one of the arrays; StoreError if the store has no such array."""
        if name not in self.arrays:
            raise StoreError(f"{self.folder}: has no {name}; build it with a recipe that includes them")
        values, offsets, counts = self.arrays[name]
        return values[offsets[i] : offsets[i] + counts[i].sum()]

    def samples(self, i: int) -> np.ndarray:
        """Points with signed distances [N, 4] of shape i, outside first."""
        return self.rows("sdf", i)

    def surface(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Points on the surface of shape i and their normals, [M, 3] each."""
        return self.rows("surface_points", i), self.rows("surface_normals", i)

    def occupancy(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [K, 3] float16 of shape i, outside first, and whether they are inside [K] bool."""
        points = self.rows("occupancy", i)
        return points, np.arange(len(points)) >= self.arrays["occupancy"].counts[i, 0]

    def voxels(self, i: int) -> np.ndarray:
        """The voxel grid [32, 32, 32] bool of shape i, axes x, y, z, over the cube [-0.5, 0.5]³."""
        return voxels.unpacked(self.rows("voxels", i)[0])

    def image(self, i: int, view: int = 0) -> np.ndarray:
        """A view of shape i [H, W, 3] uint8; published evaluations use view 0."""
        seen = self.rows("images", i)[view]
        return np.broadcast_to(seen, (*seen.shape[:2], 3))

    def mesh(self, i: int) -> Mesh:
        """The oriented mesh of shape i in the normalized frame; `similarities[i]` maps input units there."""
        return Mesh(self.rows("vertices", i), self.rows("faces", i), name=self.names[i])

    def ground_truth(self, i: int) -> Mesh:
        """The reference for evaluating shape i: its mesh; without one, its surface points as vertices with normals,
        without faces."""
        mesh, (points, normals) = self.mesh(i), self.surface(i)
        normals = normals if len(normals) == len(points) else None
        return mesh if len(mesh.faces) else Mesh(points, np.zeros((0, 3), np.int32), normals, name=self.names[i])

    def labeled(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The points [K, 3] float16 and labels [K] bool for the IoU of shape i, if it came without a mesh but with
        occupancies; else None."""
        has = "occupancy" in self.arrays and self.arrays["occupancy"].counts[i].any() and not len(self.mesh(i).faces)
        return self.occupancy(i) if has else None

    def verify(self) -> Store:
        """Reads all arrays and compares checksums; StoreError names an array that has changed."""
        for name, (values, _, _) in self.arrays.items():
            if _checksum([values]) != self.index["arrays"][name]["crc32"]:
                raise StoreError(f"{self.folder / name}.npy: damaged, its checksum differs; {AGAIN}")
        return self


def open(folder) -> Store:
    """Opens a store; reads only the index and the arrays' headers.

    Raises StoreError if it is missing, unfinished, truncated, or of another version.  `Store.verify` finds changed
    bytes.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        checksum, settings = index.pop("checksum"), index["settings"]
        version = settings["version"]
    except FileNotFoundError as error:
        unfinished = _unfinished(folder)
        started = unfinished.exists() and shards.is_ours(unfinished)
        hint = "its build was interrupted; build it again to resume" if started else "build one first"
        raise StoreError(f"{folder}: there is no store; {hint}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{folder}/index.json: damaged, or not the index of a store ({error}); {AGAIN}") from error
    if version != VERSION:
        raise StoreError(f"{folder}: a store of version {version}, but this program reads {VERSION}; {AGAIN}")
    if checksum != _index_checksum(index):
        raise StoreError(f"{folder}/index.json: damaged, its checksum differs; {AGAIN}")
    return Store(folder, index, {name: _open_array(folder, index, name) for name in index["arrays"]})


def outline(
    sources: Iterable[Source], recipe: Recipe, *, seed: int = 0, frame: str = "sphere", sign: str = "auto"
) -> Store:
    """The store that `build` would make if all sources can be used, for plans: its rows are zeros that take no memory.

    Nothing is sampled, read or written.  Of two sides each has half of the rows; a mesh has the size of `shards.MESH`.
    """
    sources = list(sources)

    def rows(split: str) -> dict[str, list[int]]:
        counts = shards.counts(recipe.of(split))
        return {name: [n // 2, n - n // 2] if name in TWO_SIDED else [n] for name, n in counts.items()}

    of_split = {split: rows(split) for split in {source.split for source in sources}}
    shape = {"similarity": Similarity().as_array().tolist(), "diagnosis": None}
    index = {
        "settings": {"recipe": config.to_dict(recipe), "seed": seed, "frame": frame, "sign": sign},
        "sources": [{"name": s.name, "split": s.split, "category": s.category, "mark": {}} for s in sources],
        "shapes": [{"name": s.name, "split": s.split, **shape, "rows": of_split[s.split]} for s in sources],
        "skipped": [],
    }
    arrays = {}
    for name, (kind, row) in columns(recipe).items():
        each = np.array([of_split[source.split][name] for source in sources], np.int64)
        values = np.broadcast_to(np.zeros((), kind), (int(each.sum()), *row))
        arrays[name] = RaggedArray(values, np.cumsum(each.sum(1)) - each.sum(1), each)
    return Store(Path("not built"), index, arrays)


def is_there(folder) -> bool:
    """Whether a folder is a store, which may be damaged; nothing is opened."""
    return bool(str(folder)) and Path(folder, "index.json").is_file() and Path(folder, "vertices.npy").is_file()


def linked(store: Store, folder) -> Store:
    """The same store in another folder, which must be new or empty; its files are links to the same content where the
    file system has them, else copies."""
    with atomic.new_folder(folder) as temporary:
        for name in ("index.json", *(f"{name}.npy" for name in store.arrays)):
            try:
                os.link(store.folder / name, temporary / name)
            except OSError:
                shutil.copyfile(store.folder / name, temporary / name)
    return open(folder)


def is_whole(folder) -> bool:
    """Whether a folder holds an undamaged store; reads all of it."""
    try:
        open(folder).verify()
    except StoreError:
        return False
    return True


def _unfinished(folder: Path) -> Path:
    """The folder in which a store is built; next to it, since a rename works only within one file system."""
    path = Path(os.path.realpath(folder))
    return path.with_name(path.name + ".partial")


def _open_array(folder: Path, index: dict, name: str) -> RaggedArray:
    """One array, memory-mapped, after comparing its dtype, shape and header size to the index."""
    path, written = folder / f"{name}.npy", index["arrays"][name]
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: missing or cut off ({error}); {AGAIN}") from error
    # The header's size, too: whatever was appended to the file shows as a longer one.
    found = [values.dtype.name, list(values.shape), path.stat().st_size - values.nbytes]
    if found != [written["type"], written["shape"], written["header"]]:
        raise StoreError(f"{path}: not the array {written['type']} {written['shape']} that was written; {AGAIN}")
    sides = 2 if name in TWO_SIDED else 1
    counts = np.array([shape["rows"][name] for shape in index["shapes"]], np.int64).reshape(-1, sides)
    return RaggedArray(values, np.cumsum(counts.sum(1)) - counts.sum(1), counts)


def build(
    folder,
    sources: Iterable[Source],
    recipe: Recipe,
    *,
    seed: int = 0,
    frame: str = "sphere",
    sign: str = "auto",
    executor: concurrent.futures.Executor | None = None,
    progress: bool = True,
    wait: bool = False,
) -> Store:
    """Samples shapes into a store; resumes an interrupted build; opens the store if it exists already.

    folder: of the store.  sources, recipe, seed, frame: what is sampled, and how (`Source.shape`).
    sign: `auto` uses the method of each mesh's diagnosis, a method of `sampling.METHODS` overrides it, `fusion`
    replaces each mesh by a watertight one first (`fusion.fuse`).
    executor: any of concurrent.futures whose workers see the folder; by default processes are spawned if that saves
    time.  The result does not depend on it.
    wait: if another process builds this store, wait for it and open the result (processes of one job).

    A mesh that cannot be used is a warning and an entry in `skipped`; so is a test or validation shape with the same
    content as a training shape.  During the build the store needs its disk space twice.
    Raises StoreError if the folder or `<folder>.partial` holds something else, or a store of other settings or shapes
    (remove it to build it again), if no shape is left, or if files cannot be read now; BusyError if another process
    builds this store and `wait` is off.
    """
    folder, sources = Path(folder), list(sources)
    if frame not in sampling.FRAMES:
        raise ConfigError(f"frame is {frame!r}; it must be one of {', '.join(sampling.FRAMES)}")
    if sign not in SIGNS:
        raise ConfigError(f"sign is {sign!r}; it must be one of {', '.join(SIGNS)}")
    if recipe.voxels != "none" and frame != "cube":
        raise ConfigError(f"voxels fill the cube of the frame 'cube', but the frame is {frame!r}")
    if twice := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise ConfigError(
            f"{counted(len(twice), 'name belongs', 'names belong')} to several sources (first {twice[0]!r}); names "
            "must be unique"
        )
    job = ShardJob(_unfinished(folder), recipe, seed, frame, sign)
    settings = {"version": VERSION, **job.settings()}
    if (folder / "index.json").exists():  # complete by step 4, and never changed afterwards: no lock needed
        store = _opened(folder, sources, settings)
        if job.folder.is_dir() and shards.is_ours(job.folder):  # the builder was killed between steps 4 and 5: clean up
            with contextlib.suppress(BusyError, OSError):  # or it is still in step 5, or we may not write: no matter
                with locks.locked(job.folder / shards.LOCK):
                    shards.remove(job.folder)
                atomic.remove_known(job.folder, _nothing)
        return store
    if not atomic.is_free(os.path.realpath(folder)):
        raise StoreError(f"{folder}: exists, but is not a store; name another folder")
    if not shards.is_ours(job.folder):
        raise StoreError(f"{job.folder}: exists, but is not an unfinished store; move it away, or name another folder")
    # A script without `if __name__ == "__main__"` calls this again in its own workers.  They must not wait for the
    # lock: their parent holds it, and waits for them.
    wait = wait and not workers.is_beginning()
    with locks.locked(job.folder / shards.LOCK, wait=wait):
        if ours := not (folder / "index.json").exists():  # else another process built it while this one waited
            _build(Path(os.path.realpath(folder)), sources, job, settings, executor, progress)
        shards.remove(job.folder)
    atomic.remove_known(job.folder, _nothing)  # the folder itself, now that the lock file is gone
    return open(folder) if ours else _opened(folder, sources, settings)


def _nothing(path: str) -> bool:
    """For `atomic.remove_known`: no file is known, so only empty folders (and temporary files) are removed."""
    return False


def _opened(folder: Path, sources: list[Source], settings: dict) -> Store:
    """An existing store; StoreError unless it has the same settings and sources."""
    store = open(folder)
    _same_settings(folder, settings, store.index["settings"])
    _same_sources(folder, sources, store.index["sources"])
    held = [(s["name"], s["split"], s["mark"]) for s in store.index["sources"] if s["name"] in set(store.names)]
    if seen := _seen(held):
        warnings.warn(
            f"{folder}: of the test and validation shapes {counted(len(seen), 'is', 'are')} also for training (first "
            f"{next(iter(seen))}, the "
            f"same as {next(iter(seen.values()))}); remove the folder and build it again to leave them out",
            stacklevel=3,
        )
    return store


def _build(path: Path, sources: list[Source], job: ShardJob, settings: dict, executor, progress: bool) -> None:
    """Builds the store at `path`, or resumes; the caller holds the lock."""
    shards.sweep(job.folder)
    before = shards.settings(job.folder)
    if before and shards.any_made(job.folder):
        _same_settings(job.folder, settings, before)
    else:  # as long as there is no shard, settings may still change
        atomic.write_json(job.folder / shards.SETTINGS, settings)
    damaged = set()  # names of sources whose shard was found damaged before
    while True:
        skipped = shards.prepare(sources, job, executor, progress)
        try:
            packed = _pack(sources, skipped, job, settings)
        except shards.Damaged as error:  # e.g. its source was changed after sampling: sample it again, but only once
            if error.source.name in damaged:
                raise
            damaged.add(error.source.name)
            atomic.remove_file(job.part(error.source))
        else:
            return atomic.place_folder(packed, path)


def _same_settings(where: Path, ours: dict, theirs: dict):
    """StoreError if settings differ."""
    # Stores of earlier versions lack newer options of the recipe; these get their defaults.
    theirs = theirs | {"recipe": config.to_dict(config.from_dict(Recipe, theirs["recipe"]))}
    if different := config.difference(ours, theirs):
        raise StoreError(
            f"{where}: built with other settings ({'; '.join(different)}: stored → requested); use the same settings, "
            "remove the folder, or name another"
        )


def _same_sources(where: Path, sources: list[Source], recorded: list[dict]):
    """StoreError if sources were added, removed, moved to another split, or changed in content."""
    ours, theirs = {source.name: source for source in sources}, {record["name"]: record for record in recorded}
    both = [name for name in ours if name in theirs]
    found = {
        "new": [name for name in ours if name not in theirs],
        "missing": [name for name in theirs if name not in ours],
        "in another split": [name for name in both if ours[name].split != theirs[name]["split"]],
        "changed": [name for name in both if not ours[name].unchanged(theirs[name]["mark"])],
    }
    if changes := [f"{len(names)} {what} (first {names[0]!r})" for what, names in found.items() if names]:
        raise StoreError(
            f"{where}: built from other shapes, {', '.join(changes)}; remove the folder to build it again, or name "
            "another"
        )


def _seen(shapes: Iterable[tuple[str, str, dict]]) -> dict[str, str]:
    """Of shapes (name, split, mark) the test and validation shapes with the content of a training shape: {name: name of
    the training shape}.  Shapes with an empty mark are not compared."""
    known = [(name, split, content(mark)) for name, split, mark in shapes if mark]
    trained = {digest: name for name, split, digest in reversed(known) if split == "train"}  # the first one wins
    return {name: trained[digest] for name, split, digest in known if split != "train" and digest in trained}


def _pack(sources: Sequence[Source], skipped: dict[str, str], job: ShardJob, settings: dict) -> Path:
    """Packs all shards into the arrays and index of a store, in a temporary folder within `job.folder`; returns it."""
    facts = {source.name: shards.facts(source, job) for source in sources if source.name not in skipped}
    marks = {name: fact.pop("mark") for name, fact in facts.items()}  # stored under "sources", not under "shapes"
    held = [(source.name, source.split, marks[source.name]) for source in sources if source.name in marks]
    # Duplicates between splits would make test scores too good.
    for name, trained in _seen(held).items():
        skipped[name] = f"is the same as the training shape {trained}"
        warnings.warn(f"left out {name}: {skipped[name]}", stacklevel=4)
    kept = [source for source in sources if source.name not in skipped]
    if not kept:
        first = f"; the first: {next(iter(skipped.values()))}" if skipped else ""
        raise StoreError(
            f"{job.folder}: none of {counted(len(sources), 'shape')} can be used, so no store is built{first}"
        )
    packed = atomic.temporary(job.folder)
    arrays = {}
    for name, (kind, row) in columns(job.recipe).items():
        shape = (sum(sum(facts[source.name]["rows"][name]) for source in kept), *row)
        # Written shard by shard, so that arrays may be larger than memory.  Not synced here: `atomic.place_folder`
        # syncs all files before the rename.
        with atomic.open_file(packed / f"{name}.npy", sync=False) as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            arrays[name] = {"type": kind, "shape": list(shape), "header": file.tell()}
            arrays[name]["crc32"] = _checksum(shards.rows(kept, job, name), file)
    index = {
        "settings": settings,
        # Skipped sources have a mark as well (taken now, as they have no shard): a repaired file is noticed as changed.
        "sources": [
            dict(name=s.name, split=s.split, category=s.category, mark=marks.get(s.name) or s.mark()) for s in sources
        ],
        "shapes": [dict(name=s.name, split=s.split, **facts[s.name]) for s in kept],
        "skipped": [dict(file=s.file, reason=skipped[s.name]) for s in sources if s.name in skipped],
        "arrays": arrays,
    }
    atomic.write_text(packed / "index.json", json.dumps({**index, "checksum": _index_checksum(index)}))
    return packed


def _checksum(arrays: Iterable[np.ndarray], file=None) -> int:
    """The crc32 over the bytes of arrays, in blocks of `BLOCK` bytes; writes the bytes to `file`, if given."""
    checksum = 0
    for array in arrays:
        step = max(1, BLOCK // max(array[:1].nbytes, 1))
        for start in range(0, len(array), step):  # in blocks: `array` may be a memory map larger than memory
            data = array[start : start + step].tobytes()
            checksum = zlib.crc32(data, checksum)
            if file:
                file.write(data)
    return checksum


def _index_checksum(index: dict) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())
