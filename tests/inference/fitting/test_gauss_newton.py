"""Gauss-Newton's robust loss, and steps where everything else is float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chairs import load_chairs

from jonet.inference.fitting import gauss_newton, latents
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.settings.fitting import Adam, FitConfig, GaussNewton


@pytest.mark.parametrize("huber_epsilon", [0.001, 0.03, 1.0])
def test_huber_is_the_absolute_value_without_its_kink(huber_epsilon):
    values = huber_epsilon * jnp.array([-2, -1, -0.5, 0, 0.5, 1, 2])
    wanted = [1.5, 0.5, 0.125, 0, 0.125, 0.5, 1.5]
    np.testing.assert_allclose(gauss_newton.huber(values, huber_epsilon) / huber_epsilon, wanted, rtol=1e-6)
    near = huber_epsilon * (1 + 1e-4 * jnp.array([-1, 1]))
    below, above = gauss_newton.huber(near, huber_epsilon)
    np.testing.assert_allclose(below, above, rtol=1e-3)
    values = huber_epsilon * jnp.array([-3, -0.7, 0.2, 5])
    slope = jax.vmap(jax.grad(lambda r: gauss_newton.huber(r, huber_epsilon)))(values)
    np.testing.assert_allclose(slope, values / np.maximum(np.abs(values), huber_epsilon), rtol=1e-5)


@pytest.mark.filterwarnings("error::FutureWarning")  # of values that are put into arrays of another type
@pytest.mark.parametrize("method", ["gauss_newton", "adam"])
def test_codes_are_the_same_where_float64_is_the_default(method):
    chairs, newton = load_chairs(), GaussNewton(points=(1024,), huber_epsilon=(0.01,), phases=(3,))
    config = FitConfig(method=method, gauss_newton=newton, adam=Adam(steps=20, rows=512, start="best"))
    known = {"prior": chairs.prior, "starts": chairs.codes, "config": config}
    shapes = observe(ObservedArrays.checked(chairs.samples[:1, :1000]), config)
    plain = latents.fit(chairs.network, shapes, **known)
    with jax.enable_x64(True):
        found = latents.fit(chairs.network, shapes, **known)
    assert found.values.dtype == np.float32
    if method == "gauss_newton":  # Adam's rows are drawn by other bits
        np.testing.assert_allclose(found.values, plain.values, atol=2e-3)
    np.testing.assert_allclose(found.residual, plain.residual, rtol=0.2)
