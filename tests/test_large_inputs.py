"""Steps over many parts, points or shapes: the results of the obvious way, without its quadratic time and memory."""

import time
import tracemalloc

import numpy as np
import pytest
from scipy.spatial import ConvexHull, cKDTree

from jonet.codes import Codes
from jonet.geometry import boundary, orientation
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.fitting import latents, observations
from jonet.inference.fitting.observations import Observations

CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4]]
    + [[1, 5, 7], [1, 7, 3]]
)


def boxes(corners, sides, inverted):
    """Boxes as one surface; the inverted ones are inside out."""
    vertices = np.concatenate([corner + side * CORNERS for corner, side in zip(corners, sides, strict=True)])
    faces = np.concatenate([8 * i + (FACES[:, ::-1] if flip else FACES) for i, flip in enumerate(inverted)])
    return orientation.Surface.of(vertices, faces)


def containers_one_by_one(surface, solid, sense):
    """As `orientation.containers`, for every pair of parts."""
    container, box = np.full(len(sense), -1), {}
    for part in solid:
        points = surface.vertices[surface.faces[surface.part == part]].reshape(-1, 3)
        box[part] = points.min(0), points.max(0)
    for rank, outer in enumerate(solid):
        for inner in solid[rank + 1 :]:
            within = (box[inner][0] >= box[outer][0]).all() and (box[inner][1] <= box[outer][1]).all()
            if sense[inner] != sense[outer] and within:
                points = surface.vertices[surface.faces[surface.part == inner][:, 0]]
                faces = surface.faces[surface.part == outer]
                if (np.abs(orientation.winding(surface.vertices, faces, points)) > 0.5).all():
                    container[inner] = outer
    return container


def test_containers_are_those_of_all_pairs_of_parts():
    rng = np.random.default_rng(0)
    sides = rng.choice([0.02, 0.1, 0.6], (120, 1)) * rng.uniform(0.8, 1, (120, 3))
    surface = boxes(rng.uniform(0, 0.6, (120, 3)), sides, rng.random(120) < 0.5)
    a, b, c = np.moveaxis(surface.vertices[surface.faces], 1, 0)
    volume = np.bincount(surface.part, np.einsum("ij,ij->i", a, np.cross(b, c)))
    solid, sense = np.argsort(-np.abs(volume)), np.where(volume < 0, -1, 1)
    found = orientation.containers(surface, solid, sense)
    np.testing.assert_array_equal(found, containers_one_by_one(surface, solid, sense))
    assert 20 < (found >= 0).sum() < 100


def test_many_parts_are_oriented_in_proportional_time():
    """8,000 boxes, half of them inside out: all pairs took 9 s."""
    grid = np.stack(np.meshgrid(*[np.arange(20.0)] * 3), -1).reshape(-1, 3)
    surface = boxes(grid, np.full(8000, 0.7), np.arange(8000) % 2)
    begun = time.process_time()
    flip, cavities = orientation.flip_closed(surface, np.bincount(surface.part, surface.area))
    assert time.process_time() - begun < 4 and cavities == 0 and (flip < 0).sum() == 4000


