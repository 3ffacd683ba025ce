"""Exported files: read by a process that has only numpy and JAX, they give the same values."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

from jonet import __main__ as shell
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.sources import Procedural
from jonet.errors import ConfigError
from jonet.geometry.mesh import Similarity
from jonet.inference import export
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks import occupancy
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.training import autodecoder

READER = """
import json, sys
import jax, numpy as np
from jax import export

result = {}
for name in sys.argv[2:]:
    with np.load(f"{sys.argv[1]}/{name}.npz") as file, np.load(f"{sys.argv[1]}/{name}_given.npz") as given:
        function = export.deserialize(bytearray(file["function"]))
        about = json.loads(str(file["about"]))
        result[name] = function.call(*(given[key] for key in about["arguments"]))
assert not any(module.split(".")[0] in ("jonet", "flax", "optax") for module in sys.modules)
np.savez(f"{sys.argv[1]}/result.npz", **result)
"""
RNG = np.random.default_rng(0)


def cloud(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("flatbuffers")
    network = DeepSDFDecoder(Specs(latent_size=6, dims=(24,) * 3, latent_in=(1,), norm_layers=(0, 1, 2)))
    shared, codes = autodecoder.initial(network, 5, jax.random.key(1), start="centered")
    codes = np.asarray(codes)
    transforms = tuple(Similarity(2.0, translation=[i, 0, 0]) for i in range(5))
    return Model(
        "deepsdf", BoundNetwork(network, shared), "sphere", Codes(codes, tuple("abcde"), transforms), Prior.of(codes)
    )


@pytest.fixture(scope="module")
def logits():
    """A conditional decoder with batch norms, as it is before training."""
    specs = occupancy.Specs(encoder="idx", c_dim=8, hidden_size=16, n_blocks=2)
    network = occupancy.OccupancyNetwork(specs)
    start = occupancy.OccupancyDecoder(specs).init(jax.random.key(0), cloud(1, 4), np.zeros((1, 0)), np.zeros((1, 8)))
    return network, {"params": {"decoder": start["params"]}}, {"decoder": start["batch_stats"]}


def test_a_process_without_this_package_reads_the_same_values(model, logits, tmp_path):
    given = {
        "shape": {"points": cloud(77)},
        "network": {"codes": model.codes.values[[3, 1]], "points": cloud(2, 50)},
        "logits": {"codes": RNG.standard_normal((3, 8)).astype(np.float32), "points": cloud(3, 20)},
    }
    field = model.field(model.codes.values[2])
    export.write_field(tmp_path / "shape.npz", field)
    export.write_network(tmp_path / "network.npz", model.network, arrays={})
    export.write_network(tmp_path / "logits.npz", BoundNetwork(*logits), arrays={})
    for name, arrays in given.items():
        np.savez(tmp_path / f"{name}_given.npz", **arrays)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", READER, tmp_path, *given]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fields = Model("occupancy", BoundNetwork(*logits), "cube").field(given["logits"]["codes"])
    wanted = {
        "shape": field(given["shape"]["points"]),
        "network": model.field(given["network"]["codes"])(given["network"]["points"]),
        "logits": fields(given["logits"]["points"]),
    }
    with np.load(tmp_path / "result.npz") as result:
        for name, values in wanted.items():
            assert np.ptp(values) > 1e-3
            np.testing.assert_allclose(result[name], values, atol=2e-6, err_msg=name)


def test_the_file_says_what_it_is(model, tmp_path):
    field = model.field(model.codes.values[0])
    export.write_field(tmp_path / "a" / "shape.npz", field, similarity=Similarity(2.0, translation=[1, 0, 0]))
    with np.load(tmp_path / "a" / "shape.npz") as file:
        about, content = json.loads(str(file["about"])), file["function"]
    read = jax_export.deserialize(bytearray(content))
    assert set(read.platforms) == {"cpu", "cuda", "tpu"} == set(about["platforms"])
    assert about["version"] == export.VERSION and about["written_by"] == f"jax {jax.__version__}"
    assert about["inside"] == "values below level" and about["level"] == 0
    assert about["to_frame"]["scale"] == 2 and about["to_frame"]["translation"] == [1, 0, 0]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["shape.npz"]


def test_gradients_are_those_of_the_field(model, tmp_path):
    field, points = model.field(model.codes.values[0]), cloud(30)
    export.write_field(tmp_path / "shape.npz", field, gradients=True)
    with np.load(tmp_path / "shape.npz") as file:
        read = jax_export.deserialize(bytearray(file["function"]))
    np.testing.assert_allclose(
        jax.grad(lambda p: read.call(p).sum())(points), field.gradient(points)[1], rtol=1e-4, atol=1e-5
    )
    export.write_field(tmp_path / "plain.npz", field)
    assert (tmp_path / "plain.npz").stat().st_size < 0.7 * (tmp_path / "shape.npz").stat().st_size


def test_flatbuffers_that_are_missing_are_named(model, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jax._src.export.ser")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ConfigError, match="pip install flatbuffers"):
        export.write_field(tmp_path / "shape.npz", model.field(model.codes.values[0]))
    assert not list(tmp_path.iterdir())


def test_models_from_the_shell(model, tmp_path, capfd):
    model.save(tmp_path / "model")
    assert shell.main(["export", str(tmp_path), "--out", str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as file:
        np.testing.assert_array_equal(file["codes"], model.codes.values)
        assert file["names"].tolist() == list("abcde")
    assert "[B, 6]" in capfd.readouterr().out
    model.codes[1:3].save(tmp_path / "two.npz")
    arguments = ["export", str(tmp_path), str(tmp_path / "two.npz"), "--shape", "c", "--out", str(tmp_path / "c.npz")]
    assert shell.main(arguments) == 0
    points = cloud(10)
    with np.load(tmp_path / "c.npz") as file:
        values = jax_export.deserialize(bytearray(file["function"])).call(points)
        assert json.loads(str(file["about"]))["to_frame"]["translation"] == [2, 0, 0]
    np.testing.assert_allclose(values, model.field(model.codes.values[2])(points), atol=2e-6)
    arguments[4] = "e"
    assert shell.main(arguments) == 1
    assert "there are b, c" in capfd.readouterr().err


def test_stores_from_the_shell(tmp_path, capfd):
    recipe = Recipe(near=200, uniform=100, surface=50)
    sources = [Procedural("mug", 0, i) for i in range(2)]
    stores.build(tmp_path / "run" / "store", sources, recipe, progress=False)
    out = tmp_path / "samples"
    assert shell.main(["export", str(tmp_path / "run"), "--layout", "deepsdf", "--out", str(out)]) == 0
    assert "2 shapes" in capfd.readouterr().out
    assert len(list((out / "SdfSamples").rglob("*.npz"))) == 2
    assert shell.main(["export", str(tmp_path / "run"), "--layout", "deepsdf", "--out", str(out)]) == 1
    assert "not empty" in capfd.readouterr().err
