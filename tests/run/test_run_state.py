"""Run folders: after changed, removed, damaged or cut files, a run ends with its results or says why not."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import crash
import jax
import numpy as np
import pytest
import tiny_run
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from paths import PYTHONPATH, ROOT, SUPPORT

import jonet
from jonet.data import sampling
from jonet.data import store as stores
from jonet.data.families import make
from jonet.data.sources import Procedural
from jonet.errors import ConfigError
from jonet.formats import detect
from jonet.geometry import mesh_files
from jonet.run import stages
from jonet.run.state import RunState
from jonet.tasks import deepsdf, onet_points

pytestmark = pytest.mark.unoptimized

CHEAP = {"surfaces__resolution": (8, 9), "scores__seed": (0, 1), "rebuilt_train": (1, 2), "generated": (0, 2)}
EXPENSIVE = {"steps": (3, 4), "seed": (0, 1)}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs of equal runs are compiled once."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_run.write_meshes(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert tiny_run.start(folder, data) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    tiny_run.copy(finished, tmp_path / "run")
    return tmp_path / "run"


def stages_done(capfd) -> set[str]:
    said = capfd.readouterr().err
    return {stage for stage in tiny_run.STAGES.split(",") if f"{stage}: done before" in said}


class Runs(RuleBasedStateMachine):
    """Options, data and results change under a run; it is stopped and started."""

    references: dict = {}  # results of undisturbed runs, by data and options
    root = Path(tempfile.gettempdir())

    @initialize()
    def begin(self):
        self.tmp = Path(tempfile.mkdtemp(dir=self.root))
        self.versions, self.options, self.moves = (0, 0, 0, 0), {}, 0
        self.folder, self.made_with = self.tmp / "run0", None
        tiny_run.write_meshes(self.tmp / "data", self.versions)

    def teardown(self):
        shutil.rmtree(self.tmp, ignore_errors=True)

    def expensive(self):
        return self.versions, {name: value for name, value in self.options.items() if name in EXPENSIVE}

    def reference(self):
        key = json.dumps([self.versions, sorted(self.options.items())])
        if key not in self.references:
            with tempfile.TemporaryDirectory(dir=self.root) as folder:
                tiny_run.write_meshes(Path(folder) / "data", self.versions)
                assert tiny_run.start(Path(folder) / "run", Path(folder) / "data", **self.options) == 0
                self.references[key] = tiny_run.results(Path(folder) / "run")
        return self.references[key]

    @rule(option=st.sampled_from([(name, value) for name, values in CHEAP.items() for value in values]))
    def change_an_option(self, option):
        self.options = {**self.options, option[0]: option[1]}

    @rule(option=st.sampled_from([(name, value) for name, values in EXPENSIVE.items() for value in values]))
    def change_an_expensive_option(self, option):
        self.options = {**self.options, option[0]: option[1]}

    @rule(index=st.integers(0, 3))
    def change_a_mesh(self, index):
        self.versions = tuple(1 - v if i == index else v for i, v in enumerate(self.versions))
        before = (self.tmp / "data" / f"m{index}.ply").stat()
        tiny_run.write_meshes(self.tmp / "data", self.versions)
        os.utime(self.tmp / "data" / f"m{index}.ply", ns=(before.st_mtime_ns, before.st_mtime_ns))

    @rule()
    def start(self):
        status = tiny_run.start(self.folder, self.tmp / "data", **self.options)
        if status == 0:
            assert tiny_run.results(self.folder) == self.reference()
            self.made_with = self.expensive()
            for place in ("mine.txt", "meshes/mine.ply"):
                (self.folder / place).write_text("mine")
        else:  # refused for what was expensive to make, and for nothing else
            assert self.made_with not in (None, self.expensive())

    @rule(at=st.integers(0, 60), error=st.sampled_from([None, None, errno.ENOSPC, errno.EACCES]))
    def stop(self, at, error):
        """The process is killed at some change of the disk, or the disk fails there."""
        if self.made_with is None:
            self.made_with = self.expensive()
        try:
            with crash.disk(self.folder, at, error):
                tiny_run.start(self.folder, self.tmp / "data", **self.options)
        except (crash.Stopped, OSError):
            pass

    @precondition(lambda self: self.files())
    @rule(draw=st.data(), how=st.sampled_from(["remove", "cut", "flip", "empty"]))
    def harm_a_result(self, draw, how):
        path = draw.draw(st.sampled_from(self.files()))
        content = bytearray(path.read_bytes())
        if how == "remove":
            path.unlink()
        elif how == "flip" and content:
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.write_bytes(content[: 0 if how == "empty" else len(content) // 2])

    @precondition(lambda self: self.folder.exists())
    @rule(name=st.sampled_from(["store", "model", "meshes", "meshes/test", "checkpoints"]))
    def remove_a_folder(self, name):
        shutil.rmtree(self.folder / name, ignore_errors=True)

    @precondition(lambda self: self.folder.exists())
    @rule(how=st.sampled_from(["move", "copy"]))
    def take_it_elsewhere(self, how):
        self.moves += 1
        target = self.tmp / f"run{self.moves}"
        (tiny_run.copy if how == "copy" else os.rename)(self.folder, target)
        self.folder = target

    def files(self):
        """The results in a run folder, without its identification and checkpoints."""
        if not self.folder.exists():
            return []
        found = (path for path in self.folder.rglob("*") if path.is_file() and "mine" not in path.name)
        return sorted(p for p in found if p.name not in ("config.json", ".lock") and "checkpoints" not in p.parts)

    @invariant()
    def what_is_mine_is_there(self):
        for path in self.folder.rglob("mine*") if self.folder.exists() else ():
            assert path.read_text() == "mine"


def sequences(count: int, steps: int, root: Path):
    Runs.root = root
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=count, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
        ),
    )


def test_sequences_of_changes_and_stops(tmp_path):
    sequences(10, 4, tmp_path)


@pytest.mark.slow
def test_many_sequences_of_changes_and_stops(tmp_path):
    sequences(300, 8, tmp_path)


def stop_everywhere(tmp_path, data, wanted, error, every: int):
    """Whole runs, each stopped at another change of the disk, and started again."""
    with crash.disk(tmp_path / "whole") as seen:
        assert tiny_run.start(tmp_path / "whole", data) == 0
    assert seen.count > 30
    for at in range(every // 2, seen.count, every):
        folder = tmp_path / f"run{at}"
        with contextlib.suppress(crash.Stopped, OSError), crash.disk(folder, at, error):
            tiny_run.start(folder, data)
        assert tiny_run.start(folder, data) == 0, at
        assert tiny_run.results(folder) == wanted, at
        shutil.rmtree(folder)


@pytest.mark.parametrize("error", [None, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_as_it_would_have(tmp_path, data, finished, error):
    stop_everywhere(tmp_path, data, tiny_run.results(finished), error, 40)


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, errno.ENOSPC, errno.EACCES])
def test_a_run_that_was_stopped_anywhere_ends_as_it_would_have(tmp_path, data, finished, error):
    stop_everywhere(tmp_path, data, tiny_run.results(finished), error, 1)


@pytest.mark.parametrize("at", [12, 40, 110])
def test_a_full_disk_is_one_sentence(tmp_path, data, capfd, at):
    with crash.disk(tmp_path / "run", at, errno.ENOSPC):
        assert tiny_run.start(tmp_path / "run", data) == 1
    said = capfd.readouterr().err
    assert "No space left on device" in said and "error: " in said and "Traceback" not in said


def test_a_moved_finished_run_is_recognized(folder, data, tmp_path, capfd):
    os.rename(folder, tmp_path / "moved")
    tiny_run.copy(data, tmp_path / "data")
    assert tiny_run.start(tmp_path / "moved", tmp_path / "data") == 0
    assert len(stages_done(capfd)) == 4
    shutil.rmtree(tmp_path / "data")
    with pytest.warns(UserWarning, match="does not exist any more"):
        assert tiny_run.start(tmp_path / "moved", tmp_path / "data", scores__seed=1) == 0
    assert stages_done(capfd) == {"prepare", "train", "reconstruct"}


def test_files_of_others_are_moved_aside_and_not_taken_for_codes(tmp_path, data, finished):
    """Also codes of other shapes that were fitted into the folder."""
    folder = tmp_path / "run"
    assert tiny_run.start(folder, data, "prepare,train") == 0
    (name,) = [p.name for p in (finished / "meshes" / "test").iterdir()]
    names = ("codes.npz", "metrics.json", f"meshes/test/{name}")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    with pytest.warns(UserWarning, match="codes.npz was not written by this run; it was moved to .*codes.npz.before"):
        assert tiny_run.start(folder, data) == 0
    assert all((folder / f"{name}.before").read_text() == "mine" for name in names)
    assert tiny_run.results(folder) == tiny_run.results(finished)
    assert tiny_run.start(tmp_path / "all", data, "prepare,train", shapes__test_fraction=0) == 0
    shutil.copy(finished / "codes.npz", tmp_path / "all" / "codes.npz")
    assert tiny_run.start(tmp_path / "all", data, shapes__test_fraction=0) == 0
    values = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert values["shapes"] == values["train"]["shapes"]
    assert (tmp_path / "all" / "codes.npz").read_bytes() == (finished / "codes.npz").read_bytes()


@pytest.mark.parametrize("name", ["caf\udce9", "gs:", "to nowhere"])
def test_a_place_where_no_run_can_be_kept_is_refused_at_once(tmp_path, data, capfd, name):
    (tmp_path / "to nowhere").symlink_to(tmp_path / "nowhere")
    assert tiny_run.start(tmp_path / name, data) == 1
    assert "choose another --workdir" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["to nowhere"]


@pytest.mark.parametrize("typed", ["mgu", "no/such/folder"])
def test_a_typing_error_is_no_folder_that_has_gone(folder, data, capfd, typed):
    """A finished run goes on without its shapes, but not with other words for them."""
    assert tiny_run.start(folder, typed, scores__seed=1) == 1
    assert "neither a file or folder" in capfd.readouterr().err
    assert tiny_run.start(folder, data) == 0 and len(stages_done(capfd)) == 4


def test_a_stage_that_began_with_other_options_is_not_done(folder, data, capfd, monkeypatch):
    """A to the end, B stopped inside a stage, A again: nothing of B is taken for A's."""
    wanted = tiny_run.results(folder)
    write, left = stages.mesh_files.write, [1]

    def stop_after_one(mesh, path):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return write(mesh, path)

    with monkeypatch.context() as patched:
        patched.setattr(stages.mesh_files, "write", stop_after_one)
        assert tiny_run.start(folder, data, surfaces__resolution=9, rebuilt_train=2) == 130
    capfd.readouterr()
    assert tiny_run.start(folder, data) == 0
    assert stages_done(capfd) == {"prepare", "train"} and tiny_run.results(folder) == wanted