@pytest.mark.parametrize("seed", range(4))
def test_chains_of_near_points_are_those_of_all_pairs(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    clusters = [center + 0.1 * rng.normal(size=(80, 3)) for center in rng.uniform(0, 3, (12, 3))]
    points, radius = np.concatenate(clusters), [0.03, 0.06, 0.1, 0.3][seed]
    i, j = cKDTree(points).query_pairs(radius, output_type="ndarray").T
    expected = orientation.components(i, j, len(points))[1]
    for pairs in (0, np.inf):  # grouped by cells, and listed
        monkeypatch.setattr(orientation, "PAIRS", pairs)
        found = orientation.chained(points, radius)
        labels = {*zip(expected.tolist(), found.tolist(), strict=True)}  # equal but for the numbers of the labels
        assert len(labels) == expected.max() + 1 == found.max() + 1


def test_a_small_open_part_of_a_large_mesh_is_welded_in_bounded_memory():
    """4,000 vertices within the tolerance have 8 million pairs."""
    count = 4000
    vertices = np.concatenate([1e-7 * np.random.default_rng(0).normal(size=(count, 3)), np.eye(3)])
    faces = np.concatenate([np.arange(count // 3 * 3).reshape(-1, 3), [[count, count + 1, count + 2]]])
    tracemalloc.start()
    kept, left = orientation.weld(vertices, faces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
    np.testing.assert_array_equal(kept[left], [[count, count + 1, count + 2]])


@pytest.mark.parametrize("width", [1e-5, 1e-9])
def test_narrow_faces_are_cut_into_a_bounded_number_of_pieces(width):
    corner, side = np.zeros((10, 3)), np.array([1.0, width, width])
    corner[:, 1] = np.arange(10) / 10
    surface = boxes(corner, np.tile(side, (10, 1)), np.zeros(10))
    mesh = Mesh(surface.vertices, surface.faces)
    assert len(boundary._pieces(mesh.corners, boundary._size(mesh))[0]) < 4 * boundary.CUTS


def test_pieces_of_usual_meshes_are_not_limited():
    mesh = Mesh(CORNERS * [1, 0.01, 1], FACES)
    assert boundary._size(mesh) == 2 * np.sqrt(mesh.area / boundary.PIECES)


def codes(count: int) -> Codes:
    names = tuple(f"shape {i}" for i in range(count))
    similarities = tuple(Similarity(1.0 + i) for i in range(count))
    return Codes(np.arange(2.0 * count, dtype=np.float32).reshape(count, 2), names, similarities)


def test_many_codes_are_joined_and_selected_in_proportional_time():
    """Sums of tuples and searches of names took 12 s."""
    whole = codes(20_000)
    begun = time.process_time()
    joined = Codes.joined([whole[i] for i in range(len(whole))])
    backwards = joined[list(reversed(whole.names))]
    assert time.process_time() - begun < 4
    np.testing.assert_array_equal(joined.values, whole.values)
    np.testing.assert_array_equal(backwards.values, whole.values[::-1])
    assert joined.names == whole.names and joined.similarities == whole.similarities


def ball(count: int, dtype=np.float32) -> np.ndarray:
    points = np.random.default_rng(0).standard_normal((count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True) * [0.9, 0.5, 0.7]).astype(dtype)


@pytest.mark.parametrize("points", [ball(500), (ball(500) > 0).astype(np.float32) + 0.2 * ball(500)])
@pytest.mark.parametrize("products", [True, False])
def test_the_distance_from_the_hull_is_the_largest_of_all_planes(monkeypatch, points, products):
    """By all products, and by a tree of the planes."""
    monkeypatch.setattr(observations, "PLANES", 2000 if products else 0)
    around = np.random.default_rng(1).uniform(-1, 1, (2000, 3)).astype(np.float32)
    planes = ConvexHull(points).equations
    largest = (around @ planes[:, :3].T + planes[:, 3]).max(1)
    np.testing.assert_allclose(observations._beyond_hull(points, around), largest, rtol=0, atol=1e-15)
    assert 500 < (largest > 0).sum() < 2000


def test_a_large_cloud_without_normals_is_observed_in_bounded_memory():
    """Its hull has 16,000 planes: those of all points took 2 GB."""
    given = observations.ObservedArrays.checked(points=[ball(8000)])
    tracemalloc.start()
    observations.observe(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 25


@pytest.mark.parametrize(
    "rows, limit, tries, together", [(20_000, 8192, 1, 1024), (500_000, None, 1, 16), (100, 8192, 3, 27962)]
)
def test_batches_of_large_shapes_are_smaller(rows, limit, tries, together):
    shape = Observations(np.zeros((rows, 3)), *[np.zeros(rows)] * 4)
    assert latents._together([shape] * 2, limit, tries) == together
