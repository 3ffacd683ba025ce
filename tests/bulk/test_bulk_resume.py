"""Which inputs of a bulk job count as done: by contents of inputs, outputs and codes, by settings and network."""

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
from balls import BATCH, RADII, Balls, table, write_clouds

from jonet import bulk
from jonet.bulk.job import Job
from jonet.bulk.shapes import Settings
from jonet.codes import Codes
from jonet.errors import BusyError, ConfigError, InputError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Similarity
from jonet.storage import identity

pytestmark = pytest.mark.unoptimized


@pytest.fixture
def inputs(tmp_path):
    write_clouds(tmp_path / "scans", RADII[:4])
    return tmp_path / "scans"


def sizes(path) -> dict[str, float]:
    """The radius of each shape in input units, by name."""
    codes = Codes.load(path)
    return {
        name: round(1 / transform.scale / 1.03, 3)
        for name, transform in zip(codes.names, codes.similarities, strict=True)
    }


def aged(folder):
    """As after unzip, rsync -a or cp -p: older than everything."""
    for path in folder.rglob("*"):
        os.utime(path, (10**9, 10**9))


def test_other_inputs_of_the_same_names(inputs, tmp_path):
    write_clouds(tmp_path / "others", RADII[:4] + 10)
    aged(tmp_path / "others")
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    assert bulk.fit(Balls(), tmp_path / "others", tmp_path / "codes.npz", BATCH).before == 0
    assert sizes(tmp_path / "codes.npz")["ball_01"] == pytest.approx(RADII[1] + 10, abs=0.01)


def test_swapped_inputs(tmp_path):
    for i, name in enumerate("PQ"):
        write_clouds(tmp_path / name, [1.0 + i], ["x"])
    p, q = tmp_path / "P", tmp_path / "Q"
    for folders in ([p, q], [q, p]):
        bulk.fit(Balls(), folders, tmp_path / "codes.npz")
        assert sorted(sizes(tmp_path / "codes.npz").values()) == [1, 2]


