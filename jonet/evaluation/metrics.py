"""Scores of a mesh against the true one, each computed once, in units of the true mesh's longest side.

`P` are points spread evenly over the made surface, `T` over the true one; d(p, T) is the distance from p to the nearest
of T.  Since that is never 0, even a mesh against itself has a Chamfer distance: about 0.003 from 100,000 points.
`measures.py` says how scores are called, and prints them in each paper's units.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import igl
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from jonet.data.inside import Inside, open_edges, simple
from jonet.data.meshes import Mesh, Similarity, examine, normalize, orient
from jonet.data.sampling import Solid, surface
from jonet.data.walls import walls
from jonet.errors import ConfigError, InputError, MeshError
from jonet.evaluation.measures import MEASURES, measure, number, scaled

WORST = {  # of a shape of which no surface was made: distances are the longest side
    **dict.fromkeys(("iou", "normal_consistency", "f_score", "mesh_completion"), 0.0),
    **dict.fromkeys(("chamfer_l1", "accuracy", "completeness", "mesh_accuracy", "emd"), 1.0),
    "chamfer_l2": 2.0,
}
FAR = 8  # times the volume of the true box beyond which the box around both leaves too few points to the true shape


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How many points each score is computed from; the defaults are those of the papers."""

    volume_points: int = 100_000  # IoU (Occupancy Networks)
    surface_points: int = 100_000  # Chamfer-L1, normal consistency, F-score (Occupancy Networks)
    chamfer_points: int = 30_000  # Chamfer-L2 (DeepSDF)
    accuracy_points: int = 1_000  # mesh accuracy and completion (DeepSDF)
    emd_points: int = 500  # EMD (DeepSDF)
    threshold: float = 0.01  # F-score and mesh completion: how near is near, in units of the longest side
    seed: int = 0

    def __post_init__(self):
        counts = self.surface_points, self.chamfer_points, self.accuracy_points, self.emd_points
        if min(counts) < 1 or self.volume_points < 1 or max(counts) > counts[0] or not self.threshold > 0:
            raise ConfigError(
                f"scores from {self.volume_points} points in space, {counts} on surfaces, threshold {self.threshold}: "
                "all are above 0, and no count on surfaces exceeds the first"
            )


def evaluate(meshes: Sequence[Mesh] | Mesh, truths: Sequence[Mesh] | Mesh, scoring: Scoring = Scoring()) -> dict:
    """Scores of meshes against the true ones, in the same frame: {"shapes": [one row a shape], "summary": …}.

    True meshes are turned outwards first, part by part, and where their verdict is that winding numbers cannot be
    trusted, votes tell what lies inside (`data.meshes.examine`); where nothing can, the IoU is None.
    """
    if isinstance(meshes, Mesh) and isinstance(truths, Mesh):
        meshes, truths = [meshes], [truths]
    if len(meshes) != len(truths):
        raise InputError(f"{len(meshes)} meshes cannot be scored against {len(truths)} true ones; give one for each")
    pairs = [examined(*pair) for pair in zip(meshes, truths, strict=True)]
    rows = evaluate_all([pair for *pair, _ in pairs], scoring)
    rows = [row if has_inside else row | {"iou": None} for row, (*_, has_inside) in zip(rows, pairs, strict=True)]
    names = [truth.name or mesh.name for mesh, truth in zip(meshes, truths, strict=True)]
    return {"shapes": [{"name": name, **row} for name, row in zip(names, rows, strict=True)], "summary": summary(rows)}


def examined(mesh: Mesh, truth: Mesh) -> tuple[Mesh, Mesh | Solid, bool]:
    """A pair as `score` takes it, by the true mesh's verdict, and whether anything tells the true one's inside."""
    if not len(truth.faces):
        return mesh, truth, True
    verdict = examine(truth)
    truth = orient(truth, verdict)
    if verdict.method != "views":
        return mesh, truth, True
    truth, way = normalize(truth)
    try:
        return way.apply(mesh), as_learned(truth, verdict.method), True
    except MeshError:  # seen from both sides
        return way.apply(mesh), truth, False


