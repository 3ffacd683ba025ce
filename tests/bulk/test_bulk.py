"""Bulk jobs: stopped and continued, damaged inputs, memory that runs out, shards, and what the manifest says."""

import os
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np
import program
import pytest
import trimesh
from balls import BATCH, RADII, Balls, table, write_clouds
from paths import ROOT, SUPPORT
from PIL import Image

from jonet import bulk, parallel
from jonet.bulk import shapes
from jonet.bulk.manifest import Manifest, Row
from jonet.bulk.pipeline import Pipeline, Stages
from jonet.bulk.shapes import DEFAULT, Settings
from jonet.codes import Codes
from jonet.commands import fit as verbs
from jonet.data import scans
from jonet.errors import ConfigError, InputError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.inference.fitting import latents
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.settings.fitting import FitConfig, GaussNewton
from jonet.training import autodecoder

pytestmark = pytest.mark.unoptimized


@pytest.fixture
def inputs(tmp_path):
    write_clouds(tmp_path / "scans", RADII)
    return tmp_path / "scans"


def test_codes_of_a_folder(inputs, tmp_path):
    model = Balls()
    report = bulk.fit(model, inputs, tmp_path / "codes.npz", BATCH)
    assert report.complete and report.inputs == 11 and sorted(model.seen) == [3, 4, 4]
    codes = Codes.load(tmp_path / "codes.npz")
    assert codes.names == tuple(f"ball_{i:02d}" for i in range(11))
    np.testing.assert_allclose(codes.values[:, 0], 2 / 1.03, rtol=1e-5)
    np.testing.assert_allclose([transform.scale * 1.03 for transform in codes.similarities], 1 / RADII, rtol=1e-5)
    rows = table(tmp_path / "codes")
    assert list(rows["ball_03.npy"]) == list(Row._fields)
    assert rows["ball_03.npy"]["status"] == "ok" and rows["ball_03.npy"]["output"] == "shapes/ball_03.npz"
    assert float(rows["ball_03.npy"]["residual"]) == pytest.approx(1 / 1030, rel=1e-4)
    assert float(rows["ball_03.npy"]["inlier_fraction"]) == 0.5 and float(rows["ball_03.npy"]["seconds"]) > 0
    assert 0 < report.outcome.solving <= report.outcome.seconds


def test_meshes_in_input_units(inputs, tmp_path):
    write_clouds(inputs / "more", [7.0, 5.0, 4.0], ["odd", "hollow", "ball_03"])
    report = bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH, form="obj")
    rows = table(tmp_path / "made")
    assert len(rows) == 14 and rows["more/odd.npy"]["status"] == "doubtful: out of distribution"
    assert rows["more/hollow.npy"]["status"].startswith("empty") and rows["more/hollow.npy"]["output"] == ""
    for name, radius in {"ball_03": RADII[3], "more/ball_03": 4.0, "more/odd": 7.0}.items():
        mesh = mesh_files.read(tmp_path / "made" / f"{name}.obj")
        np.testing.assert_allclose(
            mesh.bounds, [[100 - radius, -radius, -radius], [100 + radius, radius, radius]], rtol=1e-3
        )
    assert report.size == sum(path.stat().st_size for path in (tmp_path / "made").rglob("*.obj"))


