"""Models and codes on disk: what they replace, what is on disk after a failure, and checks of their network."""

import concurrent.futures
import dataclasses
import errno
import json
import shutil

import crash
import jax
import numpy as np
import pytest

import jonet
from jonet import config
from jonet.codes import Codes, read_npz, write_npz
from jonet.errors import CheckpointError, ConfigError, InputError
from jonet.inference import export
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.occupancy import Classifier, ClassifierSpecs
from jonet.storage import atomic, identity
from jonet.training import autodecoder, conditional

pytestmark = pytest.mark.unoptimized

ERRORS = [None, errno.ENOSPC, errno.EACCES]


def small(seed: int) -> Model:
    """A network of a few numbers, with three codes."""
    network = DeepSDFDecoder(Specs(latent_size=2, dims=(8, 8), dropout=(), norm_layers=(), latent_in=()))
    shared, codes = jax.device_get(autodecoder.initial(network, 3, jax.random.key(seed)))
    names = tuple(f"{seed} {i}" for i in range(3))
    return Model("deepsdf", BoundNetwork(network, shared), "sphere", Codes(codes, names), Prior.of(codes))


def with_specs(model: Model, **changes) -> Model:
    """A model with the same parameters in a network of other options."""
    module = DeepSDFDecoder(dataclasses.replace(model.config, **changes))
    return dataclasses.replace(model, network=dataclasses.replace(model.network, module=module))


@pytest.fixture(scope="module")
def models():
    return small(0), small(1)


def same(a: Model, b: Model) -> bool:
    return a.digest == b.digest and a.codes.names == b.codes.names and (a.codes.values == b.codes.values).all()


@pytest.mark.parametrize("error", ERRORS)
def test_a_model_is_old_or_new_at_every_change(models, tmp_path, error):
    old, new = models
    (tmp_path / "mine").write_text("mine")
    seen = set()

    def prepare():
        if not seen:
            old.save(tmp_path / "model")

    for _ in crash.each(tmp_path, prepare, lambda: new.save(tmp_path / "model"), error):
        found = jonet.load(tmp_path / "model")
        seen.add("old" if same(found, old) else "new")
        assert same(found, old) or same(found, new)
        assert (tmp_path / "mine").read_text() == "mine"
        if same(found, new):
            old.save(tmp_path / "model")
    assert seen == {"old", "new"} and same(jonet.load(tmp_path / "model"), new)
    new.save(tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 3  # what stops left behind has gone


@pytest.mark.parametrize("error", ERRORS)
def test_a_new_model_is_there_whole_or_not_at_all(models, tmp_path, error):
    def prepare():
        shutil.rmtree(tmp_path / "model", ignore_errors=True)

    for _ in crash.each(tmp_path, prepare, lambda: models[0].save(tmp_path / "model"), error):
        if (tmp_path / "model").exists():  # what failed did not matter: to make a folder that is there
            assert error and same(jonet.load(tmp_path / "model"), models[0])
    assert same(jonet.load(tmp_path / "model"), models[0])


@pytest.mark.parametrize("error", ERRORS)
def test_codes_and_exports_are_old_or_new_at_every_change(models, tmp_path, error):
    old, new = models[0].codes, models[1].codes
    for _ in crash.each(tmp_path, lambda: old.save(tmp_path / "c.npz"), lambda: new.save(tmp_path / "c.npz"), error):
        assert Codes.load(tmp_path / "c.npz").names in (old.names, new.names)
    assert Codes.load(tmp_path / "c.npz").names == new.names
    field = models[0].field(models[0].codes)[0]
    path = tmp_path / "f.npz"
    for _ in crash.each(tmp_path, lambda: path.unlink(True), lambda: export.write_field(path, field), error):
        assert not path.exists() or error
    assert path.exists()


def test_models_saved_at_once_leave_one_of_them(models, tmp_path):
    models[0].save(tmp_path / "model")
    for _ in range(5):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda i: models[i % 2].save(tmp_path / "model"), range(6)))
        found = jonet.load(tmp_path / "model")
        assert same(found, models[0]) or same(found, models[1])
    assert len(list((tmp_path / "model").iterdir())) == 3


