"""Evaluation of networks at many points, and the published fitting of codes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench.peer.networks import DEVICE, DeepSDF, OccupancyDecoder, take
from experiments.bench.peer.timing import fastest, seconds

CHUNKS = (1024, 4096, 16384, 65536, 262144)
TRIED = 16384 if DEVICE.type == "cpu" else 262144  # points on which chunk sizes are tried


class EvaluatedField:
    """A network with one code, evaluated in inference mode in chunks."""

    def __init__(self, network, code, chunk: int = 0):
        self.network = network.to(DEVICE).eval()
        self.code, self.chunk = torch.from_numpy(code)[None].to(DEVICE), chunk

    def __call__(self, points: torch.Tensor, chunk: int = 0) -> torch.Tensor:
        """points [N, 3] → [N]."""
        with torch.inference_mode(), self.network.once():
            return torch.cat([self.values(part) for part in points.split(chunk or self.chunk)])

    def tune(self, count: int) -> None:
        """Sets the chunk size that is fastest for so many points."""
        count = min(count, TRIED)
        points = torch.rand(count, 3, device=DEVICE) - 0.5
        self.chunk = fastest([c for c in CHUNKS if c < count] + [count], lambda chunk: self(points, chunk))


class DistanceField(EvaluatedField):
    """A DeepSDF decoder with one code: signed distances."""

    def __init__(self, weights: str, specs: dict, chunk: int = 0):
        with np.load(weights) as arrays:
            network = DeepSDF(**specs)
            take(network, arrays)
            super().__init__(network, arrays["code"], chunk)

    def values(self, points):
        return self.network(self.code.expand(len(points), -1), points)


class OccupancyField(EvaluatedField):
    """An occupancy decoder with one condition: logits."""

    def __init__(self, weights: str, width: int, chunk: int = 0):
        with np.load(weights) as arrays:
            network = OccupancyDecoder(len(arrays["code"]), width)
            take(network, arrays)
            super().__init__(network, arrays["code"], chunk)

    def values(self, points):
        return self.network(points[None], self.code)[0]


class Values:
    """Program: the values of a field at all points of a file.  points: an .npy file [N, 3]."""

    def __init__(self, points: str, field: EvaluatedField):
        self.points, self.field = torch.from_numpy(np.load(points)).to(DEVICE), field
        field.tune(len(self.points))
        self.setting = f"inference mode, chunks of {field.chunk}"

    def __call__(self, save: str = "") -> dict:
        out = []
        taken = seconds(lambda: out.append(self.field(self.points)))
        if save:
            np.save(save, out[0].cpu().numpy())
        return {"seconds": taken}


class Distances(Values):
    def __init__(self, weights: str, specs: dict, points: str):
        super().__init__(points, DistanceField(weights, specs))


class Occupancies(Values):
    def __init__(self, weights: str, width: int, points: str):
        super().__init__(points, OccupancyField(weights, width))


class Fit:
    """Program: the published fit, Adam on one code after the other, with new samples each step and a frozen network.

    samples: an .npz with one array [N, 4] per shape.  whole: the published number of steps, which sets the learning
    rates.  steps: the number of them that is run; seconds are extrapolated to `whole`.  rows: samples per step.
    shapes: the number of shapes that seconds are extrapolated to.
    """

    def __init__(self, weights: str, specs: dict, samples: str, steps: int, whole: int, rows: int, shapes: int = 1):
        field = DistanceField(weights, specs)
        self.network, self.length = field.network.requires_grad_(False), specs["latent_size"]
        with np.load(samples) as arrays:
            given = [torch.from_numpy(arrays[name]) for name in sorted(arrays)]
        self.sides = [[s[s[:, 3] > 0].to(DEVICE), s[s[:, 3] <= 0].to(DEVICE)] for s in given]
        self.sides = [[side[torch.randperm(len(side), device=DEVICE)] for side in sides] for sides in self.sides]
        self.steps, self.whole, self.rows, self.shapes = steps, whole, rows, shapes
        self.setting = "frozen weights, weight norm multiplied out once, fused Adam"
        self.fit(self.sides[0], min(steps, 10))

    def draw(self, side):
        """A window of the permuted rows; if there are too few, single rows with replacement."""
        half = self.rows // 2
        if len(side) <= half:
            return side[torch.randint(len(side), (half,), device=DEVICE)]
        start = int(torch.randint(len(side) - half + 1, ()))
        return side[start : start + half]

    def fit(self, sides, steps: int):
        """The code [L] of one shape.  sides: its samples outside and inside."""
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
        """Fits the shapes with these indices; seconds are extrapolated."""
        codes = []
        taken = seconds(lambda: codes.extend(self.fit(self.sides[i], self.steps) for i in shapes))
        if save:
            np.save(save, np.stack(codes))
        part = len(shapes) / self.shapes * self.steps / self.whole
        return {"seconds": taken / part, "part": part}
