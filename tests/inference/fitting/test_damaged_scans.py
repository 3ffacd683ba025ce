"""Scans as they are, of chairs that a network never saw: strays, outliers, a floor, uneven density, missing halves."""

import warnings

import numpy as np
import pytest
from chairs import QUICK, load_chairs

from jonet.codes import Codes
from jonet.data import scans
from jonet.data.families import make
from jonet.data.sampling import surface
from jonet.data.sources import InMemory
from jonet.geometry.mesh import normalize
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
def fitted(chairs, tmp_path_factory):
    """Codes of clouds with normals, and the mean IoU of their fields at the samples that were held out."""
    names = tuple(map(str, range(len(chairs.codes))))
    codes = Codes(chairs.codes, names)
    model = Model("deepsdf", chairs.network, "sphere", prior=chairs.prior, codes=codes, fitting=QUICK)
    folder = tmp_path_factory.mktemp("scans")

    def fit(damage, outliers=None, **options):
        points, normals = [], []
        for i, pair in enumerate(zip(chairs.points, chairs.normals, strict=True)):
            np.save(folder / f"{i}.npy", np.column_stack(damage(*(array.astype(np.float64) for array in pair))))
            with warnings.catch_warnings(action="ignore"):
                one = scans.read(folder / f"{i}.npy", outliers=outliers, **options)
            points.append(one.similarity.inverse()(one.points))
            normals.append(one.normals)
        found = model.fit(points=points, normals=normals, frame="input", outliers="keep")
        fields, scores = model.field(found, frame="input"), []
        for i, rows in enumerate(chairs.held_out):
            ours, true = np.asarray(fields[i](rows[:, :3])) < 0, rows[:, 3] < 0
            scores.append((ours & true).sum() / (ours | true).sum())
        return found, np.mean(scores)

    return fit


@pytest.fixture(scope="module")
def clean(fitted):
    return fitted(lambda points, normals: (points, normals))


def test_a_stray_point_changes_nothing(fitted, clean):
    found, iou = fitted(lambda points, normals: (np.r_[points, [[0, 30, 4]]], np.r_[normals, [[0, 1, 0]]]))
    np.testing.assert_array_equal(found.values, clean[0].values)
    assert found.similarities[0].as_array().tolist() == clean[0].similarities[0].as_array().tolist()
    assert iou == clean[1]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_outliers_cost_little(fitted, clean, share):
    """Anywhere in the box and a tenth around it, so that they enlarge it, too."""

    def strewn(points, normals):
        reach = 0.1 * np.ptp(points, axis=0).max()
        count = round(share * len(points))
        anywhere = RNG.uniform(points.min(0) - reach, points.max(0) + reach, (count, 3))
        aside = RNG.normal(size=(count, 3))
        return np.r_[points, anywhere], np.r_[normals, aside / np.linalg.norm(aside, axis=1, keepdims=True)]

    assert fitted(strewn)[1] > clean[1] - 0.05
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


def test_a_half_that_is_missing_is_doubtful(fitted):
    found, _ = fitted(lambda points, normals: (points[points[:, 0] > 0], normals[points[:, 0] > 0]))
    assert found.out_of_distribution.sum() >= 3  # of five
