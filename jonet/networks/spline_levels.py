"""Levels of splines: nodes and their coefficients on nested grids, and the arrays that files keep of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

MOST = 1024  # cells a side of the finest grid
DENSE = 64  # cells a side of the coarsest grid, at most
BLOCK = 4  # cells a side of a block (`networks.spline`): a grid has a whole number of them
STEP, COARSE_STEP = 1e-4, 6e-5  # of which coefficients are multiples, on fine grids and on the coarsest one
PIECE = 1 << 24  # nodes that are looked at together
# from a cell to itself and those around it
OFFSETS = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(27, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """A grid of some of its nodes: those of chosen cells and of their neighbors.

    resolution: R, cells a side; a multiple of 4, and twice that of the level before.  cells [M, 3] int32 from 0 to
    R - 1: the chosen ones, in lexicographic order.  values [N] float32: the coefficients of `nodes`.
    """

    resolution: int
    cells: np.ndarray
    values: np.ndarray

    @functools.cached_property
    def nodes(self) -> np.ndarray:
        """The nodes [N, 3] int32 from -1 to R, in lexicographic order."""
        return around(self.cells, self.resolution)


def around(cells: np.ndarray, resolution: int) -> np.ndarray:
    """The nodes [N, 3] of cells [M, 3] and of their neighbors, both in lexicographic order."""
    if len(cells) == resolution**3:
        return from_keys(np.arange((resolution + 2) ** 3), resolution)
    side, found = resolution + 2, []
    numbers, steps = keys(cells, resolution), keys(OFFSETS, resolution) - keys(np.zeros(3, int), resolution)
    planes = max(1, PIECE // side**2)
    for first in range(0, side, planes):  # by pieces, since all of a fine grid's nodes would take a gigabyte
        start, stop = first * side**2, min(first + planes, side) * side**2
        some = numbers[slice(*np.searchsorted(numbers, [start - 2 * side**2, stop + 2 * side**2]))]
        if not len(some):
            continue
        mask = np.zeros(stop - start, bool)
        for step in steps:
            there = some + (step - start)
            mask[there[(there >= 0) & (there < stop - start)]] = True
        found.append(start + np.flatnonzero(mask))
    return from_keys(np.concatenate([np.zeros(0, int), *found]), resolution)


def every_cell(resolution: int) -> np.ndarray:
    """All cells [R³, 3] of a grid."""
    return np.stack(np.unravel_index(np.arange(resolution**3), (resolution,) * 3), -1).astype(np.int32)


def keys(nodes, resolution: int) -> np.ndarray:
    """Integer nodes or cells [..., 3] from -1 to R as ascending numbers [...]."""
    side = resolution + 2
    i, j, k = np.moveaxis(np.asarray(nodes, np.int64) + 1, -1, 0)
    return (i * side + j) * side + k


def from_keys(numbers, resolution: int) -> np.ndarray:
    """The inverse of `keys`: [N] → [N, 3] int32."""
    return np.stack(np.unravel_index(numbers, (resolution + 2,) * 3), -1).astype(np.int32) - 1


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among the sorted ones; their number, len(sorted_keys), for one that is missing."""
    if not len(sorted_keys):
        return np.zeros(np.shape(wanted), np.int64)
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == wanted, place, len(sorted_keys))


def refined(values: np.ndarray) -> np.ndarray:
    """Coefficients [(R + 2)³] of a dense grid as those of half its cells, [(2R + 2)³]: the same function."""
    half = np.zeros((2 * values.shape[0] - 2, values.shape[0]), np.float32)
    for node in range(-1, len(half) - 1):
        cell, upper = divmod(node, 2)  # the coarse cell that holds this node
        half[node + 1, cell + 1] += 0.75
        half[node + 1, cell + (2 if upper else 0)] += 0.25
    return np.einsum("ai,bj,ck,ijk->abc", half, half, half, values, optimize=True)


def count(levels: Sequence[Level]) -> int:
    """The number of coefficients."""
    return sum(len(level.values) for level in levels)


def to_arrays(levels: Sequence[Level]) -> dict[str, np.ndarray]:
    """Levels whose coefficients are multiples of their steps as small arrays by name, `values_…` and `cells_…`."""
    arrays = {}
    for level in levels:
        is_fine = level is not levels[0]
        steps = np.round(level.values / np.float32(STEP if is_fine else COARSE_STEP))
        arrays[f"values_{level.resolution}"] = steps.astype(np.int16)
        if is_fine:  # cells as differences of their numbers, most of which are small
            numbers = keys(level.cells, level.resolution)
            arrays[f"cells_{level.resolution}"] = np.diff(numbers, prepend=0).astype(np.uint32)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[Level, ...]:
    """The levels in arrays of `to_arrays`, among which may be others; ValueError for such as it does not return."""
    resolutions = sorted(int(name.removeprefix("values_")) for name in arrays if name.startswith("values_"))
    if not resolutions or any(r != resolutions[0] << i for i, r in enumerate(resolutions)):
        raise ValueError(f"its grids have {resolutions} cells a side, but each has twice those of the one before")
    if not (resolutions[0] % BLOCK == 0 and 0 < resolutions[0] <= DENSE and resolutions[-1] <= MOST):
        raise ValueError(f"its grids have {resolutions} cells a side")
    levels = []
    for resolution in resolutions:
        values = arrays[f"values_{resolution}"]
        if values.ndim != 1 or values.dtype != np.int16:
            raise ValueError(f"the values of {resolution} are {values.dtype} {list(values.shape)}")
        if resolution == resolutions[0]:
            cells = every_cell(resolution)
        else:
            steps = arrays[f"cells_{resolution}"]
            if steps.ndim != 1 or steps.dtype != np.uint32 or (steps[1:] == 0).any():
                raise ValueError(f"the cells of {resolution} are {steps.dtype} {list(steps.shape)}, or occur twice")
            if len(steps) > len(values):  # each is a node
                raise ValueError(f"there are {len(steps)} cells of {resolution}, but {len(values)} values")
            numbers = np.cumsum(steps.astype(np.int64))
            if len(numbers) and numbers[-1] >= (resolution + 2) ** 3:
                raise ValueError(f"a cell of {resolution} is outside of the grid")
            cells = from_keys(numbers, resolution)
            if ((cells < 0) | (cells >= resolution)).any():
                raise ValueError(f"a cell of {resolution} is outside of the grid")
        step = STEP if levels else COARSE_STEP
        level = Level(resolution, cells, values.astype(np.float32) * np.float32(step))
        if len(values) != len(level.nodes):
            raise ValueError(f"there are {len(level.nodes)} nodes of {resolution}, but {len(values)} values")
        levels.append(level)
    return tuple(levels)
