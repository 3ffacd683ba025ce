"""Closed solids from few parameters: limbs, plates, lathe-turned and swept parts, joined by manifold3d.

Nearly everything is a loft: a sequence of rings, neighbors connected by faces, both ends capped.  +y is up, +z is the
front.  Notation: `K` rings or stations along a path, `n` points around a ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from manifold3d import CrossSection, Manifold, Mesh64, OpType
from numpy.typing import ArrayLike

UP, FRONT, RIGHT = np.eye(3)[[1, 2, 0]]


# Rings and paths


def outline(width: float, height: float, roundness: float = 1.0, points: int = 12, edge: int = 0) -> np.ndarray:
    """A rectangle whose corners are rounded into an ellipse as roundness goes from 0 to 1: [points + 2 edge, 2].

    Counter-clockwise around (0, 0).  points: total number on the four corners, a multiple of 4.  edge: number of extra
    points along the top and along the bottom.
    """
    quarter = points // 4
    angles = (np.arange(points).reshape(4, quarter) + 0.5) * (np.pi / 2 / quarter)
    centers = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (1 - roundness)
    corners = centers[:, None] + roundness * np.stack([np.cos(angles), np.sin(angles)], -1)
    if edge:
        steps = np.linspace(0, 1, edge + 2)[1:-1, None]
        top, bottom = ((1 - steps) * corners[i, -1] + steps * corners[i + 1, 0] for i in (0, 2))
        corners = [corners[0], top, corners[1], corners[2], bottom, corners[3]]
    return np.concatenate(list(corners)) * [width / 2, height / 2]


def curve(points: Sequence, count: int = 9) -> np.ndarray:
    """A smooth path [count, 3] through the given points (Catmull-Rom)."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    at = np.linspace(0, len(p) - 3, count)
    i = np.minimum(at.astype(int), len(p) - 4)
    t = (at - i)[:, None]
    a, b, c, d = (p[i + k] for k in range(4))
    return b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def rounded(points: Sequence, radius: float, steps: int = 4) -> np.ndarray:
    """The polyline through the given points, each corner replaced by a parabola that starts `radius` before it.

    points [K, 2] or [K, 3] → as many columns, (K - 2) · steps + 2 rows.
    """
    p = np.asarray(points, float)
    t = np.linspace(0, 1, steps)[:, None]
    path = [p[:1]]
    for a, b, c in zip(p[:-2], p[1:-1], p[2:], strict=True):
        back, on = a - b, c - b
        start = b + back * min(0.5, radius / np.linalg.norm(back))
        end = b + on * min(0.5, radius / np.linalg.norm(on))
        path.append((1 - t) ** 2 * start + 2 * t * (1 - t) * b + t**2 * end)
    return np.concatenate([*path, p[-1:]])


# Solids


def loft(rings: np.ndarray) -> Manifold:
    """The solid between consecutive rings, rings [K, n, 3], counter-clockwise when seen from the last ring.

    Both ends are capped by fans around their centers, so they must be star-shaped.
    """
    rings = np.asarray(rings, float)
    rows, n = rings.shape[:2]
    here = np.arange(rows * n).reshape(rows, n)
    there = np.roll(here, -1, axis=1)
    a, b, c, d = here[:-1].ravel(), there[:-1].ravel(), here[1:].ravel(), there[1:].ravel()
    first, last = np.full(n, rows * n), np.full(n, rows * n + 1)
    faces = np.concatenate(
        [
            np.stack([a, b, d], -1),
            np.stack([a, d, c], -1),
            np.stack([there[0], here[0], first], -1),
            np.stack([here[-1], there[-1], last], -1),
        ]
    )
    vertices = np.concatenate([rings.reshape(-1, 3), rings[[0, -1]].mean(1)])
    return Manifold(Mesh64(vertices, faces.astype(np.uint64)))


