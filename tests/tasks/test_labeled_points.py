"""Points with occupancies as data: files and arrays, their frame, held-out points, scores and the report."""

import json

import numpy as np
import program
import pytest
from tiny_tasks import SCORES

import jonet
from jonet.data import store as stores
from jonet.errors import ConfigError, JonetError
from jonet.formats import labeled_points
from jonet.run import report_pages
from jonet.tasks import occnet, registry
from jonet.training.log import Log

pytestmark = pytest.mark.unoptimized
CENTER, RADIUS = np.array([10.0, 0.0, -5.0]), 3.0
TINY = ["--network.dims=32", "32", "--batch-points=200", "--epochs=40", "--optimizer.per-shape.initial=0.01", *SCORES]
OPTIONS = {"network": {"dims": (8,)}, "epochs": 1, "batch_points": 400}


def ball(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Points of a box 8 × 8 × 10 around CENTER, two of its corners included, and whether they are in a ball."""
    rng = np.random.default_rng(0)
    points = CENTER + [4.0, 4.0, 5.0] * rng.uniform(-1, 1, (count, 3))
    points[:2] = CENTER - [4, 4, 5], CENTER + [4, 4, 5]
    return points, np.linalg.norm(points - CENTER, axis=1) < RADIUS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished run on a file."""
    folder = tmp_path_factory.mktemp("points")
    points, inside = ball()
    np.savez(folder / "ball.npz", points=points, occupancies=inside.astype(np.float32))
    options = ["--task=occnet", f"--data={folder / 'ball.npz'}", f"--workdir={folder / 'run'}", "--quiet"]
    assert program.run([*options, *TINY]) == 0
    return folder / "run"


def test_a_shape_is_learned_from_its_points_alone(made):
    model = jonet.load(made)
    (mesh,) = model.extract(model.codes, 32)
    away = np.linalg.norm(mesh.vertices - CENTER, axis=1)
    assert abs(np.median(away) - RADIUS) < 0.15  # in input units
    field = model.field(model.codes, frame="input")
    assert field[0].contains(CENTER[None])[0] and not field[0].contains(CENTER[None] + RADIUS * 1.2)[0]


def test_scores_are_of_held_out_points_and_no_surface(made):
    values = json.loads((made / "metrics.json").read_text())
    (entry,) = values["shapes"]
    assert entry.keys() == {"name", "iou", "vertices", "faces"} and entry["iou"] > 0.8
    assert values["summary"].keys() == {"iou"} and not values["nearest"]["shapes"]
    assert values["parameters"] == 3 * 32 + 32 + 32 * 32 + 32 + 32 + 1  # of the one network
    assert values["bytes"]["network"] == 4 * values["parameters"] and values["bytes"]["code"] == 0
    store = stores.open(made / "store")
    config = occnet.Config()
    points, inside = occnet.TASK.labeled(config, store, 0)
    train, held = occnet.divided(store.arrays["occupancy"], config.held_out, config.seed)
    assert len(points) == round(0.2 * 3000)
    np.testing.assert_array_equal(points, held.values)
    assert inside.sum() == held.counts[0, 1] and len(train.values) == 2400
    both = np.concatenate([points, train.values]), store.occupancy(0)[0]
    np.testing.assert_array_equal(*(np.unique(part, axis=0) for part in both))


def test_the_report_shows_points_boundary_and_both_losses(made):
    page = (made / "report.html").read_text()
    assert "Points and decision boundary" in page and "points: red inside, blue outside" in page
    assert "code of one shape" not in page and "trained codes" not in page
    assert "no surface" not in page and "ground truth" not in page.split("<footer")[0].split("3D viewer")[0]
    (chart,) = report_pages.charts(occnet.TASK, Log(made / "log.jsonl").read())
    assert list(chart.lines) == ["loss", "loss of held-out points"]
    training, held = (np.array(y) for _, y in chart.lines.values())
    assert held[-1] < 0.5 * held[0] and abs(np.log(held[-1] / training[-1])) < 1


def test_the_frame_is_the_box_of_the_points(made):
    store = stores.open(made / "store")
    points, inside = store.occupancy(0)
    np.testing.assert_allclose(np.ptp(points.astype(float), axis=0), [0.88, 0.88, 1.1], atol=2e-3)
    given, labels = ball()
    there = store.similarities[0](given)
    np.testing.assert_allclose(np.abs(there).max(axis=0), [0.44, 0.44, 0.55], atol=1e-9)
    assert inside.sum() == labels.sum()
    assert np.linalg.norm(points[inside].astype(float), axis=1).max() < RADIUS * 0.11 + 1e-3


def test_files_and_arrays_are_read_alike(tmp_path):
    points, inside = ball(1001)
    np.savez(tmp_path / "numbers.npz", points=points, occupancies=inside.astype(int))
    np.savez(tmp_path / "bits.npz", points=points, occupancies=np.packbits(inside))
    rows = np.column_stack([points, inside])
    np.savetxt(tmp_path / "plain.csv", rows, delimiter=",", fmt="%.17g")
    np.savetxt(tmp_path / "headed.csv", rows, delimiter=",", fmt="%.17g", header="x,y,z,occupancy", comments="")
    for name in ("numbers.npz", "bits.npz", "plain.csv", "headed.csv"):
        found, labels, similarity = labeled_points.read(tmp_path / name)
        np.testing.assert_allclose(found, similarity(points), atol=1e-12)
        np.testing.assert_array_equal(labels, inside)
    recipe = occnet.Config().samples
    sources = [
        labeled_points.PointsFile.of(tmp_path / "bits.npz"),
        labeled_points.PointsInMemory("points", points=points, inside=inside),
    ]
    shapes = [source.shape(recipe, seed=0, frame="cube", sign="auto") for source in sources]
    for one, two in zip(*(shape.rows["occupancy"] for shape in shapes), strict=True):
        np.testing.assert_allclose(*(part[np.lexsort(part.T)] for part in (one, two)), atol=1e-12)
        assert not np.array_equal(one, one[np.lexsort(one.T)])  # in no order


def test_a_file_of_the_published_program_keeps_its_frame(tmp_path):
    points, inside = ball(800)
    where = ((points - CENTER) / 20).astype(np.float16)  # not up to the sides of the cube
    np.savez(tmp_path / "points.npz", points=where, occupancies=np.packbits(inside), loc=CENTER, scale=20.0)
    found, labels, similarity = labeled_points.read(tmp_path / "points.npz")
    assert labels.sum() == inside.sum() and found.dtype == np.float16
    np.testing.assert_allclose(similarity(CENTER[None] + 20), 1)


def test_points_in_memory_are_trained_on(tmp_path):
    points, inside = ball(500)
    first = jonet.train((points, inside), task="occnet", workdir=tmp_path / "run", **OPTIONS)
    assert first.history["data"] == "500 labeled points in memory"
    again = jonet.train((points, inside), task="occnet", workdir=tmp_path / "run", **OPTIONS)
    np.testing.assert_array_equal(again.codes.values, first.codes.values)
    with pytest.raises(JonetError, match="built from other shapes"):
        jonet.train((points, ~inside), task="occnet", workdir=tmp_path / "run", **OPTIONS)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ((np.zeros((3, 2)), np.zeros(3)), {}, r"points are float64 \[3, 2\]"),
        ((ball(9)[0], np.full(9, 0.5)), {}, "must be 0 .outside. or 1 .inside."),
        ((ball(9)[0], np.zeros(4)), {}, "4 occupancies, packed or not, do not belong to 9 points"),
        ((np.full((9, 3), np.nan), np.zeros(9)), {}, "9 points are not finite"),
        (ball(9), {"task": "deepsdf"}, "a pair of points and occupancies, which occnet learns from"),
        (ball(9), {"samples": {"occupancies": 7}}, "samples.occupancies is given, but not read"),
        ((ball(9)[0], np.zeros(9)), {}, "none are inside"),
    ],
)
@pytest.mark.filterwarnings("ignore:skipped")
def test_wrong_arrays_are_refused(data, options, words):
    with pytest.raises(JonetError, match=words):
        jonet.train(data, **{"task": "occnet", **OPTIONS, **options})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1,2,3\n4,5,6\n", "has 3 columns, but must have four"),
        ("1,2,3,a\n4,5,6,1\n7,8,b,1\n", "is no table of numbers"),
        ("", "has . columns|points are"),
        ("0,0,0,1\n0,0,0,0\n", "all points coincide"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, content, words):
    (tmp_path / "points.csv").write_text(content)
    with pytest.raises(JonetError, match=words):
        labeled_points.read(tmp_path / "points.csv")


def test_options_of_meshes_are_refused_with_a_file(tmp_path):
    points, inside = ball(100)
    np.savez(tmp_path / "a.npz", points=points, occupancies=inside)
    for option in ("--samples.occupancies=10", "--shapes.sign=winding"):
        with pytest.raises(ConfigError, match="is given, but not read: data are points with occupancies"):
            program.parse(["--task=occnet", f"--data={tmp_path / 'a.npz'}", option])
    with pytest.raises(JonetError, match="is no mesh; points with occupancies are data of --task=occnet"):
        jonet.train(tmp_path / "a.npz", task=registry.find("onet_points"))
