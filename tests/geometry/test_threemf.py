"""3MF files: objects, components and their transforms, units, parts by path, and what is damaged."""

import zipfile

import numpy as np
import pytest
from solids import CUBE

from jonet.errors import MeshError
from jonet.geometry.mesh_files import read

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
PATHS = "http://schemas.microsoft.com/3dmanufacturing/production/2015/06"
VERTICES = "".join('<vertex x="{}" y="{}" z="{}"/>'.format(*row) for row in CUBE.vertices.tolist())
TRIANGLES = "".join('<triangle v1="{}" v2="{}" v3="{}"/>'.format(*row) for row in CUBE.faces.tolist())
MESH = f"<mesh><vertices>{VERTICES}</vertices><triangles>{TRIANGLES}</triangles></mesh>"


def model(resources: str, build: str, unit: str = ' unit="inch"') -> str:
    head = f'<?xml version="1.0" encoding="UTF-8"?><model{unit} xmlns="{CORE}" xmlns:p="{PATHS}">'
    return f"{head}<resources>{resources}</resources><build>{build}</build></model>"


def written(path, **parts: str):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        for name, text in parts.items():
            archive.writestr(f"3D/{name}.model", text)
    return path


def one(kind: str = "model", number: int = 1) -> str:
    return f'<object id="{number}" type="{kind}">{MESH}</object>'


def component(number: int, other: int, transform: str) -> str:
    inner = f'<component objectid="{other}" transform="{transform}"/>'
    return f'<object id="{number}"><components>{inner}</components></object>'


def test_the_build_is_read_with_its_unit(tmp_path):
    path = written(tmp_path / "a.3mf", **{"3dmodel": model(one() + one(number=2), '<item objectid="1"/>')})
    with pytest.warns(UserWarning, match="a.3mf: its unit is the inch"):
        mesh = read(path)
    assert mesh.watertight and mesh.volume == pytest.approx(8)


def test_transforms_of_items_and_components(tmp_path):
    """One cube twice as long in x and moved, its mirror image, and a component within a component."""
    inner = component(2, 1, "1 0 0 0 1 0 0 0 1 5 0 0")
    outer = component(3, 2, "2 0 0 0 2 0 0 0 2 0 1 0")
    build = '<item objectid="1" transform="2 0 0 0 1 0 0 0 1 0 0 7"/>'
    build += '<item objectid="1" transform="-1 0 0 0 1 0 0 0 1 0 0 0"/>'
    path = written(tmp_path / "a.3mf", **{"3dmodel": model(one() + inner + outer, build + '<item objectid="3"/>', "")})
    with pytest.warns(UserWarning, match="its unit is the millimeter"):
        mesh = read(path)
    assert mesh.watertight and mesh.volume == pytest.approx(16 + 8 + 64)
    np.testing.assert_array_equal(mesh.vertices[:8], CUBE.vertices * [2, 1, 1] + [0, 0, 7])
    np.testing.assert_array_equal(mesh.vertices[16:], (CUBE.vertices + [5, 0, 0]) * 2 + [0, 1, 0])


def test_parts_by_path_and_supports(tmp_path):
    component = '<object id="9"><components><component p:path="/3D/other.model" objectid="4"/></components></object>'
    build = '<item objectid="9"/><item objectid="1"/>'
    parts = {"3dmodel": model(component + one("support"), build), "other": model(one(number=4), "")}
    with pytest.warns(UserWarning, match="1 of its objects is a support: left out"):
        assert read(written(tmp_path / "a.3mf", **parts)).volume == pytest.approx(8)


LOOP = '<object id="1"><components><component objectid="1"/><component objectid="1"/></components></object>'
BAD = {
    "loop": (model(LOOP, '<item objectid="1"/>'), "contain each other|so often"),
    "missing": (model(one(), '<item objectid="7"/>'), "refers to object '7'"),
    "path": (model(one(), '<item objectid="1" p:path="/3D/none.model"/>'), "refers to the part '3d/none.model'"),
    "index": (model(one().replace('v1="7"', 'v1="70"'), '<item objectid="1"/>'), "uses vertex 70 of 8"),
    "unit": (model(one(), "", ' unit="mile"'), "has the unit 'mile'"),
    "transform": (model(one(), '<item objectid="1" transform="1 2"/>'), "needs 12 numbers"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]>' + model(one(), ""), "DOCTYPE"),
    "xml": ("<model>", "is no XML"),
    "empty": (model(one(), ""), "no vertices and no faces"),
    "number": (model(one().replace('x="', 'x="a'), '<item objectid="1"/>'), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named(name, tmp_path, recwarn):
    text, words = BAD[name]
    with pytest.raises(MeshError, match=words):
        read(written(tmp_path / "a.3mf", **{"3dmodel": text}))


def test_other_files_are_no_3mf(tmp_path):
    (tmp_path / "a.3mf").write_bytes(b"PK\3\4 cut")
    with pytest.raises(MeshError, match="no 3MF file"):
        read(tmp_path / "a.3mf")
    with pytest.raises(MeshError, match="holds no part"):
        read(written(tmp_path / "b.3mf"))
    with zipfile.ZipFile(tmp_path / "bomb.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(10**8))
    with pytest.raises(MeshError, match="claims to unpack"):
        read(tmp_path / "bomb.3mf")
