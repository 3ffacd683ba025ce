"""Occupancy Networks' layers, decoders, fields and sizes against the published program and against themselves."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onet_recorded import KEY, PUBLISHED, Recorded, close, drawn, each, find, quickly, reproduce, run, shapes_of, trees

from jonet import parallel
from jonet.errors import ConfigError, FormatError
from jonet.networks import occupancy
from jonet.networks.bound import BoundNetwork
from jonet.networks.encoders import ENCODERS
from jonet.networks.layers import BatchReduction, Norm, ResidualBlock
from jonet.networks.occupancy import ClassifierSpecs, OccupancyDecoder, OccupancyNetwork, Specs
from jonet.networks.published.pretrained import from_torch
from jonet.training.conditional import cross_entropy

SMALL = Specs(encoder="idx", c_dim=16, z_dim=8, hidden_size=32)
DECODERS = {
    "batchnorm": {"decoder": "batchnorm"},
    "cbatchnorm": {"z_dim": 0},
    "cbatchnorm2": {"decoder": "cbatchnorm2", "n_blocks": 3},
    "cbatchnorm_leaky": {"z_dim": 0, "leaky": True},
    "cbatchnorm_legacy": {"z_dim": 0},
    "cbatchnorm_noresnet": {"decoder": "cbatchnorm_noresnet"},
    "cbatchnorm_z": {},
    "simple": {"decoder": "simple"},
    "simple_leaky": {"decoder": "simple", "leaky": True},
    "simple_unconditional": {"decoder": "simple", "encoder": "null", "c_dim": 0},
}
LAYERS = {
    "cbn_batch": Norm(),
    "cbn_code_per_point": Norm(),
    "cbn_instance": Norm("instance"),
    "cbn_legacy": Norm(),
    "cresnet_instance": ResidualBlock(12, 12, "instance"),
    "cresnet_legacy": ResidualBlock(12, 12, "batch"),
    "cresnet_shortcut": ResidualBlock(14, 10, "batch"),
    "resnet_conv1d": ResidualBlock(14, 10, "batch"),
    "resnet_fc": ResidualBlock(14, 10),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_reproduce_the_program(name):
    layer, recorded = LAYERS[name], Recorded(f"layer_{name}")
    turned = name != "resnet_fc"  # the program's convolutions have points last

    def condition(inputs):
        c = inputs.get("c")
        return c.swapaxes(1, 2) if c is not None and c.ndim == 3 else c

    def apply(parameters, batch_stats, inputs, reduction):
        x = inputs["x"].swapaxes(1, 2) if turned else inputs["x"]
        y, changed = run(
            layer, parameters.get("bn", parameters), batch_stats, x, c=condition(inputs), reduction=reduction
        )
        return {"y": y.swapaxes(1, 2) if turned else y}, changed

    def loss(outputs, inputs):
        return jnp.square(outputs["y"] - inputs["target"]).sum((1, 2)).mean()

    inputs = recorded.group("input")
    x = inputs["x"].swapaxes(1, 2) if turned else inputs["x"]
    like = shapes_of(layer, x, c=condition(inputs))
    if not name.startswith("cbn"):
        return reproduce(recorded, like, apply, loss, inputs)

    def inside(state):  # a norm by itself goes by its name inside of a network
        return {f"bn.{key}": value for key, value in state.items()}

    def named(parameters, batch_stats, inputs, reduction):
        outputs, changed = apply(parameters["bn"], batch_stats.get("bn", {}), inputs, reduction)
        return outputs, {"bn": changed} if changed else {}

    like = {"bn": like[0]}, {"bn": like[1]} if like[1] else {}
    reproduce(recorded, like, named, loss, inputs, prepare=inside)


def decoder_case(name):
    specs = dataclasses.replace(SMALL, **DECODERS[name])
    recorded = Recorded(f"decoder_{name}")
    inputs = recorded.group("input")
    inputs = {key: inputs.get(key, np.zeros((recorded.shapes, 0), np.float32)) for key in ("p", "z", "c", "occ")}
    return specs, recorded, inputs, shapes_of(OccupancyDecoder(specs), inputs["p"], inputs["z"], inputs["c"])


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_reproduce_the_program(name):
    specs, recorded, inputs, like = decoder_case(name)

    def apply(parameters, batch_stats, inputs, reduction):
        arguments = inputs["p"], inputs["z"], inputs["c"]
        logits, changed = run(OccupancyDecoder(specs), parameters, batch_stats, *arguments, reduction=reduction)
        return {"logits": logits}, changed

    def loss(outputs, inputs):
        return cross_entropy(outputs["logits"], inputs["occ"]).sum(-1).mean()

    reproduce(recorded, like, apply, loss, inputs)


@pytest.mark.parametrize("name", DECODERS)
def test_a_field_is_its_network(name):
    specs, recorded, inputs, like = decoder_case(name)
    parameters, batch_stats = trees(recorded, like, "state")
    network = OccupancyNetwork(specs)
    codes = np.concatenate([inputs["z"], inputs["c"]], -1)
    fields = BoundNetwork(network, {"params": {"decoder": parameters}}, {"decoder": batch_stats}).fields(codes)
    with jax.default_matmul_precision("highest"):
        close(fields(inputs["p"]), recorded["eval/logits"], 2e-6, "logits")
        level = fields.per_shape["level"]
        np.testing.assert_allclose(level, math.log(0.2 / 0.8) * np.ones(3), rtol=1e-6)
        inside = recorded["eval/logits"] > math.log(0.2 / 0.8)
        far = np.abs(recorded["eval/logits"] - level[:, None]) > 1e-3
        np.testing.assert_array_equal(np.asarray(fields.contains(inputs["p"]))[far], inside[far])
    np.testing.assert_allclose(fields.box, [[-0.55] * 3, [0.55] * 3])
    shared = {leaf.shape for leaf in jax.tree.leaves(fields.shared)}
    assert (specs.hidden_size, specs.hidden_size) in shared and all(
        leaf.ndim < 4 for leaf in jax.tree.leaves(fields.per_shape)
    )


def test_the_published_width_reproduces_the_program():
    recorded = Recorded("decoder_cbatchnorm_full")
    specs = Specs(encoder="idx")
    p, c = recorded["input/p"], recorded["input/c"]
    z = np.zeros((len(p), 0), np.float32)
    parameters, batch_stats = trees(recorded, shapes_of(OccupancyDecoder(specs), p, z, c), "state")
    with jax.default_matmul_precision("highest"):
        logits, _ = quickly(lambda *trees: run(OccupancyDecoder(specs), *trees, p, z, c))(parameters, batch_stats)
    close(logits, recorded["eval/logits"], 2e-6, "logits")


def by_recipe(keys, seed):
    """Weights as the recorded recipe draws them: see `published_sizes_by_recipe` in the index."""
    state = {}
    for i, (name, shape) in enumerate(keys):
        if name.endswith("num_batches_tracked"):
            continue
        w = np.random.RandomState(seed + i).standard_normal(shape)
        if len(shape) > 1:
            w *= (0.3 if name.endswith(("gamma.weight", "beta.weight")) else 1) / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var"):
            w = np.exp(0.2 * w)
        else:
            w = 0.1 * w + name.endswith(("gamma.bias", ".weight"))
        state[name] = w.astype(np.float32)
    return state


def inputs_of(name):
    """What the recipe's networks see, in our layout."""

    def images(seed, size, count=2):
        x = np.random.RandomState(seed).random_sample((count, 3, size, size)).astype(np.float32)
        if count == 2:
            x[1] *= np.float32(0.3)
        return x.transpose(0, 2, 3, 1)

    if name == "pointcloud/onet":
        x = (np.random.RandomState(902).random_sample((2, 300, 3)) - 0.5).astype(np.float32)
        x[1] *= np.float32(0.3)
        return x
    if name == "voxels/onet":
        return Recorded("model_voxels")["data/inputs"][:2]
    if name == "unconditional/onet_cars":
        return np.zeros((2, 0), np.float32)
    if name.startswith("encoder"):
        return images(905, 224 if name == "encoder:simple_conv" else 64, 1)
    return images(901, 224) if name == "img/onet" else images(903, 64)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "ablation" in n else ()) for n in PUBLISHED]
)
def test_published_sizes_by_the_recipe(name):
    recorded, specs = Recorded("published_sizes_by_recipe"), PUBLISHED[name]
    published = json.loads(find("published_keys.json").read_text())[name]
    state = by_recipe(published["state"], recorded.facts["recipes"][name]["seed"])
    inputs = state.pop("encoder.weight")[[3, 1]] if specs.encoder == "idx" else inputs_of(name)
    network = OccupancyNetwork(specs)
    shared, batch_stats = jax.eval_shape(network.start, KEY)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shared))
    assert count + (5 * 512 if specs.encoder == "idx" else 0) == published["parameters"]
    shared["params"], batch_stats = from_torch(state, shared["params"], batch_stats)
    wanted = recorded.group(name.replace("/", "."))
    points, z = recorded["input/points"], np.zeros((2, 0), np.float32)
    if specs.z_dim:
        z = np.random.RandomState(904).standard_normal((2, 128)).astype(np.float32)

    @quickly
    def whole(shared, batch_stats, inputs, points, z):
        variables = {**shared, "batch_stats": batch_stats}
        with jax.default_matmul_precision("highest"):
            c = network.apply(variables, inputs, method="encode")
            per_shape = jax.vmap(lambda code: network.fold(shared, batch_stats, code).per_shape)(
                jnp.concatenate([z, c], -1)
            )
            one = network.fold(shared, batch_stats, jnp.concatenate([z, c], -1)[0])
            folded = jax.vmap(lambda per_shape, p: one.architecture(one.shared, per_shape, p))(per_shape, points)
            posterior = ()
            if specs.z_dim:
                posterior = network.apply(variables, points, wanted["occ"], c, method="infer")
            return c, network.apply(variables, points, jnp.concatenate([z, c], -1), method="decode"), folded, posterior

    c, logits, folded, posterior = jax.device_get(whole(shared, batch_stats, inputs, points, z))
    error = recorded.facts["recipes"][name]["float32_error_of_logits"]
    if c.size:
        close(c, wanted["c"], 4e-6, "c")
    close(logits, wanted["logits"], 4 * error, "logits", 1.0)
    close(folded, wanted["logits"], 4 * error, "the field's logits", 1.0)
    if posterior:
        close(posterior[0], wanted["q_mean"], 2e-6, "mean")
        close(np.exp(posterior[1]), wanted["q_std"], 2e-6, "σ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple_conv", "resnet34", "resnet50", "resnet101"])
