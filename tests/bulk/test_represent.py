"""The bulk job `represent`: fields and their meshes, what counts as done, and what is refused and kept."""

import json
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import trimesh
from balls import fields, table, write_clouds

import jonet
from jonet import bulk, representation
from jonet.bulk import Settings
from jonet.bulk.fields import _read
from jonet.bulk.inputs import File
from jonet.errors import ConfigError
from jonet.fields import Fields, Spline
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.settings.representation import Representation
from jonet.settings.surfaces import Surfaces

FEW = {"resolution": 32, "iterations": 1, "near": 4000, "uniform": 4000, "cloud": 4000}
COARSE = Surfaces(resolution=16)
TORUS = trimesh.creation.torus(1.0, 0.4)


def sampled(count: int, seed: int = 0) -> np.ndarray:
    """Points of a torus far from the origin with their normals [N, 6]."""
    points, faces = trimesh.sample.sample_surface(TORUS, count, seed=seed)
    return np.column_stack([points + [100, 0, 0], TORUS.face_normals[faces]])


@pytest.fixture
def mixed(tmp_path):
    """A mesh, clouds with and without normals, and files that cannot be used."""
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    mesh_files.write(Mesh(TORUS.vertices * 3, TORUS.faces), folder / "deep" / "torus.obj")
    np.save(folder / "oriented.npy", sampled(4000))
    trimesh.PointCloud(sampled(4000)[:, :3]).export(folder / "bare.ply")
    (folder / "torn.ply").write_bytes(b"ply broken")
    np.save(folder / "few.npy", sampled(5)[:, :3])
    return folder


@pytest.fixture
def clouds(tmp_path):
    write_clouds(tmp_path / "scans", [1.0, 2.0, 3.0, 4.0])
    return tmp_path / "scans"


@pytest.fixture
def quick(monkeypatch):
    """Fields of balls in place of solved ones; the list of the names of each batch."""
    seen = []

    def solve(shapes, options):
        seen.append([shape.name for shape in shapes])
        return fields(shapes, options)

    monkeypatch.setattr(representation, "fitted", solve)
    return seen


def named(folder, suffix=".npz") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))


def test_fields_are_those_of_the_plain_call(mixed, tmp_path):
    out = tmp_path / "fields"
    report = bulk.represent(mixed, out, Settings(batch=2), options=FEW, form="ply", surfaces=COARSE)
    assert named(out) == ["bare.npz", "deep/torus.npz", "oriented.npz"] and report.complete
    rows = table(out)
    assert "cut off" in rows["torn.ply"]["status"] and "5 points are too few" in rows["few.npy"]["status"]
    found = Fields.load(out)
    assert found.names == ("bare", "deep/torus", "oriented")
    mesh = mesh_files.read(mixed / "deep" / "torus.obj")
    alone = {"deep/torus": jonet.represent(mesh, names=["deep/torus"], options=FEW)}
    alone["oriented"] = jonet.represent(points=[sampled(4000)[:, :3]], normals=[sampled(4000)[:, 3:]], options=FEW)
    for name, plain in alone.items():
        ours, (theirs,) = next(each for each in found.splines if each.name == name), plain.splines
        (residual,) = (row["residual"] for row in rows.values() if row["output"] == f"{name}.npz")
        assert float(residual) == pytest.approx(theirs.error, rel=1e-5)
        np.testing.assert_array_equal(ours.similarity.as_array(), theirs.similarity.as_array())
        for level, other in zip(ours.levels, theirs.levels, strict=True):
            np.testing.assert_array_equal(level.cells, other.cells)
            np.testing.assert_allclose(level.values, other.values, atol=1e-6)
    bounds = mesh_files.read(out / "deep" / "torus.ply").bounds
    np.testing.assert_allclose(bounds, mesh.bounds, atol=0.2)
    np.testing.assert_allclose(mesh_files.read(out / "bare.ply").bounds.mean(0), [100, 0, 0], atol=0.1)


def test_a_cloud_with_a_hole_is_doubtful(tmp_path):
    rows = sampled(6000)
    np.save(tmp_path / "holes.npy", rows[(rows[:, 0] < 100.5) | (rows[:, 2] < 0)])
    report = bulk.represent(tmp_path / "holes.npy", tmp_path / "fields", options=FEW)
    closed = Spline.load(tmp_path / "fields" / "holes.npz").closed
    assert 0.01 < closed < 0.3
    assert report.outcome.rows[0].status == f"doubtful: {closed:.1%} of the surface closes holes"


def test_a_stopped_job_continues(clouds, quick, tmp_path, monkeypatch):
    out = tmp_path / "fields"

    def stop(shapes, options):
        if shapes[0].name == "ball_02":
            raise KeyboardInterrupt
        return fields(shapes, options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="same command continues"):
        patch.setattr(representation, "fitted", stop)
        bulk.represent(clouds, out, Settings(batch=1), options=FEW, form="ply", surfaces=COARSE)
    report = bulk.represent(clouds, out, Settings(batch=1), options=FEW, form="ply", surfaces=COARSE)
    assert report.before == 2 and quick == [["ball_02"], ["ball_03"]] and report.complete
    assert bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE).before == 4
    assert len(named(out)) == len(named(out, ".ply")) == 4


