"""Figures of a report: images as data URIs, packed meshes, error colors, sign slices, charts, maps of codes."""

from __future__ import annotations

import base64
import io
import json
import math
from html import escape
from typing import NamedTuple

import fast_simplification
import numpy as np
from PIL import Image, ImageDraw

from jonet.evaluation.measures import number
from jonet.evaluation.metrics import bounding, to_surface
from jonet.geometry.mesh import Mesh
from jonet.rendering.shading import decode
from jonet.rendering.sheets import balls, picture

ERROR_SCALE = 0.02  # end of the color scale of errors, as a fraction of the ground truth's longest side
RED, BLUE = (0.60, 0.04, 0.04), (0.05, 0.16, 0.50)  # linear RGB: labeled points inside and outside
# Pale at 0, so that shading stays visible where all is well; lightness falls evenly.  ColorBrewer's YlOrRd, the last
# color of Purples: what is red is near the 95 % deviation, what is violet near the largest.
_DEVIATION_COLORS = {0: "#ffffcc", 0.25: "#fed976", 0.5: "#fd8d3c", 0.75: "#e31a1c", 1: "#3f007d"}
_ERROR_COLORS = np.array([[0.40, 0.47, 0.54], [1.00, 0.52, 0.04], [0.60, 0.00, 0.09]])  # at 0, half and the end


def data_uri(image: np.ndarray, quality: int = 86) -> str:
    """An image [H, W, 3 or 4] uint8 as a WebP data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


# Meshes for the viewer


class Frame(NamedTuple):
    """A ball that contains all parts of a row: packed coordinates are relative to its middle and radius."""

    middle: np.ndarray
    radius: float

    @classmethod
    def around(cls, *points) -> Frame:
        points = np.concatenate(points)
        low, high = points.min(0), points.max(0)
        return cls((low + high) / 2, float(np.linalg.norm(high - low)) / 2 or 1.0)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with equal vertices merged, and reduced to about `faces` faces (quadric edge collapse)."""
    vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    triangles = index.reshape(-1)[mesh.faces]
    triangles = triangles[(triangles != np.roll(triangles, 1, 1)).all(1)]
    if len(triangles) > faces:
        size = np.abs(vertices).max() or 1.0  # the library works in float32, so scale to about 1 first
        points, triangles = (vertices / size).astype(np.float32), triangles.astype(np.int32)
        # its stub asks for float64, but the function takes float32 as well
        vertices, triangles, *_ = fast_simplification.simplify(points, triangles, target_count=faces)  # pyright: ignore[reportArgumentType]
        vertices = vertices * size
    return Mesh(vertices, triangles, name=mesh.name)


