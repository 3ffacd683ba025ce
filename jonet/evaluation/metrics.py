"""Scores of a predicted mesh against the ground truth: in units of its longest side, and deviations in input units.

Notation: `P` are points sampled uniformly on the predicted surface, `T` on the ground truth; d(p, T) is the distance
from p to the nearest point of T.  Since T is a sample, this is not 0 even on the surface: a mesh compared with itself
has a Chamfer-L1 of about 0.003 with 100,000 points.  Deviations, mesh accuracy and mesh completion are exact instead:
distances to the triangles.
`measures.py` has the labels of the scores and the units of each paper.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import chex
import igl
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from jonet import resources
from jonet.data.sampling import Solid, surface
from jonet.errors import InputError, MeshError
from jonet.evaluation.measures import MEASURES, measure, number, scaled
from jonet.geometry.boundary import boundary_surface
from jonet.geometry.diagnosis import diagnose, orient
from jonet.geometry.inside import Inside, open_edges, simple
from jonet.geometry.mesh import Mesh, Similarity, as_meshes, normalize
from jonet.settings.metrics import MetricsConfig
from jonet.wording import counted

DEVIATIONS = ("deviation_median", "deviation_95", "deviation_max", "hausdorff")  # in input units
WORST = {  # scores of an empty prediction: distances are set to the longest side, as are those of DEVIATIONS
    **dict.fromkeys(("iou", "normal_consistency", "f_score", "mesh_completion"), 0.0),
    **dict.fromkeys(("chamfer_l1", "accuracy", "completeness", "mesh_accuracy", "emd"), 1.0),
    "chamfer_l2": 2.0,
}
SIZES = ("vertices", "faces")  # numbers of a row that are not scores
TILES = 32  # a side of the box of points, by which they are sorted; the cube is below 2^16, which sort fastest
LEAF = 24  # points of a leaf of the trees of points
FAR = 8  # volume of the common bounding box in ground truths' boxes, above which too few points are in the latter


class Near(NamedTuple):
    """Of each point, the distance [N] to the nearest of other points, and its number [N]."""

    distances: np.ndarray
    numbers: np.ndarray


def evaluate(meshes, ground_truths, scoring: MetricsConfig = MetricsConfig()) -> dict:
    """Scores of meshes against ground truths in the same frame: {"shapes": [one row per shape], "summary": …}.

    meshes, ground_truths: a mesh or a list of meshes, each a Mesh or of another library (`geometry.mesh.as_mesh`).
    Deviations are in the units of these meshes.
    Ground truths are oriented outwards first, part by part.  If the diagnosis of one is that winding numbers cannot be
    trusted (`geometry.diagnosis`), its inside is determined from views; if that fails too, the IoU is None.
    """
    meshes, ground_truths = as_meshes(meshes, "meshes"), as_meshes(ground_truths, "ground_truths")
    if len(meshes) != len(ground_truths):
        raise InputError(
            f"{counted(len(meshes), 'mesh', 'meshes')} cannot be scored against "
            f"{counted(len(ground_truths), 'ground truth')}; give one for each"
        )
    for mesh, ground_truth in zip(meshes, ground_truths, strict=True):
        _check_near(mesh, ground_truth)
    pairs = [examined(*pair) for pair in zip(meshes, ground_truths, strict=True)]
    scales = [scale for *_, scale, _ in pairs]
    rows = evaluate_all([(mesh, solid) for mesh, solid, _, _ in pairs], scoring, scales=scales)
    rows = [row if has_inside else row | {"iou": None} for row, (*_, has_inside) in zip(rows, pairs, strict=True)]
    names = [ground_truth.name or mesh.name for mesh, ground_truth in zip(meshes, ground_truths, strict=True)]
    return {"shapes": [{"name": name, **row} for name, row in zip(names, rows, strict=True)], "summary": summary(rows)}


def _check_near(mesh: Mesh, ground_truth: Mesh) -> None:
    """Warns about a mesh whose bounding box does not touch that of its ground truth."""
    if not len(mesh.faces) or not len(ground_truth.faces):
        return
    (low, high), (least, most) = mesh.bounds, ground_truth.bounds
    if (low > most).any() or (high < least).any():
        name = ground_truth.name or mesh.name or "the mesh"
        warnings.warn(
            f"{name}: the mesh lies outside of the box of its ground truth, {least.round(4).tolist()} to "
            f"{most.round(4).tolist()}: was its transform given?",
            stacklevel=3,
        )


def examined(mesh: Mesh, ground_truth: Mesh) -> tuple[Mesh, Mesh | Solid, float, bool]:
    """A pair and its scale as `score` takes them, after the diagnosis of the ground truth, and whether the inside of
    that can be determined."""
    if not len(ground_truth.faces):
        return mesh, ground_truth, 1.0, True
    diagnosis = diagnose(ground_truth)
    ground_truth = orient(ground_truth, diagnosis)
    if diagnosis.method != "views":
        return mesh, ground_truth, 1.0, True
    ground_truth, transform = normalize(ground_truth)
    try:
        return transform.apply(mesh), as_learned(ground_truth, diagnosis.method), transform.scale, True
    except MeshError:  # views see its faces from both sides
        return transform.apply(mesh), ground_truth, transform.scale, False


def evaluate_all(
    pairs: Sequence[tuple[Mesh, Mesh | Solid]],
    scoring: MetricsConfig = MetricsConfig(),
    labeled: Sequence = (),
    scales: Sequence[float] = (),
) -> list[dict]:
    """`score` of many pairs (predicted, ground truth) in parallel; labeled, scales: of each pair, or empty."""
    with ThreadPoolExecutor(resources.cores()) as pool:
        further = labeled or itertools.repeat(None), scales or itertools.repeat(1.0)
        return list(pool.map(lambda pair, *more: score(pair[0], pair[1], scoring, *more), pairs, *further))


def score(
    mesh: Mesh,
    ground_truth: Mesh | Solid,
    scoring: MetricsConfig = MetricsConfig(),
    labeled=None,
    scale: float = 1.0,
) -> dict:
    """All scores of one predicted mesh; for a mesh without faces, the worst values (`WORST`).

    ground_truth: one of
    - a closed mesh, oriented outwards (`geometry.diagnosis.orient`),
    - a Solid, whose sign method determines its inside; the method is added to the scores as "signs",
    - points of a surface, as vertices without faces: distances are to the nearest of these points, there is no normal
      consistency if they have no normals, and the IoU is computed from `labeled`,
    - nothing, a mesh without vertices: the only score is the IoU from `labeled`.
    labeled: points [K, 3] and whether they are inside [K], or None for no IoU.
    scale: of the similarity that took both meshes from input units to this frame; deviations are divided by it.
    A closed prediction that is inside out is flipped.  Scores that are not defined are None.  Random draws depend only
    on the seed of `scoring`.
    """
    solid, ground_truth = (ground_truth, ground_truth.mesh) if isinstance(ground_truth, Solid) else (None, ground_truth)
    if not len(ground_truth.vertices):
        if labeled is not None:
            return {"iou": iou_of(mesh, *labeled)}
        raise InputError(
            f"{ground_truth.name or 'the ground truth'} has no surface, so nothing can be scored against it"
        )
    has_faces = len(ground_truth.faces) > 0
    signs = {"signs": solid.method} if solid else {}
    undefined = set() if has_faces or labeled is not None else {"iou"}
    if not has_faces and ground_truth.normals is None:
        undefined.add("normal_consistency")
    bounds = (
        ground_truth.bounds if has_faces else np.stack([ground_truth.vertices.min(0), ground_truth.vertices.max(0)])
    )
    side = np.ptp(bounds, axis=0).max()
    if not side > 0:
        raise InputError(
            f"{ground_truth.name or 'the ground truth'} is a single point and has no size to measure distances by"
        )
    unit = float(side / scale)  # the longest side in input units
    if not len(mesh.faces):
        worst = WORST | dict.fromkeys(DEVIATIONS, unit)
        return {name: value for name, value in worst.items() if name not in undefined} | signs
    # Shapes far from the origin are moved to it, where coordinates have more digits.  The shift is a multiple of the
    # longest side, so that it is 0, and coordinates keep their bits, for shapes that are there already.
    near = Similarity(translation=-side * np.round(bounds.mean(0) / side))
    mesh, ground_truth = outwards(near.apply(mesh)), near.apply(ground_truth)
    ground_truth = outwards(ground_truth) if solid is None else ground_truth
    inside = None if solid or not has_faces else Inside(ground_truth)
    if solid:
        boundary = near.apply(solid.boundary_surface)
    else:
        boundary = ground_truth if inside is None or inside.simple else bounding(ground_truth)
    # "made" and "true" name the random draws; other names would change the scores in their last digits
    predicted, predicted_normals = surface(mesh, scoring.surface_points, rng(scoring, "made"))
    true, true_normals = of_surface(boundary, scoring)
    predicted, true = predicted / side, true / side
    some, few = scoring.chamfer_points, scoring.accuracy_points
    (pred_to_gt, near_true), (gt_to_pred, near_predicted), *of_some = nearest(predicted, true, some)
    if has_faces:
        exact, largest = exact_distances(predicted * side, pred_to_gt, boundary, few)
    else:
        exact, largest = pred_to_gt[:few] * side, pred_to_gt.max() * side
    exact_back, largest_back = exact_distances(true * side, gt_to_pred, mesh, few)
    if solid:
        volumetric_iou = iou(mesh, ground_truth, scoring, lambda points: solid.inside(near.inverse()(points)))
    elif has_faces:
        volumetric_iou = iou(mesh, ground_truth, scoring, inside)
    else:
        volumetric_iou = None if labeled is None else iou_of(mesh, near(labeled[0]), labeled[1])
    scores = {
        "iou": volumetric_iou,
        "chamfer_l1": chamfer_l1(pred_to_gt, gt_to_pred),
        "chamfer_l2": chamfer_l2(*of_some),
        "normal_consistency": normal_consistency(predicted_normals, true_normals, near_true, near_predicted),
        "f_score": f_score(pred_to_gt, gt_to_pred, scoring.threshold),
        "accuracy": float(pred_to_gt.mean()),
        "completeness": float(gt_to_pred.mean()),
        "mesh_accuracy": mesh_accuracy(exact / side),
        "mesh_completion": mesh_completion(exact_back / side, scoring.threshold),
        "emd": emd(predicted[: scoring.emd_points], true[: scoring.emd_points]),
        "deviation_median": float(np.median(exact) / scale),
        "deviation_95": float(np.quantile(exact, 0.95) / scale),
        "deviation_max": float(largest / scale),
        "hausdorff": float(max(largest, largest_back) / scale),
    }
    return {name: value for name, value in scores.items() if name not in undefined} | signs


def nearest(points: np.ndarray, others: np.ndarray, count: int) -> tuple[Near, Near, np.ndarray, np.ndarray]:
    """Nearest points between two sets, points [N, 3] and others [M, 3]: of each point among the others, and back; and
    the distances of the first `count` of both sets among themselves, [count] and back."""
    one, other = (points, side_by_side(points)), (others, side_by_side(others))
    (to_others, few), (to_points, few_back) = _nearest(one, other, count), _nearest(other, one, count)
    return to_others, to_points, few, few_back


def _nearest(asked: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], count: int):
    """`Near` of all asked points, and distances [count] of the first ones to the first others; both with an order."""
    near = _query(*asked, *others)
    few = near.distances[:count].copy()
    points, order = asked
    # The nearest of all others is that of the first ones, if it is one of them.
    left = order[(order < count) & (near.numbers[order] >= count)]
    if len(left):
        few[left] = _query(points, left, others[0], others[1][others[1] < count]).distances[left]
    return near, few


def side_by_side(points: np.ndarray) -> np.ndarray:
    """An order [N] of points [N, 3] in which consecutive ones are near each other: they find the same nodes of a tree
    in the cache, and so do they with points that are neighbors in memory."""
    columns = points.T
    low = np.array([column.min() for column in columns])[:, None]
    side = max(column.max() for column in columns - low) or 1.0
    x, y, z = np.minimum((columns - low) * (TILES / side), TILES - 1).astype(np.uint16)
    return np.argsort((x * np.uint16(TILES) + y) * np.uint16(TILES) + z, kind="stable")


def _query(points: np.ndarray, order: np.ndarray, others: np.ndarray, order_of_others: np.ndarray) -> Near:
    """The nearest of others [M, 3] to points [N, 3], of those that the orders name; nothing is written for others."""
    # A tree that is neither balanced nor compact is built in half of the time.
    tree = KDTree(others.take(order_of_others, 0), leafsize=LEAF, balanced_tree=False, compact_nodes=False)
    distances, numbers = tree.query(points.take(order, 0))
    near = Near(np.empty(len(points)), np.empty(len(points), np.int64))
    near.distances[order], near.numbers[order] = distances, order_of_others[numbers]
    return near


def as_learned(ground_truth: Mesh, method: str) -> Mesh | Solid:
    """A ground truth in the normalized frame as `score` takes it, with the same inside as in training.

    method: of `sampling.METHODS`, which determined the signs of its samples.
    """
    return Solid(ground_truth, method) if method == "views" and len(ground_truth.faces) else ground_truth


def outwards(mesh: Mesh) -> Mesh:
    """Flips a closed mesh that is inside out as a whole; others are returned unchanged."""
    if mesh.volume >= 0 or open_edges(mesh):
        return mesh
    normals = None if mesh.normals is None else -mesh.normals
    return dataclasses.replace(mesh, faces=mesh.faces[:, ::-1], normals=normals)


def of_surface(boundary: Mesh, scoring: MetricsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ground-truth surface and their normals, [N, 3] each; of a cloud, at most all of its points.

    boundary: a mesh as returned by `bounding`, or a cloud.
    """
    draws = rng(scoring, "true")
    if len(boundary.faces):
        return surface(boundary, scoring.surface_points, draws)
    chosen = draws.permutation(len(boundary.vertices))[: scoring.surface_points]
    normals = np.zeros_like(boundary.vertices) if boundary.normals is None else boundary.normals
    return boundary.vertices[chosen], normals[chosen]


