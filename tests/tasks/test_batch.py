"""Batches by platform, and where their samples are: decided when training starts, kept, and refused before sampling."""

import dataclasses
import json

import pytest
import tiny_run

from jonet import parallel
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.errors import ConfigError
from jonet.parallel import Platform
from jonet.settings.fitting import FitConfig
from jonet.tasks import batch, deepsdf, names, onet_points, registry
from jonet.tasks.batch import Batch
from jonet.tasks.shapes import Shapes
from jonet.training.autodecoder import AutoDecoder

TPU, GPU, CPU = Platform("tpu", 16 << 30), Platform("gpu", 80 << 30), Platform("cpu", 8 << 30)
# as they were before there were batches by platform: shapes and points on a CPU
ON_CPU = {
    "deepsdf": {"quick": (16, 64), "small": (32, 256), "single_mlp": (1, 1024), "paper": (64, 16384)},
    "deepsdf_completion": {"quick": (16, 64), "small": (32, 256), "paper": (64, 16384)},
    "deepsdf_points": {"quick": (16, 256), "small": (32, 256)},
    "onet_points": {"quick": (16, 512), "small": (16, 512), "paper": (64, 2048)},
    "onet_voxels": {"quick": (8, 1024), "small": (16, 512), "paper": (64, 1024)},
    "onet_images": {"quick": (8, 512), "small": (16, 256), "paper": (64, 2048)},
    "onet_unconditional": {"quick": (4, 2048), "small": (8, 2048), "paper": (64, 2048)},
    "purify": {"quick": (16, 512), "small": (16, 512), "paper": (64, 2048)},
}


def decided(platform: Platform, config) -> tuple[Batch, dict]:
    autotuned = {}
    with parallel.assuming(platform):
        return batch.of(config, autotuned), autotuned


@pytest.mark.parametrize("task", ON_CPU)
def test_a_cpu_has_the_batches_of_small_steps_and_an_accelerator_large_ones(task):
    assert ON_CPU.keys() == set(names.BUILT_IN) - {"occnet"}  # whose batch has all shapes
    for preset, (shapes, points) in ON_CPU[task].items():
        config = registry.find(task).presets[preset]
        found, kept = decided(CPU, config)
        assert found == Batch(shapes, points, "float32")
        assert kept == {"batch_shapes": shapes, "batch_points": points, "compute_dtype": "float32"}
        for platform in (GPU, TPU):
            large, _ = decided(platform, config)
            if preset == "paper":
                assert large == found
            else:  # at least as many points; on a GPU, where few are as slow, at least 16,384
                assert large == getattr(config, platform.kind) and large.shapes >= shapes
                assert large.shapes * large.points >= (shapes * points if platform == TPU else 16_384)


def test_options_and_what_was_decided_come_first():
    config = dataclasses.replace(deepsdf.TASK.presets["quick"], batch_points=32)
    assert decided(TPU, config)[0] == decided(GPU, config)[0] == Batch(64, 32, "bfloat16")
    with parallel.assuming(TPU):  # a run that continues on another machine
        assert batch.of(config, {"batch_shapes": 16, "batch_points": 64, "compute_dtype": "float32"}) == Batch(16, 64)


def test_groups_by_platform_are_not_read_where_all_is_given():
    preset = deepsdf.TASK.presets["quick"]
    config = dataclasses.replace(preset, batch_shapes=4, batch_points=32, compute_dtype="float32")
    assert not {"cpu", "gpu", "tpu"} & preset.unread().keys()
    with pytest.raises(ConfigError, match="gpu.points is given, but not read: batch_shapes, batch_points and"):
        config.resolved({"gpu.points"})


@pytest.mark.parametrize(
    ("preset", "changes", "option", "reason"),
    [
        ("quick", {}, "optimizer.weight_decay", "optimizer.name is muon"),
        ("quick", {}, "optimizer.shared.interval", "optimizer.shared.kind is cosine"),
        ("paper", {}, "optimizer.per_shape.final", "optimizer.per_shape.kind is step"),
        ("quick", {}, "learning.prior_sigma", "learning.prior is program"),
        ("quick", {"learning": AutoDecoder(prior="paper")}, "learning.prior_ramp", "learning.prior is paper"),
        ("quick", {}, "fitting.adam.steps", "fitting.method is gauss_newton"),
        ("paper", {}, "fitting.gauss_newton.points", "fitting.method is adam"),
        ("paper", {}, "fitting.starts", "which has one start"),
        ("paper", {}, "fitting.prior", "whose penalty is adam.decay"),
        ("quick", {"fitting": FitConfig(prior_sigma=0.01)}, "fitting.prior", "prior_sigma takes its place"),
        ("single_mlp", {}, "fitting.seed", "there are no codes"),
        ("single_mlp", {}, "learning.code_bound", "there are no codes"),
    ],
)
def test_options_that_others_make_idle_are_refused(preset, changes, option, reason):
    config = dataclasses.replace(deepsdf.TASK.presets[preset], **changes)
    with pytest.raises(ConfigError, match=f"{option} is given, but not read: .*{reason}"):
        config.resolved({option})
    config.resolved({"optimizer.shared.initial", "learning.prior", "optimizer.name"} - {option, *config.unread()})


