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
    "entities": (model(one(), "").replace("?>", '?><!DOCTYPE a [<!ENTITY b "c">]>'), "DOCTYPE"),
    "xml": ("<model>", "is no XML"),
    "empty": (model(one(), ""), "no vertices and no faces"),
    "number": (model(one().replace('x="', 'x="a'), '<item objectid="1"/>'), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named(name, tmp_path, recwarn):
    text, words = BAD[name]
    with pytest.raises(MeshError, match=words):
        read(written(tmp_path / "a.3mf", **{"3dmodel": text}))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_doctype_is_refused_in_every_encoding(encoding, tmp_path):
    head, rest = model(one(), '<item objectid="1"/>').replace("UTF-8", "UTF-16").split("?>", 1)
    for doctype in ('<!DOCTYPE a [<!ENTITY b "c">]>', ""):
        data = f"{head}?>{doctype}{rest}".encode(encoding)
        path = tmp_path / "a.3mf"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("3D/3dmodel.model", data)
        if doctype:
            with pytest.raises(MeshError, match="DOCTYPE"):
                read(path)
        elif encoding == "utf-16":
            with pytest.warns(UserWarning, match="inch"):
                assert read(path).volume == pytest.approx(8)


QUARTER = "0 1 0 -1 0 0 0 0 1"  # about z: x becomes y


def test_quarter_turns_of_items_and_of_components(tmp_path):
    """A box of 2 x 4 x 6 whose corner is the origin; rows of the matrix are what the axes become."""
    corners = (CUBE.vertices + 1) * [1, 2, 3]
    rows = "".join('<vertex x="{}" y="{}" z="{}"/>'.format(*row) for row in corners.tolist())
    box = f'<object id="1"><mesh><vertices>{rows}</vertices><triangles>{TRIANGLES}</triangles></mesh></object>'
    turned = np.column_stack([-corners[:, 1], corners[:, 0], corners[:, 2]]) + [10, 0, 0]
    path = tmp_path / "a.3mf"
    for resources, number, transform in ((box, 1, f"{QUARTER} 10 0 0"), (box, 2, "1 0 0 0 1 0 0 0 1 0 0 0")):
        inner = component(2, 1, f"{QUARTER} 10 0 0") if number == 2 else ""
        build = f'<item objectid="{number}" transform="{transform}"/>'
        with pytest.warns(UserWarning, match="inch"):
            found = read(written(path, **{"3dmodel": model(resources + inner, build)}))
        np.testing.assert_allclose(found.vertices, turned)
        assert found.volume == pytest.approx(48)
    build = f'<item objectid="2" transform="{QUARTER} 0 5 0"/>'  # the component first, then the item
    with pytest.warns(UserWarning, match="inch"):
        found = read(written(path, **{"3dmodel": model(box + component(2, 1, f"{QUARTER} 10 0 0"), build)}))
    np.testing.assert_allclose(found.vertices, np.column_stack([-turned[:, 1], turned[:, 0], turned[:, 2]]) + [0, 5, 0])


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
