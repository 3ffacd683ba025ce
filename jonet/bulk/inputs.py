"""Inputs of bulk jobs: finding and naming files, reading and preparing them, and computing codes."""

from __future__ import annotations

import functools
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np

from jonet.bulk.job import is_job
from jonet.codes import Codes
from jonet.data import scans
from jonet.errors import ConfigError, InputError
from jonet.geometry import axes, point_cloud_files
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.encode import Inputs
from jonet.inference.fitting import encoded, latents, parts
from jonet.inference.fitting import turned as turns
from jonet.inference.fitting.observations import Observations, ObservedArrays, observe
from jonet.model import Model
from jonet.settings.fitting import FitConfig
from jonet.storage import identity, search


class File(NamedTuple):
    """An input in its own file, and the name of its shape."""

    path: Path
    name: str

    def stamp(self) -> dict[str, Any]:
        """`identity.stamp` and the path, since two files may have equal sizes and times."""
        return {"path": os.path.abspath(self.path), **identity.stamp(self.path)}

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        """Whether the file has the content that was stamped; of another path, the bytes are compared."""
        if stamped.get("path") != os.path.abspath(self.path):
            stamped = {name: value for name, value in stamped.items() if name not in ("modified", "changed")}
        return "sha256" in stamped and identity.unchanged(self.path, stamped)


class Code(NamedTuple):
    """An input that is one of several codes in a file."""

    code: Codes

    def stamp(self) -> dict[str, Any]:
        """A digest of all that its mesh and row depend on, which excludes its name and file."""
        found = hashlib.sha256()
        for name, value in sorted(vars(self.code).items()):
            if name == "similarities" and value is not None:
                value = [transform.as_array() for transform in value]
            if name not in ("names", "network", "sources") and value is not None:
                found.update(name.encode() + np.ascontiguousarray(value).tobytes())
        return {"sha256": found.hexdigest()[:32]}

    def unchanged(self, stamped: dict[str, Any]) -> bool:
        return stamped == self.stamp()


def stamp(source: File | Code) -> dict[str, Any]:
    """Identifies the content of an input; a function that can be sent to other processes."""
    return source.stamp()


class Prepared(NamedTuple):
    """An input ready for the network: observations to fit, or the array that the encoder takes.

    similarity: input units → normalized frame.  cloud: what the observations are of, if that are points.
    """

    name: str
    similarity: Similarity
    data: Observations | np.ndarray
    cloud: parts.Cloud | None = None


def codes_of(model: Model, shapes: Sequence[Prepared]) -> Codes:
    """Codes of prepared inputs, fitted if codes of the network are, else encoded."""
    shape_names, similarities, data, clouds = (list(column) for column in zip(*shapes, strict=True))
    if model.inputs is not None and not model.is_fitted:
        observed: dict[str, Any] = {model.inputs.kind: data}
        return model.encode(**observed, names=shape_names).placed(similarities)
    index = np.array([_index(name) for name in shape_names], np.int32)
    guesses = None if model.inputs is None else encoded.guesses(model.network, model.inputs, data)
    found = latents.fit(model.network, data, index, guesses=guesses, **_fitting(model))
    placed = parts.placed(model.network, clouds, found, index, **_known(model))
    similarities = tuple(a @ b for a, b in zip(placed.similarities, similarities, strict=True))
    return Codes(names=tuple(shape_names), similarities=similarities, unseen=placed.unseen, **placed.fit._asdict())


def lying(model: Model, shapes: Sequence[Prepared], codes: Codes, up: str) -> list[str]:
    """For each file which axis perhaps points up, "" for shapes that do not lie; only doubtful codes are looked at.

    up: the axis that was taken for it.
    Fits every shape whose code is out of distribution in five other poses (`fitting.turned.axes`).
    """
    found = [""] * len(shapes)
    if model.is_fitted and codes.out_of_distribution is not None and codes.residual is not None:
        doubtful = np.flatnonzero(codes.out_of_distribution).tolist()
        turned = turns.axes(
            model.network,
            [cast(Observations, shapes[i].data) for i in doubtful],
            codes.residual[doubtful],
            np.array([_index(shapes[i].name) for i in doubtful], np.int32),
            **_fitting(model),
        )
        for i, axis in zip(doubtful, turned, strict=True):
            found[i] = axis and f"perhaps turned: --up={axes.beneath(up, axis)}"
    return found


