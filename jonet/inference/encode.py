"""Codes by one forward pass of a trained encoder, for many shapes at once over all devices."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jonet import device_memory, parallel, products
from jonet.checks import check_array
from jonet.errors import ConfigError, InputError
from jonet.networks.bound import BoundNetwork
from jonet.networks.encoders import InputKind
from jonet.networks.field import bucket

TOGETHER = device_memory.Pieces("shapes", 64, 16)  # per device in one dispatch
CONVOLVED = ("voxels", "images")  # kinds of input whose encoders have convolutions


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input of a network's encoder: its kind, and `size` points, cells or pixels a side, or samples.

    points [size, 3] on the surface · voxels [size, size, size] of 0 and 1 over the cube [-0.5, 0.5]³, axes x, y, z ·
    images [size, size, 3] in [0, 1] · samples [size, 4], points with occupancies 0 and 1 (of the VAE).
    """

    kind: InputKind = "points"
    size: int = 300

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"size of {self.kind} is {self.size}, but must be 1 or more")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one object's array."""
        n = self.size
        return {"points": (n, 3), "voxels": (n, n, n), "images": (n, n, 3), "samples": (n, 4)}[self.kind]

    def check(self, arrays) -> np.ndarray:
        """Arrays of B shapes as one [B, …] float32; clouds and samples of any length are resampled to `size` rows.

        Raises InputError for a wrong array shape, no rows, values that are not finite, occupancies that are not 0 and
        1, and pixels or cells that are not from 0 to 1.
        """
        arrays = list(arrays)
        if not arrays:
            raise InputError(f"{self.kind} holds no shapes")
        any_length = self.kind in ("points", "samples")
        shape = (None, self.shape[-1]) if any_length else self.shape
        checked = [check_array(array, f"{self.kind}[{i}]", shape) for i, array in enumerate(arrays)]
        for i, array in enumerate(checked if self.kind == "samples" else ()):
            if not np.isin(values := array[:, 3], (0, 1)).all():
                wrong = values[(values != 0) & (values != 1)][0]
                raise InputError(
                    f"samples[{i}] holds {wrong:.6g} as an occupancy, but these are 0 (outside) and 1 (inside)"
                )
        for i, array in enumerate(checked if self.kind in ("images", "voxels") else ()):
            if array.min() < 0 or array.max() > 1:
                found = f"{self.kind}[{i}] holds values from {array.min():.6g} to {array.max():.6g}"
                advice = "; divide images of 8 bits by 255" * (self.kind == "images")
                raise InputError(f"{found}, but must hold values from 0 to 1{advice}")
        return np.stack([thinned(array, self.size) if any_length else array for array in checked])


def thinned(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of a cloud's rows, drawn without replacement by a fixed seed; if there are fewer, rows are repeated.

    rows [N, …] → [count, …].
    A repeated point changes nothing for encoders that take maxima over points (all but a leaky latent encoder).
    """
    rng = np.random.default_rng([zlib.crc32(b"thinned"), len(rows)])
    whole = np.tile(rows, (count // len(rows), 1)) if count >= len(rows) else rows[:0]
    return np.concatenate([whole, rows[rng.permutation(len(rows))[: count - len(whole)]]])


@device_memory.reporting("encoding inputs", "encode smaller inputs, or fewer shapes per call (bulk jobs: --batch)")
def encode(network: BoundNetwork, inputs: np.ndarray, kind: str) -> np.ndarray:
    """Codes [B, Z + C] of B shapes from their inputs [B, …]: c of the encoder, and z the mean of its distribution.

    For samples [B, N, 4], z is inferred by the VAE's latent encoder; for other inputs it is the mean of the prior, 0.
    Matrix products and convolutions have the precision of the network.
    """
    devices = parallel.count()

    def dispatch(some: slice):
        piece = inputs[some]
        size = devices * bucket(-(-len(piece) // devices))
        padded = np.concatenate([piece, np.repeat(piece[:1], size - len(piece), 0)])  # to few different sizes
        with products.precise(network.precision, convolutions=kind in CONVOLVED):
            return _program(kind)(network.replicated, parallel.split(padded))

    def collect(some: slice, found) -> np.ndarray:
        return parallel.host(found)[: some.stop - some.start]

    return np.concatenate(TOGETHER.map(dispatch, len(inputs), collect))


@functools.lru_cache(maxsize=4)
def _program(kind: str):
    """The mapped program: (network, inputs [S, …]) → codes [S, Z + C]."""

    def on_device(network: BoundNetwork, inputs):
        apply = network.module.apply
        if kind == "samples":
            c = jnp.zeros((len(inputs), 0))
            z, _ = apply(network.variables, inputs[..., :3], inputs[..., 3], c, method="infer")
        else:
            c = apply(network.variables, inputs, method="encode")
            z = jnp.zeros((len(inputs), network.specs.z_dim))
        chex.assert_shape([z, c], [(len(inputs), network.specs.z_dim), (len(inputs), network.specs.c_dim)])
        return jnp.concatenate([z, c], -1)

    return parallel.pmap(jax.named_scope("encode")(on_device), (parallel.REPLICATED, parallel.SPLIT), parallel.SPLIT)
