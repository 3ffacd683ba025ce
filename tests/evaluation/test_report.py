"""The report of a run: its content, what it omits, and that figures agree with the numbers."""

import base64
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from jonet.errors import InputError
from jonet.evaluation import figures, gallery, report
from jonet.evaluation.measures import measure, number
from jonet.evaluation.report import Chart, Gallery, Map, Part, Report, Row, Slice, Table
from jonet.geometry.mesh import Mesh
from jonet.run import report_pages

EVIL = "<script>alert('&')</script>\"x"
NOTHING = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))


def ball(radius=0.5, center=(0, 0, 0), subdivisions=2):
    solid = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(solid.vertices + center, solid.faces, name="ball")


def row(name="one", iou=0.9, **parts):
    parts = {"ground_truth": ball(), "predicted": ball(0.49)} | parts
    return Row(name, [Part(kind, kind, thing) for kind, thing in parts.items()], {"iou": iou, "chamfer_l1": 0.01})


def full(name="a shape"):
    """Every field of a report, with `name` wherever a user's words may stand."""
    grid = np.zeros((4, 4, 4), bool)
    grid[1:3, 1:3, 1:3] = True
    inputs = [
        Part("input", name, ball().vertices[:50]),
        Part("input", name, grid),
        Part("input", name, np.full((20, 30, 3), 90, np.uint8)),
        Part("predicted", name, NOTHING),
        Part("train", name, None),
    ]
    return Report(
        title=name,
        summary=name,
        command=name,
        device=name,
        scores={name: {"iou": {"median": 0.9, "mean": 0.8}, name: {"median": 1.0}, "chamfer_l1": {"median": 0.0123}}},
        scores_note=name,
        galleries=[Gallery(name, [row(name), row(name, 0.5)], name), Gallery(name, [Row(name, inputs, {}, name)])],
        charts=[Chart(name, {name: (np.arange(9), 1 / (1 + np.arange(9)))}, x=name, note=name)],
        tables=[Table(name, [name, "b"], [[name, 1.5], [name, None]], name)],
        codes=Map(np.random.default_rng(0).normal(size=(5, 2)), [name] * 5, [name] * 5, [None] * 5, name),
        slices=[Slice(name, np.arange(9.0).reshape(3, 3) - 4, name, True)],
        skipped=[{"file": name, "reason": name}],
        notes=[name],
        seconds={name: 61.0},
        details={name: name, "rate": 0.5},
    )


@pytest.fixture
def quick(monkeypatch):
    """Pictures that cost nothing, where a test is not about them."""
    monkeypatch.setattr(gallery, "picture", lambda *_, **__: np.zeros((4, 4, 4), np.uint8))


def shapes_of(page):
    return json.loads(re.search(r'<script type="application/json" id="shapes">(.*?)</script>', page, re.S)[1])


# the page


def test_what_is_missing_leaves_no_section():
    page = report.render(Report("title"))
    assert "<section" not in page and "<dl" not in page and '<nav aria-label="sections"></nav>' in page
    page = report.render(Report("title", galleries=[Gallery("none", [])], charts=[Chart("flat", {"x": ([], [])})]))
    assert "<section" not in page


def test_each_field_has_its_section(quick):
    page = report.render(full())
    names = set(re.findall(r'<section id="([\w-]+)"', page))
    expected = {
        "viewer",
        "gallery-0",
        "gallery-1",
        "scores",
        "table-0",
        "training",
        "codes",
        "signs",
        "skipped",
        "notes",
        "run",
    }
    assert names == expected
    assert set(re.findall(r'<a href="#([\w-]+)"', page)) == expected


def test_words_of_users_are_escaped(quick):
    page = report.render(full(EVIL))
    assert "alert(" in page and EVIL not in page and "<script>alert" not in page
    assert len(re.findall("<script", page)) == 2  # the shapes and the page's own
    assert not re.search(r'(?:title|alt|aria-label|data-x)="[^"]*<', page)
    assert shapes_of(page)[0]["name"] == EVIL


