"""`complete`: a complete shape from a partial observation, a scan or a depth image."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import config as configs
from jonet import parser
from jonet.codes import Codes, fits
from jonet.commands import trained, written
from jonet.data import sampling, scans
from jonet.errors import ConfigError, MeshError
from jonet.geometry import axes, depth, mesh_files, mesh_parsers, planes, units
from jonet.geometry.mesh import SPHERE_RADIUS, Similarity
from jonet.inference.fitting import completion
from jonet.model import Model
from jonet.progress import Progress
from jonet.storage.names import safe
from jonet.wording import counted

LIMIT = 4096  # most points of a scan that are fitted


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
    model, is_image = trained.load(options, given), _is_image(options)
    scan = of_depth_image(options) if is_image else of_cloud(options)
    up = options.up or ("-y" if is_image else "y")  # y points down in images
    with Progress("completing", "scan", 1):
        codes = fitted(model, scan, up, options, given)
        meshes = model.extract(codes)
    [(transform, fit)] = zip(codes.similarities or (), fits(codes), strict=True)
    doubts = " · not converged" * (not fit.converged) + " · out of distribution" * fit.out_of_distribution
    if codes.unseen is not None:
        doubts = f" · {codes.unseen[0]:.0%} of the surface unseen{doubts}"
    print(
        f"{counted(len(scan.points), 'point')}: residual {fit.residual:.5f} · inliers {fit.inlier_fraction:.1%}{doubts}"
    )
    unit = options.units or units.of_file(Path(options.scan))
    radius = f"{SPHERE_RADIUS / transform.scale:.4g}" + f" {unit}" * (unit is not None)
    center, angle = (
        transform.inverse()([0, 0, 0]),
        np.degrees(np.arccos(np.clip((np.trace(transform.rotation) - 1) / 2, -1, 1))),
    )
    print(f"center {np.round(center, 4).tolist()} · radius {radius} · rotation {angle:.0f}°")
    written.write_meshes(options.out, "complete", {name: meshes[0]}, unit=unit)


def check(options, given: set[str]) -> None:
    """ConfigError for options that have no effect with the others, and for a radius that is not positive."""
    if options.radius is not None and not options.radius > 0:
        raise ConfigError(f"--radius is {options.radius}, but must be above 0")
    if options.known_pose:
        unread = {"pose": "the pose is known"}
    else:
        unread = dict.fromkeys(("center", "radius", "fitting"), "it belongs to --known-pose")
    if _is_image(options):
        unread |= dict.fromkeys(
            ("eye", "whole", "remove_plane"), "a depth image is a partial view whose camera is known"
        )
    else:
        unread |= dict.fromkeys(("intrinsics", "focal", "scale", "far"), "the scan is no depth image (PNG)")
    if options.focal is not None:
        unread.setdefault("intrinsics", "--focal takes their place")
    for name in sorted(given):
        if reason := unread.get(name.partition(".")[0]):
            raise ConfigError(f"--{name.replace('_', '-')} is given, but not read: {reason}")


def _is_image(options) -> bool:
    return Path(options.scan).suffix.lower() == ".png"


def of_depth_image(options) -> Scan:
    """Points, normals and free space of a depth image, whose camera is at the origin."""
    camera = options.intrinsics if options.focal is None else options.focal
    seen = depth.read(options.scan, camera, scale=options.scale, far=options.far)
    points, normals = seen.surface(LIMIT)
    return Scan(points, normals, seen.free_space(LIMIT, np.random.default_rng(0)))


def of_cloud(options) -> Scan:
    """Points and normals of a point cloud or mesh."""
    points, normals = _points(Path(options.scan))
    if (found := planes.plane_mask(points)).any():
        warnings.warn(f"{options.scan}: {planes.advice(found, options.remove_plane)}", stacklevel=2)
        if options.remove_plane:
            points, normals = points[~found], None if normals is None else normals[~found]
    if options.eye is None and normals is None and not options.whole:
        print("no normals and no --eye: inside and outside follow from the training shapes alone", file=sys.stderr)
    return Scan(points, normals, None)


def _points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points in input units and their normals; of a mesh, which may be open, by the orientation of its faces."""
    if path.suffix.lower() in mesh_parsers.SUFFIXES:
        with contextlib.suppress(MeshError):  # a mesh file without faces is read as a cloud below
            return sampling.surface(mesh_files.read(path), LIMIT, np.random.default_rng(0), np.float64)
    scan = scans.read(path, limit=LIMIT)
    return scan.similarity.inverse()(scan.points), scan.normals


def fitted(model: Model, scan: Scan, up: str, options, given: set[str]) -> Codes:
    """The code of a scan, with the similarity from input units to the model's frame.

    With `--known-pose` only the code is fitted, else pose and size as well.
    """
    similarities, config = None, None
    if options.known_pose:
        radius, upright = SPHERE_RADIUS if options.radius is None else options.radius, axes.upright(up)
        to_frame = Similarity(SPHERE_RADIUS / radius, translation=-upright(options.center))
        similarities = [to_frame @ upright]
        if "fitting.prior" in given:
            config = model.fitting
    else:
        rotations = completion.POSE[options.pose.rotations]
        config = configs.changed(rotations, parser.changes(options, given, "pose"))
    free_space = None if scan.free_space is None else [scan.free_space]
    return model.complete(
        [scan.points],
        normals=None if scan.normals is None else [scan.normals],
        free_space=free_space,
        eye=options.eye,
        whole=options.whole,
        up=up,
        similarities=similarities,
        outliers=options.outliers,
        names=[Path(options.scan).stem],
        config=config,
    )