def bounding(ground_truth: Mesh) -> Mesh:
    """The part of the ground-truth surface that bounds its solid; faces inside other parts cannot be reconstructed."""
    try:
        return ground_truth if simple(ground_truth) else boundary_surface(ground_truth)
    except MeshError:  # an open sheet encloses nothing: take all of it
        return ground_truth


def rng(scoring: MetricsConfig, name: str) -> np.random.Generator:
    """The random generator for one purpose, by name."""
    return np.random.default_rng([scoring.seed, zlib.crc32(name.encode())])


def iou(
    mesh: Mesh, ground_truth: Mesh, scoring: MetricsConfig = MetricsConfig(), inside: Callable | None = None
) -> float | None:
    """Volumetric intersection over union, |M ∩ T| / |M ∪ T| (Occupancy Networks, section 4); None if both are empty.

    Estimated from 100,000 uniform points in the common bounding box.  Inside is where the generalized winding number
    exceeds 1/2.  inside: points [N, 3] → bool [N], replaces this for the ground truth.
    If the prediction extends so far that few points would be in the ground truth's box (`FAR`), its parts outside of
    that box count by their enclosed volume, and the rest by points in that box and as many outside of it.
    """
    inside = inside or Inside(ground_truth)
    beyond, core = (
        0.0,
        np.prod(np.ptp(ground_truth.bounds, axis=0)),
    )  # volumes: of parts outside, of the ground truth's box
    low, high = around(mesh, ground_truth)
    if np.prod(high - low) > FAR * core > 0:
        mesh, beyond = parted(mesh, ground_truth.bounds)
        if not len(mesh.faces):
            return 0.0
        low, high = around(mesh, ground_truth)
    predicted = Inside(mesh)
    size, draws = np.prod(high - low), rng(scoring, "volume")
    points = low + (high - low) * draws.random((scoring.volume_points, 3))
    points = points.take(side_by_side(points), 0)  # rays side by side are faster, too; only numbers of points count
    more = 0  # predicted points outside of the ground truth's box, in units of the density of points inside of it
    if size > FAR * core > 0:
        (lower, upper), rest = ground_truth.bounds, points
        points = lower + (upper - lower) * draws.random((scoring.volume_points, 3))
        rest = rest[((rest < lower) | (rest > upper)).any(1)]
        more, size = np.count_nonzero(predicted(rest)) * size / core, core
    in_predicted, in_true = predicted(points), inside(points)
    union = np.count_nonzero(in_predicted | in_true) + more + beyond * scoring.volume_points / size
    return float(np.count_nonzero(in_predicted & in_true) / union) if union else None


