"""Surfaces of oriented points by screened Poisson reconstruction and by radial basis functions."""

from __future__ import annotations

import functools
import importlib

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from experiments.levels_of_detail import grids
from experiments.levels_of_detail.scores import Shape
from jonet import resources
from jonet.geometry.mesh import Mesh

DEPTH = 8  # of the octree: 256 cells a side
NEIGHBORS = 30  # nearest conditions of each value
BAND = 2.0  # cells around the points in which values are computed


@functools.cache
def lacking() -> str:
    """Why Poisson reconstruction is left out; empty if Open3D can be imported."""
    try:
        importlib.import_module("open3d")
    except ImportError as error:
        return f"without Poisson: {error} (Open3D: pip install -e '.[bench]', and the system's libusb-1.0)"
    return ""


def poisson(shape: Shape) -> Mesh:
    """The mesh of Kazhdan and Hoppe (2013), as Open3D has it, with its defaults but for the threads."""
    import open3d  # type: ignore[import-not-found]

    points, normals = (open3d.utility.Vector3dVector(np.asarray(array, np.float64)) for array in shape.cloud)
    cloud = open3d.geometry.PointCloud(points)
    cloud.normals = normals
    mesh, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=DEPTH, n_threads=resources.cores()
    )
    return Mesh(np.asarray(mesh.vertices), np.asarray(mesh.triangles))


def radial(shape: Shape, resolution: int) -> bytes:
    """Distances at nodes near the points, by local thin plate splines (Carr et al. 2001), as `grids.distances`.

    Conditions are 0 at the points and ±h at h before and behind them, along their normals.  Nodes farther away have the
    sign of the nearest that is computed.
    """
    points, normals = shape.cloud
    tree = KDTree(points)
    apart = float(np.median(tree.query(points, 2)[0][:, 1]))
    places = np.concatenate([points, points + apart * normals, points - apart * normals])
    values = np.repeat([0.0, apart, -apart], len(points))
    along = grids.nodes(resolution)
    cell = along[1] - along[0]
    where = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1)
    distance, _ = tree.query(where, distance_upper_bound=BAND * cell)
    near = np.isfinite(distance)
    found = RBFInterpolator(places, values, neighbors=NEIGHBORS, kernel="thin_plate_spline", degree=1)(where[near])
    grid = np.zeros(near.shape)
    grid[near] = found
    nearest = distance_transform_edt(~near, return_distances=False, return_indices=True)
    grid[~near] = np.where(grid[tuple(nearest)] < 0, -1, 1)[~near] * grids.TRUNCATED * cell
    return grids.packed(grid, cell)
