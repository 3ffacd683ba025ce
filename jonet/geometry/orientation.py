"""Consistent orientation of polygon soups: weld vertices, resolve coinciding faces, orient parts outwards.

A surface is *closed* if its boundary chain is zero: its half-edges traverse each edge equally often in both
directions.  Then generalized winding numbers are integers (Jacobson et al. 2013, section 3).  Unlike "two faces per
edge", this also holds for boxes that share an edge and for a solid with a double-sided fin.

Notation: `V` vertices, `F` faces, `H` = 3F half-edges, `E` edges, `P` patches (faces connected by edges with exactly
two faces), `U` parts (patches that close each other, or a single open patch).
Vertices are centered and scaled to extent 1 by the caller, so tolerances are relative to the size of the mesh.
"""

from __future__ import annotations

from typing import NamedTuple

import igl
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

WELD = 1e-6  # vertices of open edges nearer than this are merged: rounding to float32 or to six printed digits
FLAT = 1e-5  # closed parts with a smaller ratio of volume to area are flat and have no outside
PAIRS = 32  # near pairs per vertex up to which they are listed
STEP = 1e-4  # offset of ray origins and probes from the surface


def weld(vertices, faces) -> tuple[np.ndarray, np.ndarray]:
    """Merges equal vertices, and vertices of open edges that nearly coincide; drops degenerate faces.

    Only vertices of open edges are merged with a tolerance, so fine detail of closed surfaces is kept.
    vertices [V, 3] of extent 1 -> indices of the kept vertices [W], faces that index these [F, 3].
    """
    order = np.lexsort(vertices.T)
    rows = vertices[order]
    new = np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)])
    group = np.empty(len(vertices), np.int64)
    group[order] = order[new][np.cumsum(new) - 1]  # lexsort is stable: the first of equal vertices represents them
    faces = _proper(group[faces])
    edge, _, count = edges(faces)
    rim = np.unique(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)[count[edge] % 2 == 1])
    if len(rim):
        label = chained(vertices[rim], WELD)
        _, lead = np.unique(label, return_index=True)
        group[rim] = rim[lead[label]]
        faces = _proper(group[faces])
    return np.unique(faces, return_inverse=True)


def chained(points, radius) -> np.ndarray:
    """Labels [N] of points [N, 3], equal for points that a chain of steps of at most `radius` connects.

    The number of pairs within the radius may be N², so many pairs are not listed: the points are grouped by cells of
    a grid so small that the points of a cell are within the radius, and of two cells only the nearest points matter.
    """
    tree = KDTree(points)
    if tree.count_neighbors(tree, radius) <= PAIRS * len(points):
        pairs = tree.query_pairs(radius, output_type="ndarray")
        return components(pairs[:, 0], pairs[:, 1], len(points))[1]
    keys, cell = np.unique(np.floor(points / (radius / 2)), axis=0, return_inverse=True)  # the diagonal is 0.87 radii
    cell = cell.reshape(-1)
    order = np.argsort(cell, kind="stable")
    members = np.split(points[order], np.flatnonzero(np.diff(cell[order])) + 1)
    # cells up to two apart along each axis can have points within the radius; most are connected by their first points
    i, j = KDTree(keys).query_pairs(2, p=np.inf, output_type="ndarray").T
    first = np.stack([inside[0] for inside in members])
    near = np.linalg.norm(first[i] - first[j], axis=1) <= radius
    _, label = components(i[near], j[near], len(keys))
    open_pairs = np.flatnonzero(label[i] != label[j])
    trees = {k: KDTree(members[k]) for k in np.unique(i[open_pairs])}
    for pair in open_pairs:
        near[pair] = trees[i[pair]].query(members[j[pair]])[0].min() <= radius
    return components(i[near], j[near], len(keys))[1][cell]


def _proper(faces):
    """The faces [F, 3] with three different vertices."""
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]


def components(i, j, count) -> tuple[int, np.ndarray]:
    """Connected components of `count` nodes with edges i - j: their number, and the label of each node [count]."""
    return connected_components(coo_array((np.ones(len(i), np.int8), (i, j)), (count, count)), directed=False)


