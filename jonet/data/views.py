"""Meshes seen: depth views, DeepSDF's visible shell, pictures of anything, sheets and banners of pictures.

Cameras and rays are in `rays.py` (its notation holds here), light in `shading.py`, voxel grids in `voxels.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.spatial import ConvexHull

from jonet.data.meshes import Mesh
from jonet.data.rays import VIEWS, Camera, Hits, Scene, cast
from jonet.data.shading import BLUE, shade
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

CLAY = (0.56, 0.45, 0.35)  # linear light: of what was there before a network,
GREY = (0.34, 0.36, 0.40)  # and of what it was given; what it made is BLUE


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