def test_another_precision_repeats_what_follows_training(folder, data, capfd):
    wanted = tiny_run.results(folder)
    assert tiny_run.start(folder, data, precision="default") == 0
    assert stages_done(capfd) == {"prepare", "train"} and tiny_run.results(folder) == wanted  # on a CPU
    assert jonet.load(folder).precision == "default"
    assert json.loads((folder / "config.json").read_text())["config"]["precision"] == "default"


@pytest.mark.parametrize(
    "harm, again",
    [
        ("store", {"prepare", "train", "reconstruct", "evaluate"}),
        ("store/sdf.npy", {"prepare", "train", "reconstruct", "evaluate"}),
        ("store/index.json", {"prepare", "train", "reconstruct", "evaluate"}),
        ("model", {"train", "reconstruct", "evaluate"}),
        ("model/model.json", {"train", "reconstruct", "evaluate"}),
        ("codes.npz", {"reconstruct", "evaluate"}),
        ("meshes/test", {"reconstruct", "evaluate"}),
        ("metrics.json", {"evaluate"}),
    ],
)
def test_missing_results_are_computed_again(folder, data, capfd, harm, again):
    wanted, path = tiny_run.results(folder), folder / harm
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert tiny_run.start(folder, data) == 0
    assert stages_done(capfd) == set(tiny_run.STAGES.split(",")) - again
    assert tiny_run.results(folder) == wanted


