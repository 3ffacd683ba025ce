"""The distribution of a network's training codes, and the limits beyond which a code is out of distribution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jonet.checks import check_array

FOLDS = 10  # folds of the training codes, each measured by the distribution of the others
PERCENTILE = 99


class Prior(NamedTuple):
    """A Gaussian fitted to training codes, and the limits beyond which a shape is out of distribution."""

    mean: np.ndarray  # [L]
    covariance: np.ndarray  # [L, L], shrunk, so that it is well conditioned however few codes there are
    distance: np.ndarray  # [] 99th percentile of the training codes' Mahalanobis distances, cross-validated
    residual: np.ndarray  # [] 99th percentile of the training shapes' residuals; ∞ if these were not given

    def __repr__(self) -> str:
        deviation = np.sqrt(np.mean(np.diag(self.covariance)))
        limits = {"a distance": self.distance, "a residual": self.residual}
        known = " or ".join(f"{name} of {limit:.4g}" for name, limit in limits.items() if np.isfinite(limit))
        beyond = f"out of distribution beyond {known}" if known else "without limits"
        return f"Prior({len(self.mean)}-d codes, standard deviation {deviation:.4g}, {beyond})"

    @classmethod
    def of(cls, codes, residuals=None) -> Prior:
        """The prior of training codes [S, L], and of their shapes' residuals [S] (mean clamped errors) if known."""
        codes = check_array(codes, "codes", (None, None), np.float64)
        mean, covariance = _gaussian(codes)
        # Cross-validated, since the distances of codes from their own distribution are too small for new codes.
        folds = [np.arange(len(codes)) % FOLDS == i for i in range(min(FOLDS, len(codes)))] if len(codes) > 1 else []
        distances = [_mahalanobis(codes[fold], *_gaussian(codes[~fold])) for fold in folds]
        distance = np.percentile(np.concatenate(distances), PERCENTILE) if distances else np.inf
        residual = np.inf if residuals is None else np.percentile(residuals, PERCENTILE)
        return cls(*(np.asarray(value, np.float32) for value in (mean, covariance, distance, residual)))

    @classmethod
    def plain(cls, length: int, variance: float | None = None) -> Prior:
        """N(0, variance · I); by default the published initialization of codes, N(0, I / L) (CodeInitStdDev 1)."""
        values = np.zeros(length), np.eye(length) * (1 / length if variance is None else variance), np.inf, np.inf
        return cls(*(np.asarray(value, np.float32) for value in values))

    def precision(self) -> np.ndarray:
        """The inverse of the covariance, [L, L]."""
        return np.linalg.inv(np.asarray(self.covariance, np.float64)).astype(np.float32)

    def distances(self, codes) -> np.ndarray:
        """Mahalanobis distances of codes [B, L] from the mean, [B]; about √L for codes of this distribution."""
        return _mahalanobis(np.asarray(codes, np.float64), self.mean, np.asarray(self.covariance, np.float64))

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """`count` codes drawn from the prior, [count, L]."""
        normal = np.random.default_rng(seed).standard_normal((count, len(self.mean)))
        root = np.linalg.cholesky(np.asarray(self.covariance, np.float64))
        return (self.mean + normal @ root.T).astype(np.float32)


def _gaussian(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, shrunk towards a multiple of the identity (OAS: Chen, Wiesel, Eldar & Hero 2010, eq. 23)."""
    count, length = codes.shape
    mean = codes.mean(axis=0)
    covariance = (codes - mean).T @ (codes - mean) / count
    scale = np.trace(covariance) / length
    if count < 2 or scale == 0:  # equal codes have no spread: take that of the mean, or of the published initialization
        return mean, np.eye(length) * (np.mean(mean**2) or 1 / length)
    squares = np.sum(covariance**2)
    spread = (count + 1 - 2 / length) * (squares - length * scale**2)
    shrinkage = min(1.0, ((1 - 2 / length) * squares + (length * scale) ** 2) / spread) if spread > 0 else 1.0
    return mean, (1 - shrinkage) * covariance + shrinkage * scale * np.eye(length)


def _mahalanobis(codes: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    root = np.linalg.cholesky(covariance)
    return np.linalg.norm(np.linalg.solve(root, (codes - mean).T), axis=0)