def test_codes_to_meshes(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz")
    model = Balls(limit=3)
    bulk.extract(model, tmp_path / "codes.npz", tmp_path / "a", BATCH)
    assert model.seen[0] == 4 and max(model.seen[1:]) <= 3
    bulk.extract(Balls(), tmp_path / "codes", tmp_path / "b", BATCH)
    for path in (tmp_path / "a").glob("*.ply"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert set(table(tmp_path / "a")) == {f"ball_{i:02d}" for i in range(11)}
    assert float(table(tmp_path / "a")["ball_03"]["inlier_fraction"]) == 0.5


class Stop(BaseException):
    pass


def test_a_stopped_job_goes_on(inputs, tmp_path):
    class Stopping(Balls):
        def encode(self, **given):
            if len(self.seen) == 2:
                raise Stop
            return super().encode(**given)

    with pytest.raises(Stop):
        bulk.fit(Stopping(), inputs, tmp_path / "codes.npz", BATCH)
    assert len(table(tmp_path / "codes")) == 8 and not (tmp_path / "codes.npz").exists()
    with (tmp_path / "codes" / "manifest.csv").open("a") as file:
        file.write("ball_09.npy,ok,0.1,0.5,1,shapes/ba")  # a row that a kill cut off
    (tmp_path / "codes" / "shapes" / "ball_00.npz").unlink()
    model = Balls()
    report = bulk.fit(model, inputs, tmp_path / "codes.npz", BATCH)
    assert report.before == 7 and sum(model.seen) == 4 and report.complete
    bulk.fit(Balls(), inputs, tmp_path / "whole.npz", BATCH)
    a, b = Codes.load(tmp_path / "codes.npz"), Codes.load(tmp_path / "whole.npz")
    np.testing.assert_array_equal(a.values, b.values)
    assert a.names == b.names and len(table(tmp_path / "codes")) == 11
    before = (tmp_path / "codes.npz").stat().st_mtime_ns
    model = Balls()
    assert bulk.fit(model, inputs, tmp_path / "codes.npz").before == 11 and not model.seen
    assert (tmp_path / "codes.npz").stat().st_mtime_ns == before


def test_inputs_that_changed_are_done_again(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    write_clouds(inputs, [9.0], ["ball_05"])
    later = (tmp_path / "made" / "ball_05.ply").stat().st_mtime + 10
    os.utime(inputs / "ball_05.npy", (later, later))
    report = bulk.reconstruct(Balls(), inputs, tmp_path / "made", BATCH)
    assert [row.file for row in report.outcome.rows] == ["ball_05.npy"] and report.complete
    assert np.ptp(mesh_files.read(tmp_path / "made" / "ball_05.ply").bounds[:, 0]) == pytest.approx(18, rel=1e-3)


def test_inputs_that_are_gone_are_left_out(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    (inputs / "ball_03.npy").unlink()
    (tmp_path / "codes" / "shapes" / "ball_03.npz").unlink()
    report = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    assert report.complete and report.before == 10 and not report.outcome.rows
    assert Codes.load(tmp_path / "codes.npz").names == tuple(f"ball_{i:02d}" for i in range(11) if i != 3)


def test_damaged_inputs_are_rows_and_the_rest_goes_on(inputs, tmp_path, capfd):
    (inputs / "ball_02.npy").write_bytes(b"\x93NUMPY damaged")
    (inputs / "ball_05.npy").rename(inputs / "refused.npy")  # by the network, not by the reader
    model = Balls()
    report = bulk.fit(model, inputs, tmp_path / "codes.npz", BATCH)
    rows = table(tmp_path / "codes")
    assert report.complete and len(rows) == 11
    assert rows["ball_02.npy"]["status"].startswith("failed: ") and "ball_02.npy" in rows["ball_02.npy"]["status"]
    assert rows["refused.npy"]["status"] == "failed: this shape is refused"
    assert sum(row["status"] == "ok" for row in rows.values()) == 9 == len(Codes.load(tmp_path / "codes.npz"))
    assert "ball_02.npy: failed" in capfd.readouterr().err
    assert not bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH).outcome.rows
    report = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(retry_failed=True))
    assert sorted(row.file for row in report.outcome.rows) == ["ball_02.npy", "refused.npy"]
    write_clouds(inputs, [2.0], ["ball_02"])  # what is replaced is done without being asked for
    report = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    assert [row.file for row in report.outcome.rows] == ["ball_02.npy"]
    assert len(Codes.load(tmp_path / "codes.npz")) == 10


def test_nothing_but_failures_is_an_error(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.npy").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="none of 1 input could be used"):
        bulk.fit(Balls(), tmp_path / "scans", tmp_path / "codes.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no usable mesh or cloud"):
        bulk.fit(Balls(), tmp_path / "empty", tmp_path / "codes.npz")


@pytest.mark.parametrize("limit, sizes", [(3, [8, 4, 2, 2, 2, 2, 2, 1]), (1, [8, 4, 2, *[1] * 11]), (8, [8, 3])])
def test_memory_that_runs_out_halves_the_batch(inputs, tmp_path, limit, sizes, capfd):
    model = Balls(limit)
    report = bulk.fit(model, inputs, tmp_path / "codes.npz", Settings(batch=8))
    assert model.seen == sizes and report.complete
    assert all(row.status == "ok" for row in report.outcome.rows)
    assert ("memory ran out for 8" in capfd.readouterr().err) == (limit < 8)


def test_one_shape_that_does_not_fit_is_a_row(inputs, tmp_path):
    with pytest.raises(ConfigError, match="none of 11"):
        bulk.fit(Balls(limit=0), inputs, tmp_path / "codes.npz", Settings(batch=4))
    assert "RESOURCE_EXHAUSTED" in table(tmp_path / "codes")["ball_00.npy"]["status"]


def test_other_mistakes_stop_the_job(tmp_path):
    def solve(batch):
        raise RuntimeError("the device is lost")

    manifest = Manifest(tmp_path)
    stages = Stages(str, lambda held: None, solve, lambda key, result: Row(key, "ok"))
    with pytest.raises(RuntimeError, match="lost"):
        Pipeline(stages, manifest.add, 2).run({"a": 1, "b": 2})
    assert not manifest.rows()

    def write(key, result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        Pipeline(Stages(str, lambda held: None, list, write), manifest.add, 2).run({"a": 1, "b": 2})
    assert not manifest.rows()


def test_reading_goes_ahead_but_not_far(tmp_path):
    read, most = [], []

    def solve(batch):
        most.append(len(read))
        return batch

    stages = Stages(
        lambda source: read.append(source) or source, lambda held: held % 2, solve, lambda k, r: Row(k, "ok")
    )
    outcome = Pipeline(stages, Manifest(tmp_path).add, 5).run({f"{i:03d}": i for i in range(100)})
    assert sorted(row.file for row in outcome.rows) == [f"{i:03d}" for i in range(100)]
    assert all(count <= 5 * solved + 2 * 5 + 6 for solved, count in enumerate(most))


@pytest.mark.parametrize(("slow", "other"), [("reading", "writing"), ("writing", "reading")])
def test_it_is_known_what_the_solver_waited_for(tmp_path, slow, other):
    """Four threads read and two write, so that six inputs of a twentieth of a second each take some time."""

    def pause(stage):
        time.sleep(0.05 * (stage == slow))

    def read(source):
        pause("reading")
        return source

    def write(key, result):
        pause("writing")
        return Row(key, "ok")

    stages = Stages(read, lambda held: None, list, write)
    outcome = Pipeline(stages, Manifest(tmp_path).add, 1).run({f"{i}": i for i in range(6)})
    waited = getattr(outcome, slow)
    assert 0.04 < waited <= outcome.seconds - outcome.solving
    assert getattr(outcome, other) < waited / 2


def test_a_trial_projects_what_all_would_take(inputs, tmp_path, capsys):
    class Options:
        out, inputs = tmp_path / "made", None

    report = bulk.reconstruct(Balls(), inputs, Options.out, Settings(limit=4, batch=2))
    assert [row.file for row in report.outcome.rows] == [f"ball_{i:02d}.npy" for i in (0, 2, 5, 8)]
    progress = verbs.Progress(Options)
    progress.first = report.outcome._replace(solved=2, seconds=100.0)
    progress.end(report._replace(outcome=report.outcome._replace(seconds=1900.0), size=4 * 10**9))
    said = capsys.readouterr().out
    assert "% waiting for inputs" in said
    assert "7 inputs are left: about 1.8 hours and 7 GB" in said  # 900 s an input after the first batch
    report = bulk.reconstruct(Balls(), inputs, Options.out)
    assert report.before == 4 and report.complete


def test_other_settings_are_refused_by_name(inputs, tmp_path):
    bulk.reconstruct(Balls(), inputs, tmp_path / "made")
    with pytest.raises(ConfigError, match="resolution: 8 → 16"):
        bulk.reconstruct(Balls(), inputs, tmp_path / "made", resolution=16)
    with pytest.raises(ConfigError, match="network"):
        bulk.reconstruct(Balls(scale=2.0), inputs, tmp_path / "made")


def test_fractions_are_joined_by_the_last(inputs, tmp_path):
    first = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(0, 2)))
    assert not first.complete and first.inputs == 6 and not (tmp_path / "codes.npz").exists()
    last = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(1, 2)))
    assert last.complete and len(Codes.load(tmp_path / "codes.npz")) == 11 == len(table(tmp_path / "codes"))
    assert [path.name for path in (tmp_path / "codes").glob("manifest*")] == ["manifest.csv"]
    with pytest.raises(ConfigError, match="shards count from 0"):
        bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(shard=(2, 2)))


