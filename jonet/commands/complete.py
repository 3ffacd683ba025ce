"""`complete`: a complete shape from a partial observation, a scan or a depth image."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config as configs
from jonet import parser
from jonet.codes import Codes
from jonet.commands import trained, written
from jonet.data import sampling, scans
from jonet.errors import ConfigError, MeshError
from jonet.geometry import depth, mesh_files
from jonet.geometry.mesh import SPHERE_RADIUS, Similarity
from jonet.model import Model
from jonet.settings.fitting import PoseConfig
from jonet.storage.names import safe

LIMIT = 4096  # most points of a scan that are fitted
PRIOR = 1e-3  # weight of the prior; higher than for complete shapes, since only the prior determines hidden parts
TRIES = {"yaw": {"tries": 32, "keep": (8, 2, 1)}, "any": {"tries": 256, "keep": (16, 4, 1)}}
UP = {  # by the axis that points up in the scan: the rotation that maps it to +y
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}


class Scan(NamedTuple):
    """Points [N, 3] in input units, normals [N, 3] or None, free space [M, 3] or None (as `Model.fit` takes them)."""

    points: np.ndarray
    normals: np.ndarray | None
    free_space: np.ndarray | None


def complete(options, given: set[str]) -> None:
    """The verb: fits a code to a scan and writes its mesh in the units and the pose of the scan.

    given: names of the options that the user gave.  Prints the quality of the fit and the pose.
    """
    check(options, given)
    name = f"{safe(Path(options.scan).stem)}.{options.format}"
    written.check(options.out, [name], [options.scan])
    model, is_image = trained.load(options, given), Path(options.scan).suffix.lower() == ".png"
    scan = of_depth_image(options) if is_image else of_cloud(options)
    up = Similarity(rotation=UP[options.up or ("-y" if is_image else "y")])  # y points down in images
    codes = fitted(model, scan, up, options, given)
    transform, doubts = codes.similarities[0], " · not converged" * bool(not codes.converged[0])
    doubts += " · out of distribution" * bool(codes.out_of_distribution[0])
    print(
        f"{len(scan.points)} points: residual {codes.residual[0]:.5f} · inliers {codes.inlier_fraction[0]:.1%}{doubts}"
    )
    center, angle = (
        transform.inverse()([0, 0, 0]),
        np.degrees(np.arccos(np.clip((np.trace(transform.rotation) - 1) / 2, -1, 1))),
    )
    print(
        f"center {np.round(center, 4).tolist()} · radius {SPHERE_RADIUS / transform.scale:.4g} · rotation {angle:.0f}°"
    )
    written.write_meshes(options.out, "complete", {name: model.extract(codes)[0]})


def check(options, given: set[str]) -> None:
    """ConfigError for options that have no effect with the others, and for a radius that is not positive."""
    if options.radius is not None and not options.radius > 0:
        raise ConfigError(f"--radius is {options.radius}, but must be above 0")
    unread = ("pose",) if options.known_pose else ("center", "radius", "fitting")
    for name in sorted(given):
        if name.partition(".")[0] in unread:
            reason = "the pose is known" if options.known_pose else "it belongs to --known-pose"
            raise ConfigError(f"--{name.replace('_', '-')} is given, but not read: {reason}")


def of_depth_image(options) -> Scan:
    """Points, normals and free space of a depth image, whose camera is at the origin."""
    seen = depth.read(options.scan, options.focal or options.intrinsics, scale=options.scale, far=options.far)
    points, normals = seen.surface(LIMIT)
    return Scan(points, normals, seen.free_space(LIMIT, np.random.default_rng(0)))


def of_cloud(options) -> Scan:
    """Points and normals of a point cloud or mesh, and free space if the viewpoint is given.

    Without a viewpoint and normals, nothing in the scan tells inside from outside.  Normals are oriented towards a
    given viewpoint, and estimated if the scan has none.
    """
    points, normals = _points(Path(options.scan))
    if options.eye is None:
        if normals is None and not options.whole:
            print("no normals and no --eye: inside and outside follow from the training shapes alone", file=sys.stderr)
        return Scan(points, normals, None if options.whole else np.zeros((0, 3)))
    if normals is None:
        normals = depth.normals_towards(points, options.eye)
    away = np.einsum("nc,nc->n", normals, options.eye - points) < 0  # visible surfaces face the viewpoint
    normals = np.where(away[:, None], -normals, normals)
    return Scan(points, normals, depth.free_space(options.eye, points, LIMIT, np.random.default_rng(0)))


def _points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points in input units and their normals; of a mesh, which may be open, by the orientation of its faces."""
    if path.suffix.lower() not in scans.CLOUDS:
        with contextlib.suppress(MeshError):  # a mesh file without faces is read as a cloud below
            return sampling.surface(mesh_files.read(path), LIMIT, np.random.default_rng(0), np.float64)
    scan = scans.read(path, limit=LIMIT)
    return scan.similarity.inverse()(scan.points), scan.normals


def fitted(model: Model, scan: Scan, up: Similarity, options, given: set[str]) -> Codes:
    """The code of a scan, with the similarity from input units to the model's frame.

    up: the rotation to +y.  With `--known-pose` only the code is fitted, else pose and size as well.
    """
    observed = {"normals": scan.normals, "free_space": scan.free_space}
    observed = {name: None if rows is None else [rows] for name, rows in observed.items()}
    names = [Path(options.scan).stem]
    if options.known_pose:
        radius = SPHERE_RADIUS if options.radius is None else options.radius
        to_frame = Similarity(SPHERE_RADIUS / radius, translation=-np.asarray(up(options.center)))
        prior = {} if "fitting.prior" in given else {"prior": PRIOR}
        config = dataclasses.replace(model.fitting, **prior)
        return model.fit(points=[scan.points], **observed, frame=[to_frame @ up], names=names, config=config)
    points, free_space = up(scan.points), None if scan.free_space is None else [up(scan.free_space)]
    normals = None if scan.normals is None else [scan.normals @ up.rotation.T]
    codes = model.fit_pose([points], normals=normals, free_space=free_space, names=names, config=pose(options, given))
    return codes.placed([codes.similarities[0] @ up])


def pose(options, given: set[str]) -> PoseConfig:
    """Settings of the pose search; `tries` and `keep` that were not given depend on the rotations (`TRIES`)."""
    changes = parser.changes(options, given, "pose")
    return configs.changed(PoseConfig(**TRIES[options.pose.rotations], rotations=options.pose.rotations), changes)
