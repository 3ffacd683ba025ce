"""Depth views: what one camera sees of a shape, cast from a mesh or read from a file, and what follows from it.

Where a ray ends there is surface; where it passed there is none. So a view gives points with normals towards the
camera, and free space before them (DeepSDF, section 5 on shape completion).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from jonet.data import archives
from jonet.data.meshes import Mesh
from jonet.data.rays import Camera, Scene
from jonet.errors import FormatError, InputError, require

NEIGHBOURS = 12  # points that a tangent plane is laid through
MODES = ("L", "I", "I;16", "I;16B")  # Pillow's names of grey pictures of 8 and 16 bits
PIXELS = 1 << 25  # no depth camera has more


@dataclass(frozen=True, eq=False)
class Depth:
    """A depth picture and the camera that took it.

    depth [H, W] along the optical axis, in the units of the camera's position: inf where the ray met nothing, nan where
    it is not known what it met.  normals [H, W, 3] of what was met, towards the camera; None if not measured.
    """

    camera: Camera
    depth: np.ndarray
    normals: np.ndarray | None = None

    def surface(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, 3] float64 that were seen, and their normals [N, 3] float32 towards the camera.

        Normals that were not measured are those of planes through neighbouring points.  limit: at most so many points,
        drawn from all.
        """
        seen = np.isfinite(self.depth)
        if limit is not None and seen.sum() > limit:
            kept = np.random.default_rng(0).choice(np.flatnonzero(seen), limit, replace=False)
            seen = np.isin(np.arange(seen.size), kept).reshape(seen.shape)
        points = self.camera.unproject(np.where(seen, self.depth, 0))[seen]
        if self.normals is not None:
            return points, self.normals[seen].astype(np.float32)
        return points, normals_towards(points, self.camera.rays()[0][seen])

    def free(self, count: int, rng: np.random.Generator, *, margin: float = 0.0, background: bool = True) -> np.ndarray:
        """Places [count, 3] that were seen through, spread evenly along rays within the ball around what was seen.

        margin: length before the surface that is left out, for noise.  background: whether also on the rays that met
        nothing; the paper speaks of those that met the shape alone.
        """
        origins, directions = self.camera.rays()
        seen = np.isfinite(self.depth)
        ends = self.camera.unproject(np.where(seen, self.depth, 0))[seen]
        center, radius = _ball(ends)
        if background and (missed := np.isposinf(self.depth)).any():
            way = directions[missed] / np.linalg.norm(directions[missed], axis=1, keepdims=True)
            beyond = origins[missed] + way * (np.linalg.norm(center - origins[missed], axis=1, keepdims=True) + radius)
            origins = np.concatenate([origins[seen], origins[missed]])
            ends = np.concatenate([ends, beyond])
        else:
            origins = origins[seen]
        return free_space(origins, ends, count, rng, margin=margin, ball=(center, radius))

    def picture(self) -> np.ndarray:
        """The view as [H, W, 3] uint8: what is near bright, what is far dark, nothing white."""
        seen = np.isfinite(self.depth)
        levels = np.full(self.depth.shape, 255.0)
        if seen.any():
            near, far = self.depth[seen].min(), self.depth[seen].max()
            levels[seen] = 215 - 175 * (self.depth[seen] - near) / max(far - near, 1e-12)
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def view(mesh: Mesh | Scene, camera: Camera, noise: float = 0.0, rng: np.random.Generator | None = None) -> Depth:
    """What a camera sees of a mesh.

    noise: standard deviation of the depths, in the mesh's units, drawn from `rng`; with it normals are not measured.
    Several views of one mesh share a `Scene`.
    """
    scene = mesh if isinstance(mesh, Scene) else Scene(mesh)
    origins, directions = camera.rays()
    hits = scene.cast(origins, directions)
    if noise:
        if rng is None:
            raise InputError("noise is drawn from rng, which is missing")
        return Depth(camera, hits.depth + noise * rng.standard_normal(hits.depth.shape))
    away = np.einsum("...c,...c->...", hits.normals, directions) > 0
    return Depth(camera, hits.depth, np.where(away[..., None], -hits.normals, hits.normals))


