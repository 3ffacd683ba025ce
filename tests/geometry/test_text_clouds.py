"""Point clouds as text: separators, headers, names of columns, missing numbers, and lines that are no rows."""

import numpy as np
import pytest

from jonet.errors import FormatError
from jonet.geometry import point_cloud_files, text_clouds

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((40, 3)).round(4)
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
COLORS = RNG.integers(0, 256, (40, 3))


def table(*columns, separator=" ", comma=False) -> str:
    rows = np.column_stack(columns).tolist()
    words = [[repr(number).replace(".", "," if comma else ".") for number in row] for row in rows]
    return "".join(separator.join(row) + "\n" for row in words)


IDS = np.arange(40)
TEXTS = {  # text, whether its normals are read, what is said
    "//X Y Z\n" + table(POINTS): (False, None),
    "x,y,z\n" + table(POINTS, separator=","): (False, None),
    '"X","Y","Z"\n' + table(POINTS, separator=","): (False, None),
    "scan of 3 May\nunits: m\n\n40\n" + table(POINTS): (False, None),
    table(POINTS, separator=", "): (False, None),
    table(POINTS, separator="\t"): (False, None),
    table(POINTS, separator=" \t "): (False, None),
    table(POINTS, separator=";").replace("\n", ";\n"): (False, None),
    "X [m];Y [m];Z [m]\n" + table(POINTS, separator=";", comma=True): (False, "decimal commas"),
    table(POINTS, separator=" ", comma=True): (False, "decimal commas"),
    table(POINTS, NORMALS): (True, None),
    table(POINTS, COLORS): (False, "only the first 3 of its 6 columns are read (4 to 6 are no unit normals)"),
    table(POINTS, COLORS / 255): (False, "only the first 3 of its 6 columns are read (4 to 6 are no unit normals)"),
    "40\n" + table(POINTS, IDS, COLORS): (False, "only the first 3 of its 7 columns are read"),
    table(POINTS, IDS): (False, "only the first 3 of its 4 columns are read"),
    table(POINTS, NORMALS, COLORS): (True, "only the first 6 of its 9 columns are read"),
    "id,x,y,z\n" + table(IDS, POINTS, separator=","): (False, "its columns id are left out"),
    "//X Y Z R G B Nx Ny Nz\n" + table(POINTS, COLORS, NORMALS): (True, "its columns R, G, B are left out"),
    "# nx ny nz pos_x pos_y pos_z\n" + table(NORMALS, POINTS): (True, None),
    "Label\tX/Easting\tY/Northing\tZ/Altitude\n" + table(IDS, POINTS, separator="\t"): (False, "its columns Label are"),
    "Label\tX (m)\tY (m)\tZ (m)\tFehler\n"
    + "".join(f"pt{i}\t{x}\t{y}\t{z}\t\n" for i, (x, y, z) in enumerate(POINTS.tolist())): (False, "its columns Label"),
    "northing,easting,height\n" + table(POINTS[:, [1, 0, 2]], separator=","): (False, None),
    "Points:0,Points:1,Points:2\n" + table(POINTS, separator=","): (False, None),
    "x y z nx ny nz\n" + table(POINTS, 2 * NORMALS): (True, "its normals are up to 1 off unit length: normalized"),
    table(POINTS, NORMALS * 1.04): (True, "its normals are up to 0.04 off unit length: normalized"),
    table(POINTS) + "1 2\nend\n": (False, "2 lines have no row of numbers: left out"),
    table(POINTS) + "1.#QNAN 1 2\n": (False, "1 of 41 rows holds numbers that are not finite: left out"),
    table(POINTS, separator=",") + ",,\n1,,2\n": (False, "2 of 42 rows hold numbers that are not finite: left out"),
    "name,x,y,z\n" + "".join(f"a b,{x}D0,{y},{z}\n" for x, y, z in POINTS.tolist()): (False, "its columns name are"),
    # a header may consist of numbers
    ",0,1,2\n" + table(IDS, POINTS, separator=","): (False, "its columns (unnamed) are left out"),
    "0,1,2\n" + table(POINTS, separator=","): (False, None),
    "0,1,2,3,4,5\n" + table(POINTS, NORMALS, separator=","): (True, None),
    ",0,1,2,3,4,5\n" + table(IDS, POINTS, NORMALS, separator=","): (True, "its columns (unnamed) are left out"),
    "40 3 1\n" + table(POINTS): (False, "its line '40 3 1' tells the number of rows, and is no point"),
    "7 3 1\n" + table(POINTS, COLORS): (False, "only the first 3 of its 6 columns are read"),
    "7 3 1\n" + table(POINTS, separator=","): (False, None),
    '"x" "y" "z"\n' + "".join(f'"{i}" {x} {y} {z}\n' for i, (x, y, z) in enumerate(POINTS.tolist(), 1)): (
        False,
        "(unn",
    ),
    "\t0\t1\t2\n" + table(IDS, POINTS, separator="\t").replace(".0\t", "\t"): (False, "its columns (unnamed) are left"),
    # columns 4 to 6 are normals only if nothing is said of them
    "x,y,z,r,g,b\n" + table(POINTS, np.tile([1.0, 0, 0], (40, 1)), separator=","): (False, "its columns r, g, b are"),
    "x y z nothing is said\n" + table(POINTS, NORMALS): (False, "its columns nothing, is, said are left out"),
    "# x y z and the normal\n" + table(POINTS, NORMALS): (True, None),
    "x y z i j k\n" + table(POINTS, NORMALS): (True, None),
    # other words for the axes
    "id,x_coord,y_coord,z_coord\n" + table(IDS, POINTS, separator=","): (False, "its columns id are left out"),
    "a,b,c,d\n" + table(POINTS, IDS, separator=","): (
        False,
        "its columns 'a, b, c' are taken for x, y, z|only the first 3 of its 4",
    ),
    "a,b,c\n" + table(POINTS, separator=","): (False, "its columns 'a, b, c' are taken for x, y, z"),
    # decimal commas
    table(POINTS, separator=", ", comma=True): (False, "decimal commas"),
    "X, Y, Z, N\n" + table(POINTS, IDS / 4, separator=", ", comma=True): (
        False,
        "decimal commas|its columns N are left",
    ),
}
ZERO = {  # files whose first row of numbers has no comma: separator, and the first row
    "0;0;0\n": ";", "0\t0\t0\n": "\t", "0 0 0\n": " ", "0, 0, 0\n": ", ", "0,5; 0; 0\n": "; ",
}  # fmt: skip


