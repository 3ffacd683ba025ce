"""The bulk jobs: observed shapes to codes, to meshes; codes to meshes."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jonet import config as configs
from jonet import parallel
from jonet.bulk.inputs import Held, encoded, find, kind, names, reader, rows_seen, safe
from jonet.bulk.manifest import DOUBTFUL, EMPTY, OK, Manifest, Row
from jonet.bulk.pipeline import Outcome, Pipeline, Stages
from jonet.codes import Codes
from jonet.data import clouds, meshes
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError
from jonet.inference.observations import COLUMNS
from jonet.model import Model

BATCHES = (256, 64, 16, 4)  # shapes a device at once: capacities that programs are compiled for
ON_CPU = 16  # there, where larger batches are no faster, results come sooner
PER_CELL = 400  # bytes of a mesh under way, for each cell of a face of its box
FORMATS = ("ply", "obj", "stl", "glb", "off")


class Settings(NamedTuple):
    """How a job is run; what comes out does not depend on it.

    share: (index, count), this process's part of the inputs; None asks jax.distributed.  limit: a trial of so many
    inputs, spread evenly.  retry_failed: inputs whose row says failed are tried again.  batch: shapes at once, by the
    memory if None.  executor: reads inputs (threads if None); any of concurrent.futures' or Dask's.
    """

    share: tuple[int, int] | None = None
    limit: int | None = None
    retry_failed: bool = False
    batch: int | None = None
    executor: Executor | None = None


DEFAULT = Settings()


class Report(NamedTuple):
    """What a job's call did.

    inputs: of this process's share.  before: done by earlier calls.  outcome: of this call.  size: bytes it wrote.
    complete: every input of every process has its row, and the results are joined.
    """

    inputs: int
    before: int
    outcome: Outcome
    size: int
    complete: bool


def fit(model: Model, inputs, out: str | Path, settings: Settings = DEFAULT, progress=None) -> Report:
    """Codes of meshes and clouds (files, folders) in own units; for networks that take pictures, of these.

    out: codes.npz, which holds all of them when all are done; before, each lies in the folder of the same name without
    .npz (or out is that folder, and has a codes.npz), beside manifest.csv.  The same call goes on where it was stopped.
    Raises ConfigError for a folder of other settings, or where no input could be used.
    """
    out = Path(out)
    folder, joined = (out.with_suffix(""), out) if out.suffix == ".npz" else (out, out / "codes.npz")
    files = find(inputs, model)
    named = names(files)

    def write(key: str, code: Codes) -> Row:
        place = f"shapes/{named[key]}.npz"
        code.save(_below(folder, place))
        return _judged(key, code, place)

    def join(rows: dict[str, Row]) -> None:
        parts = {named[key]: folder / rows[key].output for key in sorted(files) if not rows[key].failed}
        newest = max((path.stat().st_mtime_ns for path in parts.values()), default=0)
        there = joined.exists() and joined.stat().st_mtime_ns >= newest and Codes.load(joined).names == (*parts,)
        if parts and not there:
            Codes.joined([Codes.load(path) for path in parts.values()]).save(joined)

    sources = {key: (path, named[key]) for key, path in files.items()}
    stages = Stages(reader(model), kind(model), lambda shapes: _each(encoded(model, shapes)), write)
    job = {"verb": "fit", **_of(model)}
    return _run(folder, job, files, sources, stages, settings, _bytes(model), progress, join)


def reconstruct(
    model: Model,
    inputs,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    resolution: int | None = None,
    form: str = "ply",
) -> Report:
    """Meshes of inputs, as `fit` takes them, into the folder `out`; else as `fit`."""
    files, folder = find(inputs, model), Path(out)
    named, cells = names(files), resolution or model.surfaces.resolution

    def solve(shapes: list[Held]) -> list[tuple[Codes, Mesh]]:
        codes = encoded(model, shapes)
        return list(zip(_each(codes), _meshes(model, codes, cells), strict=True))

    job = {"verb": "reconstruct", "resolution": cells, "format": form, **_of(model)}
    sources = {key: (path, named[key]) for key, path in files.items()}
    stages = Stages(reader(model), kind(model), solve, _writer(folder, named, form))
    return _run(folder, job, files, sources, stages, settings, max(_bytes(model), PER_CELL * cells**2), progress)


def extract(
    model: Model,
    codes: str | Path,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    resolution: int | None = None,
    form: str = "ply",
) -> Report:
    """Meshes of codes (codes.npz, or the folder of a `fit`, finished or not) into the folder `out`; else as `fit`."""
    source, folder = Path(codes), Path(out)
    cells = resolution or model.surfaces.resolution
    if source.is_dir():
        files = {path.relative_to(source).as_posix(): path for path in sorted((source / "shapes").rglob("*.npz"))}
        sources, read = files, Codes.load
        named = {key: key.removeprefix("shapes/").removesuffix(".npz") for key in files}
    else:
        whole = Codes.load(source)
        rows = {name: i for i, name in enumerate(whole.names)}
        if len(rows) < len(whole):
            raise ConfigError(f"{source}: two codes are named {Counter(whole.names).most_common(1)[0][0]!r}")
        files = dict.fromkeys(rows, source)
        sources, read = rows, whole.__getitem__
        named = {key: safe(key) for key in rows}
    if not files:
        raise ConfigError(f"{source} holds no codes")

    def solve(some: list[Codes]) -> list[tuple[Codes, Mesh]]:
        return list(zip(some, _meshes(model, Codes.joined(some), cells), strict=True))

    def together(code: Codes):
        return code.similarities is None, code.residual is None

    job = {"verb": "extract", "resolution": cells, "format": form, **_of(model)}
    stages = Stages(read, together, solve, _writer(folder, named, form))
    return _run(folder, job, files, sources, stages, settings, PER_CELL * cells**2, progress)


def _run(
    folder: Path, job, files, sources, stages: Stages, settings: Settings, each: int, progress, join=None
) -> Report:
    """files: where each input lies, by name; sources: what `stages.read` takes of it; each: bytes a shape takes."""
    with parallel.alone():
        index, count = settings.share or (jax.process_index(), jax.process_count())
        if not 0 <= index < count:
            raise ConfigError(f"share is {index} of {count}; shares count from 0")
        manifest = Manifest(folder, (index, count), job)
        rows, keys = manifest.rows(), sorted(files)
        mine = keys[index::count]
        left = [key for key in mine if not _done(folder, rows.get(key), files[key], settings.retry_failed)]
        todo = left
        if settings.limit is not None and settings.limit < len(left):
            todo = [left[i * len(left) // settings.limit] for i in range(settings.limit)]
        batch = settings.batch or batch_size(each)
        pipeline = Pipeline(stages, manifest, batch, settings.executor)
        outcome = pipeline.run({key: sources[key] for key in todo}, progress or (lambda outcome: None))
    complete = manifest.join(keys)
    while not complete and settings.share is None and count > 1 and len(todo) == len(left):
        time.sleep(1)  # jax.distributed wants its processes to end together
        complete = manifest.join(keys)
    if complete and join:
        join(manifest.rows())
    if outcome.rows and all(row.failed for row in outcome.rows) and len(outcome.rows) == len(mine):
        raise ConfigError(f"none of {len(mine)} inputs could be used; {manifest.path} says why")
    size = sum((folder / row.output).stat().st_size for row in outcome.rows if row.output)
    return Report(len(mine), len(mine) - len(left), outcome, size, complete)


def _done(folder: Path, row: Row | None, source: Path, retry: bool) -> bool:
    """Whether an input needs nothing: its row says so, and what was made of it is there and newer."""
    if row is None or not row.output:
        return row is not None and not (row.failed and retry)
    made = folder / row.output
    return made.is_file() and made.stat().st_mtime >= source.stat().st_mtime


def batch_size(each: int) -> int:
    """Shapes at once where each takes so many bytes: at most half of the memory."""
    if jax.default_backend() == "cpu":
        return ON_CPU * parallel.count()
    return next((n for n in BATCHES if n * each <= parallel.memory() // 2), BATCHES[-1]) * parallel.count()


def _bytes(model: Model) -> int:
    """What the observations of one shape take, with copies."""
    return 4 * model.fitting.starts * (rows_seen(model) or clouds.LIMIT) * COLUMNS * 4


def _of(model: Model) -> dict[str, Any]:
    """What results depend on: the network, by its numbers, and its settings."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((model.shared, model.statistics)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "network": digest.hexdigest()[:16],
        "fitting": configs.to_dict(model.fitting),
        "surfaces": configs.to_dict(model.surfaces),
    }


