"""Watertight meshes of anything: depth views from all around, fused into one volume of distances, and meshed again.

What no view sees is solid. So sheets become slabs, overlapping parts one body, and what an opening shows stays hollow
(Curless & Levoy 1996; the preparation of Occupancy Networks' data, after Stutz & Geiger 2018).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, maximum_filter, minimum_filter
from skimage.measure import marching_cubes

from jonet.data.meshes import Mesh
from jonet.data.rays import Camera, Scene
from jonet.data.verdict import check
from jonet.data.views import spiral
from jonet.errors import InputError

SIDE = 0.9  # the mesh's longest side, where the volume's is 1
OFFSET = 1.5  # voxels by which every depth is shortened, so that sheets have two sides
TRUNCATION = 10  # voxels beyond which a distance is only known to be far
COARSE = 4  # voxels a side of the blocks that are looked at first
BLOCK = 1 << 15  # samples at once: they stay in the cache over all views


def fuse(mesh: Mesh, resolution: int = 256, views: int = 100) -> Mesh:
    """A closed mesh around a mesh of any kind, however it is wound, in the same units.

    resolution: voxels a side of a volume whose side is 10/9 of the mesh's longest; a multiple of 4. Surfaces end up
    about a voxel outside of where they were, and sheets become slabs of four.  views: depth pictures, from directions
    spread over the sphere (orthographic, 2.5 pixels a voxel; published: 100 of 640 x 640 for 256³).
    Raises MeshError for a mesh without faces or area.
    """
    if resolution < 16 or resolution % COARSE or views < 4:
        raise InputError(
            f"resolution is {resolution} and views {views}: a multiple of {COARSE} from 16 on, and 4 or more"
        )
    check(mesh)
    side = float(np.ptp(mesh.bounds, axis=0).max()) / SIDE
    corner, voxel = mesh.bounds.mean(0) - side / 2, side / resolution
    values = _volume(_looks(mesh, views, resolution, voxel), corner, resolution, voxel)
    values = np.pad(values, 1, constant_values=1)
    # the table of 1987: the newer one lets surfaces touch along an edge, which then has four faces
    vertices, faces, _, _ = marching_cubes(values, 0, method="lorensen", gradient_direction="descent")
    return Mesh(corner + voxel * (vertices.astype(np.float64) - 1), faces, name=mesh.name)


def _looks(mesh: Mesh, views: int, resolution: int, voxel: float) -> list[tuple[Camera, np.ndarray]]:
    """Cameras with their depth pictures [P, P] float32, shortened, and widened by a pixel so that rims have width."""
    scene, pixels = Scene(mesh), int(2.5 * resolution)
    reach = 0.5 * resolution * voxel * np.sqrt(3)
    looks = []
    for back in spiral(views):
        camera = Camera.towards(back, mesh.bounds.mean(0), 2 * reach, pixels / 2 / reach, (pixels, pixels), True)
        depth = scene.cast(*camera.rays()).depth.astype(np.float32)
        looks.append((camera, minimum_filter(depth, 3) - np.float32(OFFSET * voxel)))
    return looks


def _volume(looks, corner: np.ndarray, resolution: int, voxel: float) -> np.ndarray:
    """Mean truncated distances [R + 1, R + 1, R + 1] in (-1, 1], -1 where nothing is seen; exact near the surface."""
    count = resolution // COARSE
    first = np.stack(np.meshgrid(*[np.arange(count + 1) * COARSE] * 3, indexing="ij"), -1).reshape(-1, 3)
    coarse = _distances(looks, corner + voxel * first, TRUNCATION * voxel).reshape([count + 1] * 3)
    near = (coarse < 1) & (coarse > -1)
    near |= minimum_filter(coarse, 3) * maximum_filter(coarse, 3) < 0
    blocks = np.zeros([count] * 3, bool)
    for x, y, z in np.ndindex(2, 2, 2):
        blocks |= near[x : x + count, y : y + count, z : z + count]
    blocks = binary_dilation(blocks)
    values = coarse[:-1, :-1, :-1]
    for axis in range(3):
        values, blocks = np.repeat(values, COARSE, axis), np.repeat(blocks, COARSE, axis)
    values = np.pad(values, (0, 1), "edge")
    values[:, :, -1] = values[:, -1] = values[-1] = 1  # the volume's faces lie clear of the mesh
    at = np.argwhere(blocks)
    values[tuple(at.T)] = _distances(looks, corner + voxel * at, TRUNCATION * voxel)
    return values


def _distances(looks, points: np.ndarray, truncation: float) -> np.ndarray:
    """points [N, 3] -> the mean over views, of how far before a surface each lies, in truncations, at most 1."""
    result = np.empty(len(points), np.float32)
    for start in range(0, len(points), BLOCK):
        some = points[start : start + BLOCK]
        total, seen = np.zeros(len(some), np.float32), np.zeros(len(some), np.float32)
        for camera, depth in looks:
            x, y, z = ((some - camera.position) @ camera.rotation.T).astype(np.float32).T
            column = (x * camera.focal + camera.centre[0]).astype(np.int32).clip(0, depth.shape[1] - 1)
            row = (y * camera.focal + camera.centre[1]).astype(np.int32).clip(0, depth.shape[0] - 1)
            before = (depth[row, column] - z) / truncation
            known = before >= -1
            total += np.where(known, np.minimum(before, 1), 0)
            seen += known
        result[start : start + BLOCK] = np.where(seen > 0, total / np.maximum(seen, 1), -1)
    return result
