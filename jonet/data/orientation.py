"""Which way is out: a mesh is welded, its coinciding faces are resolved, and its parts are turned outwards.

A surface is *closed* in the sense of chains: each edge is run along equally often in both directions.  That is what
makes winding numbers whole (Jacobson et al. 2013, section 3); unlike two faces an edge, it also holds where boxes share
an edge or a body carries a doubled fin.  Notation: `V` vertices, `F` faces, `H` = 3F half-edges, `E` edges, `P` patches
(faces joined by edges that exactly two faces share), `U` parts (patches that close together, or one open patch).
Vertices come centred, with extent 1, so that neither units nor offsets matter.
"""

from __future__ import annotations

from typing import NamedTuple

import igl
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

WELD = 1e-6  # vertices of open edges nearer than this are one: rounding of float32 or of six printed digits
FLAT = 1e-5  # a closed part that is thinner than this has no outside to be turned to
STEP = 1e-4  # rays and probes stand off the surface by this


def weld(vertices, faces) -> tuple[np.ndarray, np.ndarray]:
    """Equal vertices become one, and so do vertices of open edges that nearly coincide; faces that vanish are dropped.

    vertices [V, 3] of extent 1 -> indices of the vertices that are kept [W], faces in terms of them [F, 3].
    """
    order = np.lexsort(vertices.T)
    rows = vertices[order]
    new = np.concatenate([[True], (rows[1:] != rows[:-1]).any(1)])
    group = np.empty(len(vertices), np.int64)
    group[order] = order[new][np.cumsum(new) - 1]  # the first of equal vertices stands for all
    faces = _proper(group[faces])
    edge, _, count = edges(faces)
    rim = np.unique(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)[count[edge] % 2 == 1])
    if len(rim):
        near = cKDTree(vertices[rim]).query_pairs(WELD, output_type="ndarray")
        _, label = components(near[:, 0], near[:, 1], len(rim))
        _, lead = np.unique(label, return_index=True)
        group[rim] = rim[lead[label]]
        faces = _proper(group[faces])
    return np.unique(faces, return_inverse=True)


def _proper(faces):
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]


def components(i, j, count) -> tuple[int, np.ndarray]:
    """Connected components of `count` nodes with edges i - j: their number, and each node's [count]."""
    return connected_components(coo_array((np.ones(len(i), np.int8), (i, j)), (count, count)), directed=False)


