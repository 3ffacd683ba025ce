"""Marching cubes on a list of cells, with a table of triangles that is derived from rules, and welded vertices.

The corners of a cell are numbered by their offset (x, y, z) as the binary number xyz, its twelve edges are pairs (axis,
lower corner).  A case is the set of corners inside, as bits.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jonet.inference.surfaces.grid import Lattice

CORNERS = np.array([(c >> 2 & 1, c >> 1 & 1, c & 1) for c in range(8)])
EDGES = [(axis, c) for axis in range(3) for c in range(8) if not CORNERS[c][axis]]  # (axis, lower corner)
EDGE_AXIS, EDGE_CORNER = np.array(EDGES).T
OTHER_CORNER = EDGE_CORNER + np.array([4, 2, 1])[EDGE_AXIS]
# the corners of each face, counter-clockwise seen from outside, by axis and side (0: lower, 1: upper)
FACES = {
    (axis, side): [
        side << 2 - axis | u << 2 - (axis + 1) % 3 | v << 2 - (axis + 2) % 3
        for u, v in [(0, 0), (1, 0), (1, 1), (0, 1)][:: 1 if side else -1]
    ]
    for axis in range(3)
    for side in (0, 1)
}
NEAREST = 1e-4  # in cells: least distance of a vertex from a sample, so that no triangle degenerates by rounding


def loops(case: int) -> list[list[int]]:
    """The closed polygons that separate inside from outside in a cell of this case, as lists of edges.

    On every face, each run of consecutive outside corners is cut off by one segment.  So two inside corners on the
    diagonal of a face are connected, and thin parts stay connected.  The rule depends only on the four signs of the
    face.  Hence two cells agree on their common face, and the polygons of all cells form closed surfaces.
    Every crossed edge belongs to two faces, which traverse it in opposite directions: one segment ends there, and one
    starts there.
    """
    following = {}
    for face in FACES.values():
        inside = [case >> corner & 1 for corner in face]
        crossed = [k for k in range(4) if inside[k] != inside[k - 1]]  # between the corners k-1 and k
        for position, k in enumerate(crossed):
            if inside[k]:  # a run of outside corners ends here; it began at the crossing before
                before = crossed[position - 1]
                following[_edge(face[k - 1], face[k])] = _edge(face[before - 1], face[before])
    found = []
    while following:
        loop = [min(following)]
        while (edge := following.pop(loop[-1])) != loop[0]:
            loop.append(edge)
        found.append(loop)
    return found


def _edge(a: int, b: int) -> int:
    return EDGES.index(({4: 0, 2: 1, 1: 2}[a ^ b], min(a, b)))


def fan(loop: list[int]) -> list[tuple[int, int, int]]:
    """A polygon as a fan of triangles around one of its vertices: the one with the shortest diagonals.

    Vertices with a diagonal within a face of the cell are excluded: the neighboring cell could have the same diagonal,
    and four triangles would share an edge.  The tests check that every polygon of every case has an allowed vertex.
    """
    middles = (CORNERS[EDGE_CORNER] + CORNERS[OTHER_CORNER]) / 2

    def length(start):
        ends = middles[[loop[(start + k) % len(loop)] for k in range(2, len(loop) - 1)]]
        apart = ends - middles[loop[start]]
        in_face = ((apart == 0) & np.isin(ends, (0, 1))).any()
        return np.inf if in_face else np.linalg.norm(apart, axis=-1).sum()

    start = min(range(len(loop)), key=length)
    rolled = loop[start:] + loop[:start]
    return [(rolled[0], rolled[k], rolled[k + 1]) for k in range(1, len(loop) - 1)]


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """The triangles of all 256 cases as edges [T, 3], case after case, and the first triangle of each case [257]."""
    cases = [[triangle for loop in loops(case) for triangle in fan(loop)] for case in range(256)]
    starts = np.concatenate([[0], np.cumsum([len(case) for case in cases])])
    return np.array([triangle for case in cases for triangle in case]), starts


class Samples(NamedTuple):
    """Signed values at lattice points: positive inside, -inf outside the box.  keys [P] int64 ascending, values [P]."""

    keys: np.ndarray
    values: np.ndarray

    def index_of(self, keys) -> np.ndarray:
        """The indices [...] of keys [...] among the samples; of missing keys, any valid index."""
        return np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)

    def contains(self, keys) -> np.ndarray:
        """Whether keys [N] are among the samples, bool [N]."""
        return self.keys[self.index_of(keys)] == keys if len(self.keys) else np.zeros(np.shape(keys), bool)


class Welded(NamedTuple):
    """The triangles of a whole batch, with one vertex per crossed lattice edge.

    low, high [V]: indices of the samples at the ends of the edge.  axis [V]: the edge's direction.  along [V]: position
    on the edge, 0 at low and 1 at high.  faces [F, 3]: indices of vertices; the vertices of a shape are consecutive,
    and so are its faces.
    """

    low: np.ndarray
    high: np.ndarray
    axis: np.ndarray
    along: np.ndarray
    faces: np.ndarray


def polygonize(lattice: Lattice, samples: Samples, corners: np.ndarray) -> Welded:
    """Marching cubes on cells.  corners [8, C]: indices of the samples at their corners; cells sorted by shape."""
    inside = samples.values[corners] > 0
    case = np.zeros(corners.shape[1], np.int64)
    for corner in range(8):
        case |= inside[corner].astype(np.int64) << corner
    # all triangles of all cells: cell [F] owns each, row [F] is its place in the table
    triangles, starts = table()
    count = np.diff(starts)[case]
    cell = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(cell)) + np.repeat(starts[case] - (np.cumsum(count) - count), count)
    edge = triangles[row]  # [F, 3]
    # Welding: an edge is identified by its lower sample and axis, equally in all cells that share it.
    name = 3 * corners[EDGE_CORNER[edge], cell[:, None]] + EDGE_AXIS[edge]
    used = np.zeros(3 * len(samples.keys), bool)
    used[name] = True
    number = np.cumsum(used, dtype=np.int32) - 1  # of the vertex, for each used edge
    low, axis = np.divmod(np.flatnonzero(used), 3)
    high = samples.index_of(samples.keys[low] + lattice.steps(np.eye(3, dtype=int))[axis])
    return Welded(low, high, axis, crossing(samples.values[low], samples.values[high]), number[name])


def crossing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Positions in [0, 1] where values of opposite sign cross zero, by linear interpolation.

    If one end is outside of the box (-inf), the vertex is on the box, at the other end.
    """
    with np.errstate(invalid="ignore"):
        along = np.clip(low.astype(np.float64) / (low.astype(np.float64) - high), NEAREST, 1 - NEAREST)
    return np.where(np.isneginf(low), 1.0, np.where(np.isneginf(high), 0.0, along))
