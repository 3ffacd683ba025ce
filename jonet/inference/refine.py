"""Vertices moved onto the level; the published refinement; fewer faces."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import fast_simplification
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.data.meshes import Mesh
from jonet.errors import InputError, MeshError
from jonet.inference.grid import Asker, deal, lattice
from jonet.inference.marching import NEAREST, Samples, Welded
from jonet.networks.field import Field, bucket
from jonet.networks.layers import BLOCK

CLOSE = 5e-4  # cells: a vertex nearer to the level than this, as far as its edge tells, stays
TINY = 1e-10  # in the denominators of the published refinement
STEPS = 30  # of the published refinement, as its demonstration has it


def project(asker: Asker, samples: Samples, welded: Welded, steps: int) -> Welded:
    """Vertices moved along their lattice edges onto the level, by bracketed secants (Anderson and Björck 1973).

    One evaluation a vertex and step, of those that are not within CLOSE cells yet.  A vertex cannot leave its edge:
    so the mesh stays the manifold that it was, and lids stay in the faces of the box.
    """
    ends = np.stack([samples.values[welded.low], samples.values[welded.high]]).astype(np.float64)
    moving = np.flatnonzero(np.isfinite(ends).all(0))  # the others are a lid's, and lie where they must
    values, places = ends[:, moving], np.stack([np.zeros(len(moving)), np.ones(len(moving))])
    along = welded.along.copy()
    last = np.full(len(moving), -1)  # which end was replaced last
    for _ in range(steps):
        if not len(moving):
            break
        here = along[moving]
        offset = here[:, None] * np.eye(3)[welded.axis[moving]]
        value = asker(samples.keys[welded.low[moving]], offset).astype(np.float64)
        slope = np.abs((values[1] - values[0]) / (places[1] - places[0]))
        far = (np.abs(value) > CLOSE * slope) & (np.abs(places[1] - places[0]) > CLOSE)
        moving, here, value, last, values, places = (x[..., far] for x in (moving, here, value, last, values, places))
        end = ((value > 0) != (values[0] > 0)).astype(int)  # the end whose sign the new value has
        column = np.arange(len(moving))
        with np.errstate(divide="ignore", invalid="ignore"):  # an end may lie on the level exactly
            shrunk = 1 - value / values[end, column]  # factor on an end that stays once more
        values[1 - end, column] *= np.where(end == last, np.where(shrunk > 0, shrunk, 0.5), 1)
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
    """The refinement that Occupancy Networks publish, of all meshes of a batch at once: RMSprop on their vertices.

    On every face one point x is drawn with Dirichlet(½, ½, ½) weights, anew in each step.  A mesh's loss is the mean
    over its faces of (p(x) - τ)² + weight · |n - n(x)|²: p the occupancy and τ its level (of distances: value and
    level), n the face's normal and n(x) the field's, through whose gradient gradients flow as well.
    rate: RMSprop's (decay 0.99, ε 1e-8).  draws [steps, F, 3]: the weights for all faces, mesh after mesh; drawn from
    the seed if None.  What lies in a face of the box [2, 3] (None: the fields' own) stays in it.  The triangles stay,
    normals are dropped.
    """
    if len(meshes) != len(fields):
        raise InputError(f"{len(meshes)} meshes for {len(fields)} fields; give one mesh a field")
    counts = np.array([len(mesh.faces) for mesh in meshes])
    if not counts.any():
        return list(meshes)
    shape = np.repeat(np.arange(len(meshes)), counts)
    corners = np.repeat(np.arange(len(meshes)), [len(mesh.vertices) for mesh in meshes])
    starts = np.searchsorted(corners, np.arange(len(meshes) + 1))
    before = np.concatenate([mesh.vertices for mesh in meshes])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)])

    boxes = lattice(fields, 1, box).boxes[corners]
    near = 1e-9 * np.ptp(boxes, axis=1)
    free = (before > boxes[:, 0] + near) & (before < boxes[:, 1] - near)
    lid = (~free)[faces].all(1).any(-1)
    share = np.where(lid, 0, 1 / np.maximum(counts[shape], 1)).astype(np.float32)

    place, owners = deal(shape, len(fields), BLOCK)
    each = -(-len(owners) // parallel.count())  # blocks a device
    capacity = bucket(each)
    block = place // BLOCK
    place += (block // each * capacity + block % each - block) * BLOCK

    def table(rows, rest=0):
        """What belongs to faces, at their places in [devices, blocks, 1024, ...]; in the places between, `rest`."""
        full = np.empty((parallel.count() * capacity * BLOCK, *rows.shape[1:]), rows.dtype)
        full[:] = rest
        full[place] = rows
        return full.reshape(parallel.count(), capacity, BLOCK, *rows.shape[1:])

    moved = np.zeros((BLOCK * bucket(-(-len(before) // BLOCK)), 3), np.float32)
    moved[: len(before)] = before
    moved, memory = parallel.replicate((moved, optimizer(rate).init(moved)))
    fixed = table(shape.astype(np.int32)), table(faces.astype(np.int32), faces[0]), table(share), np.int32(each)
    for step in range(steps):
        drawn = dirichlet(seed, step, counts) if draws is None else np.asarray(draws[step], np.float32)
        moved, memory = descend(fields, moved, memory, table(drawn, drawn[0]), *fixed, np.float32(weight), rate)
    after = np.where(free, np.asarray(moved)[: len(before)], before)
    return [
        dataclasses.replace(mesh, vertices=after[start:stop], normals=None)
        for mesh, start, stop in zip(meshes, starts[:-1], starts[1:], strict=True)
    ]


def dirichlet(seed: int, step: int, counts) -> np.ndarray:
    """Dirichlet(½, ½, ½) weights of faces: the squares of a random direction.  Each mesh draws as if it were alone."""
    drawn = np.random.default_rng([seed, zlib.crc32(b"refine"), step]).standard_normal((max(counts), 3), np.float32)
    weights = np.square(drawn)
    weights /= weights.sum(-1, keepdims=True)
    return np.concatenate([weights[:count] for count in counts])


def optimizer(rate: float) -> optax.GradientTransformation:
    """PyTorch's RMSprop."""
    return optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)


