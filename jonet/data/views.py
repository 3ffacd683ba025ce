"""Meshes seen: depth views, DeepSDF's visible shell, shaded pictures, and sheets of pictures.

Cameras and rays are in `rays.py` (its notation holds here); voxel grids in `voxels.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage
from scipy.spatial import ConvexHull

from jonet.data.meshes import Mesh
from jonet.data.rays import VIEWS, Camera, Hits, Scene, cast
from jonet.data.voxels import blocks
from jonet.errors import InputError, require

__all__ = [
    "BLUE",
    "CLAY",
    "GREY",
    "VIEWS",
    "Camera",
    "Hits",
    "Scene",
    "Shell",
    "balls",
    "banner",
    "cast",
    "picture",
    "shade",
    "sheet",
    "shell",
    "spiral",
    "visible",
]

BLUE = (0.16, 0.38, 0.72)  # linear-light colours: of what a network made,
CLAY = (0.56, 0.45, 0.35)  # of what was there before,
GREY = (0.34, 0.36, 0.40)  # and of what the network was given


def visible(mesh: Mesh | Scene, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of a surface that a camera sees, one row a pixel that meets it.

    -> points [N, 3] float32, normals [N, 3] float32 of their faces, turned towards the camera, and whether they had to
    be turned (the face is wound away from the camera) [N] bool.  Several depth views of one mesh share a `Scene`.
    """
    scene = mesh if isinstance(mesh, Scene) else Scene(mesh)
    origins, directions = (rays.reshape(-1, 3) for rays in camera.rays())
    hits = scene.cast(origins, directions)
    hit = hits.face >= 0
    normals = hits.normals[hit]
    away = np.einsum("nc,nc->n", normals, directions[hit]) > 0
    normals[away] *= -1
    return hits.points[hit].astype(np.float32), normals.astype(np.float32), away


class Shell(NamedTuple):
    """What is visible of a mesh from all around: points [N, 3], normals [N, 3] towards the viewer, both float32.

    statistics: observations (their number), two_sided_observations and two_sided_triangles (shares that belong to
    triangles seen from both sides, as the program counts them) and rejected (above its bounds of 2 % and 3 %).
    """

    points: np.ndarray
    normals: np.ndarray
    statistics: dict[str, int | float | bool]


def spiral(count: int) -> np.ndarray:
    """Directions [count, 3] spread evenly over the sphere along a golden-angle spiral from -y to +y."""
    k = np.arange(count)
    y = (2 * k + 1) / count - 1
    angle = (k + 1) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - y**2)
    return np.stack([np.cos(angle) * radius, y, np.sin(angle) * radius], -1)


def shell(mesh: Mesh, views: int = 100, resolution: int = 400) -> Shell:
    """The visible shell of a mesh in the sphere frame (DeepSDF's PreprocessMesh: 100 orthographic views of 400 x 400).

    The cameras stand on a spiral around the origin at 1.1 and see ±1. Inner walls do not count, and every normal looks
    at the camera that saw it, however the faces are wound.
    """
    scene = Scene(mesh)
    points, normals = [], []
    first = np.zeros(len(mesh.faces), np.int8)  # the side on which a triangle was first seen
    both = np.zeros(len(mesh.faces), bool)
    wrong = 0
    for back in spiral(views):
        camera = Camera.towards(back, (0, 0, 0), 1.1, resolution / 2, (resolution, resolution), orthographic=True)
        origins, directions = (rays.reshape(-1, 3) for rays in camera.rays())
        hits = scene.cast(origins, directions)
        hit = hits.face >= 0
        seen, inverse, counts = np.unique(hits.face[hit], return_inverse=True, return_counts=True)
        side = np.where(scene.normals[seen] @ camera.rotation[2] > 0, -1, 1).astype(np.int8)
        both[seen] |= first[seen] == -side
        first[seen] = np.where(first[seen] == 0, side, first[seen])
        wrong += int(counts[both[seen]].sum())  # from the first contradiction on, as the program counts
        points.append(hits.points[hit].astype(np.float32))
        normals.append((scene.normals[seen] * side[:, None])[inverse].astype(np.float32))
    total = sum(map(len, points))
    observations, triangles = wrong / max(total, 1), float(both.mean())
    statistics = {
        "observations": total,
        "two_sided_observations": observations,
        "two_sided_triangles": triangles,
        "rejected": observations > 0.02 or triangles > 0.03,
    }
    return Shell(np.concatenate(points), np.concatenate(normals), statistics)


