"""Representations compared: each gives back the shape that it was made from, and the errors are those meant."""

import dataclasses
import functools
import json
import sys
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
import trimesh

from experiments import document
from experiments.levels_of_detail import __main__ as levels
from experiments.levels_of_detail import clouds, grids, methods, report
from experiments.levels_of_detail.methods import Made, Method
from experiments.levels_of_detail.scores import Shape, Surface
from jonet.errors import ConfigError, MeshError
from jonet.geometry.inside import Inside
from jonet.geometry.mesh import Mesh

FEW = {"near": 20_000, "uniform": 2_000, "resolution": 64}


@functools.cache
def ball() -> Shape:
    """A sphere of diameter 1."""
    mesh = trimesh.creation.icosphere(3, 0.5)
    return Shape(Mesh(mesh.vertices, mesh.faces, name="ball"), 20_000)


@functools.cache
def ring() -> Shape:
    """A torus, of which lines in any direction hit several walls."""
    mesh = trimesh.creation.torus(0.35, 0.15, 32, 16)
    return Shape(Mesh(mesh.vertices, mesh.faces, name="ring"), 20_000)


@pytest.mark.parametrize(
    ("make", "iou", "chamfer", "degrees"),
    [
        (methods.bitmap(32), 0.88, 0.006, 30),
        (methods.truncated(32), 0.98, 0.002, 6),
        (methods.simplified(400), 0.96, 0.004, 8),
        (methods.of_mesh, 0.999, 1e-5, 0.1),
        (methods.splines(FEW), 0.99, 0.001, 4),
        (methods.splines_of_points({"cloud": 20_000}), 0.98, 0.002, 5),
        (methods.radial(32), 0.98, 0.002, 7),
        pytest.param(
            lambda shape: methods.of_mesh(clouds.poisson(shape)),
            *(0.97, 0.003, 5),
            marks=pytest.mark.skipif(bool(clouds.lacking()), reason="Poisson needs Open3D"),
        ),
    ],
    ids=["bitmap", "distances", "simplified", "mesh", "splines", "splines of points", "RBF", "Poisson"],
)
@pytest.mark.parametrize("shape", [ball, ring], ids=["ball", "ring"])
def test_what_is_read_back_is_the_shape(shape, make, iou, chamfer, degrees):
    shape = shape()
    made = make(shape.mesh if make is methods.of_mesh else shape)
    errors = shape.errors(made.surface())
    assert made.size > 0
    assert errors["iou"] > iou and errors["chamfer_l1"] < chamfer and errors["normals"] < degrees, errors


def test_bits_are_those_of_all_centers():
    """Runs of cells that the surface does not touch are tested once."""
    cells = grids.bits(ring(), 24)
    centers = (np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) / 24 - 0.5
    expected = ring().solid.inside(centers)
    assert expected.any()
    np.testing.assert_array_equal(grids.of_bits(cells, 24).inside(centers), expected)


def test_distances_are_those_of_all_nodes():
    """Blocks far from the surface are not computed node by node."""
    along = grids.nodes(24)
    points = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).reshape(-1, 3)
    limit = grids.TRUNCATED * (along[1] - along[0])
    expected = np.clip(ring().solid.distances(points), -limit, limit)
    assert (expected == limit).any() and (np.abs(expected) < limit).any()
    data = grids.distances(ring().solid, 24)
    np.testing.assert_array_equal(data, grids.packed(expected.reshape((24,) * 3), along[1] - along[0]))


def test_normals_of_distances_are_those_of_a_plane():
    along = grids.nodes(16)
    x, y, z = np.meshgrid(along, along, along, indexing="ij")
    data = grids.packed(0.6 * x - 0.8 * z, 1.0)
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 3))
    found = grids.of_distances(data, 16)
    np.testing.assert_allclose(found.normals(points), [[0.6, 0, -0.8]] * 50, atol=5e-3)
    np.testing.assert_array_equal(found.inside(points), points @ [0.6, 0, -0.8] < 0)


