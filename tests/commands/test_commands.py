"""Commands of the shell: what they refuse before any work, what they replace, and what they print."""

import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import program
import pytest
import trimesh
from balls import fields, write_clouds
from paths import ROOT

from jonet import __main__ as shell
from jonet import model as models
from jonet import parser, representation
from jonet.bulk import inputs
from jonet.codes import Codes
from jonet.commands import options as verb_options
from jonet.commands import trained
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.published import folders
from jonet.run import metrics_file
from jonet.training import autodecoder

pytestmark = pytest.mark.unoptimized

BALL = trimesh.creation.icosphere(2)


def ball(path, radius=1.0, name="") -> Mesh:
    mesh_files.write(mesh := Mesh(BALL.vertices * radius, BALL.faces, name=name), path)
    return mesh


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small():
    network = DeepSDFDecoder(Specs(latent_size=2, dims=(8, 8), dropout=(), norm_layers=(), latent_in=()))
    shared, codes = autodecoder.initial(network, 3, jax.random.key(1), start="centered")
    codes = np.asarray(codes)
    return Model("deepsdf", BoundNetwork(network, shared), "sphere", Codes(codes, tuple("abc")), Prior.of(codes))


@pytest.fixture
def stub(monkeypatch):
    """Replaces every model: its meshes are balls, its clouds unchanged; shapes of certain names have no surface."""

    def shapes(count):
        hollow = Mesh(BALL.vertices, BALL.faces[:0])
        return [hollow if i in made.hollow else Mesh(BALL.vertices * (i + 1), BALL.faces) for i in range(count)]

    made = SimpleNamespace(
        hollow=(),
        inputs=Inputs("points", 100),
        is_fitted=False,
        kind="occupancy",
        frame="sphere",
        codes={"a": 0, "b": 1},
        sample=lambda count, seed: shapes(count),
        interpolate=lambda a, b, count: shapes(count),
        purify=lambda points, **more: [cloud[: 0 if i in made.hollow else None] for i, cloud in enumerate(points)],
    )
    made.with_precision = lambda precision: made
    monkeypatch.setattr(models, "load", lambda folder: made)
    return made


def test_a_scan_is_not_overwritten_by_what_completes_it(tmp_path, capsys, monkeypatch):
    trimesh.PointCloud(BALL.vertices).export(tmp_path / "scan.ply")
    before = contents(tmp_path)
    monkeypatch.setattr(models, "load", lambda folder: pytest.fail("the work was begun"))
    monkeypatch.chdir(tmp_path)
    assert shell.main(["complete", "scan.ply", "--model=nothing", "--out=."]) == 1
    assert "one of the inputs" in capsys.readouterr().err
    (tmp_path / "other.ply").symlink_to("scan.ply")
    assert shell.main(["complete", "other.ply", "--model=nothing", "--out=."]) == 1
    (tmp_path / "other.ply").unlink()
    (tmp_path / "scan.obj").write_text("mine")
    assert shell.main(["complete", "scan.ply", "--model=nothing", "--out=.", "--format=obj"]) == 1
    assert "jonet did not write it" in capsys.readouterr().err
    assert contents(tmp_path) == before | {"scan.obj": b"mine"}


