"""Shapes completed from one view: the task in miniature, scans from the shell, and fits to surface points."""

import dataclasses
import json

import numpy as np
import program
import pytest
import trimesh
from chairs import QUICK, load_chairs
from PIL import Image
from scipy.spatial.transform import Rotation
from small_run import arguments

import jonet
from jonet import __main__ as shell
from jonet.codes import Codes
from jonet.commands import complete
from jonet.data import store as stores
from jonet.errors import ConfigError, InputError
from jonet.geometry import depth, mesh_files
from jonet.geometry.mesh import Mesh, Similarity
from jonet.geometry.rays import Camera
from jonet.model import Model
from jonet.networks import occupancy
from jonet.networks.bound import BoundNetwork
from jonet.settings.fitting import LBFGS, Adam, PoseConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks import deepsdf_completion
from jonet.tasks.deepsdf_completion import View

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope="module")
def chairs():
    """A network of chairs, as a model, with surface points and normals of four that it never saw."""
    found = load_chairs()
    codes = Codes(found.codes, tuple(f"chair {i}" for i in range(len(found.codes))))
    parts = "deepsdf", found.network, "sphere", codes, found.prior, QUICK
    model = Model(*parts, Surfaces(resolution=48))
    return model, found.points.astype(np.float64), found.normals


@pytest.fixture(scope="module")
def folder(chairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "chairs"
    chairs[0].save(folder)
    return folder


# The task


OPTIONS = ["--task=deepsdf_completion", "--view.pixels=48"]
SEARCH = ["--pose.tries=4", "--pose.keep=1 1 1"]  # read where the pose is searched


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "completed"
    assert program.run(arguments(folder, *OPTIONS)) == 0
    return folder


def test_a_run_shows_view_points_and_the_whole(completed):
    values = json.loads((completed / "metrics.json").read_text())
    assert values["task"] == "deepsdf_completion" and {"mesh_completion", "mesh_accuracy"} <= set(values["summary"])
    page = (completed / "report.html").read_text()
    assert "the view" in page and "points seen" in page and "one depth view" in page


@pytest.mark.parametrize("pose", ["yaw", "similarity"])
def test_a_given_model_and_an_unknown_pose(completed, tmp_path, capsys, pose):
    more = [f"--model={completed}", f"--view.pose={pose}", "--view.noise=0.003", "--rebuilt-train=0"]
    given = arguments(tmp_path / "again", *OPTIONS, *more)
    assert program.run(given) == 1  # settings of the other way to find codes
    assert f"fitting.gauss_newton.points is given, but not read: view.pose is {pose}" in capsys.readouterr().err
    place = given.index("--fitting.gauss-newton.points")
    given = [*given[:place], *given[place + 4 :], *SEARCH[0].split("="), *SEARCH[1].replace("=", " ").split()]
    assert program.run(given) == 0
    values = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert all(0 <= row["turned_by"] <= 180 for row in values["shapes"])
    ours, theirs = jonet.load(tmp_path / "again"), jonet.load(completed)
    np.testing.assert_array_equal(ours.codes.values, theirs.codes.values)


def test_test_shapes_that_the_space_learned_from_are_left_out(completed, tmp_path, capsys):
    """Of the family shape i is the same whatever it is to be: two of four test shapes were trained on."""
    more = [*OPTIONS, f"--model={completed}", "--generated=0"]
    given = arguments(tmp_path / "some", *more, "--shapes.train=4", "--shapes.test=4", "--rebuilt-train=9")
    with pytest.warns(UserWarning, match="2 of 4 test shapes left out.* mug_0004, mug_0005"):
        assert program.run(given) == 0
    values = json.loads((tmp_path / "some" / "metrics.json").read_text())
    assert [row["name"] for row in values["shapes"]] == ["mug_0006", "mug_0007"]
    assert [row["name"] for row in values["train"]["shapes"]] == [f"mug_000{i}" for i in range(6)]
    assert "trained on 6 other shapes" in (tmp_path / "some" / "report.html").read_text()
    given = arguments(tmp_path / "none", *more, "--shapes.train=3", "--shapes.test=3", "--stages=prepare,train")
    assert program.run(given) == 1
    assert "all 3 test shapes are among those" in capsys.readouterr().err


def test_a_space_without_codes_and_shapes_of_the_same_names(completed, tmp_path):
    """Nothing is known: no shape is rebuilt from its own code, none is called the nearest training shape."""
    imported = dataclasses.replace(jonet.load(completed), codes=None, history={})
    imported.save(tmp_path / "imported")
    more = [*OPTIONS, "--seed=5", "--generated=2"]
    with pytest.warns(UserWarning, match="does not say which shapes it learned from"):
        assert program.run(arguments(tmp_path / "a", *more, f"--model={tmp_path / 'imported'}")) == 0
    assert program.run(arguments(tmp_path / "b", *more, f"--model={completed}")) == 0  # mug_0000 is another mug here
    for name, learned in (("a", False), ("b", True)):
        values = json.loads((tmp_path / name / "metrics.json").read_text())
        assert len(values["shapes"]) == 2 and not values["train"]["shapes"] and not values["nearest"]["shapes"]
        page = (tmp_path / name / "report.html").read_text()
        assert "nearest training shape" not in page and ("trained on 6 other shapes" in page) == learned


def test_a_model_of_another_kind_is_refused_before_any_work(tmp_path, capsys):
    network = occupancy.Classifier(occupancy.ClassifierSpecs(dims=(4, 4)))
    Model("classifier", BoundNetwork(network, {}), "cube").save(tmp_path / "model")
    for name in ("deepsdf_completion", "purify"):
        folder = tmp_path / name
        assert program.run([f"--task={name}", "--model", str(tmp_path / "model"), "--workdir", str(folder)]) == 1
        assert "give a run of" in capsys.readouterr().err and not folder.exists()


def test_views_are_reproducible(completed):
    store, config = stores.open(completed / "store"), deepsdf_completion.TASK.presets["quick"]
    one, two = (deepsdf_completion.scan(config, store, 7) for _ in range(2))
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.free_space, two.free_space)
    others = (
        deepsdf_completion.scan(dataclasses.replace(config, seed=1), store, 7),
        deepsdf_completion.scan(config, store, 6),
    )
    assert all(other.points.shape != one.points.shape or (other.points != one.points).any() for other in others)
    turned = deepsdf_completion.scan(dataclasses.replace(config, view=View(pose="similarity")), store, 7)
    np.testing.assert_allclose(turned.transform.inverse()(turned.points), one.points, atol=1e-5)
    np.testing.assert_allclose(turned.normals @ turned.transform.rotation, one.normals, atol=1e-5)
    store.names[7] = "caf\udce9"  # no UTF-8, as names of files can be
    assert len(deepsdf_completion.scan(config, store, 7).points)


