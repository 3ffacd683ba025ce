"""The losses of Occupancy Networks against the published program's steps, and in closed form."""

import functools
import os
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from onet_recorded import Recorded, close, drawn, quickly, reproduce, trees
from paths import PYTHONPATH

from jonet import parallel
from jonet.networks.occupancy import Classifier, ClassifierSpecs, OccupancyNetwork, Specs, kl
from jonet.training import conditional, costs

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
    inputs: jax.Array | None = None
    weights: jax.Array | None = None


class Told(NamedTuple):
    """A network with the recorded noise as its latent noise, which stores its logits and divergence."""

    network: OccupancyNetwork
    noise: jax.Array | None
    told: dict

    @property
    def specs(self):
        return self.network.specs

    def apply(self, variables, points, occupancies, inputs, noise, reduction, mutable):
        noise = noise if self.noise is None else self.noise
        result = self.network.apply(variables, points, occupancies, inputs, noise, reduction, mutable=mutable)
        self.told["logits"], self.told["kl"] = result[0]
        return result


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "images" else ()) for n in MODELS])
def test_models_reproduce_the_program(name):
    specs, recorded = MODELS[name], Recorded(f"model_{name}")
    network = OccupancyNetwork(specs)
    data = recorded.group("data")
    inputs = data.get("inputs", np.zeros((3, 0), np.float32))
    inputs = np.moveaxis(inputs, 1, -1) if name == "images" else inputs
    batch = Batch(data["points"], data["points.occ"], np.arange(3), np.ones(3, np.float32), inputs)
    noise = recorded["eps"] if name == "vae" else None

    def own_rows(parameters):
        return parameters["encoder"]["kernel"].T[inputs] if name == "embedding" else ()

    def apply(parameters, batch_stats, arrays, reduction):
        told = {}
        total, (changed, metrics) = conditional.loss(
            *({"params": parameters}, own_rows(parameters), batch_stats, batch._replace(points=arrays["points"]), KEY),
            network=Told(network, noise, told),
            gather=lambda row: row,
            train=reduction is not None,
        )
        assert ("kl" in metrics) == (name == "vae")
        outputs = {"total": total}
        if reduction is not None:  # in evaluation the program's logits are those of the prior's mean: below
            outputs |= told if name == "vae" else {"logits": told["logits"]}
        return outputs, changed

    def loss(outputs, arrays):
        return outputs["total"] / 3

    like = jax.eval_shape(network.start, KEY)
    like = like[0]["params"], like[1]
    if name == "embedding":
        like = like[0] | {"encoder": {"kernel": jax.ShapeDtypeStruct((16, 6), np.float32)}}, like[1]
    reproduce(recorded, like, apply, loss, {"points": data["points"]})

    parameters, batch_stats = trees(recorded, like, "state")
    variables = {"params": parameters, "batch_stats": batch_stats}
    centers = (np.arange(32) + 0.5) / 32 - 0.5
    grid = np.stack(np.meshgrid(centers, centers, centers, indexing="ij"), -1).reshape(1, -1, 3).astype(np.float32)
    seen = own_rows(parameters) if name == "embedding" else inputs

    @quickly
    def scores(variables, seen):
        with jax.default_matmul_precision("highest"):
            c = network.apply(variables, seen, method="encode")
            codes = jnp.concatenate([jnp.zeros((3, specs.z_dim)), c], -1)
            asked = np.concatenate([data["points"], data["points_iou"], np.repeat(grid, 3, 0)], 1)
            logits, iou, voxels = jnp.split(network.apply(variables, asked, codes, method="decode"), [40, 100], 1)
            of = functools.partial(conditional.iou, threshold=specs.threshold)
            inside = data["voxels"].reshape(3, -1)
            return c, logits, of(iou, data["points_iou.occ"]).mean(), of(voxels, inside).mean()

    c, logits, iou, iou_voxels = scores(variables, seen)
    close(c, recorded["eval/c"], 2e-6, "c")
    close(logits, recorded["eval/logits"], 2e-6, "logits")
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
    def step(codes, opt_state, points, occupancies):
        batch = Batch(points, occupancies, jnp.arange(2), jnp.array([1.0, 0.0]))
        run = functools.partial(conditional.classifier_loss, {}, batch_stats={}, batch=batch, key=KEY, network=network)
        (total, _), gradient = jax.value_and_grad(run, has_aux=True)(codes)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(codes, updates), opt_state, total, gradient

    field = network.fold({}, {}, code_of("state"))
    close(field(recorded["input/p"][0]), recorded["before/logits"], 2e-6, "logits")
    assert field.per_shape["level"] == 0

    codes = jnp.stack([code_of("state"), jnp.ones(16_961)])  # the second shape is padding
    opt_state = optimizer.init(codes)
    with jax.default_matmul_precision("highest"):
        for i, (points, occupancies) in enumerate(zip(recorded["input/p"], recorded["input/occ"], strict=True)):
            codes, opt_state, total, gradient = step(
                codes, opt_state, np.stack([points] * 2), np.stack([occupancies] * 2)
            )
            np.testing.assert_allclose(total, recorded["losses"][i], rtol=2e-6)
            if i == 0:
                close(gradient[0], code_of("grad"), 2e-6, "gradient")
                sure = np.abs(code_of("grad")) > 1e-6
                close(np.where(sure, codes[0], 0), np.where(sure, code_of("after_1"), 0), 1e-6, "after one step")
    assert np.all(codes[1] == 1)


