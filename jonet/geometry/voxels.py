"""Voxelization of meshes by the published methods (Occupancy Networks, VoxelGrid), and voxel grids as block meshes.

A grid has R cells per side over the cube [-0.5, 0.5]³; cell [i, j, k] is [i, i+1] x [j, j+1] x [k, k+1] in coordinates
(x + 0.5) R.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import igl
import numpy as np
from scipy import ndimage

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry.mesh import Mesh

METHODS = ("ray", "fill", "interior", "surface", "random")
JITTER = 0.1  # side of the cube around a cell's center in which its point is drawn, in cells
SIDE = 32  # cells per side of the networks' inputs
_PAIRS = 1 << 20  # pairs of triangle and cell tested at once: bounds memory


def voxelize(
    mesh: Mesh,
    resolution: int = SIDE,
    method: str = "ray",
    rng: np.random.Generator | None = None,
    inside: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Voxelizes a mesh in the cube frame -> [R, R, R] bool, indexed x, y, z.

    method:
        "surface": cells that a triangle touches;
        "interior": cells whose center, jittered by up to 0.05 cells if `rng` is given, is inside;
        "ray" (published): the union of both;
        "random": the same with one random point anywhere in each cell, as the paper's text has it, in place of its
        jittered center (without `rng` the center);
        "fill": the surface with its cavities filled, for meshes without a reliable inside.
    inside: an inside test, points [N, 3] -> bool [N]; winding numbers if None.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if method == "interior":
        return _interior(mesh, resolution, rng, inside)
    touched = _touched((mesh.corners + 0.5) * resolution, resolution)
    if method in ("ray", "random"):
        touched |= _interior(mesh, resolution, rng, inside, JITTER if method == "ray" else 1.0)
    return np.asarray(ndimage.binary_fill_holes(touched)) if method == "fill" else touched


def _interior(mesh, resolution, rng, inside, spread=JITTER):
    cells = np.moveaxis(np.indices((resolution,) * 3), 0, -1).reshape(-1, 3)
    offset = 0.5 if rng is None else 0.5 + spread * (rng.random(cells.shape) - 0.5)
    points = (cells + offset) / resolution - 0.5
    if inside is None:
        found = np.asarray(igl.fast_winding_number(mesh.vertices, mesh.faces, points)) > 0.5
    else:
        found = inside(points)
    return found.reshape((resolution,) * 3)


def packed(voxels) -> np.ndarray:
    """A grid [R, R, R] bool as packed bits [R³ / 8] uint8, most significant bit first."""
    return np.packbits(check_array(voxels, "voxels", ("R", "R", "R"), bool, finite=False))


def unpacked(bits: np.ndarray) -> np.ndarray:
    """The grid [R, R, R] bool of `packed` bits."""
    side = round((8 * len(bits)) ** (1 / 3))
    return np.unpackbits(bits).reshape((side,) * 3).astype(bool)


def _touched(triangles, resolution):
    """Cells [R, R, R] bool that triangles [F, 3, 3], in units of cells, touch.

    Separating axis test (Akenine-Möller 2001): the cells of each triangle's bounding box are candidates, which covers
    the cell's axes; the others are the triangle's normal and the nine cross products of its edges with the cell's.
    """
    grid = np.zeros((resolution,) * 3, bool)
    low = np.clip(np.ceil(triangles.min(1)) - 1, 0, resolution - 1).astype(int)
    high = np.clip(np.floor(triangles.max(1)), 0, resolution - 1).astype(int)
    met = (triangles.max(1) >= 0).all(1) & (triangles.min(1) <= resolution).all(1)
    triangles, low, span = triangles[met], low[met], (high - low + 1)[met]
    counts = span.prod(1)
    # Batches of triangles with about _PAIRS candidate cells together.
    for part in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS)) + 1):
        # One row per pair: the triangle, and the k-th cell of its box.
        which = np.repeat(part, counts[part])
        k = np.arange(len(which)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        _, sy, sz = span[which].T
        cells = low[which] + np.stack([k // (sy * sz), k // sz % sy, k % sz], -1)
        corners = triangles[which] - (cells + 0.5)[:, None]
        edges = np.roll(corners, -1, 1) - corners
        normals = np.cross(edges[:, 0], edges[:, 1])
        keep = np.abs(np.einsum("nc,nc->n", normals, corners[:, 0])) <= np.abs(normals).sum(1) / 2
        corners, edges, cells = corners[keep], edges[keep], cells[keep]
        keep = np.ones(len(cells), bool)
        for edge, unit in product(range(3), np.eye(3)):
            axis = np.cross(edges[:, edge], unit)
            along = np.einsum("nkc,nc->nk", corners, axis)
            keep &= (along.min(1) <= np.abs(axis).sum(1) / 2) & (along.max(1) >= -np.abs(axis).sum(1) / 2)
        grid[tuple(cells[keep].T)] = True
    return grid


def blocks(voxels) -> Mesh:
    """The boundary of a grid [R, R, R] as a mesh in the cube frame: two triangles per cell face, outwards, with shared
    vertices."""
    filled = np.pad(check_array(voxels, "voxels", ("R", "R", "R"), bool, finite=False), 1)  # empty all around
    resolution = filled.shape[0] - 2
    quads = []
    for axis in range(3):
        a, b = np.eye(3, dtype=int)[[(axis + 1) % 3, (axis + 2) % 3]]
        step = np.diff(filled.astype(np.int8), axis=axis)
        for sign, ring in ((-1, (0 * a, a, a + b, b)), (1, (0 * a, b, a + b, a))):  # leaving the solid, entering it
            corner = np.argwhere(step == sign) - 1
            corner[:, axis] += 1
            quads.append(corner[:, None] + ring)
    quads = np.concatenate(quads)
    keys, faces = np.unique(quads.reshape(-1, 3) @ [(resolution + 1) ** 2, resolution + 1, 1], return_inverse=True)
    vertices = np.stack(np.unravel_index(keys, (resolution + 1,) * 3), -1) / resolution - 0.5
    faces = faces.reshape(-1, 4)
    return Mesh(vertices, np.concatenate([faces[:, :3], faces[:, [0, 2, 3]]]))
