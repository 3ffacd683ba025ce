"""Codes for shapes that a network never saw: the network stands still, the code moves (DeepSDF, section 4.2, eq. 10).

    ẑ = argmin  mean error of the field of z at what was observed  +  weight · ½ (z - μ)ᵀ Σ⁻¹ (z - μ) / L

with μ, Σ of the training codes.  Gauss-Newton starts at the best of the training codes and needs tens of steps; Adam
is the published loop, with its own penalty; L-BFGS stands between them.  All shapes of a call are solved at once,
each where its data lie, in full float32.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Literal, NamedTuple

import jax
import numpy as np

from jonet import parallel
from jonet.errors import ConfigError, InputError, require
from jonet.inference import codes as methods
from jonet.inference.first_order import LBFGS, Adam
from jonet.inference.gauss_newton import GaussNewton
from jonet.inference.jobs import Net
from jonet.inference.observations import Rows, clouds, observe, of_samples, pack, whole_blocks
from jonet.inference.prior import Prior

TOGETHER = 256  # shapes of one device that are solved in one go
GUESSES = 63  # codes drawn from the prior where no training codes are known


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How codes are found."""

    method: Literal["gauss_newton", "adam", "lbfgs"] = "gauss_newton"
    seed: int = 0
    clamp: float = 0.1  # δ, distance in the normalised frame beyond which only the side counts (fixed as published)
    prior: float = 1e-4  # weight of the prior against a mean error; 1e-3 for partial views (Adam has its own penalty)
    candidates: int = 256  # training codes that are tried as starts, at most
    probe: int = 128  # observations of a shape that they are tried on
    starts: int = 4  # from so many of the best candidates Gauss-Newton descends; one goes on after the first level
    offset: float = 0.01  # η, how far before and behind a surface point with a normal its neighbours are put
    gauss_newton: GaussNewton = GaussNewton()
    adam: Adam = Adam()
    lbfgs: LBFGS = LBFGS()

    def __post_init__(self):
        if self.method not in ("gauss_newton", "adam", "lbfgs"):
            raise ConfigError(f"method is {self.method!r}, but must be 'gauss_newton', 'adam' or 'lbfgs'")
        if not (self.clamp > 0 and self.prior >= 0 and self.offset > 0):
            raise ConfigError("clamp and offset must be above 0, and the prior's weight not below")
        if min(self.candidates, self.probe, self.starts) < 1:
            raise ConfigError("candidates, probe and starts must be at least 1")


class Fit(NamedTuple):
    """The codes of B shapes, and how much to trust them."""

    values: np.ndarray  # [B, L]
    residual: np.ndarray  # [B] mean clamped error over what was given, as far as it was kept (`observations.pack`)
    explained: np.ndarray  # [B] share of that whose error is below 0.01
    converged: np.ndarray  # [B] bool: the last phase lowered the loss by no more than 1 %
    stranger: np.ndarray  # [B] bool: code or residual beyond the 99th percentile of the training codes


def fit(
    network,
    shared,
    statistics,
    samples=None,
    *,
    points=None,
    normals=None,
    free=None,
    box=((-1, -1, -1), (1, 1, 1)),
    config: FitConfig = FitConfig(),
    prior: Prior | None = None,
    starts=None,
    index=None,
) -> Fit:
    """Codes of B shapes from what was observed of each, all in the normalised frame.

    network, shared, statistics: a trained network of distances and its parameters.
    samples: [B, N, 4] points with signed distances, or a list of [Nᵢ, 4].  Or points: [B, N, 3] or a list of [Nᵢ, 3]
    on surfaces, with outward normals alike or None; free: as points, places known to be outside (may be empty), or
    None if the points are whole surfaces, so that what lies beyond their hull in `box` is outside.
    prior, starts [S, L]: of the training codes.  index [B]: names the shapes' random draws (their number in a longer
    list); 0, 1, … if None.  A shape's code depends on its own observations, seed and index alone.
    Raises InputError for arrays of wrong shape or with NaN.
    """
    known(network, shared, statistics, prior, starts, config)  # before the work
    shapes, index = observe(samples, points, normals, free, index, offset=config.offset, box=box, seed=config.seed)
    return solve(network, shared, statistics, shapes, index, config=config, prior=prior, starts=starts)


