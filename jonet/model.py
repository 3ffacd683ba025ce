"""The trained model: a network with the codes of its training shapes, and the calls that use it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jonet.config
from jonet import arguments, model_folder
from jonet.checks import check_array, listed, whole
from jonet.codes import Codes
from jonet.data import sampling
from jonet.errors import InputError, shown
from jonet.geometry import outliers
from jonet.geometry.mesh import Mesh, Similarity, frame_of
from jonet.inference import encode as encoding
from jonet.inference.encode import Inputs
from jonet.inference.fitting import latents, observations, pose
from jonet.inference.fitting.prior import Prior
from jonet.inference.surfaces import extraction
from jonet.networks import deepsdf, occupancy
from jonet.networks import field as fields_
from jonet.networks.field import Field
from jonet.settings.fitting import FitConfig, PoseConfig
from jonet.settings.surfaces import Surfaces

NETWORKS = {  # kind of network: its config class and its module class
    "deepsdf": (deepsdf.Specs, deepsdf.DeepSDFDecoder),
    "occupancy": (occupancy.Specs, occupancy.OccupancyNetwork),
    "classifier": (occupancy.ClassifierSpecs, occupancy.Classifier),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network: its module and parameters, its normalized frame, its training codes and their prior.

    kind: the network's key in NETWORKS.  network: the module.  shared: parameters common to all shapes.  batch_stats:
    running statistics of batch norm.  frame: "sphere" or "cube", how meshes are normalized for it.  codes: of the
    training shapes, None if not stored.  prior: distribution that `sample` draws from and `fit` regularizes by, or
    None.  fitting, surfaces: default settings of `fit` and `extract`.  inputs: what the encoder takes; None if codes
    are fitted.  history: task, data and recipe that the model was trained with, as `python -m jonet info` prints.
    """

    kind: str
    network: Any
    shared: Any
    batch_stats: Any
    frame: str
    codes: Codes | None = None
    prior: Prior | None = None
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()
    inputs: Inputs | None = None
    history: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        shared, length = sum(map(np.size, jax.tree.leaves(self.shared))), self.network.specs.latent_size
        count = shared or length  # without shared parameters, a code is all parameters of a shape's network
        parts = [self.kind] if self.inputs is None else [self.kind, f"{self.inputs.kind} encoder"]
        if shared:
            parts.append(f"{length}-d codes")
        if "shapes" in self.history or self.codes is not None:
            shapes = self.history["shapes"] if "shapes" in self.history else len(self.codes)
            parts.append(f"{shapes} training shape{'s' * (shapes != 1)}")
        parts.append(f"{self.frame} frame")
        number = f"{count:,}" if count < 100_000 else f"{count / 1e6:.1f} M"
        parts.append(f"{number} parameters" + " per shape" * (not shared))
        return f"Model({', '.join(parts)})"

    @property
    def params(self) -> dict[str, Any]:
        """Parameters and running statistics as plain pytrees: {"shared", "batch_stats"}."""
        return {"shared": self.shared, "batch_stats": self.batch_stats}

    @functools.cached_property
    def digest(self) -> str:
        """Identifies this network, see `model_folder.network_digest`."""
        return model_folder.network_digest(self)

    @property
    def config(self):
        """The network's config, a `Specs` dataclass."""
        return self.network.specs

    def field(self, codes) -> Field:
        """Shapes as functions of space: Codes or an array [B, L] → a batch of B fields; one code [L] → one field.

        Fields are evaluated in the normalized frame, also for codes of shapes in input units.
        """
        values = self._values(codes)
        batch = fields_.fold(self.network, self.shared, self.batch_stats, np.atleast_2d(values))
        return batch[0] if values.ndim == 1 else batch

    def fit(
        self,
        samples=None,
        *,
        points=None,
        normals=None,
        free_space=None,
        frame: str | Sequence[Similarity] = "normalized",
        names: Sequence[str] | None = None,
        config: FitConfig | None = None,
    ) -> Codes:
        """Codes of unseen shapes, found by optimization with the network's parameters fixed (DeepSDF, section 4.2).

        samples: [B, N, 4] points with signed distances, or a list of [Nᵢ, 4].  Or points: [B, N, 3] or a list of
        [Nᵢ, 3] on surfaces, with outward normals of the same shapes (without normals the inside is only guessed), and
        free_space: lists of points known to be outside.  frame: "normalized" (the network's frame), a list of
        similarities from input units to it, or "input": each shape's bounding box is normalized, and the codes keep
        the similarity, so that `extract` returns meshes in input units.  names: of the shapes.  config: replaces the
        model's settings.  Raises InputError for arrays of a wrong shape, without rows or with NaN, and for a network
        whose codes come from an encoder or from training only.
        """
        self._check_fitted()
        given = arguments.observations(samples, points, normals, free_space)
        kind = "points" if samples is None else "samples"
        named = arguments.names(names, len(given[kind]))
        config = arguments.settings(config, FitConfig, self.fitting)
        frame, similarities = arguments.frame(frame, kind, given[kind]), None
        if frame != "normalized":
            given, similarities = self._framed(given, frame, distances=True)
        found = latents.fit(
            self.network,
            self.shared,
            self.batch_stats,
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
        free_space=None,
        names: Sequence[str] | None = None,
        config: PoseConfig | None = None,
    ) -> Codes:
        """Codes of scans in any units with unknown position, rotation and scale; the codes keep the similarities found.

        points, normals, free_space: as for `fit`, in input units.  names: of the shapes.  config: which rotations are
        tried.  Raises InputError as `fit` does.
        """
        self._check_fitted()
        given = arguments.observations(None, points, normals, free_space)
        named = arguments.names(names, len(given["points"]))
        arguments.check_sizes("points", given["points"])
        found = pose.fit_pose(
            self.network,
            self.shared,
            self.batch_stats,
            given["points"],
            normals=given["normals"],
            free_space=given["free_space"],
            config=arguments.settings(config, PoseConfig, PoseConfig()),
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
        frame: str | Sequence[Similarity] = "normalized",
        names: Sequence[str] | None = None,
    ) -> Codes:
        """Codes of unseen shapes, by one pass of the network's encoder (Occupancy Networks).

        Give the kind of input that the network was trained with.  points: [B, N, 3] on surfaces, or a list of [Nᵢ, 3],
        subsampled to the number used in training.  voxels: [B, R, R, R] of 0 and 1, axes x, y, z.  images:
        [B, H, W, 3] in [0, 1].  samples: [B, N, 4] points with occupancies 0 and 1 (for a latent encoder; the code is
        the posterior's mean).  frame: as for `fit`, of points and samples.  names: of the shapes.
        Raises InputError for another kind of input than the network takes, and for arrays as `fit` does.
        """
        given = {"samples": samples, "points": points, "voxels": voxels, "images": images}
        kinds = [name for name, arrays in given.items() if arrays is not None]
        if self.inputs is None or kinds != [self.inputs.kind]:
            raise InputError(f"{' and '.join(kinds) or 'nothing'} given to encode, but {self._takes()}")
        (kind,), similarities = kinds, None
        rows = kind in ("points", "samples")
        arrays = listed(given[kind], kind, (None, self.inputs.shape[-1]) if rows else self.inputs.shape)
        named = arguments.names(names, len(arrays))
        frame = arguments.frame(frame, kind, arrays)
        if frame != "normalized":
            if not rows:
                raise InputError(f"frame is {shown(frame)}, but {kind} are always in the normalized frame")
            none = dict.fromkeys(("samples", "points", "normals", "free_space"))
            framed, similarities = self._framed(none | {kind: arrays}, frame, distances=False)
            arrays = framed[kind]
        inputs = self.inputs.check(arrays)
        values = encoding.encode(self.network, self.shared, self.batch_stats, inputs, kind)
        return Codes(values, named, similarities, network=self.digest)

    def _check_fitted(self) -> None:
        """InputError if codes of this network are not fitted."""
        if self.kind != "deepsdf":
            raise InputError(f"codes of a network of kind {self.kind!r} are not fitted; {self._takes()}")

    def _codes(self, observed: dict[str, Any]) -> Codes:
        """Codes of observations, by `encode` if the network has an encoder, else by `fit`; observed: its arguments."""
        method = self.fit if self.inputs is None else self.encode
        known = inspect.signature(method).parameters
        for name in observed:
            if name not in known:
                raise InputError(f"{name} is given, but not used: {self._takes()}, which takes {', '.join(known)}")
        return method(**observed)

    def _takes(self) -> str:
        """How this network gets the code of a new shape, for error messages."""
        if self.inputs is not None:
            return (
                f"this network encodes {self.inputs.kind} {list(self.inputs.shape)}: model.encode({self.inputs.kind}=…)"
            )
        if self.kind == "deepsdf":
            return "codes of this network are fitted: model.fit(…)"
        return "this network only represents the shapes that it was trained on: model.codes"

    def _framed(self, given, frame, *, distances: bool):
        """Observations in input units, transformed to the normalized frame, and each shape's similarity to it.

        distances: whether the fourth column of samples is a distance, which scales with the shape, or an occupancy.
        """
        width, name = (3, "points") if given["samples"] is None else (4, "samples")
        clouds = [check_array(c, f"{name}[{i}]", (None, width), np.float64) for i, c in enumerate(given[name] or ())]
        if frame == "input" and name == "samples":
            raise InputError(
                "samples lie all around a shape, so its bounding box is unknown: give frame as a list of "
                "similarities (input units → normalized), one per shape"
            )
        transforms = tuple(frame_of(c, self.frame) for c in clouds) if frame == "input" else tuple(frame)
        if len(transforms) != len(clouds) or not all(isinstance(transform, Similarity) for transform in transforms):
            raise InputError(f"frame must be 'normalized', 'input' or {len(clouds)} similarities, but is {frame!r}")
        scales = [transform.scale if distances else 1.0 for transform in transforms]
        each = zip(transforms, clouds, scales, strict=True)
        moved = [np.column_stack([transform(c[:, :3]), c[:, 3:] * scale]) for transform, c, scale in each]
        normals, free_space = given["normals"], given["free_space"]
        for other, arrays in (("normals", normals), ("free_space", free_space)):
            if arrays is not None and len(arrays) != len(clouds):
                raise InputError(f"{other} are of {len(arrays)} shapes, but {name} of {len(clouds)}")
        if normals is not None:
            normals = observations.clouds(normals, "normals", 3, dtype=np.float64)
            normals = [n @ transform.rotation.T for transform, n in zip(transforms, normals, strict=True)]
        if free_space is not None:
            free_space = observations.clouds(free_space, "free_space", 3, empty=True, dtype=np.float64)
            free_space = [transform(f) for transform, f in zip(transforms, free_space, strict=True)]
        framed = {"samples": None, "points": None, "normals": normals, "free_space": free_space} | {name: moved}
        return framed, transforms

    def extract(self, codes, resolution: int | None = None, *, frame: str = "input", **settings) -> list[Mesh]:
        """The surfaces of codes (Codes or [B, L]) as closed meshes, all shapes in one batch, coarse to fine.

        resolution: grid cells per side of the box.  frame: "input" transforms each mesh back to input units if the
        codes have similarities, "normalized" leaves it in the network's frame.  settings: fields of
        `jonet.settings.surfaces.Surfaces` that replace the model's.  Raises InputError for codes of another network,
        ConfigError for impossible settings.
        """
        if not isinstance(frame, str) or frame not in ("normalized", "input"):
            raise InputError(f"frame is {shown(frame)}, but must be 'normalized' or 'input'")
        config = self._surfaces(resolution, settings)
        meshes = extraction.extract(self.field(np.atleast_2d(self._values(codes))), **dataclasses.asdict(config))
        names = codes.names if isinstance(codes, Codes) else tuple(mesh.name for mesh in meshes)
        meshes = [dataclasses.replace(mesh, name=name) for mesh, name in zip(meshes, names, strict=True)]
        if frame == "input" and isinstance(codes, Codes) and codes.similarities is not None:
            return [transform.inverse().apply(mesh) for transform, mesh in zip(codes.similarities, meshes, strict=True)]
        return meshes

    def _surfaces(self, resolution: int | None, settings: dict[str, Any] | None = None) -> Surfaces:
        """This model's settings of extraction with some of them replaced."""
        settings = {**(settings or {}), **({} if resolution is None else {"resolution": resolution})}
        return jonet.config.changed(self.surfaces, settings)

    def reconstruct(self, samples=None, *, resolution: int | None = None, **observed) -> list[Mesh]:
        """Meshes of unseen shapes: their codes are encoded or fitted, then their surfaces extracted.

        Arguments as for `encode` if the network has an encoder, else as for `fit`.
        """
        self._surfaces(resolution)  # a wrong resolution is refused before the work
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
        """Point clouds cleaned by rebuilding their shapes: points sampled uniformly on the reconstructed surface.

        points: [B, N, 3] or a list of [Nᵢ, 3] → list of [count, 3].  count: points per cleaned cloud (default: as many
        as in the input).  spread: outliers are removed first, see `geometry.outliers.inlier_mask`; inf keeps all.
        seed: of the sampling.  normals, observed: further arguments of `encode` or `fit`; with frame="input", input
        and output are in input units.  A cloud without a reconstructed surface gives [0, 3].  (Wu et al.: IF-Defense,
        2020.)
        """
        count = None if count is None else whole(count, "count", 1)
        seed = whole(seed, "seed", 0)
        if isinstance(spread, bool) or not isinstance(spread, numbers.Real) or not spread > 0:
            raise InputError(f"spread is {shown(spread)}, but must be a number above 0 (inf keeps all points)")
        self._surfaces(resolution)
        given = arguments.observations(None, points, normals, None)
        points = [cloud.astype(np.float64, copy=False) for cloud in given["points"]]
        keep = [outliers.inlier_mask(cloud, spread) for cloud in points]
        if normals is not None:
            observed["normals"] = [rows[mask] for rows, mask in zip(given["normals"], keep, strict=True)]
        codes = self._codes({**observed, "points": [cloud[mask] for cloud, mask in zip(points, keep, strict=True)]})
        transforms = codes.similarities or [Similarity()] * len(codes)
        cleaned = []
        for i, mesh in enumerate(self.extract(codes, resolution, frame="normalized")):
            rng, found = np.random.default_rng([seed, i]), np.zeros((0, 3))
            if len(mesh.faces):
                found = transforms[i].inverse()(sampling.surface(mesh, count or len(points[i]), rng)[0])
            cleaned.append(found)
        return cleaned

    def sample(self, count: int, seed: int = 0, resolution: int | None = None) -> list[Mesh]:
        """Meshes of `count` codes drawn from the prior.

        For DeepSDF the prior is fitted to the training codes (N(0, I) would give no plausible shapes); for a
        variational network it is N(0, I).  Raises InputError for a network without a prior.
        """
        count, seed = whole(count, "count", 1), whole(seed, "seed", 0)
        self._surfaces(resolution)
        if self.prior is None:
            raise InputError("this network has no prior to sample from: it only encodes observations")
        return self.extract(self.prior.sample(count, seed), resolution)

    def interpolate(self, a, b, count: int, resolution: int | None = None) -> list[Mesh]:
        """Meshes of `count` codes, 2 or more, linearly spaced from code a to code b, both included.

        a, b: [L], or Codes of one shape.
        """
        count = whole(count, "count", 2)
        self._surfaces(resolution)
        a, b = (np.atleast_2d(self._values(code, name)) for name, code in (("a", a), ("b", b)))
        for name, values in (("a", a), ("b", b)):
            if len(values) != 1:
                raise InputError(f"{name} contains {len(values)} codes, but must be one")
        a, b = a[0], b[0]
        return self.extract(np.linspace(a, b, count, dtype=np.float32), resolution)

    def _values(self, codes, name: str = "codes") -> np.ndarray:
        length = self.network.specs.latent_size
        if isinstance(codes, Codes) and codes.network is not None:
            codes.check_network(self.digest)
        values = codes.values if isinstance(codes, Codes) else codes
        try:
            axes = np.ndim(values)
        except (TypeError, ValueError, RuntimeError):  # rows of different lengths, or no array at all
            axes = 2
        values = check_array(values, name, (None, length) if axes != 1 else (length,))
        if axes != 1 and not len(values):
            raise InputError(f"{name} contains no code; give one or more")
        return values

    def save(self, folder: str | Path) -> None:
        """Writes a model folder that `load` reads: model.json, arrays.npz and codes.npz, with checksums.

        The folder must be new, empty, or a model folder.  An old model there stays readable until the new one is
        complete.  Raises CheckpointError for a folder that contains anything else.
        """
        codes = self.codes
        if codes is not None:
            codes = dataclasses.replace(codes, network=model_folder.network_digest(self))
        content = model_folder.Content(
            kind=self.kind,
            frame=self.frame,
            network=jonet.config.to_dict(self.network.specs),
            fitting=jonet.config.to_dict(self.fitting),
            surfaces=jonet.config.to_dict(self.surfaces),
            inputs=None if self.inputs is None else jonet.config.to_dict(self.inputs),
            history=self.history,
            shared=self.shared,
            batch_stats=self.batch_stats,
            prior=None if self.prior is None else self.prior._asdict(),
            codes=codes,
        )
        model_folder.write(folder, content)


