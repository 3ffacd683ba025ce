"""Tasks of installed packages: the example of docs/tasks.md as a plugin, and what is wrong with others."""

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import program
import pytest
import tiny_run
from paths import ROOT

import jonet
from jonet.errors import ConfigError
from jonet.tasks import names, registry
from jonet.training.batches import Batch

pytestmark = pytest.mark.unoptimized

PAGE = (ROOT / "docs" / "tasks.md").read_text()
CODE, PROJECT = (re.search(rf"^```{kind}\n(.*?)\n```", PAGE, re.S | re.M)[1] for kind in ("python", "toml"))
SMALL = {"network": {"latent_size": 2, "dims": [8, 8], "latent_in": [1], "norm_layers": [0]}}


def install(folder: Path, package: str, entries: dict[str, str], **modules: str) -> Path:
    """Modules, and the metadata that pip would write."""
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{names.GROUP}]", *lines]) + "\n")
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return folder


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The page's example, installed for all tests of this file."""
    project = tomllib.loads(PROJECT)["project"]
    folder = tmp_path_factory.mktemp("site")
    install(folder, project["name"], project["entry-points"][names.GROUP], eikonal_sdf=CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("eikonal_sdf", None)


def test_the_example_of_the_page_is_a_whole_run(plugin, tmp_path):
    tiny_run.write_meshes(tmp_path / "data", (0, 0, 0, 0, 0))
    work, options = tmp_path / "run", {"shapes__test_fraction": 0.4, "eikonal_points": 8}
    stages = ",".join(names.STAGES)
    assert tiny_run.start(work, tmp_path / "data", stages, "eikonal_sdf", eikonal=0.5, **options) == 0
    values, saved = (json.loads((work / name).read_text()) for name in ("metrics.json", "config.json"))
    assert values["task"] == saved["task"] == "eikonal_sdf" and saved["config"]["eikonal"] == 0.5
    assert len(values["shapes"]) == 2 and all(
        entry["eikonal_error"] > 0 and "iou" in entry for entry in values["shapes"]
    )
    logged = [json.loads(line) for line in (work / "log.jsonl").open()]
    assert all(entry["eikonal"] > 0 for entry in logged if "loss" in entry)
    page = (work / "report.html").read_text()
    assert "DeepSDF with an eikonal term" in page and "Eikonal error" in page
    model = jonet.load(work)
    assert model.history["task"] == "eikonal_sdf" and len(model.codes) == 3
    assert tiny_run.start(work, tmp_path / "data", stages, "eikonal_sdf", eikonal=0.2, **options) == 1


def test_the_loss_adds_the_deviation_of_the_gradient(plugin):
    module = importlib.import_module("eikonal_sdf")
    shared, codes = miniature.start(miniature.DECODER, 2)
    ones = jnp.ones(2)
    batch = Batch(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4)), jnp.arange(2), jnp.arange(2), ones, jnp.int32(1))

    def distances(shared, per_shape, batch_stats, batch, key):
        return 3.0, (batch_stats, {})

    config = module.Config(eikonal=2.0, eikonal_points=16)
    settings = {"distances": distances, "decoder": miniature.DECODER, "config": config}
    total, (_, metrics) = module.loss(shared, codes, {}, batch, jax.random.key(0), **settings)
    assert float(total) == pytest.approx(3 + 2 * float(metrics["eikonal"]))
    flat = jax.tree.map(np.copy, shared)
    flat["params"]["lin3"]["kernel"][:] = 0  # a constant field: each of two shapes deviates by 1
    total, (_, metrics) = module.loss(flat, codes, {}, batch, jax.random.key(0), **settings)
    assert float(metrics["eikonal"]) == pytest.approx(2, abs=1e-4)


def test_a_task_can_be_given_in_python(plugin, tmp_path):
    task = registry.find("eikonal_sdf")
    tiny_run.write_meshes(tmp_path / "data")
    samples = {"near": 400, "uniform": 100, "surface": 200, "occupancies": 0}
    options = {"samples": samples, "batch_shapes": 2, "batch_points": 16, "steps": 2, "minutes": 0, **SMALL}
    model = jonet.train(tmp_path / "data", task=task, workdir=tmp_path / "run", eikonal=0.3, **options)
    again = jonet.train(tmp_path / "data", task="eikonal_sdf", workdir=tmp_path / "run", eikonal=0.3, **options)
    assert isinstance(task, jonet.Task) and model.digest == again.digest
    with pytest.raises(ConfigError, match="did you mean eikonal"):
        jonet.train(tmp_path / "data", task=task, eikonl=0.3)
    with pytest.raises(ConfigError, match="an instance, not the class"):
        jonet.train(tmp_path / "data", task=type(task))


def test_help_lists_installed_tasks_without_loading_them(plugin):
    code = """
        import contextlib, io, sys
        from jonet import __main__ as shell
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
            shell.main(["run", "--help"])
        assert "purify, eikonal_sdf" in said.getvalue(), said.getvalue()
        assert not {"jax", "eikonal_sdf"} & sys.modules.keys()
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_has_the_options_of_an_installed_task(plugin, capsys):
    with pytest.raises(SystemExit) as caught:
        program.run(["--task=eikonal_sdf", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert caught.value.code == 0 and "--eikonal FLOAT" in said and "weight of the eikonal term" in said


INCOMPLETE = """
    from jonet.tasks.deepsdf import TASK as FULL
    from jonet.tasks.deepsdf import DeepSDF

    class Unread(DeepSDF):
        name = "unread"
        parts = FULL.parts | {"evaluate": ()}

    class Untitled(DeepSDF):
        name = "something"
"""


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("gone", "no_such_module:TASK", "task gone of the package broken .* cannot be loaded .*no_such_module"),
        ("number", "math:pi", "but must be a jonet.Task"),
        ("unread", "incomplete:Unread", "scores must be both a field of its config and in one of its parts"),
        ("untitled", "incomplete:Untitled", "has the name 'something'"),
    ],
)
def test_a_task_that_cannot_work_is_refused_when_it_is_asked_for(tmp_path, monkeypatch, capsys, name, value, words):
    monkeypatch.syspath_prepend(install(tmp_path, "broken", {name: value}, incomplete=INCOMPLETE))
    assert name in names.all_names() and registry.find("deepsdf").name == "deepsdf"
    assert program.run([f"--task={name}"]) == 1
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1


def test_names_are_unique(tmp_path, monkeypatch):
    for package in ("one", "two"):
        install(tmp_path / package, package, {"twice": f"{package}:TASK", "deepsdf": "math:pi"})
        monkeypatch.syspath_prepend(tmp_path / package)
    assert names.all_names()[: len(names.BUILT_IN)] == names.BUILT_IN and names.all_names().count("twice") == 1
    with pytest.raises(ConfigError, match="task twice is declared by the package one and the package two"):
        registry.find("twice")
    with pytest.warns(UserWarning, match="the package one and the package two declares the task deepsdf, .* ignored"):
        assert registry.find("deepsdf").title == "DeepSDF"


def test_every_built_in_task_is_complete():
    for name in names.BUILT_IN:
        task = registry.find(name)
        assert registry.find(task) is task and task.name == name
