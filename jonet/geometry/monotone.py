"""Triangles of large simple polygons in n log n steps: a sweep cuts them into monotone pieces, each cut in one pass.

(Lee and Preparata 1977, Garey et al. 1978; de Berg et al., Computational Geometry, chapter 3.)
"""

from __future__ import annotations

import math

import numpy as np

AREA = 1e-6  # relative error of the area up to which triangles cover a polygon


def triangles(points: np.ndarray) -> np.ndarray | None:
    """The triangles [n - 2, 3] of a counter-clockwise polygon [n, 2], as indices of its corners.

    None for polygons that cross or touch themselves so that the triangles do not cover it.
    """
    if len(points) < 3:
        return None
    try:
        cutter = _Cutter(points)
        found = [each for piece in cutter.pieces() for each in cutter.cut(piece)]
    except (IndexError, ValueError, KeyError, RuntimeError):  # the sweep met an order that no simple polygon has
        return None
    corners = np.array(found, np.int64).reshape(-1, 3)
    if len(corners) != len(points) - 2:
        return None
    a, b, c = (points - points.mean(0))[corners.T]
    areas = _cross(b - a, c - a) / 2
    x, y = (points - points.mean(0)).T
    whole = float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    if not abs(float(np.abs(areas).sum()) - whole) <= AREA * abs(whole):
        return None
    return np.where((areas < 0)[:, None], corners[:, ::-1], corners)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


class _Cutter:
    """A polygon whose corners are swept from above, those of equal height from left to right.

    An edge has the number of its first corner.  edges: those that cross the sweep's line and have the inside on their
    right, from left to right.  helper: of such an edge, the last corner that is visible from it.
    """

    def __init__(self, points: np.ndarray):
        self.x, self.y = points[:, 0].tolist(), points[:, 1].tolist()
        self.count = len(points)
        order = np.lexsort((points[:, 0], -points[:, 1]))
        self.order = order.tolist()
        rank = np.empty(self.count, np.int64)
        rank[order] = np.arange(self.count)
        self.rank = rank.tolist()
        self.edges: list[int] = []
        self.helper: dict[int, int] = {}
        self.merges: set[int] = set()
        self.diagonals: list[tuple[int, int]] = []

    def side(self, a: int, b: int, c: int) -> float:
        """Above 0 if c is on the left of the way from a to b."""
        x, y = self.x, self.y
        return (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])

    def angle(self, a: int, b: int, c: int) -> float:
        """The angle at a from b to c, counter-clockwise, from 0 to 2 π."""
        to_b, to_c = (math.atan2(self.y[end] - self.y[a], self.x[end] - self.x[a]) for end in (b, c))
        return (to_c - to_b) % (2 * math.pi)

    def place(self, corner: int) -> int:
        """How many edges are on the left of a corner."""
        low, high = 0, len(self.edges)
        while low < high:
            middle = (low + high) // 2
            edge = self.edges[middle]
            if self.side(edge, (edge + 1) % self.count, corner) > 0:
                low = middle + 1
            else:
                high = middle
        return low

    def begin(self, corner: int) -> None:
        self.edges.insert(self.place(corner), corner)
        self.helper[corner] = corner

    def end(self, corner: int) -> None:
        """Ends the edge before a corner."""
        edge = (corner - 1) % self.count
        self.join(corner, edge)
        at = self.place(corner)
        if self.edges[at] != edge:
            at = self.edges.index(edge)
        del self.edges[at]

    def join(self, corner: int, edge: int) -> None:
        """A diagonal to the helper of an edge, if that is a corner where two pieces merge."""
        if self.helper[edge] in self.merges:
            self.diagonals.append((corner, self.helper[edge]))

    def left(self, corner: int) -> int:
        if not (at := self.place(corner)):
            raise ValueError("nothing is on the left of a corner inside")
        return self.edges[at - 1]

    def sweep(self) -> None:
        rank, count = self.rank, self.count
        for v in self.order:
            before, after = (v - 1) % count, (v + 1) % count
            falls, rises = rank[after] > rank[v], rank[before] > rank[v]
            convex = self.side(before, v, after) > 0
            if falls and rises:
                if not convex:  # splits the inside above it
                    edge = self.left(v)
                    self.diagonals.append((v, self.helper[edge]))
                    self.helper[edge] = v
                self.begin(v)
            elif not falls and not rises:
                self.end(v)
                if not convex:
                    edge = self.left(v)
                    self.join(v, edge)
                    self.helper[edge] = v
                    self.merges.add(v)
            elif falls:
                self.end(v)
                self.begin(v)
            else:
                edge = self.left(v)
                self.join(v, edge)
                self.helper[edge] = v

    def pieces(self) -> list[list[int]]:
        """The monotone pieces, each a list of corners counter-clockwise."""
        self.sweep()
        out: dict[int, list[int]] = {}
        for a, b in self.diagonals:
            out.setdefault(a, []).append(b)
            out.setdefault(b, []).append(a)
        for v, ends in out.items():  # counter-clockwise, from the way to the next corner on
            after = (v + 1) % self.count
            out[v] = [after, *sorted(ends, key=lambda end, v=v, after=after: self.angle(v, after, end))]
        following: dict[tuple[int, int], int] = {}  # the way that continues one, around the inside
        for v, ends in out.items():
            following[(v - 1) % self.count, v] = ends[-1]
            following |= {(end, v): ends[i - 1] for i, end in enumerate(ends) if i}
        ways = {(v, (v + 1) % self.count) for v in range(self.count)}
        ways |= {way for a, b in self.diagonals for way in ((a, b), (b, a))}
        found = []
        while ways:
            a, b = first = ways.pop()
            piece = [a]
            while True:
                a, b = b, following.get((a, b), (b + 1) % self.count)
                if (a, b) == first:
                    break
                ways.remove((a, b))
                piece.append(a)
            found.append(piece)
        return found

    def cut(self, piece: list[int]) -> list[tuple[int, int, int]]:
        """The triangles of a monotone piece."""
        top = min(range(len(piece)), key=lambda i: self.rank[piece[i]])
        piece = piece[top:] + piece[:top]
        bottom = max(range(len(piece)), key=lambda i: self.rank[piece[i]])
        on_left = set(piece[:bottom])
        order = sorted(piece, key=self.rank.__getitem__)
        found, stack = [], order[:2]
        for v in order[2:-1]:
            if (v in on_left) != (stack[-1] in on_left):
                found += [(v, a, b) for a, b in zip(stack[:-1], stack[1:], strict=True)]
                stack = [stack[-1], v]
                continue
            last = stack.pop()
            while stack and (self.side(stack[-1], last, v) > 0) == (v in on_left) and self.side(stack[-1], last, v):
                found.append((v, last, stack[-1]))
                last = stack.pop()
            stack += [last, v]
        return found + [(order[-1], a, b) for a, b in zip(stack[:-1], stack[1:], strict=True)]