def test_impossible_views_are_refused():
    for wrong in ({"pixels": 2}, {"distance": 0.5}, {"noise": -1}):
        with pytest.raises(ConfigError, match="view"):
            View(**wrong)


# Scans from the shell


def turned(up):
    """A rotation that turns +y into the axis `up`."""
    sign, axis = -1 if up[0] == "-" else 1, "xyz".index(up[-1])
    return Rotation.align_vectors(sign * np.eye(3)[axis], [0, 1, 0])[0].as_matrix()


def shown(points, normals, eye):
    """The part that looks at the eye."""
    facing = np.einsum("nc,nc->n", normals, eye - points) > 0
    return points[facing], normals[facing]


@pytest.mark.parametrize("kind", ["normals", "eye", "whole"])
def test_a_scan_in_known_pose(chairs, folder, tmp_path, capsys, kind):
    """A scan with other units, position and axes; the chair is returned in its frame."""
    _, points, normals = chairs
    transform = Similarity(40.0, turned("z"), [3, -1, 2])  # normalized → own
    eye = np.array([1.5, 1.5, 2.0])
    seen, facing = (points[0], normals[0]) if kind == "whole" else shown(points[0], normals[0], eye)
    rows = transform(seen) if kind == "eye" else np.column_stack([transform(seen), facing @ transform.rotation.T])
    np.savetxt(tmp_path / "scan.xyz", rows)
    center, more = transform([0, 0, 0]), ["--whole"] if kind == "whole" else []
    if kind == "eye":
        more = ["--eye", *map(str, transform(eye))]
    place = ["--known-pose", "--up=z", "--radius", str(40 / 1.03), "--center", *map(str, center)]
    command = ["complete", str(tmp_path / "scan.xyz"), f"--model={folder}", f"--out={tmp_path / 'made'}"]
    assert shell.main([*command, *place, *more]) == 0
    said = capsys.readouterr().out
    assert "inliers" in said and "% of the surface unseen" in said
    made = transform.inverse().apply(mesh_files.read(tmp_path / "made" / "scan.ply"))
    low, high = points[0].min(0), points[0].max(0)
    np.testing.assert_allclose(made.bounds, [low, high], atol=0.15)


