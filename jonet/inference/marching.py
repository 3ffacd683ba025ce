"""Marching cubes on a list of cells: the table, derived rather than typed, and welded triangles.

Corners of a cell are numbered by their offset (x, y, z) as the binary number xyz, its twelve edges by (axis, lower
corner).  A case is the set of corners inside, as bits.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jonet.inference.grid import Lattice

CORNERS = np.array([(c >> 2 & 1, c >> 1 & 1, c & 1) for c in range(8)])
EDGES = [(axis, c) for axis in range(3) for c in range(8) if not CORNERS[c][axis]]  # (axis, lower corner)
EDGE_AXIS, EDGE_CORNER = np.array(EDGES).T
OTHER_CORNER = EDGE_CORNER + np.array([4, 2, 1])[EDGE_AXIS]
# each face's corners, counter-clockwise seen from outside: axis and side, side 0 being the lower
FACES = {
    (axis, side): [
        side << 2 - axis | u << 2 - (axis + 1) % 3 | v << 2 - (axis + 2) % 3
        for u, v in [(0, 0), (1, 0), (1, 1), (0, 1)][:: 1 if side else -1]
    ]
    for axis in range(3)
    for side in (0, 1)
}
NEAREST = 1e-4  # cells: how near to a sample a vertex may lie, so that no triangle loses its area to rounding


def loops(case: int) -> list[list[int]]:
    """The closed polygons that separate inside from outside in a cell of this case, as lists of edges.

    On every face each run of outside corners is cut off by one segment; so inside corners that meet only across a
    face's diagonal are joined, and thin parts hang together.  The rule sees the four signs of the face alone, hence
    two cells agree on the face between them, and the polygons of all cells close to surfaces.  Every crossed edge lies
    on two faces, which run along it in opposite directions: it is entered once and left once.
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
    """A polygon as triangles around one of its vertices: the one whose diagonals are shortest and cross the cell.

    A diagonal within a face could meet the neighbour's: then four triangles would share an edge.  A test goes through
    all cases: a corner without such diagonals exists in each of their polygons.
    """
    middles = (CORNERS[EDGE_CORNER] + CORNERS[OTHER_CORNER]) / 2

    def length(start):
        ends = middles[[loop[(start + k) % len(loop)] for k in range(2, len(loop) - 1)]]
        apart = ends - middles[loop[start]]
        in_face = ((apart == 0) & np.isin(ends, (0, 1))).any()
        return np.inf if in_face else np.linalg.norm(apart, axis=-1).sum()

    start = min(range(len(loop)), key=length)
    turned = loop[start:] + loop[:start]
    return [(turned[0], turned[k], turned[k + 1]) for k in range(1, len(loop) - 1)]


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
    """The triangles of all 256 cases, as edges [T, 3], one case after the other, and where each case begins [257]."""
    cases = [[triangle for loop in loops(case) for triangle in fan(loop)] for case in range(256)]
    starts = np.concatenate([[0], np.cumsum([len(case) for case in cases])])
    return np.array([triangle for case in cases for triangle in case]), starts


class Samples(NamedTuple):
    """Signed values at lattice points: positive inside, -inf beyond the box.  keys [P] int64 ascending, values [P]."""

    keys: np.ndarray
    values: np.ndarray

    def at(self, keys) -> np.ndarray:
        """Where keys are among the samples (those that are not there: anywhere)."""
        return np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)

    def has(self, keys) -> np.ndarray:
        """Whether keys are among the samples."""
        return self.keys[self.at(keys)] == keys if len(self.keys) else np.zeros(np.shape(keys), bool)


class Welded(NamedTuple):
    """The triangles of a whole batch: a vertex lies on the lattice edge between two samples, once.

    low, high [V]: those samples.  axis [V]: the edge's direction.  along [V]: where on it, 0 at low and 1 at high.
    faces [F, 3] over all vertices; the vertices of a shape are consecutive, and so are its faces.
    """

    low: np.ndarray
    high: np.ndarray
    axis: np.ndarray
    along: np.ndarray
    faces: np.ndarray


def polygonize(lattice: Lattice, samples: Samples, corners: np.ndarray) -> Welded:
    """Marching cubes on cells.  corners [8, C]: where the samples of each cell's corners are; cells by shape."""
    inside = samples.values[corners] > 0
    case = np.zeros(corners.shape[1], np.int64)
    for corner in range(8):
        case |= inside[corner].astype(np.int64) << corner
    triangles, starts = table()
    count = np.diff(starts)[case]
    cell = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(cell)) + np.repeat(starts[case] - (np.cumsum(count) - count), count)
    edge = triangles[row]  # [F, 3]
    name = 3 * corners[EDGE_CORNER[edge], cell[:, None]] + EDGE_AXIS[edge]  # one number for each lattice edge
    used = np.zeros(3 * len(samples.keys), bool)
    used[name] = True
    number = np.cumsum(used, dtype=np.int32) - 1
    low, axis = np.divmod(np.flatnonzero(used), 3)
    high = samples.at(samples.keys[low] + lattice.steps(np.eye(3, dtype=int))[axis])
    return Welded(low, high, axis, crossing(samples.values[low], samples.values[high]), number[name])


def crossing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where values of opposite sign cross zero, by linear interpolation; at the box's face where one lies beyond it."""
    with np.errstate(invalid="ignore"):
        along = np.clip(low.astype(np.float64) / (low.astype(np.float64) - high), NEAREST, 1 - NEAREST)
    return np.where(np.isneginf(low), 1.0, np.where(np.isneginf(high), 0.0, along))