def edges(faces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each half-edge's edge [H] and direction [H] (1 to the higher vertex, else -1), and half-edges an edge [E]."""
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    key = ends.min(1) * (ends.max(initial=0) + 1) + ends.max(1)
    _, edge, count = np.unique(key, return_inverse=True, return_counts=True)
    return edge, np.where(ends[:, 0] < ends[:, 1], 1, -1), count


def areas(vertices, faces) -> np.ndarray:
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def unfold(vertices, faces) -> tuple[np.ndarray, np.ndarray, bool]:
    """Faces that coincide: of equal ones one is kept, and of opposite ones none, unless the surface itself is doubled.

    Opposite faces cancel, as where two boxes touch or in a fin of zero thickness: such sheets [S, 3] are handed out
    apart.  But a part that consists of nothing else was made to be seen from both sides: it is kept once if it then
    encloses something, or if it is most of the mesh.  -> faces, sheets, whether any part was doubled.
    """
    a, b, c = np.sort(faces, axis=1).astype(np.int64).T
    even = ((faces[:, 0] < faces[:, 1]).astype(int) + (faces[:, 1] < faces[:, 2]) + (faces[:, 2] < faces[:, 0])) == 2
    parity = np.where(even, 1, -1)
    count = faces.max() + 1
    _, pair = np.unique(a * count + b, return_inverse=True)  # so that numbers stay below 2⁶³
    _, first, same = np.unique(pair * count + c, return_index=True, return_inverse=True)
    net = np.bincount(same, parity)
    cancelled, doubled = net == 0, np.zeros(len(first), bool)
    if cancelled.any():
        edge, _, shared = edges(faces[first])
        owner = np.repeat(np.arange(len(first)), 3)
        component = components(owner, len(first) + edge, len(first) + len(shared))[1][: len(first)]
        rimmed = np.isin(component, component[owner[shared[edge] % 2 == 1]])
        pure = ~np.isin(component, component[~cancelled])
        area = areas(vertices, faces[first])
        doubled = pure & (~rimmed | (area[pure].sum() > 0.5 * area.sum()))
    order = np.argsort(first)
    wanted = np.where(doubled, parity[first], net)
    kept = faces[first]
    kept = np.where((wanted * parity[first] < 0)[:, None], kept[:, ::-1], kept)
    single, sheet = order[wanted[order] != 0], order[wanted[order] == 0]
    return kept[single], kept[sheet], bool(doubled.any())


class Surface(NamedTuple):
    """Faces wound consistently in each patch, and the parts that they make up.

    vertices [V, 3]; faces [F, 3]; area [F]; part [F]; open [U]: parts with a rim; consistent: nothing was changed;
    edge [H], direction [H] and count [E] as `edges` gives them.
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
        edge, direction, count = edges(faces)
        area = areas(vertices, faces)
        patch, sign, consistent = patches(edge, direction, count, area)
        faces = np.where(sign[:, None] < 0, faces[:, ::-1], faces)
        edge, direction, count = edges(faces)
        # What is left of each patch's boundary, and which patches close each other's.
        owner = np.repeat(patch, 3)
        place, inverse = np.unique(owner * len(count) + edge, return_inverse=True)
        rest = np.bincount(inverse, direction, len(place)).astype(int)
        rim = np.flatnonzero(rest)
        owner, left = place[rim] // len(count), place[rim] % len(count)
        total = patch.max() + 1
        group = components(owner, total + left, total + len(count))[1][:total]
        unmatched = np.bincount(left, rest[rim], len(count)) != 0
        leaking = np.isin(group, group[owner[unmatched[left]]])
        _, part = np.unique(np.where(leaking, group.max() + 1 + np.arange(total), group), return_inverse=True)
        open_parts = np.zeros(part.max() + 1, bool)
        open_parts[part] = leaking
        return cls(vertices, faces, area, part[patch], open_parts, consistent, edge, direction, count)

    def turned(self, turn) -> np.ndarray:
        """Faces [F, 3] with parts reversed where `turn` [U] is -1."""
        return np.where(turn[self.part][:, None] < 0, self.faces[:, ::-1], self.faces)

    def chain(self, turn) -> np.ndarray:
        """How much more often each edge is run along forwards than backwards, [E], with parts turned so."""
        return np.bincount(self.edge, self.direction * np.repeat(turn[self.part], 3), len(self.count)).astype(int)


def patches(edge, direction, count, area) -> tuple[np.ndarray, np.ndarray, bool]:
    """Each face's patch [F], the sign [F] that winds its patch alike, and whether all signs were 1 already.

    Signs are found on the double cover: every face is there in both windings, joined to those of its neighbours that
    fit.  A patch whose two copies are joined is one-sided and stays as given.  The larger area keeps its winding.
    """
    faces = len(area)
    order = np.argsort(edge, kind="stable")
    start = (np.cumsum(count) - count)[count == 2]
    one, two = order[start], order[start + 1]
    against = direction[one] == direction[two]
    f, g = one // 3, two // 3
    _, cover = components(
        np.concatenate([f, f + faces]),
        np.concatenate([np.where(against, g + faces, g), np.where(against, g, g + faces)]),
        2 * faces,
    )
    here, there = cover[:faces], cover[faces:]
    _, patch = np.unique(np.minimum(here, there), return_inverse=True)
    sign = np.where(here <= there, 1, -1)
    majority = np.where(np.bincount(patch, sign * area) < 0, -1, 1)
    sign = sign * majority[patch]
    return patch, sign, not against.any()


def turns(surface: Surface, sheets) -> tuple[np.ndarray, int, int]:
    """Which parts to turn [U] (-1) or leave (1), the number of cavities, that of parts whose outside is not seen."""
    area = np.bincount(surface.part, surface.area, len(surface.open))
    turn, cavities = turn_closed(surface, area)
    opened = np.flatnonzero(surface.open)
    if not len(opened):
        return turn, cavities, 0
    front, back = escapes(surface, sheets, opened)
    gap = np.abs(front - back)
    clear = (gap > 3 * np.sqrt(front + back + 1)) & (gap > 0.1 * (front + back))
    turn[opened] = np.where(front >= back, 1, -1)
    vague = opened[~clear]
    sure = np.setdiff1d(np.arange(len(turn)), vague)
    turn[vague] = -1 if (turn * area)[sure].sum() < 0 else 1  # as most of the file, where nothing else tells
    return turn, cavities, len(vague)


def turn_closed(surface: Surface, area) -> tuple[np.ndarray, int]:
    """Closed parts by their signed volume; one that lies in another of the other sense is that one's cavity.

    Cavities are believed only where the outermost parts (by nine tenths of their volume) are all wound one way: in a
    file that is half inside out, the sense of an inner part says nothing.
    """
    a, b, c = np.moveaxis(surface.vertices[surface.faces], 1, 0)
    volume = np.bincount(surface.part, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6, len(area))
    solid = np.flatnonzero(~surface.open & (np.abs(volume) > FLAT * area))
    solid = solid[np.argsort(-np.abs(volume[solid]), kind="stable")]
    sense = np.where(volume < 0, -1, 1)
    container = containers(surface, solid, sense)
    turn, want = np.ones((2, len(area)), int)
    roots = volume[solid[container[solid] < 0]]
    if abs(roots.sum()) > 0.9 * np.abs(roots).sum():
        for part in solid:  # from the largest, so that containers come first
            if container[part] >= 0:
                want[part] = -want[container[part]]
    turn[solid] = sense[solid] * want[solid]
    return turn, int((want < 0).sum())


def containers(surface: Surface, solid, sense) -> np.ndarray:
    """Of each part in `solid` (largest first), the smallest of the other sense that holds all of it, else -1: [U]."""
    container = np.full(len(sense), -1)
    if len(np.unique(sense[solid])) < 2:
        return container
    corners = surface.vertices[surface.faces]
    low, high = np.full((len(sense), 3), np.inf), np.full((len(sense), 3), -np.inf)
    np.minimum.at(low, surface.part, corners.min(1))
    np.maximum.at(high, surface.part, corners.max(1))
    samples = {part: corners[surface.part == part][:, 0] for part in solid}
    for rank, outer in enumerate(solid):
        inner = solid[rank + 1 :]
        inner = inner[sense[inner] != sense[outer]]
        inner = inner[(low[inner] >= low[outer]).all(1) & (high[inner] <= high[outer]).all(1)]
        for part in inner:
            points = samples[part][:: len(samples[part]) // 64 + 1]
            if (np.abs(winding(surface.vertices, surface.faces[surface.part == outer], points)) > 0.5).all():
                container[part] = outer
    return container


def winding(vertices, faces, points) -> np.ndarray:
    """Generalised winding numbers [N] of points [N, 3]."""
    return igl.fast_winding_number(vertices, np.ascontiguousarray(faces, np.int64), np.ascontiguousarray(points))


def spread(vertices, faces, chosen, rng) -> tuple[np.ndarray, np.ndarray]:
    """A random point on each of the chosen faces, and the face's normal: [N, 3] each."""
    corners = vertices[faces[chosen]]
    points = np.einsum("nc,ncd->nd", rng.dirichlet(np.ones(3), len(chosen)), corners)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


class Sky:
    """A scene for rays: from where is the open seen?"""

    def __init__(self, vertices, faces):
        self.scene = EmbreeScene(robust=True)
        TriangleMesh(self.scene, np.ascontiguousarray(vertices[faces], np.float32))

    def seen(self, points, directions) -> np.ndarray:
        """points [N, 3], directions [N, R, 3] -> how many of the R rays meet nothing, [N]."""
        origins = np.repeat(points, directions.shape[1], axis=0).astype(np.float32)
        free = self.scene.run(origins, directions.reshape(-1, 3).astype(np.float32)) < 0
        return free.reshape(directions.shape[:2]).sum(1)


def escapes(surface: Surface, sheets, opened, rays=8) -> tuple[np.ndarray, np.ndarray]:
    """Of each opened part, how many rays from its front and from its back reach the open (Takayama et al. 2014)."""
    rng = np.random.default_rng(0)
    points = min(max(2048 // len(opened), 8), 32)
    order = np.argsort(surface.part, kind="stable")
    total = np.concatenate([[0], np.cumsum(surface.area[order])])
    end = np.cumsum(np.bincount(surface.part))[opened]
    start = end - np.bincount(surface.part)[opened]
    draw = total[start, None] + (total[end] - total[start])[:, None] * rng.random((len(opened), points))
    rank = np.clip(np.searchsorted(total, draw, side="right") - 1, start[:, None], end[:, None] - 1)
    at, normals = spread(surface.vertices, surface.faces, order[rank.ravel()], rng)
    directions = rng.standard_normal((len(at), rays, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    directions = normals[:, None] + 0.999 * directions  # by the cosine to the normal
    sky = Sky(surface.vertices, np.concatenate([surface.faces, sheets]))
    front, back = (sky.seen(at + side * STEP * normals, side * directions) for side in (1, -1))
    return front.reshape(len(opened), -1).sum(1), back.reshape(len(opened), -1).sum(1)