def test_success_is_not_hidden_by_another_shards_failure(inputs, tmp_path):
    bulk.fit(Balls(), inputs, tmp_path / "codes.npz", BATCH)
    made = Manifest(tmp_path / "codes").rows()["ball_04.npy"][0]
    Manifest(tmp_path / "codes", (1, 2)).add(made._replace(status="failed: once", output="", made={}))
    model = Balls()
    assert bulk.fit(model, inputs, tmp_path / "codes.npz", BATCH).complete and not model.seen
    assert table(tmp_path / "codes")["ball_04.npy"]["status"] == "ok"


def test_names_of_outputs(tmp_path):
    write_clouds(tmp_path / "a", [1.0, 2.0], ["x", "y.z"])
    write_clouds(tmp_path / "b", [3.0], ["x"])
    np.savetxt(tmp_path / "a" / "x.xyz", np.load(tmp_path / "a" / "x.npy"))
    bulk.reconstruct(Balls(), [tmp_path / "a", tmp_path / "b"], tmp_path / "made")
    files = table(tmp_path / "made")
    assert {row["output"] for key, row in files.items() if "/" not in key} == {"x_npy.ply", "x_xyz.ply", "y.z.ply"}
    assert len({row["output"] for row in files.values()}) == 4
    codes = Codes(np.ones((1, 1), np.float32), ("../../out",))
    codes.save(tmp_path / "codes.npz")
    bulk.extract(Balls(), tmp_path / "codes.npz", tmp_path / "made2" / "deep")
    assert (tmp_path / "made2" / "deep" / "out.ply").exists()


