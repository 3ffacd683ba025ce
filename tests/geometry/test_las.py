"""LAS and LAZ files, written by laspy, and headers that announce more than their file holds."""

import struct

import numpy as np
import pytest

from jonet.errors import FormatError
from jonet.geometry import las, point_cloud_files

POINTS = (np.random.default_rng(0).standard_normal((500, 3)) * 3 + [5e5, 4.5e6, 100]).round(3)


def written(path, version="1.2", form=3):
    laspy = pytest.importorskip("laspy", reason="reading LAS needs laspy (extra `scans`)")
    pytest.importorskip("lazrs", reason="reading LAZ needs lazrs (extra `scans`)")
    header = laspy.LasHeader(version=version, point_format=form)
    header.scales, header.offsets = [0.001] * 3, [5e5, 4.5e6, 0]
    data = laspy.LasData(header)
    data.x, data.y, data.z = POINTS.T
    data.red[:] = 7
    data.write(path)
    return path


@pytest.mark.parametrize("name, version, form", [("a.las", "1.2", 3), ("a.laz", "1.2", 3), ("a.laz", "1.4", 7)])
def test_coordinates_keep_their_digits(name, version, form, tmp_path, monkeypatch):
    monkeypatch.setattr(las, "CHUNK", 64)
    path = written(tmp_path / name, version, form)
    with pytest.warns(UserWarning, match=f"{name}: only x, y, z of its [0-9]+ dimensions are read"):
        found = point_cloud_files.read(path)
    np.testing.assert_allclose(found, POINTS, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(point_cloud_files.read(path, 17), found[point_cloud_files.chosen(500, 17, 0)])


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_normals_of_extra_dimensions(name, tmp_path):
    """Those of CloudCompare; the names of axes in other dimensions are no coordinates."""
    laspy = pytest.importorskip("laspy", reason="reading LAS needs laspy (extra `scans`)")
    path = written(tmp_path / name)
    data = laspy.read(path)
    normals = np.random.default_rng(1).standard_normal((500, 3))
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    for label, column in zip(("NormalZ", "NormalX", "NormalY"), normals[:, [2, 0, 1]].T, strict=True):
        data.add_extra_dim(laspy.ExtraBytesParams(label, np.float32))
        data[label] = column
    data.write(path)
    with pytest.warns(UserWarning, match=f"{name}: only x, y, z and normals of its [0-9]+ dimensions are read"):
        found = point_cloud_files.read(path)
    np.testing.assert_allclose(found, np.column_stack([POINTS, normals]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_what_is_cut_off_or_lies_is_refused(name, tmp_path):
    whole = written(tmp_path / name).read_bytes()
    for data in (whole[:100], whole[:300], whole[:-60] if name == "a.las" else whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=f"{name}: .*(cut off|damaged)"):
            point_cloud_files.read(tmp_path / name)
    (tmp_path / name).write_bytes(whole[:107] + struct.pack("<I", 2**32 - 1) + whole[111:])
    with pytest.raises(FormatError, match="announces 4,294,967,295 points, more than its"):
        point_cloud_files.read(tmp_path / name)


def test_without_laspy_it_is_said_what_reads_them(tmp_path, monkeypatch):
    import sys

    head = bytearray(b"LASF".ljust(227, b"\0"))
    struct.pack_into("<HIIBHI", head, 94, 227, 227, 0, 0, 20, 5)
    (tmp_path / "a.las").write_bytes(bytes(head) + bytes(100))
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(FormatError, match="a.las: needs laspy .* pip install 'laspy\\[lazrs\\]'"):
        point_cloud_files.read(tmp_path / "a.las")
