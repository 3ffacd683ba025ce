"""Fields in input units: points and distances as the user's files have them, not in the normalized frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry.mesh import Similarity
from jonet.networks.field import Field, Grid, slabs


@dataclasses.dataclass(frozen=True, eq=False)
class InputField:
    """A batch of B shapes as functions of points in input units; distances are in input units, too.

    fields: the batch in the normalized frame.  similarities: input units → normalized frame, one per shape.
    clamp: distance in the normalized frame beyond which the network was not trained; None for occupancies.
    """

    fields: Field
    similarities: Sequence[Similarity]
    clamp: float | None = None

    def __repr__(self) -> str:
        if self.clamp is None:
            return f"InputField({len(self)} shapes, occupancy logits)"
        low, high = self.valid_distance.min(), self.valid_distance.max()
        reach = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        return f"InputField({len(self)} shapes, signed distances in input units, valid up to {reach} from the surface)"

    def __len__(self) -> int:
        return len(self.similarities)

    @property
    def valid_distance(self) -> np.ndarray:
        """[B] distance in input units from the surface up to which distances hold.

        Networks are trained on distances clamped at δ (DeepSDF, eq. 4): farther away, a value only says that the
        surface is at least about δ away.  Raises InputError for occupancy networks, which have no distances.
        """
        if self.clamp is None:
            raise InputError(
                "this network gives occupancies, not distances, so there is no distance up to which they hold"
            )
        return np.array([self.clamp / transform.scale for transform in self.similarities])

    @property
    def boxes(self) -> np.ndarray:
        """[B, 2, 3] corners of boxes in input units that hold the surfaces."""
        ends = np.asarray(self.fields.per_shape["box"], np.float64)
        corners = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
        moved = [
            transform.inverse()(np.take_along_axis(box, corners, 0))
            for transform, box in zip(self.similarities, ends, strict=True)
        ]
        return np.stack([[corner.min(0), corner.max(0)] for corner in moved])

    def __call__(self, points) -> np.ndarray:
        """Values at points [B, N, 3] → [B, N] float32: signed distances in input units, or occupancy logits."""
        return np.asarray(self.fields(self._inwards(points))) / self._units()

    def gradient(self, points) -> tuple[np.ndarray, np.ndarray]:
        """Values [B, N] and their gradients by the points in input units [B, N, 3]."""
        values, gradients = (np.asarray(part) for part in self.fields.gradient(self._inwards(points)))
        rotations = np.stack([transform.rotation for transform in self.similarities])
        scales = np.array([transform.scale for transform in self.similarities], np.float32)[:, None]
        by_point = np.einsum("bnc,bcd->bnd", gradients, rotations) * (scales / self._units())[..., None]
        return values / self._units(), by_point.astype(np.float32)

    def contains(self, points) -> np.ndarray:
        """Whether points [B, N, 3] are inside the surface, bool [B, N]."""
        return np.asarray(self.fields.contains(self._inwards(points)))

    def occupancy(self, points) -> np.ndarray:
        """Occupancies in [0, 1] at points [B, N, 3] → [B, N]; see `Field.occupancy`."""
        return np.asarray(self.fields.occupancy(self._inwards(points)))

    def grid(self, resolution: int, box=None) -> Grid:
        """As `Field.grid`, in input units; box [2, 3] or None for the boxes that hold each surface (`boxes`)."""
        boxes = (
            self.boxes
            if box is None
            else np.broadcast_to(check_array(box, "box", (2, 3), np.float64), (len(self), 2, 3))
        )
        return slabs(self, boxes, resolution)

    def _inwards(self, points) -> np.ndarray:
        points = check_array(points, "points", (len(self), None, 3), np.float64)
        return np.stack([transform(cloud) for transform, cloud in zip(self.similarities, points, strict=True)])

    def _units(self) -> np.ndarray:
        """[B, 1] by which values are divided: distances scale with the shape, logits do not."""
        scales = [transform.scale if self.fields.inside < 0 else 1.0 for transform in self.similarities]
        return np.array(scales, np.float32)[:, None]