def test_what_a_killed_process_wrote_is_its_own(clouds, quick, tmp_path, monkeypatch):
    """Killed after the mesh of an input was written and before its row; and while a file was being written."""
    out, again = tmp_path / "fields", mesh_files.write

    def write(mesh, path, unit):
        again(mesh, path, unit)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mesh_files, "write", write)
        bulk.represent(clouds, out, Settings(batch=1), options=FEW, form="ply", surfaces=COARSE)
    assert named(out, ".ply")
    left = out / ".jonet-0123456789ab.tmp"
    left.write_bytes(b"half")
    assert bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE).complete
    assert len(named(out)) == len(named(out, ".ply")) == 4 and not left.exists()


def test_the_next_inputs_are_read_while_one_is_solved(clouds, tmp_path, monkeypatch):
    read, again = threading.Event(), representation.of_file

    def of_file(name, *arguments):
        found = again(name, *arguments)
        if name == "ball_01":
            read.set()
        return found

    def solve(shapes, options):
        assert read.wait(60)
        return fields(shapes, options)

    monkeypatch.setattr(representation, "of_file", of_file)
    monkeypatch.setattr(representation, "fitted", solve)
    assert bulk.represent(clouds, tmp_path / "fields", Settings(batch=1), options=FEW).complete


def test_other_processes_may_read(mixed):
    for name in ("oriented.npy", "deep/torus.obj"):
        source = File(mixed / name, name)
        here = _read(Representation(**FEW), "warn", "y", False, source)
        there = pickle.loads(pickle.dumps(here))
        np.testing.assert_array_equal(here.samples.points, there.samples.points)
        assert (here.cloud is None) == (there.cloud is None) == (name != "oriented.npy")


def test_a_trial_counts_and_failures_are_tried_again(mixed, quick, tmp_path):
    out = tmp_path / "fields"
    assert bulk.represent(mixed, out, Settings(limit=2), options=FEW).outcome.total == 2
    assert bulk.represent(mixed, out, options=FEW).before == 2 and len(quick) == 3
    assert bulk.represent(mixed, out, options=FEW).before == 5 and len(quick) == 3
    report = bulk.represent(mixed, out, Settings(retry_failed=True), options=FEW)
    assert sorted(row.file for row in report.outcome.rows) == ["few.npy", "torn.ply"]
    for path in (*mixed.glob("*.*"), mixed / "deep" / "torus.obj"):
        path.write_bytes(b"broken")
    with pytest.raises(ConfigError, match="none of 5 inputs could be used"):
        bulk.represent(mixed, out, options=FEW)
    assert not named(out)


@pytest.mark.parametrize("name", ["ball_01.npz", "ball_01.ply"])
def test_a_result_that_is_gone_or_changed_is_made_again(clouds, quick, tmp_path, name):
    out = tmp_path / "fields"
    for damage in (lambda path: None, os.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9] + bytes(9))):
        damage(out / name)
        bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
        assert len(Spline.load(out / "ball_01.npz").levels) and len(mesh_files.read(out / "ball_01.ply").faces)
    assert sum("ball_01" in names for names in quick) == 3 and sum("ball_00" in names for names in quick) == 1


def test_a_replaced_input_takes_its_results_along(clouds, quick, tmp_path):
    out = tmp_path / "fields"
    write_clouds(clouds, [9.0], ["ball_01"])
    bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
    np.testing.assert_allclose(np.ptp(mesh_files.read(out / "ball_01.ply").bounds[:, 0]), 18, rtol=0.02)
    (clouds / "ball_01.npy").write_bytes(b"broken")
    (clouds / "ball_02.npy").write_bytes(b"broken")
    (out / "ball_02.ply").write_bytes(b"mine")  # somebody's work on it
    bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
    assert named(out) == ["ball_00.npz", "ball_03.npz"]
    assert named(out, ".ply") == ["ball_00.ply", "ball_02.ply", "ball_03.ply"]
    assert (out / "ball_02.ply").read_bytes() == b"mine"


def test_fields_without_a_surface_have_no_mesh(clouds, tmp_path, monkeypatch):
    def hollow(shapes, options):
        found = fields(shapes, options)
        if shapes[0].name == "ball_01":
            found[0].levels[0].values[:] = 1
        return found

    monkeypatch.setattr(representation, "fitted", hollow)
    for _ in range(2):
        report = bulk.represent(clouds, tmp_path / "fields", options=FEW, form="obj", surfaces=COARSE)
    assert report.before == 4 and table(tmp_path / "fields")["ball_01.npy"]["status"] == "empty: no surface in the box"
    assert len(named(tmp_path / "fields")) == 4 and len(named(tmp_path / "fields", ".obj")) == 3


