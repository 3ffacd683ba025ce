"""The bulk job `represent`: shapes → fields of their own, without a model, and their meshes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jonet import config as configs
from jonet import representation
from jonet.bulk import work
from jonet.bulk.inputs import File, find, names, stamp
from jonet.bulk.job import Input
from jonet.bulk.manifest import DOUBTFUL, EMPTY, OK, Row
from jonet.bulk.pipeline import Stages
from jonet.bulk.work import DEFAULT, Settings, Summary
from jonet.fields import SUFFIX, Fields, Spline
from jonet.geometry import axes, mesh_files, units
from jonet.geometry.mesh import Mesh
from jonet.representation import Observed
from jonet.settings.representation import Representation
from jonet.settings.surfaces import Surfaces
from jonet.storage import atomic
from jonet.training import splines

CLOSED = 0.01  # fraction of a surface that closes holes, from which on a field is doubtful
SURFACES = Surfaces(resolution=256)  # as of `Fields.extract`


def represent(
    inputs,
    out: str | Path,
    settings: Settings = DEFAULT,
    progress=None,
    *,
    options: Representation | Mapping[str, Any] | None = None,
    form: str | None = None,
    surfaces: Surfaces = SURFACES,
    outliers: str | None = None,
    up: str = "y",
    remove_plane: bool = False,
    unit: str | None = None,
) -> Summary:
    """Meshes and point clouds in input units as fields (`fields.Spline`), each by itself and without a model.

    inputs: a path or several, files or folders.  out: the folder for a file NAME.npz of each, which `Fields.load` reads
    (a file, or the folder), and for manifest.csv.  The same call continues a stopped job.  settings: see `Settings`; by
    default as many shapes are solved at once as the devices take, while the next ones are read.  progress: called with
    the `Outcome` so far after each batch.  options: a `Representation`, or a dict of some of its fields.  form: also
    writes a closed mesh in input units next to each field, in one of `work.FORMATS`, extracted by `surfaces`.
    outliers: what is done about outliers that enlarge the bounding box of a cloud: None removes them with a
    warning, else "warn", "remove" or "keep"; remove_plane: leave out a plane that holds a third of a cloud (both
    `data.scans.read`).  up: the axis of the inputs that points up (`geometry.axes.UP`).
    unit: of the inputs, a key of `geometry.units.METERS`; None for the unit that a file names, if it does.  Fields keep
    it, and meshes of the form glb, which counts in meters, are scaled by it.
    A row's `residual` is the field's error; where more than a hundredth of the surface of a cloud closes holes, the
    field is doubtful.
    Raises ConfigError for impossible options, for a folder with results of other settings or with inputs, for an output
    that is an input or was not written by this job, and if no input could be used; BusyError if another process works
    in the folder.
    """
    work.check(settings)
    axes.upright(up)  # checks it
    options, folder = representation.options_of(options), Path(out)
    if form is not None:
        work.check_format(form)
    units.check(unit)
    files = find(inputs, folder)
    shape_names = names(files)
    fields = work.outputs(shape_names, f"{{}}{SUFFIX}")
    meshes = {} if form is None else work.outputs(shape_names, f"{{}}.{form}")
    outputs = {key: (fields[key], *([meshes[key]] if form else [])) for key in files}
    atomic.check_outputs([folder / path for some in outputs.values() for path in some], files.values())
    work.check_apart(folder, files)

    def solve(shapes: list[Observed]) -> list[tuple[Spline, Mesh | None]]:
        found = representation.fitted(shapes, options)
        if form is None:
            return [(each, None) for each in found]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "field .* has no surface")  # the manifest reports it
            extracted = Fields(found).extract(**dataclasses.asdict(surfaces))
        return list(zip(found, extracted, strict=True))

    def write(key: str, result: tuple[Spline, Mesh | None]) -> Row:
        field, mesh = result
        own = units.of_file(files[key]) if unit is None else unit
        field = dataclasses.replace(field, unit=own)
        field.save(folder / fields[key], sync=False)  # its row has its digest
        row = Row(key, _status(field), residual=field.error, output=fields[key])
        if mesh is None:
            return row
        if not len(mesh.faces):
            return row._replace(status=f"{EMPTY}: no surface in the box")
        mesh_files.write(mesh, folder / meshes[key], own)
        return row._replace(made={"beside": {meshes[key]: {}}})

    read = functools.partial(_read, options, outliers, up, remove_plane)
    stages = Stages(read, lambda shape: None, solve, write, stamp)
    given = {key: Input(File(path, shape_names[key]), outputs[key]) for key, path in files.items()}
    job = {"verb": "represent", "representation": configs.to_dict(options), **work.reading(outliers, up, remove_plane)}
    job |= work.measured(unit)
    if form is not None:
        job |= {"format": form, "surfaces": surfaces.of_results()}
    return work.run(folder, job, given, stages, settings, splines.together, progress)


def _read(options: Representation, outliers: str | None, up: str, remove_plane: bool, source: File) -> Observed:
    return representation.of_file(source.name, source.path, options, outliers, up, remove_plane)


def _status(field: Spline) -> str:
    if field.closed is None or field.closed < CLOSED:
        return OK
    return f"{DOUBTFUL}: {field.closed:.1%} of the surface closes holes"
