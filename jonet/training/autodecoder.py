"""DeepSDF's loss (Park et al. 2019, section 4): network and codes are learned together from signed distances."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.networks.layers import BLOCK, dropout_factor, dropout_mask, dropout_words
from jonet.training.microbatches import accumulate, cut

# options of `learning` that only networks with codes read
OF_CODES = tuple(
    f"learning.{name}" for name in ("prior", "prior_weight", "prior_ramp", "prior_sigma", "code_bound", "code_std")
)


@dataclasses.dataclass(frozen=True)
class AutoDecoder:
    """Options of the auto-decoder's loss and initialization; the defaults are those of the published code."""

    clamp: float = 0.1  # δ, distance in the normalized sphere beyond which errors do not count
    prior: Literal["program", "paper"] = "program"  # see `penalty`
    prior_weight: float = 1e-4  # λ of the prior "program"
    prior_ramp: int = 100  # epochs over which the weight of the prior "program" grows to λ
    prior_sigma: float = 0.01  # σ of the prior "paper"
    code_bound: float = 1.0  # largest norm of a code at lookup; 0 for no bound
    start: Literal["published", "centered"] = "published"  # centered: the last bias makes outputs 0 on average
    code_std: float = 1.0  # codes are initialized from N(0, (code_std / √L)²), so with about this norm
    micro_batch: int = 0  # points whose activations are in memory at once; 0 for the whole batch

    def __post_init__(self):
        if not self.clamp > 0:
            raise ConfigError(f"clamp is {self.clamp}, but it is a distance and must be above 0 (published: 0.1)")
        if self.prior not in ("program", "paper"):
            raise ConfigError(f"prior {self.prior!r} is unknown; there are program and paper")
        if self.start not in ("published", "centered"):
            raise ConfigError(f"start {self.start!r} is unknown; there are published and centered")
        if not (self.prior_weight >= 0 and self.prior_sigma > 0 and self.prior_ramp >= 1):
            raise ConfigError(
                "a prior needs prior_weight of 0 or more, prior_sigma above 0, prior_ramp of 1 epoch or more"
            )
        if not (self.code_bound >= 0 and self.code_std >= 0 and self.micro_batch >= 0):
            raise ConfigError("code_bound, code_std and micro_batch are 0 or more")

    def unread(self, group: str) -> dict[str, str]:
        """Options, below the name of their group, that have no effect with the others, each with the reason."""
        others = ("prior_sigma",) if self.prior == "program" else ("prior_weight", "prior_ramp")
        return {f"{group}.{name}": f"{group}.prior is {self.prior}" for name in others}


class _Piece(NamedTuple):
    """A micro-batch: g shapes with m points each, in whole blocks of points."""

    rows: jax.Array  # [g] indices of the shapes in the batch
    weight: jax.Array  # [g] 1 / (points of the whole batch), 0 for padding
    words: dict[str, jax.Array]  # [g, blocks, 2] for the dropout of each layer
    points: jax.Array  # [g, m, 3]
    values: jax.Array  # [g, m]