def test_results_of_other_settings_are_refused_by_name(clouds, quick, tmp_path):
    out = tmp_path / "fields"
    bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
    same = {"options": FEW, "form": "ply", "surfaces": COARSE}
    for other, words in (
        ({"options": {**FEW, "resolution": 128}}, "resolution: 32 → 128"),
        ({"form": None}, "format"),
        ({"form": "obj"}, "format: 'ply' → 'obj'|format: ply → obj"),
        ({"surfaces": Surfaces(resolution=17)}, "resolution: 16 → 17"),
        ({"outliers": "keep"}, "outliers"),
        ({"remove_plane": True}, "remove_plane"),
        ({"up": "z"}, "up"),
    ):
        with pytest.raises(ConfigError, match=f"results of other settings .*({words})"):
            bulk.represent(clouds, out, **{**same, **other})
    assert bulk.represent(clouds, out, **same, outliers="remove").before == 4


def test_results_are_no_inputs_and_replace_none(clouds, quick, tmp_path):
    for _ in range(2):
        report = bulk.represent(clouds, clouds / "fields", options=FEW, form="ply", surfaces=COARSE)
        assert report.inputs == 4
    for given, words in ((clouds, "searched for inputs"), (sorted(clouds.glob("*.npy")), "among inputs")):
        with pytest.raises(ConfigError, match=words):
            bulk.represent(given, clouds, options=FEW)
    own = tmp_path / "own"
    own.mkdir()
    np.savez(own / "cloud.npz", points=sampled(50)[:, :3])
    with pytest.raises(ConfigError, match="one of the inputs"):
        bulk.represent(own / "cloud.npz", own, options=FEW)
    for name in ("ball_02.npz", "ball_02.ply"):  # not the job's
        out = tmp_path / name
        out.mkdir()
        (out / name).write_bytes(b"mine")
        with pytest.raises(ConfigError, match=f"{name} exists already"):
            bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
        assert os.listdir(out) == [name] or (out / name).read_bytes() == b"mine"


def test_shards_are_joined_by_the_last(clouds, quick, tmp_path):
    out = tmp_path / "fields"
    first = bulk.represent(clouds, out, Settings(shard=(0, 2)), options=FEW, form="ply", surfaces=COARSE)
    assert not first.complete and first.inputs == 2 and len(named(out)) == 2
    assert bulk.represent(clouds, out, Settings(shard=(1, 2)), options=FEW, form="ply", surfaces=COARSE).complete
    assert [path.name for path in out.glob("manifest*")] == ["manifest.csv"] and len(table(out)) == 4
    made = [json.loads(row["made"]) for row in table(out).values()]
    assert [list(each["beside"]) for each in made] == [[f"ball_{i:02d}.ply"] for i in range(4)]


def test_a_manifest_leads_to_no_file_elsewhere(clouds, quick, tmp_path):
    out, mine = tmp_path / "fields", tmp_path / "mine.ply"
    bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
    shutil.copy(out / "ball_01.ply", mine)
    manifest = out / "manifest.csv"
    manifest.write_text(manifest.read_text("utf-8").replace('""ball_01.ply""', '""../mine.ply""'), "utf-8")
    (clouds / "ball_01.npy").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="ball_01.npz exists already"):  # its row is none
        bulk.represent(clouds, out, options=FEW, form="ply", surfaces=COARSE)
    assert mine.exists()


def test_outliers_that_stand_together(tmp_path):
    """Points that stand alone are always left out; some that are near each other only if that is asked for."""
    folder = tmp_path / "scans"
    folder.mkdir()
    cloud = sampled(3000)[:, :3]
    np.save(folder / "alone.npy", np.vstack([cloud, [[130, 0, 0]]]))
    patch = np.stack(np.meshgrid([130.0], np.arange(4) * 0.1, np.arange(4) * 0.1), -1).reshape(-1, 3)
    np.save(folder / "together.npy", np.vstack([cloud, patch]))
    options = Representation(**FEW)
    sizes = {}
    for name in ("alone", "together"):
        for outliers in ("keep", "remove"):
            found = _read(options, outliers, "y", False, File(folder / f"{name}.npy", name))
            sizes[name, outliers] = 1 / found.similarity.scale
    assert sizes["alone", "keep"] == sizes["alone", "remove"] == sizes["together", "remove"]
    assert sizes["together", "keep"] > 5 * sizes["together", "remove"]
    with pytest.warns(UserWarning, match="together.npy: 16 of 3,01. points stand alone"):
        _read(options, "warn", "y", False, File(folder / "together.npy", "together"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": {"resolution": 100}},
        {"options": {"sides": 3}},
        {"options": 3},
        {"form": "doc"},
        {"settings": Settings(batch=0)},
        {"settings": Settings(shard=(2, 2))},
    ],
)
def test_options_are_looked_at_before_the_work(clouds, quick, tmp_path, wrong):
    with pytest.raises(jonet.JonetError):
        bulk.represent(clouds, tmp_path / "fields", **wrong)
    assert not (tmp_path / "fields").exists() and not quick
