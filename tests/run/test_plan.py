"""Plans of runs: every preset of every task, for a chip of 16 GB, without sampling, copying or compiling."""

import dataclasses
import functools

import jax
import numpy as np
import program
import pytest

from jonet import parallel
from jonet.chips import CHIPS
from jonet.data import sources
from jonet.errors import ConfigError
from jonet.networks.occupancy import OccupancyNetwork
from jonet.parallel import Platform
from jonet.run import plan
from jonet.tasks import deepsdf, names, registry
from jonet.tasks.shapes import Shapes

pytestmark = pytest.mark.unoptimized
STREAMED = {"onet_points", "onet_voxels", "onet_images", "purify"}  # more than 2³¹ rows, or 27 GB, in paper
PRESETS = [(task, preset) for task in names.BUILT_IN for preset in registry.find(task).presets]


@pytest.fixture(autouse=True)
def nothing_is_done(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a plan samples nothing and copies nothing")

    def start(network, key):  # parameters of 0, which need no compilation
        found = jax.eval_shape(functools.partial(drawn, network), key)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)

    drawn = OccupancyNetwork.start
    monkeypatch.setattr(OccupancyNetwork, "start", start)
    monkeypatch.setattr(sources.Source, "shape", refuse)
    monkeypatch.setattr(jax, "make_array_from_callback", refuse)


@pytest.mark.parametrize(("name", "preset"), [pair for pair in PRESETS if pair != ("deepsdf", "single")])
def test_every_preset_starts_on_a_chip_of_16_gigabytes(name, preset):
    task = registry.find(name)
    config = task.presets[preset]
    if preset == "single_mlp":
        config = dataclasses.replace(config, shapes=Shapes(train=1, test=0))
    found = plan.make(task, config, "v5e")
    training, chip = found.training, CHIPS["v5e"]
    held = training.samples + training.step
    assert found.platform == Platform("tpu", 16 << 30) and 0 < held < (14e9 if preset == "paper" else 0.9 * chip.memory)
    place = training.autotuned.get("place", "resident")
    assert (place == "streamed") == (preset == "paper" and name in STREAMED)
    assert (training.source.plan.points.how == "windows") == (place == "streamed")
    assert found.shapes["train"] > 0 and found.sampling > 0 and found.disk > 0 and training.host > training.samples
    least = sum(training.operations.values()) / chip.rates["bfloat16"]
    assert training.seconds > 4.99 * least and training.steps >= 1
    assert training.minutes == pytest.approx(getattr(config, "minutes", 0) or training.steps * training.seconds / 60)
    said = plan.text(task, preset, found, "v5e")
    assert said.startswith(f"{name}, {preset} ") and "on one v5e (17.2 GB)" in said and len(said.splitlines()) == 9
    assert f" × {training.source.points // training.source.lanes.shapes:,} points" in said
    assert f"{training.steps:,} steps in" in said and ("read from disk" in said) == (place == "streamed")


def test_splines_are_planned_without_a_training():
    task = registry.find("deepsdf")
    one = dataclasses.replace(task.presets["single"], shapes=Shapes(train=1, test=0))
    found = plan.make(task, one, "v5e")
    assert isinstance(found.training, str) and found.shapes == {"train": 1}
    assert "none, since splines are solved" in plan.text(task, "single", found, "v5e")
    with pytest.raises(ConfigError, match="holds one shape, but there are"):
        plan.make(task, task.presets["single"], "v5e")


def test_the_program_prints_a_plan_and_makes_no_folder(tmp_path, capsys):
    work = tmp_path / "run"
    arguments = ["--task=deepsdf", "--preset=paper", "--plan", f"--workdir={work}"]
    assert program.run([*arguments, "--chip=h100"]) == 0 and not work.exists()
    said = capsys.readouterr().out
    assert "on one h100 (85.9 GB)" in said and "64 shapes × 16,384 points in float32" in said
    assert "on the device, drawn as single rows" in said and "26.2 GB of samples" in said
    assert program.run(["--task=deepsdf", "--plan", "--minutes=3"]) == 0
    said = capsys.readouterr().out
    assert "on this machine's cpu" in said and "as many steps as fit in 3 minutes" in said
    assert program.run(["--task=deepsdf", "--chip=h100"]) == 1 and program.run([*arguments, "--chip=h1"]) == 1
    assert "with --plan, it is one of v5e, " in capsys.readouterr().err


def test_a_plan_raises_what_the_run_would():
    config = dataclasses.replace(deepsdf.TASK.presets["paper"], draw="rows")
    with pytest.raises(ConfigError, match="take 13.1 GB as float16 of a device's 8.59 GB; set both to auto"):
        with parallel.assuming(Platform("gpu", 8 << 30)):
            plan.make(deepsdf.TASK, config)
