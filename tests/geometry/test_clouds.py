"""Point cloud files: every format gives the same rows, subsampled while reading; damage and colors are reported."""

import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from jonet.data import scans
from jonet.errors import FormatError, MeshError
from jonet.geometry import cloud_rows, mesh_parsers, point_cloud_files
from jonet.storage import archives

KINDS = ("npy", "npz", "packed.npz", "xyz", "ascii.ply", "little.ply", "big.ply")


def ball(count: int):
    rng = np.random.default_rng(count)
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals * 3 + [10, 0, 5]).astype(np.float32), normals.astype(np.float32)


def write(path, kind: str, points, normals):
    rows = np.column_stack([points, normals])
    if kind == "npy":
        np.save(path, rows)
    elif kind == "npz":
        np.savez(path, points=points, normals=normals)
    elif kind == "packed.npz":
        np.savez_compressed(path, normals=normals, points=points)
    elif kind == "xyz":
        lines = [" ".join(map(repr, row)) for row in rows.tolist()]
        path.write_text("# x y z and a normal\n\n" + "\n".join(lines) + "\n")
    else:
        form = {"ascii.ply": "ascii", "little.ply": "binary_little_endian", "big.ply": "binary_big_endian"}[kind]
        names = ("x", "y", "z", "red", "nx", "ny", "nz")
        head = ["ply", f"format {form} 1.0", "comment scanned", f"element vertex {len(rows)}"]
        head += [f"property {'uchar' if name == 'red' else 'float'} {name}" for name in names] + ["end_header\n"]
        order = ">" if form.endswith("big_endian") else "<"
        table = np.zeros(len(rows), [(name, "u1" if name == "red" else order + "f4") for name in names])
        for name, column in zip(("x", "y", "z", "nx", "ny", "nz"), rows.T, strict=True):
            table[name] = column
        body = table.tobytes()
        if form == "ascii":
            body = "".join(" ".join(map(repr, row)) + "\n" for row in table.tolist()).encode()
        path.write_bytes("\n".join(head).encode() + body)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cloud_rows, "CHUNK", 128)
    points, normals = ball(1000)
    path = tmp_path / f"ball.{kind}"
    write(path, kind, points, normals)
    np.testing.assert_array_equal(point_cloud_files.read(path), np.column_stack([points, normals]))
    kept = point_cloud_files.chosen(1000, 77, 0)
    np.testing.assert_array_equal(point_cloud_files.read(path, 77), np.column_stack([points, normals])[kept])
    one = scans.read(path, limit=77)
    assert one.kind == ("points", "normals") and len(one.points) == 77


@pytest.mark.parametrize("count, limit", [(10, 10), (11, 10), (10, 20), (1000, 7), (10**10, 1000)])
def test_one_row_of_each_interval(count, limit):
    rows = point_cloud_files.chosen(count, limit, 3)
    assert len(rows) == min(count, limit) and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < count
    if count % limit == 0:
        np.testing.assert_array_equal(rows * limit // count, np.arange(limit))
    if count > 100 * limit:
        assert (point_cloud_files.chosen(count, limit, 4) != rows).any()


@pytest.mark.parametrize("kind", ["npy", "packed.npz", "little.ply"])
def test_memory_is_bounded_by_what_is_kept(kind, tmp_path):
    path = tmp_path / f"ball.{kind}"
    write(path, kind, *ball(800_000))  # 19 MB
    tracemalloc.start()
    try:
        point_cloud_files.read(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "xyz"])  # which announces nothing
def test_files_that_are_cut_off_are_named(kind, tmp_path):
    path = tmp_path / f"ball.{kind}"
    write(path, kind, *ball(50))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 7])
    with pytest.raises(FormatError, match=path.name):
        point_cloud_files.read(path)


@pytest.mark.parametrize("columns", [np.full((20, 3), 200), np.zeros((20, 3)), np.ones((20, 1)), np.ones((20, 5))])
def test_other_columns_than_normals_are_left_out_and_said(columns, tmp_path):
    """Colors, normals that are all zero, intensities, and more."""
    points, _ = ball(20)
    np.savetxt(tmp_path / "scan.xyz", np.column_stack([points, columns]))
    with pytest.warns(UserWarning, match=f"scan.xyz: only the first 3 of its {3 + columns.shape[1]} columns"):
        np.testing.assert_allclose(point_cloud_files.read(tmp_path / "scan.xyz"), points, rtol=1e-6)