def evaluate_all(
    pairs: Sequence[tuple[Mesh, Mesh | Solid]], scoring: Scoring = Scoring(), labelled: Sequence = ()
) -> list[dict]:
    """`score` of many pairs (made, true); labelled: of each pair, where there is any."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = labelled or itertools.repeat(None)
        return list(pool.map(lambda pair, labels: score(*pair, scoring, labels), pairs, told))


def score(mesh: Mesh, truth: Mesh | Solid, scoring: Scoring = Scoring(), labelled=None) -> dict:
    """All scores of one mesh; of one without faces, the worst there are (`WORST`).

    truth: closed, facing outwards (`meshes.orient`), or a solid, whose sign method then tells what lies inside and is
    noted as "signs" beside the scores, or points of a surface, as vertices without faces: then distances to the truth
    are to its nearest point (without normals there is no consistency of them), and the IoU is that of labelled: points
    [K, 3] and whether they are inside [K], None for no IoU.  A closed mesh that is inside out is turned over.  What is
    not defined is None.  Draws depend on the scoring's seed alone.
    """
    told, truth = (truth, truth.mesh) if isinstance(truth, Solid) else (None, truth)
    if not len(truth.vertices):
        raise InputError(f"{truth.name or 'the true shape'} has no surface, so nothing can be scored against it")
    solid = len(truth.faces) > 0
    signs = {"signs": told.method} if told else {}
    unknown = set() if solid or labelled is not None else {"iou"}
    if not solid and truth.normals is None:
        unknown.add("normal_consistency")
    if not len(mesh.faces):
        return {name: value for name, value in WORST.items() if name not in unknown} | signs
    bounds = truth.bounds if solid else np.stack([truth.vertices.min(0), truth.vertices.max(0)])
    side = np.ptp(bounds, axis=0).max()
    if not side > 0:
        raise InputError(f"{truth.name or 'the true shape'} is one place and has no size to measure distances by")
    # towards the origin, where float32 has no steps; by whole sides, so that what is there stays as it is to the bit
    near = Similarity(translation=-side * np.round(bounds.mean(0) / side))
    mesh, truth = outwards(near.apply(mesh)), near.apply(truth)
    truth = outwards(truth) if told is None else truth
    boundary = near.apply(told.walls) if told else bounding(truth) if solid else truth
    made, made_normals = surface(mesh, scoring.surface_points, rng(scoring, "made"))
    true, true_normals = of_surface(boundary, scoring)
    made, true = made / side, true / side
    out, near_true = cKDTree(true).query(made)
    back, near_made = cKDTree(made).query(true)
    some, few = scoring.chamfer_points, scoring.accuracy_points
    out_some, back_some = cKDTree(true[:some]).query(made[:some])[0], cKDTree(made[:some]).query(true[:some])[0]
    exact = to_surface(made[:few] * side, boundary) / side if solid else out[:few]
    if told:
        common = iou(mesh, truth, scoring, lambda points: told.inside(near.inverse()(points)))
    elif solid:
        common = iou(mesh, truth, scoring)
    else:
        common = None if labelled is None else iou_of(mesh, near(labelled[0]), labelled[1])
    scores = {
        "iou": common,
        "chamfer_l1": chamfer_l1(out, back),
        "chamfer_l2": chamfer_l2(out_some, back_some),
        "normal_consistency": normal_consistency(made_normals, true_normals, near_true, near_made),
        "f_score": f_score(out, back, scoring.threshold),
        "accuracy": float(out.mean()),
        "completeness": float(back.mean()),
        "mesh_accuracy": mesh_accuracy(exact),
        "mesh_completion": mesh_completion(to_surface(true[:few] * side, mesh) / side, scoring.threshold),
        "emd": emd(made[: scoring.emd_points], true[: scoring.emd_points]),
    }
    return {name: value for name, value in scores.items() if name not in unknown} | signs


def as_learned(truth: Mesh, method: str) -> Mesh | Solid:
    """A true mesh in the normalised frame as `score` takes it, so that inside is where it was in training.

    method: of `sampling.METHODS`, by which its samples were told.
    """
    return Solid(truth, method) if method == "views" and len(truth.faces) else truth


def outwards(mesh: Mesh) -> Mesh:
    """A closed mesh that is inside out as a whole turned over, any other as it is."""
    if mesh.volume >= 0 or open_edges(mesh):
        return mesh
    normals = None if mesh.normals is None else -mesh.normals
    return dataclasses.replace(mesh, faces=mesh.faces[:, ::-1], normals=normals)


def of_surface(boundary: Mesh, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """Points of the true surface and their normals, [N, 3] each, as many as are asked for or there are.

    boundary: what `bounding` gives of a mesh, or a cloud.
    """
    draws = rng(scoring, "true")
    if len(boundary.faces):
        return surface(boundary, scoring.surface_points, draws)
    chosen = draws.permutation(len(boundary.vertices))[: scoring.surface_points]
    normals = np.zeros_like(boundary.vertices) if boundary.normals is None else boundary.normals
    return boundary.vertices[chosen], normals[chosen]


def bounding(truth: Mesh) -> Mesh:
    """The part of the true surface that bounds its solid: walls within other parts are not there to be rebuilt."""
    try:
        return truth if simple(truth) else walls(truth)
    except MeshError:  # a sheet that encloses nothing: all there is
        return truth


def rng(scoring: Scoring, name: str) -> np.random.Generator:
    """The draws of one purpose."""
    return np.random.default_rng([scoring.seed, zlib.crc32(name.encode())])


def iou(mesh: Mesh, truth: Mesh, scoring: Scoring = Scoring(), inside: Callable | None = None) -> float | None:
    """Volumetric intersection over union, |M ∩ T| / |M ∪ T| (Occupancy Networks, section 4); None where both are empty.

    Of 100,000 points spread evenly over the box that holds both.  Inside is where the generalised winding number
    exceeds 1/2; inside, of the truth: points [N, 3] → bool [N] in its place.  Where the made mesh reaches so far that
    few points would fall into the true box (`FAR`), parts beyond it count by the volume that they enclose, and what is
    left by points in the true box and as many in the rest.
    """
    inside = inside or Inside(truth)
    beyond, core = 0.0, np.prod(np.ptp(truth.bounds, axis=0))
    low, high = around(mesh, truth)
    if np.prod(high - low) > FAR * core > 0:
        mesh, beyond = parted(mesh, truth.bounds)
        if not len(mesh.faces):
            return 0.0
        low, high = around(mesh, truth)
    made = Inside(mesh)
    size, draws = np.prod(high - low), rng(scoring, "volume")
    points = low + (high - low) * draws.random((scoring.volume_points, 3))
    more = 0
    if size > FAR * core > 0:
        (lower, upper), rest = truth.bounds, points
        points = lower + (upper - lower) * draws.random((scoring.volume_points, 3))
        rest = rest[((rest < lower) | (rest > upper)).any(1)]
        more, size = np.count_nonzero(made(rest)) * size / core, core
    ours, true = made(points), inside(points)
    union = np.count_nonzero(ours | true) + more + beyond * scoring.volume_points / size
    return float(np.count_nonzero(ours & true) / union) if union else None


def around(mesh: Mesh, truth: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the box around both."""
    return np.minimum(mesh.bounds[0], truth.bounds[0]), np.maximum(mesh.bounds[1], truth.bounds[1])