def test_a_replaced_input_whatever_its_age_and_size(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    write_clouds(tmp_path / "older", [9.0], ["ball_02"])
    aged(tmp_path / "older")
    os.replace(tmp_path / "older" / "ball_02.npy", inputs / "ball_02.npy")
    report = bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert [row.file for row in report.outcome.rows] == ["ball_02.npy"]
    assert np.ptp(mesh_files.read(tmp_path / "made" / "ball_02.ply").bounds[:, 0]) == pytest.approx(18, rel=1e-3)


def test_moved_and_copied_folders_are_not_done_again(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    (tmp_path / "place").mkdir()
    shutil.copytree(tmp_path / "codes", tmp_path / "place" / "codes", copy_function=shutil.copy)
    shutil.copy(tmp_path / "codes.npz", tmp_path / "place")
    shutil.copytree(inputs, tmp_path / "copied", copy_function=shutil.copy)
    for path in (tmp_path / "copied").iterdir():  # newer than what was made of them
        os.utime(path, (2 * 10**9, 2 * 10**9))
    before = (tmp_path / "place" / "codes.npz").stat().st_mtime_ns
    model = Balls()
    assert bulk.fit(model, tmp_path / "copied", tmp_path / "place" / "codes.npz").before == 4 and not model.seen
    assert (tmp_path / "place" / "codes.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]])
def test_damaged_parts_are_sampled_again(inputs, tmp_path, damage):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    whole = (tmp_path / "codes.npz").read_bytes()
    part = tmp_path / "codes" / "shapes" / "ball_02.npz"
    times = part.stat()
    part.write_bytes(damage(part.read_bytes()))
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    assert [row.file for row in report.outcome.rows] == ["ball_02.npy"] and report.complete
    (tmp_path / "codes.npz").write_bytes(damage(whole))
    assert not bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH).outcome.rows
    assert (tmp_path / "codes.npz").read_bytes() == whole


def test_joined_codes_are_those_of_the_inputs_and_name_their_network(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    write_clouds(inputs, [7.0], ["ball_01"])
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    codes = Codes.load(tmp_path / "codes.npz")
    assert sizes(tmp_path / "codes.npz")["ball_01"] == pytest.approx(7, abs=0.01)
    assert codes.network == Balls().digest
    assert Codes.load(tmp_path / "codes" / "shapes" / "ball_01.npz").network == codes.network


def test_the_earlier_output_of_a_failed_input_is_removed(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    (inputs / "ball_01.npy").write_bytes(b"broken")
    write_clouds(inputs, [2.0], ["ball_03"])

    class Hollow(Balls):
        def extract(self, codes, resolution):
            return [dataclasses.replace(mesh, faces=mesh.faces[:0]) for mesh in super().extract(codes, resolution)]

    bulk.reconstruct(Hollow(), inputs, tmp_path / "made", BATCH)
    assert sorted(path.stem for path in (tmp_path / "made").glob("*.ply")) == ["ball_00", "ball_02"]
    write_clouds(inputs, [3.0, 4.0], ["ball_01", "ball_03"])  # neither failed nor empty inputs are given up
    report = bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert [row.file for row in report.outcome.rows] == ["ball_01.npy", "ball_03.npy"]
    assert len(list((tmp_path / "made").glob("*.ply"))) == 4
    mine = (tmp_path / "made" / "ball_00.ply").read_bytes() + b" "
    (tmp_path / "made" / "ball_00.ply").write_bytes(mine)  # somebody's work on it
    (inputs / "ball_00.npy").write_bytes(b"broken")
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert (tmp_path / "made" / "ball_00.ply").read_bytes() == mine


def test_codes_are_identified_by_their_values(tmp_path):
    values = np.array([[1.0], [2.0]], np.float32)
    transforms = (Similarity(), Similarity())
    Codes(values, ("a", "b"), transforms).save(tmp_path / "one.npz")
    Codes(values + 1, ("a", "b"), transforms).save(tmp_path / "two.npz")
    Codes(values[::-1] + 1, ("b", "a"), transforms).save(tmp_path / "three.npz")
    aged(tmp_path)
    bulk.extract(Balls(), tmp_path / "one.npz", tmp_path / "made")
    assert bulk.extract(Balls(), tmp_path / "two.npz", tmp_path / "made").before == 0
    assert np.ptp(mesh_files.read(tmp_path / "made" / "a.ply").bounds[:, 0]) == pytest.approx(2)
    assert bulk.extract(Balls(), tmp_path / "three.npz", tmp_path / "made").before == 2


def test_codes_without_a_name_and_with_one_that_leads_upwards(tmp_path):
    Codes(np.ones((3, 1), np.float32), ("", "..", "a/../..")).save(tmp_path / "codes.npz")
    bulk.extract(Balls(), tmp_path / "codes.npz", tmp_path / "made" / "deep")
    assert len(list((tmp_path / "made" / "deep").rglob("*.ply"))) == 3 == len(list(tmp_path.rglob("*.ply")))


def test_codes_of_another_network_are_refused_before_any_work(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    for source in ("codes.npz", "codes"):
        with pytest.raises(InputError, match="another network"):
            bulk.extract(Balls(scale=2.0), tmp_path / source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_results_of_another_precision_are_others(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    with pytest.raises(ConfigError, match="results of other settings .*precision"):
        bulk.reconstruct(Balls(precision="default"), inputs, tmp_path / "made", BATCH)


def test_a_folder_of_another_format_is_refused(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    path = tmp_path / "made" / "job.json"
    settings = json.loads(path.read_text())
    del settings["version"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="results of other settings .*version"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)


def test_failures_stay_failures(inputs, tmp_path):
    for path in inputs.glob("*.npy"):
        path.write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(ConfigError, match="none of 4 inputs could be used"):
            bulk.fit(Balls(), inputs, tmp_path / "codes.npz")
    with pytest.raises(ConfigError, match="none of 2 inputs could be used"):
        bulk.fit(Balls(), inputs, tmp_path / "trial.npz", Settings(limit=2))


@pytest.mark.parametrize("wrong", [{"resolution": 1}, {"resolution": 0}, {"form": "doc"}])
def test_options_are_looked_at_before_the_work(inputs, tmp_path, wrong):
    with pytest.raises(ConfigError):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", **wrong)
    for settings in ({"batch": 0}, {"batch": -1}, {"limit": 0}, {"shard": (2, 2)}, {"shard": (-1, 2)}):
        with pytest.raises(ConfigError, match="batch|limit|shard"):
            bulk.reconstruct(Balls(), inputs, tmp_path / "made", Settings(**settings))
    assert not (tmp_path / "made").exists()
    bulk.reconstruct(Balls(), inputs, tmp_path / "made")


def test_results_of_other_settings_are_refused(inputs, tmp_path):
    class Stopping(Balls):
        def encode(self, **given):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="same command continues"):
        bulk.reconstruct(Stopping(), inputs, tmp_path / "made", resolution=17)
    assert bulk.reconstruct(Balls(), inputs, tmp_path / "made", resolution=16).complete
    with pytest.raises(ConfigError, match="resolution: 16 → 17"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", resolution=17)
    (tmp_path / "made" / "job.json").unlink()  # rows know what they were made by
    assert bulk.reconstruct(Balls(), inputs, tmp_path / "made", resolution=17).before == 0


def test_what_a_killed_process_left_is_removed(inputs, tmp_path):
    left = ".jonet-0123456789ab.tmp"
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    for folder in ("codes", "codes/shapes"):
        (tmp_path / folder / left).write_bytes(b"half")
    (inputs / left).write_bytes(b"of another")
    assert bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH).before == 4
    assert [path.parent for path in tmp_path.rglob(left)] == [inputs]


def test_a_shard_with_other_settings_is_refused_whoever_came_first(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", Settings(shard=(1, 2)), resolution=8)
    with pytest.raises(ConfigError, match="resolution: 8 → 16"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", Settings(shard=(0, 2)), resolution=16)


def test_results_are_no_inputs(inputs, tmp_path):
    model = Balls()
    for _ in range(2):
        report = bulk.reconstruct(model, inputs, inputs / "made", BATCH)
        report = bulk.fit(model, inputs, inputs / "codes.npz", BATCH)
        assert report.inputs == 4 and len(Codes.load(inputs / "codes.npz")) == 4
    for do, out in ((bulk.fit, tmp_path / "scans.npz"), (bulk.reconstruct, inputs)):
        with pytest.raises(ConfigError, match="searched for inputs"):
            do(model, inputs, out)
    assert not (inputs / "job.json").exists() and not (inputs / "shapes").exists()


def test_outputs_replace_neither_inputs_nor_files_of_others(inputs, tmp_path):
    write_clouds(tmp_path / "scans", [1.0], ["ball_00"])
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(tmp_path / "made" / "ball_00.ply", own)
    before = (own / "ball_00.ply").read_bytes()
    for given in (own / "ball_00.ply", own, inputs):
        with pytest.raises(ConfigError, match="one of the inputs|searched for inputs|exists already"):
            bulk.reconstruct(Balls(), given, own, BATCH)
    Codes(np.ones((1, 1), np.float32), ("x",)).save(own / "x.ply")  # whatever it is called
    with pytest.raises(ConfigError, match="one of the inputs"):
        bulk.extract(Balls(), own / "x.ply", own)
    (own / "mine.npz").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        bulk.fit(Balls(), inputs, own / "mine.npz")
    assert (own / "ball_00.ply").read_bytes() == before and len(list(own.iterdir())) == 3
    (tmp_path / "made" / "late.ply").write_bytes(b"mine")  # beside what the job made
    write_clouds(inputs, [1.0], ["late"])
    with pytest.raises(ConfigError, match="late.ply exists already"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert (tmp_path / "made" / "late.ply").read_bytes() == b"mine"


def test_what_a_link_in_place_of_a_result_leads_to_is_not_replaced(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    place, mine = tmp_path / "made/ball_00.ply", tmp_path / "mine.ply"
    place.rename(mine)
    place.symlink_to(mine)
    assert bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH).before == 4  # the same, on another disk
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="ball_00.ply exists already"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert mine.read_bytes() == b"mine"


def test_inputs_in_the_folder_of_the_results_are_refused(inputs, tmp_path):
    files = sorted(inputs.iterdir())
    for do, out in ((bulk.fit, tmp_path / "scans.npz"), (bulk.fit, inputs), (bulk.reconstruct, inputs)):
        with pytest.raises(ConfigError, match="results would be among inputs"):
            do(Balls(), files, out)
    assert sorted(inputs.iterdir()) == files


def test_codes_of_others_are_not_replaced_by_joined_codes(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes")
    (tmp_path / "codes.npz").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="codes.npz exists already"):
        bulk.fit(Balls(), inputs, tmp_path / "codes.npz")
    assert (tmp_path / "codes.npz").read_bytes() == b"mine"
    (tmp_path / "codes/codes.npz").rename(tmp_path / "codes.npz")
    assert bulk.fit(Balls(), inputs, tmp_path / "codes.npz").before == 4  # the same, in another place


def test_codes_are_joined_again_after_a_stop(inputs, tmp_path, monkeypatch):
    def stamp(path, real=identity.stamp):
        if path == tmp_path / "codes.npz":
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(identity, "stamp", stamp)
        bulk.fit(Balls(), inputs, tmp_path / "codes.npz")
    assert (tmp_path / "codes.npz").exists()
    assert bulk.fit(Balls(), inputs, tmp_path / "codes.npz").complete and len(sizes(tmp_path / "codes.npz")) == 4


@pytest.mark.parametrize("damaged", ["ball_00", "ball_02"])
def test_a_damaged_part_costs_its_own_mesh_alone(inputs, tmp_path, damaged):
    bulk.fit(Balls(), inputs, tmp_path / "codes", BATCH)
    os.truncate(tmp_path / f"codes/shapes/{damaged}.npz", 0)
    report = bulk.extract(Balls(), tmp_path / "codes", tmp_path / "made", BATCH)
    assert [row.file for row in report.outcome.rows if row.failed] == [f"shapes/{damaged}.npz"]
    assert len(list((tmp_path / "made").glob("*.ply"))) == 3


def test_a_stop_between_an_output_and_its_row(inputs, tmp_path, monkeypatch):
    def stop(job, row):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Job, "add", stop)
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert list((tmp_path / "made").glob("*.ply"))
    assert bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH).complete
    assert {row["status"] for row in table(tmp_path / "made").values()} == {"ok"}


class Waiting(Balls):
    """Waits in the middle of its work until an event is set."""

    def __post_init__(self):
        super().__post_init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def encode(self, **given):
        self.begun.set()
        assert self.go.wait(60)
        return super().encode(**given)


@pytest.mark.parametrize("shard, others", [(None, [None, (0, 2)]), ((0, 2), [None, (0, 2), (1, 3)])])
def test_one_at_work(inputs, tmp_path, shard, others):
    first = Waiting()
    thread = threading.Thread(
        target=bulk.fit, args=(first, inputs, tmp_path / "codes.npz", Settings(shard=shard)), daemon=True
    )
    thread.start()
    try:
        assert first.begun.wait(60)
        for other in others:
            with pytest.raises(BusyError, match=f"process {os.getpid()} .*works here"):
                bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=other))
        if shard:
            assert not bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(1, 2))).complete
    finally:
        first.go.set()
        thread.join(60)
    assert len(Codes.load(tmp_path / "codes.npz")) == 4
    assert not list((tmp_path / "codes").glob(".*"))
    assert [path.name for path in (tmp_path / "codes").glob("manifest*")] == ["manifest.csv"]


def test_many_join_at_once(inputs, tmp_path):
    failures = []

    def shard(index):
        try:
            bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(index, 4)))
        except BaseException as error:
            failures.append(error)

    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(0, 4)))
    for i in (1, 2):
        shard(i)
    threads = [threading.Thread(target=shard, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and len(Codes.load(tmp_path / "codes.npz")) == 4 == len(table(tmp_path / "codes"))
    record = json.loads((tmp_path / "codes" / "joined.json").read_text())
    assert [place for place, _ in record["parts"]] == [f"shapes/ball_{i:02d}.npz" for i in range(4)]
