"""PCD files in all forms, written here byte by byte, and their compression."""

import struct
import tracemalloc

import numpy as np
import pytest

from jonet.errors import FormatError
from jonet.geometry import point_cloud_files
from jonet.geometry.pcd import lzf

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((300, 3)).astype(np.float32)
NORMALS = (POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)).astype(np.float32)
TABLE = np.zeros(300, [("rgb", "<f4"), ("x", "<f4"), ("y", "<f8"), ("z", "<f4"), ("label", "<u2", 3)]
                 + [(f"normal_{axis}", "<f4") for axis in "xyz"])  # fmt: skip
for axis, column in zip("xyz", (*POINTS.T,), strict=True):
    TABLE[axis] = column
for axis, column in zip("xyz", (*NORMALS.T,), strict=True):
    TABLE[f"normal_{axis}"] = column
HEAD = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS rgb x y z label normal_x normal_y normal_z
SIZE 4 4 8 4 2 4 4 4
TYPE F F F F U F F F
COUNT 1 1 1 1 3 1 1 1
WIDTH 30
HEIGHT 10
VIEWPOINT 0 0 0 1 0 0 0
POINTS 300
DATA """


def packed(data: bytes) -> bytes:
    """LZF by literals only, but for one copy of what repeats."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def pcd(form: str) -> bytes:
    if form == "ascii":
        rows = ([row["rgb"], row["x"], row["y"], row["z"], *row["label"], *list(row)[5:]] for row in TABLE)
        return (HEAD + "ascii\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)).encode()
    if form == "binary":
        return (HEAD + "binary\n").encode() + TABLE.tobytes()
    columns = b"".join(TABLE[name].tobytes() for name in TABLE.dtype.names)
    body = packed(columns)
    return (HEAD + "binary_compressed\n").encode() + struct.pack("<II", len(body), len(columns)) + body


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_every_form(form, tmp_path):
    path = tmp_path / "scan.pcd"
    path.write_bytes(pcd(form))
    with pytest.warns(UserWarning, match="its columns rgb, label are left out"):
        found = point_cloud_files.read(path)
    np.testing.assert_allclose(found, np.column_stack([POINTS, NORMALS]), atol=1e-6)
    np.testing.assert_array_equal(point_cloud_files.read(path, 17), found[point_cloud_files.chosen(300, 17, 0)])


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_what_is_cut_off_is_refused(form, tmp_path):
    path = tmp_path / "scan.pcd"
    for size in (40, len(HEAD) + len(form) + 9, len(pcd(form)) - 40):
        path.write_bytes(pcd(form)[:size])
        with pytest.raises(FormatError, match="scan.pcd: .*cut off|scan.pcd: .*damaged"):
            point_cloud_files.read(path)


@pytest.mark.parametrize("old, new, words", [
    (b"POINTS 300", b"POINTS 3000000000", "announces 3,000,000,000 points"),
    (b"POINTS 300", b"", "cut off|damaged|^$"),
    (b"FIELDS rgb x", b"FIELDS rgb q", "without x, y and z"),
    (b"SIZE 4", b"SIZE 9", "unknown type"),
    (b"COUNT 1", b"COUNT 9999 1", "different lengths"),
    (b"COUNT 1 1 1 1 3", b"COUNT 1 1 1 1 999", "announces 300 points"),
    (b"COUNT 1 1 1 1 3", b"COUNT 1 1 1 9999 9999", "more than 10,000 numbers"),
    (b"DATA binary", b"DATA zip", "ascii, binary or binary_compressed"),
    (b"TYPE F F F F U F F F", b"", "has no TYPE"),
])  # fmt: skip
def test_headers_that_lie(old, new, words, tmp_path):
    path = tmp_path / "scan.pcd"
    path.write_bytes(pcd("binary").replace(old, new))
    if words.endswith("^$"):  # without POINTS, there are WIDTH times HEIGHT
        assert len(point_cloud_files.read(path)) == 300
        return
    with pytest.raises(FormatError, match=words):
        point_cloud_files.read(path)


def test_points_of_an_organised_camera_that_saw_nothing_are_left_out(tmp_path):
    table = TABLE.copy()
    table["x"][::10] = np.nan
    (tmp_path / "scan.pcd").write_bytes((HEAD + "binary\n").encode() + table.tobytes())
    with pytest.warns(UserWarning, match="30 of 300 rows hold numbers that are not finite: left out"):
        assert len(point_cloud_files.read(tmp_path / "scan.pcd")) == 270


def test_missing_numbers_of_other_runtimes(tmp_path):
    text = pcd("ascii").decode().splitlines()
    for word in ("nan", "-nan(ind)", "1.#QNAN"):
        row = text[-1].split()
        (tmp_path / "scan.pcd").write_text("\n".join([*text[:-1], " ".join([row[0], word, *row[2:]])]))
        with pytest.warns(UserWarning, match="1 of 300 rows holds numbers that are not finite"):
            assert len(point_cloud_files.read(tmp_path / "scan.pcd")) == 299


def test_copies_of_lzf():
    """Literals "abc", then a copy from 3 bytes back that overlaps itself, a long copy, and a distance of two bytes."""
    assert lzf(b"\x02abc" + bytes([(7 - 2) << 5, 2]), 10) == b"abcabcabca"
    assert lzf(b"\x00x" + bytes([7 << 5, 200 - 9, 0]), 201) == b"x" * 201
    far = bytes(range(256)) * 2
    assert lzf(packed(far) + bytes([(3 - 2) << 5 | 1, 0xFF]), 515) == far + far[:3]
    for damaged in (b"\x02ab", bytes([1 << 5, 0]), b"\x00x" + bytes([7 << 5]), b""):
        with pytest.raises(FormatError, match="do not unpack"):
            lzf(damaged, 3)


def test_long_words_take_no_memory(tmp_path):
    path = tmp_path / "scan.pcd"
    rows = ["0.5 1 2"] * 20_000
    head = HEAD.split("FIELDS")[0] + "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nPOINTS 20000\nDATA ascii\n"
    path.write_text(head + "\n".join([*rows[1:], "0." + "5" * 60_000 + " 1 2"]) + "\n")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="scan.pcd: has a word of 60002 characters where a number should be"):
            point_cloud_files.read(path)
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


def test_whole_numbers_below_zero(tmp_path):
    rows = np.random.default_rng(1).integers(-30_000, 30_000, (50, 3)).astype("<i2")
    head = HEAD.split("FIELDS")[0] + "FIELDS x y z\nSIZE 2 2 2\nTYPE I I I\nPOINTS 50\nDATA "
    bodies = {"ascii": "\n".join(" ".join(map(str, row)) for row in rows.tolist()).encode(), "binary": rows.tobytes()}
    body = packed(np.ascontiguousarray(rows.T).tobytes())
    bodies["binary_compressed"] = struct.pack("<II", len(body), rows.nbytes) + body
    for form, body in bodies.items():
        (tmp_path / "scan.pcd").write_bytes((head + form + "\n").encode() + body)
        np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "scan.pcd"), rows)