@functools.partial(jax.jit, static_argnames="rate")
def descend(fields, vertices, memory, draws, shape, faces, share, count, weight, rate):
    """One step: the vertices, and the optimiser's memory."""
    corners = _pull(fields, shape, vertices[faces], draws, share, count, weight)
    gradient = jnp.zeros_like(vertices).at[faces].add(corners)
    updates, memory = optimizer(rate).update(gradient, memory)
    return vertices + updates, memory


def face_losses(field: Field, corners, draws, weight) -> jax.Array:
    """What each face adds to the loss: corners [N, 3, 3], draws [N, 3] → [N]."""

    def value(points):
        return jax.nn.sigmoid(field.at(points)) if field.inside > 0 else field.at(points)

    points = jnp.einsum("nk,nkc->nc", draws, corners)
    values, back = jax.vjp(value, points)
    (slopes,) = back(jnp.ones_like(values))
    outward = -field.inside * unit(slopes)
    normals = unit(jnp.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]))
    target = jax.nn.sigmoid(field.own["level"]) if field.inside > 0 else field.own["level"]
    return jnp.square(values - target) + weight * jnp.square(normals - outward).sum(-1)


def unit(vectors) -> jax.Array:
    """Vectors [N, 3] over their length + TINY; as in PyTorch, the gradient of a length of zero is zero."""
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors / (jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) + TINY)


def _pull_share(fields, shape, corners, draws, share, count, weight):
    """One device's share: blocks of faces, of which the first `count` are looked at → gradients of their corners."""

    def block(k, gradients):
        field = dataclasses.replace(fields, own=jax.tree.map(lambda leaf: leaf[shape[0, k, 0]], fields.own))

        def loss(corners):
            return jnp.sum(share[0, k] * face_losses(field, corners, draws[0, k], weight))

        return gradients.at[0, k].set(jax.grad(loss)(corners[0, k]))

    return jax.lax.fori_loop(0, count, block, jnp.zeros_like(corners))


_pull = parallel.pmap(
    _pull_share,
    (parallel.REPLICATED, *[parallel.SPLIT] * 4, parallel.REPLICATED, parallel.REPLICATED),
    parallel.SPLIT,
)


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """About `faces` faces at most, by quadric edge collapse (fast-simplification, as aggressive as published: 5).

    A mesh that has no more comes back as it is; normals are dropped.  MeshError where a closed mesh would open.
    """
    if faces < 4:
        raise InputError(f"faces is {faces}, but a closed mesh has at least 4")
    if len(mesh.faces) <= faces:
        return mesh
    vertices, triangles = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=faces, agg=5)
    simple = dataclasses.replace(mesh, vertices=vertices, faces=triangles, normals=None)
    if mesh.watertight and not simple.watertight:
        raise MeshError(
            f"{mesh.name or 'mesh'}: simplified to {faces} faces, it is not closed any more; ask for more faces"
        )
    return simple
