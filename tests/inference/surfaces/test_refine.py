"""Refinement: vertices on the level, the recorded refinement replayed, simplification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import ball, batch, field, logits, torus, waves
from manifolds import accepts
from paths import RECORDED

from jonet.errors import InputError, MeshError
from jonet.inference.surfaces import cells, extraction, grid, marching_cubes, mise, refinement
from jonet.inference.surfaces.grid import FieldEvaluator


def published(shared, own, points):
    """The published decoder with conditional batch norm in evaluation, its condition folded into scales and shifts."""

    def affine(name, x):
        return x * own[f"{name}/scale"] + own[f"{name}/shift"]

    x = points @ own["fc_p/kernel"] + own["fc_p/bias"]
    for i in range(5):
        block = f"block{i}"
        h = jax.nn.relu(affine(f"{block}.bn_0", x)) @ own[f"{block}.fc_0/kernel"] + own[f"{block}.fc_0/bias"]
        x = x + jax.nn.relu(affine(f"{block}.bn_1", h)) @ own[f"{block}.fc_1/kernel"] + own[f"{block}.fc_1/bias"]
    return (jax.nn.relu(affine("bn", x)) @ own["fc_out/kernel"] + own["fc_out/bias"])[:, 0]


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(RECORDED / "surface" / "generator.npz"))


@pytest.fixture(scope="module")
def generator(recorded):
    """The recorded model's field for its one shape."""
    own, c = {}, recorded["c"][0]
    for name in [key.removeprefix("state/decoder.") for key in recorded if key.startswith("state/decoder.")]:
        value = recorded[f"state/decoder.{name}"]
        layer, kind = name.rsplit(".", 1)
        if ".bn." in f".{name}" and kind == "running_mean":
            norm = layer.removesuffix(".bn")
            gamma, beta = (
                recorded[f"state/decoder.{norm}.conv_{part}.weight"][..., 0] @ c
                + recorded[f"state/decoder.{norm}.conv_{part}.bias"]
                for part in ("gamma", "beta")
            )
            own[f"{norm}/scale"] = gamma / np.sqrt(recorded[f"state/decoder.{layer}.running_var"] + 1e-5)
            own[f"{norm}/shift"] = beta - own[f"{norm}/scale"] * value
        elif "conv_" not in name and ".bn" not in f".{layer}".replace("bn_", "_"):
            own[f"{layer}/kernel" if kind == "weight" else f"{layer}/bias"] = (
                value[..., 0].T if kind == "weight" else value
            )
    return field(published, level=np.log(0.25), box=[(-0.55,) * 3, (0.55,) * 3], inside=1, **own)


def test_the_recorded_grid_mesh_and_normals_come_out(generator, recorded):
    with jax.default_matmul_precision("highest"):
        evaluator = FieldEvaluator(batch(generator), grid.lattice(batch(generator), 16), np.log([0.25]))
        np.testing.assert_allclose(
            mise.evaluate_octree(evaluator, 8)[0][0] + np.log(0.25), recorded["grid"], rtol=0, atol=2e-5
        )
        mesh = extraction.extract(generator, 16, method="mise", coarse=8, refine_steps=0)
    expected = recorded["mesh/vertices"].astype(np.float64)
    assert len(mesh.vertices) == len(expected) and len(mesh.faces) == len(recorded["mesh/faces"])
    apart = np.linalg.norm(mesh.vertices[:, None] - expected, axis=-1)
    assert apart.min(1).max() < 2e-4 * 1.1 / 16 and mesh.watertight
    free = np.abs(mesh.vertices).max(1) < 0.55
    np.testing.assert_allclose(mesh.normals[free], recorded["normals"][apart.argmin(1)][free], rtol=0, atol=2e-2)


