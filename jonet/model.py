"""The trained model: a network with the codes of its training shapes, and the calls that use it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args, overload

import numpy as np

import jonet.config
from jonet import arguments, model_folder
from jonet.checks import check_array, listed, whole
from jonet.chips import Precision
from jonet.codes import Codes
from jonet.data import scans
from jonet.errors import CheckpointError, InputError, shown
from jonet.geometry import axes
from jonet.geometry.mesh import Mesh, Similarity, as_meshes
from jonet.inference import encode as encoding
from jonet.inference import purification
from jonet.inference.encode import Inputs
from jonet.inference.fitting import completion, encoded, latents, parts, pose
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.inference.fitting.prior import Prior
from jonet.inference.surfaces import extraction
from jonet.networks import deepsdf, encoded_deepsdf, occupancy, spline
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import Field
from jonet.networks.input_field import InputField
from jonet.settings.fitting import FitConfig, PoseConfig
from jonet.settings.surfaces import Surfaces
from jonet.wording import counted

NETWORKS = {  # kind of network: its config class and its module class
    "deepsdf": (deepsdf.Specs, deepsdf.DeepSDFDecoder),
    "encoded_deepsdf": (encoded_deepsdf.Specs, encoded_deepsdf.EncodedDeepSDF),
    "occupancy": (occupancy.Specs, occupancy.OccupancyNetwork),
    "spline": (spline.SplineSpecs, spline.SplineNetwork),
    "classifier": (occupancy.ClassifierSpecs, occupancy.Classifier),
}
FITTED = ("samples", "points", "normals", "free_space", "meshes")  # arguments of `Model.fit` that are observations
DISTANCES = ("deepsdf", "encoded_deepsdf")  # kinds of networks whose codes are fitted to distances
ENCODED = ("samples", "points", "voxels", "images", "meshes")  # the same of `Model.encode`


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network: its module and parameters, its normalized frame, its training codes and their prior.

    kind: the network's key in NETWORKS.  network: the module with its parameters.  frame: "sphere" or "cube", how
    meshes are normalized for it.  codes: of the training shapes, None if not stored.  prior: distribution that `sample`
    draws from and `fit` regularizes by, or None.  fitting, surfaces: default settings of `fit` and `extract`.
    inputs: what the encoder takes; None without one.  history: task, data, recipe and options of the
    training, as `jonet info` prints.
    """

    kind: str
    network: BoundNetwork
    frame: str
    codes: Codes | None = None
    prior: Prior | None = None
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()
    inputs: Inputs | None = None
    history: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        shared, length = self.network.num_parameters, self.network.latent_size
        count = shared or length  # without shared parameters, a code is all parameters of a shape's network
        parts = [self.kind] if self.inputs is None else [self.kind, f"{self.inputs.kind} encoder"]
        if shared:
            parts.append(f"{length}-d codes")
        shapes = self.history.get("shapes", None if self.codes is None else len(self.codes))
        if shapes is not None:
            parts.append(counted(shapes, "training shape"))
        parts.append(f"{self.frame} frame")
        number = f"{count:,}" if count < 100_000 else f"{count / 1e6:.1f} M"
        parts.append(f"{number} parameters" + " per shape" * (not shared))
        return f"Model({', '.join(parts)})"

    @property
    def precision(self) -> Precision:
        """The precision of matrix products in evaluation, extraction, encoding and fits."""
        return self.network.precision

    def with_precision(self, precision: Precision | None) -> Model:
        """This model with another precision of matrix products; None keeps its own.

        "highest": full float32.  "high", the default: three products of bfloat16.  "default": one product of the
        platform's fastest kind, which shows in vertices and codes.  On a CPU all are full float32.  All calls that
        compute take it as an argument, too.  Raises InputError for another one.
        """
        if precision is None or precision == self.precision:
            return self
        arguments.choice(precision, "precision", get_args(Precision))
        return dataclasses.replace(self, network=dataclasses.replace(self.network, precision=precision))

    @property
    def params(self) -> dict[str, Any]:
        """Parameters and running statistics as plain pytrees: {"shared", "batch_stats"}."""
        return {"shared": self.network.shared, "batch_stats": self.network.batch_stats}

    @property
    def is_fitted(self) -> bool:
        """Whether codes of new shapes are fitted: from those of the encoder if the network has one, too."""
        return self.kind in DISTANCES

    @functools.cached_property
    def digest(self) -> str:
        """Identifies this network, see `model_folder.network_digest`."""
        return model_folder.network_digest(self.kind, self.frame, self.network)

    @property
    def config(self) -> Any:
        """The network's config, a `Specs` dataclass."""
        return self.network.specs

    @overload
    def field(
        self,
        codes: Codes | np.ndarray,
        *,
        frame: Literal["normalized"] = "normalized",
        precision: Precision | None = None,
    ) -> Field: ...
    @overload
    def field(
        self, codes: Codes | np.ndarray, *, frame: str, precision: Precision | None = None
    ) -> Field | InputField: ...
    def field(
        self, codes: Codes | np.ndarray, *, frame: str = "normalized", precision: Precision | None = None
    ) -> Field | InputField:
        """Shapes as functions of space: Codes or an array [B, L] → a batch of B fields; one code [L] → one field.

        frame: "normalized" gives a `Field` of points in the normalized frame, also for codes of shapes in input units;
        "input" an `InputField` of points and distances in input units, for Codes that have similarities.
        precision: of matrix products, here and where the field is evaluated; the model's if None (`with_precision`).
        Raises InputError for codes of another network or length.
        """
        arguments.choice(frame, "frame", ("normalized", "input"))
        values = self._values(codes)
        batch = self.with_precision(precision).network.fields(np.atleast_2d(values))
        if frame == "input":
            if not isinstance(codes, Codes) or codes.similarities is None:
                raise InputError("frame is 'input', but these codes have no similarities to input units")
            clamp = self.history.get("clamp", self.fitting.clamp) if self.kind in (*DISTANCES, "spline") else None
            return InputField(batch, codes.similarities, clamp)
        return batch[0] if values.ndim == 1 else batch

    def fit(
        self,
        samples: Sequence[Any] | np.ndarray | None = None,
        *,
        points: Sequence[Any] | np.ndarray | None = None,
        normals: Sequence[Any] | np.ndarray | None = None,
        free_space: Sequence[Any] | np.ndarray | None = None,
        meshes: Sequence[Any] | None = None,
        frame: str | Sequence[Similarity] = "normalized",
        outliers: str | None = None,
        whole: bool = False,
        names: Sequence[str] | None = None,
        config: FitConfig | None = None,
        precision: Precision | None = None,
    ) -> Codes:
        """Codes of unseen shapes, found by optimization with the network's parameters fixed (DeepSDF, section 4.2).

        A network with an encoder in front (`deepsdf_points`) starts from its code of each shape (Gauss-Newton also from
        the best training codes), and no code is worse than that; where free_space tells that points are not of the
        whole surface, it starts from training codes, as others do.
        Give one of: samples: [B, N, 4] points with signed distances, or a list of [Nᵢ, 4].  points: [B, N, 3] or a list
        of [Nᵢ, 3] on surfaces, with outward normals of the same shapes (without normals the inside is only guessed),
        and free_space: lists of points known to be outside.  meshes: a list of meshes (of jonet, trimesh, or any with
        `vertices` and `faces`), from which signed distances are sampled.
        frame: "normalized" (the network's frame), a list of similarities from input units to it, or "input": each
        shape's bounding box is normalized, and the codes keep the similarity, so that `extract` returns meshes in input
        units; meshes are always normalized so.  A cloud that turns out to be a part of a shape is searched as by
        `complete`, with a warning; `unseen` of the codes says how much of the surface was not seen.  whole: none is
        looked at so, since the clouds cover their whole surfaces.
        outliers: what is done about points that stand alone, if they are many or enlarge a cloud's bounding box
        (`geometry.outliers.outlier_mask`): with frame="input" they are left out with a warning (None); "warn", "remove"
        or "keep".
        names: of the shapes.  config, precision: replace the model's settings.
        Raises InputError for arrays of a wrong shape, without rows or with NaN, and for a network whose codes come from
        an encoder or from training only; MeshError for a mesh without an inside.
        """
        self._check_fitted()
        config, network = arguments.settings(config, FitConfig, self.fitting), self.with_precision(precision).network
        if meshes is not None:
            arguments.alone("meshes", samples=samples, points=points, normals=normals, free_space=free_space)
            sampled, names = self._sampled(meshes, frame, names)
            given = ObservedArrays(samples=[one.array("samples") for one in sampled])
            similarities = tuple(one.similarity for one in sampled)
        else:
            given = ObservedArrays.checked(samples, points, normals, free_space)
            names = arguments.names(names, len(given.rows))
            given = arguments.without_outliers(given, outliers, frame, names)
            given, similarities = self._normalized(given, frame)
        shapes, guesses, unseen = observe(given, config), None, None
        if self.inputs is not None and given.free_space is None:
            guesses = encoded.guesses(network, self.inputs, shapes)
        found = latents.fit(network, shapes, config=config, guesses=guesses, **self._known())
        if arguments.boxed(frame) and not whole and given.points is not None and given.free_space is None:
            clouds = list(zip(given.points, given.normals or [None] * len(names), strict=True))
            fit = parts.placed(network, clouds, found, **self._known())
            parts.warn(fit, names)
            found, unseen = fit.fit, fit.unseen
            similarities = tuple(a @ b for a, b in zip(fit.similarities, similarities or (), strict=True))
        return Codes(names=names, similarities=similarities, unseen=unseen, network=self.digest, **found._asdict())

    def fit_pose(
        self,
        points: Sequence[Any] | np.ndarray,
        *,
        normals: Sequence[Any] | np.ndarray | None = None,
        free_space: Sequence[Any] | np.ndarray | None = None,
        names: Sequence[str] | None = None,
        config: PoseConfig | None = None,
        precision: Precision | None = None,
    ) -> Codes:
        """Codes of scans in any units with unknown position, rotation and scale; the codes keep the similarities found.

        points: [B, N, 3] or a list of [Nᵢ, 3], in input units.  normals, free_space: in the same form, as for `fit`.
        names: of the shapes.  config: which rotations are tried.  precision: as for `fit`.  Raises InputError as `fit`
        does.
        """
        self._check_fitted()
        config, network = arguments.settings(config, PoseConfig, PoseConfig()), self.with_precision(precision).network
        given = ObservedArrays.checked(points=points, normals=normals, free_space=free_space)
        names = arguments.names(names, len(given.rows))
        arguments.check_sizes("points", given.rows)
        found = pose.fit_pose(network, given, config=config, **self._known())
        return Codes(names=names, similarities=found.similarities, network=self.digest, **found.codes._asdict())

    def complete(
        self,
        points: Sequence[Any] | np.ndarray,
        *,
        normals: Sequence[Any] | np.ndarray | None = None,
        free_space: Sequence[Any] | np.ndarray | None = None,
        eye: Sequence[float] | np.ndarray | None = None,
        whole: bool = False,
        up: str = "y",
        similarities: Sequence[Similarity] | None = None,
        outliers: str = "warn",
        names: Sequence[str] | None = None,
        config: PoseConfig | FitConfig | None = None,
        precision: Precision | None = None,
    ) -> Codes:
        """Codes of partial scans, which `extract` turns into whole shapes in the pose and units of the scans.

        (DeepSDF, section 6.3.)  points: a list of [Nᵢ, 3] on the seen parts of surfaces, in input units.  normals: in
        the same form; without them and an eye, nothing tells inside from outside but the training shapes.  free_space:
        points known to be outside, beside those that follow from the eye.  eye: the viewpoint, [3], or [B, 3] one per
        scan: normals are oriented towards it (estimated if none are given), and the lines of sight are free.  whole:
        the scans cover whole surfaces, so that space beyond their hull is outside.  up: axis of the scans that points
        up, "y", "-y", "z", "-z", "x" or "-x"; rotations about it are searched.
        similarities: from input units to the normalized frame, one per scan, if the poses are known: then only codes
        are fitted.  outliers, precision: as for `fit`.  names: of the shapes.  config: a PoseConfig, or with
        similarities a FitConfig.
        Raises InputError as `fit` does.
        """
        self._check_fitted()
        arguments.choice(up, "up", tuple(axes.UP))
        network = self.with_precision(precision).network
        given = ObservedArrays.checked(points=points, normals=normals, free_space=free_space)
        names = arguments.names(names, len(given.rows))
        frame = "input" if similarities is None else "normalized"  # a known pose does not depend on the box
        given = arguments.without_outliers(given, outliers, frame, names)
        given = completion.of_scans(given, eye, whole)
        if similarities is not None:
            default = dataclasses.replace(self.fitting, prior=completion.PRIOR)
            fitting = arguments.settings(config, FitConfig, default)
            given, found = self._normalized(given, similarities)
            fitted = latents.fit(network, observe(given, fitting), config=fitting, **self._known())
            unseen = parts.unseen(network, fitted.values, given.rows)
            return Codes(names=names, similarities=found, unseen=unseen, network=self.digest, **fitted._asdict())
        posing = arguments.settings(config, PoseConfig, completion.POSE["yaw"])
        arguments.check_sizes("points", given.rows)
        upright = axes.upright(up)
        turned = given.transformed([upright] * len(names))
        found = pose.fit_pose(network, turned, config=posing, **self._known())
        clouds = turned.transformed(found.similarities).rows
        transforms = tuple(transform @ upright for transform in found.similarities)
        unseen = parts.unseen(network, found.codes.values, clouds)
        return Codes(names=names, similarities=transforms, unseen=unseen, network=self.digest, **found.codes._asdict())

    def encode(
        self,
        samples: Sequence[Any] | np.ndarray | None = None,
        *,
        points: Sequence[Any] | np.ndarray | None = None,
        voxels: Sequence[Any] | np.ndarray | None = None,
        images: Sequence[Any] | np.ndarray | None = None,
        meshes: Sequence[Any] | None = None,
        frame: str | Sequence[Similarity] = "normalized",
        outliers: str | None = None,
        names: Sequence[str] | None = None,
        precision: Precision | None = None,
    ) -> Codes:
        """Codes of unseen shapes, by one pass of the network's encoder (Occupancy Networks, and `deepsdf_points`).

        Give the kind of input that the network was trained with.  points: [B, N, 3] on surfaces, or a list of [Nᵢ, 3],
        subsampled to the number used in training.  voxels: [B, R, R, R] of 0 and 1, axes x, y, z.  images:
        [B, H, W, 3] in [0, 1].  samples: [B, N, 4] points with occupancies 0 and 1 (for a latent encoder; the code is
        the posterior's mean).  Or meshes: as for `fit`, from which points are sampled or voxels computed.
        frame, outliers: as for `fit`, of points and samples.  names: of the shapes.  precision: replaces the model's.
        Raises InputError for another kind of input than the network takes, and for arrays as `fit` does.
        """
        given = {"samples": samples, "points": points, "voxels": voxels, "images": images, "meshes": meshes}
        kinds = [name for name, arrays in given.items() if arrays is not None]
        inputs, network = self.inputs, self.with_precision(precision).network
        takes = None if inputs is None else inputs.kind
        allowed = (takes, "meshes") if takes in ("points", "voxels") else (takes,)
        if inputs is None or len(kinds) != 1 or kinds[0] not in allowed:
            raise InputError(f"{' and '.join(kinds) or 'nothing'} given to encode, but {self._takes()}")
        (kind,), similarities = kinds, None
        rows = kind in ("points", "samples")
        if kind == "meshes":
            sampled, names = self._sampled(meshes, frame, names, inputs)
            arrays = [one.array(inputs.kind) for one in sampled]
            similarities = tuple(one.similarity for one in sampled)
        else:
            arrays = listed(given[kind], kind, (None, inputs.shape[-1]) if rows else inputs.shape)
            names = arguments.names(names, len(arrays))
            if rows:
                observed = arguments.without_outliers(ObservedArrays(**{kind: arrays}), outliers, frame, names)
                observed, similarities = self._normalized(observed, frame, distances=False)
                arrays = observed.rows
            elif arguments.transforms(frame, kind, arrays, self.frame) is not None:
                raise InputError(f"frame is {shown(frame)}, but {kind} are always in the normalized frame")
        values = encoding.encode(network, inputs.check(arrays), inputs.kind)
        return Codes(values, names, similarities, network=self.digest)

    def _known(self) -> dict[str, Any]:
        """What fitting knows of the training codes: their distribution, and the codes as starts."""
        return {"prior": self.prior, "starts": None if self.codes is None else self.codes.values}

    def _check_fitted(self) -> None:
        """InputError if codes of this network are not fitted."""
        if not self.is_fitted:
            raise InputError(f"codes of a network of kind {self.kind!r} are not fitted; {self._takes()}")
        latents.check_fitted(self.network)

    def _takes(self) -> str:
        """How this network gets the code of a new shape, for error messages."""
        if self.inputs is not None:
            kind, fitted = self.inputs.kind, ", or fits codes: model.fit(…)" * self.is_fitted
            return f"this network encodes {kind} {list(self.inputs.shape)}: model.encode({kind}=…){fitted}"
        if self.is_fitted:
            return "codes of this network are fitted: model.fit(…)"
        return "this network only represents the shapes that it was trained on: model.codes"

    def _normalized(
        self, given: ObservedArrays, frame: str | Sequence[Similarity], *, distances: bool = True
    ) -> tuple[ObservedArrays, tuple[Similarity, ...] | None]:
        """Observations in the normalized frame, and each shape's similarity to it, None if they were there already.

        distances: whether the fourth column of samples is a distance, which scales with the shape, or an occupancy.
        """
        similarities = arguments.transforms(frame, given.kind, given.rows, self.frame)
        return (given if similarities is None else given.transformed(similarities, distances)), similarities

    def _sampled(
        self, meshes, frame, names, inputs: Inputs | None = None
    ) -> tuple[list[scans.Observed], tuple[str, ...]]:
        """Observations of meshes as an encoder takes them, or for a fit (None), and the names of the shapes."""
        if frame != "normalized":
            raise InputError("frame is given with meshes, but each mesh is normalized by its own bounding box")
        found = as_meshes(meshes, "meshes")
        if not found:
            raise InputError("meshes holds no shape; give one or more")
        if names is None and all(mesh.name for mesh in found):
            names = [mesh.name for mesh in found]
        names = arguments.names(names, len(found))
        kind = "samples" if inputs is None else inputs.kind
        size = None if inputs is None else inputs.size
        each = zip(found, names, strict=True)
        return [
            scans.of_mesh(dataclasses.replace(mesh, name=name), kind, self.frame, size) for mesh, name in each
        ], names

    def extract(
        self,
        codes: Codes | np.ndarray,
        resolution: int | None = None,
        *,
        frame: str = "input",
        surfaces: Surfaces | Mapping[str, Any] | None = None,
        precision: Precision | None = None,
    ) -> list[Mesh]:
        """The surfaces of codes (Codes or [B, L]) as closed meshes, all shapes in one batch, coarse to fine.

        resolution: grid cells per side of the box.  frame: "input" transforms each mesh back to input units if the
        codes have similarities, "normalized" leaves it in the network's frame.  surfaces: settings that replace the
        model's, as an instance or as a dict of some of its fields, `{"faces": 2000}`.  precision: replaces the model's.
        Raises InputError for codes of another network, ConfigError for impossible settings.
        """
        arguments.choice(frame, "frame", ("normalized", "input"))
        config = self._surfaces(resolution, surfaces)
        fields = self.with_precision(precision).network.fields(np.atleast_2d(self._values(codes)))
        meshes = cast(list[Mesh], extraction.extract(fields, **dataclasses.asdict(config)))  # of a batch
        names = codes.names if isinstance(codes, Codes) else tuple(mesh.name for mesh in meshes)
        meshes = [dataclasses.replace(mesh, name=name) for mesh, name in zip(meshes, names, strict=True)]
        if frame == "input" and isinstance(codes, Codes) and codes.similarities is not None:
            return [transform.inverse().apply(mesh) for transform, mesh in zip(codes.similarities, meshes, strict=True)]
        return meshes

    def _surfaces(self, resolution: int | None, surfaces: Surfaces | Mapping[str, Any] | None = None) -> Surfaces:
        """This model's settings of extraction with some of them replaced."""
        if surfaces is not None and not isinstance(surfaces, Surfaces | Mapping):
            raise InputError(f"surfaces is {shown(surfaces)}, but must be a Surfaces or a dict of its fields")
        base = surfaces if isinstance(surfaces, Surfaces) else self.surfaces
        if isinstance(surfaces, Mapping):
            base = jonet.config.changed(base, dict(surfaces), "surfaces.")
        return base if resolution is None else jonet.config.changed(base, {"resolution": resolution})

    def reconstruct(
        self,
        samples: Sequence[Any] | np.ndarray | None = None,
        *,
        points: Sequence[Any] | np.ndarray | None = None,
        normals: Sequence[Any] | np.ndarray | None = None,
        free_space: Sequence[Any] | np.ndarray | None = None,
        voxels: Sequence[Any] | np.ndarray | None = None,
        images: Sequence[Any] | np.ndarray | None = None,
        meshes: Sequence[Any] | None = None,
        frame: str | Sequence[Similarity] = "normalized",
        outliers: str | None = None,
        whole: bool = False,
        names: Sequence[str] | None = None,
        resolution: int | None = None,
        precision: Precision | None = None,
    ) -> list[Mesh]:
        """Meshes of unseen shapes: their codes are encoded or fitted, then their surfaces extracted.

        Observations, frame, outliers, whole and names as for `encode` of Occupancy Networks, and for `fit` of DeepSDF;
        resolution and precision as for `extract`.  samples: [B, N, 4], points and normals: [B, N, 3], and free_space:
        [B, M, 3], or lists of one array per shape.  voxels: [B, R, R, R] of 0 and 1.  images: [B, H, W, 3] in [0, 1].
        With frame="input" a warning names clouds that are far from the mesh that an encoder made of them.
        Raises InputError as these do, and for observations that the network does not take.
        """
        self._surfaces(resolution)  # a wrong resolution or precision is refused before the work
        model = self.with_precision(precision)
        given = {"samples": samples, "points": points, "normals": normals, "free_space": free_space}
        given |= {"voxels": voxels, "images": images, "meshes": meshes}
        codes = model._codes(given, frame, outliers, whole, names)
        built = model.extract(codes, resolution)
        if points is not None and arguments.boxed(frame) and not whole and not self.is_fitted:
            parts.warn_off_mesh(built, listed(points, "points", (None, 3)), codes.names)
        return built

    def _codes(self, observed: dict[str, Any], frame, outliers: str | None, whole: bool = False, names=None) -> Codes:
        """Codes of observations, by `fit` if codes of the network are fitted, else by `encode`."""
        encoded = self.inputs is not None and not self.is_fitted
        known = ENCODED if encoded else FITTED
        observed = {name: arrays for name, arrays in observed.items() if arrays is not None}
        for name in observed:
            if name not in known:
                raise InputError(f"{name} is given, but not used: {self._takes()}, which takes {', '.join(known)}")
        if encoded:
            return self.encode(**observed, frame=frame, outliers=outliers, names=names)
        return self.fit(**observed, frame=frame, outliers=outliers, whole=whole, names=names)

    def purify(
        self,
        points: Sequence[Any] | np.ndarray,
        count: int | None = None,
        *,
        normals: Sequence[Any] | np.ndarray | None = None,
        frame: str | Sequence[Similarity] = "normalized",
        spread: float = 1.1,
        resolution: int | None = None,
        seed: int = 0,
        precision: Precision | None = None,
    ) -> list[np.ndarray]:
        """Point clouds cleaned by rebuilding their shapes: points sampled uniformly on the reconstructed surface.

        points: [B, N, 3] or a list of [Nᵢ, 3] → list of [count, 3].  count: points per cleaned cloud (default: as many
        as in the input).  normals, frame: as for `fit` or `encode`; with frame="input", input and output are in input
        units.  spread: outliers are removed first, see `geometry.outliers.inlier_mask`; inf keeps all.  seed: of the
        sampling.  precision: replaces the model's.  A cloud without a reconstructed surface gives [0, 3].  (Wu et al.:
        IF-Defense, 2020.)
        """
        count = None if count is None else whole(count, "count", 1)
        seed, spread = whole(seed, "seed", 0), arguments.positive(spread, "spread")
        self._surfaces(resolution)
        model = self.with_precision(precision)
        given = ObservedArrays.checked(points=points, normals=normals)
        kept = purification.without_outliers(given, spread)
        codes = model._codes({"points": kept.points, "normals": kept.normals}, frame, "keep")
        meshes = model.extract(codes, resolution, frame="normalized")
        clouds = purification.resampled(meshes, [count or len(rows) for rows in given.rows], seed)
        transforms = codes.similarities or [Similarity()] * len(codes)
        return [transform.inverse()(cloud) for transform, cloud in zip(transforms, clouds, strict=True)]

    def sample(
        self, count: int, seed: int = 0, resolution: int | None = None, *, precision: Precision | None = None
    ) -> list[Mesh]:
        """Meshes of `count` codes drawn from the prior; resolution and precision as for `extract`.

        For DeepSDF the prior is fitted to the training codes (N(0, I) would give no plausible shapes); for a
        variational network it is N(0, I).  Raises InputError for a network without a prior.
        """
        count, seed = whole(count, "count", 1), whole(seed, "seed", 0)
        self._surfaces(resolution)
        if self.prior is None:
            raise InputError("this network has no prior to sample from: it only encodes observations")
        return self.extract(self.prior.sample(count, seed), resolution, precision=precision)

    def interpolate(
        self,
        a: Codes | np.ndarray,
        b: Codes | np.ndarray,
        count: int,
        resolution: int | None = None,
        *,
        precision: Precision | None = None,
    ) -> list[Mesh]:
        """Meshes of `count` codes, 2 or more, linearly spaced from code a to code b, both included.

        a, b: [L], or Codes of one shape.  resolution, precision: as for `extract`.
        """
        count = whole(count, "count", 2)
        self._surfaces(resolution)
        ends = []
        for name, code in (("a", a), ("b", b)):
            values = np.atleast_2d(self._values(code, name))
            if len(values) != 1:
                raise InputError(f"{name} contains {len(values)} codes, but must be one")
            ends.append(values[0])
        codes = np.linspace(ends[0], ends[1], count, dtype=np.float32)
        return self.extract(codes, resolution, precision=precision)

    def _values(self, codes, name: str = "codes") -> np.ndarray:
        length = self.network.latent_size
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
        complete.  Raises CheckpointError for a folder that contains anything else, and ConfigError for a
        `fitting.optimizer`, which no file can hold.
        """
        content = model_folder.Content(
            kind=self.kind,
            frame=self.frame,
            network=jonet.config.to_dict(self.network.specs),
            fitting=jonet.config.to_dict(self.fitting, "fitting."),
            surfaces=jonet.config.to_dict(self.surfaces),
            precision=self.precision,
            inputs=None if self.inputs is None else jonet.config.to_dict(self.inputs),
            history=self.history,
            shared=self.network.stored,
            batch_stats=self.network.batch_stats,
            prior=None if self.prior is None else self.prior._asdict(),
            codes=None if self.codes is None else dataclasses.replace(self.codes, network=self.digest),
        )
        model_folder.write(folder, content)


def load(folder: str | Path) -> Model:
    """The model of a run folder or of a model folder.

    Raises InputError for an argument that is not a path, and CheckpointError that says what is missing or damaged.
    """
    content = model_folder.read(folder, NETWORKS)
    specs, module = NETWORKS[content.kind]
    network = module(jonet.config.from_dict(specs, content.network, "network."))
    try:
        bound = BoundNetwork.restored(network, content.shared, content.batch_stats, content.precision)
    except ValueError as error:
        raise CheckpointError(f"{folder}: the arrays of its network are not those of its kind: {error}") from error
    return Model(
        kind=content.kind,
        network=bound,
        frame=content.frame,
        codes=content.codes,
        prior=Prior(**content.prior) if content.prior else None,
        fitting=jonet.config.from_dict(FitConfig, content.fitting, "fitting."),
        surfaces=jonet.config.from_dict(Surfaces, content.surfaces, "surfaces."),
        inputs=jonet.config.from_dict(Inputs, content.inputs, "inputs.") if content.inputs else None,
        history=content.history,
    )


P = ParamSpec("P")
R = TypeVar("R")


def _function(method: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[Model, P], R]:
    """A method of `Model` as a function whose first argument is the model, with the method's signature."""

    @functools.wraps(method)
    def function(model: Model, *given: P.args, **named: P.kwargs) -> R:
        if not isinstance(model, Model):
            raise InputError(
                f"model is {shown(model)}, but must be a Model, which jonet.load(folder) reads; it comes first"
            )
        return method(model, *given, **named)

    return function


fit = _function(Model.fit)
fit_pose = _function(Model.fit_pose)
complete = _function(Model.complete)
encode = _function(Model.encode)
field = _function(Model.field)
extract = _function(Model.extract)
reconstruct = _function(Model.reconstruct)
purify = _function(Model.purify)
sample = _function(Model.sample)
interpolate = _function(Model.interpolate)
