"""Improvement of meshes: projection of vertices onto the level, the published refinement, and simplification."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import chex
import fast_simplification
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel, products
from jonet.errors import InputError, MeshError
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces.grid import FieldEvaluator, deal, lattice
from jonet.inference.surfaces.marching_cubes import NEAREST, Samples, Welded
from jonet.networks.field import Field, bucket
from jonet.networks.layers import BLOCK
from jonet.wording import counted

CLOSE = 5e-4  # in cells: a vertex closer to the level than this, by the slope along its edge, is not moved any more
TINY = 1e-10  # added to denominators in the published refinement
STEPS = 30  # steps of the published refinement, as in its demonstration


def project(evaluator: FieldEvaluator, samples: Samples, welded: Welded, steps: int) -> Welded:
    """Moves vertices along their lattice edges onto the level, by bracketed secants (Anderson and Björck 1973).

    Every step evaluates each vertex that is not within CLOSE cells of the level yet.  A vertex cannot leave its edge,
    so that the mesh stays a manifold, and lids stay in the faces of the box.
    """
    ends = np.stack([samples.values[welded.low], samples.values[welded.high]]).astype(np.float64)
    moving = np.flatnonzero(np.isfinite(ends).all(0))  # the others belong to lids, and are on the box
    # The bracket of each vertex: two places on its edge [2, N] with values [2, N] of opposite sign.
    values, places = ends[:, moving], np.stack([np.zeros(len(moving)), np.ones(len(moving))])
    along = welded.along.copy()
    last = np.full(len(moving), -1)  # the end of the bracket that was replaced last
    for _ in range(steps):
        if not len(moving):
            break
        here = along[moving]
        offset = here[:, None] * np.eye(3)[welded.axis[moving]]
        value = evaluator(samples.keys[welded.low[moving]], offset).astype(np.float64)
        slope = np.abs((values[1] - values[0]) / (places[1] - places[0]))
        far = (np.abs(value) > CLOSE * slope) & (np.abs(places[1] - places[0]) > CLOSE)
        left: list[np.ndarray] = [moving, here, value, last, values, places]
        moving, here, value, last, values, places = (x[..., far] for x in left)
        end = ((value > 0) != (values[0] > 0)).astype(int)  # the end that has the sign of the new value: it is replaced
        column = np.arange(len(moving))
        # The plain secant method (regula falsi) may replace the same end forever.  If an end is replaced twice in a
        # row, Anderson and Björck scale down the value at the other end, which pulls the next root towards it.
        with np.errstate(divide="ignore", invalid="ignore"):  # the value at an end may be exactly 0
            factor = 1 - value / values[end, column]
        values[1 - end, column] *= np.where(end == last, np.where(factor > 0, factor, 0.5), 1)
        values[end, column], places[end, column], last = value, here, end
        root = (places[0] * values[1] - places[1] * values[0]) / (values[1] - values[0])
        along[moving] = np.clip(root, NEAREST, 1 - NEAREST)
    return welded._replace(along=along)


def refine(
    fields: Field,
    meshes: Sequence[Mesh],
    *,
    steps: int = STEPS,
    rate: float = 1e-4,
    weight: float = 0.01,
    seed: int = 0,
    box=None,
    draws=None,
) -> list[Mesh]:
    """The published refinement of Occupancy Networks, for all meshes of a batch at once: RMSprop on their vertices.

    In every step a point x is drawn on each face, with Dirichlet(½, ½, ½) barycentric weights.  The loss of a mesh is
    the mean over its faces of (p(x) - τ)² + weight · |n - n(x)|², where p is the occupancy and τ its level (for
    distances: value and level), n is the normal of the face and n(x) that of the field.  n(x) is differentiated, too.
    rate: of RMSprop (decay 0.99, ε 1e-8).  draws [steps, F, 3]: the weights for all faces, mesh after mesh; drawn by
    the seed if None.  Vertices in a face of the box [2, 3] (None: the box of each field) stay in that face.  The
    triangles stay the same; vertex normals are dropped.
    """
    if len(meshes) != len(fields):
        raise InputError(
            f"{counted(len(meshes), 'mesh', 'meshes')} for {counted(len(fields), 'field')}; give one mesh per field"
        )
    counts = np.array([len(mesh.faces) for mesh in meshes])
    if not counts.any():
        return list(meshes)
    shape = np.repeat(np.arange(len(meshes)), counts)
    corners = np.repeat(np.arange(len(meshes)), [len(mesh.vertices) for mesh in meshes])
    starts = np.searchsorted(corners, np.arange(len(meshes) + 1))
    before = np.concatenate([mesh.vertices for mesh in meshes])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)])

    # `free` coordinates may change; those in a face of the box are fixed, and faces that lie in it (lids) have no loss.
    boxes = lattice(fields, 1, box).boxes[corners]
    near = 1e-9 * np.ptp(boxes, axis=1)
    free = (before > boxes[:, 0] + near) & (before < boxes[:, 1] - near)
    lid = (~free)[faces].all(1).any(-1)
    weights = np.where(lid, 0, 1 / np.maximum(counts[shape], 1)).astype(np.float32)

    # Faces are packed into blocks of one shape each, and blocks split over the devices, padded to `capacity`.
    place, owners = deal(shape, len(fields), BLOCK)
    each = -(-len(owners) // parallel.count())  # blocks per device
    capacity = bucket(each)
    block = place // BLOCK
    place += (block // each * capacity + block % each - block) * BLOCK

    def table(rows, rest=0):
        """An array of faces [F, ...] in the layout [devices, blocks, 1024, ...], padded with `rest`."""
        full = np.empty((parallel.count() * capacity * BLOCK, *rows.shape[1:]), rows.dtype)
        full[:] = rest
        full[place] = rows
        return full.reshape(parallel.count(), capacity, BLOCK, *rows.shape[1:])

    moved = np.zeros((BLOCK * bucket(-(-len(before) // BLOCK)), 3), np.float32)
    moved[: len(before)] = before
    moved, opt_state = parallel.replicate((moved, optimizer(rate).init(moved)))
    fixed = table(shape.astype(np.int32)), table(faces.astype(np.int32), faces[0]), table(weights), np.int32(each)
    with products.precise(fields.precision):
        for step in range(steps):
            drawn = dirichlet(seed, step, counts) if draws is None else np.asarray(draws[step], np.float32)
            drawn = table(drawn, drawn[0])
            moved, opt_state = descend(fields.padded, moved, opt_state, drawn, *fixed, np.float32(weight), rate)
    after = np.where(free, np.asarray(moved)[: len(before)], before)
    return [
        dataclasses.replace(mesh, vertices=after[start:stop], normals=None)
        for mesh, start, stop in zip(meshes, starts[:-1], starts[1:], strict=True)
    ]


def dirichlet(seed: int, step: int, counts) -> np.ndarray:
    """Dirichlet(½, ½, ½) weights [F, 3] of all faces: the squares of random unit vectors.

    counts: faces of each mesh.  A mesh gets the same weights in any batch.
    """
    drawn = np.random.default_rng([seed, zlib.crc32(b"refine"), step]).standard_normal((max(counts), 3), np.float32)
    weights = np.square(drawn)
    weights /= weights.sum(-1, keepdims=True)
    return np.concatenate([weights[:count] for count in counts])


def optimizer(rate: float) -> optax.GradientTransformation:
    """PyTorch's RMSprop."""
    return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


