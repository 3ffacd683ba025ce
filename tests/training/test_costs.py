"""Operations and memory of traced training steps: closed forms, and what XLA's compiler finds."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.training import autodecoder, costs
from jonet.training.batches import Batch
from jonet.training.optimizers import Optimizer


def program(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_operations_of_products_and_convolutions():
    assert costs._operations(program(jnp.dot, zeros(5, 7), zeros(7, 3))) == {"float32": 2 * 5 * 7 * 3}
    bfloat16 = zeros(2, 5, 7, dtype=jnp.bfloat16), zeros(2, 7, 3, dtype=jnp.bfloat16)
    assert costs._operations(program(jnp.matmul, *bfloat16)) == {"bfloat16": 2 * 2 * 5 * 7 * 3}
    convolution = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    images, filters = zeros(2, 8, 8, 4), zeros(3, 3, 4, 6)
    assert costs._operations(program(convolution, images, filters)) == {"float32": 2 * (2 * 6 * 6 * 6) * (3 * 3 * 4)}


def test_loops_count_as_often_as_they_run():
    def looped(x, kernel):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, kernel), None), x, None, length=11)[0]

    assert costs._operations(program(looped, zeros(5, 7), zeros(7, 7))) == {"float32": 11 * 2 * 5 * 7 * 7}


def test_memory_is_what_is_alive_at_once():
    def chain(x):  # two of them at a time, beside the argument; views take nothing
        for _ in range(5):
            x = jnp.sin(x).reshape(4, 250).reshape(1000)
        return x

    assert costs._memory(program(chain, zeros(1000))) == 4000 + 2 * 4000

    def kept(x):  # all but the last are needed again
        parts = [jnp.sin(x)]
        for _ in range(4):
            parts.append(jnp.sin(parts[-1]))
        return functools.reduce(jnp.multiply, reversed(parts))

    assert costs._memory(program(kept, zeros(1000))) == 4000 + 6 * 4000


@pytest.mark.parametrize("micro_batch", [0, 4096])
def test_a_step_of_deepsdf(micro_batch):
    """Products of all layers, forward and twice backward; memory as XLA's compiler needs, within a factor of two."""
    shapes, points, width = 4, 4096, 64
    specs = Specs(latent_size=8, dims=(width,) * 4, dropout=(), norm_layers=(), latent_in=())
    decoder = DeepSDFDecoder(specs)
    shared, codes = autodecoder.initial(decoder, 6, jax.random.key(0))
    settings = autodecoder.AutoDecoder(micro_batch=micro_batch)
    loss = functools.partial(autodecoder.loss, decoder=decoder, settings=settings)
    lookup = functools.partial(autodecoder.lookup, bound=1.0)
    ids = zeros(shapes, dtype=jnp.int32)
    batch = Batch(zeros(shapes, points, 3), zeros(shapes, points), ids, ids, zeros(shapes), zeros(dtype=jnp.int32))
    learned = {"shared": shared, "per_shape": codes}
    found = costs.of_step(loss, lookup, Optimizer().build(), learned, None, batch)
    layers = 3 * width * width + width  # and 3 · width for points, 8 · width once a shape
    assert found.operations["float32"] == pytest.approx(6 * shapes * points * (layers + 3 * width), rel=0.1)

    def value(learned, batch):
        return loss(learned["shared"], learned["per_shape"][:shapes], {}, batch, jax.random.key(0))[0]

    compiled = jax.jit(jax.grad(value)).lower(learned, batch).compile().memory_analysis()
    assert 0.5 < found.memory / (compiled.temp_size_in_bytes + compiled.argument_size_in_bytes) < 2
