"""DeepSDF against recorded outputs of the published program (tests/recorded/deepsdf)."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deepsdf_recorded import CASES, FOLDER, below
from miniature import once

from jonet import parallel
from jonet.errors import ConfigError
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.training import autodecoder
from jonet.training.autodecoder import AutoDecoder
from jonet.training.batches import Batch
from jonet.training.loop import State, train_step
from jonet.training.optimizers import Optimizer, Schedule

SMALL = [name for name in CASES if name.startswith("small_")]
DROPOUT = [name for name in CASES if name.startswith("dropout_")]


def known(tree: dict, like: dict) -> dict:
    """Without the layer norms that the published program holds and never applies."""
    return {layer: leaves for layer, leaves in tree.items() if layer in like}


def outputs(decoder):
    """(shared, codes, points) → distances by the network, by its fold, and the fold's gradients by the point."""

    def values(shared, codes, points):
        field = BoundNetwork(decoder, shared).fold_all(codes)
        slopes = jax.vmap(lambda one, points: jax.grad(lambda p: one.at(p).sum())(points), (field.axes, 0))
        folded = jax.vmap(lambda one, points: one.at(points), (field.axes, 0))
        return decoder.apply(shared, codes, points), folded(field, points), slopes(field, points)

    return values


class Case:
    """A recorded network with its parameters and settings."""

    def __init__(self, name: str, path: Path):
        case = CASES[name]
        with np.load(path) as file:
            self.recorded = {key: file[key] for key in file.files}
        self.decoder = DeepSDFDecoder(Specs(latent_size=case["code_length"], **case["network_specs"]))
        like = jax.eval_shape(self.decoder.init, jax.random.key(0), self["codes"], self["points"])["params"]
        self.parameters = known(below(self.recorded, "param/"), like)
        self.shared = {"params": self.parameters}
        self.settings = AutoDecoder(
            clamp=case.get("clamping_distance", 0.1),
            prior_weight=case.get("code_regularization_lambda", 0.01),
            code_bound=case.get("code_bound", 0.0),
        )
        self.batches = case.get("batches", [list(range(len(self["codes"])))])
        self.rates = case.get("learning_rates", (0.0, 0.0))

    def __getitem__(self, key):
        return self.recorded[key]

    def tree(self, prefix):
        return known(below(self.recorded, prefix), self.parameters)

    def batch(self, rows) -> Batch:
        """A batch of the largest size; the places that are left hold no shape and must change nothing."""
        size = max(map(len, self.batches))
        mask = (np.arange(size) < len(rows)).astype(np.float32)
        place = np.resize(rows, size).astype(np.int32)
        row = np.where(mask, place, len(self["codes"])).astype(np.int32)  # beyond the table: never written
        return Batch(self["points"][place], self["sdf"][place], row, place, mask, np.int32(40))

    @functools.cached_property
    def outputs(self):
        """The compiled `outputs`, and what it gives for the recorded parameters."""
        return once(outputs(self.decoder), self.shared, self["codes"], self["points"])

    def plain(self) -> DeepSDFDecoder:
        """The decoder without dropout, as the training steps were recorded."""
        specs = {**vars(self.decoder.specs), "dropout": (), "latent_dropout": False}
        return DeepSDFDecoder(Specs(**specs))

    def step(self):
        """One training step on one device, jitted: (state, batch) → (state, metrics)."""
        constant = [Schedule("constant", rate) for rate in self.rates]
        optimizer = Optimizer(shared=constant[0], per_shape=constant[1]).build()
        loss = functools.partial(autodecoder.loss, decoder=self.plain(), settings=self.settings)
        lookup = functools.partial(autodecoder.lookup, bound=self.settings.code_bound)
        step = functools.partial(train_step, loss, lookup, optimizer)
        with parallel.use(1):
            mapped = parallel.pmap(step, (parallel.REPLICATED,) * 3, parallel.REPLICATED)
        state = State(self.shared, self["codes"], {}, None, np.int32(0))
        opt_state = optimizer.init({"shared": state.shared, "per_shape": state.per_shape})
        return mapped, state.replace(opt_state=opt_state)