def off_mesh(shapes: Sequence[Prepared], meshes: Sequence[Mesh]) -> list[str]:
    """For each cloud how many of its points are far from its mesh, in input units; "" for few, and for other shapes."""
    found = [""] * len(shapes)
    for i, (shape, mesh) in enumerate(zip(shapes, meshes, strict=True)):
        if shape.cloud is not None and len(mesh.faces):
            share = parts.off_mesh(mesh, shape.similarity.inverse()(shape.cloud[0]))
            found[i] = f"{share:.0%} of the points far from the mesh" * (share > parts.DOUBTFUL)
    return found


def _fitting(model: Model) -> dict[str, Any]:
    """Arguments of `latents.fit`: what is known of the training codes, and the settings."""
    return {"config": model.fitting, **_known(model)}


def _known(model: Model) -> dict[str, Any]:
    """What is known of the training codes: their distribution, and the codes as starts."""
    return {"prior": model.prior, "starts": None if model.codes is None else model.codes.values}


def _index(name: str) -> int:
    """The index that seeds a shape's random numbers, so that they depend on its name and not on its batch."""
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) >> 1


def takes_images(model: Model) -> bool:
    """Whether a network takes images rather than meshes and point clouds."""
    return model.inputs is not None and model.inputs.kind == "images"


def find(inputs, out: Path | None = None, results: Iterable[Path] = (), pictures: bool = False) -> dict[str, Path]:
    """Meshes and point clouds (or images) by their name in the manifest: the path relative to the given folder.

    inputs: a path or several, files, folders or patterns (`scans/*.ply`).  out: the folder of results; it, `results`
    (files) and other jobs' folders are not searched for inputs.  A file that several of the inputs hold is found once,
    under its name in the first of them.  Raises ConfigError if `out` is one of the searched
    folders, or no file is found.
    """
    listed = [inputs] if isinstance(inputs, str | Path) else inputs
    found: dict[str, Path] = {}
    done: set[str] = set()  # real paths of what the inputs before hold
    left_out = {os.path.realpath(path) for path in (out, *results) if path is not None}
    for given in (place for one in listed for place in search.matching(one)):
        folder = Path(given).is_dir()
        if folder and out is not None and os.path.realpath(given) == os.path.realpath(out):
            raise ConfigError(f"{out} is searched for inputs, and results would be among them; choose another --out")
        paths = scans.find(given, pictures)
        paths = searched(paths, Path(given), left_out) if folder else paths
        real = {path: os.path.realpath(path) for path in paths}
        for path in (path for path in paths if real[path] not in done):
            key = path.relative_to(given).as_posix() if folder else path.name
            keys = (key, path.as_posix(), os.path.abspath(path))
            found[next(key for key in keys if found.get(key, path) == path)] = path
        done.update(real.values())
    if not found:
        raise ConfigError(f"no usable {'image' if pictures else 'mesh or cloud'} in {inputs}")
    return found


def searched(paths: Sequence[Path], root: Path, left_out: Iterable[str] = ()) -> list[Path]:
    """The files below a folder that are not in a folder of jonet's results; left_out: real paths of others to skip."""
    searched_folders = {root: True}

    def searchable(folder: Path) -> bool:
        if folder not in searched_folders:
            keep = os.path.realpath(folder) not in left_out and not (is_job(folder) or search.is_output(folder))
            searched_folders[folder] = searchable(folder.parent) and keep
        return searched_folders[folder]

    return [path for path in paths if searchable(path.parent) and os.path.realpath(path) not in left_out]


