"""Scans as they are, of chairs that a network never saw: strays, outliers, a floor, uneven density, missing halves."""

import warnings

import numpy as np
import pytest
from chairs import QUICK, load_chairs

from jonet import bulk
from jonet.codes import Codes
from jonet.data import scans
from jonet.data.families import make
from jonet.data.sampling import surface
from jonet.data.sources import InMemory
from jonet.errors import ConfigError
from jonet.geometry import mesh_files
from jonet.geometry.mesh import Similarity, frame_of, normalize
from jonet.inference.fitting import parts
from jonet.model import Model

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def chairs():
    """The four of `load_chairs`, and the next one of their family."""
    found, mesh = load_chairs(), make("chair", 0, 68)
    points, normals = surface(normalize(mesh, "sphere")[0], 1000, np.random.default_rng(68))
    samples = scans.sampled(InMemory("chair", "test", mesh=mesh), "samples", "sphere").array("samples")
    found.points, found.normals = np.concatenate([found.points, [points]]), np.concatenate([found.normals, [normals]])
    found.held_out = [*found.held_out, np.random.default_rng(68).permutation(samples)[:3000]]
    return found


@pytest.fixture(scope="module")
def model(chairs):
    codes = Codes(chairs.codes, tuple(map(str, range(len(chairs.codes)))))
    return Model("deepsdf", chairs.network, "sphere", prior=chairs.prior, codes=codes, fitting=QUICK)


def overlap(model, codes, chairs) -> float:
    """The mean IoU of the fields of codes at the samples that were held out."""
    fields, scores = model.field(codes, frame="input"), []
    for i, rows in enumerate(chairs.held_out):
        ours, true = np.asarray(fields[i](rows[:, :3])) < 0, rows[:, 3] < 0
        scores.append((ours & true).sum() / (ours | true).sum())
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def fitted(chairs, model, tmp_path_factory):
    """Codes of clouds with normals, and their overlap with the true shapes."""
    folder = tmp_path_factory.mktemp("scans")

    def fit(damage, outliers=None, **options):
        points, normals = [], []
        for i, pair in enumerate(zip(chairs.points, chairs.normals, strict=True)):
            np.save(folder / f"{i}.npy", np.column_stack(damage(*(array.astype(np.float64) for array in pair))))
            with warnings.catch_warnings(action="ignore"):
                one = scans.read(folder / f"{i}.npy", outliers=outliers, **options)
            points.append(one.similarity.inverse()(one.points))
            normals.append(one.normals)
        with warnings.catch_warnings(action="ignore"):
            found = model.fit(points=points, normals=normals, frame="input", outliers="keep")
        return found, overlap(model, found, chairs)

    return fit


@pytest.fixture(scope="module")
def clean(fitted):
    return fitted(lambda points, normals: (points, normals))


def test_a_stray_point_changes_nothing(fitted, clean):
    found, iou = fitted(lambda points, normals: (np.r_[points, [[0, 30, 4]]], np.r_[normals, [[0, 1, 0]]]))
    np.testing.assert_array_equal(found.values, clean[0].values)
    assert found.similarities[0].as_array().tolist() == clean[0].similarities[0].as_array().tolist()
    assert iou == clean[1]


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_outliers_cost_little(fitted, clean, share):
    """Anywhere in the box and a tenth around it, so that they enlarge it, too."""
    rng = np.random.default_rng(0)

    def strewn(points, normals):
        reach = 0.1 * np.ptp(points, axis=0).max()
        count = round(share * len(points))
        anywhere = rng.uniform(points.min(0) - reach, points.max(0) + reach, (count, 3))
        aside = rng.normal(size=(count, 3))
        return np.r_[points, anywhere], np.r_[normals, aside / np.linalg.norm(aside, axis=1, keepdims=True)]

    assert fitted(strewn)[1] > clean[1] - 0.05
    if share == 0.05:
        assert fitted(strewn, outliers="keep")[1] < clean[1] - 0.05  # and more where they are kept


def floored(points, normals):
    floor = RNG.uniform(-1.3, 1.3, points.shape)
    floor[:, 1] = points[:, 1].min() + RNG.normal(0, 0.003, len(floor))
    return np.r_[points, floor], np.r_[normals, np.tile([0.0, 1, 0], (len(floor), 1))]


def test_a_floor_that_is_left_out_costs_little(fitted, clean):
    assert fitted(floored, remove_plane=True)[1] > clean[1] - 0.05
    assert fitted(floored)[1] < clean[1] - 0.25  # and much where it is not


