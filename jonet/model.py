"""Trained networks with their codes: load, save, and the batched calls."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import numbers
import os
import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import jonet.config
from jonet import arguments
from jonet.codes import Codes, read_npz, write_npz
from jonet.data import sampling, strays
from jonet.data.meshes import Mesh, Similarity, frame_of
from jonet.errors import CheckpointError, ConfigError, InputError, listed, require, shown, whole
from jonet.inference import encode as encoding
from jonet.inference import latents, observations, pose, surface
from jonet.inference.encode import Inputs
from jonet.inference.mise import COARSE
from jonet.inference.prior import Prior
from jonet.networks import deepsdf, occupancy
from jonet.networks import field as fields_
from jonet.networks.field import Field
from jonet.storage import atomic, identity, locks

NETWORKS = {  # kind of network: its config and its module
    "deepsdf": (deepsdf.Specs, deepsdf.Decoder),
    "occupancy": (occupancy.Specs, occupancy.OccupancyNetwork),
    "classifier": (occupancy.ClassifierSpecs, occupancy.Classifier),
}
VERSION = 1  # of the model folder
LOCK = ".lock"
_OWN = re.compile(r"model\.json|\.lock|(arrays|codes)(-[0-9a-f]{8})?\.npz")  # files of a model folder


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """How meshes are pulled out of fields; see `inference.surface.extract`."""

    resolution: int = 128  # cells a side of the box
    method: Literal["sparse", "dense", "mise"] = "sparse"  # coarse to fine, the whole grid, or the published octree
    refine_steps: int = 12  # how often vertices are moved onto the level
    normals: bool = True  # vertex normals from the field's gradient
    largest: bool = False  # keep only the component that encloses most

    def __post_init__(self):
        if not 2 <= self.resolution <= 4096:
            raise ConfigError(f"resolution is {self.resolution}, but counts cells a side: 2 to 4096")
        if self.method == "mise" and (self.resolution % COARSE or self.resolution & (self.resolution - 1)):
            raise ConfigError(
                f"resolution is {self.resolution}, but method mise doubles {COARSE} cells a side: choose {COARSE}, "
                f"{2 * COARSE}, {4 * COARSE}, …"
            )
        if self.refine_steps < 0:
            raise ConfigError(f"refine_steps is {self.refine_steps}, but must be 0 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network: its module and parameters, the frame it lives in, its training codes and their prior.

    kind: the network's name in NETWORKS.  frame: "sphere" or "cube", how meshes are normalised for it.
    fitting, surfaces: the settings of `fit` and `extract`.  inputs: what its encoder sees, None where it has none and
    codes are fitted.  history: where it came from, for `info`.
    """

    kind: str
    network: Any
    shared: Any
    statistics: Any
    frame: str
    codes: Codes | None = None
    prior: Prior | None = None
    fitting: latents.FitConfig = latents.FitConfig()
    surfaces: Surfaces = Surfaces()
    inputs: Inputs | None = None
    history: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters and statistics as plain pytrees."""
        return {"shared": self.shared, "statistics": self.statistics}

    @functools.cached_property
    def digest(self) -> str:
        """What tells this network from every other, see `network_digest`."""
        return network_digest(self)

    @property
    def config(self):
        """The network's config, a dataclass."""
        return self.network.specs

    def field(self, codes) -> Field:
        """The fields of codes (Codes or an array [B, L]), a batch of B; of one code [L], a single field."""
        values = self._values(codes)
        batch = fields_.fold(self.network, self.shared, self.statistics, np.atleast_2d(values))
        return batch[0] if values.ndim == 1 else batch

    def fit(
        self,
        samples=None,
        *,
        points=None,
        normals=None,
        free=None,
        frame: str | Sequence[Similarity] = "normalised",
        names: Sequence[str] | None = None,
        config: latents.FitConfig | None = None,
    ) -> Codes:
        """Codes of shapes that the network never saw, found by optimisation while the network stands still.

        samples: [B, N, 4] points with signed distances, or a list of [Nᵢ, 4].  Or points: [B, N, 3] or a list of
        [Nᵢ, 3] on surfaces, with outward normals alike (without them, what lies inside is only guessed) and free,
        places known to be outside.  frame: "normalised" (as the network sees space), a list of similarities from own
        units to it, or "own": the box around each shape's points is normalised; then the codes carry the way back.
        names: of the shapes.  config: settings other than the model's own.  Raises InputError for arrays of wrong
        shape, of no rows or with NaN, and for a network whose codes come from an encoder or from training.
        """
        self._check_fitted()
        given = arguments.observations(samples, points, normals, free)
        kind = "points" if samples is None else "samples"
        named = arguments.names(names, len(given[kind]))
        config = arguments.settings(config, latents.FitConfig, self.fitting)
        frame, similarities = arguments.frame(frame, kind, given[kind]), None
        if frame != "normalised":
            given, similarities = self._framed(given, frame, distances=True)
        found = latents.fit(
            self.network,
            self.shared,
            self.statistics,
            **given,
            config=config,
            prior=self.prior,
            starts=None if self.codes is None else self.codes.values,
        )
        return Codes(names=named, similarities=similarities, network=self.digest, **found._asdict())

    def fit_pose(
        self,
        points,
        *,
        normals=None,
        free=None,
        names: Sequence[str] | None = None,
        config: pose.PoseConfig | None = None,
    ) -> Codes:
        """Codes of scans in any units whose position, turn and size are unknown; they carry the ways that were found.

        points, normals, free: as of `fit`, in the scans' own units.  config: which turns are tried.
        """
        self._check_fitted()
        given = arguments.observations(None, points, normals, free)
        named = arguments.names(names, len(given["points"]))
        arguments.check_sizes("points", given["points"])
        found = pose.fit_pose(
            self.network,
            self.shared,
            self.statistics,
            given["points"],
            normals=given["normals"],
            free=given["free"],
            config=arguments.settings(config, pose.PoseConfig, pose.PoseConfig()),
            prior=self.prior,
            starts=None if self.codes is None else self.codes.values,
        )
        return Codes(names=named, similarities=found.similarities, network=self.digest, **found.codes._asdict())

    def encode(
        self,
        samples=None,
        *,
        points=None,
        voxels=None,
        images=None,
        frame: str | Sequence[Similarity] = "normalised",
        names: Sequence[str] | None = None,
    ) -> Codes:
        """Codes of shapes that the network never saw, in one pass of its encoder over what it was trained on.

        points: [B, N, 3] on surfaces, or a list of [Nᵢ, 3], thinned to the trained number.  Or voxels: [B, R, R, R] of
        0 and 1, axes x, y, z.  Or images: [B, H, W, 3] in [0, 1].  Or samples: [B, N, 4] points with occupancies 0 and
        1 (a network with a latent encoder: the posterior's mean).  frame: as of `fit`, of points and samples.
        Raises InputError for another kind of input than the network takes, and for arrays as `fit` does.
        """
        given = {"samples": samples, "points": points, "voxels": voxels, "images": images}
        kinds = [name for name, arrays in given.items() if arrays is not None]
        if self.inputs is None or kinds != [self.inputs.kind]:
            raise InputError(f"{' and '.join(kinds) or 'nothing'} given to encode, but {self._way_in()}")
        (kind,), similarities = kinds, None
        rows = kind in ("points", "samples")
        arrays = listed(given[kind], kind, (None, self.inputs.shape[-1]) if rows else self.inputs.shape)
        named = arguments.names(names, len(arrays))
        frame = arguments.frame(frame, kind, arrays)
        if frame != "normalised":
            if not rows:
                raise InputError(f"frame is {shown(frame)}, but {kind} are always in the normalised frame")
            none = dict.fromkeys(("samples", "points", "normals", "free"))
            framed, similarities = self._framed(none | {kind: arrays}, frame, distances=False)
            arrays = framed[kind]
        inputs = self.inputs.check(arrays)
        values = encoding.encode(self.network, self.shared, self.statistics, inputs, kind)
        return Codes(values, named, similarities, network=self.digest)

    def _check_fitted(self) -> None:
        """InputError where codes of this network are not fitted."""
        if self.kind != "deepsdf":
            raise InputError(f"codes of a network of kind {self.kind!r} are not fitted; {self._way_in()}")

    def _codes(self, observed: dict[str, Any]) -> Codes:
        """Codes of observations, encoded or fitted; observed: arguments of the one that this network takes."""
        find = self.fit if self.inputs is None else self.encode
        known = inspect.signature(find).parameters
        for name in observed:
            if name not in known:
                raise InputError(f"{name} is given, but not read: {self._way_in()}, which takes {', '.join(known)}")
        return find(**observed)

    def _way_in(self) -> str:
        """How this network comes to the code of a new shape, for errors."""
        if self.inputs is not None:
            return (
                f"this network encodes {self.inputs.kind} {list(self.inputs.shape)}: model.encode({self.inputs.kind}=…)"
            )
        if self.kind == "deepsdf":
            return "codes of this network are fitted: model.fit(…)"
        return "this network only knows the shapes that it was trained on: model.codes"

    def _framed(self, given, frame, *, distances: bool):
        """Observations in own units, taken to the normalised frame, and each shape's way there.

        distances: whether a sample's fourth number is a distance, which grows with the scale, or an occupancy.
        """
        width, name = (3, "points") if given["samples"] is None else (4, "samples")
        clouds = [require(c, f"{name}[{i}]", (None, width), np.float64) for i, c in enumerate(given[name] or ())]
        if frame == "own" and name == "samples":
            raise InputError(
                "samples lie all around a shape and do not tell its frame: give frame as a list of "
                "similarities (own units → normalised), one a shape"
            )
        ways = tuple(frame_of(c, self.frame) for c in clouds) if frame == "own" else tuple(frame)
        if len(ways) != len(clouds) or not all(isinstance(way, Similarity) for way in ways):
            raise InputError(f"frame must be 'normalised', 'own' or {len(clouds)} similarities, but is {frame!r}")
        scales = [way.scale if distances else 1.0 for way in ways]
        each = zip(ways, clouds, scales, strict=True)
        moved = [np.column_stack([way(c[:, :3]), c[:, 3:] * scale]) for way, c, scale in each]
        turned, free = given["normals"], given["free"]
        for other, arrays in (("normals", turned), ("free", free)):
            if arrays is not None and len(arrays) != len(clouds):
                raise InputError(f"{other} are of {len(arrays)} shapes, but {name} of {len(clouds)}")
        if turned is not None:
            turned = observations.clouds(turned, "normals", 3, dtype=np.float64)
            turned = [n @ way.rotation.T for way, n in zip(ways, turned, strict=True)]
        if free is not None:
            free = observations.clouds(free, "free", 3, empty=True, dtype=np.float64)
            free = [way(f) for way, f in zip(ways, free, strict=True)]
        return {"normals": turned, "free": free, "samples": None, "points": None} | {name: moved}, ways

    def extract(self, codes, resolution: int | None = None, *, frame: str = "own", **settings) -> list[Mesh]:
        """The surfaces of codes (Codes or [B, L]) as closed meshes, all shapes in one flow, coarse to fine.

        resolution: cells a side of the box.  frame: "own" takes each mesh back to its own units where the codes carry
        the way, "normalised" leaves it as the network sees it.  settings: of `Surfaces`, in place of the model's.
        """
        if not isinstance(frame, str) or frame not in ("normalised", "own"):
            raise InputError(f"frame is {shown(frame)}, but must be 'normalised' or 'own'")
        config = self._surfaces(resolution, settings)
        meshes = surface.extract(self.field(np.atleast_2d(self._values(codes))), **dataclasses.asdict(config))
        names = codes.names if isinstance(codes, Codes) else tuple(mesh.name for mesh in meshes)
        meshes = [dataclasses.replace(mesh, name=name) for mesh, name in zip(meshes, names, strict=True)]
        if frame == "own" and isinstance(codes, Codes) and codes.similarities is not None:
            return [way.inverse().apply(mesh) for way, mesh in zip(codes.similarities, meshes, strict=True)]
        return meshes

    def _surfaces(self, resolution: int | None, settings: dict[str, Any] | None = None) -> Surfaces:
        """This model's settings of extraction with others in their place."""
        settings = {**(settings or {}), **({} if resolution is None else {"resolution": resolution})}
        return jonet.config.changed(self.surfaces, settings)

    def reconstruct(self, samples=None, *, resolution: int | None = None, **observed) -> list[Mesh]:
        """Meshes of shapes that the network never saw: their codes encoded or fitted, then extracted.

        Arguments as of `encode` where the network has an encoder, else as of `fit`.
        """
        self._surfaces(resolution)  # before the work
        return self.extract(self._codes({"samples": samples, **observed}), resolution)

    def purify(
        self,
        points,
        count: int | None = None,
        *,
        spread: float = 1.1,
        resolution: int | None = None,
        seed: int = 0,
        normals=None,
        **observed,
    ) -> list[np.ndarray]:
        """Clouds cleaned by rebuilding their shapes: points spread evenly over the surface that the network makes.

        points: [B, N, 3] or a list of [Nᵢ, 3].  count: of points that each cloud gets (default: as many as came).
        spread: points that stand alone are left out first, see `strays.kept`; inf keeps all.  normals, observed:
        further arguments of `encode` or `fit`; with frame="own" clouds come and go in their own units.  A cloud of
        which no surface was made comes back without points, [0, 3].  (Wu et al.: IF-Defense, 2020.)
        """
        count = None if count is None else whole(count, "count", 1)
        seed = whole(seed, "seed", 0)
        if isinstance(spread, bool) or not isinstance(spread, numbers.Real) or not spread > 0:
            raise InputError(f"spread is {shown(spread)}, but must be a number above 0 (inf keeps all points)")
        self._surfaces(resolution)
        given = arguments.observations(None, points, normals, None)
        points = [cloud.astype(np.float64, copy=False) for cloud in given["points"]]
        keep = [strays.kept(cloud, spread) for cloud in points]
        if normals is not None:
            observed["normals"] = [rows[mask] for rows, mask in zip(given["normals"], keep, strict=True)]
        codes = self._codes({**observed, "points": [cloud[mask] for cloud, mask in zip(points, keep, strict=True)]})
        ways = codes.similarities or [Similarity()] * len(codes)
        cleaned = []
        for i, mesh in enumerate(self.extract(codes, resolution, frame="normalised")):
            rng, found = np.random.default_rng([seed, i]), np.zeros((0, 3))
            if len(mesh.faces):
                found = ways[i].inverse()(sampling.surface(mesh, count or len(points[i]), rng)[0])
            cleaned.append(found)
        return cleaned

    def sample(self, count: int, seed: int = 0, resolution: int | None = None) -> list[Mesh]:
        """Meshes of `count` codes drawn from the prior: of DeepSDF the one fitted to the training codes (N(0, I) would
        give junk), of a variational network N(0, I)."""
        count, seed = whole(count, "count", 1), whole(seed, "seed", 0)
        self._surfaces(resolution)
        if self.prior is None:
            raise InputError("this network has no prior to sample from: its codes come from observations alone")
        return self.extract(self.prior.sample(count, seed), resolution)

    def interpolate(self, a, b, count: int, resolution: int | None = None) -> list[Mesh]:
        """Meshes of `count` codes, 2 or more, evenly between two codes ([L], or Codes of one), both ends included."""
        count = whole(count, "count", 2)
        self._surfaces(resolution)
        a, b = (np.atleast_2d(self._values(code, name)) for name, code in (("a", a), ("b", b)))
        for name, values in (("a", a), ("b", b)):
            if len(values) != 1:
                raise InputError(f"{name} holds {len(values)} codes, but must be one")
        a, b = a[0], b[0]
        return self.extract(np.linspace(a, b, count, dtype=np.float32), resolution)

    def _values(self, codes, name: str = "codes") -> np.ndarray:
        length = self.network.specs.latent_size
        if isinstance(codes, Codes) and codes.network is not None:
            codes.check_network(self.digest)
        values = codes.values if isinstance(codes, Codes) else codes
        try:
            axes = np.ndim(values)
        except (TypeError, ValueError, RuntimeError):  # rows of several lengths, or what is no array at all
            axes = 2
        values = require(values, name, (None, length) if axes != 1 else (length,))
        if axes != 1 and not len(values):
            raise InputError(f"{name} holds no code; give one or more")
        return values

    def save(self, folder: str | Path) -> None:
        """A folder that `load` reads: model.json, and the arrays that it names, with their digests.

        The folder must be new, empty, or a model's: then the new arrays are written beside the old ones, and the old
        model is there until model.json is replaced.  Raises CheckpointError for a folder that holds anything else.
        """
        folder = Path(folder)
        if atomic.is_free(folder):
            with atomic.new_folder(folder) as beside:
                self._write(beside)
            return
        check_replaceable(folder)
        with locks.locked(folder / LOCK, wait=True):
            named = self._write(folder)
            for path in folder.glob("*.npz"):
                if path.name not in named:
                    atomic.remove_file(path)
            atomic.sweep(folder)

    def _write(self, folder: Path) -> Collection[str]:
        """Arrays under names that nothing in the folder has, which are returned, then model.json, which names them."""
        arrays = {**_flat("shared", self.shared), **_flat("statistics", self.statistics)}
        if self.prior is not None:
            arrays |= {f"prior/{name}": np.asarray(value) for name, value in self.prior._asdict().items()}
        files = {"arrays": _free_name(folder, "arrays")}
        write_npz(folder / files["arrays"], arrays)
        if self.codes is not None:
            files["codes"] = _free_name(folder, "codes")
            dataclasses.replace(self.codes, network=network_digest(self)).save(folder / files["codes"])
        about = {
            "version": VERSION,
            "kind": self.kind,
            "network": jonet.config.to_dict(self.network.specs),
            "frame": self.frame,
            "fitting": jonet.config.to_dict(self.fitting),
            "surfaces": jonet.config.to_dict(self.surfaces),
            "inputs": None if self.inputs is None else jonet.config.to_dict(self.inputs),
            "history": self.history,
            "files": files,
            "checksums": {name: identity.digest(folder / name) for name in files.values()},
        }
        atomic.write_json(folder / "model.json", about | {"checksum": jonet.config.digest(about)})
        return files.values()


