"""The mapping over devices: here on one, and what `device_runs.py` left of four devices and of two processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jonet import parallel


def test_keys_are_folded_by_name_and_number():
    key = jax.random.key(3)

    def data(*names):
        return jax.random.key_data(parallel.fold(key, *names)).tolist()

    assert (
        data("step", 1)
        == data("step", np.int32(1))
        == jax.jit(lambda i: jax.random.key_data(parallel.fold(key, "step", i)))(1).tolist()
    )
    assert len({tuple(data(*names)) for names in [("a",), ("b",), ("a", 0), ("a", 1), ("b", 0), (0, "a"), ()]}) == 7


def test_arrays_go_to_the_devices_and_back():
    tree = {"x": np.arange(6.0).reshape(3, 2), "n": np.int32(4), "b": np.array([True])}
    for place in (parallel.replicate, lambda tree: {**parallel.replicate(tree), "x": parallel.split(tree["x"])}):
        back = parallel.host(place(tree))
        assert {name: leaf.dtype for name, leaf in back.items()} == {"x": np.float32, "n": np.int32, "b": bool}
        jax.tree.map(np.testing.assert_array_equal, back, tree)
    key = parallel.replicate(jax.random.key(5))
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(5)).tolist()


def test_mapped_functions_compile_once_and_take_memory(compilations):
    mapped = parallel.pmap(lambda x, n: x * n, (parallel.SPLIT, parallel.REPLICATED), parallel.SPLIT, donate=(0,))
    first = parallel.split(np.ones(4, np.float32))
    np.testing.assert_array_equal(mapped(first, np.float32(2)), 2 * np.ones(4))
    assert first.is_deleted()
    again, three = parallel.split(np.ones(4, np.float32)), np.float32(3)
    with compilations() as seen:
        mapped(again, three)
    assert not seen
    with compilations() as seen:
        mapped(parallel.split(np.ones(5, np.float32)), three)
    assert len(seen) == 1


def test_use_limits_the_devices():
    everything = parallel.count()
    with parallel.use(1):
        assert parallel.count() == 1 and parallel.mesh().size == 1
    assert parallel.count() == everything
    for count in (0, everything + 1):
        with pytest.raises(ValueError, match=f"{count} devices asked for"), parallel.use(count):
            pass


@pytest.mark.parametrize("kind", ["1", "2", "4", "processes"])
def test_collectives(device_runs, kind):
    """Sums, gathers and places; and the gradient of a loss with a sum inside is that of the whole loss."""
    x = np.linspace(-1, 2, 8).astype(np.float32)

    def whole(weights):
        return jnp.sum((x * weights[1] - jnp.sum(x * weights[0]) / 8) ** 2)

    with np.load(device_runs / f"collectives_{kind}.npz") as got:
        np.testing.assert_allclose(got["sum"], x.sum(), rtol=1e-6)
        np.testing.assert_array_equal(got["gather"], x)
        np.testing.assert_array_equal(got["index"], np.arange({"processes": 2}.get(kind) or int(kind)))
        np.testing.assert_allclose(got["gradient"], jax.grad(whole)(jnp.array([2.0, 3.0])), rtol=1e-5)
        assert got["agreed"] == 2.5 and got["taken"].all()


def test_a_single_process_takes_what_it_found():
    value = {"steps": 3}
    assert parallel.from_main(value) is value
