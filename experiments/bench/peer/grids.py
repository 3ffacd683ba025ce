"""One shape as features on grids and a small network, trained on signed distances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.bench.peer.networks import DEVICE
from experiments.bench.peer.timing import seconds
from experiments.bench.peer.training import ADAM

DENSE = (8, 16, 32)  # cells a side of the dense grids
FEATURES, WIDTH = 4, 64  # of a corner; units of a hidden layer
NEAR = 1.5  # cells of the fine grid have features where a sample is closer to the surface than this, in cells
ROWS, RATE = 8192, 5e-3  # samples a step; initial learning rate of the cosine schedule
FIRST = 125  # steps of the first schedule that is tried
CORNERS = torch.tensor(list(itertools.product((0, 1), repeat=3)))


class Features(nn.Module):
    """Features at the corners of a grid over [-1, 1]³, interpolated linearly along each axis.

    cells: those that have features [M, 3], None for all; elsewhere features are 0.
    """

    def __init__(self, resolution: int, cells=None):
        super().__init__()
        self.resolution, count = resolution, (resolution + 1) ** 3
        rows = torch.arange(1, count + 1)
        if cells is not None:
            used = torch.unique(self.number((cells[:, None] + CORNERS).reshape(-1, 3)))
            rows = torch.zeros(count, dtype=torch.long)
            rows[used] = torch.arange(1, len(used) + 1)
        self.register_buffer("rows", rows)
        self.register_buffer("corners", CORNERS)
        self.values = nn.Parameter(1e-2 * torch.randn(int(rows.max()) + 1, FEATURES))

    def number(self, corners):
        """Corners [..., 3] as numbers."""
        i, j, k = corners.unbind(-1)
        return (i * (self.resolution + 1) + j) * (self.resolution + 1) + k

    def forward(self, points):
        """points [N, 3] → [N, FEATURES]."""
        place = (points + 1) * (self.resolution / 2)
        cell = place.long().clamp(0, self.resolution - 1)
        part = (place - cell)[:, None]
        weights = torch.where(self.corners == 1, part, 1 - part).prod(-1)
        rows = self.rows[self.number(cell[:, None] + self.corners)]
        return F.embedding_bag(rows, self.values, per_sample_weights=weights * (rows > 0), mode="sum")


class GridField(nn.Module):
    """Signed distances from the features of all grids."""

    def __init__(self, fine: int, cells):
        super().__init__()
        self.grids = nn.ModuleList([*(Features(resolution) for resolution in DENSE), Features(fine, cells)])
        self.layers = nn.Sequential(
            nn.Linear(FEATURES * len(self.grids), WIDTH),
            nn.Softplus(beta=50),
            nn.Linear(WIDTH, WIDTH),
            nn.Softplus(beta=50),
            nn.Linear(WIDTH, 1),
        )

    def forward(self, points):
        return self.layers(torch.cat([grid(points) for grid in self.grids], 1))[:, 0]


class GridTraining:
    """Program: the training of one shape.

    samples: an .npy file [N, 4].  held: an .npz with `points` [M, 3] and whether they are `inside` [M], for the IoU.
    fine: cells a side of the finest grid.
    """

    def __init__(self, samples: str, held: str, fine: int):
        self.samples = torch.from_numpy(np.load(samples)).to(DEVICE)
        with np.load(held) as arrays:
            self.points, self.inside = (torch.from_numpy(arrays[name]).to(DEVICE) for name in ("points", "inside"))
        near = self.samples[self.samples[:, 3].abs() < NEAR * 2 / fine, :3]
        cells = ((near + 1) * (fine / 2)).long().clamp(0, fine - 1)
        self.fine, self.cells = fine, torch.unique(cells, dim=0).cpu()
        self.setting = "fused Adam, features summed by embedding_bag"
        self.train(10, 10)

    def train(self, whole: int, steps: int) -> GridField:
        """The first steps of a schedule of `whole` steps."""
        field = GridField(self.fine, self.cells).to(DEVICE)
        optimizer = torch.optim.Adam(field.parameters(), lr=RATE, **ADAM)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / whole))
            rows = self.samples[torch.randint(len(self.samples), (ROWS,), device=DEVICE)]
            optimizer.zero_grad()
            distances = rows[:, 3]
            ((field(rows[:, :3]) - distances).abs() / (distances.abs() + 0.01)).mean().backward()
            optimizer.step()
        return field

    def iou(self, field: GridField) -> float:
        """Of the points that are held out."""
        with torch.inference_mode():
            inside = torch.cat([field(part) < 0 for part in self.points.split(ROWS)])
        return float((inside & self.inside).sum() / (inside | self.inside).sum())

    def __call__(self, whole: int, wanted: float = 0.0, steps: int = 0) -> dict:
        """Trains a schedule of `whole` steps, or a part of it, from which the seconds are extrapolated.

        wanted: if above 0, schedules of `FIRST` steps, twice that, … are trained up to `whole` until one has this IoU.
        """
        if wanted:
            tried = [FIRST << k for k in range(max(1, math.ceil(math.log2(whole / FIRST))))] + [whole]
            for count in (count for count in tried if count <= whole):
                taken, found = self.timed(count, count)
                if (score := self.iou(found)) >= wanted:
                    break
            return {"seconds": taken, "steps": count, "iou": score}
        steps = steps or whole
        return {"seconds": self.timed(whole, steps)[0] * whole / steps, "part": steps / whole}

    def timed(self, whole: int, steps: int) -> tuple[float, GridField]:
        """The seconds of `train`, and its result."""
        found = []
        taken = seconds(lambda: found.append(self.train(whole, steps)))
        return taken, found[0]