@pytest.fixture(scope="module", params=[*SMALL, "published"])
def case(request):
    if request.param != "published":
        return Case(request.param, FOLDER / f"{request.param}.npz")
    path = Path(os.environ.get("JONET_DATA", "")) / "reference" / "deepsdf" / "published.npz"
    if not path.exists():
        pytest.skip("the published size (6.9 MB) needs JONET_DATA")
    return Case("published", path)


@pytest.fixture(autouse=True)
def full_float32():
    with jax.default_matmul_precision("highest"):
        yield


def assert_trees_close(got, wanted, rtol=0.0, atol=0.0):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_outputs(case):
    """Distances and their gradients by the point, by the network and by its fold."""
    distances, folded, gradients = case.outputs[1]
    np.testing.assert_allclose(distances, case["eval"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(folded, case["eval"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradients, case["d_eval_d_points"], rtol=1e-4, atol=5e-6)


def test_training_steps(case):
    """Three steps: renorm at lookup, loss, gradient, dense Adam on codes, and what the network has become."""
    step, state = case.step()
    step, _ = once(step, state, case.batch(case.batches[0]), jax.random.key(0))
    settings, published = case.settings, "grad_part/lin0.bias" in case.recorded
    for number, rows in enumerate(case.batches, 1):
        rows = np.array(rows)
        looked_up = np.array(state.per_shape)
        looked_up[rows] = autodecoder.lookup(looked_up[rows], bound=settings.code_bound)
        np.testing.assert_allclose(looked_up, case[f"step{number}/codes_after_lookup"], rtol=0, atol=2e-6)
        state, metrics = step(state, case.batch(rows), jax.random.key(0))
        moments = {name: optax.tree.get(opt_state, "mu") for name, opt_state in state.opt_state.inner_states.items()}
        if number == 1:  # Adam's first moment is then a tenth of the gradient
            gradient = jax.tree.map(
                lambda mu: 10 * mu, (moments["shared"]["shared"], moments["per_shape"]["per_shape"])
            )
            np.testing.assert_allclose(gradient[1], case["step1/code_grad"], rtol=1e-4, atol=1e-7)
            if not published:
                assert_trees_close(gradient[0]["params"], case.tree("grad/"), rtol=1e-4, atol=1e-7)
            for part, array in torch_parts(case, gradient[0]["params"]).items():
                np.testing.assert_allclose(array, case[f"grad_part/{part}"], rtol=1e-4, atol=1e-6, err_msg=part)
        for ours, theirs in {"loss": "loss", "error": "loss_data", "prior": "loss_reg"}.items():
            np.testing.assert_allclose(metrics[ours], case[f"step{number}/{theirs}"], rtol=1e-5)
        near = np.abs(case[f"step{number}/code_grad"]) > 1e-6  # else the first Adam steps are ill-conditioned
        codes = np.array(state.per_shape)
        np.testing.assert_allclose(codes[near], case[f"step{number}/codes_after"][near], rtol=0, atol=2e-6)
        np.testing.assert_allclose(codes, case[f"step{number}/codes_after"], rtol=0, atol=number * case.rates[1])
    if published:
        for part, array in torch_parts(case, state.shared["params"]).items():
            sure = np.abs(case[f"grad_part/{part}"]) > 1e-6
            np.testing.assert_allclose(array[sure], case[f"step1/param_part/{part}"][sure], rtol=0, atol=2e-6)
    else:
        wanted, sure = case.tree("step3/param/"), case.tree("grad/")
        for layer, leaves in wanted.items():
            for name, array in leaves.items():
                got, steep = np.array(state.shared["params"][layer][name]), np.abs(sure[layer][name]) > 1e-6
                np.testing.assert_allclose(got[steep], array[steep], rtol=0, atol=2e-6, err_msg=f"{layer}.{name}")
                np.testing.assert_allclose(got, array, rtol=0, atol=3 * case.rates[0], err_msg=f"{layer}.{name}")
    after = case.outputs[0](state.shared, state.per_shape, case["points"])[0]
    np.testing.assert_allclose(after, case["eval_after"], rtol=0, atol=5e-5 if published else 5e-6)


def torch_parts(case, tree) -> dict:
    """The recorded entries of the published size: each array as PyTorch lays it out, every max(1, size // 256)-th."""
    parts = {}
    for key in case.recorded:
        if key.startswith("grad_part/"):
            layer, name = key.removeprefix("grad_part/").split(".")
            leaf = np.asarray(tree[layer][{"weight_g": "scale", "bias": "bias"}.get(name, "kernel")])
            flat = (leaf.T if leaf.ndim == 2 else leaf).ravel()
            parts[f"{layer}.{name}"] = flat[:: max(1, flat.size // 256)][:256]
    return parts


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_with_recorded_masks(name):
    case = Case(name, FOLDER / f"{name}.npz")
    probability = CASES[name]["probabilities"]

    def masks(layer, rate, shape):
        assert rate == probability[layer]
        recorded = case[f"mask/{layer}"].reshape(*shape[1:], shape[0])  # with the units last
        return np.moveaxis(recorded, -1, 0) > 0, 1 / (1 - rate)

    np.testing.assert_allclose(case.outputs[1][0], case["eval"], rtol=0, atol=2e-6)

    def loss(shared, codes):
        output = case.decoder.apply(shared, codes, case["points"], masks)
        gap = jnp.abs(autodecoder.clamped(output, 0.1) - autodecoder.clamped(case["sdf"], 0.1))
        return jnp.mean(gap) + jnp.mean(autodecoder.penalty(codes, 40, 1, case.settings)), output

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    _, ((value, output), gradient) = once(step, case.shared, case["codes"])
    np.testing.assert_allclose(output, case["train_output"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient[1], case["code_grad"], rtol=1e-4, atol=1e-7)
    assert_trees_close(gradient[0]["params"], case.tree("grad/"), rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def scalars():
    with np.load(FOLDER / "scalars.npz") as file:
        return {key: file[key] for key in file.files}


def test_code_prior(scalars):
    """λ · min(1, epoch / 100) · mean ‖z‖ over the samples' codes; zero, not NaN, in slope at z = 0."""
    codes = scalars["reg_codes"][scalars["reg_rows"]]
    for epoch, wanted in zip(scalars["epochs"], scalars["reg_values"], strict=True):
        got = jnp.mean(autodecoder.penalty(codes, epoch, 1, AutoDecoder(prior_weight=1e-4)))
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    slope = jax.grad(lambda z: autodecoder.penalty(z, 50, 1, AutoDecoder()).sum())(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(slope, 0)


def test_code_prior_of_the_paper():
    codes = np.array([[0.03, 0.04], [0.0, 0.0]])
    got = autodecoder.penalty(codes, 1, 100, AutoDecoder(prior="paper", prior_sigma=0.1))
    np.testing.assert_allclose(got, [0.0025 / 0.01 / 100, 0], rtol=1e-6)


@pytest.mark.parametrize("bound", ["1.0", "0.5"])
def test_lookup_under_a_bound(scalars, bound):
    rows, table = scalars["renorm_rows"], scalars["renorm_in"].copy()
    once = np.unique(rows)
    table[once] = autodecoder.lookup(table[once], bound=float(bound))
    np.testing.assert_allclose(table, scalars[f"renorm_bound_{bound}_table_after"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(table[rows], scalars[f"renorm_bound_{bound}_lookup"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "schedule, key",
    [
        (Schedule("step", 5e-4, interval=500, factor=0.5), "lr_step_network_f64"),
        (Schedule("step", 1e-3, interval=500, factor=0.5), "lr_step_codes_f64"),
        (Schedule("warmup", 1e-5, final=1e-3, length=100), "lr_warmup_f64"),
        (Schedule("constant", 3e-4), "lr_constant_f64"),
    ],
)
def test_schedules(scalars, schedule, key):
    rates = [schedule(epoch, 0.0) for epoch in scalars["epochs"]]
    np.testing.assert_allclose(rates, scalars[key], rtol=1e-6)


def test_clamp_has_pytorchs_gradient():
    slope = jax.vmap(jax.grad(lambda x: autodecoder.clamped(x, 0.5)))
    np.testing.assert_array_equal(slope(jnp.array([-2.0, -0.5, 0.0, 0.5, 0.6])), [0, 1, 1, 1, 0])


def test_start_is_the_published_one():
    """Codes of about unit length; kernels uniform in ±1/√fan_in, with weight norm the same function as without."""
    decoder = DeepSDFDecoder(Specs(latent_size=32, dims=(64,) * 3, latent_in=(2,), norm_layers=(0, 1, 2)))
    start = functools.partial(autodecoder.initial, decoder)
    (shared, codes), few = once(lambda key: (start(400, key), start(3, key)[1]), jax.random.key(1))[1]
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1).mean(), 1, atol=0.02)
    np.testing.assert_array_equal(few, codes[:3])  # a code is drawn by its index
    for layer in shared["params"].values():
        bound = 1 / np.sqrt(layer["kernel"].shape[0])
        assert 0.9 * bound < np.abs(layer["kernel"]).max() <= bound
    plain = {k: {n: v for n, v in leaves.items() if n != "scale"} for k, leaves in shared["params"].items()}
    same = DeepSDFDecoder(Specs(**{**vars(decoder.specs), "norm_layers": ()}))
    points = np.random.default_rng(2).uniform(-1, 1, (2, 50, 3)).astype(np.float32)
    _, got = once(decoder.apply, shared, codes[:2], points)
    np.testing.assert_allclose(got, once(same.apply, {"params": plain}, codes[:2], points)[1], atol=1e-6)


def test_published_size_has_the_published_count():
    shape = jax.eval_shape(DeepSDFDecoder(Specs()).init, jax.random.key(0), jnp.zeros((1, 256)), jnp.zeros((1, 1, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shape)) == 1_843_195


def test_plain_network_of_one_shape():
    """latent_size 0: a network of the point alone trains like any other."""
    decoder = DeepSDFDecoder(Specs(latent_size=0, dims=(16,) * 2, latent_in=(), dropout=()))
    shared, codes = once(functools.partial(autodecoder.initial, decoder, 1), jax.random.key(0))[1]
    points = np.random.default_rng(0).uniform(-1, 1, (1, 64, 3)).astype(np.float32)
    values = np.linalg.norm(points, axis=-1) - 0.5
    batch = Batch(points, values, np.zeros(1, int), np.zeros(1, int), np.ones(1), 1)

    settings = AutoDecoder(clamp=1.0)
    loss = functools.partial(autodecoder.loss, decoder=decoder, settings=settings)
    step = jax.value_and_grad(lambda shared: loss(shared, codes, {}, batch, jax.random.key(0))[0])
    step, (first, gradient) = once(step, shared)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert step(jax.tree.map(lambda p, g: p - 0.1 * g, shared, gradient))[0] < first


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: AutoDecoder(clamp=0.0), "clamp"),
        (lambda: AutoDecoder(prior="both"), "prior"),
        (lambda: AutoDecoder(prior_sigma=0.0), "prior_sigma"),
        (lambda: AutoDecoder(micro_batch=-1), "micro_batch"),
        (lambda: Schedule("sawtooth"), "sawtooth"),
        (lambda: Schedule(initial=-1.0), "-1.0"),
        (lambda: Schedule(interval=0), "interval"),
        (lambda: Optimizer("sgd"), "sgd"),
        (lambda: Optimizer(clip=-1.0), "clip"),
        (lambda: Specs(dims=()), "dims"),
        (lambda: Specs(latent_in=(0,)), "latent_in"),
        (lambda: Specs(dropout_prob=1.0), "dropout_prob"),
    ],
)
def test_impossible_settings_are_refused(make, word):
    with pytest.raises(ConfigError, match=word):
        make()
