"""Shapes as values on dense grids: bits of cells, and truncated distances at nodes, compressed."""

from __future__ import annotations

import zlib

import numpy as np
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from experiments.levels_of_detail.scores import Shape, Surface, unit
from jonet.data.sampling import Solid
from jonet.geometry.mesh import Mesh
from jonet.geometry.voxels import voxelize

TRUNCATED = 3.0  # distances are clipped to so many cells
BLOCK = 4  # nodes a side of a block in which distances are computed, or not


def bits(shape: Shape, resolution: int) -> bytes:
    """Whether the center of each cell of [-0.5, 0.5]³ is inside, packed and compressed.

    Centers are tested in cells that the surface touches, and in the first cell of each run between them.
    """
    touched = voxelize(shape.mesh, resolution, "surface")
    inside = np.zeros_like(touched)
    for x in range(resolution):
        tested = touched[x].copy()
        tested[:, 0] = True
        tested[:, 1:] |= touched[x, :, :-1]
        cells = np.argwhere(tested)
        centers = (np.insert(cells, 0, x, axis=1) + 0.5) / resolution - 0.5
        values = np.zeros_like(tested)
        values[tested] = shape.solid.inside(centers)
        last = np.maximum.accumulate(np.where(tested, np.arange(resolution), 0), axis=1)
        inside[x] = np.take_along_axis(values, last, 1)
    return zlib.compress(np.packbits(inside).tobytes(), 9)


def of_bits(data: bytes, resolution: int) -> Surface:
    """The surface between centers of cells of different bits."""
    flat = np.unpackbits(np.frombuffer(zlib.decompress(data), np.uint8), count=resolution**3)
    inside = flat.reshape((resolution,) * 3).astype(bool)

    def contains(points):
        cells = np.floor((points + 0.5) * resolution).astype(int)
        within = ((cells >= 0) & (cells < resolution)).all(1)
        within[within] = inside[tuple(cells[within].T)]
        return within

    return Surface(
        polygons(np.pad(inside, 1).astype(np.float32) - 0.5, -0.5 - 0.5 / resolution, 1 / resolution), contains
    )


def nodes(resolution: int) -> np.ndarray:
    """The coordinates [R] of the nodes along each axis: a cell more than [-0.5, 0.5] on both sides."""
    cell = 1 / (resolution - 3)
    return np.linspace(-0.5 - cell, 0.5 + cell, resolution)


def distances(solid: Solid, resolution: int) -> bytes:
    """Signed distances at the nodes, clipped, in float16, compressed.

    resolution: R nodes a side, a multiple of 4.  Blocks of nodes that are all beyond the clip have the sign of their
    center.
    """
    along = nodes(resolution)
    cell = along[1] - along[0]
    starts = np.stack(np.meshgrid(*[np.arange(0, resolution, BLOCK)] * 3, indexing="ij"), -1).reshape(-1, 3)
    middle = solid.distances(along[0] + cell * (starts + (BLOCK - 1) / 2))
    near = np.abs(middle) < cell * (TRUNCATED + 3**0.5 * (BLOCK - 1) / 2)
    blocks = np.sign(middle)[:, None].repeat(BLOCK**3, 1) * TRUNCATED * cell
    within = np.stack(np.meshgrid(*[np.arange(BLOCK)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = along[0] + cell * (starts[near][:, None] + within)
    blocks[near] = solid.distances(points.reshape(-1, 3)).reshape(-1, BLOCK**3)
    side = resolution // BLOCK
    grid = blocks.reshape((side,) * 3 + (BLOCK,) * 3).transpose(0, 3, 1, 4, 2, 5).reshape((resolution,) * 3)
    return packed(grid, cell)


def packed(grid: np.ndarray, cell: float) -> bytes:
    """Distances [R, R, R] as bytes: clipped, in float16, compressed."""
    return zlib.compress(np.clip(grid, -TRUNCATED * cell, TRUNCATED * cell).astype(np.float16).tobytes(), 9)


def of_distances(data: bytes, resolution: int) -> Surface:
    """The surface at 0 of the distances, which are interpolated linearly along each axis."""
    grid = np.frombuffer(zlib.decompress(data), np.float16).reshape((resolution,) * 3).astype(np.float32)
    along = nodes(resolution)
    cell = along[1] - along[0]

    def at(places):
        return map_coordinates(grid, places, order=1, mode="nearest")

    def normals(points):
        places = ((points - along[0]) / cell).T
        ends = [places.copy() for _ in range(6)]
        for axis in range(3):
            ends[2 * axis][axis] = np.floor(places[axis])
            ends[2 * axis + 1][axis] = np.floor(places[axis]) + 1
        return unit(np.stack([at(ends[2 * axis + 1]) - at(ends[2 * axis]) for axis in range(3)], 1))

    return Surface(polygons(-grid, along[0], cell), lambda points: at(((points - along[0]) / cell).T) < 0, normals)


def polygons(values: np.ndarray, start: float, cell: float) -> Mesh:
    """Marching cubes at 0 of values on a grid, which are above 0 inside."""
    if not values.min() < 0 < values.max():
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    vertices, faces, _, _ = marching_cubes(values, 0.0, allow_degenerate=False)
    mesh = Mesh(start + cell * vertices, faces)
    return mesh if mesh.volume > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])
