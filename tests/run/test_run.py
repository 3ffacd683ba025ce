"""A whole run in miniature: every stage, the run folder, the model that it leaves, and single steps from the shell."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import program
import pytest
from paths import ROOT
from small_run import arguments

import jonet
from jonet import __main__ as shell
from jonet import config as configs
from jonet.codes import Codes
from jonet.data import store as stores
from jonet.errors import CheckpointError, ConfigError, FormatError, InputError
from jonet.evaluation import metrics
from jonet.geometry import mesh_files
from jonet.progress import Progress
from jonet.run import metrics_file, report_pages, stages, train
from jonet.tasks.setup import TrainingSetup

pytestmark = pytest.mark.unoptimized


WORK: list[str] = []  # of which the run below has shown the progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mugs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__enter__", lambda shown: WORK.append(shown.what) or shown)
        assert program.run(arguments(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return jonet.load(folder)


def test_the_run_folder(folder):
    for name in ("config.json", "log.jsonl", "store", "checkpoints", "model", "codes.npz", "meshes", "report.html"):
        assert (folder / name).exists(), name
    values = json.loads((folder / "metrics.json").read_text())
    assert values["version"] == 2 and values["task"] == "deepsdf" and values["device"]
    assert len(values["shapes"]) == len(values["train"]["shapes"]) == 2
    scores = "iou chamfer_l1 chamfer_l2 normal_consistency f_score mesh_accuracy mesh_completion emd"
    for name in scores.split():
        assert values["summary"][name].keys() == {"mean", "median"}
    assert set(values["seconds"]) >= {"prepare", "train", "reconstruct"}
    page = (folder / "report.html").read_text()
    assert "<html" in page and not re.search(r'(src|href)="https?:', page)


def test_deviations_of_a_run_are_those_of_its_files(folder):
    _, config, _ = program.parse(arguments(folder))
    store, values = stores.open(folder / "store"), metrics_file.read(folder)
    names = [row["name"] for row in values["shapes"]]
    index = [store.names.index(name) for name in names]
    ground_truths = [store.similarities[i].inverse().apply(store.mesh(i)) for i in index]
    meshes = report_pages.read_all(folder / "meshes" / "test", names)
    found = jonet.evaluate(meshes, ground_truths, config.scores)["shapes"]
    for row, again, i in zip(values["shapes"], found, index, strict=True):
        assert store.similarities[i].scale != pytest.approx(1, rel=0.01)
        for name in metrics.DEVIATIONS:
            assert row[name] == pytest.approx(again[name], rel=0.01), name
    assert "input units" in (folder / "report.html").read_text("utf-8")


def test_scores_of_another_version_are_refused(tmp_path):
    for content, message in (("{}", "has format 1"), ('{"version": 3}', "has format 3"), ("[", "cannot be read")):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(FormatError, match=f"{message}.*run the stage evaluate again"):
            metrics_file.read(tmp_path)


def test_a_config_is_read_back_equal(folder):
    task, config, _ = program.parse(arguments(folder))
    saved = json.loads((folder / "config.json").read_text())
    assert configs.from_dict(task.config, saved["config"]) == config


def test_finished_stages_are_skipped_and_changed_ones_done_again(folder, capfd):
    assert program.run(arguments(folder)) == 0
    said = capfd.readouterr().err
    assert [f"{stage}: done before" in said for stage in stages.STAGES] == [True] * 5
    before = (folder / "store" / "index.json").stat().st_mtime_ns
    assert program.run(arguments(folder, "--scores.seed=1", "--stages=evaluate,report")) == 0
    said = capfd.readouterr()
    assert "evaluate …" in said.err and "IoU" in said.out
    assert (folder / "store" / "index.json").stat().st_mtime_ns == before


def test_changed_options_of_expensive_stages_are_refused_by_name(folder, capfd):
    assert program.run(arguments(folder, "--steps=61")) == 1
    assert "steps: 60 → 61" in capfd.readouterr().err


def test_what_cannot_be_is_refused(tmp_path, capfd):
    assert program.run(["--task", "deepsdf", "--data", "chiar", "--workdir", str(tmp_path / "a")]) == 1
    assert "neither a file or folder" in capfd.readouterr().err
    assert program.run(["--preset", "fast", "--workdir", str(tmp_path / "b")]) == 1
    assert "quick" in capfd.readouterr().err
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("x")
    assert program.run(arguments(tmp_path / "c")) == 1
    assert "choose another --workdir" in capfd.readouterr().err
    assert program.run(arguments(tmp_path / "d", "--stages=report")) == 1
    assert "needs prepare" in capfd.readouterr().err


def test_the_model_that_a_run_leaves(model, folder):
    assert model.codes.values.shape == (6, 8) and model.codes.residual.shape == (6,)
    assert set(model.params) == {"shared", "batch_stats"}
    field = model.field(model.codes)
    points = np.random.default_rng(0).uniform(-1, 1, (6, 50, 3)).astype(np.float32)
    plain = model.network.module.apply(model.network.shared, model.codes.values, points)
    np.testing.assert_allclose(field(points), plain, atol=2e-6)
    assert field.contains(points).dtype == bool and set(np.unique(field.occupancy(points))) <= {0.0, 1.0}


def test_a_model_goes_to_disk_and_back(model, tmp_path):
    model.save(tmp_path / "copy")
    again = jonet.load(tmp_path / "copy")
    assert again.config == model.config and again.codes.names == model.codes.names
    np.testing.assert_array_equal(again.codes.values, model.codes.values)
    np.testing.assert_array_equal(again.prior.covariance, model.prior.covariance)


@pytest.mark.parametrize("harm", ["model.json", "arrays.npz", "codes.npz"])
def test_a_damaged_model_is_named(model, tmp_path, harm):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / harm
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=harm):
        jonet.load(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="contains no trained model"):
        jonet.load(tmp_path)


def test_fit_and_extract_keep_input_units(model):
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((3000, 3))
    normals = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    points = normals * 20 + [1000, 0, -500]
    codes = model.fit(points=[points], normals=[normals], frame="input", whole=True, names=["ball"])
    assert codes.names == ("ball",) and len(codes.similarities) == 1
    np.testing.assert_allclose(codes.similarities[0](points).max(), 1 / 1.03, atol=0.01)
    for code in (codes, model.codes[0].placed(codes.similarities)):
        (own,), (normalized,) = model.extract(code, 24), model.extract(code, 24, frame="normalized")
        np.testing.assert_allclose(own.vertices, codes.similarities[0].inverse()(normalized.vertices), atol=1e-9)
        np.testing.assert_array_equal(own.faces, normalized.faces)
    assert len(own.faces)  # of a shape that was trained on
    assert np.abs(own.bounds.mean(0) - [1000, 0, -500]).max() < 20


def test_wrong_arrays_are_refused(model):
    with pytest.raises(InputError, match="samples"):
        model.fit(np.zeros((1, 10, 3)))
    with pytest.raises(InputError, match="codes"):
        model.extract(np.zeros((2, 9)))
    with pytest.raises(InputError, match="similarities"):
        model.fit(np.zeros((1, 10, 4)), frame="input")
    with pytest.raises(InputError, match="nan|finite"):
        model.fit(np.full((1, 10, 4), np.nan))


def test_sample_and_interpolate(model):
    assert len(model.sample(3, seed=1, resolution=16)) == 3
    made = model.interpolate(model.codes[0], model.codes[1], 4, resolution=16)
    ends = model.extract(model.codes[:2].values, 16)
    assert len(made) == 4
    np.testing.assert_array_equal(made[0].faces, ends[0].faces)
    np.testing.assert_array_equal(made[3].faces, ends[1].faces)


def test_codes_are_indexed_and_joined(folder):
    codes = Codes.load(folder / "codes.npz")
    assert len(codes[0]) == 1 and codes[codes.names[1]].names == codes.names[1:2]
    assert codes[list(codes.names[::-1])].names == codes.names[::-1]
    with pytest.raises(InputError, match="no code is named 'nobody'"):
        codes["nobody"]
    joined = Codes.joined([codes[:1], codes[1:]])
    np.testing.assert_array_equal(joined.values, codes.values)
    assert joined.names == codes.names and len(joined.similarities) == len(codes)


def test_single_steps_from_the_shell(folder, tmp_path, capfd):
    ground_truth = tmp_path / "truth"
    for index in (20, 21):
        from jonet.data.families import make

        mesh_files.write(make("mug", 0, index), ground_truth / f"mug_{index}.ply")
    assert shell.main(["fit", str(folder), str(ground_truth), "--out", str(tmp_path / "codes.npz")]) == 0
    assert "inliers" in capfd.readouterr().out
    out = ["--out", str(tmp_path / "made"), "--resolution", "24", "--format", "obj"]
    assert shell.main(["extract", str(folder), str(tmp_path / "codes.npz"), *out]) == 0
    assert len(list((tmp_path / "made").glob("*.obj"))) == 2
    assert shell.main(["evaluate", str(tmp_path / "made"), str(ground_truth)]) == 0
    assert "IoU" in capfd.readouterr().out
    assert shell.main(["info", str(folder)]) == 0
    assert "deepsdf" in capfd.readouterr().out
    assert shell.main(["info", str(tmp_path)]) == 1
    assert "error:" in capfd.readouterr().err


def test_train_from_python(tmp_path):
    _, config, _ = program.parse(arguments(tmp_path))
    changes = {part: getattr(config, part) for part in ("shapes", "samples", "network", "batch_shapes", "batch_points")}
    model = jonet.train("mug", workdir=tmp_path / "run", minutes=0, steps=5, **changes)
    assert len(model.codes) == 6
    with pytest.raises(ConfigError, match="stepz"):
        jonet.train("mug", stepz=5)


def test_timed_training_validates_at_most_a_hundred_times():
    setup = TrainingSetup(*[None] * 5, steps=9, minutes=2.0, validate_every=500)
    assert train.validation_interval(setup, 14_000) == 500 and train.validation_interval(setup, 300_000) == 3000
    assert train.validation_interval(dataclasses.replace(setup, minutes=0.0), 300_000) == 500


def test_without_a_folder_a_stop_promises_nothing(monkeypatch, tmp_path):
    def stopped(run):
        raise KeyboardInterrupt("stopped after step 3 of 9; the same command continues from there")

    monkeypatch.setattr(train, "prepare", stopped)
    with pytest.raises(KeyboardInterrupt, match="^stopped after step 3 of 9; nothing is kept, since no"):
        jonet.train("mug")
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        jonet.train("mug", workdir=tmp_path)


def test_the_first_command_of_the_readme():
    blocks = re.findall(r"^```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) == 2 and all("\n" not in block for block in blocks)
    words = shlex.split(blocks[0])
    task, config, options = program.parse(words[words.index("experiments/run.py") + 1 :])
    assert config == task.presets["quick"] and options.stages == stages.STAGES


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        program.run(["--task=deepsdf", "--help"])
    said = capsys.readouterr().out
    for option in ("--workdir", "--stages", "--network.latent-size", "--learning.clamp", "published"):
        assert option in said


def test_run_works_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "--task=deepsdf", "--preset=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "error: preset" in done.stderr


def test_every_stage_shows_its_progress(folder):
    wanted = {
        "prepare": {"sampling"},
        "train": {"training"},
        "reconstruct": {"codes of unseen shapes", "meshes/test", "meshes/train", "samples of the prior"}
        | {"interpolation between two shapes"},
        "evaluate": {"scores of meshes/test", "scores of meshes/train", "further scores of unseen shapes"}
        | {"nearest training shapes", "scores of nearest training shapes", "further scores of deepsdf"},
        "report": {"reading meshes/test", "galleries of deepsdf", "pictures of the map of codes", "slices"}
        | {"pictures of unseen shapes", "pictures of training shapes"},
    }
    assert {stage: works - set(WORK) for stage, works in wanted.items()} == {stage: set() for stage in wanted}