def edges(faces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edge [H] of each half-edge, its direction [H] (1 towards the higher index, else -1), and the number of
    half-edges of each edge [E].  Half-edges 3i to 3i + 2 belong to face i."""
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    key = ends.min(1) * (ends.max(initial=0) + 1) + ends.max(1)
    _, edge, count = np.unique(key, return_inverse=True, return_counts=True)
    return edge, np.where(ends[:, 0] < ends[:, 1], 1, -1), count


def areas(vertices, faces) -> np.ndarray:
    """Areas of faces [F]."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def unfold(vertices, faces) -> tuple[np.ndarray, np.ndarray, bool]:
    """Resolves coinciding faces: one of equal faces is kept, opposite faces cancel, double-sided parts become single.

    Opposite faces are the contact of two boxes, or a fin of zero thickness: they bound nothing, and are returned
    separately as sheets [S, 3].  But a connected part that consists of such pairs only was modeled double-sided, to be
    visible from both sides: it is kept once if it is closed then, or if such parts are most of the mesh's area.
    -> faces, sheets, whether any part was double-sided.
    """
    a, b, c = np.sort(faces, axis=1).astype(np.int64).T
    # Faces with equal vertices coincide; the parity of their permutation tells equal from opposite winding.
    even = ((faces[:, 0] < faces[:, 1]).astype(int) + (faces[:, 1] < faces[:, 2]) + (faces[:, 2] < faces[:, 0])) == 2
    parity = np.where(even, 1, -1)
    count = faces.max() + 1
    _, pair = np.unique(a * count + b, return_inverse=True)  # renumbered, so that the products stay below 2⁶³
    _, first, same = np.unique(pair * count + c, return_index=True, return_inverse=True)
    net = np.bincount(same, parity)  # winding of each distinct face after cancellation: 0 is a sheet
    canceled, doubled = net == 0, np.zeros(len(first), bool)
    if canceled.any():
        edge, _, shared = edges(faces[first])
        owner = np.repeat(np.arange(len(first)), 3)
        component = components(owner, len(first) + edge, len(first) + len(shared))[1][: len(first)]
        rimmed = np.isin(component, component[owner[shared[edge] % 2 == 1]])  # single-sided, it would have open edges
        pure = ~np.isin(component, component[~canceled])  # consists of canceled pairs only
        area = areas(vertices, faces[first])
        doubled = pure & (~rimmed | (area[pure].sum() > 0.5 * area.sum()))
    order = np.argsort(first)  # the file's order
    winding_sign = np.where(doubled, parity[first], net)
    kept = faces[first]
    kept = np.where((winding_sign * parity[first] < 0)[:, None], kept[:, ::-1], kept)
    single, sheet = order[winding_sign[order] != 0], order[winding_sign[order] == 0]
    return kept[single], kept[sheet], bool(doubled.any())


class Surface(NamedTuple):
    """Faces wound consistently within each patch, and the parts that they form.

    vertices [V, 3]; faces [F, 3]; area [F]; part [F]: the part of each face; open [U]: parts with open edges;
    consistent: whether the winding was consistent as given; edge [H], direction [H], count [E]: see `edges`.
    """

    vertices: np.ndarray
    faces: np.ndarray
    area: np.ndarray
    part: np.ndarray
    open: np.ndarray
    consistent: bool
    edge: np.ndarray
    direction: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, vertices, faces) -> Surface:
        """From vertices [V, 3] and faces [F, 3]: makes the winding of each patch consistent, and groups patches into
        parts."""
        edge, direction, count = edges(faces)
        area = areas(vertices, faces)
        patch, sign, consistent = patches(edge, direction, count, area)
        faces = np.where(sign[:, None] < 0, faces[:, ::-1], faces)
        edge, direction, count = edges(faces)
        # The boundary chain of each patch: its nonzero coefficients, one per (patch, edge).  They are at edges with one
        # face or with more than two, which patches do not cross, and inside one-sided patches.
        owner = np.repeat(patch, 3)
        key, inverse = np.unique(owner * len(count) + edge, return_inverse=True)
        chain = np.bincount(inverse, direction, len(key)).astype(int)
        rim = np.flatnonzero(chain)
        owner, rim_edge = key[rim] // len(count), key[rim] % len(count)
        # Patches that meet at such edges form a group (a bipartite graph of patches and edges).  If the chains of a
        # group cancel, its patches close each other and are one part; else each of its patches is an open part.
        total = patch.max() + 1
        group = components(owner, total + rim_edge, total + len(count))[1][:total]
        unmatched = np.bincount(rim_edge, chain[rim], len(count)) != 0
        leaking = np.isin(group, group[owner[unmatched[rim_edge]]])
        _, part = np.unique(np.where(leaking, group.max() + 1 + np.arange(total), group), return_inverse=True)
        open_parts = np.zeros(part.max() + 1, bool)
        open_parts[part] = leaking
        return cls(vertices, faces, area, part[patch], open_parts, consistent, edge, direction, count)

    def flipped(self, flip) -> np.ndarray:
        """Faces [F, 3], reversed in parts where `flip` [U] is -1."""
        return np.where(flip[self.part][:, None] < 0, self.faces[:, ::-1], self.faces)

    def chain(self, flip) -> np.ndarray:
        """The boundary chain [E] after `flip` [U]: how often each edge is traversed forwards minus backwards."""
        return np.bincount(self.edge, self.direction * np.repeat(flip[self.part], 3), len(self.count)).astype(int)


