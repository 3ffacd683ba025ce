"""The bulk jobs: observed shapes to codes, to meshes; codes to meshes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jonet import config as configs
from jonet import parallel
from jonet.bulk.inputs import Code, File, Held, encoded, find, kind, names, reader, rows_seen, stamp
from jonet.bulk.job import Input, is_former, opened
from jonet.bulk.manifest import DOUBTFUL, EMPTY, OK, Row
from jonet.bulk.pipeline import Outcome, Pipeline, Stages
from jonet.codes import Codes
from jonet.data import clouds, meshes
from jonet.data.meshes import Mesh
from jonet.errors import CheckpointError, ConfigError
from jonet.inference.observations import COLUMNS
from jonet.model import Model, network_digest
from jonet.storage import atomic, identity
from jonet.storage.names import unique

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
    Raises ConfigError for a folder of other settings or of the inputs, for an output that is an input or none of this
    job, or where no input could be used; BusyError where another process works in the folder.
    """
    _check(settings)
    out = Path(out)
    folder, joined = (out.with_suffix(""), out) if out.suffix == ".npz" else (out, out / "codes.npz")
    files = find(inputs, model, folder, [joined])
    called = names(files)
    places = _places(called, "shapes/{}.npz")
    read = reader(model)
    network = network_digest(model)
    atomic.check_outputs([joined, *(folder / place for place in places.values())], files.values())
    _check_apart(folder, files)
    _check_joined(joined, folder)

    def write(key: str, code: Codes) -> Row:
        dataclasses.replace(code, network=network).save(folder / places[key], sync=False)  # its row has its digest
        return _judged(key, code, places[key])

    stages = Stages(read, kind(model), lambda shapes: _each(encoded(model, shapes)), write, stamp)
    given = {key: Input(File(path, called[key]), places[key]) for key, path in files.items()}
    job = {"verb": "fit", **_of(model, network), "starts": _starts(model)}
    return _run(model, folder, job, given, stages, settings, _bytes(model), progress, functools.partial(_join, joined))


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
    _check(settings)
    cells = _cells(model, resolution, form)
    files, folder = find(inputs, model, Path(out)), Path(out)
    called = names(files)
    places = _places(called, f"{{}}.{form}")
    read = reader(model)
    atomic.check_outputs([folder / place for place in places.values()], files.values())
    _check_apart(folder, files)

    def solve(shapes: list[Held]) -> list[tuple[Codes, Mesh]]:
        codes = encoded(model, shapes)
        return list(zip(_each(codes), _meshes(model, codes, cells), strict=True))

    stages = Stages(read, kind(model), solve, _writer(folder, places), stamp)
    given = {key: Input(File(path, called[key]), places[key]) for key, path in files.items()}
    job = {"verb": "reconstruct", "resolution": cells, "format": form}
    job |= {**_of(model, network_digest(model)), "starts": _starts(model)}
    return _run(model, folder, job, given, stages, settings, max(_bytes(model), PER_CELL * cells**2), progress)


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
    """Meshes of codes (codes.npz, or the folder of a `fit`, finished or not) into the folder `out`; else as `fit`.

    Raises InputError for codes of another network.
    """
    _check(settings)
    cells = _cells(model, resolution, form)
    source, folder = Path(codes), Path(out)
    network = network_digest(model)
    if source.is_dir():
        files = {path.relative_to(source).as_posix(): path for path in sorted((source / "shapes").rglob("*.npz"))}
        called = {key: key.removeprefix("shapes/").removesuffix(".npz") for key in files}
        sources = {key: File(path, called[key]) for key, path in files.items()}
        if code := next(filter(None, map(_readable, files.values())), None):  # each is looked at when it is read
            code.check_network(network)
    else:
        whole = Codes.load(source)
        whole.check_network(network)
        called = {name: name for name in whole.names}
        if len(called) < len(whole):
            raise ConfigError(f"{source}: two codes are named {Counter(whole.names).most_common(1)[0][0]!r}")
        files = {name: source for name in called}
        sources = {name: Code(whole[i]) for i, name in enumerate(whole.names)}
    if not files:
        raise ConfigError(f"{source} holds no codes")
    places = _places(called, f"{{}}.{form}")
    atomic.check_outputs([folder / place for place in places.values()], set(files.values()))

    def solve(some: list[Codes]) -> list[tuple[Codes, Mesh]]:
        return list(zip(some, _meshes(model, Codes.joined(some), cells), strict=True))

    def together(code: Codes):
        return code.similarities is None, code.residual is None

    stages = Stages(functools.partial(_code, network), together, solve, _writer(folder, places), stamp)
    job = {"verb": "extract", "resolution": cells, "format": form, **_of(model, network)}
    given = {key: Input(sources[key], places[key]) for key in files}
    return _run(model, folder, job, given, stages, settings, PER_CELL * cells**2, progress)