def network_digest(model: Model) -> str:
    """What tells a network from every other, as 16 hex digits: its kind, settings and numbers, not its codes."""
    found = hashlib.sha256(f"{model.kind} {model.frame}".encode())
    if (network := getattr(model, "network", None)) is not None:
        specs = jonet.config.to_dict(network.specs)
        specs = jonet.config.to_dict(jonet.config.from_dict(type(network.specs), specs))  # 1 where 1.0 is meant
        found.update(json.dumps(specs, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.shared, model.statistics)):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def check_replaceable(folder: str | Path) -> None:
    """CheckpointError where a folder is neither new nor empty, and no model's, or holds more than a model does."""
    folder = Path(folder)
    if atomic.is_free(folder):
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, and no model is put in its place; name a new folder")
    others = [path.name for path in folder.iterdir() if not (_OWN.fullmatch(path.name) or atomic.is_temporary(path))]
    if others or not (folder / "model.json").is_file():
        what = f"holds {min(others)!r}, which is no part of a model" if others else "holds no model"
        raise CheckpointError(f"{folder}: {what}, so it is not replaced; name a new folder for the model")


def _free_name(folder: Path, stem: str) -> str:
    name = f"{stem}.npz"
    return name if not (folder / name).exists() else f"{stem}-{secrets.token_hex(4)}.npz"