def subdivide(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with its large faces bisected at their longest edges, up to `faces`, for colors per vertex."""
    edge = max(0.03 * np.ptp(mesh.bounds, axis=0).max(), 2 * math.sqrt(mesh.area / faces))
    corners = mesh.corners
    while len(corners) < faces:
        lengths = np.linalg.norm(corners - np.roll(corners, -1, 1), axis=2)
        longest = lengths.max(1)
        large = np.argsort(-longest, kind="stable")[: min(int((longest > edge).sum()), faces - len(corners))]
        if not len(large):
            break
        first = lengths[large].argmax(1)
        a, b, c = (corners[large, (first + k) % 3] for k in range(3))
        middle = (a + b) / 2
        halves = [np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)]
        corners = np.concatenate([np.delete(corners, large, 0), *halves])
    return simplify(
        Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), name=mesh.name), len(corners)
    )


def pack(mesh: Mesh, frame: Frame, values=None) -> dict:
    """A mesh (or points, as a mesh without faces) for the page, in base64: 16-bit coordinates, 8-bit values.

    values [V]: one per vertex, clipped to [0, 1].
    """
    scaled = np.clip((mesh.vertices - frame.middle) / frame.radius, -1, 1)
    packed = {"v": _base64(np.round((scaled + 1) * 32767.5), "<u2")}
    if len(mesh.faces):
        wide = len(mesh.vertices) > 65536
        packed |= {"f": _base64(mesh.faces, "<u4" if wide else "<u2"), "wide": wide}
    if values is not None:
        packed["e"] = _base64(np.round(255 * np.clip(values, 0, 1)), "u1")
    return packed


def _base64(array, dtype):
    return base64.b64encode(np.ascontiguousarray(array).astype(dtype).tobytes()).decode()


# Errors


def errors(mesh: Mesh, ground_truth: Mesh) -> np.ndarray:
    """Distance [V] of each vertex from the ground truth, in units of ERROR_SCALE times the latter's longest side."""
    return to_surface(mesh.vertices, ground_truth) / (ERROR_SCALE * np.ptp(ground_truth.bounds, axis=0).max())


def differences(mesh: Mesh, ground_truth: Mesh) -> tuple[Mesh, np.ndarray]:
    """Both surfaces as one mesh, with linear RGB colors [V, 3] by the distance of each from the other.

    Red is a part that is missing in the prediction or in the ground truth.
    """
    mesh, ground_truth = subdivide(mesh, 20_000), subdivide(ground_truth, 20_000)
    vertices = np.concatenate([mesh.vertices, ground_truth.vertices])
    faces = np.concatenate([mesh.faces, ground_truth.faces + len(mesh.vertices)])
    return Mesh(vertices, faces), error_colors(np.concatenate([errors(mesh, ground_truth), errors(ground_truth, mesh)]))


def error_colors(values) -> np.ndarray:
    """Errors [V] in units of the scale → linear RGB [V, 3]: gray at 0, amber at 1/2, red from 1."""
    return np.stack([np.interp(values, [0, 0.5, 1], channel) for channel in _ERROR_COLORS.T], -1)


def deviations(mesh: Mesh, ground_truth: Mesh, most: float, largest: float) -> tuple[Mesh, np.ndarray]:
    """A mesh in faces small enough for colors per vertex, and its colors [V, 3] by the distance from the ground truth.

    As of the scores, the distance is to the part of the ground truth that bounds its solid.  most, largest: the 95 %
    and the largest deviation, in units of the meshes.
    """
    mesh = subdivide(mesh, 20_000)
    return mesh, deviation_colors(to_surface(mesh.vertices, bounding(ground_truth)), most, largest)


def deviation_colors(values, most: float, largest: float) -> np.ndarray:
    """Deviations [V] → linear RGB [V, 3]: from pale at 0 to red at `most`, from there to violet at `largest`."""
    places = np.interp(values, [0, most, largest], [0, 0.75, 1])
    colors = np.array([list(bytes.fromhex(color[1:])) for color in _DEVIATION_COLORS.values()]) / 255
    return decode(np.stack([np.interp(places, list(_DEVIATION_COLORS), channel) for channel in colors.T], -1))


def deviation_legend(most: float, largest: float) -> str:
    """The color scale of `deviation_colors` as HTML; its numbers may be in other units than the meshes."""
    colors = ",".join(_DEVIATION_COLORS.values())
    return (
        f'<span class="scale"><i style="background:linear-gradient(90deg,{colors})"></i>'
        f"<small>0</small><small>95 %: {number(most)}</small><small>{number(largest)}</small></span>"
    )


# Sign slices


ACROSS_UP = ((2, 1), (0, 2), (0, 1))  # by the axis across a plane: the axes to the right and upwards in its picture


class Plane(NamedTuple):
    """An axis-parallel plane through a box [2, 3]."""

    box: np.ndarray
    axis: int
    place: float

    def values(self, signed, count: int) -> np.ndarray:
        """A function of points [N, 3] → [N] at a grid of the plane [count, count], rows from top to bottom."""
        across, up = ACROSS_UP[self.axis]
        low, side = self.box[0], self.box[1] - self.box[0]
        step = (np.arange(count) + 0.5) / count
        points = np.empty((count, count, 3))
        points[..., self.axis] = self.place
        points[..., across] = low[across] + step * side[across]
        points[..., up] = (self.box[1, up] - step * side[up])[:, None]
        return np.asarray(signed(points.reshape(-1, 3))).reshape(count, count)

    def pixels(self, points: np.ndarray, count: int) -> np.ndarray:
        """Columns and rows [N, 2] of points [N, 3] in a picture [count, count] of the plane, as fractions of pixels."""
        across, up = ACROSS_UP[self.axis]
        fraction = (points - self.box[0]) / (self.box[1] - self.box[0])
        return count * np.stack([fraction[:, across], 1 - fraction[:, up]], -1)


def best_plane(signed, box) -> Plane:
    """Of several axis-parallel planes near the middle of a box [2, 3], the one with the largest inside area.

    signed: points [N, 3] → [N], negative (or, for bools, True) inside.
    """
    box = np.asarray(box, float)

    def inside(plane: Plane) -> int:
        values = plane.values(signed, 24)
        return int((values if values.dtype == bool else values < 0).sum())

    places = [(axis, box[0, axis] + s * np.ptp(box[:, axis])) for axis in range(3) for s in (0.35, 0.42, 0.5, 0.58)]
    return max((Plane(box, *place) for place in places), key=inside)


def section(signed, box, resolution: int = 160) -> np.ndarray:
    """A slice [R, R] of a field through the box [2, 3], rows from top to bottom, on its `best_plane`."""
    return best_plane(signed, box).values(signed, resolution)


def slice_picture(values: np.ndarray) -> np.ndarray:
    """Values [R, R] (negative inside; or bools, True inside) → [R, R, 3] uint8: warm inside, cool outside, an edge."""
    values = np.asarray(values)
    inside = values if values.dtype == bool else values < 0
    away = np.zeros(values.shape) if values.dtype == bool else np.abs(values) / (np.abs(values).max() or 1.0)
    away = (np.floor(away * 8) / 8)[..., None]  # steps, so that equal distances show as bands
    warm, cool = np.array([247, 176, 92]) - away * [30, 50, 60], np.array([226, 235, 243]) - away * [96, 72, 48]
    picture = np.where(inside[..., None], warm, cool)
    edge = np.zeros(inside.shape, bool)
    for axis in (0, 1):
        edge |= (inside != np.roll(inside, 1, axis)) | (inside != np.roll(inside, -1, axis))
    edge[[0, -1]] = edge[:, [0, -1]] = False
    return np.where(edge[..., None] & inside[..., None], [110, 52, 10], picture).astype(np.uint8)


def labeled_points(points: np.ndarray, inside: np.ndarray, size: int = 288, limit: int = 2000) -> np.ndarray:
    """Points [N, 3] with labels [N] bool as a picture [size, size, 4] uint8: red inside, blue outside.

    Outside points in the half that faces the viewer are left out, so that those inside are seen; of each kind at most
    `limit` points are drawn.
    """
    middle = points.mean(axis=0)
    behind = points[~inside & (points[:, 2] < middle[2])]  # the camera looks along -z
    extent = np.ptp(points, axis=0).max()
    parts = [
        (balls(some, radius * extent, limit), color)
        for some, radius, color in ((points[inside], 0.011, RED), (behind, 0.006, BLUE))
        if len(some)
    ]
    starts = np.cumsum([0, *(len(part.vertices) for part, _ in parts)])
    vertices = np.concatenate([part.vertices for part, _ in parts])
    faces = np.concatenate([part.faces + start for (part, _), start in zip(parts, starts, strict=False)])
    colors = np.concatenate([np.tile(color, (len(part.vertices), 1)) for part, color in parts])
    return picture(Mesh(vertices, faces), size, colors, points, background="transparent", ground=False)


def boundary_picture(
    signed, box, points: np.ndarray, inside: np.ndarray, size: int = 288, near: float = 0.02
) -> np.ndarray:
    """A slice of a learned field with its boundary as a line, and labeled points near the slice, [size, size, 3] uint8.

    signed: points [N, 3] → [N], negative inside.  points [N, 3], inside [N] bool: red inside and blue outside, those
    closer to the slice than `near` longest sides of the box [2, 3].
    """
    plane, scale = best_plane(signed, box), 2
    count = scale * size
    page = Image.fromarray(slice_picture(plane.values(signed, count)))
    pen = ImageDraw.Draw(page)
    close = np.abs(points[:, plane.axis] - plane.place) < near * np.ptp(plane.box, axis=0).max()
    some, labels = points[close][:400], inside[close][:400]
    for (x, y), label in zip(plane.pixels(some, count), labels, strict=True):
        pen.circle((x, y), 2.5 * scale, fill=(196, 30, 30) if label else (38, 92, 190), outline="white")
    return np.asarray(page.resize((size, size), Image.Resampling.LANCZOS))


# Charts


def chart(lines: dict, x_name: str, log: bool) -> str:
    """Lines {name: (x [N], y [N])} as a figure of any width; the page's script shows the values at the mouse."""
    drawn = {name: _thin(np.asarray(x, float), np.asarray(y, float), log) for name, (x, y) in lines.items()}
    drawn = {name: line for name, line in drawn.items() if len(line[0])}
    if not drawn:
        return ""
    xs, ys = (np.concatenate([line[k] for line in drawn.values()]) for k in (0, 1))
    left, right = xs.min(), xs.max() if xs.max() > xs.min() else xs.min() + 1
    y_ticks = _log_ticks(ys.min(), ys.max()) if log else _ticks(ys.min(), ys.max())
    low, high = min(ys.min(), y_ticks[0]), max(ys.max(), y_ticks[-1])

    def across(x):
        return (np.asarray(x) - left) / (right - left)

    def up(y):
        return np.log(np.asarray(y) / low) / np.log(high / low) if log else (np.asarray(y) - low) / (high - low)

    paths, data = [], []
    for k, (name, (x, y)) in enumerate(drawn.items()):
        spots = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(1000 * across(x), 1000 - 1000 * up(y), strict=True))
        paths.append(f'<polyline class="line line-{k % 6}" points="{spots}"/>')
        data.append({"name": name, "x": across(x).round(4), "y": up(y).round(4), "at": x, "value": y})
    grid = "".join(f'<i style="bottom:{100 * up(t):.2f}%"><b>{_tick(t)}</b></i>' for t in y_ticks)
    feet = "".join(
        f'<em style="left:{100 * across(t):.2f}%">{_tick(t)}</em>' for t in _ticks(left, right) if left <= t <= right
    )
    keys = "".join(f'<li class="key-{k % 6}">{escape(name)}</li>' for k, name in enumerate(drawn))
    last = ", ".join(f"{name} ends at {number(float(y[-1]))}" for name, (_, y) in drawn.items())
    values = json.dumps(data, default=lambda array: [float(f"{v:.5g}") for v in array])
    return (
        f'<div class="chart"><ul class="keys">{keys}</ul><div class="plot" tabindex="0" role="img" '
        f'aria-label="{escape(last)}; arrow keys read values" data-x="{escape(x_name)}" '
        f'data-lines="{escape(values)}">{grid}<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(paths)}</svg>{feet}</div><p class="axis">{escape(x_name)}</p></div>'
    )