def test_errors_of_a_shape_moved_by_a_known_distance():
    """A box moved by a tenth of its side: IoU (1 - 0.1) / (1 + 0.1); its faces keep their directions."""
    box = trimesh.creation.box((1, 1, 1))
    shape = Shape(Mesh(box.vertices, box.faces), 100_000)
    same = Surface(shape.mesh, shape.solid.inside)
    assert shape.errors(same) == pytest.approx({"iou": 1.0, "chamfer_l1": 0.0, "normals": 0.0}, abs=1e-9)
    moved = Mesh(box.vertices + [0.1, 0, 0], box.faces)
    errors = shape.errors(Surface(moved, Inside(moved), lambda points: np.tile([[0.0, 0.0, 1.0]], (len(points), 1))))
    points, _ = shape.volume
    in_box = (np.abs(points - [0.1, 0, 0]) < 0.5).all(1)
    assert errors["iou"] == np.mean(in_box & (np.abs(points) < 0.5).all(1)) / np.mean(
        in_box | (np.abs(points) < 0.5).all(1)
    )
    assert errors["normals"] == pytest.approx(90, abs=1)  # 90° on four sides, 0° and 180° on two
    # one side is 0.1 away, the opposite one ∫ (1 - 2t)² dt to 0.1, and strips of 0.1 of four sides 0.05 in the mean
    assert errors["chamfer_l1"] == pytest.approx((0.1 + 0.0813 + 4 * 0.1 * 0.05) / 6, rel=0.05)


def test_nothing_is_scored_as_the_worst():
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    errors = ball().errors(Surface(empty, lambda points: np.zeros(len(points), bool)))
    assert errors == {"iou": 0.0, "chamfer_l1": 1.0, "normals": 90.0}


def test_meshes_keep_their_faces_and_coordinates_to_16_bits():
    read = methods.of_mesh(ring().mesh).surface().mesh
    assert read.watertight and len(read.faces) == len(ring().mesh.faces) and read.volume > 0
    assert np.abs(read.vertices - ring().mesh.vertices).max() <= 0.51 / methods.LEVELS


def test_open_meshes_are_refused(tmp_path):
    box = trimesh.creation.box()
    box.update_faces(np.arange(len(box.faces)) > 1)
    box.export(tmp_path / "open.ply")
    with pytest.raises(ConfigError, match="open edges"):
        Shape.of(str(tmp_path / "open.ply"), 100)


def test_shapes_can_be_subdivided():
    coarse, fine = (Shape.of("mug", 100, count) for count in (0, 1))
    assert len(fine.mesh.faces) == 4 * len(coarse.mesh.faces) and fine.mesh.watertight and fine.name == "mug"


def test_a_measurement_is_repeated_after_compilation():
    runs = []

    def make():
        runs.append(1)
        return Made(int(jax.jit(lambda x: x + len(runs) * 0 + size)(1)), lambda: None)  # a new function: compiled anew

    size = 3
    made, seconds = levels.timed(lambda: Made(1, lambda: None), 3)
    assert made.size == 1 and seconds["seconds"] >= 0 and seconds["elapsed"] >= 0
    levels.timed(make, 1)
    assert len(runs) == 1
    runs.clear()
    levels.timed(make, 3)
    assert len(runs) == 3


def failing(shape: Shape) -> Made:
    raise MeshError(f"{shape.name} is not closed any more")


def test_codes_share_a_decoder_and_its_cost(monkeypatch):
    """Each shape is that of its own code, and has its part of bytes and seconds."""
    full = methods.train.train

    def fast(meshes, preset, minutes, samples):
        assert preset == "small"
        samples = dataclasses.replace(samples, near=20_000, uniform=2_000)
        network = {"dims": (64,) * 3, "norm_layers": (), "latent_in": (), "latent_size": 4}
        return full(meshes, preset=preset, steps=400, samples=samples, network=network)

    monkeypatch.setattr(methods.train, "train", fast)
    shapes = [ball(), ring()]
    made = [make(shape) for make in [methods.codes(1.0, shapes)] for shape in shapes]
    assert made[0].size == made[1].size and made[0].seconds == made[1].seconds and 0 < made[0].size < 20_000
    for i, shape in enumerate(shapes):
        ious = [shape.errors(each.surface())["iou"] for each in made]
        assert ious[i] > 0.9 and ious[1 - i] < 0.7, (shape.name, ious)


def tiny(minutes: float, shapes) -> list[Method]:
    """Methods of which one does not leave these meshes closed, and one is not for shapes of few faces."""
    return [
        Method("bitmap", "8³", methods.bitmap(8)),
        Method("mesh", "400 faces", methods.simplified(400), faces=400),
        Method("mesh", "12 faces", failing),
        Method("mesh", "a million faces", methods.simplified(10**6), faces=10**6),
    ]


