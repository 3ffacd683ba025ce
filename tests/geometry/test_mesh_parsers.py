"""Mesh files of other programs: dialects of PLY, OBJ, OFF and STL, polygons, and what is refused by name."""

import logging
import re
import struct
import warnings

import numpy as np
import pytest
from gltf_scenes import glb, scene
from solids import CUBE

from jonet.data import scans
from jonet.errors import FormatError, MeshError
from jonet.geometry.diagnosis import orient
from jonet.geometry.mesh_files import find, read, write
from jonet.geometry.polygons import strips

PLY = """ply
format {format} 1.0
comment made by hand
element vertex 5
property float x
property float y
property float z
element face {faces}
property uchar flags
property list uchar int vertex_indices
property float quality
element edge 1
property list uchar short both
end_header
"""
PYRAMID = np.array([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [1, 1, 2]], float)
POLYGONS = [[0, 3, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]
BODY_OFF = "\n".join(" ".join(map(str, row)) for row in PYRAMID.astype(int).tolist())


def pyramid_ply(order):
    if order == "ascii":
        rows = [f"7 {len(p)} {' '.join(map(str, p))} 0.5" for p in POLYGONS]
        return (PLY.format(format="ascii", faces=5) + "\n".join([BODY_OFF, *rows, "2 0 1", ""])).encode()
    sign = "<" if order == "little" else ">"
    rows = b"".join(struct.pack(f"{sign}BB{len(p)}if", 7, len(p), *p, 0.5) for p in POLYGONS)
    head = PLY.format(format=f"binary_{order}_endian", faces=5).encode()
    return head + PYRAMID.astype(sign + "f4").tobytes() + rows + struct.pack(sign + "Bhh", 2, 0, 1)


FACES_OFF = "\n".join(f"{len(p)} {' '.join(map(str, p))} 255 0 0" for p in POLYGONS)
FACES_OBJ = "\n".join("f " + " ".join(f"{i + 1}/1/1" for i in p) for p in POLYGONS)
BODY_OBJ = "\n".join("v " + line + " 0.5 0.5 0.5" for line in BODY_OFF.splitlines())
PYRAMIDS = {
    "ascii.ply": pyramid_ply("ascii"),
    "little.ply": pyramid_ply("little"),
    "big.ply": pyramid_ply("big"),
    "crlf.ply": pyramid_ply("ascii").replace(b"\n", b"\r\n"),
    "plain.off": f"OFF\n5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "glued.off": f"OFF5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "one_line.off": f"OFF 5 5 0\n{BODY_OFF}\n{FACES_OFF}".encode(),
    "commented.off": f"# a\nOFF # b\n\n5 5 0\n\n{BODY_OFF}\n# c\n{FACES_OFF}\n".replace("\n", "\r\n").encode(),
    "colored.off": f"COFF\n5 5 8\n{BODY_OFF}\n{FACES_OFF}".replace(" 0\n", " 0 9 9 9 9\n").encode(),
    "plain.obj": f"# mesh\nmtllib none.mtl\no a\n{BODY_OBJ}\nvt 0 0\nvn 0 0 1\ng b\nusemtl c\n{FACES_OBJ}".encode(),
    "crlf.obj": f"{BODY_OBJ}\n{FACES_OBJ} # end\n".replace("\n", "\r\n").encode(),
    "comment.obj": f"# path C:\\\n{BODY_OBJ} # \\\n# \\\r\n{FACES_OBJ}".encode(),
    "cr.obj": f"{BODY_OBJ}\n{FACES_OBJ}".replace("f 1/1/1 ", "f 1/1/1 \\\n").replace("\n", "\r").encode(),
    "cr.ply": pyramid_ply("ascii").replace(b"\n", b"\r"),
    "cr.off": f"OFF\n5 5 0\n{BODY_OFF}\n{FACES_OFF}".replace("\n", "\r").encode(),
    "relative.obj": f"{BODY_OBJ}\nf -5 -2 -3 \\\n-4\nf 1//1 2//1 5//1\nf 2 3 5\nf -3 -2 -1\nf 4 1 5".encode(),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_dialects_with_polygons(name, tmp_path):
    (tmp_path / name).write_bytes(PYRAMIDS[name])
    mesh = read(tmp_path / name)
    assert mesh.watertight and mesh.volume == pytest.approx(8 / 3) and len(mesh.faces) == 6
    np.testing.assert_array_equal(mesh.vertices, PYRAMID)


LEFT = {  # what follows the end of a file, or is no face, is not lost without a word
    "long.ply": (PYRAMIDS["little.ply"] + bytes(1), "1 byte after the elements that its header announces"),
    "long_ascii.ply": (PYRAMIDS["ascii.ply"] + b"7 7\n", "2 numbers after the elements"),
    "long.off": (PYRAMIDS["plain.off"] + b"\n3 0 1 2\n", "1 line after the vertices and faces"),
    "edges.obj": (
        PYRAMIDS["plain.obj"].replace(b"\nf ", b"\nf 1 2\nf ", 1),
        "1 of its faces has fewer than 3 corners",
    ),
    "edges.off": (
        PYRAMIDS["plain.off"].replace(b"5 5 0", b"5 7 0").replace(b"\n4 0 3", b"\n2 0 1\n4 0 3") + b"\n1 4",
        "2 of its faces have fewer than 3 corners",
    ),
    "edges.ply": (
        PYRAMIDS["ascii.ply"]
        .replace(b"face 5", b"face 7")
        .replace(b"\n7 4 0 3", b"\n7 2 0 1 0.5\n7 4 0 3")
        .replace(b"\n2 0 1\n", b"\n7 0 0.5\n2 0 1\n"),
        "2 of its faces have fewer than 3 corners",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_out_is_said(name, tmp_path):
    data, words = LEFT[name]
    (tmp_path / name).write_bytes(data)
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path / name}: ") + words):
        mesh = read(tmp_path / name)
    assert mesh.watertight and mesh.volume == pytest.approx(8 / 3)


TEXT_STL = b"solid a b\n" + b"".join(
    b"facet normal 0 0 0\nouter loop\n"
    + b"".join(b"vertex %r %r %r\n" % tuple(corner) for corner in corners)
    + b"endloop\nendfacet\n"
    for corners in CUBE.corners.tolist()
)


def stl(folder) -> bytes:
    return write(CUBE, folder / "cube.stl").read_bytes()


@pytest.mark.parametrize("name, change, said", [
    ("two bytes more", lambda data: data + bytes(2), "2 bytes after its 12 facets"),
    ("more than a facet", lambda data: data + bytes(53), "53 bytes after its 12 facets"),
    ("no count", lambda data: data[:80] + bytes(4) + data[84:], None),
    ("count of all bits", lambda data: data[:80] + b"\xff" * 4 + data[84:], "announces 4,294,967,295 facets, but"),
    ("count too low", lambda data: data[:80] + struct.pack("<I", 5) + data[84:], "announces 5 facets, but its length"),
    ("count too high", lambda data: data[:80] + struct.pack("<I", 13) + data[84:], "announces 13 facets, but its len"),
    ("begins as text", lambda data: b"solid cube facet vertex".ljust(80) + data[80:], None),
    ("text", lambda data: TEXT_STL + b"endsolid a b", None),
    ("another name", lambda data: TEXT_STL + b"endsolid " + b"x" * 500, None),
    ("no end", lambda data: TEXT_STL, None),
    ("end apart", lambda data: TEXT_STL.upper() + b"END SOLID\n", None),
    ("blank lines", lambda data: b" \r\n\n" + TEXT_STL + b"endsolid", None),
    ("blank lines in utf-16", lambda data: (b"\n\n" + TEXT_STL + b"endsolid").decode().encode("utf-16"), None),
    ("vertex", lambda data: TEXT_STL.replace(b"a b", b"a vertex and endfacet") + b"endsolid a vertex 1 2 3\n", None),
    ("one line", lambda data: (TEXT_STL + b"endsolid a").replace(b"\n", b" "), None),
    ("two solids", lambda data: TEXT_STL.replace(b"facet n", b"endsolid vertex\nsolid x\nfacet n") + b"endsolid", None),
    ("zeros at the end", lambda data: TEXT_STL + b"endsolid\n" + bytes(99), None),
    ("lines at the end", lambda data: TEXT_STL + b"endsolid\n" + b"by a program\n" * 99, None),
    ("commas", lambda data: TEXT_STL.replace(b".0", b",0") + b"endsolid", "decimal commas"),
    ("utf-16", lambda data: (TEXT_STL + b"endsolid").decode().encode("utf-16"), None),
])  # fmt: skip
def test_stl_files_are_read_by_their_length(name, change, said, tmp_path, recwarn):
    data = stl(tmp_path)
    (tmp_path / "a.stl").write_bytes(change(data))
    assert read(tmp_path / "a.stl").volume == pytest.approx(8)
    words = [str(warning.message) for warning in recwarn]
    assert len(words) == (said is not None) and all(said in one for one in words)


def test_stl_files_that_are_cut_off_between_facets_are_refused(tmp_path):
    """Their length is that of whole facets, too, but the mesh does not close."""
    data = stl(tmp_path)
    text = TEXT_STL[: TEXT_STL[:-20].rindex(b"facet normal")]
    for cut in (data[:-50], data[:-100], text):
        (tmp_path / "a.stl").write_bytes(cut)
        with pytest.raises(MeshError, match="cut off"):
            read(tmp_path / "a.stl")


SQUARE = "ply\nformat ascii 1.0\nelement {vertex} 4\nproperty float {x}\nproperty float y\nproperty float z\n"
SQUARE += "element {face} 1\nproperty list uchar int {corners}\nend_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"
NAMES = dict(vertex="vertex", x="x", face="face", corners="vertex_indices")


@pytest.mark.parametrize("names", [
    {"corners": "vertices"}, {"corners": "vert_indices"}, {"corners": "vertex_list"}, {"corners": "Indices"},
    {"corners": "loop"}, {"face": "faces"}, {"face": "polygon"}, {"face": "Triangle"}, {"vertex": "point"}, {"x": "X"},
])  # fmt: skip
def test_other_names_of_elements_and_lists(names, tmp_path):
    (tmp_path / "a.ply").write_text(SQUARE.format(**(NAMES | names)))
    mesh = read(tmp_path / "a.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_lists_of_elements_that_are_no_faces_are_said(tmp_path):
    (tmp_path / "a.ply").write_text(SQUARE.format(**(NAMES | {"face": "cells"})))
    with pytest.warns(UserWarning, match="a.ply: its elements '1 cells' are no faces that are known"):
        assert len(scans.cloud(tmp_path / "a.ply")) == 4


def test_faces_may_precede_their_vertices(tmp_path):
    head, body = SQUARE.format(**NAMES).split("end_header\n")
    start, faces = head.index("element vertex"), head.index("element face")
    polygon = "4 0 1 2 3\n"
    text = head[:start] + head[faces:] + head[start:faces] + "end_header\n" + polygon + body.removesuffix(polygon)
    (tmp_path / "a.ply").write_text(text)
    assert read(tmp_path / "a.ply").faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_strips_of_a_ply_are_triangles(tmp_path):
    """The octahedron as two strips in one list, which turn the same way round."""
    corners = [0, 2, 1, 3, 5, -1, 1, 5, 4, 3, 0, -1, 0, 4, 2, 5, -1, 4, 0, 1]
    points = "1 0 0\n0 1 0\n0 0 1\n-1 0 0\n0 -1 0\n0 0 -1\n"
    head = "ply\nformat ascii 1.0\nelement vertex 6\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    text = head + points + f"{len(corners)} {' '.join(map(str, corners))}\n"
    (tmp_path / "strips.ply").write_text(text)
    mesh = read(tmp_path / "strips.ply")
    np.testing.assert_array_equal(mesh.faces, strips(corners))
    (tmp_path / "strips.ply").write_text(text.replace(" 5 -1", " 9 -1"))
    with pytest.raises(MeshError, match="uses vertex 9"):
        read(tmp_path / "strips.ply")


@pytest.mark.parametrize("order", ["little", "big"])
def test_vertices_with_lists_of_different_lengths_are_read(order, tmp_path):
    sign = "<" if order == "little" else ">"
    head = f"ply\nformat binary_{order}_endian 1.0\nelement vertex 5\nproperty float x\nproperty float y\n"
    head += "property list uchar ushort views\nproperty float z\nelement face 5\nproperty list uchar int vertex_index\n"
    rows = [struct.pack(f"{sign}ffB{i}Hf", x, y, i, *range(i), z) for i, (x, y, z) in enumerate(PYRAMID)]
    rows += [struct.pack(f"{sign}B{len(p)}i", len(p), *p) for p in POLYGONS]
    (tmp_path / "views.ply").write_bytes(f"{head}end_header\n".encode() + b"".join(rows))
    mesh = read(tmp_path / "views.ply")
    np.testing.assert_array_equal(mesh.vertices, PYRAMID)
    assert mesh.volume == pytest.approx(8 / 3)


def star(corners: int) -> bytes:
    """An OBJ file of one polygon that crosses itself."""
    angle = np.arange(corners) * 2 * np.pi * (corners // 2 - 1) / corners
    lines = [f"v {x:.9f} {y:.9f} 0" for x, y in zip(np.cos(angle), np.sin(angle), strict=True)]
    return "\n".join([*lines, "f " + " ".join(map(str, range(1, corners + 1)))]).encode()


def test_polygons_of_very_many_corners_are_refused_if_they_cross_themselves(tmp_path):
    (tmp_path / "star.obj").write_bytes(star(20_001))
    with pytest.raises(MeshError, match="face 0 has 20001 corners and crosses itself"):
        read(tmp_path / "star.obj")


def test_polygons_that_are_not_convex_are_cut_inside_themselves(tmp_path):
    arrow = "v 0 0 0\nv 2 -2 1\nv 0 4 1\nv -2 -2 1\n"  # seen along z: a dart whose notch is the first vertex
    (tmp_path / "arrow.obj").write_text(arrow.replace(" 1\n", " 0\n") + "f 2 3 4 1\nf 3 4 1 2\n")
    mesh = read(tmp_path / "arrow.obj")
    assert len(mesh.faces) == 4 and mesh.area == pytest.approx(2 * 8)  # a fan from the third corner would cover 24
    assert (np.cross(*np.moveaxis(np.diff(mesh.corners, axis=1), 1, 0))[:, 2] > 0).all()


BAD = {
    "empty.ply": (b"", "empty"),
    "other.ply": (b"PK\3\4" + bytes(99), "no PLY file"),
    "header.ply": (PYRAMIDS["ascii.ply"][:150], "cut off in its header"),
    "cut.ply": (PYRAMIDS["little.ply"][:-9], "cut off in face element 4 of 5"),
    "cut_ascii.ply": (PYRAMIDS["ascii.ply"][:-30], "cut off"),
    "huge.ply": (PYRAMIDS["big.ply"].replace(b"face 5", b"face 900000000000"), "more than the file holds"),
    "negative.ply": (PYRAMIDS["big.ply"].replace(b"face 5", b"face -5"), "more than the file holds"),
    "words.ply": (PYRAMIDS["ascii.ply"].replace(b"2 2 0", b"2 x 0"), "damaged"),
    "type.ply": (PYRAMIDS["big.ply"].replace(b"property float x", b"property quad x"), "damaged"),
    "points.ply": (PYRAMIDS["ascii.ply"].split(b"element face")[0] + b"end_header\n" + b"0 0 0\n" * 5, "no faces"),
    "range.ply": (PYRAMIDS["ascii.ply"].replace(b"3 3 0 4", b"3 3 0 9"), "face 4 uses vertex 9"),
    "zero.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "counts from 1"),
    "range.obj": (PYRAMIDS["plain.obj"] + b"\nf 1 2 99999", "face 5 uses vertex 99998"),
    "cut.obj": (PYRAMIDS["plain.obj"] + b"\nf 1", "has 1 corners"),
    "cut_vertices.obj": (PYRAMIDS["plain.obj"][:60], "no faces"),
    "nan.obj": (PYRAMIDS["plain.obj"].replace(b"v 2 0 0", b"v nan 0 0"), "not all finite"),
    "long.obj": (PYRAMIDS["plain.obj"].replace(b"v 2 0 0", b"v " + b"2" * 99 + b" 0 0"), "word of 99 characters"),
    "flat.obj": (b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "no area"),
    "counts.off": (b"OFF\n4 -1 0\n", "announces"),
    "huge.off": (b"OFF\n4 99999999999999 0\n0 0 0\n", "announces"),
    "cut.off": (PYRAMIDS["plain.off"][:-20], "cut off"),
    "other.off": (b"solid", "does not begin with 'OFF'"),
    "short.stl": (bytes(80) + struct.pack("<I", 3) + bytes(100), "announces 3 facets, 234 bytes, but holds 184"),
    "huge.stl": (bytes(80) + b"\xff\xff\xff\xff" + bytes(100), "announces 4,294,967,295 facets"),
    "cut.stl": (b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0", "cut off after 0 facets"),
    "tiny.stl": (b"abc", "announces"),
    "empty_ascii.ply": (b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "no vertices and no faces"),
    "flat.ply": (PYRAMIDS["ascii.ply"].replace(b"property float z\n", b""), "vertices without x, y and z"),
    "long_names.ply": (PYRAMIDS["ascii.ply"].replace(b"float z", b"float " + b"z" * 9999), "without x, y and z.{,99}$"),
    "no_list.ply": (PYRAMIDS["ascii.ply"].replace(b"list uchar int v", b"int v"), "without a list vertex_indices"),
    "two.obj": (PYRAMIDS["plain.obj"] + b"\nf 1 2", "face 5 has 2 corners"),
    "cut.glb": (b"glTF\2\0\0\0\x20\1\0\0", "cut off"),
    "other.glb": (b"not a mesh", "damaged"),
    "no.gltf": (b"{}", "no vertices and no faces"),
    "half.gltf": (b'{"asset": {"ver', "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_files_are_named_with_their_cause(name, tmp_path):
    data, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MeshError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_reading_makes_no_noise(tmp_path, capfd, caplog):
    for name, data in PYRAMIDS.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "scene.glb").write_bytes(glb(scene([{"mesh": 0}])))
    (tmp_path / "broken.glb").write_bytes(glb(scene([{"mesh": 7}])))
    with warnings.catch_warnings(action="error"), caplog.at_level(logging.WARNING):
        for path in find(tmp_path):
            try:
                orient(read(path))
            except MeshError:
                assert path.name == "broken.glb"
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.obj", "a.ply", "a.npy", "a.xyz"])
def test_files_that_cannot_be_opened_are_not_called_damaged(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(PYRAMIDS["little.ply"])
    for error, words in (
        (PermissionError(13, "Permission denied"), "a.*: cannot be read: Permission denied$"),
        (MemoryError(), "a.*: needs more memory to be read than there is"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "open", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            patch.setattr(type(tmp_path), "read_bytes", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            with pytest.raises((MeshError, FormatError), match=words):
                scans.read(tmp_path / name)