def test_the_recorded_refinement_is_replayed(generator, recorded):
    mesh = extraction.Mesh(recorded["mesh/vertices"], recorded["mesh/faces"])
    wide = [(-1,) * 3, (1,) * 3]  # no lids here: the program moves every vertex
    with jax.default_matmul_precision("highest"):
        corners = jnp.asarray(mesh.corners, jnp.float32)
        face_losses = jax.jit(refinement.face_losses)
        losses = [face_losses(generator, corners, recorded["refine/eps"][0], weight).mean() for weight in (0, 0.01)]
        np.testing.assert_allclose(losses[0], recorded["refine/loss_target"], rtol=1e-5)
        np.testing.assert_allclose((losses[1] - losses[0]) / 0.01, recorded["refine/loss_normal"], rtol=1e-4)

        @jax.grad
        def gradient(vertices):
            return refinement.face_losses(generator, vertices[mesh.faces], recorded["refine/eps"][0], 0.01).mean()

        found = jax.jit(gradient)(jnp.asarray(mesh.vertices, jnp.float32))
        scale = np.abs(recorded["refine/gradient_first_step"]).max()
        np.testing.assert_allclose(found, recorded["refine/gradient_first_step"], rtol=0, atol=1e-4 * scale)
        for steps in (1, 3):
            options = dict(steps=steps, draws=recorded["refine/eps"], box=wide)
            (after,) = refinement.refine(batch(generator), [mesh], **options)
            moved = np.abs(after.vertices - recorded[f"refine/vertices_after_{steps}"])
            assert (
                np.median(moved) < 1e-7 and np.quantile(moved, 0.99) < 2e-6 * steps
            )  # a step's sign where gradients vanish
            np.testing.assert_array_equal(after.faces, mesh.faces)


def test_refined_vertices_lie_on_the_level_within_a_thousandth_of_a_cell():
    fields = batch(*(field(waves, frequency=f) for f in (4.0, 11.0)))
    for resolution in (20, 48):
        lattice = grid.lattice(fields, resolution)
        evaluator = FieldEvaluator(fields, lattice, np.zeros(2))
        found = cells.search(evaluator)
        before = marching_cubes.polygonize(lattice, found.samples, found.corners)
        after = refinement.project(evaluator, found.samples, before, 12)
        ends = np.stack([found.samples.values[before.low], found.samples.values[before.high]])
        lid = np.isneginf(ends).any(0)
        assert lid.any() and (after.along[lid] == before.along[lid]).all() and (after.along % 1 == 0)[lid].all()
        keys = found.samples.keys[before.low[~lid]]
        step = np.eye(3)[before.axis[~lid]]
        around = [evaluator(keys, (after.along[~lid] + delta)[:, None] * step) for delta in (-1e-3, 1e-3)]
        assert ((around[0] > 0) != (around[1] > 0)).all()  # the level lies between
        assert ((after.along > 0) & (after.along < 1))[~lid].all()  # on their edges still
        moved = np.abs(after.along - before.along).max()
        assert moved > 1e-3  # else there was nothing to do


@pytest.mark.filterwarnings("error")
def test_an_end_on_the_level_is_no_division_by_zero():
    """Signed values 1 and 0 at the ends of an edge, on which the field dips below in between."""
    samples = marching_cubes.Samples(np.arange(2), np.array([1.0, 0.0], np.float32))
    edge = marching_cubes.Welded(*np.array([[0], [1], [0]]), np.array([0.9]), np.zeros((0, 3), int))
    after = refinement.project(lambda keys, offset: 0.5 - offset[:, 0], samples, edge, 12)
    np.testing.assert_allclose(after.along, 0.5, atol=1e-3)


def test_steep_logits_are_projected_too():
    """Where linear interpolation is poor: saturated values, a cell as wide as the transition."""
    shape = batch(field(logits, steepness=40.0, radius=0.33, box=[(-0.55,) * 3, (0.55,) * 3], inside=1, level=-1.4))
    (plain,) = extraction.extract(shape, 24, refine_steps=0)
    (refined,) = extraction.extract(shape, 24)
    radius = 0.33 + np.arctanh(1.4 / 12) / 40
    off = [np.abs(np.linalg.norm(mesh.vertices, axis=1) - radius).max() * 24 / 1.1 for mesh in (plain, refined)]
    assert off[0] > 0.05 and off[1] < 1e-3 and accepts(refined)


