"""Settings of the scores (`evaluation.metrics`)."""

from __future__ import annotations

import dataclasses

from jonet.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """The number of points of each score; the defaults are those of the papers."""

    volume_points: int = 100_000  # IoU (Occupancy Networks)
    surface_points: int = 100_000  # Chamfer-L1, normal consistency, F-score (Occupancy Networks)
    chamfer_points: int = 30_000  # Chamfer-L2 (DeepSDF)
    accuracy_points: int = 1_000  # mesh accuracy and completion (DeepSDF), median and 95 % deviation
    emd_points: int = 500  # EMD (DeepSDF)
    threshold: float = 0.01  # F-score and mesh completion: largest distance that counts, in units of the longest side
    seed: int = 0  # of the points that are sampled

    def __post_init__(self):
        counts = self.surface_points, self.chamfer_points, self.accuracy_points, self.emd_points
        if min(counts) < 1 or self.volume_points < 1 or max(counts) > counts[0] or not self.threshold > 0:
            raise ConfigError(
                f"scores from {self.volume_points} points in space, {counts} on surfaces, threshold {self.threshold}: "
                "all are above 0, and no count on surfaces exceeds the first"
            )
