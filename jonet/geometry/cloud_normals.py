"""Normals of point clouds that have none: planes of neighbors, oriented over the neighborhood graph."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import KDTree

from jonet.checks import check_array
from jonet.errors import InputError

NEIGHBORS = 10  # of a point that define its plane and its edges of the graph
LEAST = 1e-3  # cost of an edge between parallel planes: 0 would mean no edge


def estimated(points) -> np.ndarray:
    """Outward unit normals of points [N, 3] → [N, 3] (Hoppe, DeRose, Duchamp, McDonald, Stuetzle 1992, section 3.3).

    A normal is that of the plane through the nearest points.  Its sign is propagated along the minimum spanning tree of
    the neighborhood graph, whose edges cost the less the more parallel two planes are.  Each connected part of the
    graph faces away from its middle.  Raises InputError for fewer than 11 points.
    """
    points = check_array(points, "points", (None, 3), np.float64)
    count = len(points)
    if count <= NEIGHBORS:
        raise InputError(f"{count} points are too few to estimate normals from; give normals, or more points")
    beside = np.asarray(KDTree(points).query(points, NEIGHBORS + 1)[1])  # the point itself is the first
    around = points[beside] - points[beside].mean(1, keepdims=True)
    _, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    normals = axes[..., 0]  # of the least variance
    rows, columns = np.repeat(np.arange(count), NEIGHBORS), beside[:, 1:].ravel()
    cost = 1 + LEAST - np.abs(np.einsum("ec,ec->e", normals[rows], normals[columns]))
    graph = coo_array((cost, (rows, columns)), (count, count)).tocsr()
    tree = minimum_spanning_tree(graph.maximum(graph.T))
    parts, part = connected_components(tree, directed=False)
    for number in range(parts):
        members = np.flatnonzero(part == number)
        order, before = breadth_first_order(tree, members[0], directed=False)
        same = np.einsum("nc,nc->n", normals[order[1:]], normals[before[order[1:]]]) >= 0
        sign = np.ones(count)
        for point, above, alike in zip(order[1:], before[order[1:]], same, strict=True):
            sign[point] = sign[above] if alike else -sign[above]
        normals[members] *= sign[members, None]
        middle = points[members].mean(0)
        if np.einsum("nc,nc->", normals[members], points[members] - middle) < 0:
            normals[members] *= -1
    return normals
