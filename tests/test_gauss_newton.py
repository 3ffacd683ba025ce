"""Gauss-Newton's robust loss, and steps where everything else is float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_latents import load_chairs

from jonet.inference import gauss_newton, latents
from jonet.inference.first_order import Adam
from jonet.inference.gauss_newton import GaussNewton
from jonet.inference.latents import FitConfig


@pytest.mark.parametrize("smooth", [0.001, 0.03, 1.0])
def test_huber_is_the_absolute_value_without_its_kink(smooth):
    values = smooth * jnp.array([-2, -1, -0.5, 0, 0.5, 1, 2])
    wanted = [1.5, 0.5, 0.125, 0, 0.125, 0.5, 1.5]
    np.testing.assert_allclose(gauss_newton.huber(values, smooth) / smooth, wanted, rtol=1e-6)
    near = smooth * (1 + 1e-4 * jnp.array([-1, 1]))
    below, above = gauss_newton.huber(near, smooth)
    np.testing.assert_allclose(below, above, rtol=1e-3)
    values = smooth * jnp.array([-3, -0.7, 0.2, 5])
    slope = jax.vmap(jax.grad(lambda r: gauss_newton.huber(r, smooth)))(values)
    np.testing.assert_allclose(slope, values / np.maximum(np.abs(values), smooth), rtol=1e-5)


@pytest.mark.filterwarnings("error::FutureWarning")  # of values that are put into arrays of another type
@pytest.mark.parametrize("method", ["gauss_newton", "adam"])
def test_codes_are_the_same_where_float64_is_the_default(method):
    chairs, newton = load_chairs(), GaussNewton(points=(1024,), smooth=(0.01,), phases=(3,))
    config = FitConfig(method=method, gauss_newton=newton, adam=Adam(steps=20, rows=512, start="best"))
    known = {"prior": chairs.prior, "starts": chairs.codes, "config": config}
    plain = latents.fit(chairs.network, chairs.shared, {}, chairs.samples[:1, :1000], **known)
    with jax.enable_x64(True):
        found = latents.fit(chairs.network, chairs.shared, {}, chairs.samples[:1, :1000], **known)
    assert found.values.dtype == np.float32
    if method == "gauss_newton":  # Adam's rows are drawn by other bits
        np.testing.assert_allclose(found.values, plain.values, atol=2e-3)
    np.testing.assert_allclose(found.residual, plain.residual, rtol=0.2)
