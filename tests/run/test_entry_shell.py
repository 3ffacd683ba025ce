"""Impossible options of runs are refused before any work; programs end with one sentence."""

import dataclasses
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import program
import pytest
from paths import ROOT
from tiny_run import write_meshes

import jonet
from jonet import __main__ as shell
from jonet import config as configs
from jonet import interrupt, parallel
from jonet.data import sources
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.store import RaggedArray
from jonet.errors import ConfigError
from jonet.run import train
from jonet.run.program import cache_folder
from jonet.tasks import occnet, onet_points, purify, registry
from jonet.tasks.names import BUILT_IN

pytestmark = pytest.mark.unoptimized


def refusal(*arguments: str) -> str:
    """What is said of options."""
    with pytest.raises(ConfigError) as caught:
        program.parse(list(arguments))
    return str(caught.value)


@pytest.mark.parametrize("task", ["deepsdf", "deepsdf_completion", "onet_points", "purify"])
def test_steps_alone_take_the_place_of_minutes(task):
    for arguments in (["--steps=100"], ["--steps", "100"], ["--minutes=0", "--steps=100"]):
        config = program.parse([f"--task={task}", *arguments])[1]
        assert (config.steps, config.minutes) == (100, 0)
    assert program.parse([f"--task={task}", "--minutes=7"])[1].minutes == 7
    assert "only one of them says how long" in refusal(f"--task={task}", "--steps=100", "--minutes=7")
    config = train.configured(registry.find(task), None, {"steps": 100, "data": "chair,mug"})
    assert config == program.parse([f"--task={task}", "--steps=100", "--data=chair,mug"])[1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--samples.surface=0", "samples.surface is 0"),
        ("--rebuilt-train=0 --shapes.test=0", "rebuilt_train is 0 and chair leaves no shape to test with"),
        ("--task=occnet --rebuilt-train=0", "rebuilt_train is 0"),
        ("--task=purify --shapes.test=0", "purify evaluates"),
        ("--samples.near=0 --samples.uniform=0", "nothing to learn from"),
        ("--task=onet_points --samples.occupancies=0", "samples.occupancies"),
        ("--task=onet_voxels --samples.voxels=none", "samples.voxels is none"),
        ("--task=onet_points --network.encoder=idx --network.z-dim=4", "network.z_dim is 4"),
        ("--task=purify --network.encoder=idx", "network.encoder is idx"),
        ("--surfaces.method=mise --surfaces.resolution=100", "resolution is 100"),
        ("--task=onet_images --network.encoder=simple_conv --inputs.size=62 --samples.image-size=62", "63 pixels"),
        ("--scores.emd-points=0", "scores from"),
        ("--scores.volume-points=-1", "scores from"),
        ("--minutes=-1", "minutes is -1"),
        ("--minutes=inf", "minutes is inf"),
        ("--minutes=nan", "minutes is nan"),
        ("--seed=-1", "seed is -1"),
        ("--generated=-1", "generated is -1"),
        ("--preset=fast", "preset is 'fast', but deepsdf has"),
        # options that nothing reads beside the others
        (
            "--task=deepsdf_completion --view.pose=similarity --fitting.clamp=0.2",
            "fitting.clamp .* view.pose is similarity",
        ),
        ("--task=deepsdf_completion --view.pose=yaw --pose.radius=2", "pose.radius .* position and scale are known"),
        ("--task=deepsdf_completion --pose.tries=9", "pose.tries .* view.pose is known"),
        ("--shapes.val-fraction=0.1", "shapes.val_fraction .* no validation"),
        ("--task=occnet --shapes.test-fraction=0.1", "shapes.test_fraction .* all shapes are trained on"),
        ("--shapes.split=a.json", "shapes.split .* data is 'chair'"),
        ("--data=tests --shapes.train=5", "shapes.train .* data is the folder"),
        ("--data=README.md --shapes.test-fraction=0.5", "shapes.test_fraction .* one mesh"),
        ("--task=onet_points --network.encoder=idx --inputs.points=5", "inputs.points .* idx"),
        ("--task=deepsdf_completion --model=m --steps=5", "steps is given, but not read: model is m"),
        ("--task=deepsdf_completion --model=m --network.latent-size=8", "network.latent_size .* model is m"),
        ("--task=purify --model=m --no-corrupt", "corrupt .* model is m"),
        ("--task=purify --model=m --optimizer.name=adam", "optimizer.name .* model is m"),
    ],
)
def test_what_a_later_stage_cannot_do_with_is_refused_at_the_start(monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    assert re.search(words, refusal(*arguments.split()))


def test_a_store_brings_its_shapes_and_samples(tmp_path):
    write_meshes(tmp_path / "data", (0, 0))
    store = stores.build(
        tmp_path / "store", sources.discover(tmp_path / "data"), Recipe(4, 0, surface=5), progress=False
    )
    for name in ("shapes", "samples"):
        with pytest.raises(ConfigError, match=f"{name} is given, but not read: data is a store"):
            jonet.train(store, **{name: {}})


def test_patience_needs_validation():
    store = SimpleNamespace(frame="cube", select=lambda split: [])
    config = dataclasses.replace(onet_points.TASK.presets["quick"], patience=2)
    with pytest.raises(ConfigError, match="patience is 2, but there are no validation shapes"):
        onet_points.TASK.training_setup(config, store, [0, 1], None, {})


def test_samples_without_points_near_the_surface_need_another_sampling():
    """Those of the authors' folders, with a preset that draws such points."""
    counts = np.array([[3, 4], [0, 0], [0, 0]])
    store = SimpleNamespace(
        names=["a", "b", "c"],
        select=lambda split: np.array([0, 2] if split == "train" else []),
        arrays={"occupancy_near": RaggedArray(np.zeros((7, 3)), np.array([0, 7, 7]), counts)},
    )
    with pytest.raises(ConfigError, match=r"mixed, but 1 shape of 2 \(first c\) .* set points_sampling=stratified"):
        onet_points.TASK.training_setup(onet_points.TASK.presets["quick"], store, [0, 2], None, {})


def test_purify_needs_shapes_to_test_with(monkeypatch):
    monkeypatch.setattr(purify, "families", lambda *_: None)
    store = SimpleNamespace(frame="cube", select=lambda split: [])
    with pytest.raises(ConfigError, match="no shape to test with"):
        purify.TASK.check_store(purify.TASK.presets["quick"], store)


def test_one_mesh_takes_the_same_preset_from_shell_and_python(tmp_path):
    write_meshes(tmp_path, (0,))
    data = str(tmp_path / "m0.ply")
    config = program.parse([f"--data={data}"])[1]
    assert config == train.configured(registry.find("deepsdf"), None, {"data": data})
    assert config == dataclasses.replace(registry.find("deepsdf").presets["single"], data=data)


def test_a_classifier_has_no_options_of_what_shapes_share(capsys):
    with pytest.raises(ConfigError, match="no option --optimizer.name"):
        program.parse(["--task=occnet", "--optimizer.name=muon"])
    assert program.parse(["--task=occnet", "--optimizer.per-shape.initial=1e-4"])[1].optimizer.per_shape.initial == 1e-4
    with pytest.raises(ConfigError, match="unknown option optimizer.name"):
        configs.changed(occnet.TASK.presets["quick"], {"optimizer": {"name": "muon"}})


def test_presets_can_be_used_as_they_are():
    for name in BUILT_IN:
        for preset, config in registry.find(name).presets.items():
            config.check_later()
            values = configs.to_dict(config)
            arguments = [f"--task={name}", f"--preset={preset}"]
            assert configs.from_dict(type(config), values) == config == program.parse([*arguments, "--plan"])[1]
            if config.data:
                assert program.parse(arguments)[1] == config
            else:
                words = "no model is named" if name == "deepsdf_points" else "no data are named, .*give --data=FOLDER"
                with pytest.raises(ConfigError, match=words):
                    program.parse(arguments)
    assert onet_points.TASK.presets["paper"].surfaces.method == "mise"


# How programs end


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(28, "No space left on device", "run/a.npz"), "error: run/a.npz: No space left on device\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "error: a → b: Invalid cross-device link\n"),
        (BrokenPipeError(32, "Broken pipe"), "error: Broken pipe\n"),  # of another pipe than what is printed
        (MemoryError(), "error: there is not enough memory\n"),
        (RecursionError("maximum depth"), "error: an input is nested too deeply to be read\n"),
        (ConfigError("what"), "error: what\n"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, words, capsys):
    def work():
        raise error

    assert interrupt.status(work, "") == 1
    assert capsys.readouterr().err == words


def test_mistakes_of_the_program_are_tracebacks():
    with pytest.raises(ZeroDivisionError):
        interrupt.status(lambda: 1 / 0, "")


def test_a_place_below_a_file_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words in (["run", "--workdir"], ["train", "--workdir"]):
        assert shell.main([*words, str(tmp_path / "file" / "run")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and str(tmp_path / "file") in said and said.count("\n") == 1


def started(*words, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, **settings)


@pytest.mark.parametrize("unbuffered, words", [("1", "-m jonet --help"), ("", "experiments/run.py --help")])
def test_a_reader_that_goes_away_ends_a_program_quietly(unbuffered, words):
    reading, writing = os.pipe()
    os.close(reading)
    with started(*words.split(), stdout=writing, env={"PYTHONUNBUFFERED": unbuffered}) as process:
        os.close(writing)
        assert (process.communicate()[1], process.returncode) == (b"", 141)


def test_a_full_disk_is_reported_once():
    code = "from jonet import interrupt; interrupt.leave(interrupt.status(lambda: print('much'), ''))"
    with open("/dev/full", "w") as full, started("-c", code, stdout=full) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 1 and said == "error: No space left on device\n"


def test_a_terminal_without_an_arrow_ends_no_run():
    code = "from jonet import __main__ as shell; from jonet.run import stages; stages.run = lambda *_: print('a → b'); "
    code += "raise SystemExit(shell.main(['run', '--task=deepsdf']))"
    with started("-c", code, env={"PYTHONIOENCODING": "cp1252"}, stdout=subprocess.PIPE) as process:
        out, said = process.communicate()
    assert (process.returncode, said, out.strip()) == (0, b"", rb"a \u2192 b")


def test_without_a_home_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jonet" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no home is known
    assert cache_folder() is None


def test_a_machine_in_no_cluster_is_reported(monkeypatch):
    import jax

    def nowhere(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nowhere)
    for place in ("", "localhost:1,2,0"):
        with pytest.raises(ConfigError, match="coordinator_address"):
            parallel.join(place)
