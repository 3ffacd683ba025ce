"""The preset `single`: one mesh as splines, by a run and by `jonet.train`; and the preset of a network of its own."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh

import jonet
from jonet.errors import CheckpointError, ConfigError, InputError
from jonet.networks.spline import SplineSpecs
from jonet.run import program
from jonet.tasks import registry
from jonet.training import splines

SAMPLES = {"near": 20_000, "uniform": 4_000, "surface": 500}
SPLINE = {"resolution": 64, "tolerance": 1e-3}


@pytest.fixture(scope="module")
def mesh():
    return trimesh.creation.icosphere(3, 5.0)


@pytest.fixture(scope="module")
def model(mesh):
    return jonet.train(mesh, samples=SAMPLES, spline=SPLINE)


def test_one_mesh_is_splines_unless_asked_otherwise(model, mesh):
    assert model.kind == "spline" and len(model.codes) == 1
    (rebuilt,) = model.extract(model.codes, 48)
    assert rebuilt.watertight and np.abs(np.linalg.norm(rebuilt.vertices, axis=1) - 5).max() < 0.1
    field = model.field(model.codes, frame="input")
    found = field(np.array([[[4.5, 0, 0], [0, 0, 5.1], [0, 9, 0]]]))[0]
    assert found[:2] == pytest.approx([-0.5, 0.1], abs=0.05) and 3 < found[2] < 4  # a lower bound beyond the cube
    assert registry.find("deepsdf").presets["single_mlp"].representation == "network"


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = jonet.load(tmp_path / "model")
    assert loaded.digest == model.digest and loaded.history == model.history
    assert loaded.network.num_parameters == model.network.num_parameters < 60_000
    assert (tmp_path / "model" / "arrays.npz").stat().st_size < 150_000  # levels, not the blocks that follow from them
    first, second = (some.extract(some.codes, 32)[0] for some in (model, loaded))
    np.testing.assert_array_equal(first.vertices, second.vertices)


def test_arrays_of_another_network_are_refused(model, tmp_path):
    for name, shared in (
        ("blocks", {"blocks": np.zeros((8, 6, 6, 6))}),
        ("no grid", {"levels": {}, "box": np.zeros((2, 3))}),
        ("one array", {"levels": np.zeros(3), "box": np.zeros((2, 3))}),
        ("coarser", {"levels": {"values_8": np.zeros(1000, np.int16)}, "box": np.zeros((2, 3))}),
    ):
        network = dataclasses.replace(model.network, module=Other(model.network.specs), shared=shared)
        dataclasses.replace(model, network=network, codes=None).save(tmp_path / name)
        with pytest.raises(CheckpointError, match="not those of its kind"):
            jonet.load(tmp_path / name)


@dataclasses.dataclass(frozen=True)
class Other:
    """A network whose arrays are kept as they are."""

    specs: SplineSpecs


def test_a_run_scores_it(mesh, tmp_path):
    mesh.export(tmp_path / "ball.ply")
    options = ["--samples.near=20000", "--samples.uniform=4000", "--spline.resolution=64", "--surfaces.resolution=48"]
    options += [
        "--scores.volume-points=2000",
        "--scores.surface-points=2000",
        "--scores.chamfer-points=1000",
        "--quiet",
    ]
    command = [
        "--task=deepsdf",
        f"--data={tmp_path / 'ball.ply'}",
        f"--workdir={tmp_path / 'run'}",
        "--quiet",
        *options,
    ]
    program.run(command)
    (shape,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["shapes"]
    values = json.loads((tmp_path / "run" / "metrics.json").read_text())
    network = jonet.load(tmp_path / "run").network
    assert values["parameters"] == network.num_parameters and values["bytes"]["network"] < 200_000
    assert shape["iou"] > 0.97 and (tmp_path / "run" / "report.html").is_file()


def test_what_splines_do_not_have_is_refused(model, mesh):
    with pytest.raises(ConfigError, match="minutes is given.*single_mlp"):
        jonet.train(mesh, minutes=1.0)
    with pytest.raises(ConfigError, match="network.*is given.*splines are solved"):
        jonet.train(mesh, network={"latent_size": 8})
    with pytest.raises(ConfigError, match="holds one shape, but there are 2"):
        jonet.train([mesh, mesh], preset="single", samples=SAMPLES, spline=SPLINE)
    with pytest.raises(ConfigError, match="latent_size is 0, which holds one shape, but there are 2 training shapes"):
        jonet.train([mesh, mesh], preset="single_mlp", samples=SAMPLES, steps=1)
    with pytest.raises(ConfigError, match="spline.*is given.*representation is network"):
        jonet.train([mesh, mesh], preset="quick", spline=SPLINE)
    with pytest.raises(InputError, match="are not fitted"):
        model.fit(points=[np.zeros((10, 3))])


@pytest.mark.parametrize("preset", ["single", "single_mlp"])
def test_unseen_shapes_without_codes_are_refused_before_anything_is_sampled(preset, tmp_path):
    with pytest.raises(ConfigError, match="1 training shape and 24 test shapes"):
        program.run([f"--preset={preset}", "--data=mug", "--shapes.train=1", f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run" / "store").exists()


def test_samples_beyond_the_cube_are_no_samples(mesh, monkeypatch):
    class Seen(Exception):
        pass

    def fit(shapes, options):
        raise Seen(*shapes)

    monkeypatch.setattr(splines, "fit", fit)
    with pytest.raises(Seen) as found:
        jonet.train(mesh, samples=SAMPLES | {"variances": (0.05, 0.05)}, spline=SPLINE)
    (samples,) = found.value.args
    assert 18_000 < len(samples.points) < 24_000 and np.abs(samples.points).max() <= 1


def test_every_option_of_training_counts_or_is_refused():
    config = registry.find("deepsdf").presets["single"]
    unread = dataclasses.replace(config).unread()
    assert {"network", "learning", "optimizer", "minutes", "fitting"} <= unread.keys()
    assert not {"spline", "seed", "representation"} & unread.keys()
