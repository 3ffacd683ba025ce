"""Extraction of meshes from fields: closed, with welded vertices, and oriented outwards."""

from __future__ import annotations

import dataclasses
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jonet import device_memory, parallel
from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import cells, device, mise, published, refinement
from jonet.inference.surfaces.grid import FieldEvaluator, Lattice, evaluate_points, lattice
from jonet.inference.surfaces.marching_cubes import CORNERS, Samples, Welded, polygonize
from jonet.networks.field import Field
from jonet.settings import surfaces
from jonet.wording import counted

BATCH = 4 * 128**2  # shapes per batch × resolution²: fits a CPU's cache, and bounds the memory
WORKERS = 2  # batches at a time: one works on the host while the other waits for the devices
METHODS = ("sparse", "dense", "mise", "published")
BACKENDS = ("auto", "host", "device")


@device_memory.reporting(
    "extracting surfaces", "lower the resolution, or extract fewer shapes per call (bulk jobs: --batch)"
)
def extract(
    fields: Field,
    resolution: int = 128,
    box=None,
    level=None,
    *,
    method: str = "sparse",
    threshold: float | None = None,
    backend: str = "auto",
    coarse: int | None = None,
    lipschitz: float | None = None,
    refine_steps: int = 12,
    normals: bool = True,
    largest: bool = False,
    faces: int = 0,
    rmsprop_steps: int = 0,
) -> list[Mesh] | Mesh:
    """The surfaces of a batch of fields as meshes in the fields' frame; a single field gives a single mesh.

    resolution: R cells a side of a grid; the vertices are on its edges.  box [2, 3]: corners of the grid, None for the
    box of each field; a shape that extends beyond it is closed by a lid in the box's face.  level: the value on the
    surface, one for all or one per field; None for the fields' levels (for occupancies, τ as a logit).  threshold: τ
    itself, in place of level, of occupancies only.
    method: `sparse` finds the surface's cells coarse to fine (`cells.search`, with its arguments coarse and lipschitz);
    `dense` evaluates the whole grid; `mise` is the published octree, `mise.evaluate_octree` (coarse: 32 as published);
    `published` is the authors' extraction, by scikit-image (`published.extract`), without the steps of refine_steps.
    backend: where the method `sparse` works.  `host`: cells and triangles in numpy, values on the devices; `device`:
    compiled programs do all, on blocks of cells, and the host receives meshes (`device.extract`), with the same faces
    wherever the bound L holds (`cells.search`) and, to rounding, vertices; `auto`: `device` on GPUs and TPUs, `host` on
    CPUs, where it is faster.
    refine_steps: largest number of steps by which vertices are moved onto the level (to 1e-3 cells; most need one or
    two); 0 keeps the linear interpolation.  normals: vertex normals from the field's gradient.  largest: keeps only the
    component with the largest volume.  faces: simplified to about so many triangles at most (`refinement.simplify`),
    0 for all.  rmsprop_steps: of the published refinement after that (`refinement.refine`), 0 for none.

    Matrix products have the precision of the fields.  Every mesh is a closed manifold and oriented outwards (with
    `published` oriented only, and open where a shape of distances reaches beyond the box).  A field
    without surface gives a mesh without faces and a warning with its range of values; a field that is not finite raises
    InputError.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "device" and method != "sparse":
        raise InputError(f"backend device has method sparse only, but method is {method}")
    if backend == "device" and resolution > device.MOST:
        raise InputError(f"resolution is {resolution}, but backend device has at most {device.MOST} cells a side")
    if coarse is not None and coarse < 1:
        raise InputError(f"coarse is {coarse}, but counts the cells a side of the first grid: 1 or more")
    if single := not fields.batched:
        fields, level = Field.stack([fields]), None if level is None else np.reshape(level, 1)
    if threshold is not None:
        level = _logit(fields, level, threshold)
    levels = check_array(np.atleast_1d(fields.per_shape["level"] if level is None else level), "level", (None,))
    if len(levels) not in (1, len(fields)):
        raise InputError(
            f"level has {counted(len(levels), 'value')} for {counted(len(fields), 'field')}; give one, or one per field"
        )
    levels = np.broadcast_to(levels, len(fields))
    grid = lattice(fields, resolution, box)
    on_device = method == "sparse" and chosen(backend, grid.resolution) == "device"
    least = cells.COARSE if coarse is None else coarse
    if on_device and -(-grid.resolution // cells.coarsest(grid.resolution, least)) > device.COARSEST:
        raise InputError(
            f"coarse is {coarse}, but the first grid of backend device has at most {device.COARSEST} cells a side; "
            "lower it, or take backend host"
        )
    left: list[tuple[int, str]] = []  # how many fields the device has left to the host, and why
    each = max(1, (device.BATCH if on_device else BATCH) // grid.resolution**2)
    each *= parallel.count() if on_device else 1  # the host's lists of tiles are split over the devices as they are

    def some(first):
        here = slice(first, first + each)
        evaluator = FieldEvaluator(fields[here], Lattice(grid.boxes[here], grid.resolution), levels[here], first)
        if method == "published":
            return published.extract(evaluator, surfaces.COARSE if coarse is None else coarse)
        if on_device:
            try:
                return device.extract(evaluator, least, lipschitz, refine_steps, normals)
            except device.Unsteady as error:
                left.append((len(evaluator.fields), str(error)))
        samples, corners, seen = locate(evaluator, method, coarse, lipschitz)
        welded = refinement.project(evaluator, samples, polygonize(evaluator.lattice, samples, corners), refine_steps)
        return split(evaluator, samples, welded, normals), seen

    starts = range(0, len(fields), each)
    # Several processes must dispatch their programs in the same order, which threads do not guarantee.
    if len(starts) == 1 or parallel.is_multiprocess():
        parts = [some(first) for first in starts]
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            parts = list(pool.map(some, starts))
    if left:
        warnings.warn(
            f"{sum(count for count, _ in left)} of {counted(len(fields), 'field')} are extracted by the host's method, "
            f"since the device {' and '.join(sorted({why for _, why in left}))} in their batches; the meshes are as "
            "exact, but this is slower",
            stacklevel=2,
        )
    meshes = [mesh for part, _ in parts for mesh in part]
    for i, (mesh, seen) in enumerate(zip(meshes, np.concatenate([seen for _, seen in parts]), strict=True)):
        if not len(mesh.faces):
            low, high = np.sort(fields.inside * seen + levels[i])
            warnings.warn(
                f"field {i} has no surface at level {levels[i]:g}: its values in the box range from {low:.4g} to "
                f"{high:.4g}; its mesh is empty",
                stacklevel=2,
            )
    if largest:
        meshes = [keep_largest(mesh) for mesh in meshes]
    if faces:
        meshes = [refinement.simplify(mesh, faces) for mesh in meshes]
    fields = dataclasses.replace(fields, per_shape={**fields.per_shape, "level": levels})
    if rmsprop_steps:
        meshes = refinement.refine(fields, meshes, steps=rmsprop_steps, box=box)
    if normals:  # those that the last two steps have dropped
        meshes = [with_normals(fields, i, mesh) for i, mesh in enumerate(meshes)]
    return meshes[0] if single else meshes


def _logit(fields: Field, level, threshold: float) -> float:
    """The level of occupancies at a threshold τ; InputError for distances, and if a level is given, too."""
    if level is not None:
        raise InputError(f"level and threshold {threshold} are given, but each of them says where the surface is")
    if fields.inside < 0:
        raise InputError(f"threshold is {threshold}, but these fields are distances, whose surface is at 0")
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}, but it is an occupancy between 0 and 1")
    return math.log(threshold) - math.log1p(-threshold)


def chosen(backend: str, resolution: int) -> str:
    """`host` or `device`."""
    if backend != "auto":
        return backend
    return "host" if parallel.platform().is_cpu or resolution > device.MOST else "device"


def with_normals(fields: Field, shape: int, mesh: Mesh) -> Mesh:
    """The mesh with unit normals, those of the field of this number in a batch."""
    if mesh.normals is not None:
        return mesh
    if not len(mesh.vertices):
        return dataclasses.replace(mesh, normals=np.zeros((0, 3)))
    return dataclasses.replace(mesh, normals=_directions(fields, np.full(len(mesh.vertices), shape), mesh.vertices))


def _directions(fields: Field, shape, points) -> np.ndarray:
    """Unit vectors [N, 3] to the outside at points [N, 3] of fields shape [N]; zero where the gradient is zero."""
    _, gradients = evaluate_points(fields, shape, points, gradient=True)
    directions = -fields.inside * gradients.astype(np.float64)
    return directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def locate(evaluator: FieldEvaluator, method: str, coarse: int | None, lipschitz: float | None):
    """Finds the surface's cells → (samples, indices of the samples at each cell's corners [8, C], range [B, 2]).

    range: least and greatest signed value of each shape.
    """
    if method == "sparse":
        found = cells.search(evaluator, cells.COARSE if coarse is None else coarse, lipschitz)
        return found.samples, found.corners, found.range
    if method == "mise":
        grids, _ = mise.evaluate_octree(evaluator, surfaces.COARSE if coarse is None else coarse)
    else:
        grids = (evaluator.whole(shape) for shape in range(len(evaluator.fields)))
    parts, ranges = [], []
    for shape, values in enumerate(grids):
        parts.append(cells.crossed(evaluator.lattice, shape, values))
        ranges.append([values.min(), values.max()])
    keys, values, found = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    samples = Samples(keys, values)
    return samples, samples.index_of(found + evaluator.lattice.steps(CORNERS)[:, None]), np.array(ranges)


def split(evaluator: FieldEvaluator, samples: Samples, welded: Welded, normals: bool) -> list[Mesh]:
    """The welded triangles of a batch as one mesh per shape."""
    low = samples.keys[welded.low]
    shape, vertices = evaluator.points(low, welded.along[:, None] * np.eye(3)[welded.axis])
    directions = outward(evaluator, samples, welded, shape, vertices) if normals else None
    # vertices and faces are sorted by shape, so every mesh is a slice of both
    starts = np.searchsorted(shape, np.arange(len(evaluator.fields) + 1))
    of_face = shape[welded.faces[:, 0]]
    meshes = []
    for i, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        faces = welded.faces[np.searchsorted(of_face, i) : np.searchsorted(of_face, i, "right")] - start
        meshes.append(Mesh(vertices[start:stop], faces, None if directions is None else directions[start:stop]))
    return meshes


def outward(evaluator: FieldEvaluator, samples: Samples, welded: Welded, shape, vertices) -> np.ndarray:
    """Unit normals of vertices [V, 3]: of the field, and of the box on lids; zero where the gradient is zero."""
    directions = _directions(evaluator.fields, shape, vertices)
    below, above = np.isneginf(samples.values[welded.low]), np.isneginf(samples.values[welded.high])
    lid = below | above
    directions[lid] = (above[lid, None] - 1.0 * below[lid, None]) * np.eye(3)[welded.axis[lid]]
    return directions


def keep_largest(mesh: Mesh) -> Mesh:
    """The connected component with the largest volume (the surface of a cavity is a component with negative volume)."""
    if not len(mesh.faces):
        return mesh
    first, second = mesh.faces[:, 0], mesh.faces[:, [1, 2]]
    # every face links its first vertex with the other two
    links = coo_array((np.ones(2 * len(first), bool), (np.repeat(first, 2), second.ravel())), (len(mesh.vertices),) * 2)
    count, component = connected_components(links, directed=False)
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    # the signed volume of a component is the sum over its faces' tetrahedra with the origin (times 6)
    volumes = np.bincount(component[first], np.einsum("ij,ij->i", a, np.cross(b, c)), minlength=count)
    kept = component == volumes.argmax()
    number = np.cumsum(kept) - 1
    normals = None if mesh.normals is None else mesh.normals[kept]
    return Mesh(mesh.vertices[kept], number[mesh.faces[kept[first]]], normals, mesh.name)
