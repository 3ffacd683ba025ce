"""Codes of unseen shapes: optimization over the code with fixed network parameters (DeepSDF, section 4.2, eq. 10).

    ẑ = argmin  mean error of the field of z at the observations  +  weight · ½ (z - μ)ᵀ Σ⁻¹ (z - μ) / L

with mean μ and covariance Σ of the training codes.  Gauss-Newton starts at the best of the training codes and needs
tens of steps; Adam is the published loop, with its own penalty; L-BFGS is between the two.  All shapes of a call are
solved in parallel, split over the devices, in full float32.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax
import numpy as np

from jonet import device_memory, parallel
from jonet.checks import check_array
from jonet.errors import InputError
from jonet.inference.fitting import methods
from jonet.inference.fitting.observations import Observations, clouds, observe, of_samples, pack, whole_blocks
from jonet.inference.fitting.prior import Prior
from jonet.inference.fitting.sharded_batch import BoundNetwork
from jonet.settings.fitting import FitConfig

TOGETHER = device_memory.Pieces("shapes", 256, 16)  # per device, that are solved in one batch
FEWER = "give fewer shapes per call (bulk jobs: --batch), or lower the points of the fitting method (or rows of Adam)"
GUESSES = 63  # codes drawn from the prior as starts if no training codes are given


class Fit(NamedTuple):
    """The codes of B shapes, and measures of their reliability."""

    values: np.ndarray  # [B, L]
    residual: np.ndarray  # [B] mean clamped error of the measured observations that were used (`observations.pack`)
    inlier_fraction: np.ndarray  # [B] fraction of these with an error below 0.01
    converged: np.ndarray  # [B] bool: the last phase lowered the loss by at most 1 %
    out_of_distribution: np.ndarray  # [B] bool: code or residual beyond the 99th percentile of the training codes


def fit(
    network,
    shared,
    batch_stats,
    samples=None,
    *,
    points=None,
    normals=None,
    free_space=None,
    box=((-1, -1, -1), (1, 1, 1)),
    config: FitConfig = FitConfig(),
    prior: Prior | None = None,
    starts=None,
    index=None,
) -> Fit:
    """Codes of B shapes from observations of each, all in the normalized frame.

    network, shared, batch_stats: a trained network of distances and its parameters.
    samples: [B, N, 4] points with signed distances, or a list of [Nᵢ, 4].
    Or points: [B, N, 3] or a list of [Nᵢ, 3] on surfaces, with outward normals in the same form or None; and
    free_space: in the same form, points known to be outside (may be empty), or None if the points cover whole surfaces,
    so that space beyond their convex hull in `box` is outside.
    prior, starts [S, L]: of the training codes.  index [B]: seeds each shape's random draws (its number in a longer
    list); 0, 1, … if None.  A shape's code depends only on its own observations, the seed and its index.
    Raises InputError for arrays of wrong shape or with NaN.
    """
    prior_and_starts(network, shared, batch_stats, prior, starts, config)  # raises before the work starts
    shapes, index = observe(
        samples, points, normals, free_space, index, offset=config.offset, box=box, seed=config.seed
    )
    return solve(network, shared, batch_stats, shapes, index, config=config, prior=prior, starts=starts)


@device_memory.reporting("fitting codes", FEWER)
def solve(
    network,
    shared,
    batch_stats,
    shapes: list[Observations],
    index: np.ndarray,
    *,
    config: FitConfig = FitConfig(),
    prior: Prior | None = None,
    starts=None,
) -> Fit:
    """`fit` of observations that `observations.observe` has already prepared, which needs time on the host only."""
    prior, starts = prior_and_starts(network, shared, batch_stats, prior, starts, config)
    with jax.default_matmul_precision("highest"):
        net = BoundNetwork(network, *parallel.replicate((shared, batch_stats)))
        results = TOGETHER.map(lambda some: _solve(net, shapes[some], index[some], prior, starts, config), len(shapes))
    return joined(results, prior)


def prior_and_starts(
    network, shared, batch_stats, prior: Prior | None, starts, config: FitConfig
) -> tuple[Prior, np.ndarray]:
    """The prior, and the codes [S, L] that are tried as starts.

    Raises InputError for a network without codes or of occupancies.
    """
    length = network.specs.latent_size
    if length < 1:
        raise InputError("this network is one shape and has no codes to fit (latent_size is 0)")
    code = jax.ShapeDtypeStruct((length,), np.float32)
    if jax.eval_shape(network.fold, shared, batch_stats, code).inside > 0:
        raise InputError("codes are fitted to networks of distances; occupancy networks encode their input instead")
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
def errors(
    network, shared, batch_stats, codes, samples, config: FitConfig = FitConfig()
) -> tuple[np.ndarray, np.ndarray]:
    """Fit quality of codes [B, L] for samples ([B, N, 4] or a list): mean clamped error [B], inlier fraction [B]."""
    shapes = [of_samples(array) for array in clouds(samples, "samples", 4)]
    codes = check_array(codes, "codes", (len(shapes), network.specs.latent_size))
    with jax.default_matmul_precision("highest"):
        net = BoundNetwork(network, *parallel.replicate((shared, batch_stats)))

        def quality(some: slice):
            packed = [pack(rows, config.clamp, None, config.seed, 0) for rows in shapes[some]]
            return methods.fit_quality(net, methods.sharded(packed), codes[some], config.clamp)

        results = TOGETHER.map(quality, len(shapes))
    return tuple(np.concatenate(column) for column in zip(*results, strict=True))


def _solve(net: BoundNetwork, shapes: list[Observations], index, prior: Prior, starts, config: FitConfig):
    """Codes, residuals, inlier fractions and convergence of one batch of shapes."""
    limits = {"gauss_newton": whole_blocks(max(config.gauss_newton.points)), "lbfgs": whole_blocks(config.lbfgs.points)}
    limit = limits.get(config.method)
    packed = [pack(rows, config.clamp, limit, config.seed, i) for rows, i in zip(shapes, index.tolist(), strict=True)]
    tries = min(config.starts, len(starts)) if config.method == "gauss_newton" else 1
    observed, penalty = methods.sharded(packed), methods.penalty(prior, config.prior)
    best = methods.nearest(net, observed, starts, tries, config.probe, config.clamp)
    match config.method:
        case "gauss_newton":
            codes, converged = methods.newton(net, observed, packed, best, penalty, config.gauss_newton)
        case "adam":
            codes, converged = methods.adam(net, packed, best[:, 0], index, config.seed, config.clamp, config.adam)
        case "lbfgs":
            codes, converged = methods.lbfgs(net, observed, best[:, 0], penalty, config.lbfgs)
    return codes, *methods.fit_quality(net, observed, codes, config.clamp), converged