def test_published_encoders_by_the_recipe(name):
    recorded = Recorded("published_sizes_by_recipe")
    published = json.loads(find("published_keys.json").read_text())[f"encoder:{name}"]
    encoder, images = ENCODERS[name](256), inputs_of(f"encoder:{name}")
    like = shapes_of(encoder, images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like[0])) == published["parameters"]
    state = by_recipe(published["state"], recorded.facts["recipes"][f"encoder {name}"]["seed"])
    parameters, batch_stats = from_torch(state, *like)
    with jax.default_matmul_precision("highest"):
        c, _ = quickly(lambda p, s, x: run(encoder, p, s, x))(parameters, batch_stats, images)
    close(c, recorded[f"{name}/c"], 4e-6, "c")


def test_a_fresh_network_ignores_its_condition_and_starts_as_published():
    decoder = OccupancyDecoder(dataclasses.replace(SMALL, n_blocks=1))
    points, codes = jnp.ones((2, 5, 3)), jnp.zeros((2, 8))
    condition = jax.random.normal(KEY, (2, 16))
    variables = quickly(decoder.init)(KEY, points, codes, condition)
    parameters = variables["params"]
    block = parameters["block0"]
    assert not np.any(block["fc_1"]["kernel"]) and np.any(block["fc_1"]["bias"])
    for norm in (block["bn_0"], parameters["bn"]):
        assert not np.any(norm["gamma"]["kernel"]) and not np.any(norm["beta"]["kernel"])
        assert np.all(norm["gamma"]["bias"] == 1) and not np.any(norm["beta"]["bias"])
    kernel, bias = block["fc_0"]["kernel"], block["fc_0"]["bias"]
    bound = 1 / math.sqrt(32)
    assert bound * 0.9 < max(np.abs(kernel).max(), np.abs(bias).max()) <= bound
    np.testing.assert_array_equal(variables["batch_stats"]["bn"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["bn"]["variance"], 1)
    logits = quickly(decoder.apply)(variables, points, codes, condition)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)