def loss(shared, per_shape, batch_stats, batch, key, *, decoder: DeepSDFDecoder, settings: AutoDecoder):
    """Clamped L1 and code prior, summed over this device's shapes: Σ_shapes mean_points |f̄ - d̄| + penalty(z).

    f̄ and d̄ are output and distance clamped to ±δ (eq. 4).
    shared: the decoder's variables.  per_shape: codes [S, L].  batch: points [S, N, 3], values [S, N], mask [S],
    index [S] and epoch.  Returns (loss, (batch_stats, metrics)).  Metrics: error, prior, length ‖z‖, and clamped, the
    fraction of outputs beyond the clamp, which get no gradient.
    """
    shapes, count, _ = batch.points.shape
    chex.assert_shape(per_shape, (shapes, decoder.specs.latent_size))
    chex.assert_shape([batch.values, batch.mask, batch.index], [(shapes, count), (shapes,), (shapes,)])
    if decoder.axis != 0:  # once a step and not once a piece; a CPU keeps its rounding
        decoder, shared = decoder.without_weight_norm(shared)
    group, size = cut(shapes, count, settings.micro_batch)
    each = count // size  # pieces per shape

    def error(learned, piece: _Piece):
        shared, codes = learned
        kept = dropout(piece.words, decoder.axis)
        predicted = cast(jax.Array, decoder.apply(shared, codes[piece.rows], piece.points, kept))
        gap = jnp.abs(clamped(predicted, settings.clamp) - clamped(piece.values, settings.clamp))
        beyond = jnp.sum(jnp.abs(predicted) > settings.clamp, axis=-1)
        return jnp.sum(piece.weight * jnp.sum(gap, axis=-1)), jnp.sum(piece.weight * beyond)

    def of_shapes(leaf):  # one entry per shape → [pieces, g]
        return jnp.repeat(leaf, each, axis=0).reshape(-1, group)

    # a shape's key depends on its index, not on its place: the same masks on any number of devices
    def words(layer: str):
        keys = jax.vmap(lambda index: parallel.fold_in(key, index, layer))(batch.index)
        return dropout_words(keys, count).reshape(-1, group, -(-size // BLOCK), 2)

    pieces = _Piece(
        rows=of_shapes(jnp.arange(shapes)),
        weight=of_shapes(batch.mask / count),
        words={layer: words(layer) for layer in decoder.specs.dropped},
        points=batch.points.reshape(-1, group, size, 3),
        values=batch.values.reshape(-1, group, size),
    )
    if len(pieces.rows) == 1:
        errors, beyond = error((shared, per_shape), jax.tree.map(lambda leaf: leaf[0], pieces))
    else:
        errors, beyond = accumulate(error, (shared, per_shape), pieces)
    prior = jnp.sum(batch.mask * penalty(per_shape, batch.epoch, count, settings))
    length = jnp.sum(batch.mask * optax.safe_norm(jax.lax.stop_gradient(per_shape), 0.0, axis=-1))
    return errors + prior, (batch_stats, {"error": errors, "prior": prior, "length": length, "clamped": beyond})


def clamped(distances, bound):
    """Distances [...] clamped to ±bound.  The gradient is 1 inside and at the bound, 0 beyond, as in PyTorch."""
    return jnp.where(jnp.abs(distances) <= bound, distances, jnp.sign(distances) * bound)


def penalty(codes, epoch, points: int, settings: AutoDecoder):
    """The code prior of each shape, [S, L] → [S], to be added to an error that is a mean over `points`.

    program: λ · min(1, epoch / ramp) · ‖z‖, the norm and not its square (its gradient at z = 0 is 0).
    paper: ‖z‖² / σ² (eq. 9).  The paper adds it to a *sum* over points, so it is divided by their number here.
    """
    if settings.prior == "paper":
        return jnp.sum(codes**2, axis=-1) / (settings.prior_sigma**2 * points)
    ramp = jnp.minimum(1.0, epoch / settings.prior_ramp)
    return settings.prior_weight * ramp * optax.safe_norm(codes, 0.0, axis=-1)


def lookup(codes, *, bound: float):
    """The published code's CodeBound: looked-up codes [S, L] with a norm above the bound are scaled back to it."""
    if not bound:
        return codes
    length = jnp.linalg.norm(codes, axis=-1, keepdims=True)
    return jnp.where(length > bound, codes * (bound / (length + 1e-7)), codes)


def dropout(words: dict[str, jax.Array], axis: int):
    """Dropout masks of `DeepSDFDecoder`, from each layer's words [B, blocks, 2] (`dropout_words`).

    axis: of the units.
    """

    def kept(layer: str, rate: float, shape: tuple[int, ...]):
        return dropout_mask(words[layer], rate, shape, axis), dropout_factor(rate)

    return kept


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="start")
def initial(decoder: DeepSDFDecoder, shapes: int, key, *, std: float = 1.0, start: str = "published"):
    """Initial variables of the decoder, and codes [shapes, L] from N(0, (std / √L)²), each drawn by its position.

    start: see `AutoDecoder`.  A narrow network is initially nearly constant in space, and its value is as likely as
    not beyond the clamp, where it gets no gradient; "centered" avoids this.
    """
    length = decoder.specs.latent_size
    key_of_decoder = parallel.fold_in(key, "decoder")
    shared = cast(dict[str, Any], decoder.init(key_of_decoder, jnp.zeros((1, length)), jnp.zeros((1, 1, 3))))
    draw = jax.vmap(lambda index: jax.random.normal(parallel.fold_in(key, "code", index), (length,)))
    codes = draw(jnp.arange(shapes)) * (std / max(length, 1) ** 0.5)
    if start == "centered":
        some = codes[:64]  # enough shapes and points for a mean output
        # "centre" names the random draws; another name would change the initial weights
        points = jax.random.uniform(parallel.fold_in(key, "centre"), (len(some), 64, 3), minval=-1.0)
        outputs = cast(jax.Array, decoder.apply(shared, some, points))
        outputs = jnp.arctanh(outputs)  # before the final tanh, where the bias is added
        outputs = jnp.arctanh(outputs) if decoder.specs.use_tanh else outputs
        last = shared["params"][f"lin{len(decoder.specs.dims)}"]
        last["bias"] = last["bias"] - jnp.mean(outputs)
    return shared, codes
