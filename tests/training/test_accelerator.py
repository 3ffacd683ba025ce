"""Training as it is written for accelerators, run on a CPU: the same updates as a CPU's variant, to rounding."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from jonet import parallel
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.tasks import deepsdf
from jonet.training import autotune
from jonet.training.autodecoder import AutoDecoder
from jonet.training.loop import Loop
from jonet.training.microbatches import cut
from jonet.training.optimizers import Optimizer, Schedule, muon

pytestmark = pytest.mark.unoptimized
TPU, GPU = parallel.Platform("tpu", 16 << 30), parallel.Platform("gpu", 80 << 30)
PUBLISHED = Specs(latent_size=4, dims=(16,) * 4, dropout=(0, 1, 2), norm_layers=(0, 1, 2), latent_in=(2,))
OTHER = dataclasses.replace(PUBLISHED, weight_norm=False, xyz_in_all=True, latent_dropout=True, use_tanh=True)


def prepared(specs: Specs, points: int = 32) -> tuple[Loop, object]:
    """The loop of the task on spheres, for the platform at hand, and a state before the first step."""
    rate = Schedule("constant", 5e-3)
    config = dataclasses.replace(
        deepsdf.TASK.presets["quick"],
        network=specs,
        optimizer=Optimizer("adam", rate, rate, clip=1.0),
        batch_shapes=4,
        batch_points=points,
        compute_dtype="float32",
    )
    store, key = SimpleNamespace(arrays=miniature.spheres(6)), jax.random.key(2)
    setup = deepsdf.TASK.training_setup(config, store, np.arange(6), key, {})
    assert setup.loss.keywords["decoder"].axis == (0 if parallel.platform().is_cpu else -1)
    loop = Loop(setup.loss, setup.optimizer.build(), setup.batches, key, lookup=setup.lookup)
    return loop, loop.start(setup.shared, setup.per_shape, {})


@pytest.mark.parametrize("platform", [TPU, GPU], ids=["tpu", "gpu"])
@pytest.mark.parametrize("specs", [PUBLISHED, OTHER], ids=["published", "other"])
def test_twenty_steps_agree(specs, platform):
    """Of the task's own set-up: units last, with the same units dropped."""

    def learned():
        loop, state = prepared(specs)
        data, _ = loop.batches.segment(0, 20)
        state, *_ = loop.advance(state, data, 20, 20)
        return state.shared, loop.per_shape(state)

    here = learned()
    with parallel.assuming(platform):
        there = learned()
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_the_step_lowers_for_tpu_and_cuda():
    with parallel.assuming(TPU):
        loop, state = prepared(PUBLISHED)
        data, _ = loop.batches.segment(0, 1)
        arguments = (state, data, loop.key, np.int32(1), np.int32(1))
        loop.advance(jax.tree.map(jnp.copy, state), data, 1, 1)
        exported = jax.export.export(loop.dispatch.jitted(), platforms=("tpu", "cuda"))(*arguments)
    assert exported.platforms == ("tpu", "cuda")


# Muon's matrices


SHAPES = [(67, 128), (128, 128), (128, 61), (128, 128), (128, 1), (3, 3, 4, 8), (8, 36), (5, 5)]


@pytest.mark.parametrize("dtype, atol", [(np.float32, 5e-6), (np.float64, 1e-13)])
def test_stacked_matrices_make_the_same_updates(dtype, atol):
    """Whatever their shapes, to rounding, which the steps enlarge; and the state of one goes on in the other."""
    rng = np.random.default_rng(0)
    parameters = {str(i): np.zeros(shape, dtype) for i, shape in enumerate(SHAPES)}
    with jax.enable_x64(dtype == np.float64):
        one, other = muon(), muon(stacked=True)
        state = one.init(parameters)
        for _ in range(3):
            gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), parameters)
            (a, next_state), (b, same) = (jax.jit(rule.update)(gradient, state) for rule in (one, other))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                assert x.dtype == y.dtype == dtype
                np.testing.assert_allclose(x, y, rtol=0, atol=atol)
            jax.tree.map(np.testing.assert_array_equal, next_state, same)
            state = same


def products(platform: parallel.Platform) -> tuple[int, object]:
    """How many products of matrices Muon takes for matrices of one length, and the structure of its state."""
    parameters = {"shared": [jnp.zeros(shape) for shape in SHAPES[:5]], "per_shape": jnp.zeros((2, 3))}
    with parallel.assuming(platform):
        optimizer = Optimizer("muon").build()
    state = optimizer.init(parameters)
    update = jax.make_jaxpr(lambda: optimizer.update(parameters, state, parameters, epoch=1, progress=0.0))
    return str(update()).count("dot_general["), jax.tree.structure(state)


def test_matrices_of_one_length_are_one_product():
    (here, state), (there, same) = products(parallel.Platform("cpu", 1 << 30)), products(GPU)
    assert (here, there) == (5 * 15, 15) and state == same


# Pieces


@pytest.fixture
def asked(monkeypatch):
    """Which pieces are compiled and which are timed: large ones are faster and take a kilobyte a point."""
    seen = {"compiled": [], "timed": []}

    class Trial:
        def __init__(self, decoder, shared, several, size, settings):
            self.size, self.memory = size, 1024 * size
            seen["compiled"].append(size)

        def seconds(self):
            seen["timed"].append(self.size)
            return 1 / self.size

    monkeypatch.setattr(autotune, "_Trial", Trial)
    return seen


def chosen(platform: parallel.Platform, shapes: int = 64, points: int = 16384) -> int:
    with parallel.assuming(platform):
        return autotune.micro_batch(DeepSDFDecoder(Specs()), None, shapes, points, AutoDecoder())


def test_the_fastest_piece_that_fits_is_taken(asked):
    assert chosen(TPU) == chosen(GPU) == 1 << 20 and sorted(asked["timed"][:4]) == [8192, 32768, 65536, 1 << 20]
    for memory, size in ((1 << 30, 65536), (100 << 20, 32768), (30 << 20, 8192), (1 << 20, 8192)):
        assert chosen(parallel.Platform("gpu", memory)) == chosen(parallel.Platform("tpu", memory)) == size


def test_small_batches_stay_whole(asked):
    assert chosen(TPU, 16, 64) == chosen(GPU, 2, 4096) == 0 and not asked["compiled"]


def test_nothing_is_timed_where_no_device_is(asked):
    def absent(platform):
        asked["compiled"].clear()
        with parallel.absent(jax.devices(), platform):
            return autotune.micro_batch(DeepSDFDecoder(Specs()), None, 64, 16384, AutoDecoder()), asked["compiled"]

    assert absent(TPU) == (8192, [8192])
    assert absent(GPU) == (1 << 20, [1 << 20])
    assert absent(parallel.Platform("gpu", 100 << 20)) == (32768, [1 << 20, 65536, 32768])
    assert not asked["timed"]


def test_pieces_are_measured_with_the_platforms_program():
    decoder = DeepSDFDecoder(Specs(latent_size=2, dims=(8,), dropout=(0,), norm_layers=(), latent_in=()), axis=-1)
    shared, _ = miniature.start(decoder, 2)
    with parallel.assuming(TPU):
        size = autotune.micro_batch(decoder, shared, 3, 4096, AutoDecoder())
    assert size in (4096, 3 * 4096) and cut(3, 4096, size) in ((1, 4096), (3, 4096))
