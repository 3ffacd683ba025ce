"""Checkpoints: everything is restored; damaged ones are skipped; a killed run ends with the same bits."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import miniature
import numpy as np
import optax
import pytest
from paths import ROOT, SUPPORT

from jonet import parallel
from jonet.errors import CheckpointError
from jonet.training import checkpoints as checkpoints_module
from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.loop import State, train


def example(step: int = 0) -> State:
    """A state with every kind of leaf."""
    shared = {
        "lin0": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3) + step, "flag": np.array([True, False])}
    }
    opt_state = optax.adam(1e-3).init(shared)
    batch_stats = {"mean": np.float32(0.5), "half": np.ones(3, np.float16)}
    state = State(shared, np.zeros((4, 2), np.float32), batch_stats, opt_state, np.int32(step))
    return parallel.replicate(state)


def damage(folder: Path, step: int):
    """Turns a byte in the middle of the largest file of a checkpoint's arrays."""
    files = list((folder / "latest" / str(step) / "state" / "d").iterdir())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x55
    largest.write_bytes(content)


def test_everything_comes_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(example()) is None
        checkpoints.save(7, example(7), {"seconds": 1.5, "best": None})
    with Checkpoints(tmp_path) as checkpoints:
        state, meta = checkpoints.restore(example())
    assert meta == {"seconds": 1.5, "best": None}
    assert jax.tree.structure(state) == jax.tree.structure(example())
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(example(7)), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_the_latest_two_stay(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, example(step), {})
        checkpoints.save(3, example(0), {})  # a step that was saved is not written again
        assert int(checkpoints.restore(example())[0].step) == 3
    assert sorted(path.name for path in (tmp_path / "latest").iterdir() if path.name.isdigit()) == ["2", "3"]


def test_the_best_state_may_be_of_an_earlier_step(tmp_path):
    """Training went on from an older checkpoint, and what it finds takes the place of what was best before."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (20, 10):
            checkpoints.save(step, example(step), {"best_step": step}, best=True)
            checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        state, meta = checkpoints.restore(example(), best=True)
        assert int(state.step) == meta["best_step"] == 10


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, example(step), {})
    damage(tmp_path, 20)
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "jonet"):
        state, _ = checkpoints.restore(example())
        assert int(state.step) == 10
        assert "checkpoint 20" in caplog.text and "damaged" in caplog.text
        checkpoints.save(20, example(20), {})  # and its place can be taken again
        checkpoints.wait()
        assert int(checkpoints.restore(example())[0].step) == 20


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(16, "Device or resource busy")])
def test_what_cannot_be_read_is_moved_aside_and_never_deleted(tmp_path, monkeypatch, caplog, error):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, example(step), {})
    before = {p.name: p.read_bytes() for p in (tmp_path / "latest" / "20").rglob("*") if p.is_file()}
    read = Checkpoints._read

    def fails_at_20(self, manager, step, like):
        if step == 20:
            raise error
        return read(self, manager, step, like)

    with monkeypatch.context() as patched, Checkpoints(tmp_path) as checkpoints:
        patched.setattr(Checkpoints, "_read", fails_at_20)
        assert int(checkpoints.restore(example())[0].step) == 10
    aside = tmp_path / "unread" / "20"
    assert str(aside) in caplog.text
    assert {p.name: p.read_bytes() for p in aside.rglob("*") if p.is_file()} == before
    aside.rename(tmp_path / "latest" / "20")  # nothing was lost
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(example())[0].step) == 20


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_disk_that_is_full_is_one_sentence(tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file\n No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="exhausted|No space left") as error:
            patched.setattr(checkpoints._latest, where, full)
            checkpoints.save(1, example(1), {})
            checkpoints.wait()
        assert "\n" not in str(error.value) and "run again to resume" in str(error.value)


def test_checkpoints_know_their_training(tmp_path):
    with Checkpoints(tmp_path, "one") as checkpoints:
        checkpoints.save(1, example(1), {})
    with (
        Checkpoints(tmp_path, "another") as checkpoints,
        pytest.raises(CheckpointError, match="of other shapes or opt"),
    ):
        checkpoints.restore(example())
    with Checkpoints(tmp_path, "one") as checkpoints:
        assert int(checkpoints.restore(example())[0].step) == 1


def test_damage_that_reads_well_is_seen_by_its_checksum(tmp_path, monkeypatch):
    """One value is another, in a checkpoint that is valid otherwise and has the sums of the right ones."""
    sums, altered = checkpoints_module._checksums(example(1)), example(1)
    altered.shared["lin0"]["kernel"] = altered.shared["lin0"]["kernel"].at[1, 2].add(2**-20)
    for step, state in ((1, example(1)), (2, altered)):
        with monkeypatch.context() as patch, Checkpoints(tmp_path) as checkpoints:
            patch.setattr(checkpoints_module, "_checksums", lambda tree: sums)
            checkpoints.save(step, state, {})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="checksums"):
            checkpoints._read(checkpoints._latest, 2, example())
        assert int(checkpoints.restore(example())[0].step) == 1


@pytest.mark.parametrize("what", ["all damaged", "another network"])
def test_nothing_that_fits_is_one_sentence(tmp_path, what):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, example(5), {})
    like = example()
    if what == "all damaged":
        damage(tmp_path, 5)
    else:
        like.shared["lin0"]["kernel"] = parallel.replicate(np.zeros((3, 3), np.float32))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(like)
    message = str(error.value)
    assert str(tmp_path) in message and "step 5" in message and "\n" not in message and len(message) < 600
    assert (tmp_path / "latest" / "5").exists()  # nothing is thrown away on a guess


@pytest.mark.parametrize("kills", [(20,), pytest.param((1, 5, 12, 30, 44, 57), marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, kills):
    """Killed without warning, while checkpoints are being written all the time, and started again until it ends."""
    steps = 60
    whole = train(miniature.shared_loop(), miniature.fresh(miniature.shared_loop()), steps, bar=False)
    log = Log(tmp_path / "log.jsonl")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}

    def run(slow: float):
        command = [sys.executable, SUPPORT / "killed_run.py", tmp_path, str(steps), str(slow)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    for until in kills:
        process = run(0.05)
        deadline = time.monotonic() + 500
        while process.poll() is None and time.monotonic() < deadline:
            if (entries := log.read()) and entries[-1]["step"] >= until:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    last = run(0.0)
    _, errors = last.communicate(timeout=500)
    assert last.returncode == 0, errors
    assert (tmp_path / "end").read_bytes() == b"".join(miniature.bits(whole))
    numbers = [entry["step"] for entry in log.read()]
    assert numbers == sorted(set(numbers)) and numbers[-1] == steps


def test_rows_are_held_by_position(tmp_path):
    loop = miniature.shared_loop()
    state = miniature.fresh(loop)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, loop.held(state), {})
        found, _ = loop.restore(checkpoints, miniature.fresh(loop))
        assert miniature.bits(found) == miniature.bits(state)
        other = miniature.make(miniature.batches(shapes=9))
        with pytest.raises(CheckpointError, match="no checkpoint fits this run"):
            other.restore(checkpoints, miniature.fresh(other))
