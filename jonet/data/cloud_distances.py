"""Signed distances from point clouds: to spheres through the points, with signs by the winding number.

Near the cloud the surface is a sphere, fitted to the nearest points and normals around each place (Guennebaud, Gross
2007, "Algebraic point set surfaces", section 4.4), over a width that suits the cloud's noise.  The generalized winding
number of oriented points (Barill, Dickson, Schmidt, Levin, Jacobson 2018) tells inside from outside also over holes,
in noise, and on thin walls, where the nearest points are of both sides.
"""

from __future__ import annotations

import dataclasses

import igl
import numpy as np
from scipy.spatial import KDTree

from jonet.geometry import cloud_normals

AREA_NEIGHBORS = 8  # of which the distance gives the area that a point stands for
WIDTHS = {0.45: 10, 0.8: 20, 1.1: 30, 1.5: 45}  # of weights by distance, in spacings → nearest points that count
ALIKE = 0.5  # width of weights by the difference of unit normals, so that a sphere is of one side of an edge
ASIDE = 0.4, 0.2  # spacings, and widths, that a place may be beside the points around it and still be at their surface
STRAY = 0.8  # points farther than this off the surface of those around them, in spacings, are left out
SPARSE = 1.5  # times the median spacing from which on a part of a cloud has its own
PROBES = 2048  # points that choose the width
PIECE = 1 << 15  # places that are computed at once
SPREAD = (2.0, 0.7, 0.25)  # standard deviations of samples from the points, in spacings
TILES = 32  # a unit of length, by which places are sorted
UNIFORM = 8  # of so many samples near the points there is one anywhere
GAP = 4.0  # places of the surface farther from all points than this, in spacings, are closed holes


def distinct(points: np.ndarray) -> np.ndarray:
    """The indices, ascending, of the first of equal points [N, 3]: neighbors should say something new."""
    order = np.lexsort(points.T)  # equal ones stay in order
    new = np.append(True, (points[order[1:]] != points[order[:-1]]).any(1))[: len(points)]
    return np.sort(order[new])


