"""A shape's index in the store and its row among the training shapes are not confused."""

import dataclasses

import jax
import miniature
import numpy as np
import optax
import pytest

import jonet
from jonet import config
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.errors import ConfigError, TrainingError
from jonet.networks import deepsdf, occupancy
from jonet.networks.bound import BoundNetwork
from jonet.tasks import occnet, onet_points, registry
from jonet.tasks.inputs import Cloud
from jonet.tasks.shapes import Shapes
from jonet.training import batches
from jonet.training.lanes import Lanes
from jonet.training.log import Log
from jonet.training.loop import Loop, train
from jonet.training.optimizers import Optimizer, Schedule

pytestmark = pytest.mark.unoptimized

SAMPLES = Recipe(near=300, uniform=100, surface=200, occupancies=300)
NETWORK = occupancy.Specs(encoder="idx", c_dim=8, hidden_size=8, n_blocks=1, encoder_width=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two families with shapes to validate and to test: the training shapes are not the first of the store."""
    sources = Shapes(train=4, test=1, val_fraction=0.4).sources("mug,lamp", seed=3)
    folder = tmp_path_factory.mktemp("stores")
    made = stores.build(folder / "store", sources, SAMPLES, frame="cube", progress=False)
    assert (made.select("train") != np.arange(len(made.select("train")))).any()
    return made


def right(store):
    """In place of `BoundNetwork.fields`: of each code, whose first number is a shape of the store, its labels."""
    labels = []
    for i in range(len(store)):
        points, inside = store.occupancy(i)
        labels.append({point.tobytes(): bool(label) for point, label in zip(points, inside, strict=True)})

    def fields(network, codes):
        def ask(points):
            found = [
                [labels[round(float(code[0]))].get(point.tobytes(), False) for point in cloud.astype(np.float16)]
                for code, cloud in zip(codes, points, strict=True)
            ]
            return np.where(found, np.float32(20), np.float32(-20))

        return ask

    return fields


def validated(training_setup, shapes, log):
    """What the log says of a network whose rows are right, after a step that hardly moves them."""
    per_shape = np.zeros_like(training_setup.per_shape)
    per_shape[:, 0] = shapes
    loop = Loop(training_setup.loss, training_setup.optimizer.build(), training_setup.batches, jax.random.key(0))
    state = loop.start(training_setup.shared, per_shape, training_setup.batch_stats)
    train(loop, state, 1, log=Log(log), validate=training_setup.validate, validate_every=1, bar=False)
    (entry,) = [entry for entry in Log(log).read() if "validation" in entry]
    return entry["validation"]


def test_rows_of_an_embedding_are_validated_with_their_own_shapes(store, tmp_path, monkeypatch):
    config = onet_points.Config(network=NETWORK, batch_shapes=2, batch_points=8)
    shapes = store.select("train")
    monkeypatch.setattr(store, "select", lambda split: shapes if split == "train" else shapes[:0])
    training_setup = onet_points.TASK.training_setup(config, store, shapes, jax.random.key(0), {})
    monkeypatch.setattr(BoundNetwork, "fields", right(store))
    assert validated(training_setup, shapes, tmp_path / "log.jsonl") == 1


def test_classifiers_are_validated_with_their_own_shapes(store, tmp_path, monkeypatch):
    config = occnet.Config(network=occupancy.ClassifierSpecs(dims=(4, 4)), batch_points=8)
    shapes = store.select("train")
    training_setup = occnet.TASK.training_setup(config, store, shapes, jax.random.key(0), {})
    monkeypatch.setattr(BoundNetwork, "fields", right(store))
    assert validated(training_setup, shapes, tmp_path / "log.jsonl") == pytest.approx(0, abs=1e-6)


SDF = {
    "network": deepsdf.Specs(latent_size=2, dims=(8, 8), dropout=(), norm_layers=(), latent_in=()),
    "batch_shapes": 2,
}
CONDITIONAL = {
    "network": dataclasses.replace(NETWORK, encoder="pointnet_simple"),
    "inputs": Cloud(20),
    "points_sampling": "stratified",
    "batch_shapes": 2,
    "validate_every": 100,
}


@pytest.mark.parametrize("task", ["deepsdf", pytest.param("onet_points", marks=pytest.mark.slow)])
def test_errors_of_training_name_the_right_shapes(store, tmp_path, monkeypatch, task):
    """Every batch of two holds one of the shapes that have become NaN."""
    name, options = {"deepsdf": ("sdf", SDF), "onet_points": ("surface_points", CONDITIONAL)}[task]
    bad = store.select("train")[-1]
    packed = store.arrays[name]
    values = np.array(packed.values)
    values[packed.offsets[bad] : packed.offsets[bad] + packed.counts[bad].sum()] = np.nan
    monkeypatch.setitem(store.arrays, name, packed._replace(values=values))
    monkeypatch.setattr(store, "frame", registry.find(task).frame)
    with pytest.raises(TrainingError) as error:
        jonet.train(store, task, batch_points=16, steps=20, minutes=0, **options)
    named = str(error.value).split("its batch holds ")[1].split(";")[0].split(", ")
    trained = {store.names[i] for i in store.select("train")}
    assert store.names[bad] in named and set(named) <= trained and len(named) == 2


def test_empty_lanes_are_not_named():
    arrays = miniature.spheres(6)
    arrays["sdf"].values[arrays["sdf"].offsets[4] :][:200] = np.nan
    lanes = Lanes(np.array([5, 4]), np.array([[0], [1], [-1], [-1]]), steps=1, devices=1)
    plan = batches.BatchSpec(batches.RowSampling("sdf", 8))
    loop = miniature.make(batches.load(arrays, lanes, plan, jax.random.key(0), "resident"))
    with pytest.raises(TrainingError, match="its batch holds sphere 4, sphere 5; look"):
        train(loop, miniature.fresh(loop), 3, names=[f"sphere {i}" for i in range(6)], bar=False)


def test_a_store_of_another_frame_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="frame 'cube', but this task works in 'sphere'"):
        jonet.train(store, "deepsdf", workdir=tmp_path / "run", steps=1, minutes=0, **SDF)


def test_a_model_records_recipe_and_contents_of_its_store(store, monkeypatch):
    monkeypatch.setattr(store, "frame", "sphere")
    model = jonet.train(store, "deepsdf", batch_points=16, steps=2, minutes=0, **SDF)
    shapes = store.select("train")
    assert model.history["recipe"] == config.to_dict(SAMPLES) and model.history["shapes"] == len(shapes)
    assert model.codes.sources == tuple(store.contents[i] for i in shapes)
    assert model.codes.names == tuple(store.names[i] for i in shapes)


def test_rows_come_and_go_by_position():
    """Through lanes of any number of devices, with padding that stays zero."""
    arrays = miniature.spheres(6)
    plan = batches.BatchSpec(batches.RowSampling("sdf", 8))
    shared, codes = miniature.start(miniature.DECODER, 5)
    for dealt in ([[3, 0], [4, 2], [1, -1], [-1, -1]], [[4], [0], [1], [2], [3]]):
        lanes = Lanes(np.array([1, 5, 0, 3, 2]), np.array(dealt), steps=1, devices=1)
        loop = miniature.make(batches.load(arrays, lanes, plan, jax.random.key(0), "resident"))
        state = loop.start(shared, codes)
        held = loop.held(state)
        np.testing.assert_array_equal(loop.per_shape(state), codes)
        np.testing.assert_array_equal(held["per_shape_by_position"], codes)
        assert miniature.bits(loop.placed(held)) == miniature.bits(state)
        assert not np.asarray(state.per_shape)[lanes.positions < 0].any()


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_a_validation_that_gives_no_number_loses_no_training(store, tmp_path, monkeypatch, score):
    training_setup = onet_points.TASK.training_setup

    def without(*arguments):
        return dataclasses.replace(training_setup(*arguments), validate=lambda *_: score)

    monkeypatch.setattr(onet_points.TASK, "training_setup", without)
    options = {**CONDITIONAL, "validate_every": 1}
    with pytest.warns(UserWarning, match="the latest state is kept"):
        found = jonet.train(store, "onet_points", batch_points=16, steps=2, minutes=0, workdir=tmp_path, **options)
    assert len(found.codes) == len(store.select("train"))


def test_an_epoch_of_classifiers_is_a_pass_over_their_points(store, tmp_path):
    """All shapes are in every step, so schedules count not these but as many as it takes to see all points."""
    schedule = Schedule("step", initial=1e-3, interval=1, factor=0.5)
    config = occnet.Config(
        network=occupancy.ClassifierSpecs(dims=(4, 4)),
        batch_points=80,
        held_out=0.2,
        optimizer=Optimizer(per_shape=schedule),
    )
    shapes = store.select("train")
    training_setup = occnet.TASK.training_setup(config, store, shapes, jax.random.key(0), {})
    assert training_setup.steps == config.epochs * 3  # 240 points of each shape are trained on
    rates = []

    def update(gradients, opt_state, learned, *, epoch, progress):
        jax.debug.callback(lambda rate: rates.append(float(rate)), schedule(epoch, progress), ordered=True)
        return optimizer.update(gradients, opt_state, learned, epoch=epoch, progress=progress)

    optimizer = config.optimizer.build()
    seen = optax.GradientTransformationExtraArgs(optimizer.init, update)
    loop = Loop(training_setup.loss, seen, training_setup.batches, jax.random.key(0))
    train(
        loop,
        loop.start(training_setup.shared, training_setup.per_shape, training_setup.batch_stats),
        7,
        log=Log(tmp_path / "log"),
        bar=False,
    )
    assert Log(tmp_path / "log").read()[-1]["epoch"] == 3
    np.testing.assert_allclose(rates, 1e-3 * 0.5 ** np.array([1, 1, 1, 2, 2, 2, 3]))