def _run(
    model, folder: Path, job, inputs, stages: Stages, settings: Settings, each: int, progress, finish=None
) -> Report:
    """inputs: by name; each: bytes a shape takes; finish: what is made of the folder and all rows when all are done."""
    index, count = settings.share or (jax.process_index(), jax.process_count())
    former = {**job, "network": _former(model)}
    former.pop("starts", None)
    with opened(folder, (index, count), job, former, inputs) as work:
        mine = sorted(inputs)[index::count]
        if settings.retry_failed:
            work.again.update(mine if settings.share else inputs)
        left = [key for key in mine if work.done(key) is None]
        todo = left
        if settings.limit is not None and settings.limit < len(left):
            todo = [left[i * len(left) // settings.limit] for i in range(settings.limit)]

        def write(key: str, result) -> Row:
            work.begin(key)
            return stages.write(key, result)

        with parallel.alone():
            batch = batch_size(each) if settings.batch is None else settings.batch
            pipeline = Pipeline(stages._replace(write=write), work.add, batch, settings.executor)
            try:
                sources = {key: inputs[key].source for key in todo}
                outcome = pipeline.run(sources, progress or (lambda outcome: None))
            except KeyboardInterrupt as stopped:
                raise KeyboardInterrupt(f"stopped; {folder} keeps what is done, the same command goes on") from stopped

        def join() -> bool:
            return work.join(lambda rows: finish(folder, rows) if finish else None)

        complete = join()
        while not complete and settings.share is None and count > 1 and len(todo) == len(left):
            time.sleep(1)  # jax.distributed wants its processes to end together
            complete = join()
        known = [row for key in mine if (row := work.done(key))]
        if known and not work.usable():
            raise ConfigError(f"none of {len(known)} inputs could be used; {work.manifest.path} says why")
    size = sum(row.made.get("bytes", 0) for row in outcome.rows)
    return Report(len(mine), len(mine) - len(left), outcome, size, complete)


def _check(settings: Settings) -> None:
    for name in ("limit", "batch"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ConfigError(f"{name} is {value}, but must be 1 or more")
    if settings.share is not None and not 0 <= settings.share[0] < settings.share[1]:
        index, count = settings.share
        raise ConfigError(f"share is {index} of {count}; shares count from 0")


def _check_apart(folder: Path, files: Mapping[str, Path]) -> None:
    """ConfigError where inputs lie directly in the job's folder, which later searches take for results alone."""
    for path in files.values():
        if os.path.realpath(path.parent) == os.path.realpath(folder):
            raise ConfigError(f"{path} lies in {folder}, where results would lie among inputs; choose another --out")


def _cells(model: Model, resolution: int | None, form: str) -> int:
    """Cells a side; ConfigError where these or the format are impossible."""
    if form not in FORMATS:
        raise ConfigError(f"format is {form!r}; meshes are written as {', '.join(FORMATS)}")
    if resolution is None:
        return model.surfaces.resolution
    return dataclasses.replace(model.surfaces, resolution=resolution).resolution


def _places(called: dict[str, str], form: str) -> dict[str, str]:
    """Where the result of each shape goes below the job's folder."""
    return {key: form.format(name) for key, name in zip(called, unique(list(called.values())), strict=True)}


def _readable(path: Path) -> Codes | None:
    with contextlib.suppress(CheckpointError):
        return Codes.load(path)
    return None


def _code(network: str, source: File | Code) -> Codes:
    """The code of a source, which must be of this network."""
    code = source.code if isinstance(source, Code) else Codes.load(source.path)
    code.check_network(network)
    return code


def _check_joined(joined: Path, folder: Path) -> None:
    """ConfigError where something is in the place of all codes that the job did not put there."""
    record = _read_record(folder / "joined.json")
    ours = record["file"] == _below(joined, folder) or (record["codes"] and identity.unchanged(joined, record["codes"]))
    if os.path.lexists(joined) and not ours and not is_former(folder):
        raise ConfigError(f"{joined} is there already, and no job in {folder} made it; choose another --out")


def _join(joined: Path, folder: Path, rows: dict[str, Row]) -> None:
    """All codes of a job in one file; `joined.json` says which one, and of which parts it is made."""
    before = _read_record(folder / "joined.json")
    parts = [[row.output, row.made["sha256"]] for row in rows.values() if row.output]
    whole = bool(before["codes"]) and identity.unchanged(joined, before["codes"])
    if whole and before["parts"] == parts:
        return
    if parts:
        record = {"file": _below(joined, folder), "codes": {}, "parts": parts}
        atomic.write_json(folder / "joined.json", record)  # known as the job's own after a stop, too
        Codes.joined([Codes.load(folder / place) for place, _ in parts]).save(joined)
        atomic.write_json(folder / "joined.json", record | {"codes": identity.stamp(joined)})
    elif whole:
        atomic.remove_file(joined)


def _below(joined: Path, folder: Path) -> str:
    return os.path.relpath(os.path.realpath(joined), os.path.realpath(folder))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"file": found.get("file"), "codes": found["codes"], "parts": found["parts"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"file": None, "codes": {}, "parts": []}


def batch_size(each: int) -> int:
    """Shapes at once where each takes so many bytes: at most half of the memory."""
    if jax.default_backend() == "cpu":
        return ON_CPU * parallel.count()
    return next((n for n in BATCHES if n * each <= parallel.memory() // 2), BATCHES[-1]) * parallel.count()


def _bytes(model: Model) -> int:
    """What the observations of one shape take, with copies."""
    return 4 * model.fitting.starts * (rows_seen(model) or clouds.LIMIT) * COLUMNS * 4


def _of(model: Model, network: str) -> dict[str, Any]:
    """What results depend on: the network, by its numbers, and its settings."""
    return {
        "network": network,
        "fitting": configs.to_dict(model.fitting),
        "surfaces": configs.to_dict(model.surfaces),
    }


def _former(model: Model) -> str:
    """What version 0.1.0 knew a network by."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((model.shared, model.statistics)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _starts(model: Model) -> str:
    """What tells the training codes and their prior, which codes are fitted by; encoders know them not."""
    if model.inputs is not None:
        return ""
    known = [model.codes and model.codes.values, *(model.prior or ())]
    return configs.digest([None if x is None else hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for x in known])


def _each(codes: Codes) -> list[Codes]:
    return [codes[i] for i in range(len(codes))]


def _meshes(model: Model, codes: Codes, resolution: int) -> list[Mesh]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "field .* has no surface")  # the manifest says so
        return model.extract(codes, resolution)


def _writer(folder: Path, places: dict[str, str]):
    def write(key: str, made: tuple[Codes, Mesh]) -> Row:
        code, mesh = made
        row = _judged(key, code, places[key])
        if not len(mesh.faces):
            return row._replace(status=f"{EMPTY}: no surface in the box", output="")
        meshes.write(mesh, folder / places[key])
        return row

    return write


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
