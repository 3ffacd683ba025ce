"""Surfaces: the table, closed forms, the sparse method against the dense one, borders, batches, devices."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.measure
from analytic import ball, balls, batch, block, constant, field, logits, rods, torus, waves
from hypothesis import given, settings
from hypothesis import strategies as st
from manifolds import accepts
from paths import PYTHONPATH, RECORDED, SUPPORT
from scipy.spatial import cKDTree

from jonet.errors import ConfigError, InputError
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import cells, extraction, marching_cubes
from jonet.inference.surfaces.grid import FieldEvaluator, Lattice, lattice
from jonet.networks.published import deepsdf_checkpoint
from jonet.run import train
from jonet.settings.surfaces import Surfaces
from jonet.tasks import registry

UNIT = np.array([[[-1.0] * 3, [1.0] * 3]])


def polygons(values, resolution) -> Mesh:
    """The mesh of a whole grid of signed values."""
    grid = Lattice(UNIT, resolution)
    keys, samples, found = cells.crossed(grid, 0, values.astype(np.float32))
    samples = marching_cubes.Samples(keys, samples)
    welded = marching_cubes.polygonize(
        grid, samples, samples.index_of(found + grid.steps(marching_cubes.CORNERS)[:, None])
    )
    vertices = grid.to_coordinates(0, grid.index(keys[welded.low]) + welded.along[:, None] * np.eye(3)[welded.axis])
    return Mesh(vertices, welded.faces)


def same(mesh: Mesh, other: Mesh, resolution: int):
    """Equal: both are ordered by their place in the grid; positions to 1e-4 cells."""
    assert len(mesh.vertices) == len(other.vertices)
    np.testing.assert_array_equal(mesh.faces, other.faces)
    np.testing.assert_allclose(mesh.vertices, other.vertices, rtol=0, atol=1e-4 * 2 / resolution)


# the table


@pytest.mark.parametrize("case", range(256))
def test_every_case_is_closed_polygons_that_meet_only_in_segments(case):
    crossed = {
        edge
        for edge, (low, high) in enumerate(zip(marching_cubes.EDGE_CORNER, marching_cubes.OTHER_CORNER, strict=True))
        if (case >> low & 1) != (case >> high & 1)
    }
    loops = marching_cubes.loops(case)
    assert sorted(edge for loop in loops for edge in loop) == sorted(crossed)  # every crossed edge once
    middles = (
        marching_cubes.CORNERS[marching_cubes.EDGE_CORNER] + marching_cubes.CORNERS[marching_cubes.OTHER_CORNER]
    ) / 2
    for loop in loops:
        segments = {frozenset(pair) for pair in zip(loop, loop[1:] + loop[:1], strict=True)}
        triangles = marching_cubes.fan(loop)
        assert len(triangles) == len(loop) - 2
        for a, b in [pair for t in triangles for pair in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))]:
            if frozenset((a, b)) not in segments:  # a diagonal runs through the cell, in none of its faces
                assert not ((middles[a] == middles[b]) & np.isin(middles[a], (0, 1))).any()


def test_all_cases_next_to_each_other_are_manifolds():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        resolution = int(rng.integers(2, 13))
        values = rng.standard_normal((resolution + 1,) * 3)
        if seed % 3 == 0:
            values = np.round(values)  # many samples on the level itself
        mesh = polygons(values, resolution)
        assert mesh.watertight and mesh.volume > 0 and accepts(mesh)


def test_vertices_are_where_another_marching_cubes_puts_them():
    rng = np.random.default_rng(5)
    coarse = rng.standard_normal((6, 6, 6))
    values = -np.ones((21, 21, 21))
    values[1:-1, 1:-1, 1:-1] = np.kron(coarse, np.ones((4, 4, 4)))[:19, :19, :19] + 0.3 * rng.standard_normal((19,) * 3)
    ours = polygons(values, 20)
    theirs, faces, _, _ = skimage.measure.marching_cubes(-values, 0, method="lorensen")
    theirs = theirs / 10 - 1
    assert len(np.unique(np.round(theirs, 6), axis=0)) == len(ours.vertices)
    assert cKDTree(ours.vertices).query(theirs)[0].max() < 2e-4 / 10
    np.testing.assert_allclose(ours.area, Mesh(theirs, faces).area, rtol=0.1)  # its table joins other corners


def test_the_recorded_volume_gives_the_recorded_vertices():
    """The DeepSDF program's own extraction at N = 12: volume in, vertices in original coordinates out."""
    recorded = np.load(RECORDED / "surface" / "grid.npz")
    mesh = polygons(-recorded["mesh12_volume"], 11)  # inside is negative there, positive here
    ours = mesh.vertices / recorded["mesh12_scale"] - recorded["mesh12_offset"]
    expected = recorded["mesh12_vertices"]  # open where the box ends: it has no lids
    distance = cKDTree(ours).query(expected)[0]
    on_edges = distance < 2e-4 * 2 / 11 / recorded["mesh12_scale"]
    assert on_edges.mean() > 0.98  # Lewiner's table may put a vertex into the middle of a cell
    inner = mesh.vertices[(np.abs(mesh.vertices) < 1).all(1)] / recorded["mesh12_scale"] - recorded["mesh12_offset"]
    assert cKDTree(expected).query(inner)[0].max() < 2e-4 * 2 / 11 / recorded["mesh12_scale"]


