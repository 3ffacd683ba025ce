"""Run folders: whatever was changed, removed, damaged or cut short, a run ends with its own results or says why not."""

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import crash
import jax
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

ROOT = Path(__file__).parents[1]
CHEAP = {"surfaces__resolution": (8, 9), "scores__seed": (0, 1), "known": (1, 2), "generated": (0, 2)}
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
        """Results but for what the folder is known by, and what training goes on from."""
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
    sequences(10, 5, tmp_path)


@pytest.mark.slow
def test_many_sequences_of_changes_and_stops(tmp_path):
    sequences(300, 8, tmp_path)
