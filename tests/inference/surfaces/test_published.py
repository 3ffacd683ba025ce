"""The authors' extraction, by scikit-image: its recorded meshes, and the surfaces of ours beside it."""

import numpy as np
import pytest
import trimesh
from analytic import balls, batch, block, field, torus
from chairs import load_chairs
from paths import RECORDED
from scipy.spatial import cKDTree
from test_mise import BOX, CASES, cut_by_box, prepare, sphere

from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import extraction, grid, published
from jonet.networks.field import Field
from jonet.settings.surfaces import Surfaces

EDGE = 1.01e-4  # cells: ours keep vertices 1e-4 away from samples


def test_the_recorded_volume_gives_the_recorded_mesh():
    """DeepSDF's program at N = 12: volume in, vertices in original coordinates and the faces themselves out."""
    recorded = np.load(RECORDED / "surface" / "grid.npz")
    places, faces = published.dense(-recorded["mesh12_volume"])
    np.testing.assert_array_equal(faces, recorded["mesh12_faces"])
    vertices = (places * 2 / 11 - 1) / recorded["mesh12_scale"] - recorded["mesh12_offset"]
    np.testing.assert_allclose(vertices, recorded["mesh12_vertices"], atol=2e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_octrees_give_the_recorded_meshes(name):
    recorded = np.load(RECORDED / "surface" / "mise.npz")
    fields, coarse, resolution, _ = prepare(name, recorded)
    (mesh,) = extraction.extract(fields, resolution, method="published", coarse=coarse)
    expected, faces = recorded[f"{name}/vertices"], recorded[f"{name}/faces"]
    assert mesh.watertight and mesh.volume > 0
    assert (len(mesh.vertices), len(mesh.faces)) == (len(expected), len(faces))
    for one, other in ((mesh.vertices, expected), (expected, mesh.vertices)):
        assert cKDTree(one).query(other)[0].max() < 5e-5 * 1.1 / resolution


def ambiguous(values: np.ndarray) -> int:
    """How many cells of a grid of signed values have a face with two corners inside on a diagonal, and two outside."""
    inside = values > 0
    cells = np.zeros(np.subtract(inside.shape, 1), bool)
    for axis in range(3):
        a = np.moveaxis(inside, axis, 0)
        corners = a[:, :-1, :-1], a[:, 1:, :-1], a[:, 1:, 1:], a[:, :-1, 1:]
        face = (corners[0] == corners[2]) & (corners[1] == corners[3]) & (corners[0] != corners[1])
        cells |= np.moveaxis(face[:-1] | face[1:], 0, axis)
    return int(cells.sum())


def on_edges(vertices: np.ndarray, mesh: Mesh, box: np.ndarray, resolution: int) -> np.ndarray:
    """Which of a mesh's vertices lie on edges of the grid."""
    places = (vertices - box[0]) / (box[1] - box[0]) * resolution
    return (np.abs(places - places.round()) < EDGE).sum(axis=1) >= 2


def parts(mesh: Mesh) -> int:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).body_count


def chair() -> Field:
    chairs = load_chairs()
    return chairs.network.fields(chairs.codes[:1])[0]


FIELDS = {
    "torus": lambda: field(torus, radius=0.6, tube=0.25),
    "block": lambda: field(block, center=(0.05, 0, -0.1), half=(0.5, 0.31, 0.7)),
    "balls": lambda: field(balls, centers=[(0.6, 0, 0), (0, 0.5, 0), (0, 0, -0.7)], radii=[0.3, 0.2, 0.1]),
    "chair": chair,
    "logits": lambda: field(sphere, level=-1.386, box=BOX, inside=1),
}


@pytest.mark.parametrize("name", FIELDS)
def test_ours_and_theirs_are_the_same_surface(name, record_property):
    one, resolution = FIELDS[name](), 32
    ours, theirs = (
        extraction.extract(one, resolution, method=method, refine_steps=0) for method in ("dense", "published")
    )
    box = np.asarray(one.per_shape["box"], float)
    cell = np.ptp(box, axis=0).max() / resolution
    values = grid.evaluate(Field.stack([one]), resolution)[0]
    found = ambiguous(one.inside * (values - float(one.per_shape["level"])))
    record_property("ambiguous cells", found)
    shared = on_edges(theirs.vertices, theirs, box, resolution)
    assert cKDTree(ours.vertices).query(theirs.vertices[shared])[0].max() < EDGE * cell
    assert cKDTree(theirs.vertices).query(ours.vertices)[0].max() < EDGE * cell
    assert (~shared).sum() <= found  # Lewiner's table has a vertex in the middle of some ambiguous cells
    assert theirs.volume > 0
    np.testing.assert_allclose(theirs.volume, ours.volume, rtol=2e-3)
    if name != "block":  # whose formula has no gradient beside its faces
        np.testing.assert_allclose(np.linalg.norm(theirs.normals, axis=1), 1, atol=1e-5)
    if not found:
        assert theirs.watertight and parts(ours) == parts(theirs)
        assert ours.euler_number == theirs.euler_number and len(ours.faces) == len(theirs.faces)


def test_random_grids_share_every_vertex_on_an_edge():
    """Where half of the cells are ambiguous: other triangles, the same vertices."""
    rng = np.random.default_rng(0)
    signed = -np.ones((14, 14, 14), np.float32)
    signed[1:-1, 1:-1, 1:-1] = rng.standard_normal((12,) * 3)
    edges = sum(int((np.diff(signed > 0, axis=axis)).sum()) for axis in range(3))
    assert ambiguous(signed) > 500
    with_centers, classic = published.dense(signed), published.padded(signed)
    assert len(with_centers[0]) > edges == len(classic[0])  # only Lewiner's table has vertices inside of cells
    for places, _ in (with_centers, classic):
        whole = (np.abs(places - places.round()) < 1e-4).sum(axis=1) >= 2
        assert whole.sum() == edges
        assert len(np.unique(places[whole].round(5), axis=0)) == edges


def test_at_the_box_distances_stay_open_and_occupancies_are_closed():
    beyond = extraction.extract(field(block, center=(0, 0, 0), half=(0.5, 2, 0.5)), 16, method="published")
    assert not beyond.watertight and np.abs(beyond.vertices[:, 1]).max() == 1
    cut = extraction.extract(field(cut_by_box, box=BOX, inside=1), 32, method="published")
    assert cut.watertight and np.abs(cut.vertices).max() - 0.55 < 1e-6


def test_settings_apply_to_a_batch():
    fields = batch(*(field(balls, centers=[(0.5, 0, 0), (-0.5, 0, 0)], radii=radii) for radii in ([0.3, 0.2], [0, 0])))
    settings = Surfaces(resolution=24, method="published", largest=True, faces=200)
    with pytest.warns(UserWarning, match="field 1 has no surface"):
        first, second = extraction.extract(fields, **vars(settings))
    assert len(first.faces) <= 200 and first.euler_number == 2 and first.vertices[:, 0].min() > 0
    assert first.normals is not None and not len(second.faces)