def test_other_processes_may_read(inputs, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        report = bulk.fit(Balls(), inputs, tmp_path / "codes.npz", Settings(executor=executor))
    assert report.complete and len(Codes.load(tmp_path / "codes.npz")) == 11


def test_other_kinds_of_inputs_are_refused(inputs, tmp_path):
    model = Balls()
    model.inputs = Inputs("samples", 100)
    with pytest.raises(InputError, match="with occupancies"):
        bulk.fit(model, inputs, tmp_path / "codes.npz", DEFAULT)
    model.inputs = None
    with pytest.raises(InputError, match="only represents the shapes"):
        bulk.fit(model, inputs, tmp_path / "codes.npz", DEFAULT)


def test_fitted_codes_are_those_of_the_plain_call(inputs, tmp_path):
    """Two at once in bulk, whatever their order; one alone without it."""
    network = DeepSDFDecoder(Specs(latent_size=2, dims=(8, 8), dropout=(), norm_layers=(), latent_in=()))
    shared, codes = autodecoder.initial(network, 3, jax.random.key(1), start="centered")
    fitting = FitConfig(starts=1, gauss_newton=GaussNewton((1024,), (0.01,), (1,), 1))
    trained = Model(
        "deepsdf", BoundNetwork(network, shared), "sphere", Codes(np.asarray(codes), tuple("abc")), fitting=fitting
    )
    np.save(inputs / "plane.npy", np.pad(np.random.default_rng(0).uniform(0, 1, (50, 2)), ((0, 0), (0, 1))))
    bulk.fit(trained, inputs, tmp_path / "codes.npz", Settings(batch=2))
    found = Codes.load(tmp_path / "codes.npz")
    assert "enclose nothing" in table(tmp_path / "codes")["plane.npy"]["status"] and len(found) == 11
    one = scans.read(inputs / "ball_07.npy")
    index = [zlib.crc32(b"ball_07") >> 1]
    shapes = observe(ObservedArrays.checked(points=[one.points]), fitting, index)
    alone = latents.fit(trained.network, shapes, index, config=fitting, starts=codes)
    np.testing.assert_allclose(found["ball_07"].values, alone.values, rtol=1e-5)
    np.testing.assert_allclose(found["ball_07"].residual, alone.residual, rtol=1e-5)
    assert np.ptp(found.values[:, 0]) > 0


@pytest.mark.parametrize("kind", ["images", "voxels"])
def test_encoders_of_pictures_and_voxels(kind, tmp_path):
    class Seeing(Balls):
        inputs = Inputs(kind, 8)

        def encode(self, *, names, **given):
            arrays = np.stack(given[kind])
            assert arrays.shape[1:] == self.inputs.shape
            return Codes(arrays.reshape(len(arrays), -1).mean(1, keepdims=True).astype(np.float32), tuple(names))

    folder = tmp_path / "inputs"
    folder.mkdir()
    if kind == "images":
        Image.new("L", (20, 20), 51).save(folder / "gray.png")
        Image.new("RGBA", (8, 16), (0, 0, 0, 0)).save(folder / "clear.png")
        (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff")
        wanted = {"clear": 1.0, "gray": 0.2}
    else:
        np.save(folder / "half.npy", np.arange(512).reshape(8, 8, 8) % 2)
        np.save(folder / "torn.npy", np.zeros((8, 8)))
        box = trimesh.creation.box((8, 3.9, 3.9))
        mesh_files.write(Mesh(box.vertices + 50, box.faces), folder / "box.ply")
        wanted = {"box": 0.25, "half": 0.5}
    bulk.fit(Seeing(), folder, tmp_path / "codes.npz")
    codes = Codes.load(tmp_path / "codes.npz")
    np.testing.assert_allclose([codes[name].values.item() for name in wanted], list(wanted.values()), atol=1e-6)
    rows = table(tmp_path / "codes")
    assert len(rows) == 3 and sum(row["status"].startswith("failed") for row in rows.values()) == 1
    if kind == "voxels":
        np.testing.assert_allclose(codes["box"].similarities[0]([50, 50, 50]), 0, atol=1e-9)


def test_batches_by_the_devices_memory():
    assert shapes.batch_size(1) == shapes.ON_CPU
    with parallel.assuming(parallel.Platform("gpu", 80 * 10**9)):
        assert [shapes.batch_size(each) for each in (10**6, 10**9, 2 * 10**9, 10**11)] == [256, 16, 16, 4]


def test_options_that_cannot_be_read(tmp_path, capfd):
    for option in ("--shard=1", "--shard=a/b", "--limit=0", "--distributed=host,2"):
        assert program.refused(["fit", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "x.npz"), option])
        assert option.split("=")[1] in capfd.readouterr().err


def test_two_processes_take_a_shard_each(inputs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "codes.npz"
    processes = [
        subprocess.Popen(
            [sys.executable, SUPPORT / "balls.py", f"{address},2,{i}", inputs, out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process, shard in zip(processes, (6, 5), strict=True):
            said, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
            assert int(said.split()[-1]) == shard
    finally:
        for process in processes:
            process.kill()
    np.testing.assert_allclose(Codes.load(out).values[:, 0], 2 / 1.03, rtol=1e-5)
    assert len(table(tmp_path / "codes")) == 11


def test_a_job_shows_how_many_of_its_inputs_are_done(inputs, tmp_path, monkeypatch, capsys):
    class Options:
        out = tmp_path / "made"

    monkeypatch.setattr("jonet.progress.EVERY", 0.0)
    bulk.reconstruct(Balls(), inputs, Options.out, Settings(batch=4), progress=verbs.Progress(Options))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [f"inputs: input {done} of 11" for done in (4, 8, 11)]