def test_the_page_needs_no_network(quick):
    page = report.render(full())
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert addresses and all(a.startswith(("#", "data:")) for a in addresses)
    assert "http://" not in page and "https://" not in page and "@import" not in page and "fetch(" not in page


def test_the_same_report_gives_the_same_page():
    page = report.render(Report("t", galleries=[Gallery("g", [row()])]))
    assert page == report.render(Report("t", galleries=[Gallery("g", [row()])]))


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    path = report.write(tmp_path / "deep" / "report.html", Report("first"))
    before = path.read_text()
    monkeypatch.setattr(report, "render", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(path, Report("second"))
    assert path.read_text() == before and list(path.parent.iterdir()) == [path]


def test_sixteen_shapes_stay_small(quick):
    fine = ball(subdivisions=4)
    rows = [
        Row(str(k), [Part("ground_truth", "t", fine), Part("predicted", "m", fine), Part("train", "k", fine)])
        for k in range(16)
    ]
    page = report.render(Report("many", galleries=[Gallery("g", rows)]))
    assert 1e6 < len(page) < 4e6
    assert len(shapes_of(page)) == 16


@pytest.mark.slow
def test_a_browser_shows_the_shapes(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on this machine")
    path = report.write(tmp_path / "report.html", full())
    flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--dump-dom"]
    page = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert page.count("<option") == 3 and '<section id="viewer">' in page
    assert 'class="cursor"' in page  # the charts' script ran too


# rows


def test_best_median_and_worst_come_first():
    rows = [Row(str(v), [], {"iou": v}) for v in (0.5, 0.9, np.nan, 0.1, 0.7)]
    chosen = Gallery("g", rows).chosen()
    assert [(rank, r.name) for rank, r in chosen] == [
        ("best", "0.9"),
        ("median", "0.5"),
        ("worst", "nan"),
        ("2 of 5", "0.7"),
        ("4 of 5", "0.1"),
    ]
    low = Gallery("g", [Row(str(v), [], {"chamfer_l1": v}) for v in (3, 1, 2)], rank="chamfer_l1").chosen()
    assert [r.name for _, r in low] == ["1", "2", "3"]
    assert [rank for rank, _ in Gallery("g", rows, rank=None).chosen()] == [""] * 5


def test_few_of_many_rows_spread_over_the_ranks():
    rows = [Row(str(k), [], {"iou": -k}) for k in range(100)]
    names = [int(r.name) for _, r in Gallery("g", rows, pictures=8).chosen()]
    assert names[:3] == [0, 49, 99] and len(names) == 8
    assert names[3:] == sorted(names[3:]) and np.diff(names[3:]).min() > 15


def test_unknown_kinds_are_refused():
    with pytest.raises(InputError, match="ground_truth, predicted, input, train"):
        Row("a", [Part("guess", "g", None)])


def test_parts_become_panels(quick):
    page = report.render(full())
    shapes = shapes_of(page)
    assert [len(s["panels"]) for s in shapes] == [2, 2, 5]
    made, odd = shapes[0]["panels"], shapes[2]["panels"]
    assert all("e" in panel for panel in made)
    assert "f" not in odd[0] and "v" in odd[0]  # points
    assert "f" in odd[1] and "e" not in odd[1]  # blocks
    assert all("v" not in panel for panel in odd[2:])  # a picture, an empty mesh, nothing
    assert page.count('<div class="nothing">') == 2
    assert page.count('class="part error"') == 2


def test_rows_share_one_frame():
    ground_truth, made = ball(), ball(0.25)
    frame = figures.Frame.around(ground_truth.vertices, made.vertices)
    for mesh in (ground_truth, made):
        packed = figures.pack(mesh, frame, np.linspace(0, 1, len(mesh.vertices)))
        places = np.frombuffer(base64.b64decode(packed["v"]), "<u2").reshape(-1, 3) / 32767.5 - 1
        np.testing.assert_allclose(places * frame.radius + frame.middle, mesh.vertices, atol=2e-5)
        faces = np.frombuffer(base64.b64decode(packed["f"]), "<u2").reshape(-1, 3)
        np.testing.assert_array_equal(faces, mesh.faces)
        values = np.frombuffer(base64.b64decode(packed["e"]), "u1") / 255
        np.testing.assert_allclose(values, np.linspace(0, 1, len(mesh.vertices)), atol=0.003)


def test_simplified_meshes_keep_their_shape():
    fine = ball(subdivisions=5)
    coarse = figures.simplify(fine, 1000)
    assert len(coarse.faces) <= 1000 and coarse.watertight
    np.testing.assert_allclose(coarse.volume, fine.volume, rtol=0.02)
    soup = Mesh(fine.corners.reshape(-1, 3), np.arange(3 * len(fine.faces)).reshape(-1, 3))
    assert len(figures.simplify(soup, 10**6).vertices) == len(fine.vertices)


def test_refined_meshes_are_the_same_surface_in_smaller_faces():
    solid = trimesh.creation.box((1, 0.02, 0.3))  # slivers
    mesh = Mesh(solid.vertices, solid.faces)
    fine = figures.subdivide(mesh, 4000)
    assert 100 < len(fine.faces) <= 4000
    np.testing.assert_allclose([fine.volume, fine.area], [mesh.volume, mesh.area])
    assert np.linalg.norm(fine.corners - np.roll(fine.corners, 1, 1), axis=2).max() < 0.1
    assert len(figures.subdivide(mesh, 50).faces) == 50
    assert len(figures.subdivide(fine, 100).faces) == len(fine.faces)  # never fewer


# errors and slices


def test_errors_are_fractions_of_the_color_scale():
    values = figures.errors(ball(0.5), ball(0.51, subdivisions=4))
    np.testing.assert_allclose(values, 0.01 / (figures.ERROR_SCALE * 1.02), rtol=0.05)
    colors = figures.error_colors(np.array([0.0, 0.5, 1.0, 9.0]))
    np.testing.assert_array_equal(colors[2], colors[3])
    assert (colors[2, 0] > 2 * colors[2, 1]) and np.ptp(colors[0]) < 0.2


def test_differences_show_what_is_missing():
    both = Mesh(
        np.concatenate([ball(0.2).vertices, ball(0.2, (0.6, 0, 0)).vertices]),
        np.concatenate([ball(0.2).faces, ball(0.2).faces + len(ball().vertices)]),
    )
    mesh, colors = figures.differences(ball(0.2), both)
    missing = mesh.vertices[:, 0] > 0.3
    assert 0.1 < missing.mean() < 0.9
    np.testing.assert_allclose(colors[missing], figures.error_colors([1.0])[[0] * missing.sum()])
    np.testing.assert_allclose(colors[~missing], figures.error_colors([0.0])[[0] * (~missing).sum()], atol=1e-3)


def test_deviations_are_shown_in_input_units():
    """On rows that know their scale."""
    parts = [Part("ground_truth", "true", ball()), Part("predicted", "rebuilt", ball(0.49))]
    scores = {"iou": 0.9, "deviation_95": 12.3, "deviation_max": 45.6}
    shown = [Row("a", parts, scores, scale=0.001), Row("b", parts, scores), Row("c", parts, {"iou": 0.9}, scale=0.001)]
    page = report.render(Report("t", galleries=[Gallery("g", [one], rank=None) for one in shown]))
    assert page.count('class="part deviation"') == 1 and "deviation, input units" in page
    assert "<small>95 %: 12.3</small><small>45.6</small>" in page
    mesh, colors = figures.deviations(ball(0.49, subdivisions=4), ball(0.5, subdivisions=4), 0.02, 0.05)
    expected = figures.deviation_colors(np.full(len(mesh.vertices), 0.01), 0.02, 0.05)
    np.testing.assert_allclose(colors, expected, atol=0.02)


def test_colors_of_deviations_darken_evenly():
    colors = figures.deviation_colors([0, 0.5, 1, 1.5, 2, 6, 10, 11], 2, 10)
    luminance = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[:7]) < -0.02).all() and luminance[0] > 0.9
    np.testing.assert_array_equal(colors[7], colors[6])