def around(mesh: Mesh, ground_truth: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of the common bounding box, [3] each."""
    return np.minimum(mesh.bounds[0], ground_truth.bounds[0]), np.maximum(mesh.bounds[1], ground_truth.bounds[1])


def parted(mesh: Mesh, box: np.ndarray) -> tuple[Mesh, float]:
    """A mesh without the connected parts that are entirely outside of a box [2, 3], and the volume of these."""
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
    """IoU from labeled points [K, 3], inside [K] bool, as the published code of Occupancy Networks does."""
    chex.assert_shape([points, inside], [(None, 3), (len(points),)])
    predicted = Inside(mesh)(points) if len(mesh.faces) else np.zeros(len(points), bool)
    union = np.count_nonzero(predicted | inside)
    return float(np.count_nonzero(predicted & inside) / union) if union else None


def chamfer_l1(pred_to_gt, gt_to_pred) -> float:
    """Occupancy Networks' Chamfer distance: half of accuracy, mean d(p, T), and completeness, mean d(t, P); unsquared.

    Its tables print it × 10.  pred_to_gt, gt_to_pred: as in `chamfer_l2`.
    """
    return float((np.mean(pred_to_gt) + np.mean(gt_to_pred)) / 2)


def chamfer_l2(pred_to_gt, gt_to_pred) -> float:
    """DeepSDF's Chamfer distance: mean d(p, T)² + mean d(t, P)², the sum of both directions, with 30,000 points each.

    pred_to_gt, gt_to_pred: distances from predicted to ground-truth points, and back.  Its tables print it × 1000, in
    the coordinates of ShapeNet, whose shapes have a diagonal of 1.
    """
    return float(np.mean(np.square(pred_to_gt)) + np.mean(np.square(gt_to_pred)))


def normal_consistency(predicted, true, near_true, near_predicted) -> float:
    """Mean |⟨n, n'⟩| of the normals at a point and at the nearest point of the other surface, over both directions.

    Occupancy Networks, section 4; absolute values, so that the orientation of faces does not count.
    predicted, true: unit normals [N, 3] of the prediction and of the ground truth.  near_true, near_predicted: index of
    the nearest ground-truth point of each predicted point, and of the nearest predicted point of each ground-truth one.
    """
    chex.assert_shape([predicted, true], (None, 3))
    chex.assert_shape([near_true, near_predicted], [(len(predicted),), (len(true),)])
    of_predicted = np.abs(np.einsum("ij,ij->i", predicted, true[near_true])).mean()
    of_true = np.abs(np.einsum("ij,ij->i", true, predicted[near_predicted])).mean()
    return float((of_predicted + of_true) / 2)


def f_score(pred_to_gt, gt_to_pred, threshold: float) -> float:
    """2 P R / (P + R) of precision P and recall R (Knapitsch et al. 2017; Tatarchenko et al. 2019).

    P is the fraction of pred_to_gt, and R that of gt_to_pred, within the threshold (1 % of the longest side).
    """
    precision, recall = np.mean(pred_to_gt <= threshold), np.mean(gt_to_pred <= threshold)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def to_surface(points, mesh: Mesh) -> np.ndarray:
    """Exact distances [N] from points [N, 3] to a mesh."""
    return np.sqrt(igl.point_mesh_squared_distance(points.astype(np.float64), mesh.vertices, mesh.faces.astype(int))[0])


def exact_distances(points, sampled, mesh: Mesh, count: int) -> tuple[np.ndarray, float]:
    """Exact distances [count] to a mesh of the first points of [N, 3], and the largest one of all N points.

    sampled: distances [N] to points sampled on the mesh, which exact ones do not exceed.  The largest exact distance is
    taken from the first points and from the `count` with the largest sampled distances; another point can exceed it by
    less than the spacing of the sample only.
    """
    least = np.partition(sampled, -count)[-count] if count < len(sampled) else -np.inf
    far = np.flatnonzero(sampled >= least)  # more than `count` if several are equal, of which the first are taken
    first, farthest = points[:count], points[far[np.argsort(-sampled[far], kind="stable")[:count]]]
    found = to_surface(np.concatenate([first, farthest]), mesh)
    return found[: len(first)], float(found.max())


def mesh_accuracy(pred_to_gt, fraction: float = 0.9) -> float:
    """The smallest d such that 90 % of 1,000 predicted points are within d of the ground truth (DeepSDF, section 6)."""
    pred_to_gt = np.sort(pred_to_gt)
    return float(pred_to_gt[math.ceil(fraction * len(pred_to_gt)) - 1])


def mesh_completion(gt_to_pred, threshold: float = 0.01) -> float:
    """The fraction of 1,000 ground-truth points that are within 0.01 of the predicted surface (DeepSDF, section 6)."""
    return float(np.mean(gt_to_pred <= threshold))


def emd(predicted, true) -> float:
    """Earth mover's distance: the mean distance in the best one-to-one matching of 500 points (DeepSDF, section 6)."""
    chex.assert_shape([predicted, true], (None, 3))
    distances = np.linalg.norm(np.asarray(predicted)[:, None] - np.asarray(true)[None], axis=-1)
    return float(distances[linear_sum_assignment(distances)].mean())


def scores_of(row: dict) -> dict[str, float | None]:
    """The scores in a row of metrics.json: those of `MEASURES`, and other numbers, which a task has added."""
    return {
        name: value
        for name, value in row.items()
        if name in MEASURES or (isinstance(value, int | float) and not isinstance(value, bool) and name not in SIZES)
    }


def summary(rows: Sequence[dict]) -> dict[str, dict[str, float | None]]:
    """Mean and median of every score that all rows have, over the shapes for which it is defined; None if there are
    none."""
    found = dict.fromkeys(name for row in rows for name in scores_of(row))
    names = [name for name in {**MEASURES, **found} if name in found and all(name in row for row in rows)]
    values = {name: [row[name] for row in rows if is_defined(row[name])] for name in names}
    return {
        name: {"mean": float(np.mean(v)), "median": float(np.median(v))} if v else {"mean": None, "median": None}
        for name, v in values.items()
    }


def is_defined(value: float | None) -> bool:
    """Whether a score is a number."""
    return value is not None and not math.isnan(value)


def table(scores: dict[str, dict[str, float | None]], count: int, length: str | None = None) -> str:
    """A summary as text: plain units first, then those of each paper.  length: the input unit, if it is known."""
    lines = [f"{counted(count, 'shape'):24s}{'median':>10s}{'mean':>10s}"]
    for name, values in scores.items():
        one = measure(name)
        unit = f"   {length or one.unit}" if one.unit else ""
        lines.append(f"{one.label:24s}{number(values['median']):>10s}{number(values['mean']):>10s}{unit}")
        for paper, factor in one.papers:
            median, mean = (number(scaled(values[kind], factor)) for kind in ("median", "mean"))
            lines.append(f"{'':4s}{median:>30s}{mean:>10s}   {paper}")
    return "\n".join(lines)
