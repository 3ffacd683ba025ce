"""Units that files name, that codes and fields keep, and GLB in meters."""

import dataclasses
import zipfile

import numpy as np
import pytest
import trimesh
from balls import Balls
from solids import CUBE

from jonet import __main__ as shell
from jonet import bulk
from jonet.bulk import work
from jonet.codes import Codes
from jonet.errors import CheckpointError, ConfigError, MeshError
from jonet.evaluation import metrics
from jonet.fields import Fields, Spline
from jonet.geometry import mesh_files, threemf, units
from jonet.geometry.mesh_files import read, write


@pytest.mark.parametrize("text, unit", [
    ("# units: mm\nv 0 0 0\n", "mm"), ("# exported\r\n# Unit = Inches\r\nv 0 0 0\n", "in"),
    ("#units millimeters\n", "mm"), ("# File units = meters\nv 0 0 0\n", "m"),
    ("# 3 units high\nv 0 0 0\n", None), ("v 0 0 0\n", None),
])  # fmt: skip
def test_units_of_an_obj(text, unit, tmp_path):
    (tmp_path / "a.obj").write_text(text)
    assert units.of_file(tmp_path / "a.obj") == unit


@pytest.mark.parametrize("attribute, unit", [(' unit="inch"', "in"), (" unit='micron'", "um"), ("", "mm")])
def test_units_of_a_3mf(attribute, unit, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.3mf", "w") as archive:
        archive.writestr("3D/3dmodel.model", f'<?xml version="1.0"?><model xml:lang="en"{attribute}></model>')
    assert units.of_file(tmp_path / "a.3mf") == unit


HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
INCH = "<model unit='inch'></model>"
PACKED = {  # by what a file holds, its parts and unit
    "another name": ({"3D/part.model": INCH}, "in"),
    "another part first": ({"3D/other/3dmodel.model": "<model unit='foot'/>", "3D/3dmodel.model": INCH}, "in"),
    "prefix": ({"3D/3dmodel.model": f"{HEAD}<m:model xmlns:m='a' unit='inch'></m:model>"}, "in"),
    "prefix without a unit": ({"3D/3dmodel.model": "<m:model xmlns:m='a'></m:model>"}, "mm"),
    "utf-16": ({"3D/3dmodel.model": INCH.encode("utf-16")}, "in"),
    "late": ({"3D/3dmodel.model": f"{HEAD}<!--{'a' * 100_000}--><model {' ' * 9000} unit='inch'></model>"}, "in"),
    "in a comment": ({"3D/3dmodel.model": f"<!-- <model unit='foot'> -->{INCH}"}, "in"),
    "unknown": ({"3D/3dmodel.model": "<model unit='mile'></model>"}, None),
    "doctype": ({"3D/3dmodel.model": f"<!DOCTYPE model>{INCH}"}, None),
    "no part": ({"a.txt": "a"}, None),
    "no xml": ({"3D/3dmodel.model": "unit='inch'"}, None),
}


@pytest.mark.parametrize("name", PACKED)
def test_the_unit_of_a_3mf_is_that_with_which_it_is_read(name, tmp_path):
    parts, unit = PACKED[name]
    with zipfile.ZipFile(tmp_path / "a.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        for part, text in parts.items():
            archive.writestr(part, text)
    assert units.of_file(tmp_path / "a.3mf") == unit
    said = []
    try:
        threemf.read(tmp_path / "a.3mf", said.append)
    except MeshError:
        assert unit is None
    else:
        assert units.NAMES[said[-1].split()[4].rstrip(",")] == unit


def test_other_files_name_none(tmp_path):
    (tmp_path / "a.3mf").write_bytes(b"PK\3\4")
    for name in ("a.3mf", "a.ply", "missing.obj"):
        assert units.of_file(tmp_path / name) is None


def test_glb_is_in_meters_and_others_keep_their_coordinates(tmp_path):
    for name, factor in {"a.glb": 0.0254, "a.ply": 1, "a.stl": 1}.items():
        found = read(write(CUBE, tmp_path / name, "in"))
        np.testing.assert_allclose(found.bounds, CUBE.bounds * factor, rtol=1e-6)
    np.testing.assert_array_equal(read(write(CUBE, tmp_path / "b.glb")).bounds, CUBE.bounds)


def test_units_without_effect_are_refused():
    work.check_units("mm", "glb")
    work.check_units(None, "ply")
    with pytest.raises(ConfigError, match="units is 'mm', but not used: of the formats only glb has a unit"):
        work.check_units("mm", "ply")
    with pytest.raises(ConfigError, match="units is 'mile'"):
        work.check_units("mile", "glb")


def test_scores_are_printed_with_the_unit():
    scores = {"iou": {"median": 0.5, "mean": 0.5}, "deviation_max": {"median": 2.0, "mean": 2.0}}
    assert metrics.table(scores, 1, "mm").splitlines()[-1].endswith("   mm")
    assert metrics.table(scores, 1).splitlines()[-1].endswith("   input units")


def test_codes_keep_the_unit_for_later_meshes(tmp_path):
    """A file's unit, or the given one; GLB is then in meters, other formats in input units."""
    ball = trimesh.creation.icosphere(3, 40.0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.obj").write_text("# units: mm\n" + ball.export(file_type="obj"))
    (tmp_path / "in" / "b.obj").write_text(ball.export(file_type="obj", header=None))
    for unit, wanted in ((None, ("mm", "")), ("cm", ("cm", "cm"))):
        folder = tmp_path / str(unit)
        bulk.fit(Balls(), tmp_path / "in", folder / "codes.npz", unit=unit)
        codes = Codes.load(folder / "codes.npz")
        assert codes.units == wanted and codes[[1]].units == wanted[1:]
        for kind, source in (("joined", folder / "codes.npz"), ("single", folder / "codes")):
            bulk.extract(Balls(), source, folder / kind, form="glb")
            for name, each in zip(("a", "b"), wanted, strict=True):
                size = np.ptp(read(folder / kind / f"{name}.glb").bounds, axis=0)
                np.testing.assert_allclose(size, 80 * units.METERS.get(each, 1.0), rtol=0.05)
        bulk.extract(Balls(), folder / "codes.npz", folder / "plain", form="ply")
        np.testing.assert_allclose(np.ptp(read(folder / "plain" / "a.ply").bounds, axis=0), 80, rtol=0.05)
    bulk.extract(Balls(), tmp_path / "None" / "codes.npz", tmp_path / "inches", form="glb", unit="in")
    for name in ("a", "b"):
        size = np.ptp(read(tmp_path / "inches" / f"{name}.glb").bounds, axis=0)
        np.testing.assert_allclose(size, 80 * 0.0254, rtol=0.05)


def test_files_of_codes_with_and_without_units(tmp_path):
    plain = Codes(np.zeros((2, 3), np.float32), ("a", "b"))
    plain.save(tmp_path / "plain.npz")
    assert Codes.load(tmp_path / "plain.npz").units is None
    known = Codes(np.zeros((1, 3), np.float32), ("c",), units=("ft",), unseen=np.array([0.25], np.float32))
    both = Codes.joined([plain, known])
    both.save(tmp_path / "both.npz")
    loaded = Codes.load(tmp_path / "both.npz")
    assert loaded.units == ("", "", "ft") and Codes.joined([plain, plain]).units is None
    np.testing.assert_array_equal(loaded.unseen, [np.nan, np.nan, 0.25])
    Codes(np.zeros((1, 3), np.float32), ("c",), units=("mile",)).save(tmp_path / "wrong.npz")
    with pytest.raises(CheckpointError, match="wrong.npz: a unit is 'mile', but must be one of um, mm"):
        Codes.load(tmp_path / "wrong.npz")


def test_fields_keep_the_unit(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.obj").write_text("# units: mm\n" + trimesh.creation.icosphere(2).export(file_type="obj"))
    mesh_files.write(CUBE, tmp_path / "in" / "b.ply")
    few = {"resolution": 32, "iterations": 1, "near": 4000, "uniform": 4000}
    bulk.represent(tmp_path / "in", tmp_path / "fields", options=few)
    assert Fields.load(tmp_path / "fields").units == ("mm", None)
    bulk.represent(tmp_path / "in", tmp_path / "inches", options=few, unit="in")
    field = Spline.load(tmp_path / "inches" / "b.npz")
    assert field.unit == "in"
    shell.main(["info", str(tmp_path / "inches" / "b.npz")])
    assert '"unit": "in"' in capsys.readouterr().out
    dataclasses.replace(field, unit="mile").save(tmp_path / "wrong.npz")
    with pytest.raises(CheckpointError, match="wrong.npz: its field is damaged .*'mile'"):
        Spline.load(tmp_path / "wrong.npz")
    with pytest.raises(ConfigError, match="units is 'mile'"):
        bulk.represent(tmp_path / "in", tmp_path / "miles", options=few, unit="mile")