def test_what_is_not_finite_is_left_out_and_counted(tmp_path):
    points, _ = ball(20)
    points[3, 1] = np.nan
    np.save(tmp_path / "scan.npy", points)
    (tmp_path / "scan.obj").write_text("".join("v {} {} {}\n".format(*row) for row in points.tolist()))
    for name in ("scan.npy", "scan.obj"):
        with pytest.warns(UserWarning, match=f"{name}: 1 of 20 rows holds numbers that are not finite"):
            assert len(scans.read(tmp_path / name).points) == 19
    points[:11] = np.inf
    np.save(tmp_path / "scan.npy", points)
    with pytest.raises(FormatError, match="scan.npy: 11 of 20 rows hold numbers that are not finite"):
        point_cloud_files.read(tmp_path / "scan.npy")


def test_arrays_stored_by_columns_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cloud_rows, "CHUNK", 128)
    rows = np.column_stack(ball(1000))
    np.save(tmp_path / "scan.npy", np.asfortranarray(rows))
    np.savez(tmp_path / "scan.npz", points=np.asfortranarray(rows[:, :3]), normals=rows[:, 3:])
    for path in (tmp_path / "scan.npy", tmp_path / "scan.npz"):
        np.testing.assert_array_equal(point_cloud_files.read(path), rows)
        kept = point_cloud_files.chosen(1000, 77, 0)
        np.testing.assert_array_equal(point_cloud_files.read(path, 77), rows[kept])


def test_other_kinds_are_named_with_what_converts_them(tmp_path):
    for name, words in {"a.e57": "open in CloudCompare", "a.fbx": "open in Blender", "a.zzz": "unknown kind"}.items():
        (tmp_path / name).write_text("VERSION .7\n")
        with pytest.raises(FormatError, match=f"{name}: .*{words}"):
            scans.read(tmp_path / name)


def test_lists_of_vertices_are_skipped(tmp_path):
    points, _ = ball(20)
    head = "ply\nformat ascii 1.0\nelement vertex 20\nproperty list uchar int views\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    lines = [f"{i} " + "7 " * i + " ".join(map(repr, row)) for i, row in enumerate(points.tolist())]
    (tmp_path / "a.ply").write_text(head + "\n".join(lines) + "\n")
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.ply"), points)


def test_coarse_coordinates_are_said(tmp_path):
    points, _ = ball(100)
    far = points + np.array([5e5, 120, 4.2e6])
    np.save(tmp_path / "fine.npy", far)
    point_cloud_files.read(tmp_path / "fine.npy")
    np.save(tmp_path / "coarse.npy", far.astype(np.float32))
    with pytest.warns(UserWarning, match="coarse.npy: its coordinates are float32, in steps of 0.5"):
        point_cloud_files.read(tmp_path / "coarse.npy")


@pytest.mark.parametrize("head, body, words", [
    ("element vertex 0\nproperty float x\nproperty float y\nproperty float z\n", "", "at least 4 points"),
    ("element vertex 5\nproperty float x\nproperty float y\nproperty float z\n", "0 0\n" * 5, "2 of 3 numbers"),
    ("element vertex 5\nproperty float x\n", "0\n" * 5, "without x, y and z"),
])  # fmt: skip
def test_text_with_too_few_points_or_columns_is_refused(head, body, words, tmp_path):
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\n{head}end_header\n{body}")
    with pytest.raises(FormatError, match=words):
        point_cloud_files.read(tmp_path / "a.ply")


def test_archives_that_are_not_read_are_named(tmp_path):
    points, _ = ball(20)
    np.savez(tmp_path / "a.npz", points=points)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for start in (8, content.index(b"PK\1\2") + 10):
        content[start : start + 2] = b"\x63\0"  # a compression that zipfile does not know
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FormatError, match="a.npz: cannot be read .*compression"):
        point_cloud_files.read(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", bytes(10**8))
    with pytest.raises(FormatError, match="bomb.npz: claims to unpack from [0-9]+ to 100000000 bytes"):
        point_cloud_files.read(tmp_path / "bomb.npz")


def test_headers_that_lie_allocate_nothing(tmp_path):
    path = tmp_path / "lie.npy"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10, 1000000000000), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n")
    with pytest.raises(FormatError, match="3 or 6 in a row"):
        point_cloud_files.read(path)
    (tmp_path / "lie.ply").write_bytes(
        b"ply\nformat ascii 1.0\nelement vertex 2000000\nproperty float x\nproperty float y\nproperty float z\n"
        b"end_header\n0 0 0\n"
    )
    with pytest.raises(FormatError, match="cut off"):
        point_cloud_files.read(tmp_path / "lie.ply")


def test_hidden_files_are_left_out(tmp_path):
    np.save(tmp_path / "a.npy", ball(10)[0])
    np.save(tmp_path / ".b.npy", ball(10)[0])
    assert scans.find(tmp_path) == [tmp_path / "a.npy"]