@dataclasses.dataclass(frozen=True, eq=False)
class Cloud:
    """An oriented point cloud in the normalized frame.

    points, normals [N, 3] float64.  spacing: the median distance to the sixth neighbor, about twice that of the points.
    spacings [N]: of each point and its neighbors where these are far more sparse, else the same.  areas [N]: that a
    point stands for.  width: one of `WIDTHS`.
    """

    points: np.ndarray
    normals: np.ndarray
    tree: KDTree
    spacings: np.ndarray
    spacing: float
    areas: np.ndarray
    width: float = min(WIDTHS)

    @staticmethod
    def of(points, normals=None) -> Cloud:
        """points [N, 3], normals [N, 3] or None to estimate them.  Of equal points the first counts."""
        points = np.asarray(points, np.float64)
        kept = distinct(points)
        points, normals = points[kept], None if normals is None else np.asarray(normals, np.float64)[kept]
        normals = cloud_normals.estimated(points) if normals is None else normals
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        cloud = Cloud._of_all(points, normals)
        # points off the surface of those around them; what is left says better which of them are
        beside = cloud._left_out(slice(None)) <= STRAY * cloud.spacings
        return cloud if beside.all() or not beside.any() else Cloud._of_all(points[beside], normals[beside])

    @staticmethod
    def _of_all(points: np.ndarray, normals: np.ndarray) -> Cloud:
        tree = KDTree(points)
        distances, nearest = tree.query(points, min(AREA_NEIGHBORS + 1, len(points)))
        spacings = distances[:, min(6, distances.shape[1] - 1)][nearest].mean(1)
        spacing = float(np.median(spacings))
        spacings = np.where(spacings > SPARSE * spacing, spacings, spacing)
        areas = np.pi * distances[:, -1] ** 2 / AREA_NEIGHBORS
        cloud = Cloud(points, normals, tree, spacings, spacing, areas)
        return dataclasses.replace(cloud, width=min(WIDTHS, key=cloud.left_out_error))

    def left_out_error(self, width: float) -> float:
        """The mean distance of points to spheres that are fitted without them: least for the width of their noise."""
        probes = slice(None, None, -(-len(self.points) // PROBES))
        return float(dataclasses.replace(self, width=width)._left_out(probes).mean())

    def _left_out(self, some: slice) -> np.ndarray:
        """The distance [N] of some points to the spheres that are fitted without them."""
        return np.abs(self._in_pieces(self.points[some], self.normals[some])[1])

    def inside(self, points) -> np.ndarray:
        """Whether points [N, 3] are inside, bool [N]: the winding number exceeds 1/2."""
        points = np.asarray(points, np.float64)
        order = np.lexsort(np.floor(points * TILES).T)  # places side by side see the same parts of the octree
        found = np.empty(len(points), bool)
        found[order] = np.asarray(igl.fast_winding_number(self.points, self.normals, self.areas, points[order])) > 0.5
        return found

    def distances(self, points) -> np.ndarray:
        """Signed distances [N] of points [N, 3], negative inside: near the cloud to spheres, far from it to a point."""
        points = np.asarray(points, np.float64)
        nearest, sphere, aside, spacing = self._in_pieces(points)
        # beyond an edge the sphere goes on where no points are
        beyond = np.maximum(aside - spacing * (ASIDE[0] + ASIDE[1] * self.width), 0)
        far = np.clip(nearest / spacing - 1, 0, 1)
        size = (1 - far) * np.minimum(np.hypot(sphere, beyond), nearest) + far * nearest
        return np.where(self.inside(points), -size, size).astype(np.float32)

    def _in_pieces(self, points: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """`_to_spheres`, of as many points at a time as memory should hold."""
        pieces = [
            self._to_spheres(points[start : start + PIECE], None if own is None else own[start : start + PIECE])
            for start in range(0, len(points), PIECE)
        ]
        return np.concatenate(pieces, 1) if pieces else np.ones((4, 0))

    def _to_spheres(self, points: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Distances of points [N, 3], [4, N]: to the nearest point; to the sphere fitted around each, signed; along the
        surface to the middle of the points that count; and between points there (`spacings`).

        own [N, 3]: normals of points of the cloud, which are then left out.  A sphere is the u of the form
        u₀ + u·x + q |x|², x from the point, whose gradient differs least from the normals, and which is then least at
        the points themselves.
        """
        skipped = 0 if own is None else 1
        count = min(WIDTHS[self.width] + skipped, len(self.points))
        distance, nearest = self.tree.query(points, range(min(1 + skipped, count), count + 1), workers=-1)
        beside, normals = self.points[nearest] - points[:, None], self.normals[nearest]
        apart = distance**2
        if own is not None:  # else the points count most that are as far off the surface as the one left out
            apart -= np.einsum("nkc,nc->nk", beside, own) ** 2
        spacing = self.spacings[np.asarray(nearest)[:, 0]]
        apart = (apart - apart.min(1, keepdims=True)) / (2 * (self.width * spacing[:, None]) ** 2)
        turned = ((normals - (normals[:, :1] if own is None else own[:, None])) ** 2).sum(-1) / ALIKE**2
        weight = np.exp(-apart - turned)
        weight /= weight.sum(1, keepdims=True)
        middle, normal = np.einsum("nk,nkc->nc", weight, beside), np.einsum("nk,nkc->nc", weight, normals)
        along = np.einsum("nk,nkc,nkc->n", weight, beside, normals)
        squares = np.einsum("nk,nkc,nkc->n", weight, beside, beside)
        spread = squares - (middle**2).sum(1)
        bend = 0.5 * (along - (middle * normal).sum(1)) / np.maximum(spread, 1e-3 * squares + 1e-30)
        slope = normal - 2 * bend[:, None] * middle
        level = -(slope * middle).sum(1) - bend * squares
        # u = q (|x - c|² - r²), so the distance |c| - r is 2 u₀ / (|u| + 2 |q| r)
        steep = (slope**2).sum(1)
        root = np.sqrt(np.maximum(steep - 4 * level * bend, 0))
        sphere = 2 * level / np.maximum(np.sqrt(steep) + root, 1e-12)
        across = (middle * normal).sum(1) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        aside = np.sqrt(np.maximum((middle**2).sum(1) - across**2, 0))
        return np.stack([distance[:, 0], sphere, aside, spacing])

    def samples(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points around the cloud [N, 3] float32 in [-1, 1]³ and their signed distances [N], in random order.

        count: of the samples near the cloud; there is one more for eight of them, anywhere.
        """
        seeds = rng.integers(0, len(self.points), count)
        spread = (self.spacings[seeds] * rng.choice(SPREAD, count))[:, None]
        near = np.clip(self.points[seeds] + spread * rng.standard_normal((count, 3)), -1, 1)
        points = np.concatenate([near, rng.uniform(-1, 1, (count // UNIFORM, 3))]).astype(np.float32)
        points = rng.permutation(points)
        return points, self.distances(points)

    def closed(self, surface) -> float:
        """The fraction of surface points [N, 3] that are far from all points of the cloud: closed holes."""
        distance, nearest = self.tree.query(np.asarray(surface, np.float64))
        return float(np.mean(distance > GAP * self.spacings[nearest]))
