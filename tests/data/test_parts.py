"""Unfinished stores: ownership of parts, one process at a time, files of users stay untouched, and workers end."""

import concurrent.futures
import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jonet import resources
from jonet.data import shards, store
from jonet.data.sampling import Recipe
from jonet.data.sources import Shape, Source
from jonet.errors import BusyError, JonetError, StoreError
from jonet.formats import deepsdf_samples
from jonet.geometry.mesh import Similarity
from jonet.storage import atomic, identity, locks

TINY = Recipe(near=4, uniform=0, surface=0)


@dataclasses.dataclass(frozen=True)
class File(Source):
    """Samples that are the bytes of a file."""

    path: Path = Path()

    def mark(self) -> dict:
        return identity.stamp(self.path)

    def unchanged(self, mark: dict) -> bool:
        return identity.unchanged(self.path, mark)

    def shape(self, recipe, *, seed, frame, sign) -> Shape:
        rows = np.frombuffer(self.path.read_bytes(), np.uint8).astype(np.float32)[:, None] + np.zeros(4, np.float32)
        return Shape({"sdf": (rows + recipe.near, rows)}, Similarity())


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / name).write_bytes(name.encode() * 5)
    return [File(name, "test" if name == "c" else "train", tmp_path / "in" / name) for name in "abc"]


def build(folder, sources, recipe=TINY, **options):
    return store.build(folder, sources, recipe, progress=False, **options)


def content(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(tmp_path, sources, monkeypatch):
    """An unfinished store `s` of which all parts are there; what it becomes is `whole`."""
    build(tmp_path / "whole", sources)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_pack", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "s", sources)
    return tmp_path / "s.partial"


# Whose a part is


def test_parts_of_other_settings_are_stored_separately(tmp_path, sources, begun):
    """A process of an earlier run that is still at work cannot put its part under this store's name."""
    job = shards.ShardJob(begun, dataclasses.replace(TINY, near=40), 0, "sphere", "auto")
    mine = shards.ShardJob(begun, TINY, 0, "sphere", "auto")
    before = mine.part(sources[0]).read_bytes()
    assert shards.make(sources[0], job) is None and job.part(sources[0]).exists()
    assert mine.part(sources[0]).read_bytes() == before
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s") == content(tmp_path / "whole") and not begun.exists()


@pytest.mark.parametrize("when", ["before", "while"])
def test_parts_of_changed_files_are_sampled_again(tmp_path, sources, begun, when, monkeypatch):
    original, prepare = sources[0].path.read_bytes(), shards.prepare

    def changed(*args):
        found = prepare(*args)
        sources[0].path.write_bytes(b"other")
        return found

    if when == "before":
        sources[0].path.write_bytes(b"other")
    else:
        monkeypatch.setattr(shards, "prepare", changed)
    made = build(tmp_path / "s", sources)
    assert made.samples(0)[-1, 0] == ord("r")
    sources[0].path.write_bytes(original)
    with pytest.raises(StoreError, match="1 changed"):
        build(tmp_path / "s", sources)


def test_whatever_byte_of_a_part_is_changed(tmp_path, sources, begun):
    part = shards.ShardJob(begun, TINY, 0, "sphere", "auto").part(sources[1])
    whole = part.read_bytes()
    for at in [*range(0, len(whole), 97), len(whole) - 5]:
        shutil.copytree(begun, tmp_path / "t.partial", dirs_exist_ok=True)
        part = tmp_path / "t.partial/parts" / part.name
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        build(tmp_path / "t", sources)
        assert content(tmp_path / "t") == content(tmp_path / "whole")
        shutil.rmtree(tmp_path / "t")


def test_a_part_damaged_later_is_sampled_again_when_packing(tmp_path, sources, begun, monkeypatch):
    monkeypatch.setattr(shards, "_is_made", lambda source, job: job.part(source).exists())
    part = shards.ShardJob(begun, TINY, 0, "sphere", "auto").part(sources[1])
    data = bytearray(part.read_bytes())
    data[data.index(b"sdf.1.npy") + 160] ^= 1  # among the rows of a side
    part.write_bytes(data)
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


@pytest.mark.parametrize("said", [b"", b'{"version": 1, "reci', b"[]", b"{}", b'{"recipe": {"near": "x"}}', b"\xff"])
def test_damaged_settings_are_written_anew(tmp_path, sources, begun, said, monkeypatch):
    (begun / "settings.json").write_bytes(said)
    monkeypatch.setattr(File, "shape", lambda *args, **options: 1 / 0)  # parts tell their settings by themselves
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_an_unfinished_packing_is_repeated(tmp_path, sources, begun):
    (begun / ".jonet-0123456789ab.tmp").mkdir()
    (begun / ".jonet-0123456789ab.tmp" / "sdf.npy").write_bytes(b"half")
    (begun / "parts" / ".jonet-0123456789ab.tmp").write_bytes(b"half")
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s") == content(tmp_path / "whole") and not begun.exists()


# The user's own


def test_a_folder_of_that_name_is_left_alone(tmp_path, sources):
    build(tmp_path / "s", sources)
    mine = {"thesis.txt": b"years", "settings.json": b'{"editor": "vi"}', "parts/one.npz": b"x"}
    for name, data in mine.items():
        atomic.write_bytes(tmp_path / "s.partial" / name, data)
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s.partial") == mine
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StoreError, match="s.partial: exists, but is not an unfinished store; move it away"):
        build(tmp_path / "s", sources)
    with pytest.raises(StoreError, match="build one first"):
        store.open(tmp_path / "s")
    assert content(tmp_path / "s.partial") == mine and not (tmp_path / "s").exists()
    for name in ("thesis.txt", "parts/one.npz"):
        (tmp_path / "s.partial" / name).unlink()
    with pytest.raises(StoreError, match="is not an unfinished store"):
        build(tmp_path / "s", sources)
    assert content(tmp_path / "s.partial") == {"settings.json": mine["settings.json"]}