def test_normals_belong_to_their_points(tmp_path):
    points, normals = ball(3000)
    np.savez(tmp_path / "scan.npz", points=points, normals=normals[:2000])
    for limit in (500, 10_000):
        with pytest.raises(FormatError, match="scan.npz: holds 2,000 normals for 3,000 points"):
            point_cloud_files.read(tmp_path / "scan.npz", limit)


def test_a_mark_of_byte_order_is_no_number(tmp_path):
    points, _ = ball(20)
    np.savetxt(tmp_path / "scan.xyz", points)
    plain = point_cloud_files.read(tmp_path / "scan.xyz")
    (tmp_path / "scan.xyz").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "scan.xyz").read_bytes())
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "scan.xyz"), plain)


def test_names_of_arrays(tmp_path):
    points, normals = ball(50)
    np.savez(tmp_path / "a.npz", colors=points, xyz=points, normals=normals)
    with pytest.warns(UserWarning) as caught:
        np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npz"), np.column_stack([points, normals]))
    said = [str(warning.message).removeprefix(f"{tmp_path / 'a.npz'}: ") for warning in caught]
    assert said == ["its array 'xyz' is taken for the points", "its arrays 'colors' are left out"]
    np.savez(tmp_path / "mesh.npz", vertices=points, faces=np.zeros((9, 3), int))
    with pytest.raises(FormatError, match="mesh.npz: holds a mesh, 'vertices' and 'faces'; write it as PLY"):
        point_cloud_files.read(tmp_path / "mesh.npz")
    np.savez(tmp_path / "two.npz", a=points, b=normals)
    with pytest.raises(FormatError, match="holds 'a, b', but must have an array 'points'"):
        point_cloud_files.read(tmp_path / "two.npz")


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_properties_that_are_named_twice(form, tmp_path):
    """The first of a name counts, and each takes its place in a row."""
    points, _ = ball(20)
    names = ("x", "y", "z", "q", "q", "x")
    head = f"ply\nformat {form} 1.0\nelement vertex 20\n" + "".join(f"property float {name}\n" for name in names)
    rows = np.column_stack([points, np.full((20, 3), 7)])
    body = rows.astype(">f4" if "big" in form else "<f4").tobytes()
    if form == "ascii":
        body = "".join(" ".join(map(repr, row)) + "\n" for row in rows.tolist()).encode()
    (tmp_path / "a.ply").write_bytes(head.encode() + b"end_header\n" + body)
    with pytest.warns(UserWarning, match="a.ply: its columns q, q, x are left out"):
        np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.ply"), points)
    faces = b"element face 1\nproperty list uchar int vertex_indices\n"
    face = b"3 0 1 2\n" if form == "ascii" else b"\3" + np.arange(3, dtype=">i4" if "big" in form else "<i4").tobytes()
    (tmp_path / "b.ply").write_bytes(head.encode() + faces + b"end_header\n" + body + face)
    np.testing.assert_array_equal(mesh_parsers.load(tmp_path / "b.ply").vertices, points)


def test_a_second_element_of_vertices_is_left_out(tmp_path):
    points, _ = ball(20)
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 20\n{axes}element point 5\n{axes}end_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + points.tobytes() + np.zeros((5, 3), "<f4").tobytes())
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.ply"), points)
    with pytest.warns(UserWarning, match="its element '5 point' is left out, its vertices are those of another"):
        np.testing.assert_array_equal(mesh_parsers.load(tmp_path / "a.ply").vertices, points)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_lines_that_end_in_cr(form, tmp_path):
    points, _ = ball(20)
    points[0, 0] = np.frombuffer(b"\n\0\x80?", "<f4")[0]  # its first byte is a line end
    head = f"ply\nformat {form} 1.0\nelement vertex 20\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    body = points.astype("<f4").tobytes()
    if form == "ascii":
        body = "".join(" ".join(map(repr, row)) + "\r" for row in points.tolist()).encode()
    (tmp_path / "a.ply").write_bytes((head + "end_header\n").replace("\n", "\r").encode() + body)
    np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.ply"), points)
    np.testing.assert_array_equal(scans.cloud(tmp_path / "a.ply"), points)


