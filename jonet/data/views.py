"""Meshes seen: cameras, rays by embree, depth images, DeepSDF's visible shell, shaded pictures and sheets of them.

Notation: a picture has H rows and W columns, row 0 at the top. Camera space is x right, y down, z forward, and
p_camera = R (p - position). Pixel (row i, column j) looks through (j + 0.5, i + 0.5). World: y up, +z front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from PIL import Image, ImageDraw, ImageFont

from jonet.data.meshes import Mesh
from jonet.errors import InputError, MeshError

VIEWS = {  # name -> (azimuth, elevation) in degrees; azimuth 0 looks at the front (+z), 90 at the side +x
    "three-quarter": (35.0, 22.0),
    "front": (0.0, 0.0),
    "back": (180.0, 0.0),
    "right": (90.0, 0.0),
    "left": (-90.0, 0.0),
    "top": (0.0, 90.0),
}
BLUE = (0.36, 0.56, 0.80)  # linear-light albedos, for what a network made ...
CLAY = (0.72, 0.66, 0.58)  # ... and for what was there before


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole or an orthographic camera.

    position [3]; rotation [3, 3], rows are right, down and forward; focal: pixels (orthographic: pixels per unit);
    centre (2): column and row of the optical axis; shape (2): rows and columns.
    """

    position: np.ndarray
    rotation: np.ndarray
    focal: float
    centre: tuple[float, float]
    shape: tuple[int, int]
    orthographic: bool = False

    @classmethod
    def towards(cls, direction, target=(0, 0, 0), distance=1.0, focal=1.0, shape=(256, 256), orthographic=False):
        """The camera that stands `distance` from `target` in `direction` [3] and looks at it, y upwards in the picture."""
        back = np.asarray(direction, float) / np.linalg.norm(direction)
        up = np.array([0.0, 1.0, 0.0]) if abs(back[1]) < 0.999 else np.array([0.0, 0.0, -np.sign(back[1])])
        right = np.cross(up, back)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, -np.cross(back, right), -back])
        centre = (shape[1] / 2, shape[0] / 2)
        return cls(np.asarray(target, float) + distance * back, rotation, focal, centre, tuple(shape), orthographic)

    @classmethod
    def framing(cls, points, view="three-quarter", shape=(256, 256), angle=24.0, margin=0.08):
        """The camera that sees all `points` [N, 3] from a view (a name in VIEWS or degrees of azimuth and elevation)."""
        if isinstance(view, str) and view not in VIEWS:
            raise InputError(
                f"view is {view!r}, but must be one of {', '.join(VIEWS)} or (azimuth, elevation) in degrees"
            )
        azimuth, elevation = np.radians(VIEWS[view] if isinstance(view, str) else view)
        back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        points = np.asarray(points, float)
        target = (points.min(0) + points.max(0)) / 2
        half = np.array([shape[1], shape[0]]) / 2 * (1 - 2 * margin)
        focal = min(shape) / 2 / np.tan(np.radians(angle) / 2)
        for _ in range(3):  # nearer points look larger, so the middle of the picture moves with the distance
            camera = cls.towards(back, target, 0.0, focal, shape)
            x, y, z = ((points - target) @ camera.rotation.T).T
            distance = max(np.max(np.abs(x) * focal / half[0] - z), np.max(np.abs(y) * focal / half[1] - z), 1e-9)
            u, v = x / (z + distance), y / (z + distance)
            shift = np.array([u.min() + u.max(), v.min() + v.max()]) / 2 * distance
            target = target + shift @ camera.rotation[:2]
        return cls.towards(back, target, distance * 1.01, focal, shape)

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions [H, W, 3] of the pixels' rays; directions have length 1 along the optical axis."""
        rows, columns = self.shape
        x = (np.arange(columns) + 0.5 - self.centre[0]) / self.focal
        y = (np.arange(rows) + 0.5 - self.centre[1]) / self.focal
        plane = np.stack(np.broadcast_arrays(x[None], y[:, None], 1.0), -1)
        if self.orthographic:
            origins = self.position + plane[..., :2] @ self.rotation[:2]
            return origins, np.broadcast_to(self.rotation[2], origins.shape)
        directions = plane @ self.rotation
        return np.broadcast_to(self.position, directions.shape), directions

    def project(self, points) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [..., 2] (column, row) and depths [...] along the optical axis of points [..., 3]."""
        x, y, z = np.moveaxis((np.asarray(points, float) - self.position) @ self.rotation.T, -1, 0)
        scale = self.focal if self.orthographic else self.focal / z
        return np.stack([x * scale + self.centre[0], y * scale + self.centre[1]], -1), z


class Hits(NamedTuple):
    """What rays met: depth [...] in lengths of their directions (inf: nothing), face [...] (-1), barycentric [..., 3],
    points [..., 3], and normals [..., 3] of the faces as they are wound."""

    depth: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    points: np.ndarray
    normals: np.ndarray


class Scene:
    """A mesh ready for rays. Inside, it is moved to the origin and scaled to 1: embree computes in float32."""

    def __init__(self, mesh: Mesh):
        if not len(mesh.faces):
            raise MeshError(f"{mesh.name or 'mesh'} has no faces, so there is nothing to see")
        used = mesh.vertices[np.unique(mesh.faces)]
        self.middle = (used.min(0) + used.max(0)) / 2
        self.radius = float(np.linalg.norm(used - self.middle, axis=1).max()) or 1.0
        corners = ((mesh.vertices - self.middle) / self.radius)[mesh.faces]
        self.normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.normals /= np.maximum(np.linalg.norm(self.normals, axis=1, keepdims=True), 1e-30)
        self._scene = EmbreeScene(robust=True)
        self._mesh = TriangleMesh(self._scene, corners.astype(np.float32))

    def _rays(self, origins, directions):
        origins = ((np.asarray(origins) - self.middle) / self.radius).astype(np.float32).reshape(-1, 3)
        directions = np.asarray(directions, np.float32).reshape(-1, 3)
        return np.ascontiguousarray(origins), np.ascontiguousarray(directions)

    def cast(self, origins, directions) -> Hits:
        """First hits of rays [..., 3]."""
        shape = np.shape(directions)[:-1]
        found = self._scene.run(*self._rays(origins, directions), output=1)
        face, u, v = found["primID"], found["u"], found["v"]
        hit = face >= 0
        depth = np.where(hit, found["tfar"] * self.radius, np.inf)
        points = np.reshape(origins, (-1, 3)) + np.where(hit, depth, 0)[:, None] * np.reshape(directions, (-1, 3))
        barycentric = np.stack([1 - u - v, u, v], -1)
        normals = np.where(hit[:, None], self.normals[face], 0)
        return Hits(
            depth.reshape(shape),
            face.reshape(shape),
            barycentric.reshape(*shape, 3),
            points.reshape(*shape, 3),
            normals.reshape(*shape, 3),
        )

    def blocked(self, origins, directions, reach: float = np.inf) -> np.ndarray:
        """Whether rays [N, 3] meet the mesh within `reach` lengths of their directions -> bool [N]."""
        origins, directions = self._rays(origins, directions)
        far = np.full(len(origins), min(reach / self.radius, 1e30), np.float32)
        return self._scene.run(origins, directions, dists=far, query="OCCLUDED") == 0


def cast(mesh: Mesh, camera: Camera) -> Hits:
    """What a camera's pixels see of a mesh: arrays [H, W, ...]; depth runs along the optical axis."""
    return Scene(mesh).cast(*camera.rays())