def test_the_time_at_the_top_says_what_it_leaves_out():
    page = report.render(report.Report("mugs", seconds={"prepare": 60.0, "train": 180.0}))
    assert "4.0 min" in page and "time before this report" in page and "total time" not in page


def test_a_slice_goes_where_the_inside_is():
    def signed(points):  # a plate that stands upright, wide along z, with its middle above the origin
        return np.max(np.abs(points - [0.0, 0.3, 0.0]) - [0.05, 0.3, 0.6], axis=1)

    values = figures.section(signed, [[-1, -1, -1], [1, 1, 1]], 80)
    inside = values < 0
    assert abs(inside.mean() - 0.3 * 0.6) < 0.02
    rows = np.flatnonzero(inside.any(1))
    assert rows[0] == pytest.approx(40 - 0.6 * 40, abs=1) and rows[-1] == pytest.approx(39, abs=1)  # up is up
    picture = figures.slice_picture(values).astype(int)
    warm = picture[..., 0] > picture[..., 2]
    np.testing.assert_array_equal(warm, inside)
    np.testing.assert_array_equal(figures.slice_picture(inside)[..., 0] > figures.slice_picture(inside)[..., 2], inside)


# charts


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_ticks_hold_their_range(low, width):
    ticks = figures._ticks(low, low + width)
    slack = 1e-9 * (abs(low) + width)
    assert ticks[0] <= low + slack and ticks[-1] >= low + width - slack
    assert 2 <= len(ticks) <= 8


