"""Codes of unseen shapes: optimization over the code with fixed network parameters (DeepSDF, section 4.2, eq. 10).

    ẑ = argmin  mean error of the field of z at the observations  +  weight · ½ (z - μ)ᵀ Σ⁻¹ (z - μ) / L

with mean μ and covariance Σ of the training codes.  Gauss-Newton starts at the best of the training codes and needs
tens of steps; Adam is the published loop, with its own penalty, and runs with any optimizer of optax in Adam's place;
L-BFGS is between the two.  All shapes of a call are solved in parallel, split over the devices, with products of the
network's precision.
"""

from __future__ import annotations

import dataclasses
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jonet import device_memory, parallel
from jonet.checks import check_array
from jonet.errors import InputError
from jonet.inference.fitting import methods, sharded_batch
from jonet.inference.fitting.observations import Observations, ObservedArrays, numbers, observe, pack_all, whole_blocks
from jonet.inference.fitting.prior import Prior
from jonet.networks.bound import BoundNetwork
from jonet.settings.fitting import FitConfig

TOGETHER = device_memory.Pieces("shapes", 256, 16)  # per device, that are solved in one batch
ROWS = 1 << 23  # rows of observations per device in one batch: 256 MB for each copy
FEWER = "give fewer shapes per call (bulk jobs: --batch), or lower the points of the fitting method (or rows of Adam)"
GUESSES = 63  # codes drawn from the prior as starts if no training codes are given


class Fit(NamedTuple):
    """The codes of B shapes, and measures of their reliability."""

    values: np.ndarray  # [B, L]
    residual: np.ndarray  # [B] mean clamped error of the measured observations that were used (`observations.pack`)
    inlier_fraction: np.ndarray  # [B] fraction of these with an error below 0.01
    converged: np.ndarray  # [B] bool: the last phase lowered the loss by at most 1 %
    out_of_distribution: np.ndarray  # [B] bool: code or residual beyond the 99th percentile of the training codes


