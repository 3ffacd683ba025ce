"""An encoder in front of a trained DeepSDF: the decoder stays, codes in one pass, and fits that start from them."""

import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import program
import pytest
import small_run
from tiny_tasks import SCORES

import jonet
from jonet import bulk, parallel
from jonet import config as configs
from jonet.bulk.shapes import Settings
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.data.sources import Procedural
from jonet.errors import CheckpointError, ConfigError, InputError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.inference.fitting import encoded, methods
from jonet.inference.fitting.observations import ObservedArrays, observe, pack
from jonet.model import Model
from jonet.networks import occupancy
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.run import train
from jonet.settings.fitting import LBFGS, Adam, FitConfig, GaussNewton
from jonet.tasks import deepsdf_points
from jonet.tasks.inputs import Points
from jonet.tasks.setup import identity
from jonet.training.batches import Resident
from jonet.training.loop import Loop

pytestmark = pytest.mark.unoptimized

OPTIONS = [
    *("--task=deepsdf_points", "--inputs.points=50", "--network.encoder-width=16", "--optimizer.name=adam"),
    *("--batch-shapes=4", "--batch-points=64", "--minutes=0", "--steps=8", "--generated=0", *SCORES),
    "--fitting.gauss-newton.points=1024 1024 1024",
]


def arguments(folder, *more):
    split = [part for option in [*OPTIONS, *more] for part in option.replace("=", " ", 1).split(" ")]
    return [*split, "--workdir", str(folder)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A run of DeepSDF on mugs, trained, without meshes."""
    folder = tmp_path_factory.mktemp("runs") / "decoder"
    assert program.run(small_run.arguments(folder, "--stages=prepare,train")) == 0
    return folder


@pytest.fixture(scope="module")
def finished(decoder, tmp_path_factory):
    """A finished run of the encoder."""
    folder = tmp_path_factory.mktemp("runs") / "encoder"
    assert program.run(arguments(folder, f"--model={decoder}")) == 0
    return folder


@pytest.fixture(scope="module")
def model(finished):
    return jonet.load(finished)


@pytest.fixture(scope="module")
def seen(finished):
    """Signed distances, and points with normals, of the test shapes."""
    store = stores.open(finished / "store")
    some = store.select("test")
    points, normals = zip(*(map(np.array, store.surface(i)) for i in some), strict=True)
    return [np.array(store.samples(i)) for i in some], list(points), list(normals)


def leaves(tree) -> dict[str, bytes]:
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(tree)}


# The run


def test_the_decoder_stays_bit_for_bit_and_only_the_encoder_is_learned(decoder, finished, model):
    given, shared = jonet.load(decoder), model.network.shared["params"]
    assert set(shared) == {"encoder", "decoder"} and model.config.decoder == given.config
    assert leaves(shared["decoder"]) == leaves(given.network.shared["params"])
    np.testing.assert_array_equal(model.codes.values, given.codes.values)
    assert model.codes.sources == given.codes.sources and model.history["clamp"] == given.history["clamp"]
    assert model.fitting.gauss_newton.points == (1024,) * 3 and model.surfaces.resolution == 16
    for ours, theirs in zip(model.prior, given.prior, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    code = given.codes.values[0]
    points = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.field(code)(points), given.field(code)(points))
    last = [json.loads(line) for line in (finished / "log.jsonl").open()][-1]
    assert last["step"] == 8 and {"loss", "length", "gradient"} <= last.keys() and 0 < last["loss"] < 0.2


def test_a_step_moves_the_encoder_alone_and_keeps_no_state_of_the_decoder(decoder, finished):
    config = deepsdf_points.Config(
        model=str(decoder), network=deepsdf_points.Encoder(encoder_width=8), batch_shapes=2, batch_points=32
    )
    store = stores.open(finished / "store")
    setup = deepsdf_points.TASK.training_setup(config, store, store.select("train"), jax.random.key(0), {})
    assert set(setup.shared["params"]) == {"encoder"} and setup.lookup is identity
    loop = Loop(setup.loss, setup.optimizer.build(), setup.batches, jax.random.key(0))
    state = loop.start(setup.shared, setup.per_shape, setup.batch_stats)
    kernels = {np.shape(leaf) for leaf in jax.tree.leaves(setup.batch_stats)}
    held = {np.shape(leaf) for leaf in jax.tree.leaves(state.opt_state)}
    assert (32, 32) in kernels and not kernels & held  # the encoder has none of the decoder's widths
    before, frozen = leaves(parallel.host(state.shared)), leaves(parallel.host(state.batch_stats))
    data, count = loop.batches.segment(0, 5)
    state, metrics, _ = loop.advance(state, data, count, 5)
    after = leaves(parallel.host(state.shared))
    assert all(after[name] != before[name] for name in before if "kernel" in name)
    assert leaves(parallel.host(state.batch_stats)) == frozen
    assert np.isfinite(metrics["loss"][:count]).all() and (metrics["gradient"][:count] > 0).all()


def test_the_loss_is_the_clamped_error_of_the_field_of_the_encoders_code(decoder, finished, model):
    config = deepsdf_points.Config(
        model=str(decoder), network=deepsdf_points.Encoder(encoder_width=16), inputs=Points(50, noise=0.1)
    )
    store = stores.open(finished / "store")
    shapes = store.select("train")
    setup = deepsdf_points.TASK.training_setup(config, store, shapes[:3], jax.random.key(0), {})
    batch = jax.device_get(jax.jit(setup.batches.draw)(setup.batches.segment(0, 1)[0], 0))
    assert set(batch.index[batch.mask > 0]) == set(shapes[:3])
    for shape, cloud in zip(batch.index[batch.mask > 0], batch.inputs[batch.mask > 0], strict=True):
        gaps = np.linalg.norm(cloud[:, None] - store.surface(shape)[0], axis=2).min(1)
        assert 0.03 < np.median(gaps) < 0.3  # noise of 0.1
    batch = batch._replace(mask=np.where(np.arange(len(batch.mask)) == 1, 0, batch.mask))
    encoder = {"params": {"encoder": model.network.shared["params"]["encoder"]}}
    total, (kept, metrics) = jax.jit(setup.loss)(encoder, None, setup.batch_stats, batch, jax.random.key(0))
    codes = model.encode(points=batch.inputs).values
    clamp = model.history["clamp"]
    predicted, told = (np.clip(d, -clamp, clamp) for d in (model.field(codes)(batch.points), batch.values))
    errors = np.abs(predicted - told).mean(1)[batch.mask > 0]
    assert (np.abs(batch.values) > clamp).any() and len(errors) == 2
    assert total == pytest.approx(errors.sum(), rel=1e-4) and leaves(kept) == leaves(setup.batch_stats)
    lengths = np.linalg.norm(codes[batch.mask > 0], axis=1)
    assert metrics["length"] == pytest.approx(lengths.sum(), rel=1e-4)


def test_the_shapes_of_the_run_are_taken_without_sampling(decoder, finished, model):
    theirs, ours = stores.open(decoder / "store"), stores.open(finished / "store")
    assert ours.index == theirs.index and ours.verify()
    values = json.loads((finished / "metrics.json").read_text())
    assert [row["name"] for row in values["shapes"]] == [theirs.names[i] for i in theirs.select("test")]
    clouds = [Points(50).of(ours, i, 0) for i in ours.select("test")]
    codes = Codes.load(finished / "codes.npz").values
    np.testing.assert_allclose(codes, model.encode(points=clouds).values, rtol=1e-5, atol=1e-6)
    assert len(values["train"]["shapes"]) == 1 and "points" in (finished / "report.html").read_text()


def test_a_run_is_whole_without_the_decoders(decoder, finished, tmp_path, capsys):
    shutil.copytree(decoder, tmp_path / "decoder")
    assert program.run(arguments(tmp_path / "run", f"--model={tmp_path / 'decoder'}", "--stages=prepare,train")) == 0
    shutil.rmtree(tmp_path / "decoder")
    copied, model = jonet.load(tmp_path / "run"), jonet.load(finished)
    assert copied.digest == model.digest  # the same draws, and nothing of the path
    assert copied.fitting == model.fitting and copied.fitting.starts == 2
    copied.save(tmp_path / "saved")
    again = jonet.load(tmp_path / "saved")
    assert again.digest == model.digest and again.inputs == model.inputs and again.is_fitted
    cloud = np.random.default_rng(0).normal(size=(1, 50, 3)) / 4
    np.testing.assert_array_equal(again.encode(points=cloud).values, model.encode(points=cloud).values)
    assert "encoded_deepsdf" in repr(again) and "points encoder" in repr(again)


def test_a_training_continues_from_its_checkpoint(decoder, model, tmp_path, monkeypatch, capsys):
    """Interrupted amid 8 steps: encoder, optimizer and the frozen decoder come back."""
    more, segment = [f"--model={decoder}", "--stages=prepare,train"], Resident.segment

    def interrupted(source, first, limit):
        if first:
            os.kill(os.getpid(), signal.SIGINT)
        data, count = segment(source, first, limit)
        return data, min(count, 2)

    with monkeypatch.context() as patched:
        patched.setattr(Resident, "segment", interrupted)
        assert program.run(arguments(tmp_path / "run", *more)) == 130
    assert re.search("stopped after step [234] of 8; the same command continues", capsys.readouterr().err)
    assert program.run(arguments(tmp_path / "run", *more)) == 0
    log = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert log[-1] == 8 and jonet.load(tmp_path / "run").digest == model.digest


def test_another_decoder_in_the_same_folder_is_refused(decoder, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    given = jonet.load(decoder)
    shared = jax.tree.map(lambda leaf: leaf * 1.01, given.network.shared)
    shutil.copytree(decoder, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "model")
    dataclasses.replace(given, network=BoundNetwork(given.network.module, shared)).save(tmp_path / "other" / "model")
    assert program.run(arguments(tmp_path / "run", f"--model={tmp_path / 'other'}")) == 1
    assert "trained on other shapes, samples or weights" in capsys.readouterr().err
    assert jonet.load(tmp_path / "run").digest == jonet.load(finished).digest


def test_shapes_that_the_decoder_did_not_learn_get_codes_of_the_encoder(decoder, tmp_path):
    more = [f"--model={decoder}", "--data=mug", "--shapes.train=8", "--shapes.test=2", "--stages=prepare,train"]
    recipe = ["--samples.near=2000", "--samples.uniform=500", "--samples.surface=1500"]
    assert program.run(arguments(tmp_path / "run", *more, *recipe)) == 0
    given, found = jonet.load(decoder), jonet.load(tmp_path / "run")
    store = stores.open(tmp_path / "run" / "store")
    assert found.codes.names == tuple(f"mug_{i:04d}" for i in range(8)) and len(given.codes) == 6
    np.testing.assert_array_equal(found.codes.values[:6], given.codes.values)
    assert found.codes.sources == tuple(store.contents[i] for i in store.select("train"))
    cloud = Points(50).of(store, int(store.select("train")[6]), 0)
    np.testing.assert_allclose(found.encode(points=[cloud]).values[0], found.codes.values[6], atol=1e-5)
    assert found.codes.residual.shape == (8,)


# Refusals


def test_what_is_no_trained_deepsdf_is_refused(decoder, finished, tmp_path, capsys):
    network = occupancy.Classifier(occupancy.ClassifierSpecs(dims=(4, 4)))
    Model("classifier", BoundNetwork(network, {}), "cube").save(tmp_path / "classifier")
    module = DeepSDFDecoder(Specs(latent_size=0, dims=(8,), dropout=(), norm_layers=(), latent_in=()))
    shared = module.init(jax.random.key(0), np.zeros((1, 0)), np.zeros((1, 1, 3)))
    Model("deepsdf", BoundNetwork(module, jax.device_get(shared)), "sphere").save(tmp_path / "single")
    jonet.load(decoder).save(tmp_path / "alone")
    for given, words in {
        "": "no model is named.*--task=deepsdf --workdir=RUN",
        tmp_path / "nothing": "nothing does not exist; expected is a model folder",
        tmp_path / "classifier": "of kind classifier, and no DeepSDF with codes",
        tmp_path / "single": "of kind deepsdf, and no DeepSDF with codes",
        finished: "of kind encoded_deepsdf, and no DeepSDF with codes.*give a run of deepsdf",
        tmp_path / "alone": "has no store beside it; name the shapes to learn from by --data",
    }.items():
        work = tmp_path / "run"
        assert program.run(arguments(work, f"--model={given}")) == 1
        said = capsys.readouterr().err
        assert re.search(words, said) and said.count("\n") == 1 and not work.exists(), said
    assert program.run(arguments(tmp_path / "run", "--data=mug")) == 1  # shapes alone are not enough
    assert "no model is named" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="does not exist"):
        jonet.train("mug", "deepsdf_points", model=str(tmp_path / "nothing"), workdir=tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--shapes.train=3", "shapes.train is given, but not read: data is the store"),
        ("--samples.near=2", "samples are given, but not read: data is the store"),
        ("--optimizer.per-shape.initial=1", "optimizer.per_shape.initial .* no codes are learned"),
        ("--network.encoder-width=0", "encoder_width is 0"),
        ("--inputs.points=0", "inputs.points is 0"),
    ],
)
def test_options_without_effect_are_refused(decoder, tmp_path, capsys, option, words):
    assert program.run(arguments(tmp_path / "run", f"--model={decoder}", option)) == 1
    assert re.search(words, capsys.readouterr().err) and not (tmp_path / "run").exists()


def test_any_task_takes_a_store_as_its_data(decoder, tmp_path, capsys):
    shutil.copytree(decoder, tmp_path / "first")
    given = [option for option in small_run.SMALL if not option.startswith(("--data", "--shapes", "--samples"))]
    split = [part for option in given for part in option.replace("=", " ", 1).split(" ")]
    more = [f"--data={tmp_path / 'first' / 'store'}", f"--workdir={tmp_path / 'run'}", "--stages=prepare,train"]
    assert program.run([*split, *more]) == 0
    assert jonet.load(tmp_path / "run").digest == jonet.load(decoder).digest
    assert stores.open(tmp_path / "run" / "store").index == stores.open(decoder / "store").index
    capsys.readouterr()
    assert program.run([*split, *more]) == 0
    assert "train: done before" in capsys.readouterr().err
    store = stores.open(tmp_path / "first" / "store")
    shutil.rmtree(tmp_path / "first" / "store")
    stores.build(tmp_path / "first" / "store", [Procedural("lamp")], store.recipe, progress=False)
    assert program.run([*split, *more]) == 1
    assert "of other shapes or samples than" in capsys.readouterr().err


# Codes


def test_codes_of_one_pass_know_neither_batch_nor_repeated_points(model, seen):
    clouds = [points[:50] for points in seen[1]]
    both = model.encode(points=clouds).values
    np.testing.assert_array_equal(model.encode(points=clouds).values, both)
    for cloud, code in zip(clouds, both, strict=True):
        np.testing.assert_allclose(model.encode(points=[cloud]).values[0], code, rtol=1e-5, atol=1e-6)
        few, padded = cloud[:20], np.concatenate([cloud[:20], cloud[:20], cloud[5:15]])
        np.testing.assert_allclose(model.encode(points=[few]).values, model.encode(points=[padded]).values, atol=1e-6)
        order = np.random.default_rng(0).permutation(50)
        np.testing.assert_allclose(model.encode(points=[cloud[order]]).values[0], code, rtol=1e-5, atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-4
    mesh = mesh_of_box()
    assert model.encode(meshes=[mesh]).similarities is not None
    with pytest.raises(InputError, match=r"this network encodes points \[50, 3\].*or fits codes: model.fit"):
        model.encode(seen[0])


def mesh_of_box():
    corners = np.array([[x, y, z] for x in (0, 1.0) for y in (0, 2.0) for z in (0, 3.0)])
    faces = [[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5], [2, 3, 7], [2, 7, 6], [0, 2, 6]]
    return Mesh(corners, np.array([*faces, [0, 6, 4], [1, 5, 7], [1, 7, 3]]), name="box")


SETTINGS = {
    "gauss_newton": FitConfig(gauss_newton=GaussNewton(points=(1024,) * 3, phases=(2, 2, 2))),
    "one rough level": FitConfig(gauss_newton=GaussNewton((1024,), (1.0,), (1,)), prior=1.0),
    "adam": FitConfig("adam", adam=Adam(20)),
    "adam that diverges": FitConfig("adam", adam=Adam(4, rate=3.0)),
    "lbfgs": FitConfig("lbfgs", lbfgs=LBFGS(4, points=1024)),
}


def losses(model, arrays, config, codes):
    """The loss that fits minimize, at all observations."""
    shapes = observe(arrays, config)
    limit = None if config.method == "adam" else 1024  # rows that the settings above use
    observed = methods.sharded([pack(rows, config.clamp, limit, config.seed, i) for i, rows in enumerate(shapes)])
    gaussian = methods.penalty(model.prior, config)
    return methods.losses(model.network.replicated, observed, codes, gaussian, config.clamp)


@pytest.mark.parametrize("kind", ["samples", "points"])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_fit_is_worse_than_the_code_that_it_starts_from(model, seen, name, kind):
    config, (samples, points, normals) = SETTINGS[name], seen
    given = {"samples": samples} if kind == "samples" else {"points": points, "normals": normals}
    arrays = ObservedArrays.checked(**given)
    start = encoded.guesses(model.network, model.inputs, observe(arrays, config))
    fitted = model.fit(**given, config=config).values
    before, after = losses(model, arrays, config, start), losses(model, arrays, config, fitted)
    assert (after <= before * (1 + 1e-6)).all()
    if name == "adam that diverges":
        np.testing.assert_array_equal(fitted, start)
    elif name in ("gauss_newton", "lbfgs"):
        assert (after < before).all()


def test_points_that_were_encoded_are_the_start(model, seen):
    """Of steps too small to move what is left is the start."""
    points, normals = [cloud[:50] for cloud in seen[1]], [cloud[:50] for cloud in seen[2]]
    start = model.encode(points=points).values
    given = {"points": points, "normals": normals, "config": FitConfig("adam", adam=Adam(2, rate=1e-12))}
    np.testing.assert_allclose(model.fit(**given).values, start, atol=1e-6)
    assert np.abs(dataclasses.replace(model, inputs=None).fit(**given).values - start).max() > 1e-3


def test_the_start_does_not_know_the_order_of_rows_and_is_near_the_surface(model, seen):
    samples = seen[0]
    shapes = observe(ObservedArrays.checked(samples))
    mixed = [rows[np.random.default_rng(1).permutation(len(rows))] for rows in samples]
    starts = [encoded.guesses(model.network, model.inputs, each) for each in (shapes, observe(ObservedArrays(mixed)))]
    np.testing.assert_allclose(*starts, rtol=1e-5, atol=1e-6)
    for rows, shape in zip(samples, shapes, strict=True):
        cloud = encoded.nearest_to_surface(shape, 50)
        kept = np.sort(np.abs(rows[:, 3]))[:50]
        told = {point.tobytes(): abs(d) for *point, d in rows for point in [np.array(point, np.float32)]}
        np.testing.assert_array_equal(np.sort([told[point.tobytes()] for point in cloud]), kept)


def test_partial_scans_start_from_training_codes(model, seen):
    """The encoder has seen whole clouds only."""
    plain = dataclasses.replace(model, inputs=None)
    given = {"points": seen[1], "normals": seen[2], "free_space": [np.array([[0.9, 0.9, 0.9]])] * 2}
    np.testing.assert_array_equal(model.fit(**given).values, plain.fit(**given).values)


def test_reconstruct_and_bulk_jobs_fit_from_the_encoder(model, seen, tmp_path, monkeypatch):
    asked, guesses = [], encoded.guesses
    monkeypatch.setattr(encoded, "guesses", lambda *given: asked.append(len(given[2])) or guesses(*given))
    for i, (points, normals) in enumerate(zip(*seen[1:], strict=True)):
        cloud = Mesh(points, np.zeros((0, 3), int), normals)
        (tmp_path / "scans").mkdir(exist_ok=True)
        mesh_files.write(cloud, tmp_path / "scans" / f"{i}.ply")
    bulk.fit(model, tmp_path / "scans", tmp_path / "codes.npz", Settings())
    codes = Codes.load(tmp_path / "codes.npz")
    assert asked == [2] and codes.network == model.digest and codes.residual.shape == (2,)
    assert len(model.reconstruct(points=seen[1], normals=seen[2], resolution=16)) == 2 and asked == [2, 2]
    assert len(model.sample(2, resolution=16)) == 2  # of the decoder's prior
    with pytest.raises(InputError, match="voxels is given, but not used"):
        model.reconstruct(voxels=np.zeros((1, 8, 8, 8)))


def test_a_plan_needs_no_model(decoder, capsys):
    assert program.run(["--task=deepsdf_points", "--plan", "--chip=v5e"]) == 0
    assert "192 train, 24 test" in capsys.readouterr().out
    assert program.run(["--task=deepsdf_points", "--plan", "--chip=v5e", f"--model={decoder}"]) == 0
    assert "6 train, 2 test; sampling takes about 0 ms" in capsys.readouterr().out


def test_python_takes_a_store_and_the_model(decoder, model):
    store = stores.open(decoder / "store")
    options = configs.to_dict(deepsdf_points.Encoder(encoder_width=16))
    more = {"optimizer": {"name": "adam"}, "batch_shapes": 4, "batch_points": 64, "inputs": {"points": 50}}
    more |= {"steps": 8, "minutes": 0}
    found = jonet.train(store, "deepsdf_points", model=str(decoder), network=options, **more)
    assert found.digest == model.digest
    with pytest.raises(ConfigError, match="no model is named"):
        jonet.train(store, "deepsdf_points", network=options, **more)
    assert train.configured(deepsdf_points.TASK, None, {"model": str(decoder)}).samples == store.recipe