def test_arrays_of_others_are_not_taken_for_ours(tmp_path, sources):
    build(tmp_path / "s", sources)
    atomic.write_bytes(tmp_path / "s.partial/packed/sdf.npy", b"mine")
    build(tmp_path / "s", sources)
    assert content(tmp_path / "s.partial") == {"packed/sdf.npy": b"mine"}


def test_settings_are_fixed_by_what_was_made_with_them(tmp_path, sources, begun):
    with pytest.raises(StoreError, match="built with other settings"):
        build(tmp_path / "s", sources, seed=1)
    shutil.rmtree(begun / "parts")  # stopped before anything was made
    assert build(tmp_path / "s", sources, seed=1).seed == 1


def test_files_of_others_among_the_parts_stay(tmp_path, sources, begun):
    (begun / "notes.txt").write_text("mine")
    build(tmp_path / "s", sources)
    build(tmp_path / "s", sources)
    assert content(begun) == {"notes.txt": b"mine"}
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_stop_after_the_store_stands_leaves_what_the_next_call_removes(tmp_path, sources, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "remove", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "s", sources)
    assert (tmp_path / "s.partial/parts").is_dir()
    build(tmp_path / "s", sources)
    assert not (tmp_path / "s.partial").exists()


def test_a_store_behind_a_link(tmp_path, sources):
    (tmp_path / "disk" / "s").mkdir(parents=True)
    (tmp_path / "s").symlink_to(tmp_path / "disk" / "s")
    build(tmp_path / "s", sources)
    assert (tmp_path / "s").is_symlink() and store.is_whole(tmp_path / "disk" / "s")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["s"]


# What the system says


def test_a_file_that_cannot_be_read_now_is_not_taken_for_bad(tmp_path, sources, monkeypatch):
    original = File.shape

    def shape(self, *args, **options):
        if self.name == "b":
            raise JonetError("cannot be read") from OSError(errno.EIO, "Input/output error", str(self.path))
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(File, "shape", shape)
        with pytest.raises(StoreError, match="1 file cannot be read now .first b: .*Input/output"):
            build(tmp_path / "s", sources)
    assert len(list((tmp_path / "s.partial/parts").iterdir())) == 2
    assert build(tmp_path / "s", sources).names == ["a", "b", "c"]