def test_a_depth_picture(chairs, folder, tmp_path):
    """A training chair seen by a camera that looks down; the result is in the camera's frame."""
    model, _, _ = chairs
    (chair,) = model.extract(model.codes[3])
    pitch = Rotation.from_euler("x", 15, degrees=True).as_matrix()
    transform = Similarity(0.5, pitch @ np.diag([1.0, -1, -1]), [0, 0, 3.0])  # down is y, forward is z
    view = depth.view(transform.apply(chair), Camera(np.zeros(3), np.eye(3), 200.0, (80, 80), (160, 160)))
    assert np.isfinite(view.depth).sum() > 1000
    levels = np.where(np.isfinite(view.depth), view.depth * 1000, 60000)
    Image.fromarray(levels.round().astype(np.uint16)).save(tmp_path / "view.png")
    command = ["complete", str(tmp_path / "view.png"), f"--model={folder}", f"--out={tmp_path}", "--focal=200"]
    assert shell.main([*command, "--far=10"]) == 0
    made = mesh_files.read(tmp_path / "view.ply")
    np.testing.assert_allclose(made.bounds, transform.apply(chair).bounds, atol=0.15)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["nothing.ply"], "no such file"),
        (["empty.png"], "PNG"),
        (["scan.npy", "--known-pose", "--radius=0"], "radius"),
    ],
)
def test_scans_that_are_none(folder, tmp_path, capsys, more, said):
    (tmp_path / "empty.png").write_bytes(b"")
    np.save(tmp_path / "scan.npy", np.eye(6)[:, :3])
    command = ["complete", str(tmp_path / more[0]), *more[1:], f"--model={folder}", f"--out={tmp_path}"]
    assert shell.main(command) == 1
    assert said in capsys.readouterr().err


def test_a_range_scan_of_triangles_is_a_scan(folder, tmp_path):
    """An open sheet encloses nothing, and need not."""
    plane = trimesh.creation.box((0.8, 0.02, 0.8))
    sheet = Mesh(plane.vertices, plane.faces[plane.face_normals[:, 1] > 0.5])
    mesh_files.write(sheet, tmp_path / "seat.ply")
    assert shell.main(["complete", str(tmp_path / "seat.ply"), f"--model={folder}", f"--out={tmp_path}/made"]) == 0


@pytest.mark.parametrize("kind", ["mesh", "eye"])
def test_a_scan_far_from_the_origin_is_completed_as_at_the_origin(chairs, folder, tmp_path, monkeypatch, kind):
    """Surveyors' coordinates: the same observations and the same mesh, moved."""
    model, points, _ = chairs
    (chair,) = model.extract(model.codes[3])
    monkeypatch.setattr(complete, "LIMIT", 1024)
    made = {}
    for name, offset in (("here", np.zeros(3)), ("there", np.array([5e5, 120, 4.2e6]))):
        eye, suffix = np.array([1.5, 1.5, 2.0]) + offset, "ply" if kind == "mesh" else "npy"
        scan = tmp_path / f"{name}.{suffix}"
        if kind == "mesh":
            mesh_files.write(Mesh(chair.vertices + offset, chair.faces), scan)
        else:
            np.save(scan, points[0] + offset)
        place = ["--known-pose", "--radius", str(1 / 1.03), "--center", *map(str, offset), "--resolution=32"]
        more = ["--eye", *map(str, eye)] if kind == "eye" else ["--whole"]
        command = ["complete", str(scan), f"--model={folder}", f"--out={tmp_path / 'made'}"]
        assert shell.main([*command, *place, *more]) == 0
        made[name] = mesh_files.read(tmp_path / "made" / f"{name}.ply").vertices - offset
    np.testing.assert_allclose(made["there"].max(0), made["here"].max(0), atol=2e-3)
    np.testing.assert_allclose(made["there"].mean(0), made["here"].mean(0), atol=2e-3)