def test_a_damaged_store_is_moved_aside(folder, data):
    path = folder / "store" / "sdf.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    wanted = tiny_run.results(folder)
    with pytest.warns(UserWarning, match="damaged; it was moved to .*store.damaged"):
        assert tiny_run.start(folder, data) == 0
    assert (folder / "store.damaged" / "sdf.npy").read_bytes() == content and tiny_run.results(folder) == wanted


def test_other_shapes_are_refused_and_nothing_is_lost(folder, data, tmp_path, capfd):
    tiny_run.copy(data, tmp_path / "data")
    before = (data / "m1.ply").stat()
    tiny_run.write_meshes(tmp_path / "data", (0, 1, 0, 0))
    os.utime(tmp_path / "data" / "m1.ply", ns=(before.st_mtime_ns, before.st_mtime_ns))  # as old as the one it replaces
    assert tiny_run.start(folder, tmp_path / "data") == 1
    assert "built from other shapes, 1 changed (first 'm1')" in capfd.readouterr().err
    tiny_run.write_meshes(tmp_path / "data")
    assert tiny_run.start(folder, tmp_path / "data") == 0 and len(stages_done(capfd)) == 4
    shutil.copy(data / "m0.ply", tmp_path / "data" / "m9.ply")
    assert tiny_run.start(folder, tmp_path / "data") == 1 and "1 new (first 'm9')" in capfd.readouterr().err


