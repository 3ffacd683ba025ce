"""Depth maps of single views, rendered from a mesh or read from a file, as observations for shape completion.

A ray ends on the surface and passes through free space before it.  So a depth map gives surface points with normals
towards the camera, and points in free space (DeepSDF, section 5 on shape completion).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from jonet.checks import check_array
from jonet.errors import FormatError, InputError
from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera, Scene
from jonet.storage import archives
from jonet.wording import counted

NEIGHBORS = 12  # points to which a tangent plane is fitted
MODES = ("L", "I", "I;16", "I;16B")  # Pillow's modes of grayscale images of 8 and 16 bits


@dataclass(frozen=True, eq=False)
class Depth:
    """A depth map and its camera.

    depth [H, W] along the optical axis, in the units of the camera's position: inf if the ray hit nothing, nan if the
    depth is unknown.  normals [H, W, 3] of the hits, towards the camera; None if not measured.
    """

    camera: Camera
    depth: np.ndarray
    normals: np.ndarray | None = None

    def surface(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The visible points [N, 3] float64 and their normals [N, 3] float32 towards the camera.

        Normals that were not measured are estimated from neighboring points (`normals_towards`).  limit: maximum number
        of points, a random subset.
        """
        seen = np.isfinite(self.depth)
        if limit is not None and seen.sum() > limit:
            kept = np.random.default_rng(0).choice(np.flatnonzero(seen), limit, replace=False)
            seen = np.isin(np.arange(seen.size), kept).reshape(seen.shape)
        points = self.camera.unproject(np.where(seen, self.depth, 0))[seen]
        if self.normals is not None:
            return points, self.normals[seen].astype(np.float32)
        return points, normals_towards(points, self.camera.rays()[0][seen])

    def free_space(
        self, count: int, rng: np.random.Generator, *, margin: float = 0.0, background: bool = True
    ) -> np.ndarray:
        """Points [count, 3] in free space, uniform along rays within the ball around the visible points.

        margin: distance before the surface that is left out, for noisy depths.  background: whether to use rays that
        hit nothing, too; the paper uses only those that hit the shape.
        """
        origins, directions = self.camera.rays()
        seen = np.isfinite(self.depth)
        ends = self.camera.unproject(np.where(seen, self.depth, 0))[seen]
        center, radius = _ball(ends)
        # Rays that hit nothing are free for as far as they are in the ball, so they get ends behind it.
        if background and (missed := np.isposinf(self.depth)).any():
            direction = directions[missed] / np.linalg.norm(directions[missed], axis=1, keepdims=True)
            beyond = origins[missed] + direction * (
                np.linalg.norm(center - origins[missed], axis=1, keepdims=True) + radius
            )
            origins = np.concatenate([origins[seen], origins[missed]])
            ends = np.concatenate([ends, beyond])
        else:
            origins = origins[seen]
        return free_space(origins, ends, count, rng, margin=margin, ball=(center, radius))

    def picture(self) -> np.ndarray:
        """The depth map as an image [H, W, 3] uint8: near is bright, far is dark, the background white."""
        seen = np.isfinite(self.depth)
        levels = np.full(self.depth.shape, 255.0)
        if seen.any():
            near, far = self.depth[seen].min(), self.depth[seen].max()
            levels[seen] = 215 - 175 * (self.depth[seen] - near) / max(far - near, 1e-12)
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def view(mesh: Mesh | Scene, camera: Camera, noise: float = 0.0, rng: np.random.Generator | None = None) -> Depth:
    """Renders the depth map of a mesh.

    noise: standard deviation of Gaussian noise on the depths, in the mesh's units, drawn from `rng`; with noise there
    are no measured normals.  Pass a `Scene` to reuse it for several views of one mesh.
    """
    scene = mesh if isinstance(mesh, Scene) else Scene(mesh)
    origins, directions = camera.rays()
    hits = scene.cast(origins, directions)
    if noise:
        if rng is None:
            raise InputError("noise needs a random generator: give rng")
        return Depth(camera, hits.depth + noise * rng.standard_normal(hits.depth.shape))
    away = np.einsum("...c,...c->...", hits.normals, directions) > 0  # a camera sees faces, whatever their winding
    return Depth(camera, hits.depth, np.where(away[..., None], -hits.normals, hits.normals))


def free_space(
    origins, ends, count: int, rng: np.random.Generator, *, margin: float = 0.0, ball: tuple | None = None
) -> np.ndarray:
    """Points [count, 3] float64 in free space: on the segments from `origins` ([3] or [N, 3]) to `ends` [N, 3].

    Uniform by length over the parts of the segments within a ball (center, radius; that around the ends if None), up to
    `margin` before the ends.  Empty [0, 3] if no segment has such a part.
    """
    ends = check_array(ends, "ends", (None, 3), np.float64)
    origins = np.broadcast_to(check_array(np.atleast_2d(origins), "origins", (None, 3), np.float64), ends.shape)
    center, radius = _ball(ends) if ball is None else ball
    length = np.linalg.norm(ends - origins, axis=1)
    direction = (ends - origins) / np.maximum(length, 1e-300)[:, None]
    # Intersection of each line with the ball: the point nearest to the center, and half the chord around it.
    middle = np.einsum("nc,nc->n", center - origins, direction)
    apart = np.linalg.norm(origins + middle[:, None] * direction - center, axis=1)
    half = np.sqrt(np.maximum(radius**2 - apart**2, 0))
    start, stop = np.maximum(middle - half, 0), np.minimum(middle + half, length - margin)
    total = np.cumsum(np.maximum(stop - start, 0))  # a segment is drawn with probability proportional to its length
    if not len(total) or not total[-1] > 0:
        return np.zeros((0, 3))
    line = np.minimum(np.searchsorted(total, rng.random(count) * total[-1], side="right"), len(total) - 1)
    along = start[line] + rng.random(count) * (stop - start)[line]
    return origins[line] + along[:, None] * direction[line]


