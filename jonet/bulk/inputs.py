"""What bulk jobs take: files found and named, read and prepared for a network, and their codes."""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jonet.bulk.job import is_job
from jonet.codes import Codes
from jonet.data import clouds, meshes, observed
from jonet.data.meshes import Similarity
from jonet.errors import ConfigError, InputError
from jonet.inference import latents
from jonet.inference.encode import Inputs
from jonet.inference.latents import FitConfig
from jonet.inference.observations import Rows, observe
from jonet.model import Model
from jonet.storage import identity

BOX = ((-1, -1, -1), (1, 1, 1))  # that holds a normalised shape


class File(NamedTuple):
    """An input that lies in a file, and the name of its shape."""

    path: Path
    name: str

    def stamp(self) -> dict[str, Any]:
        """As `identity.stamp`, and where it lies: two files may have equal sizes and times."""
        return {"path": os.path.abspath(self.path), **identity.stamp(self.path)}

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        if stamped.get("path") != os.path.abspath(self.path):
            stamped = {name: value for name, value in stamped.items() if name not in ("modified", "changed")}
        return "sha256" in stamped and identity.unchanged(self.path, stamped)


class Code(NamedTuple):
    """An input that is one of several codes in a file."""

    code: Codes

    def stamp(self) -> dict[str, Any]:
        """Of all that its mesh and its row are made of; neither its name nor its file is."""
        found = hashlib.sha256()
        for name, value in sorted(vars(self.code).items()):
            if name == "similarities" and value is not None:
                value = [way.as_array() for way in value]
            if name not in ("names", "network", "sources") and value is not None:
                found.update(name.encode() + np.ascontiguousarray(value).tobytes())
        return {"sha256": found.hexdigest()[:32]}

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        return stamped == self.stamp()


def stamp(source: File | Code) -> dict[str, Any]:
    """What tells the content of an input; it can be sent to other processes."""
    return source.stamp()


class Held(NamedTuple):
    """What an input holds, ready for the network: observations to fit, or the array that its encoder takes."""

    name: str
    similarity: Similarity
    given: Rows | np.ndarray


def encoded(model: Model, shapes: Sequence[Held]) -> Codes:
    """Their codes, fitted or encoded as the network takes them."""
    called, ways, given = (list(column) for column in zip(*shapes, strict=True))
    if model.inputs is not None:
        return model.encode(**{model.inputs.kind: given}, names=called).placed(ways)
    found = latents.solve(
        model.network,
        model.shared,
        model.statistics,
        given,
        np.array([_number(name) for name in called], np.int32),
        config=model.fitting,
        prior=model.prior,
        starts=None if model.codes is None else model.codes.values,
    )
    return Codes(names=tuple(called), similarities=tuple(ways), **found._asdict())


def _number(name: str) -> int:
    """Names a shape's random draws, so that they depend on the shape and not on its batch."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) >> 1


def find(inputs, model: Model, out: Path | None = None, made: Iterable[Path] = ()) -> dict[str, Path]:
    """Files that a network can take, by the name that the manifest gives them: the path below the named folder.

    out: where results go; ConfigError if it is one of the folders that are searched.  Neither it nor `made` (a file of
    results) nor any other job's folder is searched for inputs.
    """
    pictures = model.inputs is not None and model.inputs.kind == "images"
    found: dict[str, Path] = {}
    left_out = {os.path.realpath(path) for path in (out, *made) if path is not None}
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        folder = Path(given).is_dir()
        if folder and out is not None and os.path.realpath(given) == os.path.realpath(out):
            raise ConfigError(f"{out} is searched for inputs, and results would lie among them; choose another --out")
        paths = observed.find(given, pictures)
        for path in searched(paths, Path(given), left_out) if folder else paths:
            key = path.relative_to(given).as_posix() if folder else path.name
            keys = (key, path.as_posix(), os.path.abspath(path))
            found[next(key for key in keys if found.get(key, path) == path)] = path
    if not found:
        raise ConfigError(f"no usable {'picture' if pictures else 'mesh or cloud'} in {inputs}")
    return found


def searched(paths: Sequence[Path], root: Path, left_out: Iterable[str] = ()) -> list[Path]:
    """Those of the files below a folder that are no results of jonet; left_out: real paths of others."""
    own = {root: True}

    def searchable(folder: Path) -> bool:
        if folder not in own:
            ours = is_job(folder) or meshes.is_output(folder)
            own[folder] = searchable(folder.parent) and os.path.realpath(folder) not in left_out and not ours
        return own[folder]

    return [path for path in paths if searchable(path.parent) and os.path.realpath(path) not in left_out]


def names(files: Iterable[str]) -> dict[str, str]:
    """What each input's shape is called: like the input, without the suffix where that is enough."""
    short = {key: key.removesuffix(PurePosixPath(key).suffix) or key for key in files}
    forms = {key: (short[key], key.replace(".", "_"), key) for key in short}
    chosen = dict.fromkeys(forms, 0)
    while True:
        called = {key: forms[key][chosen[key]] for key in forms}
        count = Counter(called.values())
        if not (alike := [key for key in forms if count[called[key]] > 1]):
            return called
        for key in alike:
            chosen[key] = min(chosen[key] + 1, 2)


def reader(model: Model) -> Callable[[File], Held]:
    """Reads a file and prepares it; it can be sent to other processes."""
    if model.inputs is None and model.kind != "deepsdf":
        raise InputError("this network knows only the shapes that it was trained on, and takes no others")
    if model.inputs is None:
        return functools.partial(_observations, model.frame, model.fitting, rows_seen(model) or clouds.LIMIT)
    if model.inputs.kind == "samples":
        raise InputError("this network takes points with occupancies, and files of meshes and clouds hold none")
    return functools.partial(_inputs, model.frame, model.inputs)


def _observations(frame: str, fitting: FitConfig, limit: int, source: File) -> Held:
    """limit: of more points a fit would see no more."""
    path, name = source
    one = observed.read(path, frame, limit=limit)
    arrays = [None if array is None else [array] for array in (one.samples, one.points, one.normals)]
    (rows,), _ = observe(*arrays, None, [_number(name)], offset=fitting.offset, box=BOX, seed=fitting.seed)
    return Held(name, one.similarity, rows)


def _inputs(frame: str, form: Inputs, source: File) -> Held:
    path, name = source
    if form.kind == "images":
        return Held(name, Similarity(), observed.picture(path, form.size))
    if form.kind == "voxels":
        voxels, way = observed.grid(path, form.size)
        return Held(name, way, voxels)
    one = observed.read(path, frame, surface=True)
    return Held(name, one.similarity, one.points)


def kind(model: Model) -> Callable[[Held], int]:
    """Inputs of about one number of rows go together."""
    most = rows_seen(model) or 2**62

    def together(shape: Held) -> int:
        return min(most, len(shape.given.points)).bit_length() if isinstance(shape.given, Rows) else 0

    return together


def rows_seen(model: Model) -> int | None:
    """How many observations of a shape its fit looks at, None for all."""
    fitting = model.fitting
    return {"gauss_newton": max(fitting.gauss_newton.points), "lbfgs": fitting.lbfgs.points}.get(fitting.method)
