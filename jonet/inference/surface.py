"""Fields to meshes: closed, welded, facing outwards."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jonet import parallel
from jonet.data.meshes import Mesh
from jonet.errors import InputError, require
from jonet.inference import cells, mise, refine
from jonet.inference.grid import Asker, Lattice, ask, lattice
from jonet.inference.marching import CORNERS, Samples, Welded, polygonize
from jonet.networks.field import Field

BATCH = 4 * 128**2  # shapes at once times squared resolution: what a processor's cache likes; bounds the memory, too
WORKERS = 2  # batches in flight: while one waits for its values, another finds its cells
METHODS = ("sparse", "dense", "mise")


def extract(
    fields: Field,
    resolution: int = 128,
    box=None,
    level=None,
    *,
    method: str = "sparse",
    coarse: int | None = None,
    lipschitz: float | None = None,
    refine_steps: int = 12,
    normals: bool = True,
    largest: bool = False,
) -> list[Mesh] | Mesh:
    """The surfaces of a batch of fields as meshes in the fields' frame; one field gives one mesh.

    resolution: R cells a side; the vertices lie on the edges of this grid.  box [2, 3]: its corners, the fields' own
    if None; a shape that reaches beyond is closed by a lid in the box's face.  level: the value on the surface, one or
    one a field, the fields' own if None (of occupancies: the logit of τ).
    method: `sparse` finds the surface's cells coarse to fine (`cells.search`, with its arguments coarse and lipschitz);
    `dense` asks the whole grid; `mise` is the published octree of `mise.refine` (coarse: 32 as published).
    refine_steps: how often vertices that do not lie on the level (to 1e-3 cells) move, most once or twice; 0 leaves
    them where linear interpolation puts them.  normals: unit normals from the field's gradient.  largest: keeps only
    the component that encloses most.

    Every mesh is closed, a manifold, and faces outwards.  A field without surface gives a mesh without faces and a
    warning that names its range; one that is not finite raises InputError.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; there are {', '.join(METHODS)}")
    if coarse is not None and coarse < 1:
        raise InputError(f"coarse is {coarse}, but counts the cells a side of the first grid: 1 or more")
    if not fields.batched:
        level = None if level is None else np.reshape(level, 1)
        options = dict(method=method, coarse=coarse, lipschitz=lipschitz, refine_steps=refine_steps)
        return extract(Field.stack([fields]), resolution, box, level, normals=normals, largest=largest, **options)[0]
    levels = require(np.atleast_1d(fields.own["level"] if level is None else level), "level", (None,))
    if len(levels) not in (1, len(fields)):
        raise InputError(f"level has {len(levels)} values for {len(fields)} fields; give one, or one a field")
    levels = np.broadcast_to(levels, len(fields))
    grid = lattice(fields, resolution, box)
    each = max(1, BATCH // grid.resolution**2)
    precision = jax.config.jax_default_matmul_precision  # of this thread; the others start with the default

    def some(first):
        here = slice(first, first + each)
        asker = Asker(fields[here], Lattice(grid.boxes[here], grid.resolution), levels[here], first)
        with jax.default_matmul_precision(precision):
            samples, corners, seen = locate(asker, method, coarse, lipschitz)
            welded = refine.project(asker, samples, polygonize(asker.lattice, samples, corners), refine_steps)
            return split(asker, samples, welded, normals), seen

    starts = range(0, len(fields), each)
    if len(starts) == 1 or parallel.together():
        parts = [some(first) for first in starts]
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            parts = list(pool.map(some, starts))
    meshes = [mesh for part, _ in parts for mesh in part]
    for i, (mesh, seen) in enumerate(zip(meshes, np.concatenate([seen for _, seen in parts]), strict=True)):
        if not len(mesh.faces):
            low, high = np.sort(fields.inside * seen + levels[i])
            warnings.warn(
                f"field {i} has no surface at level {levels[i]:g}: its values in the box range from {low:.4g} to "
                f"{high:.4g}; its mesh is empty",
                stacklevel=2,
            )
    return [keep_largest(mesh) for mesh in meshes] if largest else meshes


def locate(asker: Asker, method: str, coarse: int | None, lipschitz: float | None):
    """Samples, those at the corners of the surface's cells [8, C], the range of signed values [B, 2]; by a method."""
    if method == "sparse":
        found = cells.search(asker, cells.COARSE if coarse is None else coarse, lipschitz)
        return found.samples, found.corners, found.range
    if method == "mise":
        grids, _ = mise.refine(asker, mise.COARSE if coarse is None else coarse)
    else:
        grids = (asker.whole(shape) for shape in range(len(asker.fields)))
    parts, ranges = [], []
    for shape, values in enumerate(grids):
        parts.append(cells.crossed(asker.lattice, shape, values))
        ranges.append([values.min(), values.max()])
    keys, values, found = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    samples = Samples(keys, values)
    return samples, samples.at(found + asker.lattice.steps(CORNERS)[:, None]), np.array(ranges)


def split(asker: Asker, samples: Samples, welded: Welded, normals: bool) -> list[Mesh]:
    """One mesh a shape."""
    low = samples.keys[welded.low]
    shape, vertices = asker.points(low, welded.along[:, None] * np.eye(3)[welded.axis])
    directions = outward(asker, samples, welded, shape, vertices) if normals else None
    starts = np.searchsorted(shape, np.arange(len(asker.fields) + 1))
    of_face = shape[welded.faces[:, 0]]
    meshes = []
    for i, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        faces = welded.faces[np.searchsorted(of_face, i) : np.searchsorted(of_face, i, "right")] - start
        meshes.append(Mesh(vertices[start:stop], faces, directions[start:stop] if normals else None))
    return meshes


def outward(asker: Asker, samples: Samples, welded: Welded, shape, vertices) -> np.ndarray:
    """Unit normals of vertices [V, 3]: the field's, and the box's on lids; zero where the field is flat."""
    _, gradients = ask(asker.fields, shape, vertices, gradient=True)
    directions = -asker.fields.inside * gradients.astype(np.float64)
    directions /= np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    below, above = np.isneginf(samples.values[welded.low]), np.isneginf(samples.values[welded.high])
    lid = below | above
    directions[lid] = (above[lid, None] - 1.0 * below[lid, None]) * np.eye(3)[welded.axis[lid]]
    return directions


def keep_largest(mesh: Mesh) -> Mesh:
    """The one component that encloses the largest volume (the walls of cavities are components of their own)."""
    if not len(mesh.faces):
        return mesh
    first, second = mesh.faces[:, 0], mesh.faces[:, [1, 2]]
    links = coo_array((np.ones(2 * len(first), bool), (np.repeat(first, 2), second.ravel())), (len(mesh.vertices),) * 2)
    count, component = connected_components(links, directed=False)
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    volumes = np.bincount(component[first], np.einsum("ij,ij->i", a, np.cross(b, c)), minlength=count)
    kept = component == volumes.argmax()
    number = np.cumsum(kept) - 1
    normals = None if mesh.normals is None else mesh.normals[kept]
    return Mesh(mesh.vertices[kept], number[mesh.faces[kept[first]]], normals, mesh.name)