def patches(edge, direction, count, area) -> tuple[np.ndarray, np.ndarray, bool]:
    """The patch [F] of each face, the sign [F] (-1: reverse the face) that makes each patch consistent, and whether the
    mesh was consistent already.

    Signs come from the orientation double cover: a graph with two nodes per face, one for each winding, connected to
    the compatible winding of each neighbor.  An orientable patch has two components in it, one per orientation; a
    one-sided patch (a Möbius strip) has one, and stays as given.  The winding of the larger area is kept.
    """
    faces = len(area)
    order = np.argsort(edge, kind="stable")
    start = (np.cumsum(count) - count)[count == 2]  # edges with exactly two faces
    one, two = order[start], order[start + 1]  # their half-edges
    against = direction[one] == direction[two]  # both faces traverse the edge in one direction: windings disagree
    f, g = one // 3, two // 3
    _, cover = components(
        np.concatenate([f, f + faces]),
        np.concatenate([np.where(against, g + faces, g), np.where(against, g, g + faces)]),
        2 * faces,
    )
    given, reverse = cover[:faces], cover[faces:]  # components of both windings of each face
    _, patch = np.unique(np.minimum(given, reverse), return_inverse=True)
    sign = np.where(given <= reverse, 1, -1)  # the component with the lower label; equal labels: one-sided
    majority = np.where(np.bincount(patch, sign * area) < 0, -1, 1)
    sign = sign * majority[patch]
    return patch, sign, not against.any()


def flips(surface: Surface, sheets) -> tuple[np.ndarray, int, int]:
    """The flip of each part [U] (-1: reverse, 1: keep), the number of cavities, and the number of open parts whose
    outside cannot be determined.

    Closed parts: by signed volume (`flip_closed`).  Open parts: outside is the side from which more rays escape
    (`escapes`), if the difference is significant.
    """
    area = np.bincount(surface.part, surface.area, len(surface.open))
    flip, cavities = flip_closed(surface, area)
    opened = np.flatnonzero(surface.open)
    if not len(opened):
        return flip, cavities, 0
    front, back = escapes(surface, sheets, opened)
    gap = np.abs(front - back)
    clear = (gap > 3 * np.sqrt(front + back + 1)) & (gap > 0.1 * (front + back))  # beyond 3 sigma of counts, and 10 %
    flip[opened] = np.where(front >= back, 1, -1)
    unclear = opened[~clear]
    sure = np.setdiff1d(np.arange(len(flip)), unclear)
    flip[unclear] = -1 if (flip * area)[sure].sum() < 0 else 1  # as most of the area: one exporter wrote all parts
    return flip, cavities, len(unclear)


def flip_closed(surface: Surface, area) -> tuple[np.ndarray, int]:
    """The flip of each closed part [U] by its signed volume (1 for open parts), and the number of cavities.

    A part inside another of opposite orientation is a cavity of it, and must face into its hollow.  Cavities are
    accepted only if the outermost parts agree in orientation (their signed volumes add up to over 90 % of the sum of
    absolute values): in a file that is partly inside out, the orientation of an inner part carries no information.
    """
    a, b, c = np.moveaxis(surface.vertices[surface.faces], 1, 0)
    volume = np.bincount(surface.part, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6, len(area))
    solid = np.flatnonzero(~surface.open & (np.abs(volume) > FLAT * area))
    solid = solid[np.argsort(-np.abs(volume[solid]), kind="stable")]
    sense = np.where(volume < 0, -1, 1)
    container = containers(surface, solid, sense)
    flip, target = np.ones((2, len(area)), int)  # target: 1 outwards, -1 a cavity
    roots = volume[solid[container[solid] < 0]]
    if abs(roots.sum()) > 0.9 * np.abs(roots).sum():
        for part in solid:  # by decreasing volume, so containers come before what they contain
            if container[part] >= 0:
                target[part] = -target[container[part]]  # alternates: a part within a cavity is solid again
    flip[solid] = sense[solid] * target[solid]
    return flip, int((target < 0).sum())


