"""Scans as observations: what the viewpoint tells of normals and free space.

(DeepSDF, section 5, shape completion.)
"""

from __future__ import annotations

import numpy as np

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry import depth
from jonet.inference.fitting.observations import ObservedArrays
from jonet.settings.fitting import PoseConfig

LIMIT = 4096  # points of free space that are drawn for a scan with an eye
PRIOR = 1e-3  # weight of the prior; higher than for complete shapes, since only the prior determines hidden parts
POSE = {  # settings of the pose search by the rotations that are tried
    "yaw": PoseConfig(rotations="yaw", tries=32, keep=(8, 2, 1)),
    "any": PoseConfig(rotations="any", tries=256, keep=(16, 4, 1)),
}


def of_scans(given: ObservedArrays, eye=None, whole: bool = False) -> ObservedArrays:
    """The points of scans with normals and free space that follow from where they were seen from.

    eye: the viewpoint, [3], or [B, 3] one per scan.  Visible surfaces face it: given normals are flipped towards it,
    missing ones are estimated.  `LIMIT` points on the lines of sight are added to the free space.
    whole: the points cover whole surfaces; else nothing follows from where there are none.
    Raises InputError for `whole` together with an eye or free space.
    """
    if whole:
        if eye is not None or given.free_space is not None:
            raise InputError("whole is given together with eye or free_space, but whole surfaces have no hidden side")
        return given
    count = len(given.rows)
    free_space = given.free_space or [np.zeros((0, 3))] * count
    if eye is None:
        return given._replace(free_space=free_space)
    eyes = check_array([eye] * count if np.ndim(eye) == 1 else eye, "eye", (count, 3), np.float64)
    normals, free = [], []
    for i, (points, at) in enumerate(zip(given.rows, eyes, strict=True)):
        own = depth.normals_towards(points, at) if given.normals is None else given.normals[i]
        away = np.einsum("nc,nc->n", own, at - points) < 0
        normals.append(np.where(away[:, None], -own, own))
        free.append(np.concatenate([free_space[i], depth.free_space(at, points, LIMIT, np.random.default_rng(0))]))
    return given._replace(normals=normals, free_space=free)
