"""Networks to fit: one trained on chairs, with chairs that it never saw, and one in closed form."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from paths import RECORDED

from jonet.inference.fitting import latents, observations
from jonet.inference.fitting.latents import Prior
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.field import Field
from jonet.settings.fitting import FitConfig, GaussNewton

QUICK = FitConfig(gauss_newton=GaussNewton(points=(1024, 3072), huber_epsilon=(0.03, 0.001), phases=(5, 8)))


def load_chairs():
    """A trained network with its codes, and four chairs that it never saw: samples to fit, others held out."""
    arrays = np.load(RECORDED / "latents" / "chairs.npz")
    params = {}
    for name in arrays.files:
        if name.startswith("param/"):
            _, layer, kind = name.split("/")
            params.setdefault(layer, {})[kind] = arrays[name].astype(np.float32)
    samples, surface = arrays["samples"].astype(np.float32), arrays["surface"].astype(np.float32)
    trained = arrays["codes"].astype(np.float32)
    specs = Specs(latent_size=16, dims=(64,) * 4, dropout=(), norm_layers=range(4), latent_in=(2,))
    return SimpleNamespace(
        network=BoundNetwork(DeepSDFDecoder(specs), {"params": params}),
        codes=trained,
        prior=Prior.of(trained),
        samples=samples[:, :3000],
        held_out=samples[:, 3000:],
        points=surface[..., :3],
        normals=surface[..., 3:],
    )


def fit(chairs, *arrays, config=QUICK, index=None, prior=None, starts=None, **observed):
    """Codes of arrays in the normalized frame, with what is known of the training codes."""
    shapes = observations.observe(observations.ObservedArrays.checked(*arrays, **observed), config, index)
    known = {"prior": chairs.prior if prior is None else prior, "starts": chairs.codes if starts is None else starts}
    return latents.fit(chairs.network, shapes, index, config=config, **known)


def of_samples(*arrays):
    return observations.observe(observations.ObservedArrays.checked(*arrays))


class Ellipsoids:
    """A network that is no network: half axes exp(code), and a field that is nearly their ellipsoid's distance."""

    specs = SimpleNamespace(latent_size=3)

    def fold(self, shared, batch_stats, code):
        per_shape = {"axes": shared * jnp.exp(code), "level": jnp.zeros(()), "box": jnp.array([[-1.0] * 3, [1.0] * 3])}
        return Field(None, per_shape, ellipsoid, inside=-1)


def ellipsoid(shared, per_shape, points):
    length = jnp.linalg.norm(points / per_shape["axes"], axis=1)
    return (length - 1) * length / jnp.linalg.norm(points / per_shape["axes"] ** 2, axis=1)