@settings(max_examples=100, deadline=None)
@given(low=st.floats(1e-9, 1e6), factor=st.floats(1, 1e9))
def test_logarithmic_ticks_hold_their_range(low, factor):
    ticks = figures._log_ticks(low, low * factor)
    assert ticks[0] <= low * 1.000001 and ticks[-1] >= low * factor * 0.999999 and 2 <= len(ticks) <= 14


def lines_of(html):
    import html as entities

    return json.loads(entities.unescape(re.search(r'data-lines="(.*?)"', html)[1]))


def test_a_chart_draws_what_it_was_given():
    html = figures.chart({"a": ([0, 50, 100], [1.0, 0.1, 0.01]), "b": ([0, 100], [0.1, np.nan])}, "step", log=True)
    a, b = lines_of(html)
    np.testing.assert_allclose(a["x"], [0, 0.5, 1])
    np.testing.assert_allclose(a["y"], [1, 0.5, 0], atol=1e-3)
    assert a["value"] == [1.0, 0.1, 0.01] and b["at"] == [0]
    assert figures.chart({"a": ([1, 2], [0.0, -1.0])}, "step", log=True) == ""  # nothing a logarithm could show
    assert figures.chart({"a": ([], [])}, "step", log=False) == ""
    assert "polyline" in figures.chart({"a": ([3], [5.0])}, "step", log=True)  # one point, and no division by zero


def test_long_curves_are_means_of_their_neighbors():
    x, y = figures._thin(np.arange(10_000.0), np.arange(10_000.0) % 2 + 1, log=True)
    assert len(x) <= 320
    np.testing.assert_allclose(y, 1.5, atol=0.02)
    assert (np.diff(x) > 0).all()


# codes