def test_a_part_that_cannot_be_written_ends_the_build(tmp_path, sources, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(StoreError, match="cannot be written .*No space left"):
            build(tmp_path / "s", sources)
    assert build(tmp_path / "s", sources).names == ["a", "b", "c"]


def test_is_whole(tmp_path, sources):
    assert not store.is_whole(tmp_path / "s")
    build(tmp_path / "s", sources)
    assert store.is_whole(tmp_path / "s")
    data = bytearray((tmp_path / "s/sdf.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s/sdf.npy").write_bytes(data)
    assert not store.is_whole(tmp_path / "s")


# Marks


def test_moved_samples_are_recognized(tmp_path):
    for root, place in (("one", "s/c/a"), ("two", "t/d/b")):
        atomic.write_bytes(tmp_path / root / f"SdfSamples/{place}.npz", b"same")
    one = deepsdf_samples.SdfSamples("a", "train", tmp_path / "one", "s/c/a")
    two = deepsdf_samples.SdfSamples("b", "test", tmp_path / "two", "t/d/b")
    assert store.content(one.mark()) == store.content(two.mark()) and two.unchanged(one.mark())


def test_names_of_any_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"in\xff\n")
    path.write_bytes(b"abc")
    names = [path.name, "\u2028", "a/\x85", "\ud800"]
    made = build(tmp_path / "s", [File(name, "train", path) for name in names])
    assert made.names == names == build(tmp_path / "s", [File(name, "train", path) for name in names]).names


# Unseen means unseen


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_shape_to_train_on_is_no_test(tmp_path, sources, split):
    twin = tmp_path / "in" / "twin"
    twin.write_bytes(sources[1].path.read_bytes())
    both = [*sources, File("twin", split, twin), File("again", "train", twin)]
    with pytest.warns(UserWarning, match="left out twin: is the same as the training shape b"):
        made = build(tmp_path / "s", both)
    assert made.names == ["a", "b", "c", "again"] and made.select(split).tolist() == [2] * (split == "test")
    assert made.skipped == [{"file": "twin", "reason": "is the same as the training shape b"}]
    assert build(tmp_path / "s", both).names == made.names


def test_a_store_made_with_such_a_test_says_so(tmp_path, sources, monkeypatch):
    both = [*sources, File("twin", "test", sources[1].path)]
    with monkeypatch.context() as patch:
        patch.setattr(store, "_seen", lambda shapes: {})
        build(tmp_path / "s", both)
    with pytest.warns(UserWarning, match="of the test and validation shapes 1 is also for training .first twin"):
        build(tmp_path / "s", both)


# One at work


def test_one_process_makes_a_store(tmp_path, sources):
    with locks.locked(tmp_path / "s.partial" / ".lock"):
        with pytest.raises(BusyError, match=f"process {os.getpid()} on .* works here"):
            build(tmp_path / "s", sources)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: build(tmp_path / "s", sources, wait=True), range(3)))
    assert [one.names for one in made] == [["a", "b", "c"]] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "s"]


def test_a_waiting_process_opens_the_finished_store(tmp_path, sources, monkeypatch):
    build(tmp_path / "whole", sources)
    asked, released, original = threading.Event(), threading.Event(), File.shape

    def shape(self, *args, **options):
        asked.set()
        released.wait(20)
        return original(self, *args, **options)

    monkeypatch.setattr(File, "shape", shape)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, tmp_path / "s", sources)
        assert asked.wait(20)
        second = pool.submit(build, tmp_path / "s", sources, wait=True)
        with pytest.raises(BusyError):
            build(tmp_path / "s", sources)
        released.set()
        assert first.result().names == second.result().names
    assert content(tmp_path / "s") == content(tmp_path / "whole") and not (tmp_path / "s.partial").exists()


UNGUARDED = """
import sys
from jonet.data import shards, store
from jonet.data.sources import Procedural
from jonet.data.sampling import Recipe
shards.PATIENCE = 0.0
sources = [Procedural("mug", 0, i) for i in range(3)]
store.build(sys.argv[1], sources, Recipe(20, 20, surface=0), progress=False, wait=True)
"""


def test_a_script_that_runs_again_in_its_workers_does_not_wait_for_itself(tmp_path):
    (tmp_path / "program.py").write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, tmp_path / "program.py", tmp_path / "s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "outside of `if __name__ == '__main__':`" in done.stderr


# Workers

PROGRAM = """
import signal, sys, time
from jonet import interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from jonet.data import workers
def main(folder):
    with workers.processes(2) as pool:
        list(pool.map(at_work, [folder] * 2))
def at_work(folder):
    import os, pathlib
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(60)
if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        interrupt.leave(130)
"""


def gone(process: int) -> bool:
    """Whether a process has ended, also if its status was not collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_end_with_their_parent(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "at").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, tmp_path / "program.py", tmp_path / "at"]
    parent = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        while len(os.listdir(tmp_path / "at")) < min(2, resources.cores()):  # one core has one worker
            assert parent.poll() is None
            time.sleep(0.02)
        workers = [int(name) for name in os.listdir(tmp_path / "at")]
        if how == "SIGINT":
            os.killpg(parent.pid, signal.SIGINT)  # as a terminal does, to all of them
        else:
            parent.send_signal(getattr(signal, how))
        said = parent.communicate(timeout=30)[1]
        assert parent.returncode == (130 if how == "SIGINT" else -getattr(signal, how))
        assert "Traceback" not in said
        limit = time.monotonic() + 30
        while not all(map(gone, workers)):
            assert time.monotonic() < limit
            time.sleep(0.02)
    finally:
        parent.kill()
