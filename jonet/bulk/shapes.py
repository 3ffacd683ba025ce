"""The bulk jobs: `fit` (observed shapes → codes), `reconstruct` (→ meshes) and `extract` (codes → meshes)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jonet import config as configs
from jonet import parallel
from jonet.bulk import work
from jonet.bulk.inputs import (
    Code,
    File,
    Prepared,
    codes_of,
    find,
    lying,
    names,
    off_mesh,
    reader,
    rows_used,
    size_class,
    stamp,
    takes_images,
)
from jonet.bulk.job import Input
from jonet.bulk.manifest import DOUBTFUL, EMPTY, OK, Row
from jonet.bulk.pipeline import Stages
from jonet.bulk.work import DEFAULT, Settings, Summary
from jonet.codes import Codes
from jonet.errors import CheckpointError, ConfigError
from jonet.geometry import mesh_files, point_cloud_files, units
from jonet.geometry.mesh import Mesh
from jonet.inference.fitting import parts
from jonet.inference.fitting.observations import COLUMNS
from jonet.model import Model
from jonet.storage import atomic, identity

BATCHES = (256, 64, 16, 4)  # shapes per device and batch: the capacities that programs are compiled for
ON_CPU = 16  # shapes per batch on CPUs, where larger batches are no faster and delay results
PER_CELL = 400  # memory of a mesh during extraction in bytes, per cell of one face of its box


def fit(
    model: Model,
    inputs,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    outliers: str | None = None,
    up: str = "y",
    remove_plane: bool = False,
    whole: bool = False,
    unit: str | None = None,
) -> Summary:
    """Codes of meshes and point clouds in input units, or of images for networks that take them.

    inputs: a path or several, files or folders.  out: the .npz file that gets all codes when all inputs are done;
    before, each code is in a file of its own in the folder of the same name without .npz, next to manifest.csv (or out
    is that folder, and the file is codes.npz in it).  The same call continues a stopped job.  settings: see `Settings`.
    progress: called with the `Outcome` so far after each batch.
    Of clouds, outliers: what is done about points that stand alone, if they are many or enlarge the bounding box: None
    removes them with a warning, else "warn", "remove" or "keep".  remove_plane: leave out a plane that holds a third of
    it.  up: the axis of the inputs that points up.  All three as for `data.scans.read`; codes have the rotation, and
    meshes the axes of the inputs.  The status of a doubtful code says if the shape is fitted far better with another
    axis up, and how much of the surface of a cloud was not seen (`fitting.parts`).  whole: clouds cover their whole
    surfaces, and none is looked at so.
    unit: of the inputs, a key of `geometry.units.METERS`; None for the unit that a file names, if it does.  Codes keep
    it for `extract`.
    Raises ConfigError for a folder with results of other settings or with inputs, for an output that is an input or was
    not written by this job, and if no input could be used; BusyError if another process works in the folder.
    """
    work.check(settings)
    units.check(unit)
    if whole and model.inputs is not None and not model.is_fitted:
        raise ConfigError("whole is True, but this network encodes its inputs, and looks at no code again")
    out = Path(out)
    folder, joined = (out.with_suffix(""), out) if out.suffix == ".npz" else (out, out / "codes.npz")
    files = find(inputs, folder, [joined], takes_images(model))
    shape_names = names(files)
    outputs = work.outputs(shape_names, "shapes/{}.npz")
    read = reader(model, outliers, up, remove_plane, whole)
    network = model.digest
    atomic.check_outputs([joined, *(folder / output for output in outputs.values())], files.values())
    work.check_apart(folder, files)
    _check_joined(joined, folder)

    def solve(shapes: list[Prepared]) -> list[tuple[Codes, str]]:
        codes = codes_of(model, shapes)
        return list(zip(_each(codes), lying(model, shapes, codes, up), strict=True))

    def write(key: str, result: tuple[Codes, str]) -> Row:
        code, doubt = result
        own = units.of_file(files[key]) if unit is None else unit
        code = dataclasses.replace(code, network=network, units=own and (own,))
        code.save(folder / outputs[key], sync=False)  # its row has its digest
        return _row(key, code, outputs[key], doubt)

    stages = Stages(read, size_class(model), solve, write, stamp)
    given = {key: Input(File(path, shape_names[key]), (outputs[key],)) for key, path in files.items()}
    job = {"verb": "fit", **_of(model, network), "starts": _starts(model)}
    job |= work.reading(outliers, up, remove_plane, whole)
    job |= work.measured(unit)
    batch = functools.partial(batch_size, _bytes(model))
    return work.run(folder, job, given, stages, settings, batch, progress, functools.partial(_join, joined))


def reconstruct(
    model: Model,
    inputs,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    resolution: int | None = None,
    form: str = "ply",
    outliers: str | None = None,
    up: str = "y",
    remove_plane: bool = False,
    whole: bool = False,
    unit: str | None = None,
) -> Summary:
    """Meshes of inputs, written to the folder `out`; arguments and errors as for `fit`.

    resolution: grid cells per side of the box, the model's if None.  form: one of `FORMATS`.  unit: of the inputs, a
    key of `geometry.units.METERS`, for glb, which counts in meters; None for the unit that a file names, if it does.
    """
    work.check(settings)
    cells = _cells(model, resolution, form)
    work.check_units(unit, form)
    files, folder = find(inputs, Path(out), pictures=takes_images(model)), Path(out)
    shape_names = names(files)
    outputs = work.outputs(shape_names, f"{{}}.{form}")
    read = reader(model, outliers, up, remove_plane, whole)
    atomic.check_outputs([folder / output for output in outputs.values()], files.values())
    work.check_apart(folder, files)

    def solve(shapes: list[Prepared]) -> list[tuple[Codes, Mesh, str]]:
        codes = codes_of(model, shapes)
        meshes = _meshes(model, codes, cells)
        doubts = lying(model, shapes, codes, up) if model.is_fitted else off_mesh(shapes, meshes)
        return list(zip(_each(codes), meshes, doubts, strict=True))

    stages = Stages(read, size_class(model), solve, _writer(folder, outputs, files, unit), stamp)
    given = {key: Input(File(path, shape_names[key]), (outputs[key],)) for key, path in files.items()}
    job = {"verb": "reconstruct", "resolution": cells, "format": form}
    job |= {**_of(model, model.digest), "starts": _starts(model), **work.reading(outliers, up, remove_plane, whole)}
    job |= work.measured(unit)
    batch = functools.partial(batch_size, max(_bytes(model), PER_CELL * cells**2))
    return work.run(folder, job, given, stages, settings, batch, progress)


def extract(
    model: Model,
    codes: str | Path,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    resolution: int | None = None,
    form: str = "ply",
    unit: str | None = None,
) -> Summary:
    """Meshes of codes, written to the folder `out`; further arguments and errors as for `fit` and `reconstruct`.

    codes: a codes.npz, or the folder of a `fit`, finished or not.  Raises InputError for codes of another network.
    """
    work.check(settings)
    cells = _cells(model, resolution, form)
    work.check_units(unit, form)
    source, folder = Path(codes), Path(out)
    network = model.digest
    if source.is_dir():
        files = {path.relative_to(source).as_posix(): path for path in sorted((source / "shapes").rglob("*.npz"))}
        shape_names = {key: key.removeprefix("shapes/").removesuffix(".npz") for key in files}
        sources = {key: File(path, shape_names[key]) for key, path in files.items()}
        if code := next(
            filter(None, map(_readable, files.values())), None
        ):  # the others are checked when they are read
            code.check_network(network)
    else:
        all_codes = Codes.load(source)
        all_codes.check_network(network)
        shape_names = {name: name for name in all_codes.names}
        if len(shape_names) < len(all_codes):
            raise ConfigError(f"{source}: two codes are named {Counter(all_codes.names).most_common(1)[0][0]!r}")
        files = {name: source for name in shape_names}
        sources = {name: Code(all_codes[i]) for i, name in enumerate(all_codes.names)}
    if not files:
        raise ConfigError(f"{source} contains no codes")
    outputs = work.outputs(shape_names, f"{{}}.{form}")
    atomic.check_outputs([folder / output for output in outputs.values()], set(files.values()))

    def solve(batch: list[Codes]) -> list[tuple[Codes, Mesh, str]]:
        meshes = _meshes(model, Codes.joined(batch), cells)
        return [(code, mesh, "") for code, mesh in zip(batch, meshes, strict=True)]

    def together(code: Codes):
        return code.similarities is None, code.residual is None

    stages = Stages(functools.partial(_code, network), together, solve, _writer(folder, outputs, {}, unit), stamp)
    job = {"verb": "extract", "resolution": cells, "format": form, **_of(model, network), **work.measured(unit)}
    given = {key: Input(sources[key], (outputs[key],)) for key in files}
    return work.run(folder, job, given, stages, settings, functools.partial(batch_size, PER_CELL * cells**2), progress)


def _cells(model: Model, resolution: int | None, form: str) -> int:
    """The grid cells per side; ConfigError if they or the format are impossible."""
    work.check_format(form)
    if resolution is None:
        return model.surfaces.resolution
    return dataclasses.replace(model.surfaces, resolution=resolution).resolution


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
    """ConfigError if the file for all codes exists and was not written by the job."""
    record = _read_record(folder / "joined.json")
    ours = record["file"] == _below(joined, folder) or (record["codes"] and identity.unchanged(joined, record["codes"]))
    if os.path.lexists(joined) and not ours:
        raise ConfigError(f"{joined} exists already, and no job in {folder} wrote it; choose another --out")


def _join(joined: Path, folder: Path, rows: dict[str, Row]) -> None:
    """Writes all codes of a job into one file; `joined.json` records its path, content and parts."""
    before = _read_record(folder / "joined.json")
    parts = [[row.output, row.made["sha256"]] for row in rows.values() if row.output]
    unchanged = bool(before["codes"]) and identity.unchanged(joined, before["codes"])
    if unchanged and before["parts"] == parts:
        return
    if parts:
        record = {"file": _below(joined, folder), "codes": {}, "parts": parts}
        # written before the file, so that the file is known as the job's even if the job is killed
        atomic.write_json(folder / "joined.json", record)
        Codes.joined([Codes.load(folder / path) for path, _ in parts]).save(joined)
        atomic.write_json(folder / "joined.json", record | {"codes": identity.stamp(joined)})
    elif unchanged:
        atomic.remove_file(joined)


def _below(joined: Path, folder: Path) -> str:
    return os.path.relpath(os.path.realpath(joined), os.path.realpath(folder))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"file": found.get("file"), "codes": found["codes"], "parts": found["parts"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"file": None, "codes": {}, "parts": []}


def batch_size(each: int) -> int:
    """Shapes per batch if each takes so many bytes: at most half of the memory is used."""
    if parallel.platform().is_cpu:
        return ON_CPU * parallel.count()
    return next((n for n in BATCHES if n * each <= parallel.memory() // 2), BATCHES[-1]) * parallel.count()


def _bytes(model: Model) -> int:
    """Memory of one shape's observations in bytes, with copies."""
    return 4 * model.fitting.starts * (rows_used(model) or point_cloud_files.LIMIT) * COLUMNS * 4