@pytest.mark.parametrize("change", [{"batch_shapes": -1}, {"batch_points": 3}, {"batch_points": -2}])
def test_batches_that_cannot_be(change):
    for task in (deepsdf, onet_points):
        with pytest.raises(ConfigError, match="even number of points.*or 0 for a choice by platform"):
            dataclasses.replace(task.TASK.presets["quick"], **change)
    with pytest.raises(ConfigError, match="a batch of 16 shapes × 0 points"):
        Batch(points=0)


def test_single_rows_are_not_read_from_the_disk():
    with pytest.raises(ConfigError, match="set draw=windows, or auto"):
        dataclasses.replace(deepsdf.TASK.presets["quick"], place="streamed", draw="rows")


PLACES = {  # gigabytes of a device: where 61 MB of samples are, beside a step of 230 MB
    ("cpu", 0.2): ("resident", "rows"),
    ("cpu", 0.1): ("streamed", "windows"),
    ("gpu", 0.35): ("resident", "rows"),
    ("gpu", 0.32): ("half", "rows"),
    ("gpu", 0.28): ("streamed", "windows"),
}


@pytest.mark.parametrize(("kind", "memory"), PLACES)
def test_samples_are_where_a_device_has_the_memory(kind, memory):
    """The preset quick takes 61.4 MB of samples, or 30.7 as float16."""
    config = deepsdf.TASK.presets["quick"]
    outline = stores.outline(config.shapes.sources("chair", 0), config.samples)
    shapes, autotuned = outline.select("train"), {}
    with parallel.assuming(Platform(kind, int(memory * 1e9))):
        each = batch.of(config, autotuned)
        lanes = batch.Lanes.deal(shapes, each.shapes, 0, 1)

        def spec(how):
            return deepsdf.spec(each.points, how)

        found = batch.place(config, outline.arrays, lanes, spec, lambda: 230_000_000, autotuned)
        assert (found, batch.how(config, found)) == PLACES[kind, memory] and autotuned["place"] == found
        given = dataclasses.replace(config, place="streamed")
        assert batch.place(given, outline.arrays, lanes, spec, lambda: 0, {}) == "streamed"
        assert batch.place(given, outline.arrays, lanes, spec, lambda: 0, {"place": "resident"}) == "resident"


@pytest.mark.parametrize("change", [{"draw": "rows"}, {"place": "resident"}])
def test_what_no_device_holds_is_refused_before_anything_is_sampled(tmp_path, capsys, monkeypatch, change):
    tiny_run.write_meshes(tmp_path / "data")
    monkeypatch.setattr(stores.shards, "prepare", lambda *_: pytest.fail("shapes are sampled"))
    with parallel.assuming(Platform("tpu", 8 << 10)):
        assert tiny_run.start(tmp_path / "run", tmp_path / "data", **change) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the samples of 3 shapes take" in said and "set both to auto, so that windows are streamed" in said
    assert not (tmp_path / "run" / "store").exists()


def test_an_outline_is_the_store_that_is_built(tmp_path):
    recipe = Recipe(near=0, uniform=0, surface=50, occupancies=400, voxels="ray")
    sources = Shapes(train=4, test=1, val_fraction=0.3).sources("mug", 0)
    outline = stores.outline(sources, recipe, frame="cube")
    built = stores.build(tmp_path / "store", sources, recipe, frame="cube", progress=False)
    assert outline.names == built.names and outline.splits.tolist() == built.splits.tolist()
    assert outline.categories == built.categories and outline.recipe == built.recipe and outline.frame == built.frame
    assert outline.arrays.keys() == built.arrays.keys()
    for name in outline.arrays.keys() - {"vertices", "faces"}:
        one, other = outline.arrays[name], built.arrays[name]
        assert (one.values.shape, one.values.dtype) == (other.values.shape, other.values.dtype)
        assert one.counts.sum(1).tolist() == other.counts.sum(1).tolist()
        assert one.offsets.tolist() == other.offsets.tolist()


def test_a_run_keeps_what_was_decided(tmp_path):
    tiny_run.write_meshes(tmp_path / "data")
    options = {"batch_shapes": 0, "batch_points": 0, "compute_dtype": "auto", "cpu__points": 16, "cpu__shapes": 2}
    assert tiny_run.start(tmp_path / "run", tmp_path / "data", "prepare,train", **options) == 0
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    kept = {"batch_shapes": 2, "batch_points": 16, "compute_dtype": "float32", "place": "resident", "steps": 3}
    assert values["autotuned"] == kept and values["config"]["batch_points"] == 0