# closed forms


@settings(max_examples=8, deadline=None)
@given(
    radius=st.floats(0.2, 0.8),
    center=st.tuples(*[st.floats(-0.1, 0.1)] * 3),
    resolution=st.sampled_from([20, 32, 37]),
)
def test_surface_of_a_sphere(radius, center, resolution):
    mesh = extraction.extract(field(ball, radius=radius, center=center), resolution)
    assert mesh.watertight and mesh.euler_number == 2 and accepts(mesh)
    away = mesh.vertices - center
    distance = np.linalg.norm(away, axis=-1)
    np.testing.assert_allclose(distance, radius, rtol=0, atol=1e-3 * 2 / resolution)  # cells
    np.testing.assert_allclose(mesh.normals, away / distance[:, None], rtol=0, atol=2e-3)
    assert 0.85 < mesh.volume / (4 / 3 * np.pi * radius**3) < 1  # positive: faces look outwards


def test_a_torus_and_a_box_come_back_within_a_cell():
    ring = extraction.extract(field(torus, radius=0.6, tube=0.25), 64)
    assert ring.watertight and ring.euler_number == 0 and accepts(ring)
    np.testing.assert_allclose(ring.volume, 2 * np.pi**2 * 0.6 * 0.25**2, rtol=5e-3)
    np.testing.assert_allclose(ring.area, 4 * np.pi**2 * 0.6 * 0.25, rtol=5e-3)
    box = extraction.extract(field(block, center=(0.05, 0, -0.1), half=(0.5, 0.31, 0.7)), 64)
    assert box.watertight and box.euler_number == 2 and accepts(box)
    np.testing.assert_allclose(box.bounds, [[-0.45, -0.31, -0.8], [0.55, 0.31, 0.6]], rtol=0, atol=1e-3 * 2 / 64)
    np.testing.assert_allclose(box.volume, 8 * 0.5 * 0.31 * 0.7, rtol=1e-2)  # its edges are cut by up to a cell


def test_a_box_whose_faces_lie_in_the_grid_is_closed_too():
    mesh = extraction.extract(field(block, center=(0, 0, 0), half=(0.5, 0.25, 0.75)), 32)
    assert mesh.watertight and mesh.euler_number == 2 and accepts(mesh)
    np.testing.assert_allclose(mesh.bounds[1], [0.5, 0.25, 0.75], rtol=0, atol=1e-3 * 2 / 32)


def test_nothing_is_mirrored_or_rotated():
    """Three balls of different sizes on the three axes: any exchange or reflection of axes moves them."""
    asymmetric = field(balls, centers=[(0.6, 0, 0), (0, 0.5, 0), (0, 0, -0.7)], radii=[0.3, 0.2, 0.1])
    for method in ("sparse", "dense", "mise"):
        mesh = extraction.extract(asymmetric, 64, method=method)
        np.testing.assert_allclose(mesh.bounds, [[-0.2, -0.3, -0.8], [0.9, 0.7, 0.3]], rtol=0, atol=0.01)
        assert mesh.euler_number == 6


def test_occupancy_logits_and_their_level():
    """Inside is where values rise; a lower threshold gives a larger body, as far as the logit says."""
    steepness, radius = 8.0, 0.35
    box = np.array([[-0.55] * 3, [0.55] * 3])
    shape = field(logits, steepness=steepness, radius=radius, box=box, inside=1)
    for threshold in (0.5, 0.2):
        level = np.log(threshold / (1 - threshold))
        mesh = extraction.extract(shape, 64, level=level)
        assert mesh.watertight and mesh.volume > 0 and accepts(mesh)
        expected = radius - np.arctanh(level / 12) / steepness
        np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), expected, rtol=0, atol=1e-3 * 1.1 / 64)
        np.testing.assert_allclose(mesh.normals, mesh.vertices / expected, rtol=0, atol=2e-3)