def test_uneven_density_costs_little(fitted, clean):
    def thinned(points, normals):
        weight = np.exp(3 * points[:, 0])
        kept = RNG.choice(len(points), len(points) // 3, replace=False, p=weight / weight.sum())
        return points[kept], normals[kept]

    assert fitted(thinned)[1] > clean[1] - 0.05


HALVES = {"right": [1, 0, 0], "lower": [0, -1, 0], "oblique": [0.8, -0.5, 0.33]}
WORSE = {"right": 0.005, "lower": 0.02, "oblique": 0.02}  # the lower half of a chair may look like a stool


@pytest.mark.parametrize("side", HALVES)
def test_a_half_that_is_missing_is_completed_and_never_sure(chairs, model, fitted, side):
    def half(points, normals):
        height = points @ np.array(HALVES[side])
        return points[height > np.median(height)], normals[height > np.median(height)]

    found, iou = fitted(half)
    assert ((found.unseen > parts.PART) | found.out_of_distribution).all()
    pairs = [half(*pair) for pair in zip(chairs.points, chairs.normals, strict=True)]
    completed = model.complete([points for points, _ in pairs], normals=[normals for _, normals in pairs])
    assert iou > overlap(model, completed, chairs) - WORSE[side]
    if side == "right":  # which tells the most
        assert iou > 0.55 and (found.unseen > 0.2).all()


def test_whole_clouds_are_sure_and_keep_their_boxes(chairs, model, clean):
    assert clean[0].unseen.max() < 0.1 and clean[0].out_of_distribution.sum() == 1
    found = model.fit(points=chairs.points, normals=chairs.normals, frame="input")
    for points, similarity in zip(chairs.points, found.similarities, strict=True):
        np.testing.assert_array_equal(similarity.as_array(), frame_of(points, "sphere").as_array())


def test_parts_are_said(chairs, model):
    rows = chairs.points[2][:, 0] > 0  # which its fit as a whole does not find unlike the training shapes
    points, normals = [chairs.points[1], chairs.points[2][rows]], [chairs.normals[1], chairs.normals[2][rows]]
    with pytest.warns(UserWarning, match=r"^half: \d\d% of the surface is far from all points, so these are a part"):
        model.fit(points=points, normals=normals, frame="input", names=["whole", "half"])
    with pytest.warns(UserWarning, match=r"^half: \d\d% of the surface is far from all points, so these are a part"):
        model.fit(points=points, frame="input", names=["whole", "half"])
    known = model.fit(points=points[1:], normals=normals[1:], frame=[Similarity()])
    assert known.unseen is None and not known.out_of_distribution.any()
    assert (model.complete(points[1:], normals=normals[1:], similarities=[Similarity()]).unseen > 0.2).all()


def test_what_is_whole_is_not_looked_at(chairs, model, tmp_path):
    """And a half is then fitted in its own box, as it was before parts were known, without a warning."""
    rows = chairs.points[2][:, 0] > 0
    half = {"points": [chairs.points[2][rows]], "normals": [chairs.normals[2][rows]], "frame": "input"}
    with warnings.catch_warnings(action="error"):
        found = model.fit(**half, whole=True)
    box = frame_of(half["points"][0], "sphere")
    assert found.unseen is None
    np.testing.assert_array_equal(found.similarities[0].as_array(), box.as_array())
    np.save(tmp_path / "half.npy", np.column_stack([half["points"][0], half["normals"][0]]))
    bulk.fit(model, tmp_path / "half.npy", tmp_path / "codes.npz", whole=True)
    assert np.isnan(Codes.load(tmp_path / "codes.npz").unseen).all()
    with pytest.raises(ConfigError, match="other settings"):
        bulk.fit(model, tmp_path / "half.npy", tmp_path / "codes.npz")


def test_a_box_that_is_wrong_is_left_even_where_nothing_is_unseen(chairs, model):
    """A chair that is turned by 45° about the vertical: its points cover all of it, and stay doubtful."""
    turn = Similarity(rotation=[[0.5**0.5, 0, 0.5**0.5], [0, 1, 0], [-(0.5**0.5), 0, 0.5**0.5]])
    points, normals = turn(chairs.points[1]), chairs.normals[1] @ turn.rotation.T
    with pytest.warns(UserWarning, match="in the box around its points it is unlike the training shapes"):
        found = model.fit(points=[points], normals=[normals], frame="input")
    assert found.unseen[0] < parts.PART and found.out_of_distribution.all()
    fields = model.field(found, frame="input")
    rows = chairs.held_out[1]
    ours, true = np.asarray(fields[0](turn(rows[:, :3]))) < 0, rows[:, 3] < 0
    assert (ours & true).sum() / (ours | true).sum() > 0.6


def test_what_is_unseen_is_in_files_and_manifests(chairs, model, tmp_path):
    """Of clouds alone: a mesh says all of its shape."""
    (tmp_path / "scans").mkdir()
    rows = np.column_stack([40.0 * chairs.points[0] + [100, 0, -7], chairs.normals[0]])
    half = rows[rows[:, 0] > 100]
    np.save(tmp_path / "scans" / "half.npy", half)
    np.save(tmp_path / "scans" / "whole.npy", rows)
    mesh_files.write(make("chair", 0, 68), tmp_path / "scans" / "mesh.ply")
    bulk.fit(model, tmp_path / "scans", tmp_path / "codes.npz")
    found = Codes.load(tmp_path / "codes.npz")
    unseen = dict(zip(found.names, found.unseen.tolist(), strict=True))
    assert unseen["half"] > 0.2 and unseen["whole"] < 0.1 and np.isnan(unseen["mesh"])
    table = (tmp_path / "codes" / "manifest.csv").read_text()
    assert "half.npy,doubtful: " in table.replace('"', "") and table.count("of the surface unseen") == 1
    np.testing.assert_array_equal(found["whole"].similarities[0].as_array(), frame_of(rows[:, :3], "sphere").as_array())
    wanted = model.fit(points=[half[:, :3]], normals=[half[:, 3:]], frame="input")
    for one, other in zip(model.extract(found["half"], 32), model.extract(wanted, 32), strict=True):
        np.testing.assert_allclose(one.bounds, other.bounds, atol=8)  # of 64: what was not seen is guessed