def test_a_run_among_its_data_is_no_data(tmp_path, data, capfd):
    tiny_run.copy(data, tmp_path / "data")
    for _ in range(2):
        assert tiny_run.start(tmp_path / "data" / "run", tmp_path / "data") == 0
    assert len(stages_done(capfd)) == 4


def test_files_that_a_folder_claims_lie_in_it(folder, data, tmp_path, capfd):
    (tmp_path / "thesis").write_text("mine")
    values = json.loads((folder / "config.json").read_text())
    values["made"]["reconstruct"]["files"].append("../thesis")
    (folder / "config.json").write_text(json.dumps(values))
    assert tiny_run.start(folder, data, rebuilt_train=2) == 1
    assert "outside of its folder" in capfd.readouterr().err and (tmp_path / "thesis").read_text() == "mine"


def test_samples_without_surfaces_are_not_trained_on_to_be_scored(data, tmp_path, capfd):
    assert tiny_run.start(tmp_path / "run", data, "prepare") == 0
    detect.export(stores.open(tmp_path / "run" / "store"), tmp_path / "samples", "deepsdf")
    for name in ("SurfaceSamples", "NormalizationParameters"):
        shutil.rmtree(tmp_path / "samples" / name)
    capfd.readouterr()
    assert tiny_run.start(tmp_path / "again", tmp_path / "samples") == 1
    said = capfd.readouterr().err
    assert "4 of 4 shapes (first" in said and "no surface to be scored by" in said and "train …" not in said
    assert tiny_run.start(tmp_path / "again", tmp_path / "samples", "prepare,train,reconstruct") == 0


def test_a_typing_error_locks_no_folder(tmp_path, data, capfd):
    assert tiny_run.start(tmp_path / "run", "mgu") == 1
    assert "neither a file or folder" in capfd.readouterr().err
    assert tiny_run.start(tmp_path / "run", data, draw="windows", place="resident", stages="prepare") == 0
    assert tiny_run.start(tmp_path / "run", data, steps=4, network__dims="9 9", stages="prepare,train") == 0
    assert tiny_run.start(tmp_path / "run", data, steps=5, stages="prepare,train") == 1
    assert "steps: 4 → 5" in capfd.readouterr().err


def test_options_that_a_folder_lacks_have_their_defaults(folder, data, capfd):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for options in (values["config"], values["made"]["train"]["options"], values["made"]["prepare"]["options"]):
        del options["place"], options["samples"]["voxels"]
    path.write_text(json.dumps(values))
    assert tiny_run.start(folder, data) == 0 and len(stages_done(capfd)) == 4


def test_a_folder_of_another_format_is_refused(folder, data, capfd):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for changes, words in (({"version": None}, "has format None"), ({"chosen": {}}, "unknown name 'chosen'")):
        path.write_text(json.dumps(values | changes))
        assert tiny_run.start(folder, data) == 1 and words in capfd.readouterr().err
    del values["version"]
    path.write_text(json.dumps(values))
    assert tiny_run.start(folder, data) == 1 and "has format 1, but" in capfd.readouterr().err


