"""Encoders against the published program, and each faster way against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onet_recorded import Recorded, close, reproduce
from test_occupancy import KEY, run, shapes_of

from jonet.networks import resnet
from jonet.networks.convolutions import Convolution, convolve, convolve_by_slices
from jonet.networks.encoders import ENCODERS, LatentEncoder, ResnetPointnet, SimplePointnet, VoxelEncoder
from jonet.networks.layers import Share

CASES = {
    "pointnet_resnet": ResnetPointnet(16, width=16),
    "pointnet_simple": SimplePointnet(16, width=16),
    "voxel_simple_w2": VoxelEncoder(16, width=2),
    "resnet18_w8": ENCODERS["resnet18"](16, width=8),
}


def squared(outputs, inputs):
    return jnp.square(outputs["c"] - inputs["target"]).sum(-1).mean()


@pytest.mark.parametrize("name", CASES)
def test_encoders_reproduce_the_program(name):
    encoder, recorded = CASES[name], Recorded(f"encoder_{name}")
    images = name.startswith("resnet")
    inputs = recorded.group("input")

    def apply(parameters, statistics, inputs, share):
        x = jnp.moveaxis(inputs["x"], 1, -1) if images else inputs["x"]
        c, changed = run(encoder, parameters, statistics, x, share=share)
        return {"c": c}, changed

    x = np.moveaxis(inputs["x"], 1, -1) if images else inputs["x"]
    reproduce(recorded, shapes_of(encoder, x), apply, squared, inputs)


@pytest.mark.parametrize("name", ["encoder_latent", "encoder_latent_leaky_unconditional"])
def test_latent_encoders_reproduce_the_program(name):
    recorded = Recorded(name)
    encoder = LatentEncoder(8, leaky="leaky" in name)
    inputs = recorded.group("input")

    def apply(parameters, statistics, inputs, share):
        mean, logstd = encoder.apply({"params": parameters}, inputs["p"], inputs["occ"], inputs["c"])
        return {"mean": mean, "logstd": logstd}, statistics

    def loss(outputs, inputs):
        names = ("mean", "logstd")
        return sum(jnp.square(outputs[name] - inputs[f"target_{name}"]).sum(-1) for name in names).mean()

    reproduce(recorded, shapes_of(encoder, inputs["p"], inputs["occ"], inputs["c"]), apply, loss, inputs)


def test_images_are_normalised_as_published():
    recorded = Recorded("imagenet_normalisation")
    x = np.moveaxis(recorded["input/x"], 1, -1)
    ours = (x - np.array(resnet.MEAN)) / np.array(resnet.DEVIATION)
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), recorded["output/x"], atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(side=st.integers(3, 7), stride=st.integers(1, 2), channels=st.integers(1, 3))
def test_convolution_by_slices_is_the_platforms(side, stride, channels):
    keys = jax.random.split(KEY, 3)
    x = jax.random.normal(keys[0], (2, side, side + 1, side, channels))
    kernel = jax.random.normal(keys[1], (3, 3, 3, channels, 4))

    def value(convolution):
        def weighted(x, kernel):
            y = convolution(x, kernel, stride)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(x, kernel)

    (_, ours), gradients = value(convolve_by_slices)
    (_, wanted), theirs = value(convolve)
    for a, b in zip([ours, *gradients], [wanted, *theirs], strict=True):
        close(a, b, 2e-6, "convolution")


def test_a_volume_goes_by_slices_here_and_by_the_platform_elsewhere():
    layer = Convolution(4, stride=2, padding=1)
    x = jax.random.normal(KEY, (2, 8, 8, 8, 3))
    parameters = layer.init(KEY, x)["params"]
    wanted = convolve(jnp.pad(x, [(0, 0), *[(1, 1)] * 3, (0, 0)]), parameters["kernel"], 2) + parameters["bias"]
    close(jax.jit(lambda p: layer.apply({"params": p}, x))(parameters), wanted, 2e-6, "volume")
    text = (
        jax.jit(lambda p: layer.apply({"params": p}, x)).trace(parameters).lower(lowering_platforms=("cuda",)).as_text()
    )
    assert "stablehlo.convolution" in text


@pytest.mark.parametrize("name", ["pointnet_resnet", "pointnet_simple"])
def test_a_cloud_is_a_set(name):
    """The order of points, and points given twice, change nothing."""
    encoder = CASES[name]
    cloud = jax.random.normal(KEY, (2, 20, 3))
    parameters = encoder.init(KEY, cloud)["params"]
    c = encoder.apply({"params": parameters}, cloud)
    close(encoder.apply({"params": parameters}, cloud[:, ::-1]), c, 1e-6, "order")
    close(encoder.apply({"params": parameters}, jnp.concatenate([cloud, cloud[:, :7]], 1)), c, 1e-6, "twice")


def test_padding_does_not_count_in_an_image_encoders_statistics():
    encoder = ENCODERS["resnet18"](8, width=4, blocks=(1, 1))
    images = jax.random.uniform(KEY, (4, 32, 32, 3))
    variables = encoder.init(KEY, images)
    trees = variables["params"], variables["statistics"]
    wanted, statistics = run(encoder, *trees, images[:3], share=Share(jnp.ones(3)))
    c, changed = run(encoder, *trees, images.at[3].mul(9.0), share=Share(jnp.array([1.0, 1, 1, 0])))
    close(c[:3], wanted, 4e-6, "c")
    jax.tree.map(lambda a, b: close(a, b, 4e-6, "statistics"), changed, statistics)


def test_the_published_101_is_a_50():
    one, other = (
        jax.eval_shape(ENCODERS[name](16).init, KEY, jnp.zeros((1, 64, 64, 3))) for name in ("resnet50", "resnet101")
    )
    assert jax.tree.map(lambda x: x.shape, one) == jax.tree.map(lambda x: x.shape, other)
