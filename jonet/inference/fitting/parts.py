"""Clouds that cover a part of their shape only: recognized by how much of the fitted surface no point is near.

The box around a part is not that of the shape, so a fit that takes it for one is wrong and yet may look sure.  Where a
fit is doubtful, code, position and size are searched as `completion` does.  If the shape that this finds is like the
training shapes, or more so, and much of its surface was not seen, the cloud is a part of it.  If it is far more like
them, the box was wrong, however much was seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from scipy.spatial import KDTree

from jonet import resources
from jonet.data.sampling import surface
from jonet.errors import MeshError
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.fitting import completion, pose
from jonet.inference.fitting.latents import Fit, prior_and_starts
from jonet.inference.fitting.observations import ObservedArrays
from jonet.inference.surfaces import extraction
from jonet.networks.bound import BoundNetwork
from jonet.wording import counted

CELLS = 32  # a side of the grid of surfaces that are looked at
POINTS = 1000  # of a cloud, at most, and of a surface
TOGETHER = 256  # surfaces in memory at once
NEIGHBOR, FAR = 6, 2.0  # places are unseen if all points are so many times as far as points from this neighbor
SUSPECT = 0.1  # fraction of the surface that is unseen, from which on a shape is searched around the cloud
PART = 0.15  # the same of the shape that is found then, from which on the cloud is a part
NEARER = 0.92  # if that shape is like the training shapes, or its code's distance from theirs at most this of before
ELSEWHERE = 0.7  # of that distance, if the code is then like theirs, and was not: the box is wrong, whatever was seen
OFF_MESH, DOUBTFUL = 0.05, 0.2  # far points, in longest sides of their box; a mesh with more of them is doubtful
OFF = 0.15  # by which a point moves then at least, in the normalized frame; by less, the box was nearly right

SEARCHED = (
    "of the surface is far from all points, so these are a part of the shape: position, size and rotation about the "
    "vertical were searched (as complete does), and what was not seen is guessed"
)
MOVED = (
    "in the box around its points it is unlike the training shapes, and elsewhere like them: position, size and "
    "rotation about the vertical were searched (as complete does); points of a part, or a turned shape, look so"
)
KEPT = (
    "of the surface is far from all points: if these are a part of the shape, the box around them is not that of the "
    "shape; see complete"
)
NOT_ITS_MESH = (
    "of the points are far from the mesh: the encoder knows no such shape, or these are a part of one, whose box is "
    "larger than theirs"
)


Cloud = tuple[np.ndarray, np.ndarray | None]  # points [N, 3] and normals [N, 3], of one shape


class Placed(NamedTuple):
    """Codes of B clouds, where these turned out to be, and how much of each surface was not seen."""

    fit: Fit
    similarities: list[Similarity]  # from the frame of the given clouds, the identity for whole ones
    unseen: np.ndarray  # [B] float32 fraction of the surface; nan for shapes that are no clouds
    searched: np.ndarray  # [B] bool: whose code, position and size were searched, since the box was not theirs


def placed(network: BoundNetwork, clouds: Sequence[Cloud | None], found: Fit, index=None, **known) -> Placed:
    """The codes of clouds that were fitted as whole shapes, and those of parts in their place.

    clouds: in the normalized frame of their own boxes, None for shapes that are none.  found: their codes.  index,
    known: as for `latents.fit`.
    """
    columns = [column.copy() for column in found]
    result = Placed(
        Fit(*columns),
        [Similarity()] * len(clouds),
        np.full(len(clouds), np.nan, np.float32),
        np.zeros(len(clouds), bool),
    )
    given = {i: cloud for i, cloud in enumerate(clouds) if cloud is not None}
    if not given:
        return result
    result.unseen[[*given]] = unseen(network, found.values[[*given]], [points for points, _ in given.values()])
    doubtful = found.out_of_distribution | (result.unseen > SUSPECT)
    prior, _ = prior_and_starts(network, known.get("prior"), known.get("starts"), completion.POSE["yaw"].fitting)
    for oriented in (True, False):
        asked = [i for i, (_, normals) in given.items() if doubtful[i] and (normals is not None) == oriented]
        if not asked:
            continue
        some = ObservedArrays(
            points=[given[i][0] for i in asked],
            normals=[normals for i in asked if (normals := given[i][1]) is not None] or None,
            free_space=[np.zeros((0, 3))] * len(asked),
        )
        numbers = None if index is None else np.asarray(index)[asked]
        around = pose.fit_pose(network, some, numbers, config=completion.POSE["yaw"], **known)
        left = unseen(network, around.codes.values, some.transformed(around.similarities).rows)
        before, distance = prior.distances(found.values[asked]), prior.distances(around.codes.values)
        unlike = around.codes.out_of_distribution
        parts = (left > PART) & ((distance < NEARER * before) | ~unlike)
        off = [
            np.linalg.norm(transform(cloud) - cloud, axis=1).max()
            for transform, cloud in zip(around.similarities, some.rows, strict=True)
        ]
        elsewhere = found.out_of_distribution[asked] & ~unlike & (distance < ELSEWHERE * before)
        searched = (parts | elsewhere) & (np.array(off) > OFF)
        result.searched[asked] = searched
        result.unseen[asked] = np.where(searched, left, np.maximum(result.unseen[asked], left))
        for j, i in enumerate(asked):
            if searched[j]:
                result.similarities[i] = around.similarities[j]
                for column, new in zip(columns, around.codes, strict=True):
                    column[i] = new[j]
                # a place that was guessed, while nothing seems to be missing, stays doubtful
                result.fit.out_of_distribution[i] |= not parts[j]
    return result


def warn(found: Placed, names: Sequence[str]) -> None:
    """Warns about clouds that were moved, or of which much of the surface was not seen; names: of the shapes."""
    hidden = found.unseen > PART
    for some, then in (
        (found.searched & hidden, SEARCHED),
        (found.searched & ~hidden, MOVED),
        (~found.searched & hidden, KEPT),
    ):
        if (which := np.flatnonzero(some)).size:
            others = f" (and {counted(len(which) - 1, 'other shape')})" * (len(which) > 1)
            share = "" if then is MOVED else f"{found.unseen[which[0]]:.0%} "
            warnings.warn(f"{names[which[0]]}{others}: {share}{then}", stacklevel=3)


def unseen(network: BoundNetwork, codes: np.ndarray, clouds: Sequence[np.ndarray]) -> np.ndarray:
    """The fraction [B] of the surface of each code [B, L] that is far from all points [Nᵢ, 3] of its cloud.

    Far is twice the usual distance of the points, of which a thousand are looked at, from their sixth neighbor.  1
    where there is no surface.
    """
    found = np.ones(len(codes), np.float32)
    finite = np.flatnonzero(np.isfinite(codes).all(axis=1))
    for start in range(0, len(finite), TOGETHER):
        some = finite[start : start + TOGETHER].tolist()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "field .* has no surface")
            meshes = cast(list[Mesh], extraction.extract(network.fields(codes[some]), CELLS, normals=False))
        found[some] = resources.in_threads(_far, meshes, [clouds[i] for i in some])
    return found


def off_mesh(mesh: Mesh, points: np.ndarray) -> float:
    """The fraction of points [N, 3] that are farther from a mesh than 1/20 of the longest side of their box.

    For codes of encoders, which have no residual.  1 for a mesh without a surface.
    """
    rng = np.random.default_rng(0)
    try:
        places, _ = surface(mesh, 4 * POINTS, rng, np.float64)
    except MeshError:
        return 1.0
    some = _some(points, rng)
    return float(np.mean(KDTree(places).query(some)[0] > OFF_MESH * np.ptp(points, axis=0).max()))


def warn_off_mesh(meshes: Sequence[Mesh], clouds: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Warns about meshes that are not those of their clouds [Nᵢ, 3], in the same units; names: of the shapes."""
    found = [off_mesh(mesh, points) for mesh, points in zip(meshes, clouds, strict=True)]
    if which := [i for i, share in enumerate(found) if share > DOUBTFUL]:
        others = f" (and {counted(len(which) - 1, 'other shape')})" * (len(which) > 1)
        warnings.warn(f"{names[which[0]]}{others}: {found[which[0]]:.0%} {NOT_ITS_MESH}", stacklevel=3)


def _far(mesh: Mesh, points: np.ndarray) -> float:
    """The fraction of a surface that is far from all points [N, 3]; 1 if there is none."""
    rng = np.random.default_rng(0)
    try:
        places, _ = surface(mesh, POINTS, rng)
    except MeshError:
        return 1.0
    some = _some(points, rng)
    tree = KDTree(some)
    apart = tree.query(some, min(NEIGHBOR + 1, len(some)))[0]  # the first is the point itself
    reach = FAR * np.median(apart.reshape(len(some), -1)[:, -1])
    return float(np.mean(tree.query(places)[0] > reach))


def _some(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `POINTS` of the points [N, 3]."""
    return points if len(points) <= POINTS else points[rng.choice(len(points), POINTS, replace=False)]
