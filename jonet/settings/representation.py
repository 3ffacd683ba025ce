"""Options of splines (`training.splines`), and of the representation of single shapes by them (`jonet.represent`)."""

from __future__ import annotations

import dataclasses
import math

from jonet.errors import ConfigError

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True)
class SplineConfig:
    """How one shape becomes a spline; lengths are in the frame of its samples, in which a shape has radius 0.9 or 1."""

    resolution: int = 512  # cells a side of the finest grid, at most: 32, 64, 128, … 1024
    tolerance: float = 2e-4  # largest error of a sample near the surface at which its cell is not refined; above 0
    bytes: int = 1_000_000  # of the file of a shape, at most, but for its coarsest grid of some 60 kB; 1 or more
    iterations: int = 8  # of conjugate gradients at each level, 1 or more
    smoothing: float = 1e-2  # weight of the squared second derivatives, 0 or more

    def __post_init__(self):
        if self.resolution not in RESOLUTIONS:
            known = ", ".join(map(str, RESOLUTIONS))
            raise ConfigError(f"resolution is {self.resolution}, but the finest grid has one of {known} cells a side")
        if not (0 < self.tolerance < math.inf and self.bytes >= 1 and self.iterations >= 1):
            raise ConfigError("tolerance must be above 0, and bytes and iterations 1 or more")
        if not 0 <= self.smoothing < math.inf:
            raise ConfigError(f"smoothing is {self.smoothing}, but must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Representation(SplineConfig):
    """The same, and what is sampled from a mesh or a point cloud."""

    near: int = 1_000_000  # distances of a mesh near its surface, an even number
    uniform: int = 50_000  # distances of a mesh all around it, 0 or more; where there are none, estimates
    cloud: int = 200_000  # distances near a point cloud, 8 or more
    seed: int = 0  # of the samples, 0 or more

    def __post_init__(self):
        super().__post_init__()
        if self.near < 2 or self.near % 2 or self.uniform < 0 or self.cloud < 8 or self.seed < 0:
            raise ConfigError("near must be even and 2 or more, cloud 8 or more, uniform and seed 0 or more")