def shade(
    mesh: Mesh,
    size: int = 256,
    view: str | tuple[float, float] = "three-quarter",
    supersample: int = 2,
    colour=BLUE,
    *,
    background: str = "white",
    frame: Mesh | None = None,
    ground: bool = True,
) -> np.ndarray:
    """A picture of a mesh in a photographer's white box: one large lamp, a bright sky, a soft shadow on the ground.

    colour: linear RGB in [0, 1], of the whole [3] or of each vertex [V, 3].  background: "white" or "transparent".
    frame: the mesh whose place and size the camera and the ground take, so that pictures of one shape are comparable.
    -> [size, size, 3] uint8, or [size, size, 4] where the background is transparent (straight alpha).
    """
    scene = Scene(mesh)
    seen = scene if frame is None else Scene(frame)
    vertices = (mesh if frame is None else frame).vertices
    camera = Camera.framing(vertices, view, (size * supersample,) * 2)
    origins, directions = camera.rays()
    hits = scene.cast(origins, directions)
    solid = hits.face >= 0
    image = np.zeros((*solid.shape, 4), np.float32)  # linear light, premultiplied

    face = hits.face[solid]
    normals = _smooth_normals(mesh, scene, face, hits.barycentric[solid])
    towards = -directions[solid] / np.linalg.norm(directions[solid], axis=1, keepdims=True)
    flat = hits.normals[solid]
    flat = np.where(np.sum(flat * towards, 1, keepdims=True) < 0, -flat, flat)
    normals = np.where(np.sum(normals * flat, 1, keepdims=True) < 0, -normals, normals)
    right, down, forward = camera.rotation
    lamp = _unit(-0.55 * right - 0.15 * down - 0.55 * forward + np.array([0, 0.95, 0]))
    start = hits.points[solid] + 2e-4 * seen.radius * flat
    pattern = _pattern(solid.shape)
    lit, open_ = _light(scene, start, flat, lamp, pattern[solid], 0.8 * seen.radius)
    lit, open_ = _even(solid, hits.depth, flat, lit, open_, 0.02 * seen.radius)

    albedo = np.broadcast_to(np.asarray(colour, np.float32), (len(mesh.vertices), 3))
    albedo = np.einsum("nk,nkc->nc", hits.barycentric[solid], albedo[mesh.faces[face]])
    key = np.maximum(normals @ lamp, 0)
    fill = np.maximum(normals @ _unit(right - 0.2 * down - 0.6 * forward), 0)
    sky = 0.62 + 0.38 * normals[:, 1]
    edge = (1 - np.clip(np.sum(normals * towards, 1), 0, 1)) ** 4
    light = 0.95 * key * lit + (0.62 * sky + 0.16 * fill) * open_**1.3
    image[solid, :3] = np.clip(albedo * light[:, None] + 0.10 * (edge * open_)[:, None], 0, 1)
    image[solid, 3] = 1

    floor = vertices[:, 1].min()
    if ground and camera.position[1] > floor and forward[1] < -0.05:
        depth = (floor - origins[..., 1]) / np.minimum(directions[..., 1], -1e-9)
        place = origins + depth[..., None] * directions
        away = np.linalg.norm(place - [seen.middle[0], floor, seen.middle[2]], axis=-1) / seen.radius
        floored = ~solid & (directions[..., 1] < -1e-6) & (away < 3)
        up = np.broadcast_to([0.0, 1.0, 0.0], (int(floored.sum()), 3))
        start = place[floored] + [0, 1e-3 * seen.radius, 0]
        lit, open_ = _light(scene, start, up, lamp, pattern[floored], 1.5 * seen.radius)
        lit, open_ = _even(floored, depth, up, lit, open_, np.inf)
        fade = np.clip((3 - away[floored]) / 1.5, 0, 1)
        image[floored, 3] = fade * (1 - (1 - 0.42 * (1 - lit)) * (1 - 0.5 * (1 - open_)))

    rows = image.reshape(size, supersample, size, supersample, 4).mean((1, 3))
    alpha = rows[..., 3:]
    if background == "white":
        return _encode(rows[..., :3] + 1 - alpha)
    if background != "transparent":
        raise InputError(f"background is {background!r}, but must be 'white' or 'transparent'")
    return np.concatenate([_encode(rows[..., :3] / np.maximum(alpha, 1e-6)), np.uint8(np.round(255 * alpha))], -1)


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _encode(linear) -> np.ndarray:
    """Linear light to sRGB bytes."""
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.uint8(np.round(255 * encoded))


