"""One to four devices and two processes make the same updates, to rounding (see `device_runs.py`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def assert_equal(device_runs, one: str, other: str, atol: float):
    with np.load(device_runs / f"{one}.npz") as a, np.load(device_runs / f"{other}.npz") as b:
        both = set(a.files) & set(b.files)
        assert len(both) > 5 and any("codes" in name for name in both)
        for name in both:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("devices", [2, 4])
def test_float32_agrees_after_20_steps(device_runs, devices):
    assert_equal(device_runs, "float32_1", f"float32_{devices}", atol=1e-6)


@pytest.mark.parametrize("devices", [2, 4])
def test_float64_agrees_after_500_steps(device_runs, devices):
    assert_equal(device_runs, "float64_1", f"float64_{devices}", atol=1e-8)
    with np.load(device_runs / "float64_1.npz") as learned:
        assert learned["['codes']"].dtype == np.float64


@pytest.mark.parametrize("devices", [2, 4])
def test_no_more_shapes_than_a_batch_agree(device_runs, devices):
    """Three shapes, on two devices in a batch of three: lanes that stay empty fill the devices.  With averages."""
    assert_equal(device_runs, "few_1", f"few_{devices}", atol=1e-6)
    with np.load(device_runs / f"few_{devices}.npz") as learned:
        averages = [name for name in learned.files if name.startswith("['ema'][1]")]
        assert averages and not np.array_equal(learned[averages[0]], learned["['codes']"])


@pytest.mark.parametrize("devices", [3, 4])
def test_batches_that_do_not_divide_agree(device_runs, devices):
    """Sixteen of twenty shapes in a step, on three devices: the last has two empty lanes."""
    assert_equal(device_runs, "wide_1", f"wide_{devices}", atol=1e-6)


@pytest.mark.parametrize("shapes", ["few", "wide"])
def test_checkpoints_move_between_numbers_of_devices(device_runs, shapes):
    assert_equal(device_runs, f"{shapes}_1", f"{shapes}_moved", atol=1e-6)


def test_two_processes_agree_and_go_on_from_their_checkpoint(device_runs):
    assert_equal(device_runs, "float32_1", "processes", atol=1e-6)


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
