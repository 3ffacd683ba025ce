"""Images of network inputs and outputs (meshes, point clouds, voxels, images), and contact sheets of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.spatial import ConvexHull

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry.mesh import Mesh
from jonet.geometry.voxels import blocks
from jonet.rendering.shading import BLUE, shade

CLAY = (0.56, 0.45, 0.35)  # linear RGB: ground truth
GRAY = (0.34, 0.36, 0.40)  # linear RGB: network inputs; predictions are BLUE


def sheet(images, columns: int, labels=None, *, gap: int = 8) -> np.ndarray:
    """A contact sheet of images [H, W, 3 or 4] uint8 of one size, `columns` per row on white, with labels below them
    -> [., ., 3] uint8.  gap: pixels between images."""
    images = list(images)
    if not images:
        raise InputError("a sheet needs at least one image, but there are none")
    height, width = images[0].shape[:2]
    font = ImageFont.load_default(letter := max(11, width // 18))
    caption = 0 if labels is None else int(letter * 1.7)
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
            while len(text) > 4 and pen.textlength(text, font) > width:  # truncate until it fits
                text = text[:-2] + "…"
            pen.text((x + width / 2, y + height + caption / 2), text, (70, 70, 75), font, "mm")
    return np.asarray(page)


def balls(points, radius: float, limit: int = 3000) -> Mesh:
    """Points [N, 3] as a mesh of small balls (icosahedra); more than `limit` points are subsampled at equal steps."""
    points = check_array(points, "points", (None, 3), np.float64)
    points = points[:: -(-len(points) // limit)]
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([(0, y, z) for y in (-1, 1) for z in (-golden, golden)])
    corners = np.concatenate([np.roll(corners, axis, 1) for axis in range(3)]) * radius / np.hypot(1, golden)
    hull = ConvexHull(corners)
    a, b, c = np.moveaxis(corners[hull.simplices], 1, 0)
    inwards = np.einsum("fc,fc->f", np.cross(b - a, c - a), a) < 0  # ConvexHull does not orient its faces
    faces = np.where(inwards[:, None], hull.simplices[:, ::-1], hull.simplices)
    starts = np.arange(len(points))[:, None, None] * len(corners)
    return Mesh((points[:, None] + corners).reshape(-1, 3), (starts + faces).reshape(-1, 3))


def picture(thing, size: int = 256, color=BLUE, frame: np.ndarray | None = None, **options) -> np.ndarray:
    """An image of a network's input or output; frame and options as of `shade`.

    thing: a mesh · points [N, 3] · a voxel grid [R, R, R] bool in the cube frame · an image [H, W, 3 or 4] uint8, which
    is only resized.
    """
    if isinstance(thing, Mesh):
        return shade(thing, size, color=color, frame=frame, **options)
    thing = np.asarray(thing)
    if thing.ndim == 3 and thing.dtype == np.uint8:
        small = ImageOps.contain(Image.fromarray(thing), (size, size), Image.Resampling.LANCZOS)
        page = Image.new("RGBA", (size, size), (255, 255, 255, 0))
        page.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
        return np.asarray(page)
    if thing.ndim == 3 and thing.dtype == bool:
        return picture(blocks(thing), size, color, frame, **options)
    if thing.ndim == 2 and len(thing):
        extent = np.ptp(thing if frame is None else frame, axis=0).max()
        return picture(balls(thing, 0.011 * extent), size, color, thing if frame is None else frame, **options)
    raise InputError(
        f"only a mesh, points [N, 3], voxels [R, R, R] bool or an image [H, W, 3] uint8 can be drawn, but this is an "
        f"array of {thing.dtype} {list(thing.shape)}"
    )


def banner(rows: dict[str, list], size: int = 256, labels: bool = True) -> np.ndarray:
    """Labeled rows of images: {"ground truth": meshes, "reconstruction": meshes} -> [., ., 3] uint8.

    All images of a column use the camera that frames the first row's shape.  The first row is clay, the others blue.
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
    font = ImageFont.load_default(letter := max(12, size // 14))
    margin = Image.new("RGB", (page.shape[0], int(letter * 2.2)), "white")
    pen = ImageDraw.Draw(margin)
    for k, label in enumerate(reversed(rows)):
        pen.text(((k + 0.5) * size, margin.height / 2), label, (110, 112, 118), font, "mm")
    return np.concatenate([np.rot90(np.asarray(margin)), page], axis=1)
