"""Surfaces to extract without a trained network: octahedra, which any network computes with six units of a layer.

a |x| + b |y| + c |z| - r is a sum of ramps.  They have as many crossed edges as the chairs of the preset quick of
deepsdf have on average, and so as many blocks and vertices.  But all blocks are found at once, and all vertices by one
secant, of which chairs need a second for some.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jonet.inference.surfaces import cells, device, grid
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs

RADIUS = 0.65  # 21,000 crossed edges at 128³
WEIGHTS = (1, 0.93, 1.06)  # a, b, c
SHAPES, RESOLUTION = 16, 128  # of one call of a device: as many as `jonet.inference.surfaces.device` takes together
VERTICES = 21_000  # of each, at most
SECANTS = 12  # at most, as `extract` does
# of the loops on an accelerator, by their names in the program; the test counts them
PASSES = {
    "blocks": {"coarsest": 2, "bounds": 4, "centers": 1, "flood": 1, "new_blocks": 46},
    "meshes": {"project": 1, "moving": 6, "normals": 11},
}


def network(specs: Specs) -> BoundNetwork:
    """A DeepSDF with weight norm whose fields are octahedra, whatever the code."""
    module, units = DeepSDFDecoder(specs), np.arange(6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, specs.latent_size)), jnp.zeros((1, 1, 3)))
    layers = {}
    for k in range(len(specs.dims) + 1):
        name, last = f"lin{k}", k == len(specs.dims)
        layer = {part: np.zeros(leaf.shape, np.float32) for part, leaf in shapes["params"][name].items()}
        kernel = layer["kernel"]
        if k == 0:  # x, -x, y, …: of the point, which is behind the code
            kernel[specs.latent_size + units // 2, units] = 1 - 2.0 * (units % 2)
        elif last:
            kernel[:6, 0], layer["bias"][:] = np.repeat(WEIGHTS, 2), -RADIUS
        else:
            kernel[units, units] = 1
        if "scale" in layer:  # columns of weight norm have a direction even where they are nothing
            layer["scale"][:] = np.linalg.norm(kernel, axis=0)
            kernel[0] += layer["scale"] == 0
        layers[name] = layer
    return BoundNetwork(module, {"params": layers})


def evaluator(bound: BoundNetwork, shapes: int = SHAPES, resolution: int = RESOLUTION) -> grid.FieldEvaluator:
    """The fields of `shapes` octahedra and their grids."""
    fields = bound.fields(np.zeros((shapes, bound.latent_size), np.float32))
    return grid.FieldEvaluator(fields, grid.lattice(fields, resolution), np.zeros(shapes, np.float32))


def dealt(given: grid.FieldEvaluator) -> device.Dealt:
    """The arguments of the search for blocks, as of `jonet.inference.surfaces.device.extract`."""
    return device.deal(given, cells.COARSE, None)
