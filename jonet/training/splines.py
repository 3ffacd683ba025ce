"""Splines of single shapes from signed distances: weighted least squares, level by level, coarse to fine.

A level minimizes Σ wᵢ (f(xᵢ) - dᵢ)² + smoothing · ∫ |∇∇f|², lengths in its cells, over its coefficients, where
wᵢ = 1 / (|dᵢ| + 0.01)², by conjugate gradients with a Jacobi preconditioner.  The coarsest grid is dense; a finer level
corrects what is left, in the cells at the surface in which a sample is off by more than a tolerance.  Coefficients are
rounded as they are stored, so that the next level also corrects that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import KDTree

from jonet import parallel, products
from jonet.networks import spline, spline_levels
from jonet.networks.field import bucket
from jonet.networks.spline_levels import COARSE_STEP, OFFSETS, STEP, Level
from jonet.settings.representation import SplineConfig

NEAR_WEIGHT = 0.01  # distance at which a sample's error counts half as much as at the surface
COARSE = (8, 16, 32)  # resolutions of the dense grids: each starts from the one before, and the last is kept
SIDE_BY_SIDE = (1, 4, 8)  # shapes at once on each accelerator; on a CPU one
FAR = 8  # cells a side of the grid on which the space around a shape should have samples
SAMPLES = {8: 256, 16: 64, 32: 16}  # of a cell, at most; 8 on finer grids
AT_SURFACE = 0.7  # samples closer than this many cells are near enough to tell that a cell is at the surface
RIDGE = 100.0  # weight of the squared coefficients of finer levels, which few or no samples may determine
CHUNK = 4096  # nodes that are computed at once; larger pieces take longer on a CPU, a TPU and, by their bytes, a GPU
COARSE_RIDGE, COARSE_SMOOTHING = 1e-6, 1.0  # of the dense grids, whose cells may have no samples
WORTH = 0.98  # a level that leaves more than this part of the error is dropped
BYTES = 1.2  # a node takes in a file, about


class Samples(NamedTuple):
    """Points [N, 3] in [-1, 1]³ and their signed distances [N], float32, in random order."""

    points: np.ndarray
    distances: np.ndarray


class System(NamedTuple):
    """The least squares of one level of one shape, with capacity for C nodes of which the first are used.

    around [C, 27] int32: nodes at each node's cell and its neighbors, C for none.  place [C, K, 3]: samples in each
    node's cell, -0.5 to 0.5.  rest, weight [C, K]: what they should be, and how much each counts; 0 for none.
    within [C]: 1 for nodes whose cell is in the cube, 0 for those beyond, where nothing is to be smooth.  start [C]:
    coefficients.
    """

    around: np.ndarray
    place: np.ndarray
    rest: np.ndarray
    weight: np.ndarray
    within: np.ndarray
    start: np.ndarray


def fit(shapes: Sequence[Samples], options: Sequence[SplineConfig]) -> list[tuple[list[Level], float]]:
    """The levels of each shape, of which the first is dense, and the error of samples that are held out.

    Shapes are solved side by side on all devices, with the iterations and smoothing of the first.  A shape grows by a
    level as long as cells are to be refined, as bytes are left, and as this makes the error of samples that are held
    out smaller.
    """
    fitted = [Samples(*(array[: len(array) - held_out(each)] for array in each)) for each in shapes]
    everywhere = [with_far(each) for each in fitted]
    values = [np.zeros((COARSE[0] // 2 + 2,) * 3, np.float32) for _ in shapes]
    for resolution in COARSE:
        nodes = spline_levels.around(cells := spline_levels.every_cell(resolution), resolution)
        systems = [
            system(samples, samples.distances, resolution, nodes, spline_levels.refined(each).reshape(-1))
            for samples, each in zip(everywhere, values, strict=True)
        ]
        solved = solve(systems, len(nodes), 2 * options[0].iterations, COARSE_RIDGE, COARSE_SMOOTHING)
        values = [each[: len(nodes)].reshape((resolution + 2,) * 3) for each in solved]
    found = [[Level(resolution, cells, rounded(each.reshape(-1), COARSE_STEP))] for each in values]
    rest = [each.distances - evaluate(levels, each.points) for each, levels in zip(shapes, found, strict=True)]
    left, growing = [each.bytes for each in options], [*range(len(shapes))]
    while growing := [i for i in growing if 2 * resolution <= options[i].resolution]:
        resolution, jobs = 2 * resolution, []
        for i in growing:
            count = len(fitted[i].points)
            cells = refinable(fitted[i], rest[i][:count], resolution, options[i].tolerance, int(left[i] / BYTES))
            if len(cells):
                nodes = spline_levels.around(cells, resolution)
                start = np.zeros(len(nodes), np.float32)
                jobs.append((i, cells, len(nodes), system(fitted[i], rest[i][:count], resolution, nodes, start)))
        growing = []
        for size in sorted({len(job[-1].start) for job in jobs}):
            same = [job for job in jobs if len(job[-1].start) == size]
            most = max(count for _, _, count, _ in same)
            solved = solve([job[-1] for job in same], most, options[0].iterations, RIDGE, options[0].smoothing)
            for (i, cells, count, _), each in zip(same, solved, strict=True):
                levels = [*found[i], Level(resolution, cells, rounded(each[:count], STEP))]
                now = shapes[i].distances - evaluate(levels, shapes[i].points)
                if error(shapes[i], now) < WORTH * error(shapes[i], rest[i]):
                    found[i], rest[i] = levels, now
                    left[i] -= int(BYTES * count)
                    growing.append(i)
    return [(levels, error(*pair)) for levels, pair in zip(found, zip(shapes, rest, strict=True), strict=True)]


def together() -> int:
    """Shapes that are solved side by side: one on each CPU device, some on each accelerator."""
    return parallel.count() * (1 if parallel.platform().is_cpu else SIDE_BY_SIDE[-1])


def with_far(samples: Samples) -> Samples:
    """The samples, and an estimate in the middle of each large cell beyond the shape that has no sample.

    Without these, the dense grids would go on linearly from the samples near a surface, and could end in another
    surface at a corner of the cube.  A sample inside, f(p) < 0, bounds what is beyond: f(x) <= |x - p| + f(p).
    """
    every = spline_levels.every_cell(FAR)
    seen = np.unique(spline_levels.keys(cells_of(samples.points, FAR), FAR))
    inside = samples.points[samples.distances < 0], samples.distances[samples.distances < 0]
    if len(seen) == len(every) or not len(inside[0]):
        return samples
    empty = np.isin(spline_levels.keys(every, FAR), seen, assume_unique=True, invert=True)
    middles = ((every[empty] + 0.5) * (2 / FAR) - 1).astype(np.float32)
    middles = middles[((middles < inside[0].min(0)) | (middles > inside[0].max(0))).any(1)]
    apart, nearest = KDTree(inside[0]).query(middles)
    estimates = (apart + inside[1][nearest]).astype(np.float32)
    return Samples(np.concatenate([samples.points, middles]), np.concatenate([samples.distances, estimates]))


def held_out(samples: Samples) -> int:
    """How many samples at the end are held out: one of 50, so none of fewer."""
    return len(samples.points) // 50


def error(samples: Samples, rest: np.ndarray) -> float:
    """The mean weighted error of the samples that are held out, given what is left at all samples [N]."""
    last = slice(len(rest) - max(1, held_out(samples)), None)
    return float(np.mean(np.abs(rest[last]) / (np.abs(samples.distances[last]) + NEAR_WEIGHT)))


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    """Coefficients [N] as multiples of a step, float32."""
    most = np.iinfo(np.int16).max
    return np.clip(np.round(values / step), -most, most).astype(np.float32) * np.float32(step)


def evaluate(levels: Sequence[Level], points: np.ndarray) -> np.ndarray:
    """The sum of the levels at points [N, 3] → [N]."""
    return np.asarray(spline.field(levels)(points))


def cells_of(points: np.ndarray, resolution: int) -> np.ndarray:
    """The cell of each point, [N, 3] → [N, 3] int32."""
    return np.clip(np.floor((points + 1) * (resolution / 2)).astype(np.int32), 0, resolution - 1)


def refinable(samples: Samples, rest: np.ndarray, resolution: int, tolerance: float, most: int) -> np.ndarray:
    """The cells [M, 3] at the surface in which a sample is off by more than a tolerance, in lexicographic order.

    rest [N]: what is left at the samples.  most: of nodes; if there would be more, the cells that are most off are
    taken.
    """
    near = np.abs(samples.distances) < AT_SURFACE * 2 / resolution
    numbers = spline_levels.keys(cells_of(samples.points[near], resolution), resolution)
    order = np.argsort(numbers, kind="stable")
    numbers, starts = np.unique(numbers[order], return_index=True)
    if not len(numbers):
        return np.zeros((0, 3), np.int32)
    off = np.maximum.reduceat(np.abs(rest[near])[order], starts)
    by_error = numbers[np.argsort(-off, kind="stable")][: np.count_nonzero(off > tolerance)]
    while len(by_error):
        cells = spline_levels.from_keys(np.sort(by_error), resolution)
        count = len(spline_levels.around(cells, resolution))
        if count <= most:
            return cells
        by_error = by_error[: int(0.95 * len(by_error) * most / count)]  # nodes a cell vary little
    return np.zeros((0, 3), np.int32)


def system(samples: Samples, rest, resolution: int, nodes: np.ndarray, start: np.ndarray) -> System:
    """The least squares of the nodes [N, 3] of a level.  rest: what it should be at the samples.  start [N]."""
    most, count = SAMPLES.get(resolution, 8), len(nodes)
    known = spline_levels.keys(nodes, resolution)
    cells = cells_of(samples.points, resolution)
    owner = spline_levels.find(known, spline_levels.keys(cells, resolution))
    order = np.argsort(owner, kind="stable")  # samples are in random order, so the first of a cell are a random choice
    owner = owner[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, np.arange(count + 1))[owner]
    kept = (owner < count) & (rank < most)
    order, where = order[kept], (owner[kept], rank[kept])
    capacity = bucket(count, CHUNK)
    place = np.zeros((capacity, most, 3), np.float32)
    place[where] = (samples.points[order] + 1) * (resolution / 2) - cells[order] - 0.5
    values, weights = np.zeros((2, capacity, most), np.float32)
    values[where], weights[where] = rest[order], 1 / (np.abs(samples.distances[order]) + NEAR_WEIGHT) ** 2
    around = np.full((capacity, 27), capacity, np.int32)
    beside = nodes[:, None] + OFFSETS
    numbers = spline_levels.find(known, spline_levels.keys(beside, resolution))
    absent = ((beside < -1) | (beside > resolution)).any(-1) | (numbers == count)
    around[:count] = np.where(absent, capacity, numbers)
    first, within = np.zeros((2, capacity), np.float32)
    first[:count], within[:count] = start, ((nodes >= 0) & (nodes < resolution)).all(1)
    return System(around, place, values, weights, within, first)


def solve(systems: Sequence[System], count: int, iterations: int, ridge: float, bend: float) -> list[np.ndarray]:
    """The coefficients [C] of systems of equal sizes, which are solved side by side, some on each device.

    count: of nodes that are used in any of them.  ridge, bend: weights of squared coefficients and second derivatives.
    """
    devices, found = parallel.count(), []
    for first in range(0, len(systems), together()):  # few sizes, so that few programs are compiled
        some = systems[first : first + together()]
        each = next(size for size in SIDE_BY_SIDE if size * devices >= len(some))
        empty = System(*(np.zeros_like(array) for array in some[0]))
        filled = [*some, *[empty] * (devices * each - len(some))]
        stacked = System(
            *(np.stack(arrays).reshape(devices, each, *arrays[0].shape) for arrays in zip(*filled, strict=True))
        )
        chunks = np.zeros(devices, np.int32)  # a device without shapes computes nothing
        chunks[: -(-len(some) // each)] = -(-count // CHUNK)
        with products.precise("highest"):  # residuals are small differences
            out = _program()(stacked, chunks, np.int32(iterations), np.float32(ridge), np.float32(bend))
        out = parallel.host(out)
        found += [*out.reshape(devices * each, -1)[: len(some)]]
    return found


@functools.cache
def _program() -> Callable:
    specs = parallel.SPLIT, parallel.SPLIT, *[parallel.REPLICATED] * 3

    def work(systems: System, chunks, iterations, ridge, bend):
        given = {"chunks": chunks[0], "iterations": iterations, "ridge": ridge, "bend": bend}
        one = functools.partial(_conjugate_gradients, **given)
        some = System(*(array[0] for array in systems))
        if some.start.shape[0] == 1:
            return one(System(*(array[0] for array in some)))[None, None]
        return jax.vmap(one)(some)[None]

    return parallel.pmap(work, specs, parallel.SPLIT)


def _conjugate_gradients(given: System, chunks, iterations, ridge, bend) -> jax.Array:
    """The coefficients [C] after so many iterations.  chunks: of nodes that are used."""
    capacity, bending = len(given.start), jnp.asarray(BENDING)

    def cut(array, chunk):
        return jax.lax.dynamic_slice_in_dim(array, chunk * CHUNK, CHUNK)

    def basis(chunk):
        x, y, z = jnp.moveaxis(spline.weights(cut(given.place, chunk)), 2, 0)  # [c, K, 3] each
        return (x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]).reshape(*x.shape[:2], 27)

    def per_cell(of_chunk, *arrays):
        """Σ over cells: of_chunk(chunk, arrays' coefficients [c, 27]) → [c, 27], added to the nodes → [C]."""
        ended = [jnp.append(array, 0.0) for array in arrays]

        def first(chunk, out):
            around = cut(given.around, chunk)
            rows = of_chunk(chunk, *(array[around] for array in ended))
            return jax.lax.dynamic_update_slice_in_dim(out, rows, chunk * CHUNK, 0)

        rows = jax.lax.fori_loop(0, chunks, first, jnp.zeros((capacity + 1, 27)))

        def second(chunk, out):
            # node n is neighbor 26 - k of its own neighbor k
            around = cut(given.around, chunk)
            total = jnp.sum(rows[around, jnp.arange(26, -1, -1)], -1)
            return jax.lax.dynamic_update_slice_in_dim(out, total, chunk * CHUNK, 0)

        return jax.lax.fori_loop(0, chunks, second, jnp.zeros(capacity))

    def of_rest(chunk):
        return jnp.einsum("ck,cks->cs", cut(given.weight, chunk) * cut(given.rest, chunk), basis(chunk))

    def of_coefficients(chunk, seen):
        at = basis(chunk)
        errors = cut(given.weight, chunk) * jnp.einsum("cks,cs->ck", at, seen)
        return jnp.einsum("ck,cks->cs", errors, at) + bend * cut(given.within, chunk)[:, None] * (seen @ bending)

    def of_diagonal(chunk):
        bent = bend * cut(given.within, chunk)[:, None] * jnp.diag(bending)
        return jnp.einsum("ck,cks->cs", cut(given.weight, chunk), basis(chunk) ** 2) + bent

    def product(x):
        return per_cell(of_coefficients, x) + ridge * x

    diagonal = per_cell(of_diagonal) + ridge
    residual = per_cell(of_rest) - product(given.start)
    ahead = residual / diagonal

    def step(_, state):
        x, residual, along, norm = state
        image = product(along)
        rate = norm / jnp.maximum(along @ image, 1e-30)
        x, residual = x + rate * along, residual - rate * image
        ahead = residual / diagonal
        now = residual @ ahead
        return x, residual, ahead + now / jnp.maximum(norm, 1e-30) * along, now

    return jax.lax.fori_loop(0, iterations, step, (given.start, residual, ahead, residual @ ahead))[0]


def _bending() -> np.ndarray:
    """[27, 27]: ∫ of products of second derivatives, Σ_ab ∂a∂bφᵢ ∂a∂bφⱼ, over a cell of side 1."""
    along, weight = np.polynomial.legendre.leggauss(3)  # exact up to degree 5
    along, weight = along / 2, weight / 2
    value = np.stack([0.5 * (0.5 - along) ** 2, 0.75 - along**2, 0.5 * (0.5 + along) ** 2])
    first = np.stack([along - 0.5, -2 * along, along + 0.5])
    second = np.stack([np.ones(3), -2 * np.ones(3), np.ones(3)])
    grams = [(derivative * weight) @ derivative.T for derivative in (value, first, second)]
    total = np.zeros((27, 27))
    for orders in np.ndindex(3, 3, 3):
        if sum(orders) == 2:
            both = np.einsum("ad,be,cf->abcdef", *(grams[order] for order in orders)).reshape(27, 27)
            total += both if max(orders) == 2 else 2 * both  # ∂x∂y and ∂y∂x
    return total.astype(np.float32)


BENDING = _bending()
