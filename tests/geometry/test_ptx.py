"""PTX files of one and several scans, written here line by line, and what is refused."""

import numpy as np
import pytest

from jonet.data import scans
from jonet.errors import FormatError
from jonet.geometry import point_cloud_files

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-5, 5, (60, 3)).round(4)
QUARTER = [[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [100, 20, 3, 1]]  # x y z 1 from the left: a turn, then a shift
IDENTITY = np.eye(4, dtype=int).tolist()


def scan(points, matrix, columns=6, colors=False, end="\n") -> str:
    rows = [[f"{value:.4f}" for value in point] + ["0.500000"] + ["10 20 30"] * colors for point in points]
    head = [[columns], [len(points) // columns], matrix[3][:3], *[row[:3] for row in matrix[:3]], *matrix]
    return "".join(" ".join(map(str, row)) + end for row in head + rows)


def turned(points):
    return np.column_stack([-points[:, 1] + 100, points[:, 0] + 20, points[:, 2] + 3])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("colors", [True, False])
def test_points_are_in_the_common_frame(colors, end, tmp_path):
    path = tmp_path / "scan.ptx"
    path.write_text(scan(POINTS, QUARTER, colors=colors, end=end), newline="")
    left_out = "intensity, red, green, blue are" if colors else "intensity are"
    with pytest.warns(UserWarning, match=f"scan.ptx: its columns {left_out} left out"):
        found = point_cloud_files.read(path)
    np.testing.assert_allclose(found, turned(POINTS), atol=1e-9)


def test_scans_of_one_file_are_one_cloud(tmp_path):
    """Directions without a return are no points, in whatever way their zeros are written."""
    path, points = tmp_path / "two.PTX", POINTS.copy()
    points[::7] = 0
    text = scan(points, IDENTITY) + "\n" + scan(POINTS[:30], QUARTER, 5)
    path.write_text(text.replace("0.0000 0.0000 0.0000", "0 -0.0 0", 3))
    with pytest.warns(UserWarning, match="its 2 scans are one cloud, in their common frame"):
        found = point_cloud_files.read(path)
    wanted = np.concatenate([points[points.any(1)], turned(POINTS[:30])])
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    kept = point_cloud_files.read(path, 20)
    np.testing.assert_array_equal(kept, found[point_cloud_files.chosen(len(wanted), 20, 0)])
    np.testing.assert_array_equal(scans.cloud(path), found)
    assert scans.find(tmp_path) == [path]


def test_what_is_cut_off_is_refused(tmp_path):
    path, text = tmp_path / "scan.ptx", scan(POINTS, QUARTER) + scan(POINTS, IDENTITY)
    whole = scan(POINTS, QUARTER)
    for size in (0, 3, 20, len(whole) // 2, len(whole) - 40, len(whole) + 5, len(text) // 2 + 50, len(text) - 40):
        path.write_text(text[:size])
        with pytest.raises(FormatError, match="scan.ptx: .*(cut off|damaged|is empty)"):
            point_cloud_files.read(path)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("6\n10\n", "60000\n100000\n", "announces 6,000,000,000 points in scan 1, but .* it is cut off"),
    ("6\n10\n", "6\n99\n", "cut off"),
    ("6\n10\n", "6 10\n", "must with its numbers of columns and rows"),
    ("6\n10\n", "-6\n10\n", "begins scan 1 with '-6'"),
    ("6\n10\n", "6\n9\n", "begins scan 2 with"),
    ("100 20 3 1\n", "100 20 3\n", "no scanner position, three axes and matrix"),
    ("100 20 3 1\n", "100 20 3 2\n", "last column is not 0 0 0 1"),
    ("100 20 3 1\n", "nan 20 3 1\n", "last column is not 0 0 0 1"),
    ("0 0 1 0\n", "0 0 0 0\n", "matrix of scan 1 that is singular"),
    (" 0.500000\n", "\n", None),
    ("0.500000\n", "x\n", None),
    (f"{POINTS[9, 1]:.4f}", "abc", "a line in scan 1 that is no point"),
    (f"{POINTS[9, 0]:.4f} {POINTS[9, 1]:.4f} {POINTS[9, 2]:.4f} ", "", "a line in scan 1 that is no point"),
])  # fmt: skip
def test_what_lies_or_is_no_scan(old, new, words, tmp_path):
    path, text = tmp_path / "scan.ptx", scan(POINTS, QUARTER)
    assert old in text
    path.write_text(text.replace(old, new))
    if words is None:  # intensities are not read, and may lack
        assert len(point_cloud_files.read(path)) == 60
        return
    with pytest.raises(FormatError, match=words):
        point_cloud_files.read(path)


def test_nonsense_is_refused(tmp_path):
    path = tmp_path / "scan.ptx"
    for content in (b"", b"\n\n", b"solid", RNG.bytes(4000), b"9" * 5000, b"1\n1\n" + b"\n" * 50, b"\0" * 999):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="scan.ptx: "):
            point_cloud_files.read(path)