def test_every_code_is_on_the_map_and_images_do_not_overlap():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(80, 2))
    images = [np.zeros((4, 4, 4), np.uint8)] * 79 + [None]
    html = figures.scatter(points, [f"n{k}" for k in range(80)], ["old"] * 70 + ["new"] * 10, images)
    spots = {
        k: tuple(map(float, xy)) for *xy, k in re.findall(r'left:([\d.]+)%;top:([\d.]+)%"[^>]*title="n(\d+) ', html)
    }
    assert len(spots) == 80 and all(0 < v < 100 for xy in spots.values() for v in xy)
    tiles = re.findall(r"<img [^>]*left:([\d.]+)%;top:([\d.]+)%", html)
    assert 8 < len(tiles) < 80
    tiles = np.array(tiles, float) * [1, 0.68]
    gaps = np.abs(tiles[:, None] - tiles[None]).max(-1) + 100 * np.eye(len(tiles))
    assert gaps.min() > 0.8 * 7.5
    assert 'title="n79 (new)"></i>' in html  # without an image: a dot


def test_codes_on_a_plane():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(40, 2)) @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    spots, fraction = figures.plane(flat)
    assert fraction == pytest.approx(1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(spots[:, None] - spots[None], axis=-1), distances, atol=1e-9)
    assert figures.plane(np.ones((3, 1)))[0].shape == (3, 2)


# numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.94712, "0.947"),
        (0.00614, "0.0061"),
        (0.0, "0"),
        (5.93e-5, "5.9·10⁻⁵"),
        (12.345, "12.3"),
        (1843195, "1,843,195"),
        (2048.0, "2,048"),
        (float("nan"), "–"),
        (None, "–"),
        ("as it is", "as it is"),
        (1.0, "1"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_as_people_write_them(value, text):
    assert number(value) == text


def test_scores_stand_in_each_papers_units():
    scores = {"unseen": {"chamfer_l1": {"median": 0.0123}, "chamfer_l2": {"median": 0.0004}, "odd_one": {"median": 3}}}
    page = report.render(Report("t", scores=scores))
    section = re.search(r'<section id="scores">.*?</section>', page, re.S)[0]
    assert "0.123 median" in section and "ONet" in section and "0.400 median" in section and "DeepSDF" in section
    page = report.render(Report("t", scores={"unseen": {"hausdorff": {"median": 12.5}}}))
    assert "in input units" in page
    assert "Odd one" in section and measure("iou").better == 1 and measure("chamfer_l1").better == -1


def test_training_has_a_chart_of_every_metric_of_the_loss():
    steps = [
        {"step": i, "epoch": i, "gradient": 1.0, "rate": 9.0, "waited": 0.1, "seconds": 1.0, "same": 2.0 / i}
        | {"loss": 2.0 / i, "error": 1.0 / i, "prior": 0.0, "far_term": 0.5, "signed": -1.0 + i, "new": None}
        for i in range(1, 4)
    ]
    loss, *others = report_pages.charts(
        SimpleNamespace(validated="IoU", validated_loss=False), [*steps, {"step": 3, "validation": 0.4}]
    )
    assert list(loss.lines) == ["loss", "error"]
    assert [(chart.title, chart.log) for chart in others] == [
        ("Far term", True),
        ("Signed", False),
        ("Validation", False),
    ]
    assert others[0].lines == {"far_term": ([1, 2, 3], [0.5] * 3)}


def test_the_summary_says_if_the_baseline_is_better():
    def values(ours, theirs):
        return {
            name: {"iou": {"median": median}} if median is not None else {}
            for name, median in (("summary", ours), ("nearest", theirs))
        }

    def said(ours, theirs):
        found = values(ours, theirs)
        return report_pages.below_baseline({**found, "nearest": {"summary": found["nearest"]}})

    assert "median IoU of unseen shapes, 0.420, is below that of the baseline, 0.610" in said(0.42, 0.61)
    assert [said(*both) for both in ((0.7, 0.61), (0.61, 0.61), (None, 0.61), (0.42, None))] == [""] * 4


def test_a_score_that_only_a_task_knows_has_no_better_side():
    page = report.render(Report("t", scores={"shapes": {"holes": {"median": 2.0}, "iou": {"median": 0.5}}}))
    assert '<th scope="row">Holes<i></i></th>' in page and page.count("is better") == 1