def shade(
    mesh: Mesh,
    size: int = 256,
    view: str | tuple[float, float] = "three-quarter",
    supersample: int = 2,
    colour=BLUE,
    *,
    background: str = "white",
    frame: np.ndarray | None = None,
    floor: float | None = None,
    ground: bool = True,
) -> np.ndarray:
    """A picture of a mesh in a photographer's white box: one large lamp, a bright sky, a soft shadow on the ground.

    view: a name in `VIEWS`, or azimuth and elevation in degrees.  colour: linear RGB in [0, 1], of the whole [3] or of
    each vertex [V, 3].  background: "white" or "transparent".  frame: points [N, 3] that the camera
    takes in instead of the mesh, so that pictures become comparable (those of one shape, say, or all in one cube).
    floor: height of the ground, if it is not the lowest point of these.
    -> [size, size, 3] uint8, or [size, size, 4] where the background is transparent (alpha not multiplied in).
    """
    if background not in ("white", "transparent"):
        raise InputError(f"background is {background!r}; it must be 'white' or 'transparent'")
    scene = Scene(mesh)
    frame = mesh.corners.reshape(-1, 3) if frame is None else np.asarray(frame, float)
    camera = Camera.framing(frame, view, (size * supersample,) * 2)
    origins, directions = camera.rays()
    hits = scene.cast(origins, directions)
    right, down, forward = camera.rotation
    lamp = _unit(-0.5 * right - 0.4 * forward + [0, 1.0, 0])
    light_of = np.zeros((*hits.face.shape, 3), np.float32)
    shadow_of = np.zeros(hits.face.shape, np.float32)
    reach = float(np.linalg.norm(np.ptp(frame, axis=0))) / 2

    solid = hits.face >= 0
    face, flat = hits.face[solid], hits.normals[solid]
    viewer = -directions[solid] / np.linalg.norm(directions[solid], axis=1, keepdims=True)
    flat = flat * np.where(np.einsum("nc,nc->n", flat, viewer) < 0, -1, 1)[:, None]  # both sides are shown
    round_ = _round_normals(scene, mesh, face, hits.barycentric[solid])
    round_ *= np.where(np.einsum("nc,nc->n", round_, flat) < 0, -1, 1)[:, None]
    start = hits.points[solid] + 3e-4 * reach * flat
    lit, sky = _light(scene, start, flat, lamp, solid, 0.7 * reach)
    lit, sky = _even(solid, hits.depth, flat, lit, sky, 0.02 * reach)
    albedo = np.broadcast_to(np.asarray(colour, np.float32), mesh.vertices.shape)[mesh.faces[face]]
    albedo = np.einsum("nk,nkc->nc", hits.barycentric[solid], albedo)
    key = np.maximum(round_ @ lamp, 0) * lit
    fill = np.maximum(round_ @ _unit(right - 0.3 * forward), 0) * 0.16
    light = 1.05 * key + (0.26 + 0.10 * round_[:, 1] + fill) * (0.15 + 0.85 * sky)
    gloss = np.maximum(round_ @ _unit(lamp + _unit(-forward)), 0) ** 40 * lit
    edge = (1 - np.clip(np.einsum("nc,nc->n", round_, viewer), 0, 1)) ** 5 * sky
    light_of[solid] = np.clip(albedo * light[:, None] + (0.05 * gloss + 0.12 * edge)[:, None], 0, 1)

    floor = frame[:, 1].min() if floor is None else floor
    if ground and forward[1] < -0.1:
        few = (slice(None, None, 2), slice(None, None, 2))  # a soft shadow needs no fine grid
        depth = (floor - origins[few][..., 1]) / np.minimum(directions[few][..., 1], -1e-9)
        under = ~solid[few] & (depth > 0) & (directions[few][..., 1] < 0)
        start = (origins[few] + depth[..., None] * directions[few])[under] + [0, 1e-3 * reach, 0]
        up = np.broadcast_to(np.float32([0, 1, 0]), start.shape)
        lit, sky = _light(scene, start, up, lamp, under, reach, side=8)
        shadow = np.zeros(under.shape)
        shadow[under] = 0.34 * (1 - lit) + 0.55 * (1 - sky)
        shadow, weight = (
            ndimage.uniform_filter(ndimage.uniform_filter(p, 8), 5) for p in (shadow, under.astype(float))
        )
        shadow = np.repeat(np.repeat(shadow / np.maximum(weight, 1e-3), 2, 0), 2, 1)[: len(solid), : len(solid)]
        rim = np.minimum(np.arange(len(solid)) + 0.5, np.arange(len(solid))[::-1] + 0.5) / (0.14 * len(solid))
        rim = np.clip(rim, 0, 1) ** 2 * (3 - 2 * np.clip(rim, 0, 1))  # fades out before the picture's edge
        shadow_of[~solid] = np.clip((shadow * rim * rim[:, None])[~solid], 0, 1)

    planes = np.concatenate([light_of, shadow_of[..., None], solid[..., None]], -1)
    planes = planes.reshape(size, supersample, size, supersample, 5).mean((1, 3))
    light, shadow, cover = planes[..., :3], planes[..., 3:4], planes[..., 4:]
    if background == "white":
        return _bytes(_encode(light + 1 - cover - shadow))
    veil = 1 - _encode(1 - shadow)  # viewers blend encoded colours, so that black must cover less
    alpha = cover + (1 - cover) * veil
    return _bytes(
        np.concatenate([cover * _encode(light / np.maximum(cover, 1e-6)) / np.maximum(alpha, 1e-6), alpha], -1)
    )


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _encode(linear) -> np.ndarray:
    """Linear light to sRGB."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _bytes(image) -> np.ndarray:
    return np.uint8(np.round(255 * image))


def _round_normals(scene, mesh, face, barycentric):
    """Normals [N, 3] at hits: at each corner, the mean over the faces there that bend by less than 40 degrees."""
    faces, back = np.unique(face, return_inverse=True)
    order = np.argsort(mesh.faces.ravel(), kind="stable")
    starts = np.searchsorted(mesh.faces.ravel()[order], np.arange(len(mesh.vertices) + 1))
    vertex = mesh.faces[faces].ravel()
    counts = starts[vertex + 1] - starts[vertex]
    corner = np.repeat(np.arange(len(vertex)), counts)
    there = order[np.repeat(starts[vertex] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())] // 3
    normals = (
        scene.normals[there]
        * (np.einsum("nc,nc->n", scene.normals[there], scene.normals[faces[corner // 3]]) > 0.77)[:, None]
    )
    normals *= scene.areas[there][:, None]
    summed = np.stack([np.bincount(corner, normals[:, axis], len(vertex)) for axis in range(3)], -1)
    summed /= np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-300)
    normals = np.einsum("nk,nkc->nc", barycentric, summed.reshape(-1, 3, 3)[back])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def _light(scene, start, normals, lamp, mask, reach, side=4):
    """Shares of the lamp and of the sky that points see: [N], [N], each the outcome of one ray, so 0 or 1.

    Neighbours in `mask` look at different parts of both; a window of side x side pixels looks at all of them.
    """
    count = side**2
    k = np.random.default_rng(0).permutation(count).reshape(side, side)
    rows, columns = np.nonzero(mask)
    k = k[rows % side, columns % side]
    radius, angle = np.sqrt((np.arange(count) + 0.5) / count), np.arange(count) * np.pi * (3 - np.sqrt(5))
    disc = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)], -1).astype(np.float32)
    across = _unit(np.cross(lamp, [0.3, 0.1, 0.9]))
    lamps = np.float32(lamp + 0.2 * disc[:, :2] @ np.stack([across, np.cross(lamp, across)]))
    skies = np.einsum("nk,nkc->nc", disc[k], _bases(normals))  # as often as Lambert's law counts them
    lit, sky = ~scene.blocked(start, lamps[k]), ~scene.blocked(start, skies, reach)
    return lit.astype(np.float32), sky.astype(np.float32)


def _bases(normals):
    """Right-handed bases [N, 3, 3] whose third rows are the normals [N, 3] (Duff et al. 2017)."""
    x, y, z = np.asarray(normals, np.float32).T
    sign = np.where(z < 0, np.float32(-1), np.float32(1))
    a = -1 / (sign + z)
    b = x * y * a
    bases = np.stack([1 + sign * x * x * a, sign * b, -sign * x, b, sign + y * y * a, -y, x, y, z], -1)
    return bases.reshape(-1, 3, 3)


def _even(mask, depth, normals, lit, sky, near):
    """Means [N], [N] over windows of 4 x 4 pixels of those that lie on the same smooth piece of surface."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return lit, sky
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    planes = np.zeros((6, *np.pad(mask[box], 2).shape), np.float32)  # lit, sky, normal, depth
    inside = np.pad(mask[box], 2)
    planes[:, inside] = [lit, sky, *normals.T, depth[mask]]
    here = planes[:, 2:-2, 2:-2]
    total = np.zeros((3, *here.shape[1:]), np.float32)
    for row in range(4):
        for column in range(4):
            there = planes[:, row : row + here.shape[1], column : column + here.shape[2]]
            alike = np.einsum("chw,chw->hw", here[2:5], there[2:5]) > 0.85
            alike &= np.abs(here[5] - there[5]) < near
            total[:2] += there[:2] * alike
            total[2] += alike
    lit, sky, count = total[:, mask[box]]
    return lit / np.maximum(count, 1), sky / np.maximum(count, 1)


