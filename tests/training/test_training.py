"""The loop, the auto-decoder's loss and the optimizers, in miniature."""

import dataclasses
import functools
import json
import math
import os
import shutil
import signal
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jonet import parallel
from jonet.errors import CheckpointError, TrainingError
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.layers import BLOCK, GOLDEN, dropout_factor, dropout_mask, dropout_words, dropped_relu, random_bytes
from jonet.training import autodecoder, autotune
from jonet.training.autodecoder import AutoDecoder
from jonet.training.batches import Batch
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.loop import State, train, train_step
from jonet.training.microbatches import cut
from jonet.training.optimizers import Optimizer, Schedule, muon, orthogonal


@pytest.fixture
def loop():
    return miniature.shared_loop()


@pytest.fixture
def state(loop):
    return miniature.fresh(loop)


def metrics_of(seen, steps):
    return {name: np.asarray(values)[:steps] for name, values in seen.items()}


# What is dropped


def test_random_bytes_are_even_and_do_not_know_each_other():
    """Of one key, of neighbors, and of keys that differ in one number: χ² with 255 degrees of freedom."""
    keys = [parallel.fold_in(jax.random.key(0), "block", number) for number in range(6)]
    counter, words = jnp.arange(2**19, dtype=jnp.uint32), [jax.random.bits(key, (2,), jnp.uint32) for key in keys]
    drawn = np.stack([np.asarray(random_bytes(counter * jnp.uint32(GOLDEN) + one, two)) for one, two in words])
    pairs = [(drawn[:, 1:], drawn[:, :-1]), (drawn[:, 4:], drawn[:, :-4]), (drawn[:, BLOCK:], drawn[:, :-BLOCK])]
    pairs += [(drawn[1:], drawn[:-1]), (drawn, np.zeros_like(drawn))]
    for one, other in pairs:
        counts = np.bincount((one ^ other).ravel(), minlength=256)
        expected = counts.sum() / 256
        assert 170 < ((counts - expected) ** 2 / expected).sum() < 350
        high = 2.0 * (np.stack([one, other]) < 205).reshape(2, -1) - 1
        assert not other.any() or abs(np.corrcoef(high)[0, 1]) < 4 / one.size**0.5


def test_dropout_keeps_the_fraction_that_its_factor_compensates():
    words = dropout_words(jax.random.key(3)[None], 4 * BLOCK)
    kept = np.asarray(dropout_mask(words, 0.2, (1, 4 * BLOCK, 512)))[0]
    assert kept.dtype == bool and dropout_factor(0.2) == 256 / 205
    np.testing.assert_allclose(kept.mean() * dropout_factor(0.2), 1, atol=4 * 0.5 / kept.size**0.5)
    for axis in (0, 1):
        assert kept.mean(axis).std() * kept.shape[axis] ** 0.5 == pytest.approx(0.4, rel=0.1)


def murmur(counter: np.ndarray, first: int, second: int) -> np.ndarray:
    """The highest byte of MurmurHash3's finalizer, with words of a key mixed in."""
    x = counter.astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(first)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B) ^ np.uint32(second)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return (x ^ x >> 16) >> 24


