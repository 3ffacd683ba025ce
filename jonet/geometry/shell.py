"""The visible shell of a mesh: the points that orthographic cameras all around see (DeepSDF, PreprocessMesh)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera, Scene


def visible(mesh: Mesh | Scene, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of a surface that a camera sees, one row per pixel whose ray hits it.

    -> points [N, 3] float32, normals [N, 3] float32 of their faces, flipped towards the camera, and whether they were
    flipped (the back face is visible) [N] bool.  Pass a `Scene` to reuse it for several views of one mesh.
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
    """The visible points of a mesh: points [N, 3], normals [N, 3] towards the camera, both float32.

    statistics: observations (their number), two_sided_observations and two_sided_triangles (fractions that belong to
    triangles seen from both sides, counted as PreprocessMesh does) and rejected (above its bounds of 2 % and 3 %).
    """

    points: np.ndarray
    normals: np.ndarray
    statistics: dict[str, int | float | bool]


def spiral(count: int) -> np.ndarray:
    """Unit directions [count, 3] spread evenly over the sphere: a golden-angle (Fibonacci) spiral from -y to +y."""
    k = np.arange(count)
    y = (2 * k + 1) / count - 1
    angle = (k + 1) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - y**2)
    return np.stack([np.cos(angle) * radius, y, np.sin(angle) * radius], -1)


def shell(mesh: Mesh, views: int = 100, resolution: int = 400) -> Shell:
    """The visible shell of a mesh in the sphere frame (DeepSDF's PreprocessMesh: 100 orthographic views of 400 x 400).

    The cameras are on a spiral (`spiral`) at distance 1.1 from the origin and see ±1.  Hidden inner faces do not
    contribute, and every normal points to the camera that saw it, whatever the winding of the faces.
    """
    scene = Scene(mesh)
    points, normals = [], []
    first = np.zeros(len(mesh.faces), np.int8)  # the side from which each triangle was first seen: 1 front, -1 back
    both = np.zeros(len(mesh.faces), bool)
    wrong = 0
    for back in spiral(views):
        camera = Camera.towards(back, (0, 0, 0), 1.1, resolution / 2, (resolution, resolution), orthographic=True)
        origins, directions = (rays.reshape(-1, 3) for rays in camera.rays())
        hits = scene.cast(origins, directions)
        hit = hits.face >= 0
        seen, inverse, counts = np.unique(hits.face[hit], return_inverse=True, return_counts=True)
        side = np.where(scene.normals[seen] @ camera.rotation[2] > 0, -1, 1).astype(np.int8)
        both[seen] |= first[seen] == -side  # `first` is 0 for triangles not seen before
        first[seen] = np.where(first[seen] == 0, side, first[seen])
        wrong += int(counts[both[seen]].sum())  # as PreprocessMesh: only from the first contradiction on
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
