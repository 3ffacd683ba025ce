"""Settings of extracting meshes from fields (`inference.surfaces`)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jonet import config
from jonet.errors import ConfigError

COARSE = 32  # cells a side of the published octree's initial grid


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """Settings of extracting meshes; see `inference.surfaces.extraction.extract`."""

    resolution: int = 128  # cells a side of the box
    # coarse to fine; the whole grid; the published octree; or as the authors' programs, by scikit-image
    method: Literal["sparse", "dense", "mise", "published"] = "sparse"
    # where sparse works: host (numpy), device (compiled programs), or device on GPUs and TPUs and host on CPUs
    backend: Literal["auto", "host", "device"] = "auto"
    threshold: float | None = None  # τ, occupancy on the surface, between 0 and 1; by default the network's
    refine_steps: int = 12  # largest number of steps that move vertices onto the level; not with method published
    normals: bool = True  # vertex normals from the field's gradient
    largest: bool = False  # keep only the component with the largest volume
    faces: int = 0  # simplified to about so many triangles at most, by quadric edge collapse; 0 keeps all
    rmsprop_steps: int = 0  # of Occupancy Networks' refinement, after simplification (published: 30); 0 for none

    def __post_init__(self):
        if not 2 <= self.resolution <= 4096:
            raise ConfigError(f"resolution is {self.resolution}, but counts cells a side: 2 to 4096")
        if self.method == "mise" and (self.resolution % COARSE or self.resolution & (self.resolution - 1)):
            raise ConfigError(
                f"resolution is {self.resolution}, but method mise doubles {COARSE} cells a side: choose {COARSE}, "
                f"{2 * COARSE}, {4 * COARSE}, …"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}, but it is an occupancy between 0 and 1 (published: 0.2)")
        if self.backend == "device" and self.method != "sparse":
            raise ConfigError(f"backend device has method sparse only, but method is {self.method}")
        if min(self.refine_steps, self.rmsprop_steps) < 0:
            raise ConfigError(
                f"refine_steps is {self.refine_steps} and rmsprop_steps {self.rmsprop_steps}, but must be 0 or more"
            )
        if self.faces and self.faces < 4:
            raise ConfigError(f"faces is {self.faces}, but a closed mesh has at least 4; 0 keeps all")

    def of_results(self) -> dict[str, Any]:
        """What meshes depend on, as plain values: all settings but the backend."""
        return {name: value for name, value in config.to_dict(self).items() if name != "backend"}