def _of(model: Model, network: str) -> dict[str, Any]:
    """What results depend on: the network's digest and its settings."""
    return {
        "network": network,
        "fitting": configs.to_dict(model.fitting),
        "surfaces": model.surfaces.of_results(),
        "precision": model.precision,
    }


def _starts(model: Model) -> str:
    """A digest of the training codes and prior, on which fitted codes depend; "" for codes that are not fitted."""
    if not model.is_fitted:
        return ""
    arrays = [model.codes and model.codes.values, *(model.prior or ())]
    return configs.digest([x if x is None else hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in arrays])


def _each(codes: Codes) -> list[Codes]:
    return [codes[i] for i in range(len(codes))]


def _meshes(model: Model, codes: Codes, resolution: int) -> list[Mesh]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "field .* has no surface")  # the manifest reports it
        return model.extract(codes, resolution)


def _writer(folder: Path, outputs: dict[str, str], inputs: Mapping[str, Path], unit: str | None):
    """Writes a mesh and gives its row.  unit: of all inputs; None for that which a file names, or the code has."""

    def write(key: str, result: tuple[Codes, Mesh, str]) -> Row:
        code, mesh, doubt = result
        row = _row(key, code, outputs[key], doubt)
        if not len(mesh.faces):
            return row._replace(status=f"{EMPTY}: no surface in the box", output="")
        own = unit or (units.of_file(inputs[key]) if key in inputs else (code.units or ("",))[0] or None)
        mesh_files.write(mesh, folder / outputs[key], own)
        return row

    return write


def _row(key: str, code: Codes, output: str, doubt: str = "") -> Row:
    """The row of a code, with the status that its fit reports.  doubt: a further one, "" for none."""
    doubts = []
    if code.converged is not None and not code.converged[0]:
        doubts.append("not converged")
    if code.out_of_distribution is not None and code.out_of_distribution[0]:
        doubts.append("out of distribution")
    if code.unseen is not None and code.unseen[0] > parts.PART:
        doubts.append(f"{code.unseen[0]:.0%} of the surface unseen")
    if doubt:
        doubts.append(doubt)
    status = f"{DOUBTFUL}: {', '.join(doubts)}" if doubts else OK
    residual, inlier_fraction = (None if x is None else float(x[0]) for x in (code.residual, code.inlier_fraction))
    return Row(key, status, residual, inlier_fraction, output=output)