def parted(mesh: Mesh, box: np.ndarray) -> tuple[Mesh, float]:
    """A mesh without the connected parts that lie wholly outside of a box [2, 3], and the volume that these enclose."""
    _, same = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = same.reshape(-1)[mesh.faces]
    links = coo_array((np.ones(2 * len(faces)), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())), (len(same),) * 2)
    part = connected_components(links, directed=False)[1][faces[:, 0]]
    low, high = np.full((2, part.max() + 1, 3), [[[np.inf]], [[-np.inf]]])
    np.minimum.at(low, part, mesh.corners.min(1))
    np.maximum.at(high, part, mesh.corners.max(1))
    outside = ((low > box[1]) | (high < box[0])).any(1)[part]
    far = dataclasses.replace(mesh, faces=mesh.faces[outside])
    return dataclasses.replace(mesh, faces=mesh.faces[~outside]), max(far.volume, 0.0)


def iou_of(mesh: Mesh, points: np.ndarray, inside: np.ndarray) -> float | None:
    """The same of labelled points [K, 3], inside [K] bool: how Occupancy Networks' program scores its samples."""
    made = Inside(mesh)(points)
    union = np.count_nonzero(made | inside)
    return float(np.count_nonzero(made & inside) / union) if union else None


def chamfer_l1(out, back) -> float:
    """Occupancy Networks' Chamfer distance: half of accuracy, mean d(p, T), and completeness, mean d(t, P); unsquared.

    Its tables print it × 10.  out, back: as of `chamfer_l2`.
    """
    return float((np.mean(out) + np.mean(back)) / 2)