def load(folder: str | Path) -> Model:
    """The model of a run folder or of a model folder.

    Raises InputError for an argument that is not a path, and CheckpointError that says what is missing or damaged.
    """
    content = model_folder.read(folder, NETWORKS)
    specs, network = NETWORKS[content.kind]
    return Model(
        kind=content.kind,
        network=network(jonet.config.from_dict(specs, content.network, "network.")),
        shared=content.shared,
        batch_stats=content.batch_stats,
        frame=content.frame,
        codes=content.codes,
        prior=content.prior and Prior(**content.prior),
        fitting=jonet.config.from_dict(FitConfig, content.fitting, "fitting."),
        surfaces=jonet.config.from_dict(Surfaces, content.surfaces, "surfaces."),
        inputs=content.inputs and jonet.config.from_dict(Inputs, content.inputs, "inputs."),
        history=content.history,
    )


def _model(model) -> Model:
    if not isinstance(model, Model):
        raise InputError(
            f"model is {shown(model)}, but must be a Model, which jonet.load(folder) reads; it comes first"
        )
    return model


def fit(model: Model, *arguments, **settings) -> Codes:
    """`model.fit` as a function; see `Model.fit`."""
    return _model(model).fit(*arguments, **settings)


def fit_pose(model: Model, *arguments, **settings) -> Codes:
    """`model.fit_pose` as a function; see `Model.fit_pose`."""
    return _model(model).fit_pose(*arguments, **settings)


def encode(model: Model, *arguments, **settings) -> Codes:
    """`model.encode` as a function; see `Model.encode`."""
    return _model(model).encode(*arguments, **settings)


def field(model: Model, codes) -> Field:
    """`model.field` as a function; see `Model.field`."""
    return _model(model).field(codes)


def extract(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.extract` as a function; see `Model.extract`."""
    return _model(model).extract(*arguments, **settings)


def reconstruct(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.reconstruct` as a function; see `Model.reconstruct`."""
    return _model(model).reconstruct(*arguments, **settings)


def purify(model: Model, points, count: int | None = None, **settings) -> list[np.ndarray]:
    """`model.purify` as a function; see `Model.purify`."""
    return _model(model).purify(points, count, **settings)


def sample(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.sample` as a function; see `Model.sample`."""
    return _model(model).sample(*arguments, **settings)


def interpolate(model: Model, *arguments, **settings) -> list[Mesh]:
    """`model.interpolate` as a function; see `Model.interpolate`."""
    return _model(model).interpolate(*arguments, **settings)
