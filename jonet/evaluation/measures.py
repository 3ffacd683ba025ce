"""How scores are called and printed: in plain words, in plain units, and in each paper's units under its name."""

from __future__ import annotations

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """One score.  better: +1 if high is good, -1 if low is.  papers: (paper and its unit, factor from plain units)."""

    label: str
    meaning: str
    better: int = 1
    papers: tuple[tuple[str, float], ...] = ()


MEASURES = {
    "iou": Measure("IoU", "common volume over joint volume; 1 is perfect"),
    "chamfer_l1": Measure(
        "Chamfer-L1",
        "distance between the surfaces, averaged over both ways; 1 is the longest side",
        -1,
        (("ONet: tenths of the longest side", 10.0),),
    ),
    "chamfer_l2": Measure(
        "Chamfer-L2",
        "mean squared distance between the surfaces, summed over both ways",
        -1,
        (("DeepSDF: thousandths", 1000.0),),
    ),
    "normal_consistency": Measure("Normal consistency", "how parallel the surfaces run; 1 is perfect"),
    "f_score": Measure("F-score", "share of both surfaces that lies within 1 % of the longest side of the other"),
    "mesh_accuracy": Measure("Mesh accuracy", "distance within which 90 % of the rebuilt surface lies", -1),
    "mesh_completion": Measure("Mesh completion", "share of the true surface that the rebuilt one comes near to"),
    "emd": Measure("EMD", "mean way of 500 points of one surface onto 500 of the other", -1),
    "accuracy": Measure("Accuracy", "mean distance from the rebuilt surface to the true one", -1),
    "completeness": Measure("Completeness", "mean distance from the true surface to the rebuilt one", -1),
    "reconstruction_error": Measure("Reconstruction error", "cross-entropy of the labelled points, summed", -1),
    "kl": Measure("KL", "divergence of the posterior from the prior, in nats", -1),
    "minus_elbo": Measure("−ELBO", "reconstruction error and divergence together: minus the evidence bound", -1),
    "classified": Measure("Classified", "share that is classified rightly"),
}


def measure(name: str) -> Measure:
    """The measure of that name; of an unknown one, its name in words."""
    return MEASURES.get(name) or Measure(name.replace("_", " ").capitalize(), "")


def scaled(value: float | None, factor: float) -> float | None:
    """A number in other units; what is missing stays so."""
    return None if value is None else value * factor


def number(value) -> str:
    """A number in three or four digits as people write it; a dash for what is missing; words as they are."""
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
