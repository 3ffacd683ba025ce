"""The cells of a fine grid that the surface crosses, found coarse to fine without evaluating the whole grid.

Values are signed here: positive inside.  With a Lipschitz bound L, |f(p) - f(q)| ≤ L |p - q|, a sample at q proves the
sign of every point closer than |f(q)| / L.  This saves evaluations in three places:

- a cell whose corners prove the sign of all of its points is discarded (`may_hold`),
- a new point whose sign is proven by its coarser neighbors is not evaluated (`subdivide`),
- exact values are needed only at the ends of edges that the surface crosses (`evaluate_crossed_edges`).

L is an estimate, so proofs can be wrong.  At every level `flood_fill` repairs this: it evaluates the ends of all edges
that seem crossed, and extends the set of cells along the surface.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet.inference.surfaces.grid import FieldEvaluator, Lattice, evaluate_points
from jonet.inference.surfaces.marching_cubes import CORNERS, EDGE_CORNER, FACES, OTHER_CORNER, Samples

COARSE = 16  # least number of cells a side of the coarsest grid, which has less than twice as many
# L is estimated as SAFETY times a quantile of the gradients' norms near the surface.  A bound that always holds would
# be larger: that of a spline of 256 cells a side, by the differences of its coefficients, was 2.8 times as large, and
# took 3.4 times as many evaluations for the same mesh.
SAFETY = 1.15
# Signed distances have about the same slope everywhere.  Logits are much steeper in a few places: a bound that holds
# there proves little elsewhere and needs twice as many evaluations.  The median suffices, since `flood_fill` repairs
# wrong proofs.
QUANTILE = {-1: 0.9, 1: 0.5}  # by `Field.inside`
NEAR = 1024  # samples closest to the level; the gradients of a quarter of them are used
WORTH = 0.5  # a proof with a margin below this fraction of the bound proves little at the next level: evaluate instead

# A subdivided cell has 27 points: its 8 corners and 19 new ones.
HALVED = np.stack(np.meshgrid(*[range(3)] * 3, indexing="ij"), -1).reshape(27, 3)  # their offsets in half cells
NEW = (HALVED == 1).any(-1)  # the 19 new points; the others are the corners in the order of CORNERS
APART = np.sqrt((HALVED == 1).sum(-1)).astype(np.float32)  # distance to the nearest corners, in half cells
CHILD = (CORNERS[:, None] + CORNERS) @ [9, 3, 1]  # [8 children, 8 corners] → indices of the 27 points


def bounds(evaluator: FieldEvaluator, keys, values) -> np.ndarray:
    """L of each shape [B], estimated from gradients at a quarter of the 1,024 samples that are closest to the level.

    keys, values [B, P].
    """
    count = min(NEAR, keys.shape[1])
    # sorted by key before every fourth is taken, so that these are spread over the surface
    nearest = np.sort(np.argpartition(np.abs(values), count - 1, axis=1)[:, :count], axis=1)[:, ::4]
    shape, points = evaluator.points(np.take_along_axis(keys, nearest, 1).ravel())
    _, gradients = evaluate_points(evaluator.fields, shape, points, gradient=True)
    evaluator.num_evaluations += len(points)
    steepness = np.linalg.norm(gradients.astype(np.float64), axis=-1).reshape(nearest.shape)
    return SAFETY * np.nan_to_num(np.nanquantile(steepness, QUANTILE[evaluator.fields.inside], axis=1))


class Cells(NamedTuple):
    """Cells of one size: keys [C] of their lowest corners, and for each corner a signed value and whether it is exact.

    values, exact [8, C].  A value that is not exact comes from a proof: it has the sign of the field's value and
    at most its magnitude, so it can be used in further proofs.
    """

    keys: np.ndarray
    values: np.ndarray
    exact: np.ndarray


class Found(NamedTuple):
    """The signed samples at the corners of the surface's cells, and the index among them of each cell's corners.

    corners [8, C], cells in the order of their keys.  range [B, 2]: least and greatest value of each shape's coarse
    samples.  slopes [B]: the bounds L.
    """

    samples: Samples
    corners: np.ndarray
    range: np.ndarray
    slopes: np.ndarray


def search(evaluator: FieldEvaluator, coarse: int = COARSE, lipschitz: float | None = None) -> Found:
    """The surface's cells of all shapes of a batch.  coarse: least number of cells a side of the coarsest grid.

    lipschitz: the bound L in values per unit of length, or None to estimate it.
    If the bound holds, the result is that of the whole grid.  If it fails, this is still true for every connected part
    of the surface of which one cell was found: next to the true surface a wrong proof makes an edge look crossed, its
    ends are then evaluated, and cells are added to neighbors from there.
    """
    lattice, shapes = evaluator.lattice, len(evaluator.fields)
    step = coarsest(lattice.resolution, coarse)
    side = -(-lattice.resolution // step) + 1
    keys = lattice.keys(0, step * np.indices((side,) * 3).reshape(3, -1).T)
    keys = keys + (np.arange(shapes, dtype=np.int64) << 3 * lattice.bits)[:, None]
    values = evaluator(keys.ravel()).reshape(shapes, -1)
    slopes = bounds(evaluator, keys, values) if lipschitz is None else np.full(shapes, float(lipschitz))
    reach = (slopes * lattice.cell(np.arange(shapes))).astype(np.float32)  # L times one finest cell, for each shape

    # all coarse cells of all shapes, with exact values
    lowest = np.indices((side - 1,) * 3).reshape(3, -1)
    corner = np.asarray(np.ravel_multi_index((lowest + CORNERS[..., None]).swapaxes(0, 1), (side,) * 3))  # [8, cells]
    at = values[:, corner].swapaxes(0, 1).reshape(8, -1)
    cells = Cells(keys[:, corner[0]].ravel(), at, np.ones(at.shape, bool))
    keep = may_hold(lattice, cells.keys, at.min(0), at.max(0), step, reach)
    cells = flood_fill(evaluator, Cells(*(array[..., keep] for array in cells)), step)
    while step > 1:
        cells = subdivide(evaluator, cells, step, reach)
        step //= 2
        cells = flood_fill(evaluator, cells, step)
    order = np.argsort(cells.keys)
    samples, _, at = corners(Cells(*(array[..., order] for array in cells)), lattice.steps(CORNERS)[:, None])
    return Found(samples, at, np.stack([values.min(1), values.max(1)], -1), slopes)


def coarsest(resolution: int, coarse: int) -> int:
    """The size of the coarsest cells, a power of two: the largest that leaves `coarse` of them a side."""
    step = 1
    while step < resolution and -(-resolution // (2 * step)) >= coarse:
        step *= 2
    return step


def may_hold(lattice: Lattice, keys, least, greatest, step: int, reach) -> np.ndarray:
    """Which cells of this size may contain surface or, at the border of the box, a lid.

    keys [C]; least, greatest [C]: values of each cell's corners → [C].  A cell of size 1 contains surface if the signs
    of its corners differ.  A larger one is free of it if all corners have one sign, and either all values exceed the
    bound for half the diagonal (every point is that close to some corner), or one value exceeds the bound for the whole
    diagonal (every point is that close to every corner).
    """
    if step == 1:
        crossed = (greatest > 0) & (least <= 0)
    else:
        diagonal = np.float32(np.sqrt(3) * step) * reach[lattice.shape(keys)]
        nearest = np.maximum(least, -greatest)  # the least distance to the level; not positive if signs differ
        farthest = np.maximum(greatest, -least)
        crossed = ~((nearest > diagonal / 2) | (nearest > 0) & (farthest > diagonal))
    # The box closes a shape that reaches beyond it by a lid, so cells at its border count if a corner is inside.
    border = np.zeros(len(keys), bool)
    within = np.ones(len(keys), bool)
    for axis in range(3):
        along = lattice.coordinate(keys, axis)
        border |= (along == 0) | (along + step >= lattice.resolution)
        within &= along < lattice.resolution
    return within & (crossed | border & (greatest > 0))


def subdivide(evaluator: FieldEvaluator, cells: Cells, step: int, reach) -> Cells:
    """The children (cells of half the size) that may contain surface.

    A new point is evaluated unless its coarser neighbors prove its sign with a sufficient margin.
    """
    lattice, half = evaluator.lattice, step // 2
    # How far the proofs of each cell reach: the largest value among the nearest corners minus the bound for their
    # distance.  Positive `inside` proves that the point is inside, with at least this value; likewise `outside`.
    away = APART[NEW][:, None] * (half * reach[lattice.shape(cells.keys)])
    inside = widen(cells.values, np.maximum)[NEW] - away
    outside = -widen(cells.values, np.minimum)[NEW] - away
    # A point belongs to up to four cells: combine their proofs, and take every point once.
    keys = cells.keys + lattice.steps(half * HALVED[NEW])[:, None]
    order = np.argsort(keys, axis=None)
    keys = keys.ravel()[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    starts = np.flatnonzero(first)
    keys = keys[starts]
    inside = np.maximum.reduceat(inside.ravel()[order], starts) if len(keys) else inside.ravel()
    outside = np.maximum.reduceat(outside.ravel()[order], starts) if len(keys) else outside.ravel()
    enough = WORTH * half * reach[lattice.shape(keys)] if half > 1 else 0  # at the finest level any proof is enough
    # evaluated: no proof, contradictory proofs (L is too small there), or too little margin
    evaluated = ((inside > 0) == (outside > 0)) | (np.maximum(inside, outside) <= enough)
    values = np.where(inside > 0, inside, -outside)
    values[evaluated] = evaluator(keys[evaluated])

    # back from unique points to the 27 points of each cell
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(first) - 1
    cube, exact = np.empty((27, len(cells.keys)), np.float32), np.empty((27, len(cells.keys)), bool)
    cube[~NEW], exact[~NEW] = cells.values, cells.exact
    cube[NEW], exact[NEW] = values[place].reshape(19, -1), evaluated[place].reshape(19, -1)
    children = []
    for corner, offset in zip(CHILD, lattice.steps(half * CORNERS), strict=True):
        corners = cube[corner]
        keep = may_hold(lattice, cells.keys + offset, corners.min(0), corners.max(0), half, reach)
        children.append((cells.keys[keep] + offset, corners[:, keep], exact[corner][:, keep]))
    return Cells(*(np.concatenate(arrays, -1) for arrays in zip(*children, strict=True)))


def widen(corners, extreme) -> np.ndarray:
    """Corners [8, C] → the 27 points of the halved cells [27, C]: each gets the extreme value of its nearest corners.

    extreme: np.maximum or np.minimum.
    """
    cube = np.empty((3, 3, 3, corners.shape[1]), np.float32)
    cube[::2, ::2, ::2] = corners.reshape(2, 2, 2, -1)
    cube[1, ::2, ::2] = extreme(cube[0, ::2, ::2], cube[2, ::2, ::2])
    cube[:, 1, ::2] = extreme(cube[:, 0, ::2], cube[:, 2, ::2])
    cube[:, :, 1] = extreme(cube[:, :, 0], cube[:, :, 2])
    return cube.reshape(27, -1)


def flood_fill(evaluator: FieldEvaluator, cells: Cells, step: int) -> Cells:
    """Extends cells to all cells of the surface that are connected to them, with exact values at all crossed edges.

    The set grows across faces on which signs differ; cells of size 1 also grow into the layer outside of the box, whose
    values are -inf, where the inside touches the border.  This finds cells that wrong proofs have discarded.  It
    runs at every level, since one large cell stands for many small ones.  It repeats for cells that are new, or that
    have a corner whose sign has changed, until there are none.
    """
    lattice = evaluator.lattice
    corner = lattice.steps(step * CORNERS)[:, None]
    order = np.argsort(cells.keys)  # binary searches are faster for sorted queries
    cells = Cells(*(array[..., order] for array in cells))
    pending = np.arange(len(order))
    while len(pending):
        flipped = evaluate_crossed_edges(evaluator, cells, pending, corner)
        new = neighbors(lattice, cells, np.concatenate([pending, flipped]), step)
        pending = np.concatenate([flipped, np.arange(len(cells.keys), len(cells.keys) + len(new))])
        if len(new):
            both = zip(cells, added(evaluator, cells, new, step), strict=True)
            cells = Cells(*(np.concatenate(arrays, -1) for arrays in both))
    return cells


def evaluate_crossed_edges(evaluator: FieldEvaluator, cells: Cells, pending, corner) -> np.ndarray:
    """Evaluates the ends of the pending cells' crossed edges that are not exact yet, and updates all cells in place.

    pending [K]: indices of cells.  corner [8, 1]: keys of a cell's corners minus that of the cell.  Returns the indices
    [M] of all cells of which a corner's sign has changed.
    """
    values = cells.values[:, pending]
    inside, within = values > 0, np.isfinite(values)
    ends = np.zeros(inside.shape, bool)
    for low, high in zip(EDGE_CORNER, OTHER_CORNER, strict=True):
        crossed = (inside[low] != inside[high]) & within[low] & within[high]  # a lid is on the box, whatever the value
        ends[low] |= crossed
        ends[high] |= crossed
    ends &= ~cells.exact[:, pending]
    keys = sorted_unique((cells.keys[pending] + corner)[ends])
    if not len(keys):
        return np.zeros(0, int)
    evaluated = Samples(keys, evaluator(keys))
    # A corner is shared by up to eight cells, each of which holds a copy of its value: update all copies.  Only cells
    # that touch an evaluated point are searched, which are far fewer than all in most rounds.
    around = np.flatnonzero(isin_sorted(cells.keys, sorted_unique(keys - corner)))
    which, cell = np.nonzero(~cells.exact[:, around])
    cell = around[cell]
    keys = cells.keys[cell] + corner[which, 0]
    here = evaluated.contains(keys)
    which, cell, new = which[here], cell[here], evaluated.values[evaluated.index_of(keys[here])]
    flipped = sorted_unique(cell[(cells.values[which, cell] > 0) != (new > 0)])
    cells.values[which, cell], cells.exact[which, cell] = new, True
    return flipped


def neighbors(lattice: Lattice, cells: Cells, pending, step: int) -> np.ndarray:
    """Keys [N], ascending, of the missing cells into which the surface continues from the pending ones.

    pending [K]: indices of cells.
    """
    keys, inside = cells.keys[pending], cells.values[:, pending] > 0
    found = []
    for (axis, side), face in FACES.items():
        # The surface crosses a face if its corners' signs differ.  A face on the box is also crossed by the lid's
        # border if a corner is inside, since all points beyond are outside.
        border = (step == 1) & (lattice.coordinate(keys, axis) == side * (lattice.resolution - 1))
        open_face = inside[face].any(0) & (border | ~inside[face].all(0))
        found.append(keys[open_face] + (2 * side - 1) * step * lattice.steps(np.eye(3, dtype=int)[axis]))
    found = sorted_unique(np.concatenate(found))
    if step > 1:  # large cells stay in the box; the layer outside of it exists at size 1 only
        for axis in range(3):
            along = lattice.coordinate(found, axis)
            found = found[(along >= 0) & (along < lattice.resolution)]
    return found[~isin_sorted(found, np.sort(cells.keys))]


def added(evaluator: FieldEvaluator, cells: Cells, keys, step: int) -> Cells:
    """New cells by their keys [K]; corners that no present cell has are evaluated."""
    lattice = evaluator.lattice
    corner = lattice.steps(step * CORNERS)[:, None]
    around = isin_sorted(cells.keys, sorted_unique(keys + lattice.steps(step * (HALVED - 1))[:, None]))  # 27 neighbors
    known, exact, _ = corners(Cells(*(array[..., around] for array in cells)), corner)
    new = sorted_unique(keys + corner)
    new = new[~known.contains(new)]
    values = np.full(len(new), -np.inf, np.float32)  # outside of the box, so that marching cubes closes the surface
    within = ~lattice.outside_box(new) | (step > 1)  # a last large cell may end beyond the box, where values are real
    values[within] = evaluator(new[within])
    order = np.argsort(both := np.concatenate([known.keys, new]))
    known = Samples(both[order], np.concatenate([known.values, values])[order])
    exact = np.concatenate([exact, np.ones(len(new), bool)])[order]
    at = known.index_of(keys + corner)
    return Cells(keys, known.values[at], exact[at])


def corners(cells: Cells, corner) -> tuple[Samples, np.ndarray, np.ndarray]:
    """The corners of cells as unique samples, whether each is exact, and the index of each cell's corners [8, C]."""
    keys = sorted_unique(cells.keys + corner)
    samples, exact = Samples(keys, np.empty(len(keys), np.float32)), np.empty(len(keys), bool)
    at = samples.index_of(cells.keys + corner)
    samples.values[at], exact[at] = cells.values, cells.exact
    return samples, exact, at


def isin_sorted(keys, others) -> np.ndarray:
    """Which keys [N] are among others [P], which are in ascending order, bool [N]."""
    return Samples(others, others).contains(keys)


def sorted_unique(keys) -> np.ndarray:
    """The unique keys [N], ascending, of keys [...] (sorting is faster here than the hashing of `np.unique`)."""
    keys = np.sort(keys, axis=None)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]]


def crossed(lattice: Lattice, shape: int, values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The surface's cells of a whole grid of signed values [R+1, R+1, R+1].

    Returns keys and values of the samples at their corners, and keys of the cells [C].
    """
    padded = np.pad(values, 1, constant_values=-np.inf)  # the layer outside of the box
    inside = np.zeros(np.subtract(padded.shape, 1), np.uint8)
    for x, y, z in CORNERS:
        inside += padded[x:, y:, z:][: len(inside), : len(inside), : len(inside)] > 0
    cells = lattice.keys(shape, np.argwhere((inside > 0) & (inside < 8)) - 1)
    keys = sorted_unique(cells + lattice.steps(CORNERS)[:, None])
    return keys, padded[*(lattice.index(keys) + 1).T], cells
