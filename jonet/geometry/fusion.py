"""TSDF fusion: watertight meshes from polygon soups by fusing depth views from all around.

Depth maps are averaged into one volume of truncated signed distances (Curless & Levoy 1996), which is meshed by
marching cubes; Occupancy Networks prepare their data so, after Stutz & Geiger 2018.  What no view sees is solid: sheets
become slabs, overlapping parts one body, and cavities that are visible through an opening stay hollow.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, maximum_filter, minimum_filter
from skimage.measure import marching_cubes

from jonet.errors import InputError
from jonet.geometry.mesh import Mesh, check
from jonet.geometry.rays import Camera, Scene
from jonet.geometry.shell import spiral

SIDE = 0.9  # longest side of the mesh, relative to the volume's side
OFFSET = 1.5  # voxels by which depths are shortened: gives sheets a thickness
TRUNCATION = 10  # truncation distance in voxels
COARSE = 4  # voxels per side of the blocks of the coarse pass
BLOCK = 1 << 15  # points evaluated at once: small enough to stay in the CPU's cache over all views


def fuse(mesh: Mesh, resolution: int = 256, views: int = 100) -> Mesh:
    """A watertight mesh around any mesh, whatever its winding, in the same units.

    resolution: voxels per side of a volume whose side is 10/9 of the mesh's longest; a multiple of 4, at least 16.
    Surfaces move outwards by about one voxel, and sheets become slabs of four voxels.  views: number of orthographic
    depth maps from directions spread over the sphere, 2.5 pixels per voxel (published: 100 of 640 x 640 for 256³).
    Raises MeshError for a mesh without faces or area.
    """
    if resolution < 16 or resolution % COARSE or views < 4:
        raise InputError(
            f"resolution is {resolution} and views {views}, but resolution must be a multiple of {COARSE}, 16 or more, "
            "and views 4 or more"
        )
    check(mesh)
    side = float(np.ptp(mesh.bounds, axis=0).max()) / SIDE
    corner, voxel = mesh.bounds.mean(0) - side / 2, side / resolution
    values = _volume(_depth_maps(mesh, views, resolution, voxel), corner, resolution, voxel)
    values = np.pad(values, 1, constant_values=1)  # outside all around, so that the surface is closed
    # Lorensen's table of 1987: the newer one (Lewiner) lets surfaces touch along an edge, which then has four faces.
    vertices, faces, _, _ = marching_cubes(values, 0, method="lorensen", gradient_direction="descent")
    return Mesh(corner + voxel * (vertices.astype(np.float64) - 1), faces, name=mesh.name)


def _depth_maps(mesh: Mesh, views: int, resolution: int, voxel: float) -> list[tuple[Camera, np.ndarray]]:
    """Cameras and their depth maps [P, P] float32, shortened by `OFFSET`, and dilated by one pixel so that sheets seen
    from the edge have a width."""
    scene, pixels = Scene(mesh), int(2.5 * resolution)
    reach = 0.5 * resolution * voxel * np.sqrt(3)  # radius of the ball around the volume: every view covers all of it
    maps = []
    for back in spiral(views):
        camera = Camera.towards(back, mesh.bounds.mean(0), 2 * reach, pixels / 2 / reach, (pixels, pixels), True)
        depth = scene.cast(*camera.rays()).depth.astype(np.float32)
        maps.append((camera, minimum_filter(depth, 3) - np.float32(OFFSET * voxel)))
    return maps


def _volume(maps, corner: np.ndarray, resolution: int, voxel: float) -> np.ndarray:
    """Mean truncated distances [R + 1, R + 1, R + 1] at voxel corners, in truncations: (-1, 1], -1 if no view sees it.

    Coarse to fine: only blocks near the surface are evaluated at all corners; others take their coarse value, which has
    the right sign.
    """
    count = resolution // COARSE
    first = np.stack(np.meshgrid(*[np.arange(count + 1) * COARSE] * 3, indexing="ij"), -1).reshape(-1, 3)
    coarse = _distances(maps, corner + voxel * first, TRUNCATION * voxel).reshape([count + 1] * 3)
    near = (coarse < 1) & (coarse > -1)
    near |= minimum_filter(coarse, 3) * maximum_filter(coarse, 3) < 0  # neighbors of opposite signs, both truncated
    blocks = np.zeros([count] * 3, bool)
    for x, y, z in np.ndindex(2, 2, 2):
        blocks |= near[x : x + count, y : y + count, z : z + count]
    blocks = binary_dilation(blocks)  # a margin of one block
    values = coarse[:-1, :-1, :-1]
    for axis in range(3):
        values, blocks = np.repeat(values, COARSE, axis), np.repeat(blocks, COARSE, axis)
    values = np.pad(values, (0, 1), "edge")
    values[:, :, -1] = values[:, -1] = values[-1] = 1  # the volume's sides keep a distance from the mesh
    at = np.argwhere(blocks)
    values[tuple(at.T)] = _distances(maps, corner + voxel * at, TRUNCATION * voxel)
    return values


def _distances(maps, points: np.ndarray, truncation: float) -> np.ndarray:
    """points [N, 3] -> the mean over views of (depth of the surface - depth of the point), in truncations, at most 1.

    A view in which a point is hidden by more than the truncation says nothing about it, and does not count.
    """
    result = np.empty(len(points), np.float32)
    for start in range(0, len(points), BLOCK):
        some = points[start : start + BLOCK]
        total, seen = np.zeros(len(some), np.float32), np.zeros(len(some), np.float32)
        for camera, depth in maps:
            x, y, z = ((some - camera.position) @ camera.rotation.T).astype(np.float32).T
            column = (x * camera.focal + camera.center[0]).astype(np.int32).clip(0, depth.shape[1] - 1)
            row = (y * camera.focal + camera.center[1]).astype(np.int32).clip(0, depth.shape[0] - 1)
            distance = (depth[row, column] - z) / truncation
            visible = distance >= -1
            total += np.where(visible, np.minimum(distance, 1), 0)
            seen += visible
        result[start : start + BLOCK] = np.where(seen > 0, total / np.maximum(seen, 1), -1)
    return result