def names(files: Iterable[str]) -> dict[str, str]:
    """The name of each input's shape: the input's, without suffix if that is unique."""
    short = {key: key.removesuffix(PurePosixPath(key).suffix) or key for key in files}
    forms = {key: (short[key], key.replace(".", "_"), key) for key in short}
    chosen = dict.fromkeys(forms, 0)
    while True:
        current = {key: forms[key][chosen[key]] for key in forms}
        count = Counter(current.values())
        if not (ambiguous := [key for key in forms if count[current[key]] > 1]):
            return current
        for key in ambiguous:
            chosen[key] = min(chosen[key] + 1, 2)


def reader(
    model: Model, outliers: str | None = None, up: str = "y", remove_plane: bool = False, whole: bool = False
) -> Callable[[File], Prepared]:
    """A function that reads and prepares a file, and can be sent to other processes.

    outliers, up, remove_plane: as for `scans.read`.  whole: clouds are not looked at again as parts of shapes.
    Raises InputError for a network that takes no files of shapes, or, where these are given, no point clouds.
    """
    axes.upright(up)  # checks it
    if model.inputs is None and not model.is_fitted:
        raise InputError("this network only represents the shapes that it was trained on, and takes no others")
    if whole and model.inputs is not None and not model.is_fitted and model.inputs.kind != "points":
        raise InputError(f"whole is True, but this network takes {model.inputs.kind}, and no point clouds")
    if model.inputs is None or model.is_fitted:
        limit = rows_used(model) or point_cloud_files.LIMIT
        return functools.partial(_observations, model.frame, model.fitting, limit, outliers, up, remove_plane, whole)
    if model.inputs.kind == "samples":
        raise InputError("this network takes points with occupancies, which files of meshes and clouds do not contain")
    if up != "y" and model.inputs.kind == "images":
        raise InputError(f"up is {up!r}, but this network takes images, and no shapes that could lie")
    if (outliers == "remove" or remove_plane) and model.inputs.kind != "points":
        name = "outliers is 'remove'" if outliers == "remove" else "remove_plane is True"
        raise InputError(f"{name}, but this network takes {model.inputs.kind}, and no point clouds")
    return functools.partial(_inputs, model.frame, model.inputs, outliers, up, remove_plane, whole)


def _observations(
    frame: str,
    fitting: FitConfig,
    limit: int,
    outliers: str | None,
    up: str,
    remove_plane: bool,
    whole: bool,
    source: File,
) -> Prepared:
    """limit: number of points read at most, since a fit uses no more."""
    path, name = source
    one = scans.read(path, frame, limit=limit, outliers=outliers, up=up, remove_plane=remove_plane)
    arrays = {kind: [one.array(kind)] for kind in one.kind}
    (rows,) = observe(ObservedArrays.checked(**arrays), fitting, [_index(name)])
    return Prepared(name, one.similarity, rows, None if whole or one.points is None else (one.points, one.normals))


def _inputs(
    frame: str, form: Inputs, outliers: str | None, up: str, remove_plane: bool, whole: bool, source: File
) -> Prepared:
    path, name = source
    if form.kind == "images":
        return Prepared(name, Similarity(), scans.picture(path, form.size))
    if form.kind == "voxels":
        voxels, transform = scans.grid(path, form.size, up)
        return Prepared(name, transform, voxels)
    one = scans.read(path, frame, surface=True, outliers=outliers, up=up, remove_plane=remove_plane)
    return Prepared(name, one.similarity, one.array("points"), None if whole else (one.array("points"), None))


def size_class(model: Model) -> Callable[[Prepared], int]:
    """A function that gives inputs of similar size the same number, so that a batch needs little padding."""
    limit = rows_used(model) or 2**62

    def size_of(shape: Prepared) -> int:
        return min(limit, len(shape.data.points)).bit_length() if isinstance(shape.data, Observations) else 0

    return size_of


def rows_used(model: Model) -> int | None:
    """The number of a shape's observations that its fit uses at most, None for all."""
    fitting = model.fitting
    return {"gauss_newton": max(fitting.gauss_newton.points), "lbfgs": fitting.lbfgs.points}.get(fitting.solver)
