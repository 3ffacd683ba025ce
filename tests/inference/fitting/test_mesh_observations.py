"""Meshes in memory, of jonet and of trimesh, as observations: `fit`, `encode`, `reconstruct`, `sample_sdf`."""

import numpy as np
import pytest
import trimesh
from chairs import QUICK, load_chairs

import jonet
from jonet.data import scans
from jonet.errors import InputError, JonetError, MeshError
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.model import Model

pytestmark = pytest.mark.unoptimized


def box(size: float, at=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    found = trimesh.creation.box((size, 0.7 * size, 0.4 * size))
    found.apply_translation(at)
    return found


@pytest.fixture(scope="module")
def model():
    chairs = load_chairs()
    codes = jonet.Codes(chairs.codes, tuple(map(str, range(len(chairs.codes)))))
    return Model("deepsdf", chairs.network, "sphere", codes, chairs.prior, QUICK, jonet.model.Surfaces(resolution=16))


def test_meshes_of_both_libraries_are_fitted_alike(model):
    far = box(300, (5e5, 4e6, 0))
    codes = model.fit(meshes=[box(1), Mesh(far.vertices, far.faces)], names=["one", "far"])
    assert codes.names == ("one", "far") and len(codes.similarities) == 2
    np.testing.assert_allclose(codes.similarities[1].scale * 300, codes.similarities[0].scale, rtol=1e-6)
    again = model.fit(meshes=box(1), names=["one"])
    np.testing.assert_allclose(again.residual, codes.residual[:1], rtol=0.05)
    size = np.ptp(model.extract(codes)[1].bounds, axis=0).max()
    assert 100 < size < 900  # in input units
    field = model.field(codes, frame="input")
    assert len(field) == 2 and 10 < field.valid_distance[1] < 40


def test_files_and_meshes_give_the_same_observations(tmp_path):
    jonet.write(Mesh(box(2).vertices, box(2).faces), tmp_path / "box.ply")
    mesh = jonet.read(tmp_path / "box.ply")
    for kind in ("samples", "points"):
        of_file = scans.read(tmp_path / "box.ply", surface=kind == "points")
        of_mesh = scans.of_mesh(mesh, kind, "sphere")
        assert of_mesh.name == of_file.name == "box" and of_mesh.similarity.scale == of_file.similarity.scale
        np.testing.assert_array_equal(getattr(of_mesh, kind), getattr(of_file, kind))


@pytest.mark.parametrize("kind", ["points", "voxels"])
def test_encoders_get_what_they_take(model, monkeypatch, kind):
    taken = []

    def encode(network, inputs, kind):
        taken.append((inputs, kind))
        return np.zeros((len(inputs), 16), np.float32)

    monkeypatch.setattr("jonet.inference.encode.encode", encode)
    encoder = Model("occupancy", model.network, "cube", inputs=Inputs(kind, 32))
    codes = encoder.encode(meshes=[box(50, (9, 9, 9))])
    ((inputs, given),) = taken
    assert given == kind and codes.similarities[0].scale == pytest.approx(1 / 50)
    if kind == "points":
        assert inputs.shape == (1, 32, 3) and np.abs(inputs).max() == pytest.approx(0.5, abs=0.05)
    else:
        assert inputs.shape == (1, 32, 32, 32) and inputs.mean() == pytest.approx(0.7 * 0.4, abs=0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"meshes": []}, "meshes holds no shape"),
        ({"meshes": ["a.ply"]}, r"meshes\[0\] is 'a.ply'"),
        ({"meshes": np.zeros((3, 3))}, "meshes is"),
        ({"meshes": [box(1)], "points": [np.eye(3)]}, "points is given together with meshes"),
        ({"meshes": [box(1)], "frame": "input"}, "frame is given with meshes"),
        ({"meshes": [box(1)], "names": ["a", "b"]}, "names has 2 entries for 1 shape"),
    ],
)
def test_wrong_meshes_are_refused(model, given, words):
    with pytest.raises(InputError, match=words):
        model.fit(**given)


def test_networks_of_images_take_no_meshes(model):
    images = Model("occupancy", model.network, "cube", inputs=Inputs("images", 32))
    with pytest.raises(InputError, match="meshes given to encode, but this network encodes images"):
        images.reconstruct(meshes=[box(1)])


def test_sampled_distances_are_those_of_the_mesh():
    mesh = box(40, (1e6, 0, -2e6))
    points, distances = jonet.sample_sdf(mesh, 2000, seed=3)
    assert points.shape == (2000, 3) and distances.shape == (2000,) and points.dtype == distances.dtype == np.float64
    away = np.abs(points - [1e6, 0, -2e6]) - np.array([20, 14, 8])
    wanted = np.linalg.norm(np.maximum(away, 0), axis=1) + np.minimum(away.max(1), 0)
    np.testing.assert_allclose(distances, wanted, atol=1e-3)
    assert (np.abs(distances) < 3).mean() > 0.6 and (distances < 0).any()
    again = jonet.sample_sdf(mesh, 2000, seed=3)
    np.testing.assert_array_equal(again[0], points)
    everywhere = jonet.sample_sdf(mesh, 500, near=0)[1]
    assert np.median(np.abs(everywhere)) > 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mesh": "a.ply"}, "mesh is 'a.ply'"),
        ({"mesh": box(1), "count": 0}, "count is 0"),
        ({"mesh": box(1), "near": 2}, "near is 2"),
        ({"mesh": box(1), "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_of_sampling_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        jonet.sample_sdf(**given)


def test_meshes_without_an_inside_are_refused():
    sheet = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    with pytest.raises(MeshError):
        jonet.sample_sdf(sheet, 100)


TINY = {
    "minutes": 0,
    "steps": 2,
    "batch_shapes": 2,
    "batch_points": 8,
    "network": {"dims": (8, 8), "norm_layers": (), "latent_in": (), "latent_size": 2},
    "samples": {"near": 200, "uniform": 40, "surface": 50},
}


def test_meshes_in_memory_are_trained_on(tmp_path):
    meshes = [box(1), Mesh(box(3).vertices, box(3).faces, name="a/b")]
    trained = jonet.train(meshes, workdir=tmp_path / "run", **TINY)
    assert len(trained.codes) == 2 and trained.history["data"] == "2 meshes in memory"
    again = jonet.train(meshes, workdir=tmp_path / "run", **TINY)
    np.testing.assert_array_equal(again.codes.values, trained.codes.values)
    with pytest.raises(JonetError, match="built from other shapes"):
        jonet.train([*meshes, box(2)], workdir=tmp_path / "run", **TINY)


def test_one_mesh_is_one_shape_in_detail(monkeypatch):
    seen = []
    monkeypatch.setattr("jonet.run.train.prepare_held", lambda run, meshes: seen.append((run.config, meshes)))
    monkeypatch.setattr("jonet.run.train.train_network", lambda run, store: store)
    jonet.train(box(1))
    ((config, meshes),) = seen
    assert config.representation == "spline" and len(meshes) == 1


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "data is an empty list"),
        ([box(1), "b.ply"], {}, r"data\[1\] is 'b.ply'"),
        ([box(1), box(2)], {"shapes": {"train": 3}}, "shapes.train is given, but not read"),
    ],
)
def test_wrong_meshes_to_train_on_are_refused(data, options, words):
    with pytest.raises(JonetError, match=words):
        jonet.train(data, **options)