def test_the_published_refinement_improves_the_fit_of_the_faces():
    shape = batch(field(logits, steepness=6.0, radius=0.33, box=[(-0.55,) * 3, (0.55,) * 3], inside=1))
    meshes = extraction.extract(shape, 16, refine_steps=0)
    (after,) = refinement.refine(shape, meshes, steps=30)
    (again,) = refinement.refine(shape, meshes, steps=30)
    np.testing.assert_array_equal(after.vertices, again.vertices)

    def error(mesh):
        return np.abs(np.linalg.norm(mesh.corners.mean(1), axis=1) - 0.33).mean()

    assert error(after) < 0.6 * error(meshes[0])
    assert after.watertight and after.normals is None


def test_meshes_are_refined_together_as_alone_and_lids_stay():
    fields = batch(*(field(ball, center=(0.9 * i, 0, 0), radius=0.5 + 0.1 * i) for i in range(2)))
    meshes = extraction.extract(fields, 24, refine_steps=0)
    together = refinement.refine(fields, meshes, steps=3)
    for i in range(2):
        (alone,) = refinement.refine(fields[i : i + 1], meshes[i : i + 1], steps=3)
        np.testing.assert_allclose(alone.vertices, together[i].vertices, rtol=0, atol=1e-6)
        assert np.abs(together[i].vertices - meshes[i].vertices).max() > 5e-4
    lid = meshes[1].vertices[:, 0] == 1
    assert lid.any() and (together[1].vertices[lid, 0] == 1).all()
    with pytest.raises(InputError, match="one mesh per field"):
        refinement.refine(fields, meshes[:1])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_refinement_is_lowered_for_other_platforms(platform):
    fields = batch(field(torus, radius=0.6, tube=0.2))
    shapes = [(1, 4, 1024), (1, 4, 1024, 3, 3), (1, 4, 1024, 3), (1, 4, 1024)]
    arrays = [np.zeros(shape, np.float32 if k else np.int32) for k, shape in enumerate(shapes)]
    exported = jax.export.export(refinement._pull.jitted(), platforms=[platform])(
        fields, *arrays, np.int32(3), np.float32(0.01)
    )
    assert exported.platforms == (platform,)


def test_simplified_meshes_stay_closed_and_near():
    mesh = extraction.extract(field(torus, radius=0.6, tube=0.25), 48)
    simple = refinement.simplify(mesh, 1000)
    assert len(simple.faces) <= 1000 and simple.watertight and simple.euler_number == 0 and accepts(simple)
    np.testing.assert_allclose(simple.volume, mesh.volume, rtol=0.02)
    assert refinement.simplify(mesh, 10**6) is mesh
    with pytest.raises(InputError, match="at least 4"):
        refinement.simplify(mesh, 3)


def test_a_mesh_that_would_open_is_refused(monkeypatch):
    mesh = extraction.extract(field(torus, radius=0.6, tube=0.25), 16)
    broken = (mesh.vertices, mesh.faces[:-1])
    monkeypatch.setattr(refinement.fast_simplification, "simplify", lambda *_, **__: broken)
    with pytest.raises(MeshError, match="not closed"):
        refinement.simplify(mesh, 100)


def test_draws_do_not_depend_on_the_company():
    few, many = refinement.dirichlet(3, 1, [5]), refinement.dirichlet(3, 1, [7, 5])
    np.testing.assert_array_equal(few, many[7:])
    assert np.allclose(many.sum(1), 1) and (many >= 0).all()
    sample = refinement.dirichlet(0, 0, [20000])
    np.testing.assert_allclose(sample.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(sample.var(0), 1 / 3 * 2 / 3 / 2.5, rtol=0.03)  # of Dirichlet(½, ½, ½)
