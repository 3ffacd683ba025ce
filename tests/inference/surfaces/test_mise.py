"""The published octree refinement: the points that its program evaluated, its grids, its meshes."""

import jax.numpy as jnp
import numpy as np
import pytest
from analytic import batch, field
from paths import RECORDED
from scipy.spatial import cKDTree

from jonet.errors import InputError
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import cells, extraction, grid, mise
from jonet.settings import surfaces

BOX = np.array([[-0.55] * 3, [0.55] * 3])


def sphere(shared, per_shape, p):
    return 10 * (0.35 - jnp.linalg.norm(p, axis=-1))


def torus_thin(shared, per_shape, p):
    return 12 * (0.07 - jnp.hypot(jnp.hypot(p[:, 0], p[:, 2]) - 0.3, p[:, 1] - 0.013))


def two_blobs(shared, per_shape, p):
    large = 0.22 - jnp.linalg.norm(p - jnp.array([0.2, 0.1, 0.0]), axis=-1)
    small = 0.045 - jnp.linalg.norm(p - jnp.array([-0.31, -0.28, 0.23]), axis=-1)
    return 10 * jnp.maximum(large, small)


def wave(shared, per_shape, p):
    return 8 * (p[:, 1] - 0.15 * jnp.sin(9 * p[:, 0]) * jnp.cos(7 * p[:, 2]) - 0.02)


def cut_by_box(shared, per_shape, p):
    return 5 * (p[:, 0] + 0.2 * p[:, 1] + 0.1)


CASES = {"sphere": sphere, "sphere_tau02": sphere, "torus_thin": torus_thin, "two_blobs": two_blobs, "wave": wave}
CASES["cut_by_box"] = cut_by_box


@pytest.fixture(scope="module")
def recorded():
    return np.load(RECORDED / "surface" / "mise.npz")


def prepare(name, recorded):
    coarse, steps, level = recorded[f"{name}/setting"]
    coarse, resolution = int(coarse), int(coarse) * 2 ** int(steps)
    fields = batch(field(CASES[name], level=level, box=BOX, inside=1))
    return fields, coarse, resolution, float(level)


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_points_are_evaluated_in_the_recorded_rounds(name, recorded):
    fields, coarse, resolution, level = prepare(name, recorded)
    num_evaluations = []

    class Listener(grid.FieldEvaluator):
        def __call__(self, keys, offset=0):
            num_evaluations.append(self.lattice.index(keys))
            return super().__call__(keys, offset)

    values, counts = mise.evaluate_octree(Listener(fields, grid.lattice(fields, resolution), np.array([level])), coarse)
    np.testing.assert_array_equal(counts[0], recorded[f"{name}/counts"])
    np.testing.assert_array_equal(
        np.concatenate(num_evaluations), recorded[f"{name}/points"]
    )  # both sorted within a round
    np.testing.assert_allclose(values[0] + level, recorded[f"{name}/grid"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_surfaces_come_out(name, recorded):
    fields, coarse, resolution, _ = prepare(name, recorded)
    (mesh,) = extraction.extract(fields, resolution, method="mise", coarse=coarse, refine_steps=0, normals=False)
    assert mesh.watertight
    expected = recorded[f"{name}/vertices"].astype(np.float64)
    assert len(mesh.vertices) == len(expected) and len(mesh.faces) == len(recorded[f"{name}/faces"])
    for ours, theirs in ((mesh.vertices, expected), (expected, mesh.vertices)):
        assert cKDTree(theirs).query(ours)[0].max() < 2e-4 * 1.1 / resolution
    np.testing.assert_allclose(
        mesh.volume, Mesh(expected, recorded[f"{name}/faces"]).volume, rtol=5e-3
    )  # other diagonals


def test_a_batch_is_refined_shape_by_shape():
    both = batch(*(field(CASES["sphere"], box=BOX, inside=1) for _ in range(2)))
    assert both.architecture is sphere
    lattice = grid.lattice(both, 32)
    values, counts = mise.evaluate_octree(grid.FieldEvaluator(both, lattice, np.array([0.0, -np.log(4)])), 8)
    assert counts.tolist() == [[729, 1298, 4832], [729, 2258, 9596]]
    assert values.shape == (2, 33, 33, 33)


def test_the_published_setting_evaluates_133813_points_and_the_sparse_search_fewer():
    fields = batch(field(sphere, box=BOX, inside=1))
    evaluator = grid.FieldEvaluator(fields, grid.lattice(fields, 128), np.zeros(1))
    _, counts = mise.evaluate_octree(evaluator, surfaces.COARSE)
    assert counts.tolist() == [[35937, 19538, 78338]] and evaluator.num_evaluations == 133813
    sparse = grid.FieldEvaluator(fields, grid.lattice(fields, 128), np.zeros(1))
    cells.search(sparse)
    assert sparse.num_evaluations < 0.6 * evaluator.num_evaluations


@pytest.mark.parametrize("resolution, coarse", [(100, 32), (96, 32), (16, 32)])
def test_mise_only_doubles(resolution, coarse):
    fields = batch(field(sphere, box=BOX, inside=1))
    with pytest.raises(InputError, match="doubles"):
        extraction.extract(fields, resolution, method="mise", coarse=coarse)