@pytest.mark.parametrize("first", ZERO)
def test_decimal_commas_from_the_second_row_on(first, tmp_path):
    path = tmp_path / "scan.txt"
    path.write_text(first + table(POINTS, separator=ZERO[first], comma=True))
    with pytest.warns(UserWarning, match="its numbers have decimal commas") as caught:
        found = point_cloud_files.read(path)
    assert len(caught) == 1
    np.testing.assert_array_equal(found, [[0.5 * ("5" in first), 0, 0], *POINTS])


def test_commas_of_other_columns_are_no_decimal_ones(tmp_path, recwarn):
    path = tmp_path / "scan.csv"
    path.write_text("x;y;z;label\n" + "".join(f"{x};{y};{z};1,5\n" for x, y, z in POINTS.tolist()))
    np.testing.assert_array_equal(point_cloud_files.read(path), POINTS)
    assert [str(one.message).removeprefix(f"{path}: ") for one in recwarn] == ["its columns label are left out"]


@pytest.mark.parametrize("text", [
    "0 1 2\n3 4 5\n6 7 8\n9 10 11\n", "0,1,2\n0,1,3\n0,1,4\n0,1,5\n", "5 3 1\n1 2 3\n4 5 6\n7 8 9\n5 5 5\n1 1 1\n",
    "1, 2, 3\n1, 2, 4\n1, 5, 3\n9, 2, 3\n", "0 1 7\n0.5 0.5 0.5\n1.5 0.5 0\n2.5 1 0\n",
])  # fmt: skip
def test_a_first_row_of_whole_numbers_is_a_point(text, tmp_path, recwarn):
    path = tmp_path / "scan.xyz"
    path.write_text(text)
    rows = [[float(word) for word in line.replace(",", " ").split()] for line in text.splitlines()]
    np.testing.assert_array_equal(point_cloud_files.read(path), rows)
    assert not recwarn