def solve(
    network,
    shared,
    statistics,
    shapes: list[Rows],
    index: np.ndarray,
    *,
    config: FitConfig = FitConfig(),
    prior: Prior | None = None,
    starts=None,
) -> Fit:
    """`fit` of what `observations.observe` made of the arrays, which takes the host a while and needs no network."""
    prior, starts = known(network, shared, statistics, prior, starts, config)
    with jax.default_matmul_precision("highest"):
        net = Net(network, *parallel.replicate((shared, statistics)))
        results = [_solve(net, shapes[some], index[some], prior, starts, config) for some in pieces(len(shapes))]
    return joined(results, prior)


def known(network, shared, statistics, prior: Prior | None, starts, config: FitConfig) -> tuple[Prior, np.ndarray]:
    """The prior, and the codes [S, L] that are tried as starts; InputError for a network whose codes are not fitted."""
    length = network.specs.latent_size
    if length < 1:
        raise InputError("this network is one shape and has no codes to fit (latent_size is 0)")
    code = jax.ShapeDtypeStruct((length,), np.float32)
    if jax.eval_shape(network.fold, shared, statistics, code).inside > 0:
        raise InputError("codes are fitted to networks of distances; occupancy networks encode their input instead")
    prior = Prior.plain(length) if prior is None else prior
    if starts is None:
        starts = np.concatenate([prior.mean[None], prior.sample(GUESSES, config.seed)])
    starts = require(starts, "starts", (None, length))
    if len(starts) > config.candidates:
        rng = np.random.default_rng([config.seed, zlib.crc32(b"candidates")])
        starts = starts[np.sort(rng.choice(len(starts), config.candidates, replace=False))]
    return prior, starts


def pieces(size: int) -> list[slice]:
    """The parts of a list of shapes that are solved in one go each."""
    together = TOGETHER * parallel.count()
    return [slice(first, first + together) for first in range(0, size, together)]


def joined(results, prior: Prior) -> Fit:
    """The Fit of pieces (codes, residual, explained, converged)."""
    codes, residual, explained, converged = (np.concatenate(column) for column in zip(*results, strict=True))
    stranger = (prior.distances(codes) > prior.distance) | ~(residual <= prior.residual)
    return Fit(codes, residual, explained, converged, stranger)


def errors(
    network, shared, statistics, codes, samples, config: FitConfig = FitConfig()
) -> tuple[np.ndarray, np.ndarray]:
    """How well codes [B, L] explain samples ([B, N, 4] or a list): mean clamped error [B], share explained [B]."""
    shapes = [of_samples(array) for array in clouds(samples, "samples", 4)]
    codes = require(codes, "codes", (len(shapes), network.specs.latent_size))
    with jax.default_matmul_precision("highest"):
        net = Net(network, *parallel.replicate((shared, statistics)))
        judged = []
        for some in pieces(len(shapes)):
            packed = [pack(rows, config.clamp, None, config.seed, 0) for rows in shapes[some]]
            judged.append(methods.judge(net, methods.job(packed), codes[some], config.clamp))
    return tuple(np.concatenate(column) for column in zip(*judged, strict=True))


def _solve(net: Net, shapes: list[Rows], index, prior: Prior, starts, config: FitConfig):
    """Codes, residuals, shares explained and whether converged, of as many shapes as are solved in one go."""
    limits = {"gauss_newton": whole_blocks(max(config.gauss_newton.points)), "lbfgs": whole_blocks(config.lbfgs.points)}
    limit = limits.get(config.method)
    packed = [pack(rows, config.clamp, limit, config.seed, i) for rows, i in zip(shapes, index.tolist(), strict=True)]
    tries = min(config.starts, len(starts)) if config.method == "gauss_newton" else 1
    observed, penalty = methods.job(packed), methods.penalty(prior, config.prior)
    best = methods.nearest(net, observed, starts, tries, config.probe, config.clamp)
    match config.method:
        case "gauss_newton":
            codes, converged = methods.newton(net, observed, packed, best, penalty, config.gauss_newton)
        case "adam":
            codes, converged = methods.adam(net, packed, best[:, 0], index, config.seed, config.clamp, config.adam)
        case "lbfgs":
            codes, converged = methods.lbfgs(net, observed, best[:, 0], penalty, config.lbfgs)
    return codes, *methods.judge(net, observed, codes, config.clamp), converged
