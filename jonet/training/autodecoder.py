"""DeepSDF's loss (Park et al. 2019, section 4): network and codes learned together from signed distances."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.deepsdf import Decoder
from jonet.networks.layers import dropout_factor, dropout_mask
from jonet.training.microbatches import accumulate, cut


@dataclasses.dataclass(frozen=True)
class AutoDecoder:
    """How an auto-decoder learns; the defaults are the published program's."""

    clamp: float = 0.1  # δ, distance in the normalised sphere beyond which errors do not count
    prior: Literal["program", "paper"] = "program"  # see `penalty`
    prior_weight: float = 1e-4  # λ of the program's prior
    prior_ramp: int = 100  # epochs over which the program's prior grows to λ
    prior_sigma: float = 0.01  # σ of the paper's prior
    code_bound: float = 1.0  # longest code at lookup; 0 for no bound
    start: Literal["published", "centred"] = "published"  # centred: the last bias makes outputs 0 on average
    code_std: float = 1.0  # codes start from N(0, (code_std / √L)²), so with about this length
    micro_batch: int = 0  # points whose activations live at once; 0 for the whole batch

    def __post_init__(self):
        if not self.clamp > 0:
            raise ConfigError(f"clamp is {self.clamp}, but it is a distance and must be above 0 (published: 0.1)")
        if self.prior not in ("program", "paper"):
            raise ConfigError(f"prior {self.prior!r} is unknown; there are program and paper")
        if self.start not in ("published", "centred"):
            raise ConfigError(f"start {self.start!r} is unknown; there are published and centred")
        if not (self.prior_weight >= 0 and self.prior_sigma > 0 and self.prior_ramp >= 1):
            raise ConfigError(
                "a prior needs prior_weight of 0 or more, prior_sigma above 0, prior_ramp of 1 epoch or more"
            )
        if not (self.code_bound >= 0 and self.code_std >= 0 and self.micro_batch >= 0):
            raise ConfigError("code_bound, code_std and micro_batch are 0 or more")


TRIAL = 8192  # points by which the size of micro-batches is measured


class _Piece(NamedTuple):
    """A part of a batch: g shapes with m points each, starting at a whole block."""

    rows: jax.Array  # [g] place of the shapes in the batch
    keys: jax.Array  # [g] the shapes' keys in this step
    weight: jax.Array  # [g] 1 / points, 0 for padding
    block: jax.Array  # [] number of the first block of points
    points: jax.Array  # [g, m, 3]
    values: jax.Array  # [g, m]