def test_xyzrgb_has_no_normals(tmp_path):
    path = tmp_path / "scan.xyzrgb"
    path.write_text(table(POINTS, np.tile([1.0, 0, 0], (40, 1))))
    with pytest.warns(UserWarning, match="only the first 3 of its 6 columns are read"):
        np.testing.assert_array_equal(point_cloud_files.read(path), POINTS)


@pytest.mark.parametrize("text", TEXTS, ids=[text[:30].replace("\n", " ") for text in TEXTS])
def test_dialects(text, tmp_path, recwarn):
    path = tmp_path / "scan.txt"
    path.write_text(text)
    with_normals, said = TEXTS[text]
    found = point_cloud_files.read(path)
    np.testing.assert_array_equal(found[:, :3], POINTS)
    assert found.shape[1] == (6 if with_normals else 3)
    np.testing.assert_allclose(found[:, 3:], NORMALS[:, : 3 * with_normals], atol=1e-12)
    words = [str(warning.message) for warning in recwarn]
    expected = [] if said is None else said.split("|")
    assert len(words) == len(expected)
    assert all(part in one and str(path) in one for part, one in zip(expected, words, strict=True))
    assert text_clouds.is_cloud(path) or "are taken for" in str(said)


def test_rows_are_thinned_as_in_every_format(tmp_path):
    path = tmp_path / "scan.csv"
    path.write_text("i,x,y,z\n# more\n" + table(IDS, POINTS, separator=","))
    with pytest.warns(UserWarning):
        found = point_cloud_files.read(path, 7)
    np.testing.assert_array_equal(found, POINTS[point_cloud_files.chosen(40, 7, 0)])


def test_zero_normals_of_some_points_leave_these_out(tmp_path):
    normals = NORMALS.copy()
    normals[3], normals[5] = 0, np.nan
    path = tmp_path / "scan.xyz"
    path.write_text(table(POINTS, normals))
    with pytest.warns(UserWarning, match="2 of 40 points have normals that are zero or not finite: left out"):
        found = point_cloud_files.read(path)
    np.testing.assert_array_equal(found[:, :3], np.delete(POINTS, [3, 5], axis=0))


def test_up_to_half_of_the_lines_may_be_none(tmp_path):
    (tmp_path / "scan.xyz").write_text("1 2 3\n" * 6 + "a\n" * 5)
    with pytest.warns(UserWarning, match="5 lines have no row of numbers: left out"):
        assert len(point_cloud_files.read(tmp_path / "scan.xyz")) == 6


@pytest.mark.parametrize("text, words", [
    ("5\nmethane\n" + "".join(f"C {x} {y} {z}\n" for x, y, z in POINTS.tolist()), "no row of three numbers .* 'C "),
    ("", "empty"),
    ("a\n\n", "no row of three numbers in its first 1 line"),
    ("1 2 3\n" * 5 + "a\n" * 6, "6 lines of 11 have no row of numbers, such as 'a'"),
    ("1 2 3\n" * 3, "at least 4 rows"),
])  # fmt: skip
def test_text_without_rows_is_refused(text, words, tmp_path):
    path = tmp_path / "scan.xyz"
    path.write_text(text)
    with pytest.raises(FormatError, match=words) as caught:
        point_cloud_files.read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_cloud(tmp_path):
    for name, text in {"readme.txt": "Chairs, 2026\n\nThree scans.\n", "index.csv": "name,faces\na,3\nb,4\n"}.items():
        (tmp_path / name).write_text(text)
        assert not text_clouds.is_cloud(tmp_path / name)
