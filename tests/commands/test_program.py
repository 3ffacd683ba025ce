"""The program's verbs: their options and help, which need no jax, and the defaults that Python has, too."""

import dataclasses
import inspect
import io
import os
import re
import subprocess
import sys
import threading
import time

import program
import pytest

import jonet
from jonet import __main__ as shell
from jonet import parser, progress
from jonet.commands import options, trained
from jonet.errors import ConfigError
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.progress import Progress
from jonet.settings.fitting import FitConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks.names import BUILT_IN

WITHOUT_JAX = """
import contextlib, io, sys
from jonet import __main__ as shell
for verb in ("", *shell.VERBS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        shell.main([verb, "--help"] if verb else ["--help"])
    assert "usage: jonet" in said.getvalue(), verb
assert not {"jax", "jaxlib", "flax", "optax", "trimesh"} & sys.modules.keys(), sorted(sys.modules)
"""


def help_of(*arguments, capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        shell.main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_needs_no_jax():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [[verb] for verb in shell.VERBS] + [["run", f"--task={task}"] for task in BUILT_IN]
)
def test_every_option_has_its_sentence(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = help_of(*arguments, capsys=capsys)
    if arguments in (["run"], ["train"]):
        assert "--task" in said and "options that matter most" in said
        return
    lines = [line.strip("│ ").rstrip() for line in said.splitlines()]
    about = [(a, b) for a, b in zip(lines, lines[1:], strict=False) if re.match(r"--[a-z]", a)]
    assert len(about) > 1 or arguments == ["info"]
    bare = []
    for option, after in about:
        inline = re.split(r"\s{2,}", option)[1:]
        if not (inline or [after])[0] or (inline or [after])[0].startswith("("):
            bare.append(option)
    assert not bare


def test_verbs_and_their_classes_belong_together():
    named = {entry.options for entry in shell.VERBS.values() if entry.options}
    classes = {
        name for name, kind in vars(options).items() if isinstance(kind, type) and issubclass(kind, options.Verb)
    }
    classes -= {"Verb", "Computing", "Bulk"}  # what others are derived from
    assert named == classes
    for entry in shell.VERBS.values():
        assert callable(shell._function(entry.work))


def test_shell_and_python_have_the_same_defaults():
    for method, kind in (("sample", options.Sample), ("purify", options.Purify)):
        ours = {field.name: field.default for field in dataclasses.fields(kind)}
        python = inspect.signature(getattr(Model, method)).parameters
        shared = {name: python[name].default for name in ours.keys() & python.keys() if name != "self"}
        shared = {name: value for name, value in shared.items() if value is not inspect.Parameter.empty}
        assert "seed" in shared and shared == {name: ours[name] for name in shared}
    assert inspect.signature(jonet.evaluate).parameters["scoring"].default == options.Evaluate.scores


def test_given_settings_take_the_place_of_the_models(monkeypatch):
    model = Model(
        "deepsdf", BoundNetwork(None, {}), "sphere", fitting=FitConfig(starts=9), surfaces=Surfaces(resolution=32)
    )
    monkeypatch.setattr("jonet.model.load", lambda folder: model)
    for more, fitting, surfaces in (
        ([], model.fitting, model.surfaces),
        (
            ["--fitting.starts=4"],
            dataclasses.replace(model.fitting, starts=4),
            model.surfaces,
        ),  # also a default's value
        (
            ["--fitting.gauss-newton.steps", "3", "--resolution=64", "--surfaces.no-normals"],
            dataclasses.replace(model.fitting, gauss_newton=dataclasses.replace(model.fitting.gauss_newton, steps=3)),
            dataclasses.replace(model.surfaces, resolution=64, normals=False),
        ),
    ):
        found, given = parser.parse(options.Reconstruct, ["m", "a", "b", "--out=x", *more], "jonet reconstruct")
        made = trained.load(found, given)
        assert (made.fitting, made.surfaces, found.inputs) == (fitting, surfaces, ("a", "b"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--task=deepsdf", "--latent-size=8"], "no option --latent-size; did you mean --network.latent-size?"),
        (["run", "--task=deepsdf", "--steps=9", "--initial=1"], "shared.initial or --optimizer.per-shape.initial?"),
        (["run", "--task=deepsdf", "--points=9"], "gauss-newton.points or --fitting.lbfgs.points?"),
        (["fit", "m", "i", "--out=x", "--limt=3"], "no option --limt; did you mean --limit?"),
        (["fit", "m", "i", "--out=x", "--limit=0"], "--limit is 0, but must be 1 or more"),
        (["fit", "m", "i", "--out=x", "--limit=some"], "--limit"),
        (["fit", "m", "i", "--out=x", "--fitting.method=newton"], "newton"),
        (["fit", "m", "i", "--out=x", "--fitting.starts=0"], "candidates, probe and starts must be at least 1"),
        (["run", "--task=deepsdf", "--seed=one"], "--seed"),
        (["run", "--task=deepsdf", "--network.latent-size"], "--network.latent-size"),
        (["fit", "m"], "Missing from jonet fit"),
        (["complete", "s", "--model=m", "--out=x", "--center", "1", "2", "3"], "belongs to --known-pose"),
        (["complete", "s", "--model=m", "--out=x", "--known-pose", "--pose.tries=9"], "the pose is known"),
        (["complete", "s", "--model=m", "--out=x", "--known-pose", "--radius=0"], "must be above 0"),
        (["complete", "s.png", "--model=m", "--out=x", "--whole"], "--whole is given, but not read: a depth image"),
        (["complete", "s.PNG", "--model=m", "--out=x", "--eye", "0", "-1e-3", "1"], "--eye is given, but not read"),
        (["complete", "s.ply", "--model=m", "--out=x", "--far=2"], "--far is given, but not read: the scan"),
        (["complete", "s.ply", "--model=m", "--out=x", "--focal=525"], "--focal is given, but not read"),
        (
            ["complete", "s.png", "--model=m", "--out=x", "--focal=525", "--intrinsics=a.json"],
            "--intrinsics is given, but not read: --focal",
        ),
    ],
)
def test_wrong_options_are_one_sentence(arguments, words, capsys):
    assert shell.main(arguments) == 1
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1 and "│" not in said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_sentence_is_found_in_any_box(encoding, columns, monkeypatch):
    """As wide as the terminal, and drawn with what it can show."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(ConfigError, match="^fitting: candidates, probe and starts must be at .* 1; jonet fit --help"):
        parser.parse(options.Fit, ["m", "i", "--out=x", "--fitting.starts=0"], "jonet fit")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["run"]])
def test_what_is_missing_is_said_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        shell.main(arguments)
    assert caught.value.code == 2 and "jonet" in capsys.readouterr().err


def test_run_and_train_are_one(tmp_path, capsys):
    for verb in ("run", "train"):
        assert shell.main([verb, "--task=nothing", f"--workdir={tmp_path}"]) == 1
        assert "task is 'nothing', but there are" in capsys.readouterr().err
    assert program.parse(["--task=deepsdf", "--quiet"])[2].quiet


# Progress


class Output:
    def __init__(self, terminal: bool):
        self.text, self.isatty = "", lambda: terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("terminal, quiet, said", [(True, False, "%|"), (False, False, "lines"), (False, True, "")])
def test_progress_is_a_bar_or_lines_or_nothing(monkeypatch, terminal, quiet, said):
    output, clock = Output(terminal), [0.0]
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress.be_quiet(quiet)
    try:
        with Progress("training", "step", 1000, 100) as shown:
            for done in range(200, 1000, 100):
                clock[0] += 10
                shown.update(done, "loss 0.5")
    finally:
        progress.be_quiet(False)
    if said == "lines":
        assert output.text.splitlines() == [
            "training: step 400 of 1,000, loss 0.5, 10 steps/s, 60 s left",
            "training: step 700 of 1,000, loss 0.5, 10 steps/s, 30 s left",
        ]
    else:
        assert said in output.text and bool(output.text) == bool(said)


def test_lines_of_progress_come_while_nothing_is_updated(monkeypatch):
    output = Output(terminal=False)
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(progress, "EVERY", 0.02)
    for total, said in ((8, r"codes: shape 0 of 8, \d+ s so far"), (None, r"codes, \d+ s so far")):
        output.text = ""
        with Progress("codes", "shape", total):
            until(lambda: output.text.count("\n") > 1)
        assert all(re.fullmatch(said, line) for line in output.text.splitlines())
    output.text = ""
    with Progress("codes", "shape", 8, shown=False):
        time.sleep(0.1)
    assert not output.text


def until(true, seconds: float = 20.0) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_tracked_items_count_when_their_work_is_done(monkeypatch):
    output, clock, threads = Output(terminal=False), [0.0], threading.active_count()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in progress.tracked(iter("abc"), "scores", "shape", 3):
        clock[0] += 40
    assert output.text.splitlines()[0] == "scores: shape 1 of 3, 0.025 shapes/s, 80 s left"
    assert output.text.count("\n") == 3
    with pytest.raises(ZeroDivisionError):
        for _ in progress.tracked("abc", "scores", "shape", 3):
            _ = 1 / 0
    monkeypatch.undo()
    until(lambda: threading.active_count() == threads)  # no thread outlives its work


def test_help_names_the_presets_of_its_task(capsys):
    for task, presets in (("deepsdf", "quick (minutes), small (an hour), paper (as published)"), ("purify", "quick")):
        with pytest.raises(SystemExit):
            program.run([f"--task={task}", "--help"])
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        about = said[said.index("--preset") :].partition("--workdir")[0]
        assert presets in about and ("single (for one mesh, seconds)" in about) == (task == "deepsdf")
