"""What bulk jobs take: files found and named, read and prepared for a network, and their codes."""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from jonet.codes import Codes
from jonet.data import clouds, observed
from jonet.data.meshes import Similarity
from jonet.errors import ConfigError, InputError
from jonet.inference import latents
from jonet.inference.encode import Inputs
from jonet.inference.latents import FitConfig
from jonet.inference.observations import Rows, observe
from jonet.model import Model

BOX = ((-1, -1, -1), (1, 1, 1))  # that holds a normalised shape


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
    return zlib.crc32(name.encode()) >> 1


def find(inputs, model: Model) -> dict[str, Path]:
    """Files that a network can take, by the name that the manifest gives them: the path below the named folder."""
    pictures = model.inputs is not None and model.inputs.kind == "images"
    found: dict[str, Path] = {}
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        for path in observed.find(given, pictures):
            key = path.relative_to(given).as_posix() if Path(given).is_dir() else path.name
            found[key if found.get(key, path) == path else path.as_posix()] = path
    if not found:
        raise ConfigError(f"no usable {'picture' if pictures else 'mesh or cloud'} in {inputs}")
    return found


def names(files: dict[str, Path]) -> dict[str, str]:
    """What is made of each input is called like it, without the suffix where that is enough."""
    short = {key: safe(str(PurePosixPath(key).with_suffix(""))) for key in files}
    twice = {name for name, count in Counter(short.values()).items() if count > 1}
    return {key: safe(key.replace(".", "_")) if name in twice else name for key, name in short.items()}


def safe(name: str) -> str:
    """A name as a path that stays below its folder."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")) or "unnamed"


def reader(model: Model) -> Callable[[tuple[Path, str]], Held]:
    """Reads (file, name) and prepares it; it can be sent to other processes."""
    if model.inputs is None and model.kind != "deepsdf":
        raise InputError("this network knows only the shapes that it was trained on, and takes no others")
    if model.inputs is None:
        return functools.partial(_observations, model.frame, model.fitting, rows_seen(model) or clouds.LIMIT)
    if model.inputs.kind == "samples":
        raise InputError("this network takes points with occupancies, and files of meshes and clouds hold none")
    return functools.partial(_inputs, model.frame, model.inputs)


def _observations(frame: str, fitting: FitConfig, limit: int, source: tuple[Path, str]) -> Held:
    """limit: of more points a fit would see no more."""
    path, name = source
    one = observed.read(path, frame, limit=limit)
    arrays = [None if array is None else [array] for array in (one.samples, one.points, one.normals)]
    (rows,), _ = observe(*arrays, None, [_number(name)], offset=fitting.offset, box=BOX, seed=fitting.seed)
    return Held(name, one.similarity, rows)


def _inputs(frame: str, form: Inputs, source: tuple[Path, str]) -> Held:
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