def sheet(images, columns: int, labels=None, *, gap: int = 8) -> np.ndarray:
    """Pictures [H, W, 3 or 4] uint8 of one size in rows of `columns` on white, labels below them -> [., ., 3] uint8."""
    images = list(images)
    if not images:
        raise InputError("a sheet needs at least one picture, but there are none")
    height, width = images[0].shape[:2]
    font = ImageFont.load_default(max(11, width // 18))
    caption = 0 if labels is None else int(font.size * 1.7)
    columns = min(columns, len(images))
    across, down = width + gap, height + caption + gap
    page = Image.new("RGB", (gap + columns * across, gap + -(-len(images) // columns) * down), "white")
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


def balls(points, radius: float, limit: int = 3000) -> Mesh:
    """Points [N, 3] as a mesh of small balls; of more than `limit` points, every so-manieth."""
    points = require(points, "points", (None, 3), np.float64)
    points = points[:: -(-len(points) // limit)]
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([(0, y, z) for y in (-1, 1) for z in (-golden, golden)])
    corners = np.concatenate([np.roll(corners, axis, 1) for axis in range(3)]) * radius / np.hypot(1, golden)
    hull = ConvexHull(corners)
    a, b, c = np.moveaxis(corners[hull.simplices], 1, 0)
    inwards = np.einsum("fc,fc->f", np.cross(b - a, c - a), a) < 0
    faces = np.where(inwards[:, None], hull.simplices[:, ::-1], hull.simplices)
    starts = np.arange(len(points))[:, None, None] * len(corners)
    return Mesh((points[:, None] + corners).reshape(-1, 3), (starts + faces).reshape(-1, 3))


def picture(thing, size: int = 256, colour=BLUE, frame: np.ndarray | None = None, **options) -> np.ndarray:
    """A picture of anything that a network is given or gives; frame and options are those of `shade`.

    thing: a mesh · points [N, 3] · a grid of bools [R, R, R] in the cube frame · a picture [H, W, 3 or 4] uint8, which
    is only brought to size.
    """
    if isinstance(thing, Mesh):
        return shade(thing, size, colour=colour, frame=frame, **options)
    thing = np.asarray(thing)
    if thing.ndim == 3 and thing.dtype == np.uint8:
        small = ImageOps.contain(Image.fromarray(thing), (size, size), Image.Resampling.LANCZOS)
        page = Image.new("RGBA", (size, size), (255, 255, 255, 0))
        page.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
        return np.asarray(page)
    if thing.ndim == 3 and thing.dtype == bool:
        return picture(blocks(thing), size, colour, frame, **options)
    if thing.ndim == 2 and len(thing):
        extent = np.ptp(thing if frame is None else frame, axis=0).max()
        return picture(balls(thing, 0.011 * extent), size, colour, thing if frame is None else frame, **options)
    raise InputError(
        f"a picture is made of a mesh, points [N, 3], bools [R, R, R] or uint8 [H, W, 3], but an array of "
        f"{thing.dtype} {list(thing.shape)} came"
    )


def banner(rows: dict[str, list], size: int = 256, labels: bool = True) -> np.ndarray:
    """Rows of pictures, each with its label in front: {"truth": meshes, "reconstruction": meshes} -> [., ., 3] uint8.

    The pictures of a column share the camera of the first row's, in clay; the other rows are blue.
    """
    lines = list(rows.values())
    if not lines or not lines[0] or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(f"a banner needs rows of equal length, but got {[len(line) for line in lines]}")
    frames = [getattr(thing, "vertices", thing) for thing in lines[0]]
    pictures = [
        picture(thing, size, CLAY if line is lines[0] else BLUE, frame)[..., :3]
        for line in lines
        for thing, frame in zip(line, frames, strict=True)
    ]
    page = sheet(pictures, len(frames), gap=0)
    if not labels:
        return page
    font = ImageFont.load_default(max(12, size // 14))
    margin = Image.new("RGB", (page.shape[0], int(font.size * 2.2)), "white")
    pen = ImageDraw.Draw(margin)
    for k, label in enumerate(reversed(rows)):
        pen.text(((k + 0.5) * size, margin.height / 2), label, (110, 112, 118), font, "mm")
    return np.concatenate([np.rot90(np.asarray(margin)), page], axis=1)
