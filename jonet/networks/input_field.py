"""Fields in input units: points and distances as the user's files have them, not in the normalized frame."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from jonet.checks import check_array
from jonet.errors import InputError
from jonet.geometry.mesh import Similarity
from jonet.networks.field import Field, Grid, slabs
from jonet.wording import counted

FAR = 2.0  # largest coordinate in the normalized frame, twice that of its cube, beyond which points are far
MANY = 16  # points of which it is said if all are far


@dataclasses.dataclass(frozen=True, eq=False)
class InputField:
    """One shape, or a batch of B shapes, as functions of points in input units; distances are in input units, too.

    It takes and gives host arrays, points in float64: input units may be far from the origin, beyond the digits of
    float32.  The pure function for jit, vmap and grad is the `Field`.

    fields: the shape or the batch in the normalized frame.  similarities: input units → normalized frame, one, or in a
    batch one per shape.  clamp: distance in the normalized frame beyond which the network was not trained; None for
    occupancies.
    """

    fields: Field
    similarities: Similarity | Sequence[Similarity]
    clamp: float | None = None

    def __repr__(self) -> str:
        count = f"batch of {counted(len(self), 'shape')}" if self.batched else "1 shape"
        if self.clamp is None:
            return f"InputField({count}, occupancy logits)"
        low, high = self.valid_distance.min(), self.valid_distance.max()
        reach = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        return f"InputField({count}, signed distances in input units, valid up to {reach} from the surface)"

    @property
    def batched(self) -> bool:
        """Whether this is a batch of fields."""
        return self.fields.batched

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index) -> InputField:
        """One field of a batch (an integer) or a smaller batch (a slice or array of integers)."""
        fields = self.fields[index]  # raises IndexError, which ends an iteration
        chosen = [self._transforms[i] for i in np.atleast_1d(np.arange(len(self))[index])]
        return dataclasses.replace(self, fields=fields, similarities=chosen if fields.batched else chosen[0])

    @property
    def valid_distance(self) -> np.ndarray:
        """[B], of one shape [] distance in input units from the surface up to which distances hold.

        Networks are trained on distances clamped at δ (DeepSDF, eq. 4): farther away, a value only says that the
        surface is at least about δ away.  Raises InputError for occupancy networks, which have no distances.
        """
        if self.clamp is None:
            raise InputError(
                "this network gives occupancies, not distances, so there is no distance up to which they hold"
            )
        return self._shaped(np.array([self.clamp / transform.scale for transform in self._transforms]))

    @property
    def box(self) -> np.ndarray:
        """Corners [2, 3] of the box in input units that holds the surface of one shape; a batch has `boxes`."""
        if self.batched:
            raise InputError("a batch has a box for each shape; take boxes, or the box of one shape, field[i].box")
        return self.boxes

    @property
    def boxes(self) -> np.ndarray:
        """[B, 2, 3], of one shape [2, 3] corners of boxes in input units that hold the surfaces."""
        ends = np.asarray(self.fields.per_shape["box"], np.float64).reshape(-1, 2, 3)
        corners = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
        moved = [
            transform.inverse()(np.take_along_axis(box, corners, 0))
            for transform, box in zip(self._transforms, ends, strict=True)
        ]
        return self._shaped(np.stack([[corner.min(0), corner.max(0)] for corner in moved]))

    def __call__(self, points) -> np.ndarray:
        """Values at points [B, N, 3] → [B, N] float32, of one shape [N, 3] → [N]: signed distances in input units, or
        occupancy logits."""
        return np.asarray(self.fields(self._inwards(points))) / self._units()

    def gradient(self, points) -> tuple[np.ndarray, np.ndarray]:
        """Values [B, N] and their gradients by the points in input units [B, N, 3]; of one shape [N] and [N, 3]."""
        values, gradients = (np.asarray(part) for part in self.fields.gradient(self._inwards(points)))
        rotations = self._shaped(np.stack([transform.rotation for transform in self._transforms]))
        scales = self._shaped(np.array([[transform.scale] for transform in self._transforms], np.float32))
        by_point = gradients @ rotations * (scales / self._units())[..., None]
        return values / self._units(), by_point.astype(np.float32)

    def contains(self, points) -> np.ndarray:
        """Whether points [B, N, 3] are inside the surface, bool [B, N]; of one shape [N, 3] → [N]."""
        return np.asarray(self.fields.contains(self._inwards(points)))

    def occupancy(self, points) -> np.ndarray:
        """Occupancies in [0, 1] at points [B, N, 3] → [B, N], of one shape [N, 3] → [N]; see `Field.occupancy`."""
        return np.asarray(self.fields.occupancy(self._inwards(points)))

    def grid(self, resolution: int, box=None) -> Grid:
        """As `Field.grid`, in input units; box [2, 3] or None for the boxes that hold each surface (`boxes`)."""
        batch = self if self.batched else InputField(Field.stack([self.fields]), self._transforms, self.clamp)
        boxes = batch.boxes
        if box is not None:
            boxes = np.broadcast_to(check_array(box, "box", (2, 3), np.float64), boxes.shape)
        return Grid(*map(self._shaped, slabs(batch, boxes, resolution)))

    @property
    def _transforms(self) -> Sequence[Similarity]:
        return [self.similarities] if isinstance(self.similarities, Similarity) else self.similarities

    def _shaped(self, array: np.ndarray) -> np.ndarray:
        """An array with an axis of shapes; without this axis if this is one shape."""
        return array if self.batched else array[0]

    def _inwards(self, points) -> np.ndarray:
        points = check_array(points, "points", (len(self), None, 3) if self.batched else (None, 3), np.float64)
        clouds = points if self.batched else points[None]
        moved = np.stack([transform(cloud) for transform, cloud in zip(self._transforms, clouds, strict=True)])
        if moved.shape[1] >= MANY and (lost := np.flatnonzero((np.abs(moved).max(2) > FAR).all(1))).size:
            box = self.boxes[lost[0]] if self.batched else self.box
            of = f" of shape {lost[0]}" * self.batched
            warnings.warn(
                f"all points{of} lie far outside of the box of the field, {box[0].round(4).tolist()} to "
                f"{box[1].round(4).tolist()} in input units: was the transform of the shape given?",
                stacklevel=3,
            )
        return self._shaped(moved)

    def _units(self) -> np.ndarray:
        """[B, 1] by which values are divided, of one shape [1]: distances scale with the shape, logits do not."""
        scales = [[transform.scale if self.fields.inside < 0 else 1.0] for transform in self._transforms]
        return self._shaped(np.array(scales, np.float32))