def test_the_program(tmp_path, monkeypatch, capsys):
    """Rows are kept, measured again if asked for, and written between the marks of the document."""
    page, figure = tmp_path / "results.md", tmp_path / "figure.svg"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(levels, "methods", tiny)
    monkeypatch.setattr(levels, "RESULTS", page)
    monkeypatch.setattr(levels, "FIGURE", figure)
    options = ["--shapes=mug,lamp", f"--out={tmp_path / 'out'}", "--points=1000", "--minutes=0"]
    assert levels.main(options) == 0
    stored = json.loads((tmp_path / "out" / "levels.json").read_text())
    assert list(stored["rows"]) == [
        f"{row}, {shape}" for shape in ("mug", "lamp") for row in ("bitmap, 8³", "mesh, 400 faces", "mesh, 12 faces")
    ]
    assert "not closed any more" in stored["rows"]["mesh, 12 faces, mug"]["error"]
    capsys.readouterr()
    assert levels.main([*options, "--write"]) == 0  # nothing is measured
    assert "bytes" not in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n") and "old" not in text
    assert "| bitmap | 8³ |" in text and "| mesh | 400 faces |" in text and "12 faces" not in text
    assert ElementTree.parse(figure).getroot().tag.endswith("svg")
    assert levels.main([*options, "--rows=mesh", "--again"]) == 0
    assert capsys.readouterr().out.count(" bytes, ") == 2


def test_without_open3d_poisson_is_left_out_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    clouds.lacking.cache_clear()
    assert "without Poisson" in clouds.lacking()
    assert "Poisson of points" not in {method.group for method in methods.methods(0, [])}
    monkeypatch.undo()
    clouds.lacking.cache_clear()


def test_impossible_options(capsys, tmp_path):
    assert levels.main([f"--out={tmp_path}", "--points=3"]) == 1
    assert "--points" in capsys.readouterr().err


ROW = {"group": "bitmap", "setting": "8³", "shape": "a", "bytes": 40, "seconds": 0.1}
ERRORS = {"iou": 0.5, "chamfer_l1": 0.03, "normals": 50.0}


def test_the_table_has_medians_and_the_worst():
    rows = [ROW | ERRORS | {"shape": name, "iou": iou} for name, iou in (("a", 0.5), ("b", 0.25), ("c", 0.75))]
    rows.append(ROW | ERRORS | {"setting": "16³", "bytes": 2_000_000, "seconds": 12.3})
    text = report.table(rows).splitlines()
    assert text[2] == "| bitmap | 8³ | 0.04 | 0.1 | 0.5000 | 0.2500 | 0.03000 | 50.0° |"
    assert text[3] == "| bitmap | 16³ (1 of 3 shapes) | 2,000 | 12 | 0.5000 | 0.5000 | 0.03000 | 50.0° |"


def test_better_rows_are_lower_and_larger_ones_farther_right():
    """In both panels, where ticks of the axes are at their values."""
    rows = [ROW | ERRORS | {"setting": f"{i}", "bytes": 10.0**i, "seconds": 10.0 ** (i - 3)} for i in range(2, 6)]
    rows = [row | {"iou": 1 - 10.0**-i} for i, row in enumerate(rows)]
    root = ElementTree.fromstring(report.svg(rows))
    circles = [each for each in root if each.tag.endswith("circle")]
    assert len(circles) == 2 * 4 + 1  # and the legend
    for panel in (circles[:4], circles[4:8]):
        x, y = ([float(circle.get(name)) for circle in panel] for name in ("cx", "cy"))
        assert x == sorted(x) and y == sorted(y)
    ticks = {each.text: float(each.get("x")) for each in root if each.get("text-anchor") == "middle"}
    assert ticks["1 kB"] == pytest.approx(float(circles[1].get("cx")), abs=0.1)
    assert all(0 <= value <= report.WIDTH for value in ticks.values())


def test_every_group_has_a_color():
    found = {method.group for method in methods.methods(1.0, [])} | {"Poisson of points"}
    assert found == set(report.COLORS)
    assert any(method.once for method in methods.methods(1.0, [])) and not any(m.once for m in methods.methods(0, []))


def test_the_whole_legend_is_in_the_picture():
    rows = [ROW | ERRORS | {"group": group} for group in report.COLORS]
    root = ElementTree.fromstring(report.svg(rows))
    places = [(float(each.get("x")), float(each.get("y"))) for each in root if each.text in report.COLORS]
    assert len(places) == len(report.COLORS)
    assert max(y for _, y in places) < report.HEIGHT - 5 and max(x for x, _ in places) < report.WIDTH - 100


def test_documents_without_marks_are_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ConfigError, match="lacks the mark"):
        document.write(page, "<!-- a -->", "<!-- b -->", "text")


def test_the_page_has_the_marks():
    text = levels.RESULTS.read_text("utf-8")
    assert text.index(report.BEGIN) < text.index(report.END) and levels.FIGURE.exists()
