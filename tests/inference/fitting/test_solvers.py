"""Solvers behind one protocol, and fits by any optimizer of optax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chairs import fit, load_chairs

from jonet import config, parser
from jonet.codes import Codes
from jonet.commands.options import Fit
from jonet.errors import ConfigError
from jonet.inference.fitting import latents, methods
from jonet.inference.fitting.first_order import OptaxSolver, published_adam
from jonet.inference.fitting.gauss_newton import NewtonSolver, Objective, Problem
from jonet.inference.fitting.solver import Solver, advance, trace
from jonet.model import Model
from jonet.settings.fitting import Adam, FitConfig, PoseConfig

pytestmark = pytest.mark.unoptimized
TARGET = jnp.array([0.3, -0.2, 0.5])
FEW = Adam(steps=30, rows=256, start="best")
OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "clipped sgd on a schedule": optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(1.0, 30), momentum=0.9)
    ),
    "lbfgs": optax.lbfgs(memory_size=5),  # which searches along lines, on the rows of the step
    "by the value": optax.chain(optax.polyak_sgd(max_learning_rate=1.0)),
}


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


def newton() -> tuple[Solver, Problem]:
    """Gauss-Newton on |u - target|, three observations of one coordinate each."""

    def linearize(at):
        return lambda block: (block @ (at - TARGET), block, jnp.ones(len(block)))

    objective = Objective(linearize, lambda at: (0.0, jnp.zeros(3), jnp.zeros((3, 3))), jnp.add)
    return NewtonSolver(3, 0.1), Problem(objective, lambda k: jnp.eye(3), 1, 1.0)


def descent(optimizer, fixed: bool = False) -> tuple[Solver, object]:
    return OptaxSolver(optimizer, fixed), lambda at: jnp.sum((at - TARGET) ** 2)


@pytest.mark.parametrize(
    "pair",
    [
        newton(),
        descent(published_adam(Adam(steps=200, rate=0.05))),
        descent(optax.lbfgs(), True),
        descent(optax.sgd(0.1)),
    ],
    ids=["gauss_newton", "published", "lbfgs", "sgd"],
)
def test_every_solver_is_started_stepped_and_asked_alike(pair):
    solver, problem = pair
    state = solver.init(np.zeros(3, np.float32))
    assert not np.isfinite(state.loss)
    first = solver.step(state, problem)
    last = advance(solver, state, problem, 200)
    np.testing.assert_allclose(last.at, TARGET, atol=2e-3)
    assert last.loss < 1e-4 and not solver.converged(np.float32(2), np.float32(1))
    assert solver.converged(np.float32(1.001), np.float32(1))
    path, losses = trace(solver, np.zeros(3, np.float32), lambda step: problem, 2)
    np.testing.assert_allclose(path[0], first.at, atol=1e-6)
    np.testing.assert_allclose(losses[0], first.loss, atol=1e-6)


def test_the_published_adam_is_pytorchs():
    """Its first updates are those of the formula in double precision, in which float32 loses 1 - 0.999."""
    gradients = np.random.default_rng(0).normal(size=(60, 5))
    optimizer = published_adam(Adam(steps=60, rate=1e-2))
    mean, square, wanted = np.zeros(5), np.zeros(5), []
    for step, gradient in enumerate(gradients, 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        rate = 1e-2 * (1 if step <= 30 else 0.1)
        wanted.append(-rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8))
    state, found = optimizer.init(jnp.zeros(5)), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state)
        found.append(updates)
    np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_fits_codes(chairs, name):
    config = FitConfig(adam=FEW, optimizer=OPTIMIZERS[name])
    found = fit(chairs, chairs.samples[:1], config=config, starts=np.zeros((1, 16), np.float32))
    before, _ = latents.errors(chairs.network, np.zeros((1, 16), np.float32), chairs.samples[:1])
    assert found.residual < 0.85 * before


def test_the_published_adam_as_an_object_gives_its_codes(chairs):
    named = fit(chairs, chairs.samples[:1], config=FitConfig("adam", adam=FEW))
    given = fit(chairs, chairs.samples[:1], config=FitConfig(adam=FEW, optimizer=published_adam(FEW)))
    np.testing.assert_array_equal(given.values, named.values)


def test_one_object_compiles_once(chairs, compilations):
    optimizer = optax.rmsprop(1e-3)
    settings = FitConfig(adam=FEW, optimizer=optimizer)
    fit(chairs, chairs.samples[:1], config=settings)
    with compilations() as seen:
        fit(chairs, chairs.samples[1:2], config=FitConfig(adam=FEW, optimizer=optimizer))
        fit(chairs, chairs.samples[:1], config=dataclasses.replace(settings, seed=3))
    assert not seen, seen


def test_a_model_with_an_object_is_not_saved(chairs, tmp_path):
    codes = Codes(chairs.codes, tuple(map(str, range(len(chairs.codes)))))
    model = Model("deepsdf", chairs.network, "sphere", codes, chairs.prior, FitConfig(optimizer=optax.adam(1e-3)))
    with pytest.raises(ConfigError, match=r"fitting\.optimizer is an object \(GradientTransformation"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    found = model.fit(chairs.samples[:1], config=FitConfig(adam=FEW, optimizer=optax.adam(1e-3)))
    assert np.isfinite(found.residual).all()
    dataclasses.replace(model, fitting=FitConfig()).save(tmp_path / "model")


def test_files_and_options_do_not_name_objects(capsys):
    assert "optimizer" not in config.to_dict(FitConfig())
    with pytest.raises(ConfigError, match="no option --fitting.optimizer"):
        parser.parse(Fit, ["model", "cloud.ply", "--out=codes.npz", "--fitting.optimizer=adam"], "jonet fit")
    with pytest.raises(SystemExit):
        parser.parse(Fit, ["--help"], "jonet fit")
    shown = capsys.readouterr().out
    assert "--fitting.method" in shown and "--fitting.optimizer" not in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: FitConfig(optimizer="adam"), "optimizer is 'adam', but must be an optax.GradientTransformation"),
        (lambda: FitConfig(optimizer=optax.adam), "of type function"),
        (lambda: FitConfig("lbfgs", optimizer=optax.adam(1e-3)), "takes the place of the method"),
        (lambda: FitConfig(adam=Adam(rate=1.0), optimizer=optax.adam(1e-3)), "its own learning rate"),
        (lambda: PoseConfig(fitting=FitConfig(optimizer=optax.adam(1e-3))), "method is 'adam'"),
    ],
)
def test_contradictions_with_an_optimizer_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_many_problems_are_solved_at_once():
    """By vmap, as on an accelerator."""
    solver, problem = descent(optax.adam(0.05))
    starts = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    path, _ = jax.vmap(lambda at: trace(solver, at, lambda step: problem, 200))(starts)
    np.testing.assert_allclose(path[:, -1], np.tile(TARGET, (4, 1)), atol=2e-2)


def test_the_prior_of_the_paper_is_named_by_its_sigma(chairs):
    """‖z‖²/σ² beside the sum of the errors (eq. 10), which all methods divide by the number of observations."""
    code = np.random.default_rng(0).normal(size=16).astype(np.float32)
    for method, count in (("gauss_newton", 8192), ("lbfgs", 8192)):
        gaussian = methods.penalty(chairs.prior, FitConfig(method, prior_sigma=0.05))
        value, _, _ = methods.quadratic(code, *gaussian)
        np.testing.assert_allclose(value, code @ code / 0.05**2 / count, rtol=1e-5)
    named = fit(chairs, chairs.samples[:1], config=FitConfig("adam", adam=FEW, prior_sigma=0.05))
    decay = dataclasses.replace(FEW, decay=16 / 0.05**2 / FEW.rows)
    same = fit(chairs, chairs.samples[:1], config=FitConfig("adam", adam=decay))
    np.testing.assert_array_equal(named.values, same.values)
    sizes = [
        np.linalg.norm(fit(chairs, chairs.samples[:1], config=FitConfig("lbfgs", prior_sigma=sigma)).values)
        for sigma in (0.002, 0.05, 10.0)
    ]
    assert sizes[0] < 0.5 * sizes[1] < sizes[2]
    with pytest.raises(ConfigError, match="prior_sigma 0 or more"):
        FitConfig(prior_sigma=-1.0)
