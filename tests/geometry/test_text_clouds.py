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
}


@pytest.mark.parametrize("text", TEXTS, ids=[text[:24].split("\n")[0] for text in TEXTS])
def test_dialects(text, tmp_path, recwarn):
    path = tmp_path / "scan.txt"
    path.write_text(text)
    with_normals, said = TEXTS[text]
    found = point_cloud_files.read(path)
    np.testing.assert_array_equal(found[:, :3], POINTS)
    assert found.shape[1] == (6 if with_normals else 3)
    np.testing.assert_allclose(found[:, 3:], NORMALS[:, : 3 * with_normals], atol=1e-12)
    words = [str(warning.message) for warning in recwarn]
    assert len(words) == (said is not None) and all(said in one and str(path) in one for one in words)
    assert text_clouds.is_cloud(path)


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