def containers(surface: Surface, solid, sense) -> np.ndarray:
    """The container [U] of each part in `solid` (by decreasing volume): the smallest part of opposite orientation that
    encloses all of it, or -1.  sense [U]: the sign of each part's volume."""
    container = np.full(len(sense), -1)
    if len(np.unique(sense[solid])) < 2:
        return container
    corners = surface.vertices[surface.faces]
    low, high = np.full((len(sense), 3), np.inf), np.full((len(sense), 3), -np.inf)
    np.minimum.at(low, surface.part, corners.min(1))
    np.maximum.at(high, surface.part, corners.max(1))
    order = np.argsort(surface.part, kind="stable")
    faces = np.split(order, np.cumsum(np.bincount(surface.part, minlength=len(sense)))[:-1])  # of each part
    rank = np.full(len(sense), -1)
    rank[solid] = np.arange(len(solid))
    # Only boxes that begin within the outer one can be inside of it, along the axis on which these are fewest.
    begins = [solid[np.argsort(low[solid, axis], kind="stable")] for axis in range(3)]
    ranges = [
        np.searchsorted(low[begin, axis], [low[solid, axis], high[solid, axis]]) for axis, begin in enumerate(begins)
    ]
    axis = int(np.argmin([(stop - start).sum() for start, stop in ranges]))
    for outer, start, stop in list(zip(solid, *ranges[axis], strict=True))[::-1]:  # the smallest come first
        inner = begins[axis][start:stop]
        inner = inner[(container[inner] < 0) & (sense[inner] != sense[outer]) & (rank[inner] > rank[outer])]
        inner = inner[(low[inner] >= low[outer]).all(1) & (high[inner] <= high[outer]).all(1)]
        if len(inner):
            samples = [corners[faces[part][:: len(faces[part]) // 64 + 1], 0] for part in inner]  # at most 64 vertices
            # The absolute value: the outer part itself may be inside out.
            inside = np.abs(winding(surface.vertices, surface.faces[faces[outer]], np.concatenate(samples))) > 0.5
            start = np.cumsum([0, *map(len, samples[:-1])])
            container[inner[np.logical_and.reduceat(inside, start)]] = outer
    return container


def winding(vertices, faces, points) -> np.ndarray:
    """Generalized winding numbers [N] of points [N, 3]."""
    faces, points = np.ascontiguousarray(faces, np.int64), np.ascontiguousarray(points)
    return np.asarray(igl.fast_winding_number(vertices, faces, points))


def spread(vertices, faces, chosen, rng) -> tuple[np.ndarray, np.ndarray]:
    """A uniform random point on each of the chosen faces [N], and the face's normal: [N, 3] each."""
    corners = vertices[faces[chosen]]
    points = np.einsum("nc,ncd->nd", rng.dirichlet(np.ones(3), len(chosen)), corners)  # uniform barycentric weights
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


class Sky:
    """A mesh as an embree scene, to count rays that escape to infinity."""

    def __init__(self, vertices, faces):
        self.scene = EmbreeScene(robust=True)
        TriangleMesh(self.scene, np.ascontiguousarray(vertices[faces], np.float32))

    def seen(self, points, directions) -> np.ndarray:
        """points [N, 3], directions [N, R, 3] -> how many of the R rays hit nothing, [N]."""
        origins = np.repeat(points, directions.shape[1], axis=0).astype(np.float32)
        free = self.scene.run(origins, directions.reshape(-1, 3).astype(np.float32)) < 0
        return free.reshape(directions.shape[:2]).sum(1)


def escapes(surface: Surface, sheets, opened, rays=8) -> tuple[np.ndarray, np.ndarray]:
    """How many rays escape from the front and from the back of each part in `opened` [K]: [K] each.

    As in Takayama et al. 2014: points by area on each part, `rays` cosine-weighted directions at each.  Sheets [S, 3]
    are obstacles, too.
    """
    rng = np.random.default_rng(0)
    points = min(max(2048 // len(opened), 8), 32)  # per part; fewer in files of many parts
    # Inverse transform sampling by area, for all parts at once: each part is a range of the cumulative areas.
    order = np.argsort(surface.part, kind="stable")
    total = np.concatenate([[0], np.cumsum(surface.area[order])])
    end = np.cumsum(np.bincount(surface.part))[opened]
    start = end - np.bincount(surface.part)[opened]
    draw = total[start, None] + (total[end] - total[start])[:, None] * rng.random((len(opened), points))
    rank = np.clip(np.searchsorted(total, draw, side="right") - 1, start[:, None], end[:, None] - 1)
    at, normals = spread(surface.vertices, surface.faces, order[rank.ravel()], rng)
    directions = rng.standard_normal((len(at), rays, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    directions = normals[:, None] + 0.999 * directions  # cosine-weighted: normal plus a unit vector, never zero
    sky = Sky(surface.vertices, np.concatenate([surface.faces, sheets]))
    front, back = (sky.seen(at + side * STEP * normals, side * directions) for side in (1, -1))
    return front.reshape(len(opened), -1).sum(1), back.reshape(len(opened), -1).sum(1)
