"""The published training steps, each on newly drawn samples."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench.peer.networks import DEVICE, DeepSDF, OccupancyDecoder, PointEncoder, give, take
from experiments.bench.peer.timing import fastest, seconds

ADAM = {"fused": True}  # the fastest of PyTorch's implementations of the same update


class Rows:
    """Samples of shapes (points with signed distances), drawn with replacement, half outside and half inside."""

    def __init__(self, file: str, offsets, counts):
        self.values = torch.from_numpy(np.load(file)).to(DEVICE)
        self.offsets, self.counts = np.asarray(offsets), np.asarray(counts)

    def draw(self, shapes, points: int):
        """Rows [S · points, 4], one shape after the other."""
        half, places = points // 2, []
        for shape in shapes:
            outside, inside = self.counts[shape]
            places += [self.offsets[shape] + torch.randint(int(outside), (half,))]
            places += [self.offsets[shape] + outside + torch.randint(int(inside), (half,))]
        return self.values[torch.cat(places).to(DEVICE)]


class AutoDecoder:
    """A DeepSDF network with one code per shape, and its loss: clamped L1 and the norm of the codes."""

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
    """Program: training steps of DeepSDF of the published size."""

    def __init__(self, specs: dict, shapes: int, points: int, data: dict):
        self.learner = AutoDecoder(specs, shapes, data, clamp=0.1, prior=1e-4, bound=1.0)
        self.shapes, self.points = list(range(shapes)), points
        groups = [
            {"params": self.learner.network.parameters(), "lr": 5e-4},
            {"params": self.learner.codes.parameters(), "lr": 1e-3},
        ]
        self.optimizer = torch.optim.Adam(groups, **ADAM)
        chunks = sorted({1, max(1, shapes * points // 16384), max(1, shapes * points // 4096)})
        self.chunks = fastest(chunks, self.step)
        self.setting = f"{self.chunks} chunks, fused Adam"

    def step(self, chunks: int) -> None:
        self.optimizer.zero_grad()
        self.learner.gradients(self.shapes, self.points, chunks)
        self.optimizer.step()

    def __call__(self, count: int) -> dict:
        return {"seconds": seconds(lambda: [self.step(self.chunks) for _ in range(count)])}


class PointsStep:
    """Program: training steps of an Occupancy Network on point clouds; cross-entropy summed over queries, Adam."""

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
    """Program: long training of a small DeepSDF: many small batches, Muon on matrices, cosine learning rates.

    weights: a file with the initial values (jonet's names, and "codes"), so that both sides start from the same.
    """

    def __init__(self, specs, shapes, data, clamp, prior, bound, ramp, batch, points, steps, rates, weights):
        self.learner = AutoDecoder(specs, shapes, data, clamp, prior, bound)
        with np.load(weights) as start:
            take(self.learner.network, start)
            with torch.no_grad():
                self.learner.codes.weight.copy_(torch.from_numpy(start["codes"]))
        self.shapes, self.batch, self.points, self.steps, self.ramp = shapes, batch, points, steps, ramp
        matrices = [p for p in self.learner.network.parameters() if p.ndim == 2 and min(p.shape) > 1]
        others = [p for p in self.learner.network.parameters() if not (p.ndim == 2 and min(p.shape) > 1)]
        self.optimizers = [
            torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(others, **ADAM),
            torch.optim.Adam(self.learner.codes.parameters(), **ADAM),
        ]
        self.rates = [rates["shared"], rates["shared"], rates["per_shape"]]
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
        self.learner.gradients(shapes, self.points, 1, min(1.0, epoch / self.ramp))
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1

    def __call__(self, count: int, save: str) -> dict:
        """Runs `count` more steps; seconds are extrapolated to the whole schedule."""

        def some():
            for _ in range(count):
                self.step()

        taken = seconds(some) * self.steps / count
        np.savez(save, codes=self.learner.codes.weight.detach().cpu().numpy(), **give(self.learner.network))
        return {"seconds": taken}
