"""How a field's values change with its code: the rows of the Jacobian, one backward pass a point.

A code acts through the few own arrays that it folds into (DeepSDF: the biases of the layers that it enters).  One
backward pass gives ∂f/∂own at a point, [N, width] for N points, and ∂own/∂code is one matrix a shape, so that

    ∂f/∂code [N, L] = Σ over own arrays that depend on the code  ∂f/∂own [N, width] · ∂own/∂code [width, L]

costs little more than the value, whatever L is.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jonet.inference.jobs import Net


def along_code(net: Net, code) -> Callable:
    """points [N, 3] → values [N], gradients [N, 3] by point, Jacobian [N, L] by code, of the field of one code [L]."""

    def own_of(code):
        return jax.tree.leaves(net.fold(code).own)

    moved = _depends(own_of, code)

    def moving_of(code):
        return [leaf for leaf, moves in zip(own_of(code), moved, strict=True) if moves]

    field = net.fold(code)
    leaves, tree = jax.tree.flatten(field.own)
    matrices = jax.jacfwd(moving_of)(code)

    def value(moving, point):
        rest = iter(moving)
        own = tree.unflatten([next(rest) if moves else leaf for leaf, moves in zip(leaves, moved, strict=True)])
        return field.architecture(field.shared, own, point[None])[0]

    def rows(points):
        moving = [leaf for leaf, moves in zip(leaves, moved, strict=True) if moves]
        each = jax.vmap(jax.value_and_grad(value, argnums=(0, 1)), in_axes=(None, 0))
        values, (slopes, gradients) = each(moving, points)
        parts = (
            slope.reshape(len(points), -1) @ matrix.reshape(-1, code.shape[0])
            for slope, matrix in zip(slopes, matrices, strict=True)
        )
        return values, gradients, sum(parts, start=jnp.zeros((len(points), code.shape[0]), code.dtype))

    return rows


def _depends(function, argument) -> list[bool]:
    """Which results of a function depend on its argument at all, read from what it computes."""
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    reached = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(map(id, equation.outvars))
    return [id(variable) in reached for variable in jaxpr.outvars]
