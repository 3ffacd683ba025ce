"""The mapping over devices on one device; `test_devices` has more of them."""

import jax
import numpy as np
import pytest

from jonet import parallel


def test_keys_are_folded_by_name_and_number():
    key = jax.random.key(3)

    def data(*names):
        return jax.random.key_data(parallel.fold_in(key, *names)).tolist()

    assert (
        data("step", 1)
        == data("step", np.int32(1))
        == jax.jit(lambda i: jax.random.key_data(parallel.fold_in(key, "step", i)))(1).tolist()
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
        with pytest.raises(ValueError, match=f"{count} devices requested"), parallel.use(count):
            pass


def test_a_single_process_takes_what_it_found():
    value = {"steps": 3}
    assert parallel.from_main(value) is value


def test_for_absent_devices_only_shapes_are_computed(compilations):
    mapped = parallel.pmap(
        lambda x: {"y": (x.sum(), x)}, (parallel.SPLIT,), {"y": (parallel.REPLICATED, parallel.SPLIT)}
    )
    with parallel.absent(jax.devices()[:1], parallel.Platform("tpu", 1 << 30)), compilations() as seen:
        total, same = mapped(parallel.split(np.ones((4, 2), np.float32)))["y"]
    assert not seen and isinstance(total, jax.ShapeDtypeStruct)
    assert (total.shape, same.shape, same.dtype) == ((), (4, 2), np.float32)
    assert (total.sharding.spec, same.sharding.spec) == (parallel.REPLICATED, parallel.SPLIT)
