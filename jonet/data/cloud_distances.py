"""Signed distances from point clouds: distances to the points and their planes, signs by the winding number.

The generalized winding number of oriented points (Barill, Dickson, Schmidt, Levin, Jacobson 2018) tells inside from
outside also over holes, in noise, and on thin walls, where planes of the nearest points are of both sides.
"""

from __future__ import annotations

import dataclasses

import igl
import numpy as np
from scipy.spatial import KDTree

from jonet.geometry import cloud_normals

AREA_NEIGHBORS = 8  # of which the distance gives the area that a point stands for
PLANES = 12  # nearest points whose planes give a distance
WIDTH, ALIKE = 0.6, 0.5  # weights of planes: by distance, in spacings; by the difference of unit normals
SPREAD = (2.0, 0.7, 0.25)  # standard deviations of samples from the points, in spacings
UNIFORM = 8  # of so many samples near the points there is one anywhere
GAP = 4.0  # places of the surface farther from all points than this, in spacings, are closed holes


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """An oriented point cloud in the normalized frame.

    points, normals [N, 3] float64.  spacing: the median distance to the sixth neighbor, about twice that of the points.
    """

    points: np.ndarray
    normals: np.ndarray
    tree: KDTree
    spacing: float
    areas: np.ndarray

    @staticmethod
    def of(points, normals=None) -> Cloud:
        """points [N, 3], normals [N, 3] or None to estimate them."""
        points = np.asarray(points, np.float64)
        normals = cloud_normals.estimated(points) if normals is None else np.asarray(normals, np.float64)
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        tree = KDTree(points)
        distances, _ = tree.query(points, min(AREA_NEIGHBORS + 1, len(points)))
        spacing = float(np.median(distances[:, min(6, distances.shape[1] - 1)]))
        return Cloud(points, normals, tree, spacing, np.pi * distances[:, -1] ** 2 / AREA_NEIGHBORS)

    def inside(self, points) -> np.ndarray:
        """Whether points [N, 3] are inside, bool [N]: the winding number exceeds 1/2."""
        points = np.asarray(points, np.float64)
        return np.asarray(igl.fast_winding_number(self.points, self.normals, self.areas, points)) > 0.5

    def distances(self, points) -> np.ndarray:
        """Signed distances [N] of points [N, 3], negative inside: near the cloud to planes, far from it to a point."""
        points = np.asarray(points, np.float64)
        distance, nearest = self.tree.query(points, min(PLANES, len(self.points)))
        height = np.einsum("nkc,nkc->nk", points[:, None] - self.points[nearest], self.normals[nearest])
        apart = (distance**2 - distance[:, :1] ** 2) / (2 * (WIDTH * self.spacing) ** 2)
        turned = ((self.normals[nearest] - self.normals[nearest[:, :1]]) ** 2).sum(-1) / ALIKE**2
        weight = np.exp(-apart - turned)
        plane = np.abs((weight * height).sum(1) / weight.sum(1))
        far = np.clip(distance[:, 0] / self.spacing - 1, 0, 1)
        size = (1 - far) * np.minimum(plane, distance[:, 0]) + far * distance[:, 0]
        return np.where(self.inside(points), -size, size).astype(np.float32)

    def samples(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points around the cloud [N, 3] float32 in [-1, 1]³ and their signed distances [N], in random order.

        count: of the samples near the cloud; there is one more for eight of them, anywhere.
        """
        seeds = self.points[rng.integers(0, len(self.points), count)]
        spread = self.spacing * rng.choice(SPREAD, count)[:, None]
        near = np.clip(seeds + spread * rng.standard_normal(seeds.shape), -1, 1)
        points = np.concatenate([near, rng.uniform(-1, 1, (count // UNIFORM, 3))]).astype(np.float32)
        points = rng.permutation(points)
        return points, self.distances(points)

    def closed(self, surface) -> float:
        """The fraction of surface points [N, 3] that are far from all points of the cloud: closed holes."""
        distance, _ = self.tree.query(np.asarray(surface, np.float64))
        return float(np.mean(distance > GAP * self.spacing))