def loss(shared, own, statistics, batch, key, *, decoder: Decoder, settings: AutoDecoder):
    """Clamped L1 and code prior, summed over this device's shapes: Σ_shapes mean_points |f̄ - d̄| + penalty(z).

    shared: the decoder's variables.  own: codes [S, L].  batch: points [S, N, 3], values [S, N], mask [S], index [S]
    and epoch.  f̄ and d̄ are output and distance clamped to ±δ.  Metrics: error, prior, length ‖z‖, and clamped, the
    share of outputs beyond the clamp, which no gradient reaches.
    """
    shapes, count, _ = batch.points.shape
    chex.assert_shape(own, (shapes, decoder.specs.latent_size))
    chex.assert_shape([batch.values, batch.mask, batch.index], [(shapes, count), (shapes,), (shapes,)])
    group, size = cut(shapes, count, settings.micro_batch)
    each = count // size  # pieces a shape

    def error(learned, piece: _Piece):
        shared, codes = learned
        predicted = decoder.apply(shared, codes[piece.rows], piece.points, dropout(piece.keys, piece.block))
        gap = jnp.abs(clamped(predicted, settings.clamp) - clamped(piece.values, settings.clamp))
        beyond = jnp.sum(jnp.abs(predicted) > settings.clamp, axis=-1)
        return jnp.sum(piece.weight * jnp.sum(gap, axis=-1)), jnp.sum(piece.weight * beyond)

    def of_shapes(leaf):  # one entry a shape → [pieces, g]
        return jnp.repeat(leaf, each, axis=0).reshape(-1, group)

    keys = jax.vmap(lambda index: parallel.fold(key, index))(batch.index)
    pieces = _Piece(
        rows=of_shapes(jnp.arange(shapes)),
        keys=of_shapes(keys),
        weight=of_shapes(batch.mask / count),
        block=jnp.tile(jnp.arange(each) * (size // 1024), shapes // group),
        points=batch.points.reshape(-1, group, size, 3),
        values=batch.values.reshape(-1, group, size),
    )
    if len(pieces.rows) == 1:
        errors, beyond = error((shared, own), jax.tree.map(lambda leaf: leaf[0], pieces))
    else:
        errors, beyond = accumulate(error, (shared, own), pieces)
    prior = jnp.sum(batch.mask * penalty(own, batch.epoch, count, settings))
    length = jnp.sum(batch.mask * optax.safe_norm(jax.lax.stop_gradient(own), 0.0, axis=-1))
    return errors + prior, (statistics, {"error": errors, "prior": prior, "length": length, "clamped": beyond})


def clamped(distances, bound):
    """Distances held within ±bound; the gradient is 1 inside and at the edge, 0 beyond, as PyTorch's."""
    return jnp.where(jnp.abs(distances) <= bound, distances, jnp.sign(distances) * bound)


def penalty(codes, epoch, points: int, settings: AutoDecoder):
    """The code prior of each shape, [S, L] → [S], on the scale of an error that is a mean over `points`.

    program: λ · min(1, epoch / ramp) · ‖z‖, the norm and not its square (its gradient at z = 0 is 0).
    paper: ‖z‖² / σ² beside a *sum* over points (eq. 9), so divided by their number here.
    """
    if settings.prior == "paper":
        return jnp.sum(codes**2, axis=-1) / (settings.prior_sigma**2 * points)
    ramp = jnp.minimum(1.0, epoch / settings.prior_ramp)
    return settings.prior_weight * ramp * optax.safe_norm(codes, 0.0, axis=-1)


def lookup(codes, *, bound: float):
    """The program's CodeBound: looked-up codes [S, L] longer than the bound are scaled back onto it."""
    if not bound:
        return codes
    length = jnp.linalg.norm(codes, axis=-1, keepdims=True)
    return jnp.where(length > bound, codes * (bound / (length + 1e-7)), codes)


def dropout(keys, block):
    """What `Decoder` asks for masks in training: keys [B] of the shapes in this step, blocks numbered from `block`."""

    def kept(layer: str, rate: float, shape: tuple[int, ...]):
        width, _, points = shape
        masks = jax.vmap(lambda key: dropout_mask(parallel.fold(key, layer), rate, (width, points), block), out_axes=1)
        return masks(keys), dropout_factor(rate)

    return kept


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="start")
def initial(decoder: Decoder, shapes: int, key, *, std: float = 1.0, start: str = "published"):
    """The start: the decoder's variables, and codes [shapes, L] from N(0, (std / √L)²), each drawn by its position.

    start: see `AutoDecoder`; the start of a narrow network is nearly constant in space, and as likely as not beyond the
    clamp, where no gradient reaches it.
    """
    length = decoder.specs.latent_size
    shared = decoder.init(parallel.fold(key, "decoder"), jnp.zeros((1, length)), jnp.zeros((1, 1, 3)))
    draw = jax.vmap(lambda index: jax.random.normal(parallel.fold(key, "code", index), (length,)))
    codes = draw(jnp.arange(shapes)) * (std / max(length, 1) ** 0.5)
    if start == "centred":
        some = codes[:64]
        points = jax.random.uniform(parallel.fold(key, "centre"), (len(some), 64, 3), minval=-1.0)
        outputs = jnp.arctanh(decoder.apply(shared, some, points))
        outputs = jnp.arctanh(outputs) if decoder.specs.use_tanh else outputs
        last = shared["params"][f"lin{len(decoder.specs.dims)}"]
        last["bias"] = last["bias"] - jnp.mean(outputs)
    return shared, codes


def measure_micro_batch(decoder: Decoder, shared, shapes: int, points: int, settings: AutoDecoder) -> int:
    """The number of points a piece that trains fastest here, for batches of `shapes` × `points` on a device.

    Measured on a CPU, by TRIAL points in pieces of each size.  0, the whole batch, where that is small, or on an
    accelerator, which large products fill.
    """
    if jax.default_backend() != "cpu" or shapes * points <= TRIAL:
        return 0
    sizes = {cut(shapes, points, size) for size in (1024, 2048, 4096)}
    rng = np.random.default_rng(0)

    def seconds_a_point(group: int, size: int) -> float:
        pieces = max(1, TRIAL // (group * size))
        several, each = (group * pieces, size) if size == points else (1, size * pieces)
        some = dataclasses.replace(settings, micro_batch=group * size)

        @jax.jit
        def gradient(shared, codes, batch):
            value = functools.partial(loss, decoder=decoder, settings=some)
            return jax.grad(value, argnums=(0, 1), has_aux=True)(shared, codes, {}, batch, jax.random.key(0))

        cloud = rng.uniform(-1, 1, (several, each, 3)).astype(np.float32)
        batch = _Trial(cloud, cloud[..., 0], np.ones(several, np.float32), np.arange(several), np.int32(1))
        codes = rng.normal(size=(several, decoder.specs.latent_size)).astype(np.float32)
        jax.block_until_ready(gradient(shared, codes, batch))
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(gradient(shared, codes, batch))
            taken.append(time.perf_counter() - start)
        return min(taken) / (several * each)

    group, size = min(sorted(sizes, reverse=True), key=lambda piece: seconds_a_point(*piece))
    return group * size


class _Trial(NamedTuple):
    points: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    epoch: np.ndarray