def vae(**settings):
    network = OccupancyNetwork(MODELS["vae"])
    shared, batch_stats = drawn(jax.eval_shape(network.start, KEY))
    points = np.random.default_rng(0).uniform(size=(4, 10, 3)).astype(np.float32)
    batch = Batch(points, points[..., 0] > 0.5, np.array([7, 3, 5, 1]), np.ones(4, np.float32))
    run = functools.partial(conditional.loss, shared, (), batch_stats, key=KEY, network=network, **settings)
    return quickly(lambda batch: run(batch=batch)), batch


def test_a_shapes_noise_depends_on_its_index_only():
    loss, batch = vae()
    total, (_, metrics) = loss(batch)
    turned, _ = loss(Batch(*(x[::-1] for x in batch[:4])))
    halves = [loss(Batch(*(x[part] for x in batch[:4])))[0] for part in (slice(2), slice(2, 4))]
    np.testing.assert_allclose([turned, sum(halves)], total, rtol=1e-6)
    np.testing.assert_allclose(metrics["cross_entropy"] + metrics["kl"], total, rtol=1e-6)
    renamed, _ = loss(batch._replace(index=np.array([7, 3, 5, 2])))
    assert renamed != total


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 4.0])
def test_the_divergence_counts_by_its_weight(weight):
    loss, batch = vae(kl_weight=weight)
    total, (_, metrics) = loss(batch)
    assert metrics["kl"] > 1
    np.testing.assert_allclose(total, metrics["cross_entropy"] + weight * metrics["kl"], rtol=1e-6)


def test_points_count_by_their_weights():
    loss, batch = vae()
    _, (_, metrics) = loss(batch)
    _, (_, doubled) = loss(batch._replace(weights=np.full((4, 10), 2, np.float32)))
    np.testing.assert_allclose(doubled["cross_entropy"], 2 * metrics["cross_entropy"], rtol=1e-6)
    parts = [np.arange(10) % 2 == i * np.ones((4, 1)) for i in range(2)]
    halves = [loss(batch._replace(weights=part.astype(np.float32)))[1][1]["cross_entropy"] for part in parts]
    np.testing.assert_allclose(sum(halves), metrics["cross_entropy"], rtol=1e-6)


def test_padding_weighs_nothing():
    loss, batch = vae()
    total, _ = loss(Batch(*(x[:3] for x in batch[:4])))
    padded, _ = loss(batch._replace(mask=np.array([1, 1, 1, 0], np.float32)))
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


@pytest.mark.parametrize("specs", MODELS.values(), ids=MODELS)
def test_a_start_has_what_the_loss_needs(specs):
    network = OccupancyNetwork(specs)
    shared, per_shape, batch_stats = jax.eval_shape(lambda: conditional.initial(network, 4, KEY))
    seen = {"points": (4, 30, 3), "voxels": (4, 32, 32, 32), "images": (4, 64, 64, 3)}
    seen = next((shape for name, shape in seen.items() if specs is MODELS[name]), (4, 0))
    batch = Batch(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in [(4, 9, 3), (4, 9), (4,), (4,), seen]))
    batch = batch._replace(index=jax.ShapeDtypeStruct((4,), np.int32))
    loss = functools.partial(conditional.loss, network=network, gather=lambda row: row)
    total, (changed, _) = jax.eval_shape(loss, shared, per_shape, batch_stats, batch, KEY)
    assert total.shape == () and jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, batch_stats)


def test_rows_start_by_their_index():
    network = Classifier(ClassifierSpecs(dims=(8,)))
    rows = [quickly(lambda n=n: conditional.initial(network, n, KEY)[1])() for n in (2, 3)]
    assert rows[1].shape == (3, 41)
    np.testing.assert_array_equal(rows[1][:2], rows[0])
    assert np.abs(rows[1][0] - rows[1][1]).max() > 0.1


