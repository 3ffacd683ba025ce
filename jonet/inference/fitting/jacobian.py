"""The Jacobian of a field's values with respect to its code, with one backward pass per point.

A code acts only through the per-shape arrays that `network.fold` computes from it and names in `Field.code_dependent`
(DeepSDF: the biases of the layers that the code enters).  For N points one backward pass each gives ∂f/∂array, and
∂array/∂code is one matrix per shape.  By the chain rule

    ∂f/∂code [N, L] = Σ over code-dependent arrays  ∂f/∂array [N, size] · ∂array/∂code [size, L],

which costs little more than the values, whatever L is.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jonet.networks.bound import BoundNetwork


def along_code(network: BoundNetwork, code) -> Callable:
    """A function of points [N, 3] for the field of one code [L].

    It returns values [N], their gradients by point [N, 3], and their Jacobian by code [N, L].
    """
    chex.assert_shape(code, (network.latent_size,))
    field = network.fold(code)
    names = field.per_shape if field.code_dependent is None else field.code_dependent

    def arrays_of(code):
        per_shape = network.fold(code).per_shape
        return {name: per_shape[name] for name in names}

    arrays = {name: field.per_shape[name] for name in names}
    by_code = jax.jacfwd(arrays_of)(code)  # the same tree as `arrays`, each leaf with a trailing axis L

    def value(arrays, point):
        return field.architecture(field.shared, field.per_shape | arrays, point[None])[0]

    def rows(points):
        chex.assert_shape(points, (None, 3))
        value_and_gradients = jax.vmap(jax.value_and_grad(value, argnums=(0, 1)), in_axes=(None, 0))
        values, (by_array, by_point) = value_and_gradients(arrays, points)
        products = (
            left.reshape(len(points), -1) @ right.reshape(-1, code.shape[0])
            for left, right in zip(jax.tree.leaves(by_array), jax.tree.leaves(by_code), strict=True)
        )
        return values, by_point, sum(products, start=jnp.zeros((len(points), code.shape[0]), code.dtype))

    return rows