def _smooth_normals(mesh, scene, face, barycentric):
    """Normals at hits: the vertices' where the surface is round, the face's at creases."""
    corners = mesh.vertices[mesh.faces] - scene.middle
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    of_vertex = np.zeros((len(mesh.vertices), 3))
    for k in range(3):
        for axis in range(3):
            of_vertex[:, axis] += np.bincount(mesh.faces[:, k], weighted[:, axis], len(mesh.vertices))
    of_vertex /= np.maximum(np.linalg.norm(of_vertex, axis=1, keepdims=True), 1e-30)
    flat = scene.normals[face][:, None]
    corner = of_vertex[mesh.faces[face]]
    corner = np.where(np.sum(corner * flat, -1, keepdims=True) > 0.75, corner, flat)
    normals = np.einsum("nk,nkc->nc", barycentric, corner)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


_TILE = 4  # neighbouring samples look at different parts of lamp and sky; a window of this side sees all of them


def _pattern(shape):
    """Which of the _TILE² directions each sample takes, an ordered dither."""
    rows, columns = np.indices(shape)
    order = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    return order[rows % _TILE, columns % _TILE]


def _light(scene, start, normals, lamp, pattern, reach):
    """Shares of the lamp and of the sky that points see, one ray each: [N], [N] of 0 and 1."""
    k = np.arange(_TILE**2)
    spiral = np.sqrt((k + 0.5) / len(k)), k * np.pi * (3 - np.sqrt(5))
    disc = np.stack([spiral[0] * np.cos(spiral[1]), spiral[0] * np.sin(spiral[1])], -1)
    side = _unit(np.cross(lamp, [0.3, 0.1, 0.9]))
    lamps = lamp + 0.22 * disc @ np.stack([side, np.cross(lamp, side)])
    a = np.where(np.abs(normals[:, :1]) < 0.7, [1.0, 0, 0], [0, 1.0, 0])
    a = np.cross(normals, a)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)
    b = np.cross(normals, a)
    x, y = disc[pattern].T
    sky = x[:, None] * a + y[:, None] * b + np.sqrt(1 - x**2 - y**2)[:, None] * normals  # cosine-weighted
    return ~scene.blocked(start, lamps[pattern]), ~scene.blocked(start, sky, reach)