def _ball(points) -> tuple[np.ndarray, float]:
    """Center and radius of the ball around the bounding box of points [N, 3], enlarged by a quarter: the hidden part of
    the shape may extend farther."""
    if not len(points):
        raise InputError("the view holds no surface: no pixel has a depth")
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, 1.25 * float(np.linalg.norm(high - low)) / 2


def normals_towards(points, eye, neighbors: int = NEIGHBORS) -> np.ndarray:
    """Estimated normals [N, 3] float32 of points [N, 3], oriented towards `eye` ([3] or [N, 3]): of the plane fitted to
    the nearest neighbors of each point by PCA."""
    points = check_array(points, "points", (None, 3), np.float64)
    if len(points) < 3:
        raise InputError(
            f"{counted(len(points), 'point spans', 'points span')} no surface, so there are no normals; at least "
            "three are needed"
        )
    _, near = KDTree(points).query(points, min(neighbors, len(points)))
    apart = points[near] - points[near].mean(1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", apart, apart))[1][..., 0]  # smallest eigenvalue comes first
    away = np.einsum("nc,nc->n", normals, np.asarray(eye, np.float64) - points) < 0
    return np.where(away[:, None], -normals, normals).astype(np.float32)


def read(path, intrinsics=None, *, scale: float = 1000.0, far: float = np.inf) -> Depth:
    """Reads a depth PNG of 8 or 16 bits as depth cameras write it; the camera is at the origin, in camera space.

    intrinsics: a JSON file with fx, fy, cx, cy (or with Open3D's `intrinsic_matrix`, column-major, or `camera_matrix`,
    row-major), or a focal length in pixels, or None for `<name>.json` next to the image.  As in OpenCV and Open3D, the
    center of the first pixel is (0, 0), so pixel (row i, column j) sees along ((j - cx) / fx, (i - cy) / fy, 1); with a
    focal length alone the principal point is the middle of the image.  scale: gray levels per unit of length (1000:
    millimeters in the file, meters in the result).  far: larger depths are background, i.e. free space.  Level 0 means
    unknown.
    Raises FormatError with file and cause.
    """
    path = Path(path)
    with archives.picture(path) as picture:
        if picture.format != "PNG" or picture.mode not in MODES:
            kind = f"{picture.format} of mode {picture.mode}"
            raise FormatError(f"{path}: is {kind}, but a depth map must be a grayscale PNG of 8 or 16 bits")
        levels = np.asarray(picture, np.float64)
    if not scale > 0:
        raise InputError(f"scale is {scale}, but must be above 0: the gray levels per unit of length")
    focal, center = _intrinsics(path, intrinsics, levels.shape)
    depth = np.where(levels > 0, levels / scale, np.nan)
    depth[depth > far] = np.inf  # comparisons with nan are False: unknown stays unknown
    if not np.isfinite(depth).any():
        raise FormatError(f"{path}: no pixel holds a depth" + (f" up to {far:g}" if np.isfinite(far) else ""))
    return Depth(Camera(np.zeros(3), np.eye(3), focal, center, levels.shape), depth)


def _intrinsics(path: Path, given, shape) -> tuple[tuple[float, float], tuple[float, float]]:
    """Focal lengths and principal point of a `Camera` in pixels, from intrinsics in OpenCV's convention."""
    if isinstance(given, int | float):
        values, source = {"fx": given, "fy": given, "cx": (shape[1] - 1) / 2, "cy": (shape[0] - 1) / 2}, path
    else:
        source = path.with_suffix(".json") if given is None else Path(given)
        if not source.is_file():
            raise FormatError(f"{path}: there is no {source} with the intrinsics; give it, or a focal length")
        values = archives.options(source)
    try:
        if "intrinsic_matrix" in values:
            fx, _, _, _, fy, _, cx, cy, _ = map(float, np.ravel(values["intrinsic_matrix"]))
        elif "camera_matrix" in values:
            fx, _, cx, _, fy, cy, *_ = map(float, np.ravel(values["camera_matrix"]))
        else:
            fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise FormatError(f"{source}: holds no fx, fy, cx, cy, intrinsic_matrix or camera_matrix ({error})") from error
    if not (min(fx, fy) > 0 and np.isfinite([fx, fy, cx, cy]).all()):
        raise FormatError(f"{source}: fx {fx}, fy {fy}, cx {cx}, cy {cy} are not valid intrinsics")
    return (fx, fy), (cx + 0.5, cy + 0.5)  # OpenCV counts from the center of the first pixel, `Camera` from its corner
