"""Occupancy Networks' tasks in miniature: every stage, the model that each leaves, and what it refuses."""

import dataclasses
import json
import math

import jax
import numpy as np
import program
import pytest
from onet_recorded import PUBLISHED, drawn
from tiny_tasks import CONDITIONAL, SCORES, TASKS, redrawn

import jonet
from jonet.data import store as stores
from jonet.data.store import RaggedArray
from jonet.errors import ConfigError, InputError
from jonet.geometry.mesh import Similarity
from jonet.inference import encode
from jonet.inference.encode import Inputs
from jonet.networks.bound import BoundNetwork
from jonet.networks.convolutions import ConvEncoder
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.run import train
from jonet.tasks import occnet, onet, onet_images, onet_points, onet_unconditional, registry
from jonet.tasks.shapes import Shapes

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope="module", params=TASKS)
def made(request, tmp_path_factory):
    """A finished run: (name of the task, its folder)."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = [*([] if request.param == "occnet" else CONDITIONAL), *SCORES, *TASKS[request.param]]
    split = [part for option in options for part in option.replace("=", " ", 1).split(" ")]
    assert program.run([f"--task={request.param}", *split, "--workdir", str(folder)]) == 0
    return request.param, folder


def test_a_run_leaves_scores_meshes_and_a_page(made):
    name, folder = made
    values = json.loads((folder / "metrics.json").read_text())
    assert values["task"] == name
    assert len(values["shapes"]) == (1 if name == "occnet" else 2)
    for entry in values["shapes"]:
        assert 0 <= entry["iou"] <= 1
        assert ("minus_elbo" in entry) == (name == "onet_unconditional")
    assert (folder / "report.html").stat().st_size > 10_000
    checked = [e for line in (folder / "log.jsonl").open() if "validation" in (e := json.loads(line))]
    assert len(checked) == 2


def test_the_model_rebuilds_what_it_is_shown(made):
    name, folder = made
    model, store = jonet.load(folder), stores.open(folder / "store")
    if name == "occnet":
        assert len(model.codes) == 2 and model.codes.values.shape[1] == model.network.specs.latent_size
        with pytest.raises(InputError, match="only represents the shapes that it was trained on"):
            model.reconstruct(np.zeros((1, 8, 4)))
        return
    config = dataclasses.replace(registry.find(name).presets["quick"], inputs=inputs_of(name, model))
    rows = store.select("test")
    codes = registry.find(name).observe(config, model, store, rows)
    again = jonet.model.Codes.load(folder / "codes.npz")
    np.testing.assert_allclose(codes.values, again.values, rtol=1e-5, atol=1e-6)
    kind = model.inputs.kind
    seen = {kind: [config.inputs.of(store, i, config.seed) for i in rows]}
    other = redrawn(model, seen)
    field, found = other.field(other.encode(**seen)), other.reconstruct(**seen, resolution=8)
    assert len(found) == 2
    for i, mesh in enumerate(found):
        middle = mesh.vertices[(np.abs(mesh.vertices) < 0.54).all(1)]  # not of the lids in the sides of the box
        away = [np.abs(field[j](middle) - field.per_shape["level"][j]).mean() for j in (i, 1 - i)]
        assert len(middle) > 20 and away[0] < 0.1 * away[1]  # the surface of its own field, not of the other's
    with pytest.raises(InputError, match="not fitted; this network encodes"):
        model.fit(np.zeros((1, 8, 4)))
    with pytest.raises(InputError, match="nothing given to encode"):
        model.encode()
    with pytest.raises(InputError, match=kind):
        model.encode(**{kind: [np.full(model.inputs.shape, np.nan)]})
    if name == "onet_unconditional":
        assert len(model.sample(2, resolution=8)) == 2
    else:
        with pytest.raises(InputError, match="no prior"):
            model.sample(1)


def test_an_embedding_has_a_condition_of_each_training_shape(tmp_path):
    options = [*CONDITIONAL, *SCORES, "--network.c-dim=8", "--network.encoder=idx", "--shapes.test=0"]
    split = [part for option in options for part in option.replace("=", " ", 1).split(" ")]
    assert program.run(["--task=onet_points", *split, "--workdir", str(tmp_path / "run")]) == 0
    model = jonet.load(tmp_path / "run")
    store = stores.open(tmp_path / "run" / "store")
    assert model.inputs is None and model.codes.names == tuple(store.names[i] for i in store.select("train"))
    assert model.codes.values.shape == (5, 8) and model.codes.values.std() > 0.5  # from N(0, 1)
    checked = [e for line in (tmp_path / "run/log.jsonl").open() if "validation" in (e := json.loads(line))]
    assert len(checked) == 2 and all(0 <= entry["validation"] <= 1 for entry in checked)
    assert len(model.interpolate(model.codes[0], model.codes[1], 3, resolution=8)) == 3
    with pytest.raises(InputError, match="only represents the shapes"):
        model.reconstruct(points=np.zeros((1, 8, 3)))


def test_moments_of_one_shape_are_trained_and_meshed_and_another_threshold_needs_no_training(tmp_path, capsys):
    options = [*CONDITIONAL, *SCORES, *TASKS["onet_points"], "--network.norm=instance", "--network.threshold=0.5"]
    command = ["--task=onet_points", *options, f"--workdir={tmp_path / 'run'}"]
    assert program.run(command) == 0
    model = jonet.load(tmp_path / "run")
    assert model.config.norm == "instance" and not jax.tree.leaves(model.network.batch_stats.get("decoder", {}))
    field = model.field(model.codes[:2])
    assert field.per_shape["scales"].shape[0] == 2  # of each shape
    meshes = model.extract(model.codes[:2], 16, frame="normalized", surfaces={"threshold": 0.3})
    levels = [field[i](mesh.vertices[(np.abs(mesh.vertices) < 0.54).all(1)]) for i, mesh in enumerate(meshes)]
    for values in levels:
        np.testing.assert_allclose(jax.nn.sigmoid(values), 0.3, atol=0.01)
    capsys.readouterr()
    assert program.run([*command, "--surfaces.threshold=0.3"]) == 0
    said = capsys.readouterr().err
    assert "train: done before" in said and "reconstruct …" in said
    assert jonet.load(tmp_path / "run").surfaces.threshold == 0.3


def test_averages_are_the_model_of_the_same_training(tmp_path):
    options = [*CONDITIONAL, *TASKS["onet_points"], "--validate-every=6", "--stages=prepare,train"]
    models, logs = [], []
    for decay in ("0", "0.9"):
        folder = tmp_path / decay
        assert program.run(["--task=onet_points", *options, f"--ema-decay={decay}", f"--workdir={folder}"]) == 0
        models.append(jonet.load(folder))
        logs.append([json.loads(line) for line in (folder / "log.jsonl").open()])
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]
    last, average = (model.network.shared["params"]["decoder"]["fc_p"]["kernel"] for model in models)
    assert 0 < np.abs(average - last).max() < 6 * 4e-3  # less than six steps of Adam
    last, average = (model.network.batch_stats["decoder"]["bn"] for model in models)
    assert all(np.abs(average[name] - last[name]).min() > 0 for name in ("mean", "variance"))
    assert models[1].history["options"]["ema_decay"] == 0.9
    for model, log in zip(models, logs, strict=True):
        config = dataclasses.replace(onet_points.TASK.presets["quick"], inputs=onet_points.Cloud(40))
        config = dataclasses.replace(config, network=model.config)
        validate = onet_points.TASK.validation(config, stores.open(tmp_path / "0" / "store"))
        score = validate(model.network.shared, (), model.network.batch_stats)
        assert score == next(entry["validation"] for entry in log if "validation" in entry)


def test_paper_presets_are_the_published_networks():
    for name, task in {
        "pointcloud/onet": "onet_points",
        "voxels/onet": "onet_voxels",
        "img/onet": "onet_images",
    }.items():
        config = registry.find(task).presets["paper"]
        assert config.network == PUBLISHED[name]
        assert (config.batch_shapes, config.batch_points) == (64, 1024 if task == "onet_voxels" else 2048)
        assert config.optimizer == onet.ADAM and config.surfaces.method == "mise"
    assert registry.find("onet_unconditional").presets["paper"].network == PUBLISHED["unconditional/onet_cars"]


def inputs_of(name, model):
    kind = type(registry.find(name).presets["quick"].inputs)
    return kind() if name == "onet_voxels" else kind(model.inputs.size)


def test_clouds_in_input_units_come_back_in_input_units(made):
    name, folder = made
    if name != "onet_points":
        pytest.skip("clouds belong to onet_points")
    model, store = jonet.load(folder), stores.open(folder / "store")
    cloud = store.surface(0)[0]
    plain = model.encode(points=[cloud], frame=[Similarity.identity()])
    moved = model.encode(points=[3 * cloud + [5, 0, -2]], frame="input")
    transform = moved.similarities[0]
    np.testing.assert_allclose(transform(3 * cloud + [5, 0, -2]), cloud, atol=0.02)  # a sample does not fill its box
    assert plain.values.shape == moved.values.shape


def test_codes_do_not_depend_on_company(made):
    name, folder = made
    if name in ("occnet", "onet_images"):
        pytest.skip("nothing to encode, or slow")
    model = jonet.load(folder)
    inputs = np.random.default_rng(0).random((5, *model.inputs.shape)).astype(np.float32)

    def ask(x):
        return encode.encode(model.network, x, model.inputs.kind)

    whole = ask(inputs)
    np.testing.assert_allclose(np.concatenate([ask(inputs[:2]), ask(inputs[2:])]), whole, rtol=1e-5, atol=1e-6)


def test_inputs_are_thinned_to_what_the_network_knows():
    form = Inputs("points", 10)
    rng = np.random.default_rng(0)
    many, few = rng.random((50, 3)), rng.random((4, 3))
    found = form.check([many, few])
    assert found.shape == (2, 10, 3)
    rows = {tuple(row) for row in many.astype(np.float32)}
    assert len({tuple(row) for row in found[0]} & rows) == 10
    assert {tuple(row) for row in found[1]} == {tuple(row) for row in few.astype(np.float32)}
    with pytest.raises(InputError):
        form.check([])
    with pytest.raises(InputError, match=r"voxels\[0\]"):
        Inputs("voxels", 32).check([np.zeros((31, 32, 32))])


def test_points_are_divided_once_and_all_are_used():
    rng = np.random.default_rng(0)
    counts = np.array([[70, 30], [55, 45]])
    points = RaggedArray(rng.random((200, 3)).astype(np.float32), np.array([0, 100]), counts)
    train, held = occnet.divided(points, 0.2, seed=1)
    assert train.counts.sum(1).tolist() == [80, 80] and held.counts.sum(1).tolist() == [20, 20]
    assert (train.counts + held.counts).tolist() == counts.tolist()
    for shape in range(2):
        whole = points.values[100 * shape :][:100]
        parts = [part.values[part.offsets[shape] :][: part.counts[shape].sum()] for part in (train, held)]
        assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, whole))
        outside = {tuple(row) for row in whole[: counts[shape, 0]]}
        for part, rows in zip((train, held), parts, strict=True):
            assert all((tuple(row) in outside) == (i < part.counts[shape, 0]) for i, row in enumerate(rows))


def test_the_bound_of_a_sure_posterior_is_that_of_its_mean():
    specs = Specs(decoder="simple", encoder="null", c_dim=0, z_dim=3, hidden_size=8, n_blocks=1)
    config = onet_unconditional.Config(network=specs, inputs=onet_unconditional.Labeled(60))
    network = OccupancyNetwork(specs)
    shared, batch_stats = drawn(jax.eval_shape(network.start, jax.random.key(0)))
    shared["params"]["encoder_latent"]["fc_logstd"] = {"kernel": np.zeros((128, 3)), "bias": np.full(3, -12.0)}
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 60, 3)).astype(np.float32)

    class Shapes:
        names = ("a", "b")

        def occupancy(self, shape):
            return points[shape], points[shape, :, 0] > 0.1

    found = onet_unconditional.bounds(config, Shapes(), [0, 1], BoundNetwork(network, shared, batch_stats))
    seen = [config.inputs.of(Shapes(), i, config.seed) for i in range(2)]
    model = jonet.model.Model(
        "occupancy", BoundNetwork(network, shared, batch_stats), "cube", inputs=config.inputs.form
    )
    codes, samples = model.encode(seen), np.stack(seen)
    assert sorted(map(tuple, samples[1, :, :3])) == sorted(map(tuple, points[1]))
    true = np.where(samples[..., 3] > 0, 1, -1)
    error = np.logaddexp(0, -true * np.asarray(model.field(codes)(samples[..., :3]))).sum(1)
    np.testing.assert_allclose(found["reconstruction_error"], error, rtol=1e-3)
    np.testing.assert_allclose(found["kl"], 3 * 11.5 + 0.5 * np.square(codes.values).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found["minus_elbo"], found["reconstruction_error"] + found["kl"], rtol=1e-6)


def test_validation_shapes_are_of_the_training_ones():
    shapes = Shapes(train=20, test=3, val_fraction=0.25)
    found = shapes.sources("mug", seed=4)
    splits = [source.split for source in found]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (15, 5, 3)
    assert [s.split for s in shapes.sources("mug", seed=4)] == splits
    assert all(source.split == "train" for source in occnet.TrainingShapes(test=0).sources("mug,lamp", 0))


@pytest.mark.parametrize(
    ("sampling", "draws"),
    [
        ("uniform", [("occupancy", 64, "any")]),
        ("stratified", [("occupancy", 64, "half")]),
        ("surface", [("occupancy_near", 64, "any")]),
        ("mixed", [("occupancy", 32, "any"), ("occupancy_near", 32, "any")]),
    ],
)
def test_points_to_learn_from_are_of_the_box_or_near_the_surface(sampling, draws):
    config = dataclasses.replace(onet_points.TASK.presets["quick"], points_sampling=sampling)
    plan = onet.spec(config, 64, "rows")
    assert [(draw.array, draw.count, draw.sides) for draw in plan.point_draws().values()] == draws
    assert plan.importance_weighted == (sampling == "stratified")


def test_options_that_cannot_be_are_refused():
    for sampling in ("surface", "mixed"):
        with pytest.raises(ConfigError, match=f"points_sampling is {sampling}, so samples.near_occupancies"):
            dataclasses.replace(onet_points.TASK.presets["paper"], points_sampling=sampling)
    with pytest.raises(ConfigError, match="one size"):
        dataclasses.replace(onet_images.TASK.presets["quick"], inputs=onet_images.View(48))
    points = onet_points.TASK.presets["quick"]
    with pytest.raises(ConfigError, match="pointnet_resnet, pointnet_simple"):
        dataclasses.replace(points, network=dataclasses.replace(points.network, encoder="voxel_simple"))
    images = onet_images.TASK.presets["quick"]
    with pytest.raises(ConfigError, match="of a ResNet"):
        dataclasses.replace(images, weights="x.pth", network=dataclasses.replace(images.network, encoder="simple_conv"))
    with pytest.raises(ConfigError, match="at least 63"):
        ConvEncoder(4).init(jax.random.key(0), np.zeros((1, 62, 62, 3), np.float32))
    with pytest.raises(ConfigError, match="held_out"):
        occnet.Config(held_out=1.0)
    with pytest.raises(ConfigError, match="validate_every"):
        dataclasses.replace(points, validate_every=0)
    for name, value in (("ema_decay", 1.0), ("ema_decay", -0.1), ("kl_weight", -1.0), ("kl_weight", math.inf)):
        with pytest.raises(ConfigError, match=f"{name} is"):
            dataclasses.replace(points, **{name: value})
    with pytest.raises(ConfigError, match=r"kl_weight is given, but not read: network\.z_dim is 0"):
        train.configured(onet_points.TASK, "quick", {"kl_weight": 0.5})
    assert train.configured(registry.find("onet_unconditional"), "quick", {"kl_weight": 0}).kl_weight == 0