def _thin(x, y, log, limit=320):
    """At most `limit` points, each the mean of a run of points, without those that cannot be drawn."""
    good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    x, y = x[good], y[good]
    if len(x) <= limit:
        return x, y
    starts = np.linspace(0, len(x), limit + 1).astype(int)[:-1]
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _ticks(low, high, count=5):
    if not high > low:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= count)
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _tick(value):
    return f"{value:,.10g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else number(value)


def _log_ticks(low, high):
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    ticks = [m * 10.0**d for d in decades for m in marks]
    first = max((k for k, t in enumerate(ticks) if t <= low), default=0)
    last = min((k for k, t in enumerate(ticks) if t >= high), default=len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]


# Maps of codes


def plane(codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes [N, L] projected on their two principal axes → [N, 2], and the fraction of the variance that these have."""
    centered = np.asarray(codes, float) - np.mean(codes, 0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    spots = np.zeros((len(u), 2))
    spots[:, : len(s)] = (u * s)[:, :2]
    return spots, float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-30))


def scatter(points, names, groups, images, tile: float = 0.075, shape: float = 0.68) -> str:
    """A map of points [N, 2], with images [.., .., 3 or 4] uint8 (or None) where they do not overlap, else with dots.

    tile: width of an image as a fraction of the map's.  shape: height of the map over its width.
    """
    points = np.asarray(points, float)
    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-12)
    margin = 0.6 * tile * np.array([1, 1 / shape])
    spots = margin + (points - low) / span * (1 - 2 * margin)
    spots[:, 1] = 1 - spots[:, 1]
    kinds = list(dict.fromkeys(groups))
    placed: list[np.ndarray] = []
    dots, tiles = [], []
    # small groups are placed first, so that they get images
    order = sorted(range(len(points)), key=lambda k: sum(g == groups[k] for g in groups))
    for k in order:
        style = f"left:{100 * spots[k, 0]:.2f}%;top:{100 * spots[k, 1]:.2f}%"
        label = escape(f"{names[k]} ({groups[k]})")
        free = all((np.abs((spots[k] - other) * [1, shape]) > 0.85 * tile).any() for other in placed)
        kind = kinds.index(groups[k]) % 6
        if images is not None and images[k] is not None and free:
            placed.append(spots[k])
            tiles.append(
                f'<img class="key-{kind}" style="{style}" src="{data_uri(images[k])}" alt="{label}" title="{label}">'
            )
        else:
            dots.append(f'<i class="key-{kind}" style="{style}" title="{label}"></i>')
    keys = "".join(f'<li class="key-{k % 6}">{escape(kind)}</li>' for k, kind in enumerate(kinds))
    return (
        f'<ul class="keys">{keys}</ul><div class="map" style="aspect-ratio:{1 / shape:.3f};--tile:{100 * tile:.1f}%">'
        f"{''.join(dots + tiles)}</div>"
    )
