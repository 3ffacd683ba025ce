"""Training as published: one step after the other, each on fresh rows."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench.peer.networks import DEVICE, DeepSDF, OccupancyDecoder, PointEncoder, give, take
from experiments.bench.peer.timing import fastest, seconds

ADAM = {"fused": True}  # the fastest of PyTorch's ways to do the same update


class Rows:
    """Distances of shapes: rows drawn with replacement, half of them outside and half inside."""

    def __init__(self, file: str, offsets, counts):
        self.values = torch.from_numpy(np.load(file)).to(DEVICE)
        self.offsets, self.counts = np.asarray(offsets), np.asarray(counts)

    def draw(self, shapes, points: int):
        """[S · points, 4], shape after shape."""
        half, places = points // 2, []
        for shape in shapes:
            outside, inside = self.counts[shape]
            places += [self.offsets[shape] + torch.randint(int(outside), (half,))]
            places += [self.offsets[shape] + outside + torch.randint(int(inside), (half,))]
        return self.values[torch.cat(places).to(DEVICE)]


class AutoDecoding:
    """DeepSDF's step: clamped L1 and the length of the codes, on network and codes alike."""

    def __init__(self, specs: dict, shapes: int, data: dict, clamp: float, prior: float, bound: float | None):
        self.network = DeepSDF(**specs).to(DEVICE)
        length = specs["latent_size"]
        self.codes = torch.nn.Embedding(shapes, length, max_norm=bound).to(DEVICE)
        torch.nn.init.normal_(self.codes.weight, 0.0, 1 / math.sqrt(length))
        self.rows, self.clamp, self.prior = Rows(**data), clamp, prior

    def gradients(self, shapes, points: int, chunks: int, ramp: float = 1.0) -> None:
        """The gradients of one batch, summed over `chunks` equal parts of it."""
        rows = self.rows.draw(shapes, points)
        index = torch.as_tensor(shapes, device=DEVICE).repeat_interleave(points)
        for part, owner in zip(rows.chunk(chunks), index.chunk(chunks), strict=True):
            codes = self.codes(owner)
            predicted = self.network(codes, part[:, :3]).clamp(-self.clamp, self.clamp)
            loss = F.l1_loss(predicted, part[:, 3].clamp(-self.clamp, self.clamp), reduction="sum") / len(rows)
            loss = loss + self.prior * ramp * codes.norm(dim=1).sum() / len(rows)
            loss.backward()


class DeepSDFStep:
    """One step in the published size."""

    def __init__(self, specs: dict, shapes: int, points: int, data: dict):
        self.problem = AutoDecoding(specs, shapes, data, clamp=0.1, prior=1e-4, bound=1.0)
        self.shapes, self.points = list(range(shapes)), points
        groups = [
            {"params": self.problem.network.parameters(), "lr": 5e-4},
            {"params": self.problem.codes.parameters(), "lr": 1e-3},
        ]
        self.optimizer = torch.optim.Adam(groups, **ADAM)
        chunks = sorted({1, max(1, shapes * points // 16384), max(1, shapes * points // 4096)})
        self.chunks = fastest(chunks, self.step)
        self.setting = f"{self.chunks} chunks, fused Adam"

    def step(self, chunks: int) -> None:
        self.optimizer.zero_grad()
        self.problem.gradients(self.shapes, self.points, chunks)
        self.optimizer.step()

    def __call__(self, count: int) -> dict:
        return {"seconds": seconds(lambda: [self.step(self.chunks) for _ in range(count)])}


class PointsStep:
    """Occupancy Networks conditioned on clouds: cross-entropy summed over queries, Adam."""

    def __init__(self, shapes: int, inputs: int, queries: int, condition: int, width: int, encoder_width: int):
        self.encoder = PointEncoder(condition, encoder_width).to(DEVICE)
        self.decoder = OccupancyDecoder(condition, width).to(DEVICE)
        self.clouds = torch.rand(shapes, 10 * inputs, 3, device=DEVICE) - 0.5
        self.points = torch.rand(shapes, 10 * queries, 3, device=DEVICE) - 0.5
        self.inside = (self.points.norm(dim=2) < 0.4).float()
        self.sizes = inputs, queries
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4, **ADAM)
        self.setting = "fused Adam"
        for _ in range(2):
            self.step()

    def step(self) -> None:
        inputs, queries = self.sizes
        cloud = self.clouds[:, torch.randint(self.clouds.shape[1], (inputs,))]
        chosen = torch.randint(self.points.shape[1], (queries,))
        cloud = cloud + 0.005 * torch.randn_like(cloud)
        self.optimizer.zero_grad()
        logits = self.decoder(self.points[:, chosen], self.encoder(cloud))
        errors = F.binary_cross_entropy_with_logits(logits, self.inside[:, chosen], reduction="none")
        errors.sum(1).mean().backward()
        self.optimizer.step()

    def __call__(self, count: int) -> dict:
        return {"seconds": seconds(lambda: [self.step() for _ in range(count)])}


class SmallTraining:
    """A small network trained for long: many small batches, Muon on matrices, rates along a cosine.

    weights: where the start is read from (jonet's names, and "codes"), so that both sides start alike.
    """

    def __init__(self, specs, shapes, data, clamp, prior, bound, ramp, batch, points, steps, rates, weights):
        self.problem = AutoDecoding(specs, shapes, data, clamp, prior, bound)
        with np.load(weights) as start:
            take(self.problem.network, start)
            with torch.no_grad():
                self.problem.codes.weight.copy_(torch.from_numpy(start["codes"]))
        self.shapes, self.batch, self.points, self.steps, self.ramp = shapes, batch, points, steps, ramp
        matrices = [p for p in self.problem.network.parameters() if p.ndim == 2 and min(p.shape) > 1]
        others = [p for p in self.problem.network.parameters() if not (p.ndim == 2 and min(p.shape) > 1)]
        self.optimizers = [
            torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(others, **ADAM),
            torch.optim.Adam(self.problem.codes.parameters(), **ADAM),
        ]
        self.rates = [rates["shared"], rates["shared"], rates["own"]]
        self.setting = "fused Adam, PyTorch's Muon"
        self.done, self.order = 0, []

    def step(self) -> None:
        if len(self.order) < self.batch:
            self.order = np.random.permutation(self.shapes).tolist()
        shapes, self.order = self.order[: self.batch], self.order[self.batch :]
        epoch = 1 + self.done // (self.shapes // self.batch)
        for optimizer, (first, last) in zip(self.optimizers, self.rates, strict=True):
            rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
        self.problem.gradients(shapes, self.points, 1, min(1.0, epoch / self.ramp))
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1

    def __call__(self, count: int, save: str) -> dict:
        """So many more steps; seconds are those of the whole schedule at this pace."""

        def some():
            for _ in range(count):
                self.step()

        taken = seconds(some) * self.steps / count
        np.savez(save, codes=self.problem.codes.weight.detach().cpu().numpy(), **give(self.problem.network))
        return {"seconds": taken}