@pytest.mark.parametrize("names, used", [
    ("px,py,x,y,z", (2, 3, 4)), ("x,y,height,z", (0, 1, 3)), ("easting,northing,x,y,z", (2, 3, 4)),
    ("easting,northing,height", (0, 1, 2)), ("easting,northing,height,z", (0, 1, 3)), ("x,y,height", (0, 1, 2)),
    ("x,y,pos_x,pos_y,pos_z", (2, 3, 4)), ("points:0,points:1,points:2,x,y,z", (3, 4, 5)),
    ("0,1,2,x,y,z", (3, 4, 5)), ("px,y,z", None), ("nx,ny,normal_x,normal_y,normal_z,x,y,z", (5, 6, 7, 2, 3, 4)),
    ("id,x_coord,y_coord,z_coord", (1, 2, 3)), ("x_m,y_m,z_m", (0, 1, 2)), ("XCoord,YCoord,ZCoord", (0, 1, 2)),
    ("x coordinate,y coordinate,z coordinate", (0, 1, 2)), ("coordinate_x,coordinate_y,coordinate_z", (0, 1, 2)),
    ("x_m,y_m,z_m,x,y,z", (3, 4, 5)), ("x_ft,y_ft,z_ft,x_m,y_m,z_m", (0, 1, 2)), ("xm,ym,zm", None),
])  # fmt: skip
def test_columns_of_one_kind_of_names_belong_together(names, used):
    found = cloud_rows.columns(names.split(","))
    assert (found and found.used) == used


@pytest.mark.parametrize("shape", [(30, 20, 3), (3, 600), (3, 50), (3, 10), (600, 9), (600, 4)])
def test_other_shapes_of_arrays(shape, tmp_path):
    count = max(shape) if len(shape) == 2 else 600
    points, _ = ball(count)
    wide = np.column_stack([points, np.arange(count)[:, None] * np.ones(6)])
    array = points.reshape(shape) if len(shape) > 2 else points.T if shape[0] == 3 else wide[:, : shape[1]]
    for order in "CF":
        np.save(tmp_path / "a.npy", np.array(array, ">f4" if order == "C" else "<f8", order=order))
        rows = array.swapaxes(0, 1).reshape(-1, 3) if order == "F" and len(shape) > 2 else points  # as in the file
        with warnings.catch_warnings(action="ignore"):
            np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npy"), rows)
            kept = point_cloud_files.chosen(count, 17, 0)
            np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npy", 17), rows[kept])


def test_rows_with_names(tmp_path):
    points, normals = ball(50)
    table = np.zeros(50, [("intensity", "<u2"), *((name, "<f4") for name in ("z", "y", "x", "nx", "ny", "nz"))])
    for name, column in zip(("x", "y", "z", "nx", "ny", "nz"), np.column_stack([points, normals]).T, strict=True):
        table[name] = column
    np.save(tmp_path / "a.npy", table)
    with pytest.warns(UserWarning, match="its columns intensity are left out"):
        np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npy"), np.column_stack([points, normals]))


def test_rows_of_six_may_be_stored_by_columns(tmp_path):
    for count in (10, 50, 64, 65):
        rows = np.column_stack(ball(count))
        np.save(tmp_path / "a.npy", rows.T)
        np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npy"), rows)
    np.save(tmp_path / "a.npy", np.column_stack([*ball(6), np.arange(6)]))
    with pytest.warns(UserWarning, match="only the first 6 of its 7 columns"):
        assert len(point_cloud_files.read(tmp_path / "a.npy")) == 6


def test_version_3_of_npy(tmp_path):
    points, _ = ball(20)
    for array in (points, np.array([(*row, 1) for row in points], [(n, "<f4") for n in ("x", "y", "z", "höhe")])):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, array, version=(3, 0))
        with warnings.catch_warnings(record=True, action="always") as caught:
            np.testing.assert_array_equal(point_cloud_files.read(tmp_path / "a.npy"), points)
        assert all("its columns höhe are left out" in str(one.message) for one in caught)
        if array is points:
            np.testing.assert_array_equal(archives.array(tmp_path / "a.npy"), points)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x09\x00" + bytes(99))
    with pytest.raises(FormatError, match="version 9.0 of .npy"):
        point_cloud_files.read(tmp_path / "a.npy")


def test_an_obj_of_points_has_their_normals(tmp_path):
    """As MeshLab and CloudCompare write clouds; with another number of normals they belong to nothing."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rows = [*(f"v {x} {y} {z}\n" for x, y, z in 3 * normals), *(f"vn {x} {y} {z}\n" for x, y, z in normals)]
    (tmp_path / "a.obj").write_text("".join(rows))
    np.testing.assert_allclose(scans.cloud(tmp_path / "a.obj"), np.column_stack([3 * normals, normals]))
    (tmp_path / "a.obj").write_text("".join(rows[:-1]))
    np.testing.assert_allclose(scans.cloud(tmp_path / "a.obj"), 3 * normals)


def test_a_page_is_no_obj(tmp_path):
    (tmp_path / "a.obj").write_text("<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(MeshError, match="a.obj: has no line of a vertex .*; it is empty, or no OBJ file"):
        scans.cloud(tmp_path / "a.obj")
