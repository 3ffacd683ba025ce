"""Encoders against the published program, and each faster implementation against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onet_recorded import KEY, Recorded, close, drawn, each, quickly, reproduce, run, shapes_of

from jonet.networks import resnet
from jonet.networks.convolutions import Convolution, convolve, convolve_by_blocks
from jonet.networks.encoders import ENCODERS, LatentEncoder, ResnetPointnet, SimplePointnet, VoxelEncoder
from jonet.networks.layers import BatchReduction
from jonet.networks.occupancy import OccupancyNetwork, Specs

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

    def apply(parameters, batch_stats, inputs, reduction):
        x = jnp.moveaxis(inputs["x"], 1, -1) if images else inputs["x"]
        c, changed = run(encoder, parameters, batch_stats, x, reduction=reduction)
        return {"c": c}, changed

    x = np.moveaxis(inputs["x"], 1, -1) if images else inputs["x"]
    reproduce(recorded, shapes_of(encoder, x), apply, squared, inputs)


@pytest.mark.parametrize("name", ["encoder_latent", "encoder_latent_leaky_unconditional"])
def test_latent_encoders_reproduce_the_program(name):
    recorded = Recorded(name)
    encoder = LatentEncoder(8, leaky="leaky" in name)
    inputs = recorded.group("input")

    def apply(parameters, batch_stats, inputs, reduction):
        mean, logstd = encoder.apply({"params": parameters}, inputs["p"], inputs["occ"], inputs["c"])
        return {"mean": mean, "logstd": logstd}, batch_stats

    def loss(outputs, inputs):
        names = ("mean", "logstd")
        return sum(jnp.square(outputs[name] - inputs[f"target_{name}"]).sum(-1) for name in names).mean()

    reproduce(recorded, shapes_of(encoder, inputs["p"], inputs["occ"], inputs["c"]), apply, loss, inputs)


def test_images_are_normalized_as_published():
    recorded = Recorded("imagenet_normalisation")
    x = np.moveaxis(recorded["input/x"], 1, -1)
    ours = (x - np.array(resnet.MEAN)) / np.array(resnet.DEVIATION)
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), recorded["output/x"], atol=1e-6)


@pytest.mark.parametrize(("stride", "channels"), [(1, 1), (2, 3)])
def test_convolution_by_blocks_is_the_platforms(stride, channels):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape) for shape in [(2, 7, 8, 5, channels), (3, 3, 3, channels, 4)])

    @quickly
    def both(x, kernel):
        def results(convolution):
            y, back = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
            return y, *back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        return results(convolve_by_blocks), results(convolve)

    for ours, wanted in zip(*both(x, kernel), strict=True):
        close(ours, wanted, 2e-6, "convolution")


def test_a_volume_goes_by_blocks_here_and_by_the_platform_elsewhere():
    layer = Convolution(4, stride=2, padding=1)
    x = jax.random.normal(KEY, (2, 8, 8, 8, 3))
    parameters, _ = drawn(shapes_of(layer, x))

    def volume(parameters):
        return layer.apply({"params": parameters}, x)

    wanted = convolve(jnp.pad(x, [(0, 0), *[(1, 1)] * 3, (0, 0)]), parameters["kernel"], 2) + parameters["bias"]
    close(quickly(volume)(parameters), wanted, 2e-6, "volume")
    lowered = {p: jax.jit(volume).trace(parameters).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "stablehlo.convolution" in lowered["cuda"] and "stablehlo.convolution" not in lowered["cpu"]


@pytest.mark.parametrize("name", ["pointnet_resnet", "pointnet_simple"])
def test_a_cloud_is_a_set(name):
    """The order of points, and points given twice, change nothing."""
    encoder = CASES[name]
    cloud = np.random.default_rng(0).standard_normal((2, 20, 3)).astype(np.float32)
    parameters, _ = drawn(shapes_of(encoder, cloud))
    cloud = np.concatenate([cloud, cloud, cloud[:, ::-1], cloud[:, [*range(20)]]], 0)
    cloud[2:4, 12:] = cloud[2:4, :8]  # the first twelve alone, some of them twice
    cloud[6:8, 12:] = cloud[6:8, 4:12]
    c = quickly(lambda cloud: encoder.apply({"params": parameters}, cloud))(cloud)
    close(c[4:6], c[:2], 1e-6, "order")
    close(c[6:8], c[2:4], 1e-6, "twice")


def test_padding_does_not_count_in_an_image_encoders_batch_stats():
    encoder = ENCODERS["resnet18"](8, width=4, blocks=(1, 1))
    images = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    trees = drawn(shapes_of(encoder, images))
    trained = quickly(lambda x, mask: run(encoder, *trees, x, reduction=BatchReduction(mask)))
    wanted, batch_stats = trained(images[:3], np.ones(3, np.float32))
    images[3] *= 9
    c, changed = trained(images, np.array([1, 1, 1, 0], np.float32))
    close(c[:3], wanted, 4e-6, "c")
    each(changed, batch_stats, lambda name, a, b: close(a, b, 4e-6, name))


def test_blocks_with_the_activation_last_are_their_formula():
    """shortcut(x) + ReLU(fc_1(fc_0(x))), with the maximum over the cloud beside each point's features."""
    encoder = ENCODERS["pointnet_resnet_post"](5, width=6, blocks=2)
    cloud = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    parameters, _ = drawn(shapes_of(encoder, cloud))

    def linear(name, x, tree=parameters):
        return x @ tree[name]["kernel"] + tree[name].get("bias", 0)

    x = linear("fc_pos", cloud)
    for i in range(2):
        block = parameters[f"block_{i}"]
        x = np.maximum(linear("fc_1", linear("fc_0", x, block), block), 0) + linear("shortcut", x, block)
        pooled = x.max(1, keepdims=True)
        x = np.concatenate([x, np.broadcast_to(pooled, x.shape)], -1)
    c = quickly(lambda cloud: encoder.apply({"params": parameters}, cloud))(cloud)
    close(c, linear("fc_c", np.maximum(pooled[:, 0], 0)), 2e-6, "c")
    fresh = quickly(encoder.init)(KEY, cloud)["params"]
    assert all(np.any(fresh[f"block_{i}"]["fc_1"]["kernel"]) for i in range(2))


def test_the_published_101_is_a_50_and_the_full_one_torchvisions():

    one, other = (
        jax.eval_shape(ENCODERS[name](16).init, KEY, jnp.zeros((1, 64, 64, 3))) for name in ("resnet50", "resnet101")
    )
    assert jax.tree.map(lambda x: x.shape, one) == jax.tree.map(lambda x: x.shape, other)
    full = jax.eval_shape(ENCODERS["resnet101_full"](1000).init, KEY, jnp.zeros((1, 64, 64, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(full)) == 44_549_160  # torchvision.models.resnet101
    convolutions = sum(name.startswith("conv") for block in full.values() for name in block)
    assert convolutions + 2 == 101  # and the first one, and fc


@pytest.mark.parametrize("name", [*ENCODERS, "idx", "null"])
def test_every_encoder_starts_and_conditions_a_decoder(name):
    network = OccupancyNetwork(Specs(encoder=name, c_dim=0 if name == "null" else 8, hidden_size=4, n_blocks=1))
    shared, batch_stats = jax.eval_shape(network.start, KEY)
    assert ("encoder" in shared["params"]) == (name in ENCODERS)
    assert ("encoder" in batch_stats) == name.startswith("resnet")