# sparse against dense


BARBELL = {
    "start": [(-0.7, 0, 0), (0.6, 0, 0), (-0.6, 0.1, 0.05)],
    "end": [(-0.6, 0, 0), (0.7, 0, 0), (0.6, -0.1, 0.1)],
}
CASES = {
    "thin bridge": field(rods, **BARBELL, radii=[0.25, 0.25, 0.012]),
    "spike and crumb": field(
        rods,
        start=[(-0.3, 0, 0), (0, 0, 0), (0.8, 0.83, -0.79)],
        end=[(0.3, 0, 0), (0.1, 0.9, 0.2), (0.81, 0.83, -0.79)],
        radii=[0.3, 0.02, 0.016],
    ),
    "gyroid": field(waves, frequency=6.0),
    "cut ball": field(ball, center=(0.8, -0.9, 0.3), radius=0.6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("resolution", [64, 90])
def test_sparse_equals_dense(name, resolution):
    fields = batch(CASES[name])
    (dense,) = extraction.extract(fields, resolution, method="dense")
    (sparse,) = extraction.extract(fields, resolution)
    same(sparse, dense, resolution)
    assert dense.watertight and accepts(dense)


def test_the_sparse_search_evaluates_a_small_part_of_the_grid():
    fields = batch(CASES["thin bridge"])
    evaluator = FieldEvaluator(fields, lattice(fields, 256), np.zeros(1))
    cells.search(evaluator)
    assert evaluator.num_evaluations < 0.006 * 257**3


def test_where_the_bound_fails_what_was_found_is_still_whole():
    """A bound that is far too small: whatever one cell of was found is followed to its end."""
    fields = batch(field(rods, **BARBELL, radii=[0.25, 0.25, 0.03]))
    (dense,) = extraction.extract(fields, 80, method="dense")
    (sparse,) = extraction.extract(fields, 80, lipschitz=0.3)
    same(sparse, dense, 80)


def test_what_a_proof_hid_is_found_in_few_rounds(monkeypatch):
    """A bound that is far too small hides most of a long spike: it is followed in large steps first."""
    fields, num_evaluations = batch(CASES["spike and crumb"]), []
    plain = FieldEvaluator.__call__
    monkeypatch.setattr(
        FieldEvaluator,
        "__call__",
        lambda self, keys, *more: num_evaluations.append(len(keys)) or plain(self, keys, *more),
    )
    cells.search(FieldEvaluator(fields, lattice(fields, 128), np.zeros(1)), lipschitz=0.3)
    assert len(num_evaluations) < 50 and sum(num_evaluations) < 30_000  # one cell at a time: 108 rounds


def test_a_component_between_the_coarse_samples_needs_the_bound():
    crumb = batch(field(ball, center=(0.06, 0.06, 0.06), radius=0.03))
    with pytest.warns(UserWarning, match="no surface"):
        (missed,) = extraction.extract(crumb, 64, lipschitz=0.3)
    (found,) = extraction.extract(crumb, 64, lipschitz=1.0)
    assert not len(missed.faces) and found.watertight and found.euler_number == 2


# borders


def test_a_shape_that_leaves_the_box_gets_a_lid_in_its_face():
    mesh = extraction.extract(field(ball, center=(1, 0.1, -0.2), radius=0.55), 41)
    assert mesh.watertight and mesh.euler_number == 2 and accepts(mesh)
    lid = mesh.vertices[:, 0] == 1  # exactly
    assert lid.sum() > 100
    np.testing.assert_array_equal(mesh.bounds[1, 0], 1)
    np.testing.assert_allclose(mesh.volume, 2 / 3 * np.pi * 0.55**3, rtol=1e-2)
    inner = lid & (np.linalg.norm(mesh.vertices - [1, 0.1, -0.2], axis=1) < 0.5)
    np.testing.assert_array_equal(mesh.normals[inner], np.broadcast_to([1, 0, 0], (inner.sum(), 3)))
    rest = mesh.vertices[~lid]
    np.testing.assert_allclose(np.linalg.norm(rest - [1, 0.1, -0.2], axis=1), 0.55, rtol=0, atol=1e-3 * 2 / 41)


@pytest.mark.parametrize("method", ["sparse", "dense", "mise"])  # published distances have no lids
def test_a_field_that_is_inside_everywhere_gives_the_box(method):
    box = np.array([[-1, 0, 2], [1, 3, 4.0]])
    mesh = extraction.extract(field(constant, value=-1, box=box), 32, method=method)
    assert mesh.watertight and mesh.euler_number == 2 and accepts(mesh)
    np.testing.assert_array_equal(mesh.bounds, box)
    np.testing.assert_allclose(mesh.volume, 12)


def test_the_box_may_be_chosen_and_cuts():
    half = extraction.extract(field(ball, center=(0, 0, 0), radius=0.5), 24, box=[(-1, -1, 0), (1, 1, 1)])
    assert half.watertight and half.bounds[0, 2] == 0
    np.testing.assert_allclose(half.volume, 2 / 3 * np.pi * 0.5**3, rtol=2e-2)


# many shapes


def test_a_batch_gives_what_each_shape_gives_alone():
    fields = batch(*(field(ball, center=(0.1 * i, 0, 0), radius=0.2 + 0.1 * i) for i in range(5)))
    together = extraction.extract(fields, 128)  # in several pieces at once
    for i in (0, 3, 4):
        alone = extraction.extract(fields[i], 128)
        np.testing.assert_array_equal(together[i].vertices, alone.vertices)
        np.testing.assert_array_equal(together[i].faces, alone.faces)
        np.testing.assert_array_equal(together[i].normals, alone.normals)


def test_one_empty_shape_does_not_stop_the_others():
    fields = batch(*(field(ball, center=(0, 0, 0), radius=radius) for radius in (0.5, -0.2, 0.3)))
    for method in extraction.METHODS:
        with pytest.warns(UserWarning, match="field 1 has no surface at level 0.*from 0.2 to 1.9") as seen:
            meshes = extraction.extract(fields, 32, method=method, largest=True)
        assert len(seen) == 1 and [len(mesh.faces) > 0 for mesh in meshes] == [True, False, True]
        assert meshes[1].vertices.shape == (0, 3) and meshes[1].normals.shape == (0, 3)


@pytest.mark.parametrize("method", extraction.METHODS)
def test_a_field_that_is_not_finite_is_named(method):
    fields = batch(*(field(ball, center=(0, 0, 0), radius=radius) for radius in (0.5, np.nan)))
    with pytest.raises(InputError, match="field 1 is nan at"):
        extraction.extract(fields, 32, method=method)


def test_a_second_batch_compiles_nothing(compilations):
    fields = batch(*(field(ball, center=(0, 0, 0), radius=0.5 + 0.01 * i) for i in range(6)))
    first, second = fields[:3], fields[3:]
    extraction.extract(first, 32)
    with compilations() as seen:
        extraction.extract(second, 32)
    assert not seen, seen


@pytest.mark.parametrize("more", [{}, {"faces": 200}, {"rmsprop_steps": 1}])
def test_products_have_full_precision_whatever_the_caller_has(more):
    seen = []

    def recording(shared, per_shape, points):
        seen.append(jax.config.jax_default_matmul_precision)
        return ball(shared, per_shape, points)

    with jax.default_matmul_precision("bfloat16"):
        extraction.extract(batch(field(recording, center=(0, 0, 0), radius=0.5)), 12, **more)
    assert seen and set(seen) == {"highest"}


def test_only_the_largest_component_is_kept_on_demand():
    fields = batch(field(balls, centers=[(0.5, 0, 0), (-0.4, 0, 0)], radii=[0.2, 0.4]))
    (both,) = extraction.extract(fields, 32)
    (one,) = extraction.extract(fields, 32, largest=True)
    assert both.euler_number == 4 and one.euler_number == 2 and one.watertight
    np.testing.assert_allclose(one.bounds, [[-0.8, -0.4, -0.4], [0, 0.4, 0.4]], atol=0.01)
    assert len(one.normals) == len(one.vertices) == one.faces.max() + 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "sparse, dense, mise"),
        ({"resolution": 0}, "cells"),
        ({"level": np.nan}, "level"),
        ({"level": [0, 0, 0]}, "level"),
        ({"box": [(0, 0, 0), (0, 1, 1)]}, "box"),
    ],
)
def test_what_cannot_be_extracted_is_refused(options, message):
    fields = batch(*(field(ball, center=(0, 0, 0), radius=0.5) for _ in range(2)))
    with pytest.raises((InputError, ValueError), match=message):
        extraction.extract(fields, **{"resolution": 16, **options})


