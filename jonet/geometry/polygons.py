"""Polygons and strips of mesh files as triangles."""

from __future__ import annotations

import manifold3d
import numpy as np

from jonet.errors import MeshError

# Polygons that are not convex take time of the order of their corners squared.  The sum of these squares may be
# CORNERS_SQUARED plus PER_CORNER for each corner of the file: less than a second, and polygons below PER_CORNER corners
# are never refused.
CORNERS_SQUARED, PER_CORNER = 5 * 10**7, 5000


def triangulate(vertices, sizes, corners) -> np.ndarray:
    """Polygons to triangles [F, 3]: fans for convex polygons, manifold3d's triangulation for others.

    sizes [N]: number of corners of each polygon; corners [sum(sizes)]: their vertices, polygon by polygon.
    Raises MeshError for faces with fewer than 3 corners, for invalid indices, and for polygons that are not convex and
    have so many corners that their triangulation would take minutes.
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
            left -= size**2 * len(reflex)
            if left < 0:
                raise MeshError(
                    f"face {chosen[reflex[0]]} has {size} corners and is not convex; triangulate it in the program "
                    "that wrote the file"
                )
            for row in reflex:
                fan[row] = _nonconvex(vertices, polygons[row], normal[row], fan[row])
        triangles.append(fan.reshape(-1, 3))
        owners.append(np.repeat(chosen, size - 2))
    return np.concatenate(triangles)[np.argsort(np.concatenate(owners), kind="stable")]


def _nonconvex(vertices, polygon, normal, fan):
    """Triangles [n - 2, 3] of a polygon [n] that is not convex; its fan if it intersects itself."""
    basis = np.linalg.svd(normal[None])[2][1:]  # two orthonormal directions in its plane
    basis[1] *= np.sign(np.dot(np.cross(*basis), normal))  # right-handed with the normal: keeps the winding
    triangles = np.asarray(manifold3d.triangulate([(vertices[polygon] - vertices[polygon[0]]) @ basis.T]))
    return polygon[triangles] if triangles.shape == fan.shape else fan


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
