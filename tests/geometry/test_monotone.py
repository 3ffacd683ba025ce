"""Large polygons are cut into triangles that cover them, in steps of the order of n log n."""

import sys

import numpy as np
import pytest

from jonet.geometry import monotone
from jonet.geometry.mesh_files import read


def star(radius) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def comb(count: int) -> np.ndarray:
    top = np.array([[i, 1 + 3 * (i % 2)] for i in range(count // 2)], float)
    return np.concatenate([top * [1, 0] - [0, 1], top[::-1]])


def spiral(count: int) -> np.ndarray:
    angle = np.linspace(0, 12 * np.pi, count // 2)
    turn = np.column_stack([np.cos(angle), np.sin(angle)])
    return np.concatenate([(2 + angle)[:, None] * turn, ((1 + angle)[:, None] * turn)[::-1]])


def area(points: np.ndarray) -> float:
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def check(points: np.ndarray) -> None:
    """n - 2 triangles of the polygon's winding, whose areas add up to its own, and which have its edges."""
    found = monotone.triangles(points)
    assert found.shape == (len(points) - 2, 3)
    a, b, c = points[found.T]
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert areas.min() > -1e-9 and areas.sum() == pytest.approx(area(points))
    edges = np.concatenate([found[:, [0, 1]], found[:, [1, 2]], found[:, [2, 0]]])
    outer = {(int(a), int(b)) for a, b in edges} - {(int(b), int(a)) for a, b in edges}
    assert outer == {(i, (i + 1) % len(points)) for i in range(len(points))}


@pytest.mark.parametrize("seed", range(40))
def test_stars_of_any_size(seed):
    rng = np.random.default_rng(seed)
    check(star(0.2 + rng.random(rng.integers(3, 200))))


@pytest.mark.parametrize("points", [
    comb(40), comb(1001), spiral(300), spiral(1000), comb(40)[:, ::-1][::-1], star(np.ones(100)),
    np.array([[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [2, 1], [1, 1], [0, 1.0]]),  # corners on straight sides
    np.array([[0, 0], [4, 0], [4, 4], [3, 1], [2, 4], [1, 1], [0, 4.0]]),  # several of equal height
])  # fmt: skip
def test_known_polygons(points):
    check(points)


def test_polygons_that_cross_themselves_are_told():
    assert monotone.triangles(np.array([[0, 0], [1, 1], [1, 0], [0, 1.0]])) is None
    assert monotone.triangles(star(np.ones(101))[np.arange(101) * 50 % 101]) is None
    assert monotone.triangles(comb(40)[::-1]) is None  # clockwise
    assert monotone.triangles(np.zeros((2, 2))) is None


def steps(points: np.ndarray) -> int:
    """Lines of the module that run."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != monotone.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        monotone.triangles(points)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", [comb, spiral, lambda n: star(0.5 + np.random.default_rng(n).random(n))])
def test_steps_grow_no_faster_than_n_log_n(shape):
    small, large = steps(shape(200)), steps(shape(1600))
    assert large / small < 8 * np.log(1600) / np.log(200) * 1.1


def test_an_obj_of_a_large_polygon(tmp_path):
    flat = comb(30_000)
    lines = [f"v {x} {y} {x + 2 * y}" for x, y in flat.tolist()]
    (tmp_path / "a.obj").write_text("\n".join([*lines, "f " + " ".join(map(str, range(1, len(flat) + 1)))]))
    mesh = read(tmp_path / "a.obj")
    assert len(mesh.faces) == 29_998 and mesh.area == pytest.approx(np.sqrt(6) * area(flat))