@device_memory.reporting("fitting codes", FEWER)
def fit(
    network: BoundNetwork,
    shapes: list[Observations],
    index=None,
    *,
    config: FitConfig = FitConfig(),
    prior: Prior | None = None,
    starts=None,
    guesses: np.ndarray | None = None,
) -> Fit:
    """Codes of B shapes.

    network: of distances, trained.  shapes: of `observations.observe`, in the normalized frame.  index [B]: seeds each
    shape's random draws (its number in a longer list); 0, 1, … if None.  prior, starts [S, L]: of the training codes;
    None for those of an untrained network.  guesses [B, L]: the first start of each shape, of an encoder;
    then no code has a larger loss (mean clamped error at the observations that are used, and prior) than its guess.
    A code depends only on the shape's observations, the seed, its index and its guess.
    Raises InputError for a network without codes or of occupancies.
    """
    prior, starts = prior_and_starts(network, prior, starts, config)
    index = numbers(index, len(shapes))
    limits = {"gauss_newton": whole_blocks(max(config.gauss_newton.points)), "lbfgs": whole_blocks(config.lbfgs.points)}
    limit = limits.get(config.solver)
    known = 0 if guesses is None else 1  # starts of a shape that are not searched among all
    tries = min(config.starts, known + len(starts)) if config.solver == "gauss_newton" else 1
    adam = config.adam if guesses is None else dataclasses.replace(config.adam, start="best")
    if config.code_weight:
        adam = dataclasses.replace(adam, decay=config.code_weight * network.latent_size)
    network, penalty = network.replicated, methods.penalty(prior, config)

    def solve(some: slice):
        packed = pack_all(shapes[some], config, limit, index[some])
        observed = methods.sharded(packed)
        best = np.zeros((len(packed), 0, network.latent_size), np.float32)
        if tries > known:
            best = methods.nearest(network, observed, starts, tries - known, config.probe, config.clamp)
        if guesses is not None:
            best = np.concatenate([guesses[some, None], best], 1)
        match config.solver:
            case "gauss_newton":
                codes, converged = methods.newton(network, observed, packed, best, penalty, config.gauss_newton)
            case "adam":
                codes, converged = methods.adam(
                    network, packed, best[:, 0], index[some], config.seed, config.clamp, adam, config.optimizer
                )
            case "lbfgs":
                codes, converged = methods.lbfgs(network, observed, best[:, 0], penalty, config.lbfgs)
        if guesses is not None:
            # levels differ in their loss, and Adam's steps are random: where the end is worse, the start stays
            before, after = (methods.losses(network, observed, z, penalty, config.clamp) for z in (best[:, 0], codes))
            codes = np.where((before < after)[:, None], best[:, 0], codes)
        return codes, *methods.fit_quality(network, observed, codes, config.clamp), converged

    most = _together(shapes, limit, tries)
    if parallel.platform().is_cpu or parallel.is_multiprocess():
        return joined(TOGETHER.map(solve, len(shapes), most=most), prior)
    # The host packs and sends a piece, and looks at its losses, while the accelerator solves another.  As many as are
    # solved at once fill it.
    with ThreadPoolExecutor(2) as pool:
        results = TOGETHER.map(
            lambda some: pool.submit(solve, some),
            len(shapes),
            lambda _, piece: piece.result(),
            min(most // 2, sharded_batch.MANY),
        )
    return joined(results, prior)


def _together(shapes: list[Observations], limit: int | None, tries: int = 1) -> int:
    """How many shapes per device are solved in one batch, so that their rows take at most `ROWS`.

    limit: of the rows of a shape; None: all are used.
    """
    longest = max((len(shape.points) for shape in shapes), default=0)
    return ROWS // (tries * (longest if limit is None else min(longest, limit)) or 1)


def check_fitted(network: BoundNetwork) -> None:
    """InputError for a network without codes, and for one of occupancies."""
    if network.latent_size < 1:
        raise InputError("this network is one shape and has no codes to fit (latent_size is 0)")
    if network.inside > 0:
        raise InputError("codes are fitted to networks of distances; occupancy networks encode their input instead")


def prior_and_starts(network: BoundNetwork, prior: Prior | None, starts, config: FitConfig) -> tuple[Prior, np.ndarray]:
    """The prior, and the codes [S, L] that are tried as starts.  Raises InputError as `check_fitted`."""
    check_fitted(network)
    length = network.latent_size
    prior = Prior.plain(length) if prior is None else prior
    if starts is None:
        starts = np.concatenate([prior.mean[None], prior.sample(GUESSES, config.seed)])
    starts = check_array(starts, "starts", (None, length))
    if len(starts) > config.candidates:
        rng = np.random.default_rng([config.seed, zlib.crc32(b"candidates")])
        starts = starts[np.sort(rng.choice(len(starts), config.candidates, replace=False))]
    return prior, starts


def joined(results, prior: Prior) -> Fit:
    """The Fit of batches, each (codes, residual, inlier fraction, converged)."""
    codes, residual, inlier_fraction, converged = (np.concatenate(column) for column in zip(*results, strict=True))
    # written with ~ so that a nan residual counts as out of distribution
    out_of_distribution = (prior.distances(codes) > prior.distance) | ~(residual <= prior.residual)
    return Fit(codes, residual, inlier_fraction, converged, out_of_distribution)


@device_memory.reporting("measuring the errors of codes", "give fewer shapes per call, or fewer samples")
def errors(network: BoundNetwork, codes, samples, config: FitConfig = FitConfig()) -> tuple[np.ndarray, np.ndarray]:
    """Fit quality of codes [B, L] for samples ([B, N, 4] or a list): mean clamped error [B], inlier fraction [B]."""
    shapes = observe(ObservedArrays.checked(samples))
    codes = check_array(codes, "codes", (len(shapes), network.latent_size))
    network = network.replicated

    def quality(some: slice):
        packed = pack_all(shapes[some], config, None, np.zeros(len(shapes[some]), int))
        return methods.fit_quality(network, methods.sharded(packed), codes[some], config.clamp)

    results = TOGETHER.map(quality, len(shapes), most=_together(shapes, None))
    residual, inlier_fraction = (np.concatenate(column) for column in zip(*results, strict=True))
    return residual, inlier_fraction