def sweep(path, width, height=None, roundness=1.0, *, up=UP, cut=None, bow=0.0, points=12, edge=0):
    """A rounded cross-section swept along a path [K, 3].

    width, height: of the section, one number or one per station [K]; height is along `up`, width across.
    cut: the normal of all sections; by default the direction of the path.  bow: height by which both sides bend up.
    """
    path = np.asarray(path, float)
    width = np.broadcast_to(width, len(path))
    height = width if height is None else np.broadcast_to(height, len(path))
    along = np.gradient(path, axis=0) if cut is None else np.broadcast_to(cut, path.shape)
    along = along / np.linalg.norm(along, axis=-1, keepdims=True)
    side = np.cross(up, along)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    lift = np.cross(along, side)
    unit = outline(2, 2, roundness, points, edge)
    x, y = unit[:, :1] * width / 2, unit[:, 1:] * height / 2 + bow * unit[:, :1] ** 2
    return loft(path[:, None] + x.T[..., None] * side[:, None] + y.T[..., None] * lift[:, None])


def limb(start, end, *radii: float, roundness: float = 1.0, points: int = 12) -> Manifold:
    """A straight leg, rail or spindle with the given radii at equal steps; steep ones have horizontal ends."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    each = np.array(radii if len(radii) > 1 else radii * 2)
    steep = abs(end - start)[1] > np.linalg.norm((end - start)[[0, 2]])
    cut = UP * np.sign(end[1] - start[1]) if steep else None
    path = np.linspace(start, end, len(each))
    return sweep(path, 2 * each, roundness=roundness, up=FRONT if steep else UP, cut=cut, points=points)


def plate(shape: np.ndarray, low: float, high: float, bevel=0.0, under=None, dome=0.0) -> Manifold:
    """A slab with the plan shape [n, 2] of (x, z), between two heights.

    bevel, under: width of the rounding along the upper and lower edge.  dome: height of the bulge above `high`.
    """
    under = bevel if under is None else under
    half = np.abs(shape).max(0)
    turn = np.linspace(0, np.pi / 2, 4 if max(bevel, under) > 0.01 else 2)
    inset = np.concatenate([under * (1 - np.sin(turn)), bevel * (1 - np.cos(turn))])
    level = np.concatenate([low + under * (1 - np.cos(turn)), high - bevel * (1 - np.sin(turn))])
    scale = 1 - inset[:, None] / half
    if dome:
        scale = np.concatenate([scale, scale[-1:] * 0.8, scale[-1:] * 0.45])
        level = np.concatenate([level, [high + 0.6 * dome, high + dome]])
    flat = shape[::-1] * scale[:, None]  # reversed: (x, z) seen from above is clockwise
    return loft(np.stack([flat[..., 0], np.repeat(level[:, None], len(shape), 1), flat[..., 1]], -1))


def turned(radii: ArrayLike, heights: ArrayLike, points: int = 16, at=(0.0, 0.0)) -> Manifold:
    """A solid of revolution around the vertical axis through at (x, z); radii at heights, from bottom to top."""
    ring = outline(2, 2, points=points)[::-1]
    flat = ring * np.asarray(radii)[:, None, None] + at
    return loft(np.stack([flat[..., 0], np.repeat(np.asarray(heights)[:, None], points, 1), flat[..., 1]], -1))


def revolved(section: Sequence, points: int = 24) -> Manifold:
    """A closed section [n, 2] of (radius, height) revolved about the y axis: hollow solids such as shades and bowls."""
    return CrossSection([np.asarray(section, float)]).revolve(points).rotate((-90, 0, 0))


# Arrangements


def pair(solid: Manifold) -> list[Manifold]:
    """The solid and its mirror image on the other side of x = 0."""
    return [solid, solid.mirror((1, 0, 0))]


def around(solid: Manifold, count: int, start: float = 0.0) -> list[Manifold]:
    """`count` copies rotated about the y axis at equal angles, the first by `start` degrees."""
    return [solid.rotate((0, start + 360 * i / count, 0)) for i in range(count)]


def union(parts: Iterable[Manifold]) -> Manifold:
    return Manifold.batch_boolean(list(parts), OpType.Add)
