"""The labels, meanings and units of scores: plain units, and the units of each paper."""

from __future__ import annotations

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """One score.  better: +1 if higher is better, -1 if lower is, 0 if that is not known.

    papers: (paper and its unit, factor from plain units).
    unit: of lengths that are not in units of the longest side.
    """

    label: str
    meaning: str
    better: int = 1
    papers: tuple[tuple[str, float], ...] = ()
    unit: str = ""


MEASURES = {
    "iou": Measure("IoU", "volume of the intersection over volume of the union; 1 is perfect"),
    "chamfer_l1": Measure(
        "Chamfer-L1",
        "mean distance between the surfaces, averaged over both directions; 1 is the longest side",
        -1,
        (("ONet: tenths of the longest side", 10.0),),
    ),
    "chamfer_l2": Measure(
        "Chamfer-L2",
        "mean squared distance between the surfaces, summed over both directions; 1 is the longest side",
        -1,
        (("DeepSDF: thousandths (there of shapes whose diagonal is 1)", 1000.0),),
    ),
    "normal_consistency": Measure("Normal consistency", "agreement of the surfaces' normals; 1 is perfect"),
    "f_score": Measure("F-score", "fraction of both surfaces within 1 % of the longest side of the other"),
    "mesh_accuracy": Measure("Mesh accuracy", "distance within which 90 % of the predicted surface is", -1),
    "mesh_completion": Measure(
        "Mesh completion", "fraction of the ground-truth surface that is close to the predicted one"
    ),
    "emd": Measure("EMD", "mean distance of matched points, 500 on each surface", -1),
    "accuracy": Measure("Accuracy", "mean distance from the predicted surface to the ground truth", -1),
    "completeness": Measure("Completeness", "mean distance from the ground truth to the predicted surface", -1),
    "deviation_median": Measure(
        "Median deviation",
        "distance from the ground truth within which half of the predicted surface is",
        -1,
        unit="input units",
    ),
    "deviation_95": Measure(
        "95 % deviation",
        "distance from the ground truth within which 95 % of the predicted surface is",
        -1,
        unit="input units",
    ),
    "deviation_max": Measure(
        "Largest deviation",
        "largest distance from the predicted surface to the ground truth; missing parts do not count",
        -1,
        unit="input units",
    ),
    "hausdorff": Measure(
        "Hausdorff distance",
        "largest distance from either surface to the other, so missing parts count",
        -1,
        unit="input units",
    ),
    "reconstruction_error": Measure("Reconstruction error", "cross-entropy of the labeled points, summed", -1),
    "kl": Measure("KL", "divergence of the posterior from the prior, in nats", -1),
    "minus_elbo": Measure("−ELBO", "sum of reconstruction error and divergence: negative evidence lower bound", -1),
    "residual": Measure("Residual", "mean clamped error of the fitted code at the observations", -1),
    "inlier_fraction": Measure("Inliers", "fraction of the observations that the fitted code has within 0.01"),
    "classified": Measure("Classified", "fraction that is classified correctly"),
}


def measure(name: str) -> Measure:
    """The measure with this name; for an unknown one, a measure labeled by its name."""
    return MEASURES.get(name) or Measure(name.replace("_", " ").capitalize(), "", better=0)


def scaled(value: float | None, factor: float) -> float | None:
    """A number in other units; None stays None."""
    return None if value is None else value * factor


def number(value) -> str:
    """A number as text with three or four digits; a dash for None and nan; strings unchanged."""
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    if isinstance(value, bool | int) or float(value).is_integer() and 1 < abs(value) < 1e5:
        return f"{value:,}" if isinstance(value, int) else f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1:
        return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
    if 1 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
