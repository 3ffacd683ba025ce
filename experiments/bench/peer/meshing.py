"""Meshes as the published programs make them: dense grid, or octree (MISE), then scikit-image's marching cubes."""

from __future__ import annotations

import numpy as np
import torch
from skimage.measure import marching_cubes

from experiments.bench.peer.evaluation import TRIED, AskedDistances, AskedOccupancies
from experiments.bench.peer.networks import DEVICE
from experiments.bench.peer.timing import seconds


class Mesher:
    """Runs `mesh`, and saves what it made; if nothing is saved, a part of the points is asked and scaled."""

    part = 1.0

    def __init__(self, asked):
        self.asked = asked
        asked.tune(TRIED)
        self.setting = f"inference mode, chunks of {asked.chunk}"
        self.asking, self.points = 0.0, 0

    def ask(self, points: np.ndarray) -> np.ndarray:
        """Values at points [N, 3]; counts points, and the seconds that the network takes."""
        out = []
        moved = torch.from_numpy(points).to(DEVICE)
        self.asking += seconds(lambda: out.append(self.asked(moved).cpu().numpy()))
        self.points += len(points)
        return out[0]

    def __call__(self, save: str = "") -> dict:
        self.asking, self.points, made = 0.0, 0, []
        taken = seconds(lambda: made.append(self.mesh(whole=bool(save))))
        vertices, faces = made[0]
        if save:
            np.savez(save, vertices=vertices, faces=faces)
        part = 1.0 if save else self.part
        taken += self.asking * (1 / part - 1)
        return {"seconds": taken, "part": part, "asked": self.points, "faces": len(faces)}


class Dense(Mesher):
    """All samples of a grid over [-1, 1]³; the surface of level 0."""

    def __init__(self, weights: str, specs: dict, samples: int, part: float):
        self.samples, self.part = samples, part
        super().__init__(AskedDistances(weights, specs))

    def mesh(self, whole: bool):
        """In part, the planes between those that are asked are a ball's, so that there is a surface to march along."""
        ticks = np.linspace(-1, 1, self.samples, dtype=np.float32)
        values = np.sqrt(sum(np.meshgrid(*[ticks**2] * 3, indexing="ij"))) - np.float32(0.5)
        for x in range(0, self.samples, 1 if whole else round(1 / self.part)):
            points = np.stack(np.meshgrid(ticks[x], ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
            values[x] = self.ask(points).reshape(values[x].shape)
        vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=(2 / (self.samples - 1),) * 3)
        return vertices - 1, faces


class Octree(Mesher):
    """MISE: from `coarse` cells a side, `steps` times, every cell that holds values on both sides is cut into eight.

    Cells are looked at with all samples in their closed cube, and wanted samples are asked until there are none; then
    a sample that was never asked takes the last known value along x, y and z.
    """

    def __init__(self, weights: str, width: int, coarse: int, steps: int, level: float, side: float):
        self.coarse, self.steps, self.level, self.side = coarse, steps, level, side
        super().__init__(AskedOccupancies(weights, width))

    def mesh(self, whole: bool):
        cells = self.coarse << self.steps
        values = np.full((cells + 1,) * 3, np.nan, np.float32)
        leaves = {1 << self.steps: np.ones((self.coarse,) * 3, bool)}  # by size: which cells of a size are leaves
        wanted = np.zeros(values.shape, bool)
        wanted[(slice(None, None, 1 << self.steps),) * 3] = True
        while (new := wanted & np.isnan(values)).any():
            index = np.argwhere(new)
            values[new] = self.ask((self.side * (index / cells - 0.5)).astype(np.float32))
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
        """Along an axis, whether any of the size + 1 samples of a cell is set."""
        inner = np.logical_or.reduceat(flags, np.arange(0, flags.shape[axis] - 1, size), axis)
        ends = np.take(flags, np.arange(size, flags.shape[axis], size), axis)
        return inner | ends