def _even(mask, depth, normals, lit, open_, near):
    """Means over _TILE² windows of what belongs to the same smooth piece of surface: [N], [N]."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return lit.astype(np.float32), open_.astype(np.float32)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    mask = np.pad(mask[box], _TILE)
    planes = np.zeros((6, *mask.shape), np.float32)  # lit, open, normal, depth
    planes[0][mask], planes[1][mask] = lit, open_
    planes[2:5, mask] = normals.T
    planes[5, mask] = np.pad(depth[box], _TILE)[mask]
    total = np.zeros((3, *mask.shape), np.float32)
    inner = np.s_[_TILE:-_TILE, _TILE:-_TILE]
    here = planes[(slice(None), *inner)]
    for row in range(-_TILE // 2, _TILE // 2):
        for column in range(-_TILE // 2, _TILE // 2):
            there = np.roll(planes, (-row, -column), (1, 2))[(slice(None), *inner)]
            alike = np.einsum("chw,chw->hw", here[2:5], there[2:5]) > 0.85
            alike &= np.abs(here[5] - there[5]) < near
            total[(slice(0, 2), *inner)] += there[:2] * alike
            total[(2, *inner)] += alike
    total = total[:, mask]
    return total[0] / np.maximum(total[2], 1), total[1] / np.maximum(total[2], 1)


def sheet(images, columns: int, labels=None, *, gap: int = 8) -> np.ndarray:
    """Pictures [H, W, 3 or 4] uint8 of one size in rows of `columns`, on white, each with its label below -> [., ., 3]."""
    images = list(images)
    if not images:
        raise InputError("a sheet needs at least one image")
    height, width = images[0].shape[:2]
    font = ImageFont.load_default(max(11, width // 18))
    caption = 0 if labels is None else int(font.size * 1.7)
    rows = -(-len(images) // columns)
    across, down = width + gap, height + caption + gap
    page = Image.new("RGB", (gap + min(columns, len(images)) * across, gap + rows * down), "white")
    pen = ImageDraw.Draw(page)
    for k, image in enumerate(images):
        x, y = gap + k % columns * across, gap + k // columns * down
        picture = Image.fromarray(np.ascontiguousarray(image))
        page.paste(picture, (x, y), picture if picture.mode == "RGBA" else None)
        if labels is not None:
            text = str(labels[k])
            while len(text) > 4 and pen.textlength(text, font) > width:
                text = text[:-2] + "…"
            pen.text((x + width / 2, y + height + caption / 2), text, (70, 70, 75), font, "mm")
    return np.asarray(page)
