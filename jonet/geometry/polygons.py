"""Polygons and strips of mesh files as triangles."""

from __future__ import annotations

from collections.abc import Callable

import manifold3d
import numpy as np

from jonet.errors import MeshError
from jonet.geometry import monotone
from jonet.wording import counted

LARGE = 1000  # corners from which on polygons that are not convex are cut by `monotone`
# manifold3d takes time of the order of the corners squared.  The sum of these squares may be CORNERS_SQUARED plus
# PER_CORNER for each corner of the file: less than a second, and polygons below PER_CORNER corners are never refused.
CORNERS_SQUARED, PER_CORNER = 5 * 10**7, 5000


def large_enough(sizes, corners, note: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """Polygons (as of `triangulate`) without those of fewer than three corners, which have no area.

    note: called with their number, if there are any.
    """
    sizes, corners = np.asarray(sizes, np.int64), np.asarray(corners, np.int64)
    small = sizes < 3
    if not small.any():
        return sizes, corners
    note(f"{counted(int(small.sum()), 'of its faces has', 'of its faces have')} fewer than 3 corners: left out")
    return sizes[~small], corners[np.repeat(~small, sizes)]


def triangulate(vertices, sizes, corners) -> np.ndarray:
    """Polygons to triangles [F, 3]: fans for convex polygons; others are cut inside themselves, by manifold3d, or large
    ones by `monotone` in n log n steps.

    sizes [N]: number of corners of each polygon; corners [sum(sizes)]: their vertices, polygon by polygon.
    Raises MeshError for faces with fewer than 3 corners, for invalid indices, and for polygons that cross themselves
    and have so many corners that their triangulation would take minutes.
    """
    sizes, corners = np.asarray(sizes, np.int64), np.asarray(corners, np.int64)
    if len(sizes) and sizes.min() < 3:
        bad = int(np.argmin(sizes))
        raise MeshError(f"face {bad} has {sizes[bad]} corners; the file is damaged or cut off")
    start = np.cumsum(sizes) - sizes
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        at = int(np.flatnonzero((corners < 0) | (corners >= len(vertices)))[0])
        raise MeshError(
            f"face {int(np.searchsorted(start, at, side='right')) - 1} uses vertex {corners[at]} (counted from 0), but "
            f"there are {len(vertices)}; the file is damaged or cut off"
        )
    triangles, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    left = CORNERS_SQUARED + PER_CORNER * len(corners)
    for size in np.unique(sizes).tolist():  # all polygons of one size at once
        chosen = np.flatnonzero(sizes == size)
        polygons = corners[start[chosen, None] + np.arange(size)]
        fan = np.stack(np.broadcast_arrays(polygons[:, :1], polygons[:, 1:-1], polygons[:, 2:]), -1)
        if size > 3:
            a, b, c = np.moveaxis(vertices[fan], 2, 0)
            normals = np.cross(b - a, c - a)
            normal = normals.sum(1)  # the polygon's; a triangle of the fan that opposes it means a reflex corner
            reflex = np.flatnonzero((np.einsum("ntd,nd->nt", normals, normal) < 0).any(1))
            for row in reflex:
                flat = _flat(vertices[polygons[row]], normal[row])
                found = monotone.triangles(flat) if size >= LARGE else None
                if found is None:
                    left -= size**2
                    if left < 0:
                        raise MeshError(
                            f"face {chosen[row]} has {size} corners and crosses itself; triangulate it in the program "
                            "that wrote the file"
                        )
                    found = np.asarray(manifold3d.triangulate([flat]))
                if found.shape == fan[row].shape:  # else it crosses itself: its fan
                    fan[row] = polygons[row][found]
        triangles.append(fan.reshape(-1, 3))
        owners.append(np.repeat(chosen, size - 2))
    return np.concatenate(triangles)[np.argsort(np.concatenate(owners), kind="stable")]


def _flat(polygon: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The corners of a polygon [n, 3] in its plane, [n, 2], counter-clockwise."""
    basis = np.linalg.svd(normal[None])[2][1:]  # two orthonormal directions in its plane
    basis[1] *= np.sign(np.dot(np.cross(*basis), normal))  # right-handed with the normal: keeps the winding
    return (polygon - polygon[0]) @ basis.T


def strips(corners) -> np.ndarray:
    """Triangle strips [N], separated by -1, to triangles [F, 3] of one winding.

    Triangles with repeated corners, which join the parts of a strip, are left out.
    """
    corners = np.asarray(corners, np.int64)
    if len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    place = np.arange(len(corners))
    first = np.maximum.accumulate(np.where(corners == -1, place + 1, 0))  # of the strip to which a corner belongs
    triangles = np.lib.stride_tricks.sliding_window_view(corners, 3).copy()
    odd = (place - first)[:-2] % 2 == 1  # each triangle of a strip turns the other way round
    triangles[odd] = triangles[odd][:, [0, 2, 1]]
    a, b, c = triangles.T
    return triangles[(triangles != -1).all(1) & (a != b) & (b != c) & (c != a)]
