"""Gauss-Newton's robust loss, and steps where everything else is float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jonet.inference import gauss_newton


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