def test_another_process_at_work_is_named(folder, data, capfd):
    hold = (
        f"from jonet.storage import locks\nwith locks.locked({str(folder / '.lock')!r}): print(1, flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        other.stdout.readline()
        assert tiny_run.start(folder, data) == 1
        assert f"process {other.pid} on" in capfd.readouterr().err
        other.communicate(b"\n")
    assert tiny_run.start(folder, data) == 0


def a_store(folder: Path, family: str, frame: str = "sphere", count: int = 4) -> stores.Store:
    recipe = sampling.Recipe(near=100, uniform=20, surface=50, occupancies=64)
    return stores.build(folder, [Procedural(family, 0, i) for i in range(count)], recipe, frame=frame, progress=False)


def test_numbers_are_the_same_however_they_are_given(tmp_path, data):
    options = {"workdir": tmp_path / "run", "steps": 2, "batch_shapes": 2, "batch_points": 8}
    options["network"] = deepsdf.small(8, 2, 2)
    options["samples"] = sampling.Recipe(near=100, uniform=20, surface=50, occupancies=64)
    first = jonet.train(data, minutes=0, **options)
    written = (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns
    assert jonet.train(data, minutes=0.0, **options).digest == first.digest
    assert (tmp_path / "run" / "model" / "model.json").stat().st_mtime_ns == written  # it was not trained again


def test_another_store_in_the_same_folder_is_refused(tmp_path):
    options = {"workdir": tmp_path / "run", "minutes": 0, "steps": 2, "batch_shapes": 2, "batch_points": 8}
    options["network"] = deepsdf.small(8, 2, 2)
    mugs, lamps = a_store(tmp_path / "mugs", "mug"), a_store(tmp_path / "lamps", "lamp")
    model = jonet.train(mugs, **options)
    assert model.history["data"] == str(tmp_path / "mugs") and model.history["recipe"]["near"] == 100
    with pytest.raises(ConfigError, match="trained on other shapes"):
        jonet.train(lamps, **options)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # to save room: no reason to train anew by another seed
    with pytest.raises(ConfigError, match=r"\(seed: 0 → 1; started with"):
        jonet.train(mugs, seed=1, **options)
    again = jonet.train(mugs, surfaces=jonet.settings.surfaces.Surfaces(resolution=9), **options)
    assert again.surfaces.resolution == jonet.load(tmp_path / "run").surfaces.resolution == 9
    again = jonet.train(mugs, **options)
    assert again.surfaces.resolution == model.surfaces.resolution
    assert again.codes.names == model.codes.names and again.digest == model.digest
    np.testing.assert_array_equal(again.codes.values, model.codes.values)
    with pytest.raises(ConfigError, match="is of the frame 'cube'"):
        jonet.train(a_store(tmp_path / "cubes", "mug", "cube"), minutes=0, steps=2, network=options["network"])


def test_a_given_model_is_identified_by_its_arrays(folder, data, tmp_path, capfd):
    """`--model`: a moved model is the same; after another training the run is not done."""
    options = {"task": "deepsdf_completion", "view__pixels": 24}
    work = tmp_path / "completion"
    assert tiny_run.start(work, data, model=folder, **options) == 0
    capfd.readouterr()
    os.rename(folder / "model", tmp_path / "elsewhere")
    assert tiny_run.start(work, data, model=tmp_path / "elsewhere", **options) == 0
    assert len(stages_done(capfd)) == 4
    other = tmp_path / "other"
    assert tiny_run.start(other, data, steps=5, stages="prepare,train") == 0
    shutil.rmtree(tmp_path / "elsewhere")
    shutil.copytree(other / "model", tmp_path / "elsewhere")
    capfd.readouterr()
    assert tiny_run.start(work, data, "reconstruct,evaluate", model=tmp_path / "elsewhere", **options) == 1
    assert "needs train first" in capfd.readouterr().err
    assert tiny_run.start(work, data, model=tmp_path / "elsewhere", **options) == 0
    assert stages_done(capfd) == {"prepare"}
    assert jonet.load(work).digest == jonet.load(other).digest
    dataclasses.replace(jonet.load(other), codes=None).save(tmp_path / "elsewhere")  # what it learned from is not known
    with pytest.warns(UserWarning, match="does not say which shapes"):
        assert tiny_run.start(work, data, model=tmp_path / "elsewhere", **options) == 0
    assert stages_done(capfd) == {"prepare"} and jonet.load(work).codes is None


@pytest.mark.parametrize(
    "stage",
    ["prepare", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("train", "reconstruct", "evaluate"))],
)
def test_an_interrupt_ends_everything_within_seconds(tmp_path, stage):
    """Ctrl-C to the process group, as a terminal sends it: the exit status, the sentence, and no process left."""
    slow = {"prepare": {"samples__near": 3_000_000}, "train": {"steps": 10_000_000}}.get(stage, {})
    program = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
import tiny_run
from jonet.run import stages
from jonet import interrupt
if {stage!r} in stages.WORK:
    stages.WORK[{stage!r}] = lambda run: time.sleep(1000)
if __name__ == "__main__":
    interrupt.leave(tiny_run.start({str(tmp_path / "run")!r}, {str(tmp_path / "data")!r}, **{slow!r}))
"""
    (tmp_path / "program.py").write_text(program)
    tiny_run.write_meshes(tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said = ""
        while f"{stage} …" not in said:
            said += process.stderr.readline()
        time.sleep(3 if stage in ("prepare", "train") else 0.5)
        os.killpg(process.pid, signal.SIGINT)
        begun = time.monotonic()
        said += process.communicate(timeout=60)[1]
        took = time.monotonic() - begun
        assert process.returncode == 130 and "the same command continues" in said, said[-2000:]
        assert took < 30  # seconds on a loaded machine; two on a quiet one
        deadline = time.monotonic() + 30
        while group(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not group(process.pid)
    finally:
        process.kill()


def group(number: int) -> list[str]:
    """The processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[2]) == number and words[0] != "Z":
            found.append(path.parent.name)
    return found