def chamfer_l2(out, back) -> float:
    """DeepSDF's Chamfer distance: mean d(p, T)² + mean d(t, P)², both ways summed, of 30,000 points each.

    out, back: distances from made to true points and from true to made ones.  Its tables print it × 1000, in the
    coordinates of ShapeNet, whose shapes have a diagonal of 1.
    """
    return float(np.mean(np.square(out)) + np.mean(np.square(back)))


def normal_consistency(made, true, near_true, near_made) -> float:
    """Mean |⟨n, n'⟩| of a point's normal and that of the nearest point of the other surface, averaged over both ways.

    Occupancy Networks, section 4; absolute, so that the side a face looks at does not count.  made, true: unit normals
    [N, 3]; near_true, near_made: the nearest true point of each made one, and the nearest made point of each true one.
    """
    there = np.abs(np.einsum("ij,ij->i", made, true[near_true])).mean()
    back = np.abs(np.einsum("ij,ij->i", true, made[near_made])).mean()
    return float((there + back) / 2)


def f_score(out, back, threshold: float) -> float:
    """2 P R / (P + R), with P the share of `out` and R that of `back` within the threshold (1 % of the longest side).

    Knapitsch et al. 2017; Tatarchenko et al. 2019.
    """
    precision, recall = np.mean(out <= threshold), np.mean(back <= threshold)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def to_surface(points, mesh: Mesh) -> np.ndarray:
    """Distances from points [N, 3] to the nearest point of a mesh, exact, [N]."""
    return np.sqrt(igl.point_mesh_squared_distance(points.astype(np.float64), mesh.vertices, mesh.faces.astype(int))[0])


def mesh_accuracy(out, share: float = 0.9) -> float:
    """The smallest d such that 90 % of 1,000 made points lie within d of the true surface (DeepSDF, section 6)."""
    out = np.sort(out)
    return float(out[math.ceil(share * len(out)) - 1])


def mesh_completion(back, threshold: float = 0.01) -> float:
    """The share of 1,000 true points that lie within 0.01 of the made surface (DeepSDF, section 6)."""
    return float(np.mean(back <= threshold))


def emd(made, true) -> float:
    """Earth mover's distance: the mean way of the cheapest one-to-one matching of 500 points (DeepSDF, section 6)."""
    ways = np.linalg.norm(np.asarray(made)[:, None] - np.asarray(true)[None], axis=-1)
    return float(ways[linear_sum_assignment(ways)].mean())


def summary(rows: Sequence[dict]) -> dict[str, dict[str, float | None]]:
    """Mean and median of every score over the shapes where it is defined; None where it is of none."""
    names = [name for name in MEASURES if rows and all(name in row for row in rows)]
    values = {name: [row[name] for row in rows if is_defined(row[name])] for name in names}
    return {
        name: {"mean": float(np.mean(v)), "median": float(np.median(v))} if v else {"mean": None, "median": None}
        for name, v in values.items()
    }


def is_defined(value: float | None) -> bool:
    """Whether a score is a number."""
    return value is not None and not math.isnan(value)


def table(scores: dict[str, dict[str, float | None]], count: int) -> str:
    """A summary as lines of text: plain units first, then each paper's."""
    lines = [f"{f'{count} shape' + 's' * (count > 1):24s}{'median':>10s}{'mean':>10s}"]
    for name in MEASURES:
        if name not in scores:
            continue
        one, values = measure(name), scores[name]
        lines.append(f"{one.label:24s}{number(values['median']):>10s}{number(values['mean']):>10s}")
        for paper, factor in one.papers:
            median, mean = (number(scaled(values[kind], factor)) for kind in ("median", "mean"))
            lines.append(f"{'':4s}{median:>30s}{mean:>10s}   {paper}")
    return "\n".join(lines)