def test_batch_stats_ignore_masked_shapes_and_devices():
    network = OccupancyDecoder(dataclasses.replace(SMALL, n_blocks=1))
    rng = np.random.default_rng(1)
    points, z, c = (rng.standard_normal(shape).astype(np.float32) for shape in [(6, 20, 3), (6, 8), (6, 16)])
    weights = rng.standard_normal((6, 20)).astype(np.float32)
    parameters, batch_stats = drawn(shapes_of(network, points, z, c))

    def on(devices, shapes, mask):
        """Logits, batch_stats and the summed gradient, with the batch divided among devices."""

        def share_of(points, z, c, weights, mask):
            def value(parameters):
                reduction = BatchReduction(mask, parallel.gather)
                logits, changed = run(network, parameters, batch_stats, points, z, c, reduction=reduction)
                return jnp.sum(mask[:, None] * weights * logits), (logits, changed)

            gradient, (logits, changed) = jax.grad(value, has_aux=True)(parameters)
            return logits, changed, parallel.sum(gradient)

        arrays = (points[:shapes], z[:shapes], c[:shapes], weights[:shapes], np.asarray(mask, np.float32))
        dealt = (x.reshape(devices, -1, *x.shape[1:]) for x in arrays)
        logits, changed, gradient = quickly(jax.vmap(share_of, axis_name=parallel.AXIS))(*dealt)
        return logits.reshape(shapes, 20), *jax.tree.map(lambda x: x[0], (changed, gradient))

    wanted = on(1, 4, [1, 1, 1, 1])
    points[4:] *= 100
    ours = on(3, 6, [1, 1, 1, 1, 0, 0])
    close(ours[0][:4], wanted[0], 4e-6, "logits")
    for a, b in zip(ours[1:], wanted[1:], strict=True):
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
        each(a, b, lambda name, a, b, scale=scale: close(a, b, 4e-6, name, scale))


