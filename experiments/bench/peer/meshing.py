"""Meshes as in the published programs: dense grid or octree (MISE), then scikit-image's marching cubes."""

from __future__ import annotations

import numpy as np
import torch
from skimage.measure import marching_cubes

from experiments.bench.peer.evaluation import TRIED, DistanceField, OccupancyField
from experiments.bench.peer.networks import DEVICE
from experiments.bench.peer.timing import seconds


class Mesher:
    """Base of programs that extract a mesh (`mesh`) and save it.

    If it is not saved, only a part of the points is evaluated, and the time is extrapolated.
    """

    part = 1.0

    def __init__(self, field):
        self.field = field
        field.tune(TRIED)
        self.setting = f"inference mode, chunks of {field.chunk}"
        self.evaluation_seconds, self.points = 0.0, 0

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """Values at points [N, 3]; counts points and the seconds that the network takes."""
        out = []
        moved = torch.from_numpy(points).to(DEVICE)
        self.evaluation_seconds += seconds(lambda: out.append(self.field(moved).cpu().numpy()))
        self.points += len(points)
        return out[0]

    def __call__(self, save: str = "") -> dict:
        self.evaluation_seconds, self.points, meshes = 0.0, 0, []
        taken = seconds(lambda: meshes.append(self.mesh(whole=bool(save))))
        vertices, faces = meshes[0]
        if save:
            np.savez(save, vertices=vertices, faces=faces)
        part = 1.0 if save else self.part
        taken += self.evaluation_seconds * (1 / part - 1)
        return {"seconds": taken, "part": part, "evaluated": self.points, "faces": len(faces)}


class Dense(Mesher):
    """Program: evaluates all points of a grid over [-1, 1]³; the surface is at level 0."""

    def __init__(self, weights: str, specs: dict, samples: int, part: float):
        self.samples, self.part = samples, part
        super().__init__(DistanceField(weights, specs))

    def mesh(self, whole: bool):
        """whole: evaluate all planes of the grid; else a part, and the other planes have the values of a ball."""
        ticks = np.linspace(-1, 1, self.samples, dtype=np.float32)
        values = np.sqrt(sum(np.meshgrid(*[ticks**2] * 3, indexing="ij"))) - np.float32(0.5)
        for x in range(0, self.samples, 1 if whole else round(1 / self.part)):
            points = np.stack(np.meshgrid(ticks[x], ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
            values[x] = self.evaluate(points).reshape(values[x].shape)
        vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=(2 / (self.samples - 1),) * 3)
        return vertices - 1, faces


class Octree(Mesher):
    """Program: MISE.  Starts with `coarse` cells per side; `steps` times, cells with values on both sides are divided.

    All points in a cell's closed cube count.  Required points are evaluated until none are left; then points that were
    not evaluated take the last known value along x, y and z.
    """

    def __init__(self, weights: str, width: int, coarse: int, steps: int, level: float, side: float):
        self.coarse, self.steps, self.level, self.side = coarse, steps, level, side
        super().__init__(OccupancyField(weights, width))

    def mesh(self, whole: bool):
        cells = self.coarse << self.steps
        values = np.full((cells + 1,) * 3, np.nan, np.float32)
        leaves = {1 << self.steps: np.ones((self.coarse,) * 3, bool)}  # by size: which cells of that size are leaves
        wanted = np.zeros(values.shape, bool)
        wanted[(slice(None, None, 1 << self.steps),) * 3] = True
        while (new := wanted & np.isnan(values)).any():
            index = np.argwhere(new)
            values[new] = self.evaluate((self.side * (index / cells - 0.5)).astype(np.float32))
            active = {size: leaf & self.mixed(values, size) for size, leaf in leaves.items() if size > 1}
            for size, cut in active.items():
                leaves[size] &= ~cut
                half = size // 2
                children = cut.repeat(2, 0).repeat(2, 1).repeat(2, 2)
                leaves[half] = children | leaves.get(half, np.zeros(children.shape, bool))
                corners = size * np.argwhere(cut)
                for offset in np.ndindex(3, 3, 3):
                    wanted[tuple((corners + half * np.array(offset)).T)] = True
        for axis in range(3):
            place = np.arange(cells + 1).reshape([-1 if a == axis else 1 for a in range(3)])
            known = np.maximum.accumulate(np.where(np.isnan(values), 0, place), axis=axis)
            values = np.take_along_axis(values, known, axis)
        padded = np.pad(values, 1, constant_values=-1e6)
        vertices, faces, _, _ = marching_cubes(padded, self.level, method="lorensen")
        return self.side * ((vertices - 1) / cells - 0.5), faces

    def mixed(self, values, size: int):
        """Which cells of a size have values on both sides of the level in their closed cube."""
        known = ~np.isnan(values)
        above, below = known & (values >= self.level), known & (values <= self.level)
        for axis in range(3):
            above, below = (self.reduced(flags, size, axis) for flags in (above, below))
        return above & below

    @staticmethod
    def reduced(flags, size: int, axis: int):
        """Whether any of the size + 1 flags of a cell along an axis is set."""
        inner = np.logical_or.reduceat(flags, np.arange(0, flags.shape[axis] - 1, size), axis)
        ends = np.take(flags, np.arange(size, flags.shape[axis], size), axis)
        return inner | ends
