"""Multiresolution IsoSurface Extraction (MISE), the published octree refinement (Mescheder et al. 2019, section 3.3).

As in the published code, a leaf is refined if the evaluated samples in its *closed* cube have both signs.  These are
not only its corners: refined neighbors add samples on its faces and edges.
MISE evaluates more points than `cells.search` and guarantees less; it is here for comparison, and to reproduce
published meshes.
"""

from __future__ import annotations

import numpy as np

from jonet.errors import InputError
from jonet.inference.surfaces.grid import FieldEvaluator

COARSE = 32  # cells a side at the start, as published


def evaluate_octree(evaluator: FieldEvaluator, coarse: int) -> tuple[np.ndarray, np.ndarray]:
    """The grids of all shapes of a batch, and the number of evaluations of each shape in each round.

    coarse: cells a side at the start; the lattice has 2ⁿ times as many.  Returns signed values [B, R+1, R+1, R+1]
    and counts [B, rounds].  A point that was not evaluated gets the last known value along x, then y, then z; its
    sign is right if its leaf is free of surface, as the leaf's samples say.
    """
    side = evaluator.lattice.resolution + 1
    size = evaluator.lattice.resolution // coarse
    if size * coarse != evaluator.lattice.resolution or size & (size - 1):
        raise InputError(
            f"MISE from {coarse} cells a side cannot reach {evaluator.lattice.resolution}: it doubles; "
            f"choose a resolution of {coarse}, {2 * coarse}, {4 * coarse}, …"
        )
    values = np.full((len(evaluator.fields),) + (side,) * 3, np.nan, np.float32)
    shapes = np.repeat(np.arange(len(values)), coarse**3)
    leaves = np.tile(size * np.indices((coarse,) * 3).reshape(3, -1).T, (len(values), 1))
    wanted = np.zeros(values.shape, bool)
    wanted[:, ::size, ::size, ::size] = True
    sizes = np.full(len(leaves), size)
    counts = []
    while True:  # one round: evaluate the wanted points of all shapes together, then refine leaves
        shape, *index = np.nonzero(wanted & np.isnan(values))
        if not len(shape):
            return fill(values), np.array(counts).T
        values[shape, *index] = evaluator(evaluator.lattice.keys(shape, np.stack(index, -1)))
        counts.append(np.bincount(shape, minlength=len(values)))
        # Leaves of all sizes are tested again in every round, since neighbors may have added samples to them.
        active = np.zeros(len(leaves), bool)
        for size in np.unique(sizes[sizes > 1]):
            some = np.flatnonzero(sizes == size)
            active[some] = holds_both(values, shapes[some], leaves[some], size)
        halves = np.repeat(sizes[active] // 2, 8)
        points = leaves[active, None] + (sizes[active] // 2)[:, None, None] * np.indices((3, 3, 3)).reshape(3, -1).T
        wanted[np.repeat(shapes[active], 27), *points.reshape(-1, 3).T] = True
        children = leaves[active, None] + (sizes[active] // 2)[:, None, None] * np.indices((2, 2, 2)).reshape(3, -1).T
        leaves = np.concatenate([leaves[~active], children.reshape(-1, 3)])
        shapes = np.concatenate([shapes[~active], np.repeat(shapes[active], 8)])
        sizes = np.concatenate([sizes[~active], halves])


def holds_both(values, shapes, leaves, size) -> np.ndarray:
    """Which leaves have an evaluated value ≥ 0 and one ≤ 0 in their closed cube, bool [N].

    values [B, R+1, R+1, R+1].  shapes [N], leaves [N, 3]: the shape and the lowest corner of each leaf.  size: of all
    these leaves, in cells of the lattice.
    """
    above, below = np.zeros(len(leaves), bool), np.zeros(len(leaves), bool)
    for offset in np.indices((size + 1,) * 3).reshape(3, -1).T:
        value = values[shapes, *(leaves + offset).T]  # NaN (not evaluated) compares as neither
        above |= value >= 0
        below |= value <= 0
    return above & below


def fill(values) -> np.ndarray:
    """Fills NaN (points that were not evaluated) with the last known value along x, then y, then z.

    values [B, R+1, R+1, R+1] → the same shape.
    """
    for axis in (1, 2, 3):
        place = np.arange(values.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
        known = np.maximum.accumulate(np.where(np.isnan(values), 0, place), axis=axis)  # index of the last known value
        values = np.take_along_axis(values, known, axis)
    return values
