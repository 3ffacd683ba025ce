"""Text files as other programs write them: byte order marks, UTF-16, line ends; and UTF-8 in all that jonet writes."""

import ast
import codecs
import json

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from jonet.bulk.manifest import OK, Manifest, Row
from jonet.data import scans, splits
from jonet.errors import FormatError, MeshError
from jonet.formats import onet_samples
from jonet.geometry import depth, mesh_files, point_cloud_files
from jonet.geometry.mesh import Mesh
from jonet.storage import archives

SOURCES = sorted([*ROOT.glob("jonet/**/*.py"), *ROOT.glob("experiments/**/*.py")])
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32")

VERTICES = np.array([[9, 8, 7], [0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])  # no face uses the first one
FACES = np.array([[1, 3, 2], [1, 2, 4], [1, 4, 3], [2, 3, 4]])
NUMBERS = "\n".join(" ".join(map(str, row)) for row in VERTICES.tolist())
TEXTS = {
    ".obj": "\n".join(
        [f"v {' '.join(map(str, v))}" for v in VERTICES.tolist()]
        + [f"f {' '.join(str(i + 1) for i in f)}" for f in FACES.tolist()]
    ),
    ".off": f"OFF\n5 4 0\n{NUMBERS}\n" + "\n".join(f"3 {a} {b} {c}" for a, b, c in FACES.tolist()),
    ".ply": "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
    f"element face 4\nproperty list uchar int vertex_indices\nend_header\n{NUMBERS}\n"
    + "\n".join(f"3 {a} {b} {c}" for a, b, c in FACES.tolist()),
    ".stl": "solid s\n"
    + "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in corners)
        + "endloop\nendfacet\n"
        for corners in VERTICES[FACES].tolist()
    )
    + "endsolid s\n",
}


def encoded(text: str, encoding: str, newline: str = "\n") -> bytes:
    mark = {"utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")  # the other codecs write one themselves
    return mark + text.replace("\n", newline).encode(encoding)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", TEXTS)
def test_meshes_in_any_encoding(suffix, encoding, newline, tmp_path):
    path = tmp_path / f"mesh{suffix}"
    path.write_bytes(encoded(TEXTS[suffix], encoding, newline))
    found = mesh_files.read(path)
    np.testing.assert_array_equal(found.vertices[found.faces], VERTICES[FACES])


def test_a_binary_header_that_looks_like_a_mark(tmp_path):
    """The first 80 bytes of a binary STL may be anything."""
    mesh_files.write(Mesh(VERTICES, FACES), tmp_path / "a.stl")
    plain = (tmp_path / "a.stl").read_bytes()
    for mark in archives.MARKS:
        (tmp_path / "a.stl").write_bytes(mark + plain[len(mark) :])
        assert len(mesh_files.read(tmp_path / "a.stl").faces) == 4


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_clouds_in_any_encoding(encoding, newline, tmp_path):
    points = np.random.default_rng(0).standard_normal((50, 3))
    text = "# a scan\n" + "\n".join(" ".join(map(repr, row)) for row in points.tolist())
    (tmp_path / "scan.xyz").write_bytes(encoded(text, encoding, newline))
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "scan.xyz"), points)
    kept = point_cloud_files.chosen(50, 7, 0)
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "scan.xyz", 7), points[kept])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_normals_of_an_ascii_cloud_stay_behind_a_mark(encoding, tmp_path):
    rows = "\n".join(f"{i} {i * i} {i % 3} 0 0 1" for i in range(9))
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    text = f"ply\nformat ascii 1.0\nelement vertex 9\n{names}end_header\n{rows}\n"
    (tmp_path / "scan.ply").write_bytes(encoded(text, encoding))
    assert scans.read(tmp_path / "scan.ply").kind == ("points", "normals")
    assert point_cloud_files.read(tmp_path / "scan.ply").shape == (9, 6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_and_settings_in_any_encoding(encoding, tmp_path):
    (tmp_path / "test.lst").write_bytes(encoded("Stühle/a\nb\n", encoding, "\r\n"))
    assert splits.read(tmp_path / "test.lst") == ["Stühle/a", "b"]
    (tmp_path / "test.json").write_bytes(encoded('{"s": {"c": ["ä"]}}', encoding))
    assert splits.read(tmp_path / "test.json") == ["s/c/ä"]
    (tmp_path / "metadata.yaml").write_bytes(encoded("'01': {id: '01', name: Stühle}\n", encoding))
    assert onet_samples.read_metadata(tmp_path / "metadata.yaml") == {"Stühle": "01"}
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "view.png")
    (tmp_path / "view.json").write_bytes(encoded('{"fx": 4, "fy": 5, "cx": 2, "cy": 2}', encoding))
    assert depth.read(tmp_path / "view.png").camera.focal == (4, 5)


def test_text_that_is_cut_off_within_a_character(tmp_path):
    for name, read in (("a.lst", splits.read), ("a.obj", mesh_files.read), ("a.xyz", point_cloud_files.read)):
        (tmp_path / name).write_bytes(encoded("1 2 3\n", "utf-16")[:-1])
        with pytest.raises((FormatError, MeshError), match=name):
            read(tmp_path / name)


def test_a_manifest_that_a_spreadsheet_has_saved(tmp_path):
    """With a mark and other line ends: its rows still count."""
    manifest = Manifest(tmp_path)
    manifest.add(Row("Stühle/ä.ply", OK, 0.5, 1.0, 2.0, "ä.ply", "settings", {"sha256": "1"}, {"sha256": "2"}))
    before = manifest.rows()
    text = manifest.path.read_text("utf-8")
    manifest.path.write_bytes(encoded(text, "utf-8-sig", "\r\n"))
    assert Manifest(tmp_path).rows() == before and "Stühle/ä.ply" in before
    Manifest(tmp_path).mend()
    assert manifest.path.read_text("utf-8") == text


# Written


def without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the locale."""
    function, named = call.func, {keyword.arg for keyword in call.keywords}
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name in ("read_text", "write_text"):
        return owner != "atomic" and not (call.args[name == "write_text" :] or "encoding" in named)
    if name == "open" and owner in ("", "io"):
        mode = [a.value for a in [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]]
        return "b" not in (mode[0] if mode else "r") and "encoding" not in named
    if name == "open" and owner.endswith(("path", "file", "folder")):
        return not any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args[:1]) and (
            "encoding" not in named
        )
    text = any(k.arg in ("text", "universal_newlines") and getattr(k.value, "value", True) for k in call.keywords)
    return name in ("run", "Popen", "check_output", "TextIOWrapper") and text and "encoding" not in named


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_has_an_encoding_whatever_the_locale(path):
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    ours = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}  # `open` of stores
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") not in ours]
    assert not [f"line {call.lineno}: {ast.unparse(call)[:60]}" for call in calls if without_encoding(call)]


@pytest.mark.parametrize(
    "code, bad",
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("atomic.write_text(path, text)", False),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, 'rb')", False),
        ("open(path, mode='r', encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('rb')", False),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, text=True, encoding='utf-8')", False),
        ("subprocess.run(words)", False),
    ],
)
def test_a_missing_encoding_is_seen(code, bad):
    assert without_encoding(ast.parse(code).body[0].value) == bad


def test_files_are_utf8_in_every_locale(tmp_path):
    """Names and JSON with letters that ASCII lacks, as bytes."""
    splits.write(tmp_path / "a.lst", ["Stühle/→"])
    assert (tmp_path / "a.lst").read_bytes() == "Stühle/→".encode()
    splits.write(tmp_path / "a.json", ["s/c/→"])
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == {"s": {"c": ["→"]}}