@pytest.mark.parametrize("backend", ["host", "device"])
def test_one_two_and_four_devices_give_the_same_meshes(backend):
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "NPROC": "16", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = [sys.executable, SUPPORT / "device_meshes.py", backend]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("equal"), done.stderr


# trained networks


def test_trained_networks_give_the_topologies_of_their_shapes(data):
    """Twelve solids as one batch, and unit cells of a lattice that run through the faces of the box."""
    pytest.importorskip("torch")  # reads their files
    solids = deepsdf_checkpoint.read(data / "deepsdf_trained/twelve_solids")
    fields = solids.network.fields(solids.codes)
    meshes = extraction.extract(fields, 64)
    assert all(mesh.watertight and accepts(mesh) for mesh in meshes)
    # torus and link have one hole, the frame of a box has five, two spheres are two
    assert [mesh.euler_number for mesh in meshes] == [2, 2, 2, 0, 2, 2, 0, -8, 2, 2, 4, 2]
    for mesh, dense in zip(meshes[6:8], extraction.extract(fields[6:8], 64, method="dense"), strict=True):
        same(mesh, dense, 64)
    bars = deepsdf_checkpoint.read(data / "deepsdf_trained/round_cross")
    (mesh,) = extraction.extract(bars.network.fields(bars.codes[5:6]), 64)
    assert mesh.watertight and accepts(mesh) and len(np.unique(np.abs(mesh.bounds))) == 1


