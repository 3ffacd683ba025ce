"""Cleaning point clouds: outliers are removed before their shapes are rebuilt, whose surfaces are sampled after it.

(Wu, Duan, Wang, Fan, Guibas: IF-Defense, 2020.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jonet.data import sampling
from jonet.geometry import outliers
from jonet.geometry.mesh import Mesh
from jonet.inference.fitting.observations import ObservedArrays


def without_outliers(given: ObservedArrays, spread: float) -> ObservedArrays:
    """Points, and their normals, without outliers (`outliers.inlier_mask`); spread: inf keeps all."""
    points = [cloud.astype(np.float64, copy=False) for cloud in given.rows]
    keep = [outliers.inlier_mask(cloud, spread) for cloud in points]
    normals = given.normals and [rows[mask] for rows, mask in zip(given.normals, keep, strict=True)]
    return ObservedArrays(points=[cloud[mask] for cloud, mask in zip(points, keep, strict=True)], normals=normals)


def resampled(meshes: Sequence[Mesh], counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """`counts` points, uniform on the surface of each mesh, [count, 3] float64; [0, 3] for a mesh without faces."""
    found = []
    for i, (mesh, count) in enumerate(zip(meshes, counts, strict=True)):
        rng = np.random.default_rng([seed, i])
        found.append(
            sampling.surface(mesh, count, rng, np.float64)[0] if len(mesh.faces) else np.zeros((0, 3), np.float64)
        )
    return found
