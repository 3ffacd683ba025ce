"""Trained networks asked at many points, and codes fitted by the published loop."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench.peer.networks import DEVICE, DeepSDF, OccupancyDecoder, take
from experiments.bench.peer.timing import fastest, seconds

CHUNKS = (1024, 4096, 16384, 65536, 262144)
TRIED = 16384 if DEVICE.type == "cpu" else 262144  # points on which chunks are tried


class Asked:
    """A network with one code, asked in inference mode in chunks."""

    def __init__(self, network, code, chunk: int = 0):
        self.network = network.to(DEVICE).eval()
        self.code, self.chunk = torch.from_numpy(code)[None].to(DEVICE), chunk

    def __call__(self, points: torch.Tensor, chunk: int = 0) -> torch.Tensor:
        """points [N, 3] → [N]."""
        with torch.inference_mode(), self.network.once():
            return torch.cat([self.values(part) for part in points.split(chunk or self.chunk)])

    def tune(self, count: int) -> None:
        """The fastest chunk for so many points."""
        count = min(count, TRIED)
        points = torch.rand(count, 3, device=DEVICE) - 0.5
        self.chunk = fastest([c for c in CHUNKS if c < count] + [count], lambda chunk: self(points, chunk))


class AskedDistances(Asked):
    def __init__(self, weights: str, specs: dict, chunk: int = 0):
        with np.load(weights) as arrays:
            network = DeepSDF(**specs)
            take(network, arrays)
            super().__init__(network, arrays["code"], chunk)

    def values(self, points):
        return self.network(self.code.expand(len(points), -1), points)


class AskedOccupancies(Asked):
    def __init__(self, weights: str, width: int, chunk: int = 0):
        with np.load(weights) as arrays:
            network = OccupancyDecoder(len(arrays["code"]), width)
            take(network, arrays)
            super().__init__(network, arrays["code"], chunk)

    def values(self, points):
        return self.network(points[None], self.code)[0]


class Values:
    """All values of some points at once."""

    def __init__(self, points: str, asked: Asked):
        self.points, self.asked = torch.from_numpy(np.load(points)).to(DEVICE), asked
        asked.tune(len(self.points))
        self.setting = f"inference mode, chunks of {asked.chunk}"

    def __call__(self, save: str = "") -> dict:
        out = []
        taken = seconds(lambda: out.append(self.asked(self.points)))
        if save:
            np.save(save, out[0].cpu().numpy())
        return {"seconds": taken}


class Distances(Values):
    def __init__(self, weights: str, specs: dict, points: str):
        super().__init__(points, AskedDistances(weights, specs))


class Occupancies(Values):
    def __init__(self, weights: str, width: int, points: str):
        super().__init__(points, AskedOccupancies(weights, width))


class Fit:
    """The published loop: Adam on one code after the other, on fresh rows each step, the network frozen.

    samples: an .npz with one array [N, 4] a shape.  steps: of the published number `whole` (which sets the rates), so
    many are taken, and the seconds are scaled up.  shapes: how many the seconds stand for.
    """

    def __init__(self, weights: str, specs: dict, samples: str, steps: int, whole: int, rows: int, shapes: int = 1):
        asked = AskedDistances(weights, specs)
        self.network, self.length = asked.network.requires_grad_(False), specs["latent_size"]
        with np.load(samples) as arrays:
            given = [torch.from_numpy(arrays[name]) for name in sorted(arrays)]
        self.sides = [[s[s[:, 3] > 0].to(DEVICE), s[s[:, 3] <= 0].to(DEVICE)] for s in given]
        self.sides = [[side[torch.randperm(len(side), device=DEVICE)] for side in sides] for sides in self.sides]
        self.steps, self.whole, self.rows, self.shapes = steps, whole, rows, shapes
        self.setting = "frozen weights, weight norm multiplied out once, fused Adam"
        self.fit(self.sides[0], min(steps, 10))

    def draw(self, side):
        """Neighbours after one permutation; single rows, with replacement, where there are too few."""
        half = self.rows // 2
        if len(side) <= half:
            return side[torch.randint(len(side), (half,), device=DEVICE)]
        start = int(torch.randint(len(side) - half + 1, ()))
        return side[start : start + half]

    def fit(self, sides, steps: int):
        code = (0.01 * torch.randn(1, self.length, device=DEVICE)).requires_grad_()
        optimizer = torch.optim.Adam([code], lr=5e-3, fused=True)
        with self.network.once():
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = 5e-3 * 0.1 ** (step // (self.whole // 2))
                rows = torch.cat([self.draw(side) for side in sides])
                optimizer.zero_grad()
                predicted = self.network(code.expand(len(rows), -1), rows[:, :3]).clamp(-0.1, 0.1)
                loss = F.l1_loss(predicted, rows[:, 3].clamp(-0.1, 0.1)) + 1e-4 * code.pow(2).mean()
                loss.backward()
                optimizer.step()
        return code.detach().cpu().numpy()[0]

    def __call__(self, shapes: list[int], save: str = "") -> dict:
        """Fits the named shapes; seconds are of all their steps."""
        codes = []
        taken = seconds(lambda: codes.extend(self.fit(self.sides[i], self.steps) for i in shapes))
        if save:
            np.save(save, np.stack(codes))
        part = len(shapes) / self.shapes * self.steps / self.whole
        return {"seconds": taken / part, "part": part}
