"""Purified point clouds: outlier removal, attacks, the calls, the command and the task in miniature."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import program
import pytest
from tiny_tasks import CONDITIONAL, SCORES, TASKS, redrawn

import jonet
from jonet import __main__ as shell
from jonet.data.families import make
from jonet.errors import ConfigError, InputError
from jonet.evaluation import metrics
from jonet.geometry import mesh_files, outliers, point_cloud_files
from jonet.tasks import attacks, purify
from jonet.tasks.attacks import Attacks, Classifier

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(*[np.linspace(-0.4, 0.4, 6)] * 3), -1).reshape(-1, 3).astype(np.float32)
CLOUD = RNG.uniform(-0.4, 0.4, (200, 3)).astype(np.float32)


def test_what_stands_alone_is_left_out():
    cloud = np.concatenate([GRID, [[3.0, 0, 0], [0, -2.0, 1.0]]])
    np.testing.assert_array_equal(outliers.inlier_mask(cloud), np.arange(len(cloud)) < len(GRID))
    assert outliers.inlier_mask(cloud, np.inf).all() and outliers.inlier_mask(cloud[-3:]).all()
    moved = outliers.inlier_mask(7 * cloud[::-1] - 2)  # neither order, place nor size matter
    np.testing.assert_array_equal(moved[::-1], outliers.inlier_mask(cloud))


def test_dropped_parts_are_the_neighborhoods_of_some_points():
    stay = np.asarray(attacks.drop_parts(CLOUD, jnp.float32(0.25), 1, KEY))
    assert stay.sum() == 150
    gone, far = CLOUD[~stay], lambda some, p: np.linalg.norm(some - p, axis=1)
    assert any(far(gone, p).max() < far(CLOUD[stay], p).min() for p in gone)  # the one that they lie around
    assert np.asarray(attacks.drop_parts(CLOUD, jnp.float32(0), 3, KEY)).all()


def test_training_sees_everything_from_nothing_to_all():
    none = Attacks(noise=0, dropped=0, outliers=0)
    np.testing.assert_array_equal(attacks.corrupt(CLOUD, KEY, none), CLOUD)
    seen = np.asarray(attacks.corrupt(CLOUD, KEY, Attacks(noise=0, outliers=0, dropped=0.9)))
    there = {tuple(p) for p in seen}
    assert len(there) < len(CLOUD) and there <= {tuple(p) for p in CLOUD}
    others = [attacks.corrupt(CLOUD, jax.random.key(i), Attacks()) for i in range(2)]
    assert np.abs(others[0] - others[1]).max() > 0.01


@pytest.fixture(scope="module")
def classifier():
    """A classifier of flat and tall boxes of points; and eight of them with their labels."""
    scale = np.array([[1, 0.2, 1], [0.3, 1, 0.3]], np.float32)
    labels = np.arange(24) % 2
    found = (RNG.uniform(-0.5, 0.5, (24, 80, 3)) * scale[labels][:, None]).astype(np.float32)
    trained = Classifier.trained(found[8:], labels[8:], 2, points=40, jitter=0.01, steps=60, key=KEY)
    return trained, found[:8], labels[:8]


def test_the_attack_misleads_the_classifier_within_its_reach(classifier):
    trained, found, labels = classifier
    assert (trained(list(found)) == labels).all()
    for reach in (0.0, 0.1, 0.4):
        moved = trained.pgd_attack(found, labels, reach, 20)
        assert np.linalg.norm(moved - found, axis=-1).max() <= reach * 1.001 + 1e-7
    assert (trained(list(moved)) != labels).mean() > 0.5
    assert trained([found[0], np.zeros((0, 3)), np.repeat(found[1], 2, 0)]).tolist() == [labels[0], -1, labels[1]]


def test_another_number_of_clouds_compiles_nothing(classifier, compilations):
    """Nor do other lengths, within a bucket of each; and what fills a bucket changes no result."""
    trained, found, labels = classifier
    some = [cloud[: 80 - 2 * i] for i, cloud in enumerate(found)]

    def calls(n: int):
        learned = Classifier.trained(found[:n], labels[:n], 2, points=40, jitter=0.01, steps=3, key=KEY)
        return trained(some[:n]), trained.pgd_attack(found[:n], labels[:n], 0.1, 2), learned

    classes, moved, _ = calls(5)
    with compilations() as seen:
        for count in (6, 7, 8):
            calls(count)
    assert not seen, seen
    assert classes.tolist() == [int(trained([cloud])[0]) for cloud in some[:5]] and len(moved) == 5
    for cloud, label, result in zip(found, labels, moved, strict=False):
        alone = trained.pgd_attack(cloud[None], label[None], 0.1, 2)[0]
        np.testing.assert_allclose(alone, result, atol=1e-5)


def test_a_classifier_learns_from_no_padding(classifier, monkeypatch):
    _, found, labels = classifier

    def learned():
        made = Classifier.trained(found[:5], labels[:5], 2, points=40, jitter=0.01, steps=3, key=KEY)
        return jax.tree.leaves(made.variables)

    filled = learned()
    monkeypatch.setattr(attacks, "padded_rows", np.asarray)
    for one, other in zip(filled, learned(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_four_attacks(classifier):
    trained, found, labels = classifier
    transforms = attacks.attacked(Attacks(dropped=0.5, outliers=0.25), trained, found, labels, KEY)
    assert tuple(transforms) == attacks.NAMES and all(len(those) == len(found) for those in transforms.values())
    noise = np.stack(transforms["noise"]) - found
    assert abs(noise.std() / 0.03 - 1) < 0.1
    assert all(len(c) == 100 and (c[:80] == found[i]).all() for i, c in enumerate(transforms["outliers"]))
    assert all(30 <= len(c) <= 45 for c in transforms["dropped"])
    with pytest.raises(ConfigError, match="dropped from 0 to below 1"):
        Attacks(dropped=1.0)


# The task, and the calls with what it leaves

SMALL = [
    *("--data=mug,lamp", "--shapes.train=4", "--shapes.test=2", "--cells=16", "--learning=8", "--attacks.steps=2"),
    "--generated=0",
]


def options(folder, *more):
    given = [*CONDITIONAL, *SCORES, *TASKS["onet_points"], *SMALL, *more]
    split = [part for option in given for part in option.replace("=", " ", 1).split(" ")]
    split = program.without_training(split) if "--model" in split else split
    return ["--task=purify", *split, "--workdir", str(folder)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "purify"
    assert program.run(options(folder)) == 0
    return folder


def test_a_run_shows_what_was_attacked_and_purified(made):
    found = json.loads((made / "metrics.json").read_text())["purify"]
    assert found["classes"] == ["lamp", "mug"] and len(found["shapes"]) == 4
    assert list(found["attacks"]) == ["none", *attacks.NAMES]
    for transform, scores in found["attacks"].items():
        for when in ("before", "after"):
            rows = [shape[transform][when] for shape in found["shapes"]]
            assert scores["accuracy"][when] == np.mean([row["right"] for row in rows])
            for what in ("distance", "chamfer_l1"):
                assert scores[what][when] == np.median([row[what] for row in rows])
    page = (made / "report.html").read_text()
    assert "Attacked and purified" in page and "mug_0004, adversarial" in page


@pytest.mark.slow
def test_any_name_is_purified(tmp_path):
    """Names that are no UTF-8, and that archives take for others."""
    names = ["a", "caf\udce9", "x\ny", "c:1"]
    for i, name in enumerate(names):
        for family in ("mug", "lamp"):
            mesh_files.write(make(family, 0, i), tmp_path / "data" / family / f"{name}.ply")
    folder = tmp_path / "run"
    given = options(folder, "--data", str(tmp_path / "data"), "--shapes.test-fraction=0.5")
    for option in ("--shapes.train", "--shapes.test"):  # of families
        while option in given:
            del given[given.index(option) : given.index(option) + 2]
    assert program.run(given) == 0
    found = json.loads((folder / "metrics.json").read_text("utf-8"))["purify"]
    with np.load(folder / "purified.npz") as clouds:
        assert clouds["names"].tolist() == [shape["name"] for shape in found["shapes"]]
        assert len(clouds["noise/before/3"]) == 40
    assert (folder / "report.html").exists()


def test_a_network_trained_before(made, tmp_path, capsys):
    assert program.run(options(tmp_path / "again", f"--model={made}", "--stages=prepare,train")) == 0
    ours, theirs = jonet.load(tmp_path / "again"), jonet.load(made)
    np.testing.assert_array_equal(ours.codes.values, theirs.codes.values)
    assert program.run(options(tmp_path / "one", "--data=mug", f"--model={made}")) == 1
    assert "several classes" in capsys.readouterr().err


def test_what_purifying_gives_back(made):
    found = [RNG.uniform(-side, side, (n, 3)) for n, side in ((50, 0.4), (70, 0.2))]
    model = redrawn(jonet.load(made), {"points": found})
    assert [len(points) for points in jonet.purify(model, found, resolution=16)] == [50, 70]
    again = model.purify(found, 33, resolution=16, seed=1, spread=np.inf)
    meshes = model.reconstruct(points=found, resolution=16)
    for i, points in enumerate(again):
        assert points.shape == (33, 3)
        away = [metrics.to_surface(points, meshes[j]).mean() for j in (i, 1 - i)]
        assert away[0] < 1e-6 and away[1] > 1e-3  # on the surface of its own shape
    far = model.purify([1024 + 4 * cloud for cloud in found], 33, resolution=16, seed=1, frame="input")
    for near, own in zip(model.purify(found, 33, resolution=16, seed=1, frame="input"), far, strict=True):
        assert len(near) == 33
        np.testing.assert_allclose(own, 1024 + 4 * near, atol=1e-3)
    with pytest.raises(InputError, match=r"points\[1\]"):
        model.purify([found[0], np.full((5, 3), np.nan)])


def test_the_verb(made, tmp_path, capsys):
    clouds = RNG.uniform(-0.4, 0.4, (2, 60, 3))
    redrawn(jonet.load(made), {"points": clouds}).save(tmp_path / "model")
    for i in range(2):
        np.save(tmp_path / f"scan_{i}.npy", 100 + 3 * clouds[i])
    out = tmp_path / "out"
    files = [str(tmp_path / f"scan_{i}.npy") for i in range(2)]
    assert shell.main(["purify", str(tmp_path / "model"), *files, f"--out={out}", "--count=40", "--resolution=16"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(list(out.glob("*.ply"))) == 2 and "no surface" not in said.err
    for path in out.glob("*.ply"):
        points = point_cloud_files.read(path)
        assert points.shape == (40, 3) and np.abs(points - 100).max() < 3


def test_distances_in_closed_form():
    assert purify.distances([[0, 0, 0], [1, 0, 0]], [[0, 0, 0.5], [1, 0, 0]]) == pytest.approx((0.25, 0.25))
    assert purify.distances([[0, 0, 0]], [[0, 0, 0.5], [0, 0, 1]]) == pytest.approx((0.5, 0.75))
    assert purify.distances(np.zeros((0, 3)), GRID) == (1.0, 1.0)
    attacks = {"none": {"accuracy": {"before": 0.9}}, "noise": {"accuracy": {"before": 0.4, "after": 0.8}}}
    assert purify.regained(attacks, "noise") == pytest.approx(0.8)
    assert purify.regained({**attacks, "none": {"accuracy": {"before": 0.4}}}, "noise") is None