def test_running_statistics_follow_pytorch():
    x = jax.random.normal(KEY, (3, 5, 4)) * 2 + 1
    norm = Norm()
    start = quickly(norm.init)(KEY, x)
    y, changed = quickly(
        lambda x: run(norm, start["params"], start["batch_stats"], x, reduction=BatchReduction(jnp.ones(3)))
    )(x)
    rows = np.asarray(x).reshape(15, 4)
    np.testing.assert_allclose(changed["mean"], 0.1 * rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(changed["variance"], 0.9 + 0.1 * rows.var(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(y).reshape(15, 4), (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5
    )


def test_what_cannot_be_is_refused():
    for wrong in ({"decoder": "resnet"}, {"encoder": "null"}, {"c_dim": 0}, {"threshold": 1.0}, {"hidden_size": 0}):
        with pytest.raises(ConfigError):
            Specs(**wrong)
    with pytest.raises(ConfigError):
        ClassifierSpecs(dims=())


@pytest.mark.parametrize("decoder", ["cbatchnorm", "cbatchnorm_noresnet", "batchnorm"])
def test_instance_norms_are_folded_with_the_moments_of_a_fixed_draw(decoder):
    specs = dataclasses.replace(SMALL, norm="instance", decoder=decoder)
    network = OccupancyNetwork(specs)
    shared, batch_stats = drawn(network.start(jax.random.key(1)))
    codes = np.random.default_rng(0).normal(size=(3, specs.latent_size)).astype(np.float32)
    draw = jax.random.uniform(jax.random.key(0), (1, occupancy.DRAWN, 3), minval=-0.55, maxval=0.55)
    bound = BoundNetwork(network, shared, batch_stats)
    fields = bound.fields(codes)
    for i, code in enumerate(codes):  # at these points the plain network has the same moments
        plain = network.apply(shared, draw, code[None], method="decode")[0]
        np.testing.assert_allclose(fields[i](np.asarray(draw[0])), plain, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(bound.fold(code).at(draw[0, :5]), plain[:5], rtol=2e-4, atol=2e-4)
    one, few = fields[0](np.asarray(draw[0])), fields[0](np.asarray(draw[0, :7]))
    np.testing.assert_array_equal(one[:7], few)  # a value depends on its point only


def test_weights_that_do_not_fit_are_listed_on_both_sides():
    specs, recorded, inputs, like = decoder_case("simple")
    state = recorded.group("state")
    state["fc_p.bias"] = np.zeros(7, np.float32)
    state["fc_extra.weight"] = state.pop("block0.fc_0.weight")
    with pytest.raises(FormatError) as refusal:
        from_torch(state, *like)
    text = str(refusal.value)
    for line in ("- block0.fc_0.kernel [32, 32]", "+ fc_extra.kernel [32, 32]", "- fc_p.bias [32]", "+ fc_p.bias [7]"):
        assert line in text
