"""The packed store: shapes of any source as a few long memory-mapped arrays on disk, and an index that explains them.

    index.json                settings, sources, shapes (name, split, similarity, verdict, rows), skipped, checksums
    sdf.npy                   [T, 4] float32: x, y, z, distance; of each shape the rows outside, then those inside
    occupancy.npy             [T, 3] float16: points; of each shape those outside, then those inside
    surface_points.npy        [T, 3] float32, with surface_normals.npy
    vertices.npy, faces.npy   [T, 3] float32 and int32: the oriented mesh in the normalised frame

and, where the recipe asks for them,

    occupancy_near.npy        [T, 3] float16, as occupancy.npy: points near the surface
    voxels.npy                [S, 4096] uint8: the bits of a grid of 32³, axes x, y, z
    images.npy                [T, H, W, 1 or 3] uint8: views; and where their cameras stand, in the normalised frame:
    cameras.npy               [T, 3, 4] float32 (`images.matrices`)

Rows are in random order within a side, so that any window of them is a sample. A build leaves one part a shape in
`<folder>.partial` (`parts`), which one process has at a time, until all are there; then the arrays are packed in it and
renamed into place.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config
from jonet.data import parts, sampling, voxels, workers
from jonet.data.meshes import Mesh, Similarity, Verdict
from jonet.data.parts import TWO_SIDED, Job, columns
from jonet.data.sampling import Recipe
from jonet.data.sources import MeshFile, Procedural, Shape, Source, content, discover
from jonet.data.splits import SPLITS
from jonet.errors import BusyError, ConfigError, StoreError
from jonet.storage import atomic, locks

__all__ = ["MeshFile", "Packed", "Procedural", "Shape", "Source", "Store", "build", "discover", "open"]

VERSION = 1
SIGNS = ("auto", *sampling.METHODS, "fusion")
BLOCK = 1 << 26  # bytes read at once
AGAIN = "remove the folder and build it again"


class Packed(NamedTuple):
    """Rows of S shapes, one after another: values [T, ...], offsets [S], counts [S, 2] (outside, inside) or [S, 1]."""

    values: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray


class Store:
    """A packed store, opened; shapes are numbered as in `names`.

    names, splits [S]; similarities and verdicts (None where samples came without a mesh); contents: what tells the
    content of each shape's source (`sources.content`); categories: families, or folders that shapes lie in, "" where
    nothing tells; skipped: what could not be used, {"file", "reason"}; recipe,
    seed, frame, sign; arrays: `Packed` by name (`parts.columns`), memory-mapped.
    """

    def __init__(self, folder: Path, index: dict, arrays: dict[str, Packed]):
        self.folder, self.index, self.arrays = folder, index, arrays
        shapes, settings = index["shapes"], index["settings"]
        self.names = [shape["name"] for shape in shapes]
        self.splits = np.array([shape["split"] for shape in shapes])
        self.similarities = [Similarity.from_array(shape["similarity"]) for shape in shapes]
        self.verdicts = [shape["verdict"] and Verdict.from_dict(shape["verdict"]) for shape in shapes]
        self.skipped = index["skipped"]
        marks = {source["name"]: source["mark"] for source in index["sources"]}
        self.contents = [content(marks[name]) for name in self.names]
        categories = {source["name"]: source.get("category", "") for source in index["sources"]}
        self.categories = [categories[name] for name in self.names]
        self.recipe = config.from_dict(Recipe, settings["recipe"])
        self.seed, self.frame, self.sign = settings["seed"], settings["frame"], settings["sign"]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self):
        splits = ", ".join(f"{len(self.select(split))} {split}" for split in SPLITS if len(self.select(split)))
        return f"Store({str(self.folder)!r}: {splits})"

    def select(self, split: str) -> np.ndarray:
        """Numbers of the shapes of a split."""
        return np.flatnonzero(self.splits == split)

    @property
    def sdf(self) -> np.ndarray:
        """Samples of all shapes [T, 4]; those of shape i begin at offsets[i]."""
        return self.arrays["sdf"].values

    @property
    def counts(self) -> np.ndarray:
        """Samples of each shape outside and inside [S, 2]."""
        return self.arrays["sdf"].counts

    @property
    def offsets(self) -> np.ndarray:
        """Where each shape's samples begin [S]."""
        return self.arrays["sdf"].offsets

    def rows(self, name: str, i: int) -> np.ndarray:
        """The rows of shape i in one of the arrays; StoreError where the store has no such array."""
        if name not in self.arrays:
            raise StoreError(f"{self.folder}: has no {name}; build it by a recipe that asks for them")
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
        """The voxels [32, 32, 32] bool of shape i, axes x, y, z, over the cube [-0.5, 0.5]³."""
        return voxels.unpacked(self.rows("voxels", i)[0])

    def image(self, i: int, view: int = 0) -> np.ndarray:
        """A view of shape i [H, W, 3] uint8; published evaluations see number 0."""
        seen = self.rows("images", i)[view]
        return np.broadcast_to(seen, (*seen.shape[:2], 3))

    def mesh(self, i: int) -> Mesh:
        """The oriented mesh of shape i in the normalised frame; `similarities[i]` leads there from its own units."""
        return Mesh(self.rows("vertices", i), self.rows("faces", i), name=self.names[i])

    def truth(self, i: int) -> Mesh:
        """What shape i is scored against: its mesh; where samples came without one, points of its surface as vertices
        with normals, without faces."""
        mesh, (points, normals) = self.mesh(i), self.surface(i)
        normals = normals if len(normals) == len(points) else None
        return mesh if len(mesh.faces) else Mesh(points, np.zeros((0, 3), np.int32), normals, name=self.names[i])

    def labelled(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Where shape i came without a mesh, the points and labels that its IoU is told by; None if there are none."""
        told = "occupancy" in self.arrays and self.arrays["occupancy"].counts[i].any() and not len(self.mesh(i).faces)
        return self.occupancy(i) if told else None

    def verify(self) -> Store:
        """Reads everything once; StoreError names an array whose bytes are not those that were written."""
        for name, (values, _, _) in self.arrays.items():
            if _checksum([values]) != self.index["arrays"][name]["crc32"]:
                raise StoreError(f"{self.folder / name}.npy: damaged, its checksum differs; {AGAIN}")
        return self


def open(folder) -> Store:
    """Opens a store; nothing is read but its index.

    Raises StoreError where it is missing, unfinished, cut off, or of another version. `verify` finds changed bytes.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        checksum, settings = index.pop("checksum"), index["settings"]
        version = settings["version"]
    except FileNotFoundError as error:
        unfinished = _unfinished(folder)
        begun = unfinished.exists() and parts.is_ours(unfinished)
        hint = "it was cut short while it was made; build it again to go on" if begun else "build one first"
        raise StoreError(f"{folder}: there is no store; {hint}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{folder}/index.json: damaged, or not the index of a store ({error}); {AGAIN}") from error
    if version != VERSION:
        raise StoreError(f"{folder}: a store of version {version}, but this program reads {VERSION}; {AGAIN}")
    if checksum != _index_checksum(index):
        raise StoreError(f"{folder}/index.json: damaged, its checksum differs; {AGAIN}")
    return Store(folder, index, {name: _open_array(folder, index, name) for name in index["arrays"]})


def is_whole(folder) -> bool:
    """Whether a folder holds a store of which no byte was changed; everything is read."""
    try:
        open(folder).verify()
    except StoreError:
        return False
    return True


def _unfinished(folder: Path) -> Path:
    """Where a store is made."""
    place = Path(os.path.realpath(folder))
    return place.with_name(place.name + ".partial")


def _open_array(folder: Path, index: dict, name: str) -> Packed:
    path, written = folder / f"{name}.npy", index["arrays"][name]
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: missing or cut off ({error}); {AGAIN}") from error
    found = [values.dtype.name, list(values.shape), path.stat().st_size - values.nbytes]
    if found != [written["type"], written["shape"], written["header"]]:
        raise StoreError(f"{path}: not the array {written['type']} {written['shape']} that was written; {AGAIN}")
    sides = 2 if name in TWO_SIDED else 1
    counts = np.array([shape["rows"][name] for shape in index["shapes"]], np.int64).reshape(-1, sides)
    return Packed(values, np.cumsum(counts.sum(1)) - counts.sum(1), counts)


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
    """Samples shapes into a store, or goes on where that was cut short, or opens the store that is there.

    sign: `auto` follows each mesh's verdict, a method of `sampling.METHODS` overrides it, `fusion` first closes each
    mesh (`fusion.fuse`). executor: any of concurrent.futures whose workers see the folder; else processes are spawned
    where that saves time. The result does not depend on it. A mesh that cannot be used is a warning and an entry in
    `skipped`, and so is a shape for testing or validation that is one to train on, told by the mark. While it is made,
    a store takes its place on the disk twice. wait: for another process that makes this store, which is then opened
    (processes of one job).
    Raises StoreError where the folder or `<folder>.partial` holds something else, or a store of other settings or
    shapes (remove it to make it anew), if no shape is left, or if files cannot be read now; BusyError where another
    process makes this store.
    """
    folder, sources = Path(folder), list(sources)
    if frame not in sampling.FRAMES:
        raise ConfigError(f"frame is {frame!r}; it must be one of {', '.join(sampling.FRAMES)}")
    if sign not in SIGNS:
        raise ConfigError(f"sign is {sign!r}; it must be one of {', '.join(SIGNS)}")
    if recipe.voxels != "none" and frame != "cube":
        raise ConfigError(f"voxels fill the cube of the frame 'cube', but the frame is {frame!r}")
    if twice := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise ConfigError(f"{len(twice)} names belong to several sources (first {twice[0]!r}); give each its own")
    job = Job(_unfinished(folder), recipe, seed, frame, sign)
    settings = {"version": VERSION, **job.settings()}
    if (folder / "index.json").exists():
        store = _opened(folder, sources, settings)
        if job.folder.is_dir() and parts.is_ours(job.folder):  # its maker was stopped before it removed this
            with contextlib.suppress(BusyError, OSError):
                with locks.locked(job.folder / parts.LOCK):
                    parts.remove(job.folder)
                atomic.remove_known(job.folder, _nothing)
        return store
    if not atomic.is_free(os.path.realpath(folder)):
        raise StoreError(f"{folder}: is there, but is no store; name another folder")
    if not parts.is_ours(job.folder):
        raise StoreError(f"{job.folder}: is there, but is no unfinished store; move it away, or name another folder")
    wait = wait and not workers.is_beginning()  # or it would wait for the process that waits for it
    with locks.locked(job.folder / parts.LOCK, wait=wait):
        if made := not (folder / "index.json").exists():  # else another process made it while this one waited
            _make(Path(os.path.realpath(folder)), sources, job, settings, executor, progress)
        parts.remove(job.folder)
    atomic.remove_known(job.folder, _nothing)  # the folder itself, now that its lock is gone
    return open(folder) if made else _opened(folder, sources, settings)


def _nothing(path: str) -> bool:
    """No file: what `atomic.remove_known` then removes are empty folders."""
    return False


def _opened(folder: Path, sources: list[Source], settings: dict) -> Store:
    """A store that was made before, of the same settings and sources."""
    store = open(folder)
    _same_settings(folder, settings, store.index["settings"])
    _same_sources(folder, sources, store.index["sources"])
    held = [(s["name"], s["split"], s["mark"]) for s in store.index["sources"] if s["name"] in set(store.names)]
    if seen := _seen(held):
        warnings.warn(
            f"{folder}: {len(seen)} shapes for testing or validation are some to train on (first "
            f"{next(iter(seen))}, which is {next(iter(seen.values()))}); remove the folder to make it without them",
            stacklevel=3,
        )
    return store


def _make(place: Path, sources: list[Source], job: Job, settings: dict, executor, progress: bool) -> None:
    """Makes the store, or goes on with it; whoever calls has the lock."""
    parts.sweep(job.folder)
    before = parts.settings(job.folder)
    if before and parts.any_made(job.folder):
        _same_settings(job.folder, settings, before)
    else:  # settings are fixed by what was made with them
        atomic.write_json(job.folder / parts.SETTINGS, settings)
    damaged = set()
    while True:
        skipped = parts.prepare(sources, job, executor, progress)
        try:
            packed = _pack(sources, skipped, job, settings)
        except parts.Damaged as error:  # is made again, once
            if error.source.name in damaged:
                raise
            damaged.add(error.source.name)
            atomic.remove_file(job.part(error.source))
        else:
            return atomic.place_folder(packed, place)


def _same_settings(where: Path, ours: dict, theirs: dict):
    theirs = theirs | {"recipe": config.to_dict(config.from_dict(Recipe, theirs["recipe"]))}  # younger options: default
    if different := config.difference(ours, theirs):
        raise StoreError(
            f"{where}: made with other settings ({'; '.join(different)}: made → asked); ask for the same, remove the "
            "folder, or name another"
        )


def _same_sources(where: Path, sources: list[Source], recorded: list[dict]):
    ours, theirs = {source.name: source for source in sources}, {record["name"]: record for record in recorded}
    both = [name for name in ours if name in theirs]
    found = {
        "new": [name for name in ours if name not in theirs],
        "gone": [name for name in theirs if name not in ours],
        "in another split": [name for name in both if ours[name].split != theirs[name]["split"]],
        "changed": [name for name in both if not ours[name].unchanged(theirs[name]["mark"])],
    }
    if said := [f"{len(names)} {what} (first {names[0]!r})" for what, names in found.items() if names]:
        raise StoreError(
            f"{where}: made from other shapes, {', '.join(said)}; remove the folder to make it anew, or name another"
        )


def _seen(shapes: Iterable[tuple[str, str, dict]]) -> dict[str, str]:
    """Of shapes (name, split, mark) those that are not to train on, but are one that is, each with that one's name."""
    shapes = [(name, split, content(mark)) for name, split, mark in shapes if mark]
    trained = {held: name for name, split, held in reversed(shapes) if split == "train"}
    return {name: trained[held] for name, split, held in shapes if split != "train" and held in trained}


def _pack(sources: Sequence[Source], skipped: dict[str, str], job: Job, settings: dict) -> Path:
    """All parts as the arrays and index of a store, in a folder of the unfinished one."""
    facts = {source.name: parts.facts(source, job) for source in sources if source.name not in skipped}
    marks = {name: fact.pop("mark") for name, fact in facts.items()}
    held = [(source.name, source.split, marks[source.name]) for source in sources if source.name in marks]
    for name, trained in _seen(held).items():
        skipped[name] = f"is the same as {trained}, which is trained on"
        warnings.warn(f"left out {name}: {skipped[name]}", stacklevel=4)
    kept = [source for source in sources if source.name not in skipped]
    if not kept:
        first = f"; the first: {next(iter(skipped.values()))}" if skipped else ""
        raise StoreError(f"{job.folder}: of {len(sources)} shapes none is left, so there is no store to make{first}")
    packed = atomic.temporary(job.folder)
    arrays = {}
    for name, (kind, row) in columns(job.recipe).items():
        shape = (sum(sum(facts[source.name]["rows"][name]) for source in kept), *row)
        with atomic.open_file(packed / f"{name}.npy", sync=False) as file:  # all are synced before they are renamed
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            arrays[name] = {"type": kind, "shape": list(shape), "header": file.tell()}
            arrays[name]["crc32"] = _checksum(parts.rows(kept, job, name), file)
    index = {
        "settings": settings,
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
    """The crc32 over the bytes of arrays, which are written to `file` on the way."""
    checksum = 0
    for array in arrays:
        step = max(1, BLOCK // max(array[:1].nbytes, 1))
        for at in range(0, len(array), step):
            data = array[at : at + step].tobytes()
            checksum = zlib.crc32(data, checksum)
            if file:
                file.write(data)
    return checksum


def _index_checksum(index: dict) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())
