"""`represent`: shapes as fields at once, each by itself, without a trained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from jonet import arguments
from jonet.checks import check_array, listed
from jonet.config import changed
from jonet.data import scans, sources
from jonet.data.cloud_distances import Cloud, distinct
from jonet.data.sampling import Recipe, surface
from jonet.errors import FormatError, InputError, MeshError, shown
from jonet.fields import Fields, Spline
from jonet.geometry import axes
from jonet.geometry.depth import normals_towards
from jonet.geometry.mesh import SPHERE_RADIUS, Mesh, Similarity, as_meshes, frame_of
from jonet.geometry.outliers import alone_mask
from jonet.inference.surfaces import extraction
from jonet.networks import spline
from jonet.networks.field import Field
from jonet.settings.representation import RESOLUTIONS, Representation
from jonet.training import splines
from jonet.training.splines import Samples

SPREAD = (2.5, 0.5)  # standard deviations of a mesh's samples near its surface, in cells of the finest grid
RADIUS = 0.9  # of the sphere around a shape: so the cube reaches beyond every surface by a tenth
NEAR = 0.02  # samples closer than this, in radii, tell where the surface is
MARGIN = 0.02  # of the box around the surface
FINEST = 0.5  # cells smaller than this, in spacings of a cloud, would follow its noise
ROUGH = 0.05  # error that is left to a cloud's noise, in its spacings
HOLES = 64  # cells a side of the mesh on which closed holes are looked for


class Observed(NamedTuple):
    """What is to be represented, in the normalized frame.

    samples: points and signed distances in random order.  cloud: that they come from, if any.
    """

    name: str
    similarity: Similarity
    samples: Samples
    cloud: Cloud | None = None


def represent(
    meshes: Any = None,
    *,
    samples: Sequence[Any] | np.ndarray | None = None,
    points: Sequence[Any] | np.ndarray | None = None,
    normals: Sequence[Any] | np.ndarray | None = None,
    eye: Sequence[Any] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    options: Representation | Mapping[str, Any] | None = None,
) -> Fields:
    """Shapes as signed distance functions, each by itself: seconds a shape, and no training set.

    Give one of: meshes, one or a list, of jonet, trimesh, or any with `vertices` and `faces`; samples, [B, N, 4] or a
    list of [Nᵢ, 4], points and their signed distances, negative inside; points, [B, N, 3] or a list of [Nᵢ, 3], on the
    surfaces, and their outward normals, of the same sizes, or None to estimate them.  All are in input units, and so
    are the results.
    eye: of the sizes of points, where each was seen from: turns estimated normals, and so tells the outside.
    names: of the shapes; None for those of the meshes, or numbers.  options: a `Representation`, or a dict of some of
    its fields, `{"resolution": 128}`.
    Raises InputError for wrong arguments, ConfigError for impossible options, MeshError for a mesh without an inside.
    """
    options = options_of(options)
    given = {"meshes": meshes, "samples": samples, "points": points}
    if sum(value is not None for value in given.values()) != 1:
        raise InputError("give one of meshes, samples and points")
    if normals is not None and points is None:
        raise InputError("normals are given without points")
    if eye is not None and (points is None or normals is not None):
        raise InputError("eye is given, but only points without normals need it")
    if meshes is not None:
        shapes: list[Any] = as_meshes(meshes)
        if names is None and all(mesh.name for mesh in shapes):
            names = [mesh.name for mesh in shapes]
    elif samples is not None:
        shapes = listed(samples, "samples", (None, 4))
    else:
        shapes = _with_normals(listed(points, "points", (None, 3)), normals, eye)
    if not shapes:
        raise InputError("no shape is given; give one or more")
    names = arguments.names(names, len(shapes))
    read = of_mesh if meshes is not None else of_samples if samples is not None else of_cloud
    found: list[Spline] = []
    for start in range(0, len(shapes), splines.together()):
        here = slice(start, start + splines.together())
        found += fitted([read(*pair, options) for pair in zip(names[here], shapes[here], strict=True)], options)
    return Fields(found)


def of_mesh(name: str, mesh: Mesh, options: Representation) -> Observed:
    """Samples of a mesh in input units: exact distances, most of them near the surface."""
    source = sources.InMemory(name, mesh=dataclasses.replace(mesh, name=name))
    return _of_scan(name, scans.sampled(source, "samples", "sphere", _recipe(options), options.seed), options)


def of_file(
    name: str,
    path: Path,
    options: Representation,
    outliers: str | None = "keep",
    up: str = "y",
    remove_plane: bool = False,
) -> Observed:
    """Samples of a file, a mesh or a point cloud, as `scans.read` accepts and refuses them.

    outliers: what is done about those that enlarge the bounding box, and do not stand alone; up: the axis of the file
    that points up; these and remove_plane are as for `scans.read`.
    """
    if (rows := scans.cloud(path, seed=options.seed)) is None:
        source = sources.MeshFile(name, "test", path=path, up=up)
        return _of_scan(name, scans.sampled(source, "samples", "sphere", _recipe(options), options.seed), options)
    rows = rows[distinct(rows[:, :3])]
    rows = scans.cleaned(rows[~alone_mask(rows[:, :3])], path, outliers, remove_plane)
    turn = axes.upright(up)
    normals = rows[:, 3:] @ turn.rotation.T if rows.shape[1] > 3 else None
    try:
        found = of_inliers(name, (turn(rows[:, :3]), normals), options)
        return found._replace(similarity=found.similarity @ turn)
    except MeshError as error:
        raise FormatError(f"{path}: {error}") from error


def _recipe(options: Representation) -> Recipe:
    wide, narrow = (spread * 2 / options.resolution for spread in SPREAD)
    return Recipe(near=options.near, uniform=options.uniform, variances=(wide**2, narrow**2), surface=0)


def _of_scan(name: str, found: scans.Observed, options: Representation) -> Observed:
    smaller = Similarity(RADIUS / SPHERE_RADIUS)
    rows = np.random.default_rng(options.seed).permutation(found.array("samples")) * np.float32(smaller.scale)
    rows = rows[(np.abs(rows[:, :3]) <= 1).all(1)]
    return Observed(name, smaller @ found.similarity, Samples(rows[:, :3], rows[:, 3]))


def of_samples(name: str, samples: np.ndarray, options: Representation) -> Observed:
    """Samples [N, 4] in input units, of which those inside and near the surface say where the shape is."""
    samples = check_array(samples, f"samples of {name}", (None, 4), np.float64)
    points, distances = samples[:, :3], samples[:, 3]
    if not (distances < 0).any() or not (distances > 0).any():
        raise InputError(
            f"the samples of {name} are all {'outside' if (distances > 0).any() else 'inside'}; "
            "distances are negative inside, and both sides are needed"
        )
    inside = points[distances <= 0]
    size = np.ptp(inside, axis=0).max()
    shape = points[distances < NEAR * size]
    similarity = _frame(shape if np.ptp(shape, axis=0).max() > 0 else points)
    rows = np.column_stack([similarity(points), similarity.scale * distances]).astype(np.float32)
    rows = np.random.default_rng(options.seed).permutation(rows[(np.abs(rows[:, :3]) <= 1).all(1)])
    return Observed(name, similarity, Samples(rows[:, :3], rows[:, 3]))


def of_cloud(name: str, cloud: tuple[np.ndarray, np.ndarray | None], options: Representation) -> Observed:
    """Samples around a point cloud in input units, see `data.cloud_distances`; points that stand alone are left out."""
    points = check_array(cloud[0], f"points of {name}", (None, 3), np.float64)
    normals = None if cloud[1] is None else check_array(cloud[1], f"normals of {name}", (None, 3), np.float64)
    first = distinct(points)
    kept = first[~alone_mask(points[first])]
    return of_inliers(name, (points[kept], None if normals is None else normals[kept]), options)


def of_inliers(name: str, cloud: tuple[np.ndarray, np.ndarray | None], options: Representation) -> Observed:
    """Samples around the points of a cloud in input units, all of which count; `of_cloud` for any."""
    points, normals = cloud
    similarity = _frame(points)
    oriented = Cloud.of(similarity(points), None if normals is None else normals @ similarity.rotation.T)
    drawn = oriented.samples(options.cloud, np.random.default_rng(options.seed))
    return Observed(name, similarity, Samples(*drawn), oriented)


def _frame(points: np.ndarray) -> Similarity:
    """Input units → a sphere of radius RADIUS around points [N, 3]."""
    return Similarity(RADIUS / SPHERE_RADIUS) @ frame_of(points, "sphere")


def fitted(shapes: Sequence[Observed], options: Representation) -> list[Spline]:
    """The splines of some shapes, solved side by side."""
    limits = [_limited(shape, options) for shape in shapes]
    found = []
    for shape, (levels, error) in zip(shapes, splines.fit([shape.samples for shape in shapes], limits), strict=True):
        box = _box(shape.samples)
        closed = None if shape.cloud is None else _closed(shape.cloud, spline.field(levels, box))
        found.append(Spline(shape.name, shape.similarity, tuple(levels), box, error, closed))
    return found


def _limited(shape: Observed, options: Representation) -> Representation:
    """The options of a shape: cells are no finer than its cloud, and its noise is not followed."""
    if shape.cloud is None:
        return options
    finest = max(r for r in RESOLUTIONS if r == RESOLUTIONS[0] or 2 / r >= FINEST * shape.cloud.spacing)
    tolerance = max(options.tolerance, ROUGH * shape.cloud.spacing)
    return dataclasses.replace(options, resolution=min(finest, options.resolution), tolerance=tolerance)


def _box(samples: Samples) -> np.ndarray:
    """The cube [2, 3] around the samples at the surface, within the normalized frame."""
    near = samples.points[samples.distances < NEAR]
    half = min(1.0, float(np.abs(near).max(initial=0.0)) + MARGIN)
    return np.array([[-half] * 3, [half] * 3], np.float32)


def _closed(cloud: Cloud, field: Field) -> float:
    """The fraction of the surface that is far from all points of a cloud."""
    mesh = cast(Mesh, extraction.extract(field, HOLES, normals=False))
    return cloud.closed(surface(mesh, 4096, np.random.default_rng(0))[0]) if len(mesh.faces) else 0.0


def _with_normals(points: list[np.ndarray], normals, eye) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Each cloud with its normals, given or towards where its points were seen from, or None."""
    given, name = (normals, "normals") if eye is None else (eye, "eye")
    if given is None:
        return [(cloud, None) for cloud in points]
    given = listed(given, name, (None, 3))
    if [len(cloud) for cloud in points] != [len(each) for each in given]:
        raise InputError(f"points and {name} must be of the same shapes, one row for each point")
    pairs = zip(points, given, strict=True)
    return list(pairs) if eye is None else [(cloud, normals_towards(cloud, places)) for cloud, places in pairs]


def options_of(options: Representation | Mapping[str, Any] | None) -> Representation:
    """The options of a public call; InputError for a value of another kind, ConfigError for impossible ones."""
    if options is None or isinstance(options, Representation):
        return options or Representation()
    if isinstance(options, Mapping):
        return changed(Representation(), dict(options))
    raise InputError(f"options is {shown(options)}, but must be a Representation or a dict of its fields")