def test_clouds_are_not_overwritten_by_what_purifies_them(stub, tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in ("a", "b"):
        scans.mkdir(exist_ok=True)
        trimesh.PointCloud(BALL.vertices).export(scans / f"{name}.ply")
    before = contents(scans)
    for given in (scans, scans / "a.ply"):
        assert shell.main(["purify", "model", str(given), f"--out={scans}"]) == 1
        assert "inputs" in capsys.readouterr().err
    assert contents(scans) == before
    for _ in range(2):
        assert shell.main(["purify", "model", str(scans), f"--out={out}"]) == 0
        assert sorted(path.name for path in out.glob("*.ply")) == ["a.ply", "b.ply"]
    stub.hollow = (1,)  # what it was before does not stay
    assert shell.main(["purify", "model", str(scans), f"--out={out}"]) == 0
    assert [path.name for path in out.glob("*.ply")] == ["a.ply"]
    assert "b.ply: no surface" in capsys.readouterr().err
    stub.hollow = ()
    (scans / "b.ply").write_bytes(b"ply broken")
    assert shell.main(["purify", "model", str(scans), f"--out={out}"]) == 0
    assert "scans/b.ply: " in capsys.readouterr().err and [path.name for path in out.glob("*.ply")] == ["a.ply"]
    (out / "a.ply").write_bytes(b"mine")
    assert shell.main(["purify", "model", str(scans), f"--out={out}"]) == 1
    assert (out / "a.ply").read_bytes() == b"mine"


def test_a_cloud_without_normals_takes_none_from_others(stub, tmp_path):
    given = []

    def purify(points, normals=None, **more):
        given.append(normals and [len(rows) for rows in normals])
        return points

    stub.inputs, stub.is_fitted, stub.purify = None, True, purify
    np.save(tmp_path / "a.npy", BALL.vertices)
    np.save(tmp_path / "b.npy", np.hstack([BALL.vertices, BALL.vertices]))
    np.save(tmp_path / "c.npy", 2 * BALL.vertices)
    assert shell.main(["purify", "model", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    assert given == [[len(BALL.vertices)], None]
    for name, size in (("a", 1), ("b", 1), ("c", 2)):
        found = mesh_files.mesh_parsers.load(tmp_path / "out" / f"{name}.ply").vertices
        np.testing.assert_allclose(found, size * BALL.vertices, atol=1e-6)


def test_samples_replace_those_before_and_nothing_else(stub, tmp_path, capsys):
    out = tmp_path / "out"
    ball(out / "mine.ply")
    for verb, more in (("sample", []), ("interpolate", ["a", "b"])):
        for count in (4, 2, 3):
            assert shell.main([verb, "model", *more, f"--out={out}", f"--count={count}"]) == 0
            found = sorted(path.name for path in out.glob("*.ply"))
            assert found == ["mine.ply", *(f"shape_{i:03d}.ply" for i in range(count))]
    stub.hollow = (0,)
    assert shell.main(["sample", "model", f"--out={out}", "--count=2"]) == 0
    assert sorted(path.name for path in out.glob("*.ply")) == ["mine.ply", "shape_001.ply"]
    before = contents(out) | {"shape_000.ply": b"mine, too"}
    (out / "shape_000.ply").write_bytes(b"mine, too")
    assert shell.main(["sample", "model", f"--out={out}", "--count=2"]) == 1
    assert contents(out) == before and "jonet did not write it" in capsys.readouterr().err


def test_a_stop_while_files_are_written(stub, tmp_path, monkeypatch):
    write = mesh_files.write

    def stop(mesh, path, unit):
        write(mesh, path, unit)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mesh_files, "write", stop)
        assert shell.main(["sample", "model", f"--out={tmp_path}", "--count=2"]) == 130
    assert (tmp_path / "shape_000.ply").exists()
    assert shell.main(["sample", "model", f"--out={tmp_path}", "--count=2"]) == 0
    assert len(list(tmp_path.glob("*.ply"))) == 2


NUMBERS = {
    "sample": ("count=0", "resolution=1"),
    "interpolate": ("count=-1", "resolution=0"),
    "purify": ("count=0", "resolution=5000"),
    "complete": ("resolution=1",),
    "fit": ("limit=0", "batch=0"),
    "extract": ("limit=-1", "batch=-1", "resolution=0"),
    "reconstruct": ("limit=0", "batch=-1", "resolution=1"),
    "represent": ("limit=0", "batch=0", "resolution=1", "representation.resolution=100", "representation.near=3"),
}


@pytest.mark.parametrize("verb, wrong", [(verb, wrong) for verb, those in NUMBERS.items() for wrong in those])
def test_numbers_are_looked_at_first(verb, wrong, tmp_path, capsys, monkeypatch):
    given = {"interpolate": ["m", "a", "b"], "complete": ["--model=m", "scan"], "sample": ["m"]}.get(verb, ["m", "x"])
    monkeypatch.setattr(models, "load", lambda folder: pytest.fail("the work was begun"))
    assert program.refused([verb, *given, f"--out={tmp_path / 'out'}", f"--{wrong}"])
    assert wrong.split("=")[0].split(".")[-1] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_every_verb_that_computes_has_a_precision(small, tmp_path):
    """Its option is that of the model that the verb works with; without it the model keeps its own."""
    small.with_precision("highest").save(tmp_path / "model")
    kinds = {verb: getattr(verb_options, entry.options or "Verb") for verb, entry in shell.VERBS.items()}
    verbs = [verb for verb, kind in kinds.items() if issubclass(kind, verb_options.Computing)]
    assert verbs == ["fit", "extract", "reconstruct", "sample", "interpolate", "complete", "purify"]
    words = {"sample": "MODEL", "interpolate": "MODEL a b", "complete": "scan.ply --model=MODEL"}
    for verb in verbs:
        line = f"{words.get(verb, 'MODEL inputs')} --out=made".replace("MODEL", str(tmp_path / "model"))
        for more, expected in (([], "highest"), (["--precision=default"], "default")):
            read, given = parser.parse(kinds[verb], [*line.split(), *more], verb)
            assert trained.load(read, given).precision == expected


def test_an_export_replaces_exports_alone(small, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    small.save(tmp_path / "model")
    small.codes.save(tmp_path / "codes.npz")
    source, out = str(tmp_path / "model"), tmp_path / "out.npz"
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for wrong in ("codes.npz", "model/arrays.npz", "model/codes.npz", "model/model.json", "notes.txt"):
        assert shell.main(["export", source, str(tmp_path / "codes.npz"), f"--out={tmp_path / wrong}"]) == 1
        assert "one of the inputs" in (said := capsys.readouterr().err) or "not replaced" in said
    assert contents(tmp_path) == before
    for _ in range(2):
        assert shell.main(["export", source, "--shape=b", f"--out={out}"]) == 0
    before = contents(tmp_path)
    Codes(small.codes.values, tuple("abc"), network="0" * 16).save(tmp_path / "other.npz")
    for more in ([], ["--shape=a"]):
        assert shell.main(["export", source, str(tmp_path / "other.npz"), *more, f"--out={out}"]) == 1
        assert "another network" in capsys.readouterr().err
    (tmp_path / "other.npz").unlink()
    assert contents(tmp_path) == before


def test_an_import_replaces_imports_alone(small, tmp_path, capsys, monkeypatch):
    parts = {name: getattr(small, name) for name in ("kind", "network", "frame", "history")}
    found = SimpleNamespace(**parts, codes=small.codes.values, names=("x", "y", "z"), similarities=None, takes=None)
    found.notes, found.fitted = (), {"f": small.codes.values[0]}
    monkeypatch.setattr(folders, "read", lambda *given: found)
    out = tmp_path / "out"
    for _ in range(2):
        assert shell.main(["import", "source", f"--out={out}"]) == 0
        assert {"codes.npz", "fitted.npz", "model/model.json"} <= contents(out).keys()
    assert Codes.load(out / "codes.npz").network == models.load(out).digest
    found.fitted = {}
    assert shell.main(["import", "source", f"--out={out}"]) == 0 and not (out / "fitted.npz").exists()
    monkeypatch.setattr(folders, "read", lambda *given: pytest.fail("the work was begun"))
    (out / "config.json").write_text("{}")
    small.save(tmp_path / "own" / "model")
    (tmp_path / "thesis" / "model").mkdir(parents=True)
    (tmp_path / "thesis" / "model" / "chapter.txt").write_text("mine")
    before = contents(tmp_path)
    for folder in ("out", "own", "thesis"):
        assert shell.main(["import", "source", f"--out={tmp_path / folder}"]) == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert contents(tmp_path) == before
    monkeypatch.setattr(folders, "read", lambda *given: found)
    (tmp_path / "codes").mkdir()
    shutil.copy(out / "codes.npz", tmp_path / "codes")
    assert shell.main(["import", "source", f"--out={tmp_path / 'codes'}"]) == 1
    assert contents(tmp_path / "codes").keys() == {"codes.npz"}


@pytest.fixture
def trees(tmp_path):
    """Meshes and ground truths of the same names in several classes; one mesh is missing, one has no ground truth."""
    for kind in ("chair", "table"):
        for name in ("001", "002"):
            ball(tmp_path / "truth" / kind / name / "model.ply")
    shutil.copytree(tmp_path / "truth", tmp_path / "made")
    (tmp_path / "made" / "table" / "002" / "model.ply").unlink()
    ball(tmp_path / "made" / "chair" / "003" / "model.obj")
    return tmp_path


def test_every_shape_is_scored_or_counted(trees, capsys):
    out = trees / "scores.json"
    (trees / "made" / "chair" / "002" / "model.ply").write_bytes(b"ply broken")
    for _ in range(2):
        assert shell.main(["evaluate", str(trees / "made"), str(trees / "truth"), f"--json={out}"]) == 0
        said = capsys.readouterr().out
        assert "2 shapes" in said and "1 of 4 ground-truth shapes without a mesh" in said and "table/002/model" in said
        assert "1 of 4 meshes without a ground truth" in said and "chair/002/model: failed" in said
        found = json.loads(out.read_text())
        assert found["version"] == metrics_file.VERSION
        assert [shape["name"] for shape in found["shapes"]] == ["chair/001/model", "table/001/model"]
        assert found["missing"] == ["table/002/model"] and found["without_ground_truth"] == ["chair/003/model"]
        assert list(found["failed"]) == ["chair/002/model"]
        assert "Largest deviation" in said and found["summary"].keys() >= {"deviation_max", "hausdorff"}


@pytest.mark.parametrize("given, named, factor, said", [
    ("mm", None, 1e-3, True), (None, "mm", 1e-3, True), ("in", None, 0.0254, True), ("mm", "in", 1e-3, True),
    ("mm", None, 1, False), (None, None, 1, False), ("m", None, 1, False),
])  # fmt: skip
def test_glb_in_meters_is_compared_in_the_unit_of_the_ground_truth(given, named, factor, said, tmp_path, capsys):
    """As bulk jobs write it where a unit is known; without one GLB has the coordinates of the files."""
    truth = ball(tmp_path / "truth" / "a.obj", 40)
    if named:
        path = tmp_path / "truth" / "a.obj"
        path.write_text(f"# units: {named}\n" + path.read_text())
    mesh_files.write(Mesh(truth.vertices * factor * 1.01, truth.faces), tmp_path / "made" / "a.glb")
    options = [f"--units={given}"] if given else []
    found, out = [], tmp_path / "scores.json"
    arguments = ["evaluate", str(tmp_path / "made"), str(tmp_path / "truth"), f"--json={out}"]
    assert shell.main([*arguments, *options]) == 0
    (found,) = json.loads(out.read_text())["shapes"]
    assert found["iou"] > 0.95 and found["deviation_max"] == pytest.approx(0.4, rel=0.1)
    printed = capsys.readouterr().out
    assert (f"1 mesh of GLB is in meters, and was compared in {given or named}" in printed) == said


def test_scores_are_written_over_scores_alone(trees, capsys):
    (trees / "config.json").write_text("{}")
    before = contents(trees)
    for wrong in ("config.json", "truth/chair/001/model.ply"):
        assert shell.main(["evaluate", str(trees / "made"), str(trees / "truth"), f"--json={trees / wrong}"]) == 1
        assert "inputs" in (said := capsys.readouterr().err) or "not replaced" in said
    assert contents(trees) == before


def test_suffixes_part_shapes_only_where_they_must(tmp_path, capsys):
    for path in (
        "made/a.ply",
        "made/a.obj",
        "made/b.obj",
        "truth/a.obj",
        "truth/b.stl",
        "truth/c.y.ply",
        "made/c.y.ply",
    ):
        ball(tmp_path / path)
    assert shell.main(["evaluate", str(tmp_path / "made"), str(tmp_path / "truth")]) == 0
    said = capsys.readouterr().out
    assert "3 shapes" in said and "1 of 4 meshes without a ground truth: a.ply" in said
    assert shell.main(["evaluate", str(tmp_path / "made/a.ply"), str(tmp_path / "truth/b.stl")]) == 0
    (tmp_path / "made/a.ply").write_bytes(b"ply broken")
    assert shell.main(["evaluate", str(tmp_path / "made/a.ply"), str(tmp_path / "truth/b.stl")]) == 1
    assert "none of 1 shape could be scored" in capsys.readouterr().err


def test_predictions_inside_the_ground_truth_folder(trees):
    shutil.copytree(trees / "made", trees / "truth" / "rebuilt")
    assert shell.main(["evaluate", str(trees / "truth" / "rebuilt"), str(trees / "truth")]) == 0
    write_clouds(trees / "truth" / "job", [1.0])
    (trees / "truth" / "job" / "job.json").write_text(json.dumps({"verb": "fit"}))
    assert len(inputs.find(trees / "truth")) == 8  # four of each


def test_what_a_terminal_cannot_show_ends_no_command(tmp_path, monkeypatch):
    for folder, names in {"made": "a", "truth": ["a", "日本\udcff"]}.items():
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(ball_file(tmp_path), tmp_path / folder / f"{name}.ply")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert shell.main(["evaluate", str(tmp_path / "made"), str(tmp_path / "truth")]) == 0
    sys.stdout.flush()
    assert b"\\u65e5\\u672c\\udcff" in sys.stdout.buffer.getvalue()


def test_workers_of_the_shell_need_no_jax():
    """They import the module that was started."""
    code = "import sys, jonet.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def ball_file(folder):
    ball(folder / "ball.ply")
    return folder / "ball.ply"


def test_shapes_become_fields_and_a_field_is_described(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(representation, "fitted", fields)
    write_clouds(tmp_path / "scans", [1.0, 2.0], ["a", "holes"])
    (tmp_path / "scans" / "torn.ply").write_bytes(b"broken")
    line = ["represent", str(tmp_path / "scans"), f"--out={tmp_path / 'out'}", "--representation.cloud=100"]
    assert shell.main([*line, "--resolution=16"]) == 1
    assert "--surfaces.resolution is given, but not read" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert shell.main([*line, "--resolution=16", "--format=obj"]) == 0
    said = capsys.readouterr().out
    assert "a.npy: ok · residual 0.01000\n" in said and "1 ok · 1 doubtful · 1 failed" in said
    assert "holes.npy: doubtful: 20.0% of the surface closes holes" in said
    assert {path.name for path in (tmp_path / "out").glob("*.*")} >= {"a.npz", "a.obj", "holes.npz", "holes.obj"}
    assert shell.main([*line, "--resolution=16", "--format=obj"]) == 0
    assert "done before: 3 of 3 inputs" in capsys.readouterr().out
    assert shell.main([*line, "--precision=high"]) == 1
    assert "no option --precision" in capsys.readouterr().err

    assert shell.main(["info", str(tmp_path / "out" / "holes.npz")]) == 0
    said = capsys.readouterr().out
    about = json.loads(said[said.index("{") :])
    box = np.array(about.pop("box"))
    assert about == {
        "kind": "field", "name": "holes", "resolution": 8, "coefficients": 1000, "error": 0.01, "closed": 0.2
    }  # fmt: skip
    np.testing.assert_allclose(box, [[100 - 2 / 0.9, -2 / 0.9, -2 / 0.9], [100 + 2 / 0.9, 2 / 0.9, 2 / 0.9]], atol=1e-6)
    (tmp_path / "out" / "holes.npz").write_bytes(b"broken")
    assert shell.main(["info", str(tmp_path / "out" / "holes.npz")]) == 1
    assert "holes.npz: cannot be read as .npz" in capsys.readouterr().err
    ball(tmp_path / "truth" / "a.ply")
    assert shell.main(["evaluate", str(tmp_path / "out"), str(tmp_path / "truth")]) == 0  # meshes beside fields
    assert "1 of 2 meshes without a ground truth: holes" in capsys.readouterr().out