def test_processes_of_one_job_share_a_run(tmp_path, data, finished):
    """Two processes, all stages: one builds the store, both train, the first does the rest, both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = "import sys, tiny_run; sys.exit(tiny_run.start(*sys.argv[1:3], distributed=sys.argv[3]))"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "run", data, f"{address},2,{i}"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=500)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n\n".join(said)[-5000:]
    finally:
        for process in processes:
            process.kill()
    made = {path.relative_to(finished) for path in finished.rglob("*") if "checkpoints" not in path.parts}
    assert made == {
        p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*") if "checkpoints" not in p.parts
    }
    assert len(jonet.load(tmp_path / "run").codes) == 3


def test_any_name_goes_through_a_run(tmp_path, capfd):
    """To the page: names that are no UTF-8, that hold separators of lines, markup, formulas, what Windows forbids."""
    names = ["a:b", "a_b", "x\ny\u2028z", "caf\udce9", "<img src=x>", "=con\t", "ü" * 100]
    for i, name in enumerate(names):
        mesh_files.write(make("mug", 0, i), tmp_path / "data" / f"{name}.ply")
    options = {"rebuilt_train": 5, "shapes__test_fraction": 0.3}
    assert tiny_run.start(tmp_path / "run", tmp_path / "data", f"{tiny_run.STAGES},report", **options) == 0
    values = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    made = {row["name"] for row in values["shapes"]} | {row["name"] for row in values["train"]["shapes"]}
    assert made == set(names) and not values["skipped"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8", "surrogateescape")
    assert "<img src=x>" not in page and "&lt;img" in page
    capfd.readouterr()
    assert tiny_run.start(tmp_path / "run", tmp_path / "data", **options) == 0
    assert len(stages_done(capfd)) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"autotuned": []}, "no names"),
        ({"done": {"prepare": {"key": "0", "results": {"a": 3}}}}, "no names"),
        ({"done": {"paint": {"key": "0", "results": {}}}}, "unknown stage 'paint'"),
        ({"made": {"prepare": {"inputs": {}, "files": [3], "options": {}}}}, "no text"),
        ({"made": {"prepare": {"inputs": {}, "files": [], "options": {"woxels": 3}}}}, "config.json .* unknown option"),
        ({"config": "[" * 10**5}, "cannot be read"),
    ],
)
def test_a_config_that_no_run_writes_is_one_error(change, words, tmp_path):
    values = {"version": 2, "task": "deepsdf", "config": {}, "autotuned": {}, "done": {}, "made": {}} | change
    text = json.dumps(values).replace(json.dumps("[" * 10**5), "[" * 10**5)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        RunState(tmp_path, deepsdf.TASK, deepsdf.TASK.config())
    assert str(tmp_path) in str(caught.value)


def test_options_that_runs_before_did_not_have_leave_their_keys(tmp_path):
    """At their defaults, so that finished stages stay done and trainings go on."""

    class Before(onet_points.OnetPoints):
        parts = {
            stage: tuple(name for name in names if name not in ("ema_decay", "kl_weight"))
            for stage, names in onet_points.TASK.parts.items()
        }

    config = dataclasses.replace(onet_points.TASK.presets["quick"], ema_decay=0.0)

    def keys(task, config):
        run = RunState(tmp_path, task, config)
        return [run.key(stage) for stage in task.parts]

    before = keys(Before(), config)
    assert keys(onet_points.TASK, config) == before
    changed = keys(onet_points.TASK, dataclasses.replace(config, ema_decay=0.9))
    assert changed[0] == before[0] and not set(changed[1:]) & set(before)