def _each(codes: Codes) -> list[Codes]:
    return [codes[i] for i in range(len(codes))]


def _meshes(model: Model, codes: Codes, resolution: int) -> list[Mesh]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "field .* has no surface")  # the manifest says so
        return model.extract(codes, resolution)


def _writer(folder: Path, named: dict[str, str], form: str):
    if form not in FORMATS:
        raise ConfigError(f"format is {form!r}; meshes are written as {', '.join(FORMATS)}")

    def write(key: str, made: tuple[Codes, Mesh]) -> Row:
        code, mesh = made
        place = f"{named[key]}.{form}"
        row = _judged(key, code, place)
        if not len(mesh.faces):
            return row._replace(status=f"{EMPTY}: no surface in the box", output="")
        meshes.write(mesh, _below(folder, place))
        return row

    return write


def _below(folder: Path, place: str) -> Path:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _judged(key: str, code: Codes, place: str) -> Row:
    """The row of a code, as its fit judged it."""
    doubts = []
    if code.converged is not None and not code.converged[0]:
        doubts.append("not converged")
    if code.stranger is not None and code.stranger[0]:
        doubts.append("a stranger to the space")
    status = f"{DOUBTFUL}: {', '.join(doubts)}" if doubts else OK
    residual, explained = (None if x is None else float(x[0]) for x in (code.residual, code.explained))
    return Row(key, status, residual, explained, output=place)