def load(folder: str | Path) -> Model:
    """The model of a run folder or of a model folder; CheckpointError says what is missing or damaged."""
    folder = _model_path(folder)
    if (folder / "model" / "model.json").exists():
        folder = folder / "model"
    about = _read_about(folder)
    files = about["files"]
    for name in files.values():
        if not _OWN.fullmatch(name) or not _intact(folder / name, about["checksums"].get(name)):
            raise CheckpointError(f"{folder / name} is missing or damaged: its checksum is not the recorded one")
    specs, network = NETWORKS[about["kind"]]
    arrays = read_npz(folder / files["arrays"])
    prior = {name.removeprefix("prior/"): value for name, value in arrays.items() if name.startswith("prior/")}
    return Model(
        kind=about["kind"],
        network=network(jonet.config.from_dict(specs, about["network"], "network.")),
        shared=_nested("shared", arrays),
        statistics=_nested("statistics", arrays),
        frame=about["frame"],
        codes=Codes.load(folder / files["codes"]) if "codes" in files else None,
        prior=Prior(**prior) if prior else None,
        fitting=jonet.config.from_dict(latents.FitConfig, about["fitting"], "fitting."),
        surfaces=jonet.config.from_dict(Surfaces, about["surfaces"], "surfaces."),
        inputs=about.get("inputs") and jonet.config.from_dict(Inputs, about["inputs"], "inputs."),
        history=about["history"],
    )


