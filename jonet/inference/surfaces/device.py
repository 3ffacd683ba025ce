"""Extraction on the devices: shapes are dealt to them, lists grow where they are too short, arrays become meshes.

Two programs do the work (`blocks`, `block_meshes`); between them the host sees a few counts only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet import parallel, products
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import block_meshes, blocks
from jonet.inference.surfaces.cells import coarsest
from jonet.inference.surfaces.grid import FieldEvaluator
from jonet.networks.field import TILE, bucket

BATCH = 16 * 128**2  # shapes of a device at a time × resolution²: enough to fill it
MOST = 4096  # cells a side: the places of more blocks than that cannot be numbered with 32 bits
MOST_BLOCKS = 1 << 23  # of a device at a time: nor the edges of more
COARSEST = 1024  # cells a side of the coarsest grid: the samples of a larger one cannot be numbered with 32 bits
BLOCKS = 3  # places for blocks at first, in (cells of one face of the box) / 4², of each shape
LARGE = 4  # and for cells of twice their size
LEAST = 8 * TILE  # and for vertices
SLACK = 4  # so many times as many places as needed are taken where a program has them


class Sizes(NamedTuple):
    """Places in the lists of a device, of few sizes, so that there are few programs.

    large, blocks: as of `blocks.Layout`.  vertices: as of `block_meshes.program`.
    """

    large: int
    blocks: int
    vertices: int


_grown: dict[tuple, Sizes] = {}  # sizes that earlier calls have needed


class Unsteady(Exception):
    """The host must make the meshes of a batch; the text says what the device did."""


def extract(
    evaluator: FieldEvaluator, coarse: int, lipschitz: float | None, steps: int, normals: bool
) -> tuple[list[Mesh], np.ndarray]:
    """The meshes of a batch, and the least and greatest signed value of each shape [B, 2]; arguments as of `extract`.

    Raises Unsteady if a value is not finite (the host names it), if two blocks disagree about a sign, or if there are
    too many.
    """
    platform, fields = parallel.platform(), evaluator.fields
    (resolution, step, shapes, large, most), rows, grids, count = deal(evaluator, coarse, lipschitz)
    given, key, first = (rows, grids), (resolution, step, shapes), Sizes(large, most, LEAST)
    sizes = _grown.get(key, first)
    with products.precise(fields.precision):
        while True:
            layout = blocks.Layout(resolution, step, shapes, sizes.large, sizes.blocks)
            found, counts, ranges = blocks.program(platform, layout)(fields.padded, *given, count)
            counts, ranges = parallel.host((counts, ranges))
            # looked at first: a field that is not finite anywhere would make the lists as long as the whole grid
            _check(counts.irregular, counts.disagreeing)
            if counts.large.max() <= sizes.large and counts.blocks.max() <= sizes.blocks:
                break
            # the count of a list that was cut is a lower bound, since the search went on without the rest
            large, most = _power(counts.large.max(), sizes.large), _power(counts.blocks.max(), sizes.blocks)
            sizes = sizes._replace(large=large, blocks=most)
            if most > MOST_BLOCKS:
                raise Unsteady("found more blocks than it can number")
        needed = max(counts.edges.max(), counts.cells.max(), -(-counts.faces.max() // 2))
        size = places(needed)
        if size < sizes.vertices <= SLACK * size:
            size = sizes.vertices  # that program is there
        _remember(key, first, sizes._replace(vertices=size), counts.large.max(), counts.blocks.max())
        program = block_meshes.program(platform, layout, size, normals)
        made = parallel.host(program(fields.padded, *given, found, np.int32(steps)))
    _check(made.irregular)
    meshes = [_mesh(evaluator, made, d, i, rows[d, i]) for d in range(len(rows)) for i in range(count[d])]
    return meshes, np.concatenate([ranges[device, : count[device]] for device in range(len(rows))])


class Dealt(NamedTuple):
    """What the devices search, the arguments of `blocks.program` behind the fields; layout: with its lists at first."""

    layout: blocks.Layout
    rows: np.ndarray
    grids: blocks.Grids
    count: np.ndarray


def deal(evaluator: FieldEvaluator, coarse: int, lipschitz: float | None) -> Dealt:
    """The shapes of a batch, so many to each device; arguments as of `extract`."""
    fields, resolution, devices = evaluator.fields, evaluator.lattice.resolution, parallel.count()
    each = -(-len(fields) // devices)
    shapes, step = bucket(each, 1), coarsest(resolution, coarse)
    rows = np.arange(devices)[:, None] * each + np.arange(shapes)
    count = np.clip(len(fields) - rows[:, 0], 0, each).astype(np.int32)
    rows = np.minimum(rows, len(fields) - 1).astype(np.int32)
    large = _power(LARGE * shapes * (resolution / (2 * blocks.SIDE)) ** 2, TILE)
    most = _power(BLOCKS * shapes * (resolution / blocks.SIDE) ** 2, TILE)
    layout = blocks.Layout(resolution, step, shapes, large, most)
    return Dealt(layout, rows, _grids(evaluator, rows, step, lipschitz), count)


def _check(irregular: np.ndarray, disagreeing: np.ndarray | int = 0) -> None:
    if np.any(irregular):
        raise Unsteady("met values that are not finite")
    if np.any(disagreeing):
        raise Unsteady("gave one point two signs")


def _remember(key: tuple, first: Sizes, sizes: Sizes, large: int, most: int) -> None:
    """Keeps the sizes with which the next call begins: those of this call or, if more, of others.

    first: sizes at first; large, most: how many places this call has needed of its larger cells and blocks.  If `first`
    has that many and the lists have become much longer, they are as long as at first again: one wild shape does not
    slow down all that follow.
    """
    before = _grown.get(key, sizes)  # another thread may have written it since this call began
    large_size, size = max(sizes.large, before.large), max(sizes.blocks, before.blocks)
    wild = large_size > SLACK * first.large or size > SLACK * first.blocks
    if wild and large <= first.large and most <= first.blocks:
        large_size, size = first.large, first.blocks
    _grown[key] = Sizes(large_size, size, sizes.vertices)


def places(count: int) -> int:
    """Places for so many vertices: a power of two times `LEAST`, or three quarters of it, since what programs gather
    and sort takes time for empty places, too."""
    power = _power(count, LEAST)
    return power * 3 // 4 if LEAST < power and count <= power * 3 // 4 else power


def _power(size: float, least: int) -> int:
    """The smallest power of two times `least` that is not below a size."""
    while least < size:
        least *= 2
    return int(least)


def _grids(evaluator: FieldEvaluator, rows, step: int, lipschitz: float | None) -> blocks.Grids:
    """The grids of the shapes rows [D, S]."""
    lattice = evaluator.lattice
    last = -(-lattice.resolution // step) * step  # the coarsest cells may end beyond the box
    index = np.arange(last + 1)[:, None]
    axes = np.stack([lattice.to_coordinates(shape, index).T for shape in range(len(evaluator.fields))])
    rounded = axes.astype(np.float32)
    rest = (axes - rounded).astype(np.float32)
    level = np.asarray(evaluator.level, np.float32)
    cell = lattice.cell(np.arange(len(axes))).astype(np.float32)
    slopes = np.full(len(axes), np.nan if lipschitz is None else lipschitz, np.float32)
    return blocks.Grids(*(array[rows] for array in (rounded, rest, level, cell, slopes)))


def _mesh(evaluator: FieldEvaluator, made: block_meshes.Meshes, device: int, number: int, shape: int) -> Mesh:
    """The mesh of a shape, of this number on a device."""
    here = slice(*made.vertex_starts[device, number : number + 2])
    faces = slice(*made.face_starts[device, number : number + 2])
    axis = made.axis[device, here]
    index = made.low[device, :, here].astype(np.float64)
    index[axis, np.arange(len(axis))] += made.along[device, here]
    normals = None if made.normals is None else made.normals[device, :, here].T
    return Mesh(evaluator.lattice.to_coordinates(shape, index.T), made.faces[device, :, faces].T, normals)