def free_space(
    origins, ends, count: int, rng: np.random.Generator, *, margin: float = 0.0, ball: tuple | None = None
) -> np.ndarray:
    """Places [count, 3] float64 on the lines from `origins` ([3] or [N, 3]) to `ends` [N, 3], all seen through.

    Spread evenly over the parts of the lines within a ball (centre, radius; the one around the ends if None), up to
    `margin` before the ends.  Empty where no line has such a part.
    """
    ends = require(ends, "ends", (None, 3), np.float64)
    origins = np.broadcast_to(require(np.atleast_2d(origins), "origins", (None, 3), np.float64), ends.shape)
    center, radius = _ball(ends) if ball is None else ball
    length = np.linalg.norm(ends - origins, axis=1)
    way = (ends - origins) / np.maximum(length, 1e-300)[:, None]
    middle = np.einsum("nc,nc->n", center - origins, way)  # where a line is nearest to the centre
    apart = np.linalg.norm(origins + middle[:, None] * way - center, axis=1)
    half = np.sqrt(np.maximum(radius**2 - apart**2, 0))
    start, stop = np.maximum(middle - half, 0), np.minimum(middle + half, length - margin)
    reach = np.cumsum(np.maximum(stop - start, 0))
    if not len(reach) or not reach[-1] > 0:
        return np.zeros((0, 3))
    line = np.minimum(np.searchsorted(reach, rng.random(count) * reach[-1], side="right"), len(reach) - 1)
    along = start[line] + rng.random(count) * (stop - start)[line]
    return origins[line] + along[:, None] * way[line]


def _ball(points) -> tuple[np.ndarray, float]:
    """Around the box of points [N, 3], with a quarter more: what is hidden may reach farther."""
    if not len(points):
        raise InputError("the view holds no surface; nothing can be learned from it")
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, 1.25 * float(np.linalg.norm(high - low)) / 2


def normals_towards(points, eye, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Normals [N, 3] float32 of planes through the neighbours of each point [N, 3], turned to `eye` ([3] or [N, 3])."""
    points = require(points, "points", (None, 3), np.float64)
    if len(points) < 3:
        raise InputError(f"{len(points)} points span no surface, so they have no normals; three at least are needed")
    _, near = cKDTree(points).query(points, min(neighbours, len(points)))
    apart = points[near] - points[near].mean(1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", apart, apart))[1][..., 0]
    away = np.einsum("nc,nc->n", normals, np.asarray(eye, np.float64) - points) < 0
    return np.where(away[:, None], -normals, normals).astype(np.float32)


def read(path, intrinsics=None, *, scale: float = 1000.0, far: float = np.inf) -> Depth:
    """A depth PNG of 8 or 16 bits, as depth cameras write them, seen from the origin: x right, y down, z forward.

    intrinsics: a JSON file with fx, fy, cx, cy (or with Open3D's `intrinsic_matrix`, column by column, or
    `camera_matrix`, row by row), or one focal length in pixels, or None for `<name>.json` beside the picture.
    scale: grey levels a unit of length (1000: millimetres, results in metres).  far: what lies farther is background,
    seen through.  Level 0 is a pixel about which nothing is known.
    Raises FormatError with file and cause.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            kind = f"{picture.format} of mode {picture.mode} and {picture.width} x {picture.height} pixels"
            if picture.format != "PNG" or picture.mode not in MODES or picture.width * picture.height > PIXELS:
                raise FormatError(f"{path}: is {kind}, but a depth picture is a grey PNG of 8 or 16 bits")
            levels = np.asarray(picture, np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: cannot be read as a PNG ({error})") from error
    if not scale > 0:
        raise InputError(f"scale is {scale}, but counts the grey levels of a unit of length")
    focal, centre = _intrinsics(path, intrinsics, levels.shape)
    depth = np.where(levels > 0, levels / scale, np.nan)
    depth[depth > far] = np.inf
    if not np.isfinite(depth).any():
        raise FormatError(f"{path}: no pixel holds a depth" + (f" up to {far:g}" if np.isfinite(far) else ""))
    return Depth(Camera(np.zeros(3), np.eye(3), focal, centre, levels.shape), depth)


def _intrinsics(path: Path, given, shape) -> tuple[tuple[float, float], tuple[float, float]]:
    """Focal lengths and the centre (column, row), in pixels."""
    if isinstance(given, int | float):
        values, source = {"fx": given, "fy": given, "cx": shape[1] / 2, "cy": shape[0] / 2}, path
    else:
        source = path.with_suffix(".json") if given is None else Path(given)
        if not source.is_file():
            raise FormatError(f"{path}: there is no {source} with the camera; give it, or a focal length")
        values = archives.options(source)
    try:
        if "intrinsic_matrix" in values:
            fx, _, _, _, fy, _, cx, cy, _ = map(float, np.ravel(values["intrinsic_matrix"]))
        elif "camera_matrix" in values:
            fx, _, cx, _, fy, cy, *_ = map(float, np.ravel(values["camera_matrix"]))
        else:
            fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    except (ValueError, TypeError, LookupError) as error:
        raise FormatError(f"{source}: holds no fx, fy, cx, cy, intrinsic_matrix or camera_matrix ({error})") from error
    if not (min(fx, fy) > 0 and np.isfinite([fx, fy, cx, cy]).all()):
        raise FormatError(f"{source}: fx {fx}, fy {fy}, cx {cx}, cy {cy} are no camera")
    return (fx, fy), (cx, cy)