def _read_about(folder: Path) -> dict[str, Any]:
    """What model.json says; CheckpointError where it is missing, damaged, or none that `save` writes."""
    path = folder / "model.json"
    try:
        about = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no trained model (no model.json in it or in model/)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("version") != VERSION or about.get("kind") not in list(NETWORKS):
        said = [about.get(name) for name in ("version", "kind")] if isinstance(about, dict) else [None, None]
        raise CheckpointError(
            f"{folder} holds version {said[0]} of kind {said[1]!r}, "
            f"but this jonet reads version {VERSION} of {', '.join(NETWORKS)}"
        )
    if "checksum" in about and about.pop("checksum") != jonet.config.digest(about):  # version 0.1.0 had none
        raise CheckpointError(f"{path} is damaged: its checksum is not the recorded one")
    groups = ("network", "fitting", "surfaces", "history", "checksums")
    wrong = [name for name in groups if not isinstance(about.get(name), dict)]
    if not wrong and "files" not in about:  # as version 0.1.0 wrote it
        about["files"] = {name.removesuffix(".npz"): name for name in about["checksums"]}
    files = about.get("files")
    if (
        not isinstance(files, dict)
        or "arrays" not in files
        or not all(isinstance(name, str) for name in files.values())
    ):
        wrong.append("files")
    if about.get("frame") not in list(sampling.FRAMES):
        wrong.append("frame")
    if wrong:
        raise CheckpointError(f"{path} is damaged: no model that jonet wrote has such {wrong[0]}")
    return about