@pytest.mark.parametrize("encoder, norms", [("pointnet_simple", 5), ("resnet18", 25)])
def test_a_batch_norm_has_one_collective_in_each_direction(encoder, norms):
    """Of count, sums and squares together, and of their gradients: 2 blocks have 5 norms, a ResNet-18 another 20."""
    network = OccupancyNetwork(Specs(encoder=encoder, c_dim=4, hidden_size=6, n_blocks=2, encoder_width=2))
    shared, per_shape, batch_stats = jax.eval_shape(lambda: conditional.initial(network, 4, KEY))
    assert sum(path[-1].key == "mean" for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats)) == norms
    seen = (4, 32, 32, 3) if encoder == "resnet18" else (4, 7, 3)
    batch = Batch(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in [(4, 9, 3), (4, 9), (4,), (4,), seen]))
    batch = batch._replace(index=jax.ShapeDtypeStruct((4,), np.int32))

    def value(shared, per_shape, batch_stats, batch):
        return conditional.loss(shared, per_shape, batch_stats, batch, KEY, network=network)

    gradient = jax.make_jaxpr(jax.grad(value, has_aux=True), axis_env=[(parallel.AXIS, 4)])
    traced = gradient(shared, per_shape, batch_stats, batch)
    assert collectives(traced.jaxpr) == {"all_gather": norms, "reduce_scatter": norms}


def collectives(jaxpr) -> Counter[str]:
    """The collectives of a traced function by name."""
    found = Counter(eqn.primitive.name for eqn in jaxpr.eqns if eqn.primitive.name in COLLECTIVES)
    for eqn in jaxpr.eqns:
        for inner in costs._inner(eqn):
            found += collectives(inner)
    return found


COLLECTIVES = ("psum", "all_gather", "reduce_scatter", "all_to_all", "ppermute")
DEVICES = """
import functools, os
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, optax
from onet_recorded import drawn
from jonet import parallel
from jonet.training.batches import Batch
from jonet.inference import encode
from jonet.networks.bound import BoundNetwork
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.training import conditional
from jonet.training.loop import State, train_step

specs = Specs(encoder="pointnet_simple", encoder_width=4, c_dim=5, hidden_size=6, n_blocks=1, z_dim=2)
network = OccupancyNetwork(specs)
like = jax.eval_shape(lambda: conditional.initial(network, 8, jax.random.key(0)))
shared, per_shape, batch_stats = jax.tree.map(lambda x: x.astype(np.float64), drawn(like))
rng = np.random.default_rng(0)
batch = Batch(
    rng.uniform(-1, 1, (8, 30, 3)), rng.uniform(size=(8, 30)) < 0.5, np.zeros(8, np.int32), np.arange(8), np.ones(8),
    np.ones(8, np.int32), rng.uniform(-1, 1, (8, 9, 3)),
)
batch.mask[6:] = 0  # empty lanes, of four devices all that the last has
optimizer = optax.with_extra_args_support(optax.adam(1e-3))
loss = functools.partial(conditional.loss, network=network)
results = []
for devices in (1, 2, 4):
    with parallel.use(devices):
        def run(shared, per_shape, batch_stats, batch):
            batch = batch._replace(row=jnp.arange(len(batch.mask)), epoch=batch.epoch[0])
            opt_state = optimizer.init({"shared": shared, "per_shape": per_shape})
            def step(state, i):
                key = jax.random.fold_in(jax.random.key(1), i)
                return train_step(loss, lambda rows: rows, optimizer, state, batch, key)
            state = State(shared, per_shape, batch_stats, opt_state, step=jnp.int32(0))
            state, metrics = jax.lax.scan(step, state, jnp.arange(500))
            return state.shared, state.batch_stats, metrics
        R, S = parallel.REPLICATED, parallel.SPLIT
        results.append(parallel.host(parallel.pmap(run, (R, S, R, S), R)(shared, per_shape, batch_stats, batch)))

def check(path, one, other):
    names = jax.tree_util.keystr(path)
    dead = "fc_p" in names or "fc_z" in names or "block0" in names and "fc_" in names
    if not (dead and names.endswith("['bias']")):  # a norm follows: rounding noise, which Adam turns into steps
        atol = 1e-6 if names.endswith("['mean']") else 1e-8  # running means have such biases in them
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=names)

for other in results[1:]:
    jax.tree_util.tree_map_with_path(check, results[0], other)
codes = []
for devices in (1, 2, 4):
    with parallel.use(devices):
        bound = BoundNetwork(network, shared, batch_stats)
        codes.append(encode.encode(bound, batch.inputs[:5], "points"))  # 2 and 4 do not divide 5
for other in codes[1:]:
    np.testing.assert_allclose(other, codes[0], rtol=0, atol=1e-12)
assert codes[0].shape == (5, specs.latent_size) and np.ptp(codes[0], axis=0).max() > 0

losses = results[0][2]["loss"]
assert losses.dtype == np.float64 and losses[-1] < losses[0], losses
print("equal")
"""


def test_one_two_and_four_devices_learn_and_encode_the_same():
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.stdout == "equal\n", found.stderr
