"""Which clouds are searched as parts of shapes, and when what the search finds is taken."""

from types import SimpleNamespace

import numpy as np
import pytest
import trimesh

from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.fitting import parts
from jonet.inference.fitting.latents import Fit
from jonet.inference.fitting.pose import PoseFit


def fit(distance: float, odd: bool) -> Fit:
    """One code; its distance from the training codes is its only number."""
    nothing = np.zeros(1, np.float32)
    return Fit(np.array([[distance]], np.float32), nothing, nothing, np.ones(1, bool), np.array([odd]))


@pytest.mark.parametrize("oriented", [True, False])
@pytest.mark.parametrize(("whole", "part", "unseen", "searched", "taken"), [
    ((4.0, False), (4.0, False), (0.05, 0.4), False, False),  # sure as it is
    ((4.0, False), (3.0, False), (0.12, 0.4), True, True),
    ((8.0, True), (9.0, False), (0.0, 0.4), True, True),
    ((8.0, True), (7.9, True), (0.0, 0.4), True, False),  # as unlike the training shapes as before
    ((8.0, True), (7.0, True), (0.0, 0.4), True, True),
    ((8.0, True), (6.0, False), (0.12, 0.1), True, False),  # all of it was seen
    ((8.0, True), (5.5, False), (0.12, 0.1), True, True),  # but it is far more like the training shapes
    ((8.0, True), (5.5, True), (0.12, 0.1), True, False),
    ((8.0, False), (5.5, False), (0.12, 0.1), True, False),
])  # fmt: skip
def test_what_is_searched_and_what_is_taken(whole, part, unseen, searched, taken, oriented, monkeypatch):
    asked, answers = [], iter(unseen)

    def found(network, given, *_, **__):
        asked.append(given)
        return PoseFit(fit(*part), (Similarity(2.0),))

    monkeypatch.setattr(parts, "unseen", lambda *_: np.array([next(answers)], np.float32))
    monkeypatch.setattr(parts.pose, "fit_pose", found)
    prior = SimpleNamespace(distances=lambda codes: codes[:, 0])
    monkeypatch.setattr(parts, "prior_and_starts", lambda *_: (prior, None))
    cloud = np.ones((4, 3)), np.ones((4, 3)) if oriented else None
    result = parts.placed(None, [cloud], fit(*whole))
    assert len(asked) == searched and result.searched.tolist() == [taken]
    assert result.similarities[0].scale == (2.0 if taken else 1.0)
    assert result.fit.values[0, 0] == (part if taken else whole)[0]
    assert result.unseen[0] == pytest.approx(unseen[1] if taken else max(unseen) if searched else unseen[0])
    is_part = unseen[1] > parts.PART
    assert result.fit.out_of_distribution[0] == (part[1] or not is_part if taken else whole[1])
    for given in asked:
        assert (given.normals is not None) == oriented and len(given.free_space[0]) == 0


@pytest.mark.parametrize(("scale", "taken"), [(1.08, False), (1.1, True)])
def test_a_box_that_is_nearly_right_is_kept(scale, taken, monkeypatch):
    """The farthest point, √3 from the origin, moves by 0.14 or 0.17."""
    monkeypatch.setattr(parts, "unseen", lambda *_: np.array([0.4], np.float32))
    monkeypatch.setattr(parts.pose, "fit_pose", lambda *_, **__: PoseFit(fit(1.0, False), (Similarity(scale),)))
    monkeypatch.setattr(parts, "prior_and_starts", lambda *_: (SimpleNamespace(distances=lambda c: c[:, 0]), None))
    result = parts.placed(None, [(np.array([[1.0, 1, 1], [0, 0, 0]]), None)], fit(8.0, True))
    assert result.searched.tolist() == [taken]


def test_shapes_that_are_no_clouds_stay_as_they_are():
    result = parts.placed(None, [None], fit(9.0, True))
    assert np.isnan(result.unseen).all() and not result.searched.any() and result.fit.values[0, 0] == 9


def test_what_is_unseen_is_a_part_of_the_surface_and_all_of_none(monkeypatch):
    """Clouds of a whole ball and of its upper half; the third shape has no surface, the fourth no code."""
    ball = trimesh.creation.icosphere(4)
    mesh, nothing = Mesh(ball.vertices, ball.faces), Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    monkeypatch.setattr(parts.extraction, "extract", lambda *_, **__: [mesh, mesh, nothing])
    network = SimpleNamespace(fields=lambda codes: codes)
    points = trimesh.sample.sample_surface(ball, 4000, seed=0)[0]
    clouds = [points, points[points[:, 2] > 0], points, points]
    found = parts.unseen(network, np.array([[0.0], [1.0], [2.0], [np.nan]]), clouds)
    assert found[0] < 0.05 and 0.35 < found[1] < 0.55 and found[2:].tolist() == [1, 1]


def test_clouds_that_were_moved_are_said():
    found = parts.Placed(Fit(*[np.zeros(2)] * 5), [Similarity()] * 2, np.array([0.1, 0.42]), np.ones(2, bool))
    with pytest.warns(UserWarning) as caught:
        parts.warn(found, ["a", "b"])
    assert [str(one.message)[:9] for one in caught] == ["b: 42% of", "a: in the"]


def test_parts_are_said_where_no_likely_shape_was_found():
    found = parts.Placed(Fit(*[np.zeros(3)] * 5), [Similarity()] * 3, np.array([0.1, 0.42, 0.2]), np.zeros(3, bool))
    with pytest.warns(
        UserWarning, match=r"^b \(and 1 other shape\): 42% of the surface .* if these are a part"
    ) as caught:
        parts.warn(found, ["a", "b", "c"])
    assert len(caught) == 1