def _model_path(folder) -> Path:
    """The path that `load` is given; InputError where it can be none, CheckpointError where a file lies there."""
    if not isinstance(folder, str | os.PathLike) or not str(folder) or "\0" in str(folder):
        raise InputError(f"folder is {shown(folder)}, but must be the path of a run folder or model folder")
    if Path(folder).is_file():
        raise CheckpointError(f"{folder} is a file, but a model is a folder (of a run or a model); it comes first")
    return Path(folder)


def _model(model) -> Model:
    if not isinstance(model, Model):
        raise InputError(f"model is {shown(model)}, but must be a Model: jonet.load(folder) reads one; it comes first")
    return model


def fit(model: Model, *arguments, **settings) -> Codes:
    """`model.fit` as a function."""
    return _model(model).fit(*arguments, **settings)


def fit_pose(model: Model, *arguments, **settings) -> Codes:
    """`model.fit_pose` as a function."""
    return _model(model).fit_pose(*arguments, **settings)


def encode(model: Model, *arguments, **settings) -> Codes:
    """`model.encode` as a function."""
    return _model(model).encode(*arguments, **settings)


def field(model: Model, codes) -> Field:
    """`model.field` as a function."""
    return _model(model).field(codes)


def extract(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.extract` as a function."""
    return _model(model).extract(*arguments, **settings)


def reconstruct(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.reconstruct` as a function."""
    return _model(model).reconstruct(*arguments, **settings)


def purify(model: Model, points, count: int | None = None, **settings) -> list[np.ndarray]:
    """`model.purify` as a function."""
    return _model(model).purify(points, count, **settings)


def sample(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.sample` as a function."""
    return _model(model).sample(*arguments, **settings)


def interpolate(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.interpolate` as a function."""
    return _model(model).interpolate(*arguments, **settings)


def _flat(root: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join([root, *(entry.key for entry in path)]): np.asarray(leaf) for path, leaf in leaves}


def _nested(root: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        first, *path, last = name.split("/")
        if first == root:
            inner = tree
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
    return tree


def _intact(path: Path, checksum: str | None) -> bool:
    """Whether a file has the SHA-256 that was recorded (32 digits of it, or all 64 as version 0.1.0 wrote)."""
    if not path.is_file() or checksum is None:
        return False
    if len(checksum) == 64:
        return hashlib.sha256(path.read_bytes()).hexdigest() == checksum
    return identity.digest(path) == checksum