@pytest.mark.parametrize("points", [37, BLOCK, 2 * BLOCK + 100])
def test_dropped_units_depend_on_shape_unit_and_point_alone(points):
    """Not on the layout, nor on the cut into pieces; and they are those of a second computation."""
    keys, units, size = jax.random.split(jax.random.key(5), 3), 7, min(points, BLOCK)
    expected = np.empty((3, points, units), bool)
    counter = np.arange(units) * size + np.arange(size)[:, None]
    for shape in range(3):
        for first in range(0, points, BLOCK):
            words = jax.random.bits(jax.random.fold_in(keys[shape], first // BLOCK), (2,), jnp.uint32).tolist()
            expected[shape, first : first + BLOCK] = (murmur(counter, *words) < 205)[: points - first]
    words = dropout_words(keys, points)
    last, first = dropout_mask(words, 0.2, (3, points, units)), dropout_mask(words, 0.2, (units, 3, points), axis=0)
    np.testing.assert_array_equal(last, expected)
    np.testing.assert_array_equal(np.moveaxis(first, 0, -1), expected)
    if points >= 2 * BLOCK:
        later = dropout_mask(words[1:, 1:2], 0.2, (2, BLOCK, units))
        np.testing.assert_array_equal(later, expected[1:, BLOCK : 2 * BLOCK])


@pytest.mark.parametrize("axis, micro_batch", [(0, 0), (-1, 0), (-1, 1)])
def test_each_layer_drops_by_step_shape_and_layer(axis, micro_batch):
    """Of a shape that is the same in another batch, and at another place of it."""

    class Recorder:
        specs = dataclasses.replace(miniature.SPECS, latent_dropout=True)

        def without_weight_norm(self, shared):
            return self, shared

        def apply(self, shared, codes, points, dropout):
            for layer in ("latent", "lin0", "lin1"):
                shape = (5, *points.shape[:2]) if axis == 0 else (*points.shape[:2], 5)
                kept, factor = dropout(layer, 0.2, shape)
                jax.debug.callback(lambda kept, layer=layer: seen[layer].append(kept), kept, ordered=True)
            return points[..., 0] + 0 * codes.sum() * factor

    Recorder.axis, points, index = axis, 3 * BLOCK, np.array([7, 3, 0, 9])
    batch = Batch(np.ones((4, points, 3)), np.ones((4, points)), np.arange(4), index, np.ones(4), np.int32(2))
    seen, key = {"latent": [], "lin0": [], "lin1": []}, jax.random.key(4)
    settings = AutoDecoder(micro_batch=micro_batch)
    autodecoder.loss({}, jnp.ones((4, 4)), {}, batch, key, decoder=Recorder(), settings=settings)
    jax.effects_barrier()
    for layer, kept in seen.items():
        assert len(kept) == (12 if micro_batch else 1)
        found = np.stack([np.moveaxis(piece, 0, -1) if axis == 0 else piece for piece in kept]).reshape(4, points, 5)
        for masks, number in zip(found, index, strict=True):
            words = dropout_words(parallel.fold_in(key, int(number), layer)[None], points)
            np.testing.assert_array_equal(masks, dropout_mask(words, 0.2, (1, points, 5))[0])


def test_the_reverse_of_dropped_units():
    x, mask = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
    mask, weights = mask > -0.8, np.arange(400, dtype=np.float32).reshape(50, 8)

    def one(x):
        return jnp.sum(weights * dropped_relu(x, mask, 1.25))

    def other(x):
        return jnp.sum(weights * jax.nn.relu(x) * jnp.where(mask, 1.25, 0))

    np.testing.assert_allclose(one(x), other(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(one)(x), jax.grad(other)(x), rtol=1e-6)


# Pieces of a batch


@given(
    shapes=st.integers(1, 70),
    points=st.integers(1, 3 * BLOCK) | st.sampled_from([16384, 6 * BLOCK]),
    size=st.integers(0, 20000),
)
def test_pieces_divide_the_batch(shapes, points, size):
    group, each = cut(shapes, points, size)
    assert shapes % group == 0 and points % each == 0 and (group == 1 or each == points)
    assert each == points or each % BLOCK == 0
    assert not size or group * each <= max(size, points, BLOCK) and (group == 1 or group * each <= size)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("points, sizes", [(96, (96, 200)), (3 * BLOCK, (1024,))])
def test_micro_batches_equal_the_whole_batch(points, sizes, axis):
    """Value, metrics and gradients; and each unit is dropped exactly where the whole batch drops it, in any layout."""
    specs = Specs(latent_size=5, dims=(12, 12), dropout=(0, 1), norm_layers=(0,), latent_in=(1,), latent_dropout=True)
    decoder, rng = DeepSDFDecoder(specs), np.random.default_rng(0)
    shared, codes = miniature.start(decoder, 4)
    cloud = rng.uniform(-1, 1, (4, points, 4)).astype(np.float32) / 4
    mask = np.array([1, 1, 0, 1], np.float32)
    batch = Batch(cloud[..., :3], cloud[..., 3], np.arange(4), np.array([7, 3, 0, 9]), mask, np.int32(2))

    def step(micro_batch, axis):
        settings, layout = AutoDecoder(micro_batch=micro_batch), decoder.clone(axis=axis)
        loss = functools.partial(autodecoder.loss, decoder=layout, settings=settings)

        def value(shared, codes):
            return loss(shared, codes, {}, batch, jax.random.key(1))

        return miniature.once(jax.value_and_grad(value, argnums=(0, 1), has_aux=True), shared, codes)[1]

    whole = step(0, axis=0)
    for micro_batch in sizes:
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(step(micro_batch, axis)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_measured_micro_batch_is_a_piece():
    decoder = DeepSDFDecoder(Specs(latent_size=2, dims=(8,), dropout=(), norm_layers=(), latent_in=()))
    shared, _ = miniature.start(decoder, 2)
    size = autotune.micro_batch(decoder, shared, 3, 4 * BLOCK, AutoDecoder())
    assert size in (1024, 2048, 4096) and cut(3, 4 * BLOCK, size) == (1, size)
    assert autotune.micro_batch(decoder, shared, 16, 256, AutoDecoder()) == 0


# The step


def test_an_empty_lane_changes_nothing():
    """Three shapes and one masked place, whose points are anything, give the step of the three shapes."""
    decoder = miniature.DECODER
    shared, codes = miniature.start(decoder, 5)
    codes = 0.5 * codes  # below the bound, so that a lookup leaves them
    rng = np.random.default_rng(1)
    cloud = rng.uniform(-0.5, 0.5, (4, 16, 4)).astype(np.float32)
    cloud[3] = 1e9
    optimizer = Optimizer(clip=1.0).build()
    loss = functools.partial(autodecoder.loss, decoder=decoder, settings=AutoDecoder())
    step = parallel.pmap(
        functools.partial(train_step, loss, functools.partial(autodecoder.lookup, bound=1.0), optimizer),
        (parallel.REPLICATED,) * 3,
        parallel.REPLICATED,
    )
    state = State(shared, codes, {}, optimizer.init({"shared": shared, "per_shape": codes}), np.int32(0))

    def after(places):
        row = np.array([4, 0, 2, 1], np.int32)[:places]
        mask = np.array([1, 1, 1, 0], np.float32)[:places]
        batch = Batch(cloud[:places, :, :3], cloud[:places, :, 3], row, row, mask, np.int32(1))
        return miniature.once(step, state, batch, jax.random.key(0))[1]

    for a, b in zip(jax.tree.leaves(after(3)), jax.tree.leaves(after(4)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_learns_spheres(loop, state):
    data, _ = loop.batches.segment(0, 600)
    state, seen, _ = loop.advance(state, data, 600, 600)
    error = metrics_of(seen, 600)["error"]
    assert error[-20:].mean() < 0.5 * error[:20].mean()


def test_dispatches_do_not_change_bits(loop, compilations):
    """Twelve steps in any number of dispatches, by one program."""
    ends = []
    data, _ = loop.batches.segment(0, 12)
    for parts in ([12], [5, 7], [1] * 12):
        state = miniature.fresh(loop)
        with compilations() as seen:
            for steps in parts:
                state, _, _ = loop.advance(state, data, steps, 12)
        assert not ends or not seen, seen
        ends.append(miniature.bits(state))
    assert ends[0] == ends[1] == ends[2]


def test_streamed_samples_train_like_resident_ones(loop):
    streamed = miniature.make(miniature.batches(place="streamed"))
    ends = [train(which, miniature.fresh(which), 20, bar=False) for which in (loop, streamed)]
    assert miniature.bits(ends[0]) == miniature.bits(ends[1])


def test_one_shape_trains():
    """Fewer shapes than a batch; `test_devices` has such as fill no two devices."""
    loop = miniature.make(miniature.batches(shapes=1))
    state = miniature.fresh(loop)
    before = loop.per_shape(state)
    state = train(loop, state, 15, bar=False)
    assert loop.per_shape(state).shape == (1, 4) and np.isfinite(loop.per_shape(state)).all()
    assert (loop.per_shape(state) != before).all()


def test_per_shape_rows_keep_the_order_of_the_store(loop, state):
    codes = miniature.start(miniature.DECODER, 6)[1]
    np.testing.assert_array_equal(loop.per_shape(state), codes)
    assert (np.asarray(state.per_shape)[loop.batches.positions >= 0] != codes).any()  # they lie in lanes


def test_networks_without_per_shape_rows_and_with_batch_stats():
    """Another kind of loss: no per-shape arrays, running statistics, and inputs in the batch."""

    class Inputs(NamedTuple):
        row: Any
        index: Any
        mask: Any
        epoch: Any
        inputs: Any

    def loss(shared, per_shape, batch_stats, batch, key):
        assert per_shape == {}
        mean = parallel.sum(jnp.sum(batch.inputs)) / parallel.sum(jnp.sum(batch.mask))
        errors = (batch.inputs - shared["guess"]) ** 2
        return jnp.sum(errors), ({"mean": 0.9 * batch_stats["mean"] + 0.1 * mean}, {"errors": jnp.sum(errors)})

    optimizer = Optimizer(shared=Schedule("constant", 0.1)).build()
    step = parallel.pmap(
        functools.partial(train_step, loss, lambda rows: rows, optimizer),
        (parallel.REPLICATED,) * 3,
        parallel.REPLICATED,
    )
    shared = {"guess": np.float32(0)}
    state = State(shared, {}, {"mean": np.float32(0)}, optimizer.init({"shared": shared, "per_shape": {}}), np.int32(0))
    batch = Inputs(np.arange(2), np.arange(2), np.ones(2, np.float32), np.int32(1), np.array([1.0, 3.0], np.float32))
    state, metrics = miniature.once(step, state, batch, jax.random.key(0))[1]
    np.testing.assert_allclose([metrics["loss"], metrics["errors"], metrics["gradient"]], [5, 5, 4])
    np.testing.assert_allclose([state.batch_stats["mean"], state.shared["guess"]], [0.2, 0.1], rtol=1e-5)


def test_bfloat16_products_leave_float32_parameters():
    decoders = [DeepSDFDecoder(miniature.SPECS, dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    shared, codes = jax.tree.map(jnp.asarray, miniature.start(decoders[0], 2))
    cloud = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 64, 4)).astype(np.float32)
    batch = Batch(cloud[..., :3], cloud[..., 3], np.arange(2), np.arange(2), np.ones(2), np.int32(1))

    def step(decoder):
        settings = AutoDecoder()

        def value(shared):
            return autodecoder.loss(shared, codes, {}, batch, jax.random.key(0), decoder=decoder, settings=settings)[0]

        return miniature.once(jax.value_and_grad(value), shared)[1]

    (full, _), (half, gradient) = map(step, decoders)
    assert full != half and abs(full - half) < 0.02 * full
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_step_lowers_for_tpu_and_cuda(loop, state):
    data, _ = loop.batches.segment(0, 1)
    loop.advance(jax.tree.map(jnp.copy, state), data, 1, 1)
    arguments = (state, data, loop.key, np.int32(1), np.int32(1))
    exported = jax.export.export(loop.dispatch.jitted(), platforms=("tpu", "cuda"))(*arguments)
    assert exported.platforms == ("tpu", "cuda") and "stablehlo" in exported.mlir_module()


# What goes wrong


def test_a_loss_that_is_not_finite_names_step_and_shape(loop, state, tmp_path, monkeypatch):
    arrays = miniature.spheres(6)
    offset = arrays["sdf"].offsets[4]
    arrays["sdf"].values[offset : offset + 200, 3] = np.nan
    names = [f"sphere_{i}" for i in range(6)]
    with Checkpoints(tmp_path) as checkpoints:
        train(loop, state, 10, checkpoints=checkpoints, bar=False)
        monkeypatch.setattr(loop, "batches", miniature.batches(arrays=arrays))
        state = miniature.fresh(loop)
        with pytest.raises(TrainingError, match=r"(loss|gradient) of step 1\d .*nan.*sphere_4"):
            train(loop, state, 50, checkpoints=checkpoints, save_every=0, names=names, bar=False)
    with Checkpoints(tmp_path) as checkpoints:
        kept = loop.restore(checkpoints, miniature.fresh(loop))
    assert int(kept[0].step) == 10 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parallel.host(kept[0])))


def test_dead_start_is_an_error(loop, state):
    last = f"lin{len(miniature.SPECS.dims)}"
    state.shared["params"][last]["bias"] = parallel.replicate(np.array([2.0], np.float32))
    with pytest.raises(TrainingError, match="dead start"):
        train(loop, state, 40, bar=False)


# The run


def test_log_has_what_a_run_shows(loop, state, tmp_path):
    log = Log(tmp_path / "log.jsonl")
    train(loop, state, 30, log=log, bar=False)
    entries = log.read()
    assert [entry["step"] for entry in entries] == sorted({entry["step"] for entry in entries})
    assert entries[-1]["step"] == 30 and entries[-1]["epoch"] == 30
    for entry in entries:
        assert {"loss", "error", "prior", "length", "clamped", "gradient", "rate", "waited", "seconds"} <= set(entry)
        assert all(np.isfinite(value) for value in entry.values()) and 0 <= entry["waited"] <= 1


def test_log_is_cut_and_torn_lines_are_forgotten(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in (10, 20, 30):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4')
    log.cut(20)
    assert log.path.read_text() == "".join(json.dumps({"step": step}) + "\n" for step in (10, 20))


def test_what_is_damaged_in_a_log_stops_no_run(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"step": 10}\n{"stfp": 20}\n{"step": "2"}\n[1]\n7\n\xff{"step"\n{"step": 30}\n')
    assert log.read() == [{"step": 10}, {"step": 30}]
    log.cut(30)
    assert log.read() == [{"step": 10}, {"step": 30}]


def test_best_state_is_kept_and_patience_ends_training(loop, state, tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    seen = []

    def validate(shared, per_shape, batch_stats):
        seen.append(jax.device_get(shared))
        return next(scores)

    with Checkpoints(tmp_path) as checkpoints:
        log = Log(tmp_path / "log.jsonl")
        arguments = dict(checkpoints=checkpoints, validate=validate, validate_every=5, patience=2, log=log, bar=False)
        end = train(loop, state, 40, **arguments)
        assert int(end.step) == 20 and [e["validation"] for e in log.read() if "validation" in e] == [
            0.1,
            0.5,
            0.4,
            0.3,
        ]
        best, history = loop.restore(checkpoints, end, best=True)
        assert (history["best"], history["best_step"], int(best.step)) == (0.5, 10, 10)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(best.shared), seen[1])
        again = train(loop, miniature.fresh(loop), 40, **arguments)  # has stopped, and stays so
        assert int(again.step) == 20 and len(seen) == 4


def test_each_row_is_kept_as_it_was_when_its_own_score_was_best(loop, state, tmp_path):
    """Also by a training that was stopped and resumed in between."""
    count = len(jax.tree.leaves(loop.per_shape(state))[0])
    scores = [np.full(count, score) for score in (0.1, 0.3, 0.2, math.nan)]
    scores[2][0] = 0.9
    seen = []

    def validate(shared, per_shape, batch_stats):
        seen.append(per_shape)
        return scores[len(seen) - 1]

    arguments = dict(validate=validate, validate_every=5, bar=False)
    with Checkpoints(tmp_path) as checkpoints:
        train(loop, state, 10, checkpoints=checkpoints, **arguments)
    with Checkpoints(tmp_path) as checkpoints:
        end = train(loop, miniature.fresh(loop), 20, checkpoints=checkpoints, **arguments)
        best, history = loop.restore(checkpoints, end, best=True)
    assert history["best"] == [0.9, *[0.3] * (count - 1)] and history["best_step"] == 15
    found = loop.per_shape(best)
    for rows, second, third in zip(*map(jax.tree.leaves, (found, seen[1], seen[2])), strict=True):
        np.testing.assert_array_equal(rows[0], third[0])
        np.testing.assert_array_equal(rows[1:], second[1:])
        assert not np.array_equal(second[0], third[0])


def test_a_best_state_that_has_gone_is_missed_at_once(loop, state, tmp_path):
    """Not after hours, when training ends and wants it."""
    arguments = dict(validate=lambda *_: 1.0, validate_every=5, bar=False)
    with Checkpoints(tmp_path) as checkpoints:
        train(loop, state, 10, checkpoints=checkpoints, **arguments)
    shutil.move(tmp_path / "best", tmp_path / "elsewhere")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="of step 5, is missing"):
        train(loop, miniature.fresh(loop), 20, checkpoints=checkpoints, **arguments)
    shutil.rmtree(tmp_path / "best")
    shutil.move(tmp_path / "elsewhere", tmp_path / "best")
    with Checkpoints(tmp_path) as checkpoints:
        assert int(train(loop, miniature.fresh(loop), 20, checkpoints=checkpoints, **arguments).step) == 20


def test_the_latest_state_is_kept_while_no_score_is_a_number(loop, state, tmp_path):
    scores = iter([math.nan, -math.inf, math.nan])
    with Checkpoints(tmp_path) as checkpoints:
        arguments = dict(checkpoints=checkpoints, validate=lambda *_: next(scores), validate_every=5, bar=False)
        end = train(loop, state, 15, **arguments)
        best, history = loop.restore(checkpoints, end, best=True)
        assert (history["best"], history["best_step"], int(best.step), history["stale"]) == (None, 15, 15, 3)
        scores = iter([0.2, math.nan, 0.1])
        end = train(loop, miniature.fresh(loop), 30, **arguments)
        best, history = loop.restore(checkpoints, end, best=True)
        assert (history["best"], int(best.step)) == (0.2, 20)


# Averages


@pytest.fixture(scope="module")
def averaging():
    """As `loop`, with averages whose decay is reached after 26 steps."""
    return miniature.make(ema_decay=0.75)


def test_averages_follow_their_formula_and_change_nothing_else(loop, averaging):
    plain, state, data = miniature.fresh(loop), miniature.fresh(averaging), averaging.batches.segment(0, 40)[0]
    expected = jax.device_get((state.shared, state.per_shape))
    for step in range(1, 41):
        state, _, _ = averaging.advance(state, data, 1, 40)
        if step == 1:  # two of eleven parts are left of the start
            now, (shared, _, _) = state.shared["params"]["lin0"]["bias"], averaging.evaluated(state)
            first = miniature.start(miniature.DECODER, 6)[0]["params"]["lin0"]["bias"]
            np.testing.assert_allclose(shared["params"]["lin0"]["bias"], 2 / 11 * first + 9 / 11 * now, atol=1e-7)
        kept = min(0.75, (1 + step) / (10 + step))
        values = jax.device_get((state.shared, state.per_shape))
        expected = jax.tree.map(lambda old, new, kept=kept: kept * old + (1 - kept) * new, expected, values)
    found = jax.device_get((state.ema["shared"], state.ema["per_shape"]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    plain, _, _ = loop.advance(plain, data, 40, 40)
    assert plain.ema is None and miniature.bits(plain) == miniature.bits(dataclasses.replace(state, ema=None))
    assert miniature.bits(loop.evaluated(plain)) == miniature.bits((plain.shared, loop.per_shape(plain), {}))


def test_averages_are_what_is_validated_kept_and_resumed(averaging, tmp_path, monkeypatch):
    """To the bit, also where the training is stopped halfway; each row in its own best state, too."""
    whole = miniature.bits(train(averaging, miniature.fresh(averaging), 20, bar=False))
    scores = {"all": [0.2, 0.9, 0.4, 0.3], "rows": np.full((4, 6), [[0.2], [0.9], [0.4], [0.3]])}
    scores["rows"][2, 5] = 1.0

    def trained(kind: str):
        seen, segment = [], averaging.batches.segment

        def validate(*values):
            seen.append(parallel.host(values))
            return scores[kind][len(seen) - 1]

        def stopping(first, limit):
            if first >= 10:
                raise InterruptedError
            return segment(first, limit)

        arguments = dict(validate=validate, validate_every=5, save_every=0.0, bar=False)
        with Checkpoints(tmp_path / kind) as checkpoints, monkeypatch.context() as patched:
            patched.setattr(averaging.batches, "segment", stopping)
            with pytest.raises(InterruptedError):
                train(averaging, miniature.fresh(averaging), 20, checkpoints=checkpoints, **arguments)
        with Checkpoints(tmp_path / kind) as checkpoints:
            end = train(averaging, miniature.fresh(averaging), 20, checkpoints=checkpoints, **arguments)
            best, _ = averaging.restore(checkpoints, end, best=True)
        assert miniature.bits(end) == whole and len(seen) == 4
        return averaging.evaluated(best), seen

    best, seen = trained("all")
    assert miniature.bits(best) == miniature.bits(seen[1])
    best, seen = trained("rows")
    np.testing.assert_array_equal(best[1], np.concatenate([seen[1][1][:5], seen[2][1][5:]]))


def test_checkpoints_without_averages_are_those_of_before(loop, averaging):
    def names(loop):
        return {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(loop.held(miniature.fresh(loop)))}

    assert names(loop) == {"shared", "per_shape_by_position", "opt_state", "step"}
    assert names(averaging) == names(loop) | {"ema"}


@pytest.mark.parametrize("last", [False, True])
def test_ctrl_c_keeps_what_was_learned(loop, state, tmp_path, monkeypatch, last):
    """Also in the last dispatch, after which nothing is left to train: what follows training is stopped."""
    whole = miniature.bits(train(loop, miniature.fresh(loop), 30, bar=False))
    segment, asked = loop.batches.segment, []

    def interrupted(first, limit):
        if (first + limit >= 30 if last else first >= 8) and not asked:
            asked.append(first)
            os.kill(os.getpid(), signal.SIGINT)
        return segment(first, limit)

    monkeypatch.setattr(loop.batches, "segment", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(KeyboardInterrupt, match=r"after step \d+ of 30; the same command continues") as said:
            train(loop, state, 30, checkpoints=checkpoints, bar=False)
        assert signal.getsignal(signal.SIGINT) == before and ("after step 30" in str(said.value)) == last
        end = train(loop, miniature.fresh(loop), 30, checkpoints=checkpoints, bar=False)
    assert miniature.bits(end) == whole


# Optimizers


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_optimizers_descend(name, compilations):
    config = Optimizer(name, shared=Schedule("cosine", 0.1), per_shape=Schedule("constant", 0.1))
    optimizer = config.build()
    target = {"shared": {"w": jnp.eye(4), "b": jnp.arange(4.0)}, "per_shape": jnp.ones((3, 2))}

    def value(learned):
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), learned, target)))

    @jax.jit
    def step(learned, opt_state, number):
        updates, opt_state = optimizer.update(
            jax.grad(value)(learned), opt_state, learned, epoch=1, progress=number / 200
        )
        return optax.apply_updates(learned, updates), opt_state

    learned = jax.tree.map(jnp.zeros_like, target)
    opt_state, first = optimizer.init(learned), value(learned)
    learned, opt_state = step(learned, opt_state, 0)
    with compilations() as seen:
        for number in range(1, 200):
            learned, opt_state = step(learned, opt_state, number)
    assert value(learned) < 0.03 * first and not seen


@pytest.mark.parametrize("shape", [(67, 128), (128, 61), (128, 1), (3, 3, 4, 8)])
def test_muon_is_the_one_of_optax(shape):
    """To rounding, which the steps for orthogonality enlarge."""
    inputs = tuple(range(len(shape) - 1))
    numbers = optax.contrib.MuonDimensionNumbers(inputs, len(inputs))
    theirs = optax.contrib.muon(-1.0, consistent_rms=0.2, muon_weight_dimension_numbers=lambda _: numbers)
    ours = muon(rms=0.2)
    kernel = jnp.zeros(shape)
    states = ours.init(kernel), theirs.init(kernel)
    for gradient in np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32):
        (one, first), (two, second) = (
            t.update(gradient, s, kernel) for t, s in zip((ours, theirs), states, strict=True)
        )
        states = first, second
        np.testing.assert_allclose(one, two, atol=2e-5 * np.abs(two).max())


def test_muon_evens_out_singular_values():
    left, right = (np.linalg.qr(a)[0] for a in np.random.default_rng(0).normal(size=(2, 32, 32)))
    values = np.geomspace(0.05, 1, 32)
    found = orthogonal(jnp.asarray(left * values @ right.T, jnp.float32))
    np.testing.assert_allclose(left.T @ found @ right, np.diag(np.diag(left.T @ found @ right)), atol=1e-4)
    assert 0.6 < np.diag(left.T @ found @ right).min() and np.diag(left.T @ found @ right).max() < 1.3


def test_clip_is_of_the_network_alone():
    optimizer = Optimizer(clip=1.0).build()
    learned = {"shared": {"w": jnp.zeros(4)}, "per_shape": jnp.zeros((2, 2))}
    gradients = jax.tree.map(lambda leaf: leaf + 30.0, learned)
    _, opt_state = optimizer.update(gradients, optimizer.init(learned), learned, epoch=1, progress=0.0)
    moments = {name: optax.tree.get(slot, "mu")[name] for name, slot in opt_state.inner_states.items()}
    np.testing.assert_allclose(jnp.linalg.norm(moments["shared"]["w"]), 0.1, rtol=1e-5)
    np.testing.assert_allclose(moments["per_shape"], 3.0, rtol=1e-5)


def test_cosine_ends_where_it_should():
    schedule = Schedule("cosine", 1e-2, final=1e-4)
    np.testing.assert_allclose([schedule(1, p) for p in (0.0, 0.5, 1.0, 1.5)], [1e-2, 5.05e-3, 1e-4, 1e-4], rtol=1e-5)
