"""Units that files name, and GLB in meters."""

import zipfile

import numpy as np
import pytest
from solids import CUBE

from jonet.bulk import work
from jonet.errors import ConfigError, MeshError
from jonet.evaluation import metrics
from jonet.geometry import threemf, units
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