def test_small_balls_are_found_in_a_long_box():
    """Cells four times as long as wide: the bound on values is over their longest edge."""
    rng, radii = np.random.default_rng(0), np.linspace(0.06, 0.2, 20)
    long = [[-4, -1, -1], [4, 1, 1]]
    fields = batch(
        *(field(ball, center=rng.uniform((-3.7, -0.7, -0.7), (3.7, 0.7, 0.7)), radius=r, box=long) for r in radii)
    )
    sparse = extraction.extract(fields, 64, refine_steps=0, normals=False)
    dense = extraction.extract(fields, 64, method="dense", refine_steps=0, normals=False)
    for one, other in zip(sparse, dense, strict=True):
        assert len(one.faces) == len(other.faces) > 0


@pytest.mark.parametrize("coarse", [1, 2, 100])
def test_the_first_grid_may_be_as_coarse_as_one_cell(coarse):
    one = field(ball, center=(0.1, 0, 0), radius=0.6)
    for resolution in (1, 24, 33):
        sparse, dense = (
            extraction.extract(one, resolution, coarse=coarse),
            extraction.extract(one, resolution, method="dense"),
        )
        assert len(sparse.faces) == len(dense.faces), resolution


@pytest.mark.parametrize("coarse", [0, -1])
@pytest.mark.parametrize("method", ["sparse", "mise"])
def test_a_first_grid_has_cells(coarse, method):
    with pytest.raises(InputError, match="coarse is"):
        extraction.extract(field(ball, center=(0, 0, 0), radius=0.6), 32, method=method, coarse=coarse)


def test_a_threshold_is_the_occupancy_on_the_surface():
    logits = field(lambda shared, per_shape, p: 10 * (0.35 - jnp.linalg.norm(p, axis=-1)), inside=1)
    for tau, radius in ((0.2, 0.35 + math.log(4) / 10), (0.5, 0.35), (0.9, 0.35 - math.log(9) / 10)):
        mesh = extraction.extract(logits, 32, threshold=tau)
        np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), radius, atol=1e-3 * 2 / 32)
        same = extraction.extract(logits, 32, level=math.log(tau) - math.log1p(-tau))
        np.testing.assert_array_equal(mesh.vertices, same.vertices)
    with pytest.raises(InputError, match="level and threshold 0.5 are given"):
        extraction.extract(logits, 32, level=0.0, threshold=0.5)
    with pytest.raises(InputError, match="these fields are distances"):
        extraction.extract(field(ball, center=(0, 0, 0), radius=0.6), 32, threshold=0.5)
    with pytest.raises(ConfigError, match="threshold is 1.0, but it is an occupancy"):
        Surfaces(threshold=1.0)
    with pytest.raises(ConfigError, match="surfaces.threshold is given, but not read: the surface of distances"):
        train.configured(registry.find("deepsdf"), None, {"data": "chair", "surfaces": {"threshold": 0.4}})