@pytest.mark.parametrize("content", [{"thesis.tex": "x"}, {"model.json": "{}", "thesis.tex": "x"}, {"codes.npz": "x"}])
def test_a_folder_of_something_else_is_never_replaced(models, tmp_path, monkeypatch, content):
    folder = tmp_path / "thesis"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    (tmp_path / "thesis.part").mkdir()
    (tmp_path / "thesis.part" / "chapter").write_text("x")
    with pytest.raises(CheckpointError, match="is not replaced; name a new folder"):
        models[0].save(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == content
    assert (tmp_path / "thesis.part" / "chapter").read_text() == "x"
    monkeypatch.chdir(folder)
    for place in (".", ".."):
        with pytest.raises(CheckpointError):
            models[0].save(place)


def test_a_run_is_no_place_for_a_model(models, tmp_path):
    models[0].save(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="contains 'config.json'"):
        jonet.load(tmp_path / "run").save(tmp_path / "run")


def test_a_link_to_a_model_stays_a_link(models, tmp_path):
    models[0].save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    models[1].save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same(jonet.load(tmp_path / "real"), models[1])


def test_models_of_another_format_are_refused(models, tmp_path):
    models[0].save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["checksum"]
    for changes, words in (
        ({"version": 1}, "of version 1"),
        ({"statistics": {}}, "entry 'statistics' is not one"),
        (
            {"precision": "half"},
            "entry 'precision' is not one",
        ),
    ):
        values = {**about, **changes}
        atomic.write_json(tmp_path / "model.json", values | {"checksum": config.digest(values)})
        with pytest.raises(CheckpointError, match=words):
            jonet.load(tmp_path)
    arrays = read_npz(tmp_path / "arrays.npz")
    write_npz(tmp_path / "arrays.npz", {**arrays, "statistics/mean": np.zeros(3)})
    about["checksums"]["arrays.npz"] = identity.digest(tmp_path / "arrays.npz")
    atomic.write_json(tmp_path / "model.json", about | {"checksum": config.digest(about)})
    with pytest.raises(CheckpointError, match="array 'statistics/mean', which no model has"):
        jonet.load(tmp_path)


def test_the_precision_is_kept_with_the_model(models, tmp_path):
    model = models[0].with_precision("default")
    model.save(tmp_path)
    found = jonet.load(tmp_path)
    assert models[0].precision == "high" and model.precision == found.precision == "default"
    assert found.digest == models[0].digest  # of the same network
    assert model.with_precision(None) is model and model.with_precision("default") is model
    about = json.loads((tmp_path / "model.json").read_text())
    del about["checksum"], about["precision"]
    atomic.write_json(tmp_path / "model.json", about | {"checksum": config.digest(about)})
    assert jonet.load(tmp_path).precision == "high"
    with pytest.raises(InputError, match="precision is 'half', but must be 'highest' or 'high' or 'default'"):
        model.with_precision("half")


def test_a_changed_setting_of_a_model_is_damage(models, tmp_path):
    models[0].save(tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"resolution": 128', '"resolution": 138'))
    with pytest.raises(CheckpointError, match="model.json is damaged"):
        jonet.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, '{"version": 1}', '{"version": 1, "kind": []}'])
def test_an_invalid_model_json_is_refused(models, tmp_path, text):
    models[0].save(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError):
        jonet.load(tmp_path)


@pytest.mark.parametrize("name", ["checksums", "network", "frame", "fitting", "files"])
@pytest.mark.parametrize("value", [None, 3, [], {"arrays": 3}])
def test_a_model_json_with_invalid_parts_is_refused(models, tmp_path, name, value):
    models[0].save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["checksum"]
    (tmp_path / "model.json").write_text(json.dumps(about | {name: value}))
    with pytest.raises((CheckpointError, ConfigError)):
        jonet.load(tmp_path)


def test_codes_of_another_network_are_refused(models, tmp_path):
    one, other = models
    one.save(tmp_path / "one")
    codes = jonet.load(tmp_path / "one").codes
    codes.save(tmp_path / "codes.npz")
    codes = Codes.load(tmp_path / "codes.npz")
    assert codes.network == one.digest == codes[:2].network == Codes.joined([codes[:1], codes[1:]]).network
    points = np.random.default_rng(0).uniform(-1, 1, (3, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(one.field(codes)(points), one.field(codes.values)(points))
    for ask in (other.field, other.extract, lambda codes: other.interpolate(codes[0], codes[1], 2)):
        with pytest.raises(InputError, match="of another network"):
            ask(codes)
    with pytest.raises(InputError, match="several networks"):
        Codes.joined([codes, dataclasses.replace(codes, network="other")])
    for probability in (0, 0.0):
        again = with_specs(one, dropout_prob=probability)
        again.save(tmp_path / f"again {probability}")
        assert jonet.load(tmp_path / f"again {probability}").digest == again.digest
    assert with_specs(one, use_tanh=True).digest != one.digest  # the same numbers, asked in another way


def test_a_path_without_a_model_is_refused_with_what_is_expected(tmp_path):
    (tmp_path / "scan.ply").write_text("ply")
    for name, problem in (
        ("scan.ply", "is a file, not a model"),
        ("", "contains no trained"),
        ("no", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=f"{problem}.*; expected is a model folder .with model.json in it."):
            jonet.load(tmp_path / name)


def test_a_model_is_one_line_in_print(models):
    assert repr(models[0]) == "Model(deepsdf, 2-d codes, 3 training shapes, sphere frame, 129 parameters)"
    trained = dataclasses.replace(models[0], history={"shapes": 1}, codes=None)
    assert repr(trained) == "Model(deepsdf, 2-d codes, 1 training shape, sphere frame, 129 parameters)"


def test_a_classifier_states_the_parameters_of_each_shape():
    network = Classifier(ClassifierSpecs())
    _, codes, _ = conditional.initial(network, 2, jax.random.key(0))
    model = Model("classifier", BoundNetwork(network, {}), "cube", Codes(codes, ("a", "b")))
    assert repr(model) == "Model(classifier, 2 training shapes, cube frame, 16,961 parameters per shape)"