@functools.partial(jax.jit, static_argnames="rate")
def descend(fields, vertices, opt_state, draws, shape, faces, weights, count, weight, rate):
    """One step of RMSprop → the vertices [V, 3], and the optimizer's state.

    draws, faces [D, K, 1024, 3]; shape, weights [D, K, 1024]: of the faces, in K blocks on each of D devices, of which
    the first `count` are used.
    """
    corners = _pull(fields, shape, vertices[faces], draws, weights, count, weight)
    gradient = jnp.zeros_like(vertices).at[faces].add(corners)
    updates, opt_state = optimizer(rate).update(gradient, opt_state)
    return vertices + updates, opt_state


def face_losses(field: Field, corners, draws, weight) -> jax.Array:
    """The loss of each face: corners [N, 3, 3], draws [N, 3] → [N]; see `refine`."""
    chex.assert_shape([corners, draws], [(len(draws), 3, 3), (len(draws), 3)])

    def value(points):
        return jax.nn.sigmoid(field.at(points)) if field.inside > 0 else field.at(points)

    points = jnp.einsum("nk,nkc->nc", draws, corners)
    values, vjp = jax.vjp(value, points)
    (gradients,) = vjp(jnp.ones_like(values))
    outward = -field.inside * unit(gradients)
    normals = unit(jnp.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]))
    target = jax.nn.sigmoid(field.per_shape["level"]) if field.inside > 0 else field.per_shape["level"]
    return jnp.square(values - target) + weight * jnp.square(normals - outward).sum(-1)


def unit(vectors) -> jax.Array:
    """Vectors [N, 3] divided by their length + TINY; as in PyTorch, the gradient of a length of zero is zero."""
    # The inner `where` keeps the square root's infinite derivative at 0 out of the gradient.
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors / (jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) + TINY)


def _pull_on_device(fields, shape, corners, draws, weights, count, weight):
    """One device's blocks of faces, of which the first `count` are used → gradients of their corners."""

    def block(k, gradients):
        field = dataclasses.replace(fields, per_shape=jax.tree.map(lambda leaf: leaf[shape[0, k, 0]], fields.per_shape))

        def loss(corners):
            return jnp.sum(weights[0, k] * face_losses(field, corners, draws[0, k], weight))

        return gradients.at[0, k].set(jax.grad(loss)(corners[0, k]))

    return jax.lax.fori_loop(0, count, block, jnp.zeros_like(corners))


_pull = parallel.pmap(
    _pull_on_device,
    (parallel.REPLICATED, *[parallel.SPLIT] * 4, parallel.REPLICATED, parallel.REPLICATED),
    parallel.SPLIT,
)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """Simplifies a mesh to about `faces` faces by quadric edge collapse (fast-simplification, with agg=5 as published).

    A mesh that has no more faces is returned unchanged; else vertex normals are dropped.
    Raises MeshError if a closed mesh is not closed any more.
    """
    if faces < 4:
        raise InputError(f"faces is {faces}, but a closed mesh has at least 4")
    if len(mesh.faces) <= faces:
        return mesh
    vertices, triangles, *_ = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=faces, agg=5)
    simple = dataclasses.replace(mesh, vertices=vertices, faces=triangles, normals=None)
    if mesh.watertight and not simple.watertight:
        raise MeshError(
            f"{mesh.name or 'mesh'}: simplified to {faces} faces, it is not closed any more; choose more faces"
        )
    return simple
