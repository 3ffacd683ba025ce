"""Which cells of a fine grid the surface crosses, found coarse to fine; the grid itself is never made.

Values are signed here: positive inside.  A bound L on the slope, |f(p) - f(q)| ≤ L |p - q|, makes a sample q prove the
sign of every point nearer than |f(q)| / L.  So a point whose sign its coarser neighbours prove is not asked, a cell all
of whose points are proven is left at once, and only the ends of edges that the surface crosses need their values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet.inference.grid import Asker, Lattice, ask
from jonet.inference.marching import CORNERS, EDGE_CORNER, FACES, OTHER_CORNER, Samples

COARSE = 16  # cells a side to begin with: at least these, less than twice as many
SAFETY = 1.15  # L is estimated as SAFETY times a quantile of the slopes near the surface
# Distances are about as steep everywhere.  Logits are far steeper in few places: a bound that holds there proves little
# elsewhere and asks for twice the points; the middle serves, and spreading repairs what it gets wrong.
QUANTILE = {-1: 0.9, 1: 0.5}  # by `Field.inside`
NEAR = 1024  # samples nearest to the level, a quarter of whose slopes the quantile is of
WORTH = 0.5  # a proof that leaves less than this part of the bound is not worth keeping: the point is asked

HALVED = np.stack(np.meshgrid(*[range(3)] * 3, indexing="ij"), -1).reshape(27, 3)  # points of a halved cell
NEW = (HALVED == 1).any(-1)  # those that are no corners; the others come in the order of CORNERS
APART = np.sqrt((HALVED == 1).sum(-1)).astype(np.float32)  # from the nearest corners, in halves
CHILD = (CORNERS[:, None] + CORNERS) @ [9, 3, 1]  # [8 children, 8 corners] → points of the halved cell


def bounds(asker: Asker, keys, values) -> np.ndarray:
    """L of each shape [B], estimated from gradients at a quarter of its 1,024 samples that are nearest to the level.

    keys, values [B, P].
    """
    count = min(NEAR, keys.shape[1])
    nearest = np.sort(np.argpartition(np.abs(values), count - 1, axis=1)[:, :count], axis=1)[:, ::4]  # spread in space
    shape, points = asker.points(np.take_along_axis(keys, nearest, 1).ravel())
    _, gradients = ask(asker.fields, shape, points, gradient=True)
    asker.asked += len(points)
    steepness = np.linalg.norm(gradients.astype(np.float64), axis=-1).reshape(nearest.shape)
    return SAFETY * np.nan_to_num(np.nanquantile(steepness, QUANTILE[asker.fields.inside], axis=1))


class Cells(NamedTuple):
    """Cells of one size: keys [C] of their lowest corners; of their corners signed values [8, C] and whether each was
    asked (exact) or is what a proof leaves: of the right sign, and no larger than the value (so it proves on)."""

    keys: np.ndarray
    values: np.ndarray
    exact: np.ndarray


class Found(NamedTuple):
    """The signed samples at the corners of the surface's cells, and where among them those of each cell are.

    corners [8, C], cells in the order of their keys.  range [B, 2]: lowest and highest value of each shape's coarse
    samples.  slopes [B]: the bounds L.
    """

    samples: Samples
    corners: np.ndarray
    range: np.ndarray
    slopes: np.ndarray


def search(asker: Asker, coarse: int = COARSE, lipschitz: float | None = None) -> Found:
    """The surface's cells of all shapes of a batch at once.  coarse: cells a side at the start, at least.

    lipschitz: the bound L in values per unit of length, or None to estimate it.  Where the bound holds, the result is
    that of the whole grid.  Where it fails, it still is for every part of the surface of which one cell was found:
    a wrong proof makes an edge look crossed, its ends are then asked, and cells spread to their neighbours from there.
    """
    lattice, shapes = asker.lattice, len(asker.fields)
    step = 1
    while step < lattice.resolution and -(-lattice.resolution // (2 * step)) >= coarse:
        step *= 2
    side = -(-lattice.resolution // step) + 1
    keys = lattice.keys(0, step * np.indices((side,) * 3).reshape(3, -1).T)
    keys = keys + (np.arange(shapes, dtype=np.int64) << 3 * lattice.bits)[:, None]
    values = asker(keys.ravel()).reshape(shapes, -1)
    slopes = bounds(asker, keys, values) if lipschitz is None else np.full(shapes, float(lipschitz))
    reach = (slopes * lattice.cell(np.arange(shapes))).astype(np.float32)

    lowest = np.indices((side - 1,) * 3).reshape(3, -1)
    corner = np.ravel_multi_index((lowest + CORNERS[..., None]).swapaxes(0, 1), (side,) * 3)  # [8, cells]
    at = values[:, corner].swapaxes(0, 1).reshape(8, -1)
    cells = Cells(keys[:, corner[0]].ravel(), at, np.ones(at.shape, bool))
    keep = may_hold(lattice, cells.keys, at.min(0), at.max(0), step, reach)
    cells = spread(asker, Cells(*(array[..., keep] for array in cells)), step)
    while step > 1:
        cells = halve(asker, cells, step, reach)
        step //= 2
        cells = spread(asker, cells, step)
    order = np.argsort(cells.keys)
    samples, _, at = corners(Cells(*(array[..., order] for array in cells)), lattice.steps(CORNERS)[:, None])
    return Found(samples, at, np.stack([values.min(1), values.max(1)], -1), slopes)


def may_hold(lattice: Lattice, keys, least, greatest, step: int, reach) -> np.ndarray:
    """Which cells of this size may hold surface or, along the border of the box, a lid.

    keys [C], least, greatest [C] of each cell's corners → [C].  Every point of a cell lies within half the diagonal of
    some corner and within the diagonal of all.  Cells of size 1 hold surface if their corners' signs differ.
    """
    if step == 1:
        held = (greatest > 0) & (least <= 0)
    else:
        diagonal = np.float32(np.sqrt(3) * step) * reach[lattice.shape(keys)]
        nearest = np.maximum(least, -greatest)  # of the values to the level; not positive where signs differ
        farthest = np.maximum(greatest, -least)
        held = ~((nearest > diagonal / 2) | (nearest > 0) & (farthest > diagonal))
    border = np.zeros(len(keys), bool)
    within = np.ones(len(keys), bool)
    for axis in range(3):
        along = lattice.along(keys, axis)
        border |= (along == 0) | (along + step >= lattice.resolution)
        within &= along < lattice.resolution
    return within & (held | border & (greatest > 0))


def halve(asker: Asker, cells: Cells, step: int, reach) -> Cells:
    """Those of the cells' halves that may hold surface."""
    lattice, half = asker.lattice, step // 2
    away = APART[NEW][:, None] * (half * reach[lattice.shape(cells.keys)])  # the bound, from the nearest corners
    inside = widen(cells.values, np.maximum)[NEW] - away  # positive: proven inside
    outside = -widen(cells.values, np.minimum)[NEW] - away
    keys = cells.keys + lattice.steps(half * HALVED[NEW])[:, None]
    order = np.argsort(keys, axis=None)
    keys = keys.ravel()[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    starts = np.flatnonzero(first)
    keys = keys[starts]
    inside = np.maximum.reduceat(inside.ravel()[order], starts) if len(keys) else inside.ravel()
    outside = np.maximum.reduceat(outside.ravel()[order], starts) if len(keys) else outside.ravel()
    enough = WORTH * half * reach[lattice.shape(keys)] if half > 1 else 0
    asked = ((inside > 0) == (outside > 0)) | (np.maximum(inside, outside) <= enough)
    values = np.where(inside > 0, inside, -outside)
    values[asked] = asker(keys[asked])

    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(first) - 1
    cube, exact = np.empty((27, len(cells.keys)), np.float32), np.empty((27, len(cells.keys)), bool)
    cube[~NEW], exact[~NEW] = cells.values, cells.exact
    cube[NEW], exact[NEW] = values[place].reshape(19, -1), asked[place].reshape(19, -1)
    children = []
    for corner, offset in zip(CHILD, lattice.steps(half * CORNERS), strict=True):
        corners = cube[corner]
        keep = may_hold(lattice, cells.keys + offset, corners.min(0), corners.max(0), half, reach)
        children.append((cells.keys[keep] + offset, corners[:, keep], exact[corner][:, keep]))
    return Cells(*(np.concatenate(arrays, -1) for arrays in zip(*children, strict=True)))


def widen(corners, pick) -> np.ndarray:
    """Corners [8, C] → [27, C]: each point of the halved cells gets the greatest (or least) of its nearest corners."""
    cube = np.empty((3, 3, 3, corners.shape[1]), np.float32)
    cube[::2, ::2, ::2] = corners.reshape(2, 2, 2, -1)
    cube[1, ::2, ::2] = pick(cube[0, ::2, ::2], cube[2, ::2, ::2])
    cube[:, 1, ::2] = pick(cube[:, 0, ::2], cube[:, 2, ::2])
    cube[:, :, 1] = pick(cube[:, :, 0], cube[:, :, 2])
    return cube.reshape(27, -1)


def spread(asker: Asker, cells: Cells, step: int) -> Cells:
    """All cells of the surface from those found, with the values at both ends of every crossed edge asked.

    Cells spread across faces on which signs differ; the finest also to the layer beyond the box (-inf) where the inside
    touches its border.  This finds what wrong proofs have hidden, and at every size, since one large cell stands for
    many small ones.  Repeats for the cells that are new or have a corner whose sign has changed, until there are none.
    """
    lattice = asker.lattice
    corner = lattice.steps(step * CORNERS)[:, None]
    order = np.argsort(cells.keys)  # neighbours are looked up faster in order
    cells = Cells(*(array[..., order] for array in cells))
    looked = np.arange(len(order))
    while len(looked):
        turned = settle(asker, cells, looked, corner)
        beside = neighbours(lattice, cells, np.concatenate([looked, turned]), step)
        looked = np.concatenate([turned, np.arange(len(cells.keys), len(cells.keys) + len(beside))])
        if len(beside):
            both = zip(cells, added(asker, cells, beside, step), strict=True)
            cells = Cells(*(np.concatenate(arrays, -1) for arrays in both))
    return cells


def settle(asker: Asker, cells: Cells, looked, corner) -> np.ndarray:
    """Asks those ends of some cells' crossed edges that were not, for all cells → which of all have a changed sign."""
    values = cells.values[:, looked]
    inside, within = values > 0, np.isfinite(values)
    ends = np.zeros(inside.shape, bool)
    for low, high in zip(EDGE_CORNER, OTHER_CORNER, strict=True):
        crossed = (inside[low] != inside[high]) & within[low] & within[high]  # lids need none
        ends[low] |= crossed
        ends[high] |= crossed
    ends &= ~cells.exact[:, looked]
    keys = distinct((cells.keys[looked] + corner)[ends])
    if not len(keys):
        return np.zeros(0, int)
    asked = Samples(keys, asker(keys))
    around = np.flatnonzero(among(cells.keys, distinct(keys - corner)))  # far fewer than all, in most rounds
    which, cell = np.nonzero(~cells.exact[:, around])
    cell = around[cell]
    keys = cells.keys[cell] + corner[which, 0]
    here = asked.has(keys)
    which, cell, new = which[here], cell[here], asked.values[asked.at(keys[here])]
    turned = distinct(cell[(cells.values[which, cell] > 0) != (new > 0)])
    cells.values[which, cell], cells.exact[which, cell] = new, True
    return turned


def neighbours(lattice: Lattice, cells: Cells, looked, step: int) -> np.ndarray:
    """The cells, not there yet, to which some of the cells spread: their keys, ascending."""
    keys, inside = cells.keys[looked], cells.values[:, looked] > 0
    beside = []
    for (axis, side), face in FACES.items():
        border = (step == 1) & (lattice.along(keys, axis) == side * (lattice.resolution - 1))
        open_face = inside[face].any(0) & (border | ~inside[face].all(0))
        beside.append(keys[open_face] + (2 * side - 1) * step * lattice.steps(np.eye(3, dtype=int)[axis]))
    beside = distinct(np.concatenate(beside))
    if step > 1:
        for axis in range(3):
            along = lattice.along(beside, axis)
            beside = beside[(along >= 0) & (along < lattice.resolution)]
    return beside[~among(beside, np.sort(cells.keys))]


def added(asker: Asker, cells: Cells, keys, step: int) -> Cells:
    """New cells, whose corners are asked where no other cell has them."""
    lattice = asker.lattice
    corner = lattice.steps(step * CORNERS)[:, None]
    around = among(cells.keys, distinct(keys + lattice.steps(step * (HALVED - 1))[:, None]))
    known, exact, _ = corners(Cells(*(array[..., around] for array in cells)), corner)
    new = distinct(keys + corner)
    new = new[~known.has(new)]
    values = np.full(len(new), -np.inf, np.float32)
    within = ~lattice.beyond(new) | (step > 1)
    values[within] = asker(new[within])
    order = np.argsort(both := np.concatenate([known.keys, new]))
    known = Samples(both[order], np.concatenate([known.values, values])[order])
    exact = np.concatenate([exact, np.ones(len(new), bool)])[order]
    at = known.at(keys + corner)
    return Cells(keys, known.values[at], exact[at])


def corners(cells: Cells, corner) -> tuple[Samples, np.ndarray, np.ndarray]:
    """The corners of cells, each once, whether they were asked, and where those of each cell are [8, C]."""
    keys = distinct(cells.keys + corner)
    samples, exact = Samples(keys, np.empty(len(keys), np.float32)), np.empty(len(keys), bool)
    at = samples.at(cells.keys + corner)
    samples.values[at], exact[at] = cells.values, cells.exact
    return samples, exact, at


def among(keys, others) -> np.ndarray:
    """Which keys are among others, which ascend."""
    return Samples(others, others).has(keys)


def distinct(keys) -> np.ndarray:
    """Every key once, ascending (sorting integers beats numpy's hashing here)."""
    keys = np.sort(keys, axis=None)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]]


def crossed(lattice: Lattice, shape: int, values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same from a whole grid of signed values [R+1, R+1, R+1]: keys and values of samples, keys of cells [C]."""
    padded = np.pad(values, 1, constant_values=-np.inf)
    inside = np.zeros(np.subtract(padded.shape, 1), np.uint8)
    for x, y, z in CORNERS:
        inside += padded[x:, y:, z:][: len(inside), : len(inside), : len(inside)] > 0
    cells = lattice.keys(shape, np.argwhere((inside > 0) & (inside < 8)) - 1)
    keys = distinct(cells + lattice.steps(CORNERS)[:, None])
    return keys, padded[*(lattice.index(keys) + 1).T], cells