# Surfaces without distances


@pytest.mark.parametrize("oriented", [True, False])
def test_a_whole_cloud_in_input_units(chairs, oriented):
    """Not f = 0 everywhere: inside and outside are distinguished at any scale, as in the normalized frame."""
    model, points, normals = chairs
    transform = Similarity(37.0, np.eye(3), [100, -20, 3])
    given = {"normals": list(normals) if oriented else None}
    frame = [Similarity(1 / 37, np.eye(3), -37 * np.array([100, -20, 3.0]))] * len(points)
    own = model.fit(points=[transform(p) for p in points], frame=frame, **given)
    plain = model.fit(points=list(points), **given)
    np.testing.assert_allclose(own.residual, plain.residual, rtol=0.1, atol=2e-4)
    field = model.network.fields(own.values)
    far = np.broadcast_to(np.float32([[0.95, 0.95, 0.95], [-0.95, 0.9, 0.95]]), (len(points), 2, 3))
    assert (np.asarray(field(far)) > 0.05).all()
    step = 0.03 * normals
    before, behind = (np.asarray(field((points + s).astype(np.float32))) for s in (step, -step))
    assert (before > 0).mean() > 0.85 and (behind < before).mean() > 0.9
    assert (np.abs(field(points.astype(np.float32))) < 0.02).mean() > 0.85
    boxed = model.fit(points=[transform(p) for p in points], frame="input", **given)
    assert [transform.scale for transform in boxed.similarities] == pytest.approx([1 / 37] * len(points), rel=0.1)


def test_the_free_space_loss_is_the_published_one(chairs):
    """Places seen through cost |f| where f < 0 and nothing where f > 0 (DeepSDF, section 5)."""
    from jonet.inference.fitting import methods, observations

    rows = observations.of_surface(
        np.float32([[0, 0, 0]]), None, np.float32([[0.5, 0, 0], [0, 0.5, 0]]), 0.01, None, None
    )
    packed = observations.pack(rows, 0.1, None, 0, 0)
    free_space = packed[packed[:, observations.GROUP] > 0]
    values = np.float32([-0.04, 0.07])
    np.testing.assert_allclose(methods.clamped(values, free_space, 0.1), [0.04, 0], atol=1e-7)
    weights = packed[:, observations.WEIGHT]
    assert weights[packed[:, observations.GROUP] > 0].sum() == pytest.approx(weights.sum() / 2)


def test_half_a_chair_is_fitted_by_every_method(chairs):
    model, points, normals = chairs
    seen = [shown(p, n, np.array([1.5, 1.5, 2.0])) for p, n in zip(points, normals, strict=True)]
    rng = np.random.default_rng(0)
    free_space = [depth.free_space([1.5, 1.5, 2.0], p, 2000, rng) for p, _ in seen]
    clouds, facing = [p for p, _ in seen], [n for _, n in seen]
    adam, lbfgs = Adam(steps=150, rows=2000, start="best"), LBFGS(steps=40, points=4096)
    for method in ("gauss_newton", "adam", "lbfgs"):
        config = dataclasses.replace(QUICK, method=method, prior=1e-3, adam=adam, lbfgs=lbfgs)
        found = model.fit(points=clouds, normals=facing, free_space=free_space, config=config)
        assert (found.residual < 0.02).all(), method
        field = model.field(found)
        hidden = np.stack([p + 0.03 * n for p, n in zip(points, normals, strict=True)]).astype(np.float32)
        assert (np.asarray(field(hidden)) > 0).mean() > 0.8, method


def test_scans_belong_to_networks_of_distances(chairs):
    model = dataclasses.replace(chairs[0], kind="occupancy")
    with pytest.raises(InputError, match="not fitted"):
        model.fit_pose([np.eye(3)], config=PoseConfig())
