"""`complete`: the whole of a shape from a part of it: a scan or a depth picture."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jonet import model
from jonet.codes import Codes
from jonet.commands import written
from jonet.commands.options import FORMAT, OUT, RESOLUTION, option
from jonet.data import depth, meshes, observed, sampling
from jonet.data.meshes import SPHERE_RADIUS, Similarity
from jonet.errors import ConfigError, MeshError
from jonet.inference.pose import PoseConfig
from jonet.model import Model
from jonet.storage.names import safe

LIMIT = 4096  # points of a scan that are fitted
PRIOR = 1e-3  # what is hidden is left to the prior, so it weighs more than among distances all around
UP = {  # which way is up in the scan: the turn that makes it +y
    "y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}


def declare(verb) -> None:
    verb(
        "complete",
        complete,
        "completes a shape of which a part was seen; the result lies where the scan lies",
        option("scan", help="a cloud (PLY, XYZ, NPY, NPZ) or mesh in own units, or a depth PNG"),
        option("--model", required=True, help="a run folder or model folder of DeepSDF"),
        OUT,
        FORMAT,
        RESOLUTION,
        option(
            "--pose",
            default="upright",
            choices=("known", "upright", "any"),
            help="upright (default): turn about the vertical, place and size are searched; any: all turns; "
            "known: axes as the model's, place and size by --centre and --radius",
        ),
        option("--up", choices=tuple(UP), help="which way is up in the scan (default: y, of depth pictures -y)"),
        option("--centre", nargs=3, type=float, default=(0, 0, 0), help="with --pose=known: of the whole shape's box"),
        option(
            "--radius",
            type=float,
            default=SPHERE_RADIUS,
            help="with --pose=known: of the whole shape around that (default: the model's own units)",
        ),
        option("--eye", nargs=3, type=float, help="where a cloud was seen from: gives free space, and normals"),
        option("--whole", action="store_true", help="the cloud is of the whole surface: beyond its hull nothing is"),
        option("--intrinsics", help="of a depth picture: JSON with fx, fy, cx, cy (default: <name>.json beside it)"),
        option("--focal", type=float, help="in place of it: focal length in pixels, centre in the middle"),
        option("--scale", type=float, default=1000.0, help="grey levels a unit of length in a depth picture"),
        option("--far", type=float, default=np.inf, help="what a depth picture shows beyond is background"),
    )


class Scan(NamedTuple):
    """Points [N, 3] in own units, normals [N, 3] or None, free space [M, 3] or None (as `Model.fit` takes them)."""

    points: np.ndarray
    normals: np.ndarray | None
    free: np.ndarray | None


def complete(options) -> None:
    name = f"{safe(Path(options.scan).stem)}.{options.format}"
    written.check(options.out, [name], [options.scan])
    trained, picture = model.load(options.model), Path(options.scan).suffix.lower() == ".png"
    scan = of_picture(options) if picture else of_cloud(options)
    up = Similarity(rotation=UP[options.up or ("-y" if picture else "y")])
    codes = fitted(trained, scan, up, options)
    way, doubts = codes.similarities[0], " · not converged" * bool(not codes.converged[0])
    doubts += " · a stranger to the space" * bool(codes.stranger[0])
    print(f"{len(scan.points)} points: residual {codes.residual[0]:.5f} · explained {codes.explained[0]:.1%}{doubts}")
    centre, angle = way.inverse()([0, 0, 0]), np.degrees(np.arccos(np.clip((np.trace(way.rotation) - 1) / 2, -1, 1)))
    print(f"centre {np.round(centre, 4).tolist()} · radius {SPHERE_RADIUS / way.scale:.4g} · turned by {angle:.0f}°")
    written.write_meshes(options.out, "complete", {name: trained.extract(codes, options.resolution)[0]})


def of_picture(options) -> Scan:
    """What a depth picture shows, seen from the origin."""
    seen = depth.read(options.scan, options.focal or options.intrinsics, scale=options.scale, far=options.far)
    points, normals = seen.surface(LIMIT)
    return Scan(points, normals, seen.free(LIMIT, np.random.default_rng(0)))


def of_cloud(options) -> Scan:
    """What a cloud or a mesh shows, and what follows from where it was seen from."""
    points, normals = _points(Path(options.scan))
    if options.eye is None:
        if normals is None and not options.whole:
            print("neither normals nor --eye: the inside is guessed from the training shapes alone", file=sys.stderr)
        return Scan(points, normals, None if options.whole else np.zeros((0, 3)))
    if normals is None:
        normals = depth.normals_towards(points, options.eye)
    away = np.einsum("nc,nc->n", normals, options.eye - points) < 0  # what is seen looks at the eye
    normals = np.where(away[:, None], -normals, normals)
    return Scan(points, normals, depth.free_space(options.eye, points, LIMIT, np.random.default_rng(0)))


def _points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points in own units and their normals: of a mesh, open as scans are, of its faces as they are wound."""
    if path.suffix.lower() not in observed.CLOUDS:
        with contextlib.suppress(MeshError):  # without faces: a cloud
            return sampling.surface(meshes.read(path), LIMIT, np.random.default_rng(0), np.float64)
    one = observed.read(path, limit=LIMIT)
    return one.similarity.inverse()(one.points), one.normals


def fitted(trained: Model, scan: Scan, up: Similarity, options) -> Codes:
    """The code of a scan, with the way from its own units to the model's frame."""
    given = {"normals": scan.normals, "free": scan.free}
    given = {name: None if rows is None else [rows] for name, rows in given.items()}
    name, prior = [Path(options.scan).stem], {"prior": PRIOR}
    if options.pose == "known":
        if not options.radius > 0:
            raise ConfigError(f"--radius is {options.radius}, but must be above 0")
        place = Similarity(SPHERE_RADIUS / options.radius, translation=-np.asarray(up(options.centre)))
        config = dataclasses.replace(trained.fitting, **prior)
        return trained.fit(points=[scan.points], **given, frame=[place @ up], names=name, config=config)
    tries = {"tries": 32, "keep": (8, 2, 1)} if options.pose == "upright" else {"tries": 256, "keep": (16, 4, 1)}
    config = PoseConfig(turns=options.pose, **tries)
    points, free = up(scan.points), None if scan.free is None else [up(scan.free)]
    normals = None if scan.normals is None else [scan.normals @ up.rotation.T]
    codes = trained.fit_pose([points], normals=normals, free=free, names=name, config=config)
    return codes.placed([codes.similarities[0] @ up])
