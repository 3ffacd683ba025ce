"""The losses of Occupancy Networks against the published program's steps, and in closed form."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from onet_recorded import Recorded, close, quickly, reproduce, trees

from jonet.networks.occupancy import Classifier, ClassifierSpecs, OccupancyNetwork, Specs, kl
from jonet.training import conditional

KEY = jax.random.key(0)
MODELS = {
    "points": Specs(encoder="pointnet_resnet", c_dim=16, hidden_size=32, encoder_width=16),
    "voxels": Specs(encoder="voxel_simple", c_dim=16, hidden_size=32, encoder_width=2),
    "images": Specs(encoder="resnet18", c_dim=16, hidden_size=32, encoder_width=8),
    "embedding": Specs(encoder="idx", c_dim=16, hidden_size=32, threshold=0.5),
    "vae": Specs(decoder="simple", encoder="null", c_dim=0, z_dim=8, hidden_size=32),
}


class Batch(NamedTuple):
    points: jax.Array
    values: jax.Array
    index: jax.Array
    mask: jax.Array


class Told(NamedTuple):
    """A network that takes the recorded noise for its own, and tells its logits and divergence."""

    network: OccupancyNetwork
    noise: jax.Array | None
    told: dict

    @property
    def specs(self):
        return self.network.specs

    def apply(self, variables, points, occupancies, inputs, noise, share, mutable):
        noise = noise if self.noise is None else self.noise
        result = self.network.apply(variables, points, occupancies, inputs, noise, share, mutable=mutable)
        self.told["logits"], self.told["kl"] = result[0]
        return result


@pytest.mark.parametrize("name", MODELS)
def test_models_reproduce_the_program(name):
    specs, recorded = MODELS[name], Recorded(f"model_{name}")
    network = OccupancyNetwork(specs)
    data = recorded.group("data")
    batch = Batch(data["points"], data["points.occ"], np.arange(3), np.ones(3, np.float32))
    inputs = {"points": data["points"], "inputs": data.get("inputs", np.zeros((3, 0), np.float32))}
    if name == "images":
        inputs["inputs"] = np.moveaxis(inputs["inputs"], 1, -1)
    noise = recorded["eps"] if name == "vae" else None

    def apply(parameters, statistics, inputs, share):
        own = parameters["encoder"]["kernel"].T[inputs["inputs"]] if name == "embedding" else ()
        told = {}
        total, (changed, metrics) = conditional.loss(
            *({"params": parameters}, own, statistics, batch._replace(points=inputs["points"]), KEY),
            network=Told(network, noise, told),
            inputs=lambda batch, key: inputs["inputs"],
            over_devices=lambda tree: tree,
            train=share is not None,
        )
        assert ("kl" in metrics) == (name == "vae")
        outputs = {"logits": told["logits"], "total": total}
        if name == "vae" and share is not None:
            outputs["kl"] = told["kl"]
        return outputs, changed

    def loss(outputs, inputs):
        return outputs["total"] / 3

    like = jax.eval_shape(network.start, KEY)
    like = like[0]["params"], like[1]
    if name == "embedding":
        like = like[0] | {"encoder": {"kernel": jax.ShapeDtypeStruct((16, 6), np.float32)}}, like[1]
    reproduce(recorded, like, apply, loss, {k: v for k, v in inputs.items()})

    parameters, statistics = trees(recorded, like, "state")
    variables = {"params": parameters, "statistics": statistics}
    centres = (np.arange(32) + 0.5) / 32 - 0.5
    grid = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), -1).reshape(1, -1, 3).astype(np.float32)
    seen = parameters["encoder"]["kernel"].T[inputs["inputs"]] if name == "embedding" else inputs["inputs"]

    @quickly
    def scores(variables, seen):
        with jax.default_matmul_precision("highest"):
            c = network.apply(variables, seen, method="encode")
            codes = jnp.concatenate([jnp.zeros((3, specs.z_dim)), c], -1)
            points = network.apply(variables, data["points_iou"], codes, method="decode")
            voxels = network.apply(variables, np.repeat(grid, 3, 0), codes, method="decode")
            inside = data["voxels"].reshape(3, -1)
            of = functools.partial(conditional.iou, threshold=specs.threshold)
            return c, of(points, data["points_iou.occ"]).mean(), of(voxels, inside).mean()

    c, iou, iou_voxels = scores(variables, seen)
    if c.size:
        close(c, recorded["eval/c"], 2e-6, "c")
    np.testing.assert_allclose(iou, recorded["eval_step/iou"], rtol=1e-6)
    np.testing.assert_allclose(iou_voxels, recorded["eval_step/iou_voxels"], rtol=1e-6)


def test_kl_is_the_recorded_closed_form():
    recorded = Recorded("prior_kl")
    divergence = kl(recorded["mean"], recorded["logstd"])
    np.testing.assert_allclose(divergence, recorded["kl"], rtol=1e-6, atol=1e-6)
    assert divergence[0] == 0  # the prior itself


def test_the_classifier_trains_as_recorded():
    recorded = Recorded("classifier_single_shape")
    network = Classifier()

    def code_of(prefix):
        state = recorded.group(prefix)
        layers = [(state[f"{i}.weight"].T.ravel(), state[f"{i}.bias"]) for i in range(0, 12, 2)]
        return np.concatenate([part for layer in layers for part in layer])

    optimizer = optax.adam(1e-3)

    @quickly
    def step(codes, slots, points, occupancies):
        batch = Batch(points, occupancies, jnp.arange(2), jnp.array([1.0, 0.0]))
        run = functools.partial(conditional.classifier_loss, {}, statistics={}, batch=batch, key=KEY, network=network)
        (total, _), gradient = jax.value_and_grad(run, has_aux=True)(codes)
        updates, slots = optimizer.update(gradient, slots)
        return optax.apply_updates(codes, updates), slots, total, gradient

    codes = jnp.stack([code_of("state"), jnp.ones(16_961)])  # the second shape is padding
    slots = optimizer.init(codes)
    with jax.default_matmul_precision("highest"):
        for i, (points, occupancies) in enumerate(zip(recorded["input/p"], recorded["input/occ"], strict=True)):
            codes, slots, total, gradient = step(codes, slots, np.stack([points] * 2), np.stack([occupancies] * 2))
            np.testing.assert_allclose(total, recorded["losses"][i], rtol=2e-6)
            if i == 0:
                close(gradient[0], code_of("grad"), 2e-6, "gradient")
                sure = np.abs(code_of("grad")) > 1e-6
                close(np.where(sure, codes[0], 0), np.where(sure, code_of("after_1"), 0), 1e-6, "after one step")
    assert np.all(codes[1] == 1)


def vae():
    network = OccupancyNetwork(MODELS["vae"])
    shared, statistics = network.start(KEY)
    keys = jax.random.split(KEY, 2)
    points = jax.random.uniform(keys[0], (4, 10, 3))
    batch = Batch(points, (points[..., 0] > 0.5), jnp.array([7, 3, 5, 1]), jnp.ones(4))
    return functools.partial(conditional.loss, shared, (), statistics, key=KEY, network=network), batch


def test_a_shapes_noise_is_its_own_wherever_it_lies():
    loss, batch = vae()
    total, (_, metrics) = loss(batch=batch)
    turned, _ = loss(batch=Batch(*(x[::-1] for x in batch)))
    halves = [loss(batch=Batch(*(x[part] for x in batch)))[0] for part in (slice(2), slice(2, 4))]
    np.testing.assert_allclose([turned, sum(halves)], total, rtol=1e-6)
    np.testing.assert_allclose(metrics["cross_entropy"] + metrics["kl"], total, rtol=1e-6)
    renamed, _ = loss(batch=batch._replace(index=jnp.array([7, 3, 5, 2])))
    assert renamed != total


def test_padding_weighs_nothing():
    loss, batch = vae()
    total, _ = loss(batch=Batch(*(x[:3] for x in batch)))
    padded, _ = loss(batch=batch._replace(mask=jnp.array([1.0, 1, 1, 0])))
    np.testing.assert_allclose(padded, total, rtol=1e-6)


def test_iou_of_a_batch():
    logits = jnp.array([[2.0, 2, -2, -2], [-2, -2, -2, -2], [-2, -2, -2, -2], [-1, -1, -1, -1]])
    inside = jnp.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(conditional.iou(logits, inside, 0.5), [1 / 3, 1, 0, 0])
    np.testing.assert_allclose(conditional.iou(logits, inside, 0.2), [1 / 3, 1, 0, 1])  # logit(0.2) is -1.39


def test_cross_entropy_survives_sure_logits():
    logits = jnp.array([-200.0, 200.0, 0.0, 200.0])
    errors = conditional.cross_entropy(logits, jnp.array([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(errors, [0, 0, np.log(2), 200], atol=1e-6)


@pytest.mark.parametrize("specs", [*MODELS.values(), ClassifierSpecs()], ids=[*MODELS, "classifier"])
def test_a_start_has_what_the_loss_needs(specs):
    network = (Classifier if isinstance(specs, ClassifierSpecs) else OccupancyNetwork)(specs)
    shared, own, statistics = conditional.initial(network, 3, KEY)
    assert len(own) == 3 and jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), (shared, statistics)))
    again = conditional.initial(network, 2, KEY)
    np.testing.assert_array_equal(again[1], own[:2])
