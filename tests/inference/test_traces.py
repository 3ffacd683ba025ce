"""Programs of inference are traced once for all calls in one bucket of sizes, and refuse arrays of wrong shapes."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import ball, field
from chairs import fit, load_chairs

from jonet.inference.fitting import gauss_newton, methods
from jonet.inference.fitting.jacobian import along_code
from jonet.inference.surfaces import extraction, refinement
from jonet.networks.field import Field, evaluate_tiles
from jonet.settings.fitting import LBFGS, Adam, FitConfig, GaussNewton

pytestmark = pytest.mark.unoptimized
SETTINGS = {
    "_newton": FitConfig(starts=1, gauss_newton=GaussNewton((1024,), (0.01,), (2,))),
    "_adam": FitConfig("adam", adam=Adam(steps=4, rows=64)),
    "_lbfgs": FitConfig("lbfgs", lbfgs=LBFGS(2)),
}


@pytest.fixture(scope="module")
def chairs():
    return load_chairs()


@pytest.fixture(autouse=True)
def from_zero():
    chex.clear_trace_counter()


@pytest.mark.parametrize("work", SETTINGS)
def test_fits_of_any_number_of_shapes_and_rows_are_traced_once(chairs, monkeypatch, work):
    monkeypatch.setattr(methods, work, chex.assert_max_traces(getattr(methods, work), n=1))
    for shapes, rows in ((2, 3000), (1, 3000), (4, 2500), (3, 2100)):
        fit(chairs, chairs.samples[:shapes, :rows], config=SETTINGS[work])
    with pytest.raises(AssertionError, match="traced > 1 times"):  # another bucket, in which there are 5 shapes
        fit(chairs, np.concatenate([chairs.samples, chairs.samples[:1]]), config=SETTINGS[work])


def test_evaluation_and_extraction_are_traced_once_each():
    architecture = chex.assert_max_traces(ball, n=3)  # values; tiles one by one, of a rest; values with gradients
    fields = [field(architecture, center=(0.1 * i, 0, 0), radius=0.5) for i in range(4)]
    for count, resolution in ((1, 8), (2, 9), (4, 8)):
        batch = Field.stack(fields[:count])
        extraction.extract(batch, resolution, refine_steps=1)
        extraction.extract(batch, resolution, method="published", normals=False)


def test_wrong_shapes_end_in_an_error_where_they_arise(chairs):
    code, points = jnp.zeros(16), jnp.zeros((5, 3))
    with pytest.raises(AssertionError):
        along_code(chairs.network, code[:15])
    with pytest.raises(AssertionError):
        along_code(chairs.network, code)(points[:, :2])
    with pytest.raises(AssertionError):
        methods.clamped(jnp.zeros(5), jnp.zeros((4, 8)), 0.1)
    with pytest.raises(AssertionError):
        refinement.face_losses(field(ball, center=(0, 0, 0), radius=0.5), jnp.zeros((4, 3, 3)), jnp.zeros((5, 3)), 0.1)
    objective = gauss_newton.Objective(
        lambda at: lambda block: (block, jnp.zeros((6, 3)), block), lambda at: (0.0, jnp.zeros(4), jnp.eye(4)), jnp.add
    )
    solver = gauss_newton.NewtonSolver(4, 0.1)
    with pytest.raises(AssertionError):
        solver.step(solver.init(jnp.zeros(4)), gauss_newton.Problem(objective, lambda k: jnp.zeros(6), 1, 0.1))
    with pytest.raises(ValueError, match="points"):
        evaluate_tiles(Field.stack([field(ball, center=(0, 0, 0), radius=0.5)]), [0], np.zeros((1, 5, 3)))
