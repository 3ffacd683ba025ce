"""The published networks as plain PyTorch modules, with parameters under jonet's names."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DeepSDF(nn.Module):
    """The auto-decoder: code and point are concatenated for every point, and again before the layers `latent_in`."""

    def __init__(self, latent_size, dims, dropout, dropout_prob, norm_layers, latent_in, **_):
        super().__init__()
        self.latent_in, self.dropout, self.dropout_prob = latent_in, dropout, dropout_prob
        sizes = [latent_size + 3, *dims, 1]
        self.layers = nn.ModuleList()
        for k, inputs in enumerate(sizes[:-1]):
            layer = nn.Linear(inputs, sizes[k + 1] - (sizes[0] if k + 1 in latent_in else 0))
            self.layers.append(parametrizations.weight_norm(layer) if k in norm_layers else layer)

    def forward(self, codes, points):
        """codes [N, L] and points [N, 3] → distances [N]."""
        entering = x = torch.cat([codes, points], 1)
        for k, layer in enumerate(self.layers):
            x = layer(torch.cat([x, entering], 1) if k in self.latent_in else x)
            if k < len(self.layers) - 1:
                x = F.relu(x)
                if k in self.dropout:
                    x = F.dropout(x, self.dropout_prob, self.training)
        return torch.tanh(x)[:, 0]

    def named(self):
        """Parameters by jonet's names, as tensors that can be written to; jonet's kernels are transposed."""
        for k, layer in enumerate(self.layers):
            yield f"lin{k}/bias", layer.bias
            if parametrize.is_parametrized(layer):
                scale, kernel = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
                yield f"lin{k}/scale", scale
                yield f"lin{k}/kernel", kernel
            else:
                yield f"lin{k}/kernel", layer.weight

    def once(self):
        """A context in which weight norm is computed once, not in every call."""
        return parametrize.cached()


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift are affine functions of the condition."""

    def __init__(self, condition: int, features: int):
        super().__init__()
        self.gamma, self.beta = nn.Linear(condition, features), nn.Linear(condition, features)
        self.norm = nn.BatchNorm1d(features, affine=False)
        for weights, bias in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(weights.weight)
            nn.init.constant_(weights.bias, bias)

    def forward(self, x, c):
        """x [B, F, N], c [B, C]."""
        return self.gamma(c)[:, :, None] * self.norm(x) + self.beta(c)[:, :, None]


class Block(nn.Module):
    """A residual block: norm, ReLU, layer, twice; layers are convolutions of width 1."""

    def __init__(self, condition: int, features: int):
        super().__init__()
        self.bn_0, self.bn_1 = ConditionalNorm(condition, features), ConditionalNorm(condition, features)
        self.fc_0, self.fc_1 = nn.Conv1d(features, features, 1), nn.Conv1d(features, features, 1)
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x, c):
        h = self.fc_0(F.relu(self.bn_0(x, c)))
        return x + self.fc_1(F.relu(self.bn_1(h, c)))


class OccupancyDecoder(nn.Module):
    """The decoder with conditional batch norm: five residual blocks between a first and a last layer."""

    def __init__(self, condition: int, features: int = 256, blocks: int = 5):
        super().__init__()
        self.fc_p = nn.Conv1d(3, features, 1)
        self.blocks = nn.ModuleList(Block(condition, features) for _ in range(blocks))
        self.bn, self.fc_out = ConditionalNorm(condition, features), nn.Conv1d(features, 1, 1)

    def forward(self, points, c):
        """points [B, N, 3], c [B, C] → logits [B, N]."""
        x = self.fc_p(points.transpose(1, 2))
        for block in self.blocks:
            x = block(x, c)
        return self.fc_out(F.relu(self.bn(x, c)))[:, 0]

    def named(self):
        """As `DeepSDF.named`, with the running statistics."""
        leaves = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
        for name, tensor in self.state_dict(keep_vars=True).items():
            *path, leaf = name.replace("blocks.", "block").replace("norm.", "").split(".")
            if leaf in leaves:
                yield "/".join([*path, leaves[leaf]]), tensor

    def once(self):
        return contextlib.nullcontext()


class ResidualFC(nn.Module):
    """A residual block of two layers, each after a ReLU; the shortcut is a layer without bias."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.fc_0, self.fc_1 = nn.Linear(inputs, features), nn.Linear(features, features)
        self.shortcut = nn.Linear(inputs, features, bias=False)
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x):
        return self.shortcut(x) + self.fc_1(F.relu(self.fc_0(F.relu(x))))


class PointEncoder(nn.Module):
    """Five residual blocks over the points of a cloud; each also gets the maximum over points of the one before."""

    def __init__(self, condition: int, features: int = 512):
        super().__init__()
        self.fc_pos, self.fc_c = nn.Linear(3, 2 * features), nn.Linear(features, condition)
        self.blocks = nn.ModuleList(ResidualFC(2 * features, features) for _ in range(5))

    def forward(self, points):
        """points [B, N, 3] → c [B, C]."""
        x = self.fc_pos(points)
        for k, block in enumerate(self.blocks):
            x = block(x if k == 0 else torch.cat([x, x.max(1, keepdim=True).values.expand_as(x)], 2))
        return self.fc_c(F.relu(x.max(1).values))


def take(module, arrays) -> None:
    """Copies arrays by jonet's names into a module."""
    with torch.no_grad():
        for name, tensor in module.named():
            value = np.asarray(arrays[name])
            value = value.T if name.endswith("kernel") else value
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))


def give(module) -> dict[str, np.ndarray]:
    """A module's arrays by jonet's names."""
    out = {}
    for name, tensor in module.named():
        value = tensor.detach().cpu().numpy()
        if name.endswith("kernel"):
            value = value.reshape(value.shape[:2]).T
        out[name] = value.reshape(-1) if name.endswith("scale") else value
    return out
