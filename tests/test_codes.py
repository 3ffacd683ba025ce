"""Codes: the file round trip, damaged files, and the one-line repr."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest

from jonet.codes import Codes, read_npz
from jonet.errors import CheckpointError
from jonet.geometry.mesh import Similarity

pytestmark = pytest.mark.unoptimized

FINE = {"values": np.ones((2, 3), np.float32), "names": np.array(["a", "b"])}


def saved(path, **changes):
    np.savez(path, **{name: value for name, value in (FINE | changes).items() if value is not None})
    return path


def test_codes_come_back(tmp_path):
    transforms = (Similarity(2.0), Similarity(3.0, translation=[1, 2, 3]))
    doubts = dict(residual=np.ones(2, np.float32), converged=np.ones(2, bool))
    whole = Codes(FINE["values"], ("a\udcff", "b"), transforms, network="0123", sources=("x", "y"), **doubts)
    for codes in (whole, whole[:0], Codes(np.ones((2, 0), np.float32), ("a", "b"))):
        codes.save(tmp_path / "codes.npz")
        again = Codes.load(tmp_path / "codes.npz")
        assert again.names == codes.names and again.network == codes.network
        np.testing.assert_array_equal(again.values, codes.values)
        for transform, same in zip(codes.similarities or (), again.similarities or (), strict=True):
            np.testing.assert_array_equal(transform.as_array(), same.as_array())
    again.values[:] = 0  # they can be written to


def test_characters_that_do_not_exist_are_refused(tmp_path):
    path = saved(tmp_path / "codes.npz", names=np.array([2**31, 97], "<u4").view("<U1"))
    with pytest.raises(CheckpointError, match="codes.npz: .* character 2147483648, which does not exist"):
        Codes.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": None},
        {"names": None},
        {"values": np.ones(2, np.float32)},
        {"values": np.array([["a"] * 3] * 2)},
        {"values": np.full((2, 3), np.nan, np.float32)},
        {"values": np.ones((1, 3), np.float32)},
        {"names": np.array(["a", "b", "c"])},
        {"names": np.array([1, 2])},
        {"similarities": np.ones((2, 5))},
        {"similarities": np.ones((1, 13))},
        {"similarities": np.zeros((2, 13))},
        {"similarities": np.float64(1)},
        {"similarities": np.array(["x", "y"])},
        {"residual": np.zeros(0, np.float32)},
        {"converged": np.array(["yes", "no"])},
        {"out_of_distribution": np.zeros((2, 2), bool)},
        {"network": np.array(["x"])},
        {"sources": np.array(["x"])},
        {"names": np.array([{}, []], object)},
    ],
)
def test_arrays_that_are_no_codes(tmp_path, changes):
    with pytest.raises(CheckpointError, match="codes.npz"):
        Codes.load(saved(tmp_path / "codes.npz", **changes))


def test_files_that_are_no_archives_or_claim_too_much(tmp_path):
    whole = saved(tmp_path / "codes.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    huge, flat = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(huge, "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
        with file.open("values.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(flat, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("values.npy", bytes(1 << 28))
    unknown = bytearray(whole)
    for at in (whole.index(b"PK\x01\x02") + 10, 8):
        unknown[at] = 99  # a way of compression
    secret = bytearray(whole)
    for at in (whole.index(b"PK\x01\x02") + 8, 6):
        secret[at] |= 1  # encrypted
    for content in (b"", whole[:-30], (tmp_path / "array.npy").read_bytes(), huge.getvalue(), flat.getvalue(),
                    bytes(unknown), bytes(secret)):  # fmt: skip
        (tmp_path / "codes.npz").write_bytes(content)
        for read in (Codes.load, read_npz):
            with pytest.raises(CheckpointError, match="codes.npz"):
                read(tmp_path / "codes.npz")
    with pytest.raises(CheckpointError, match="no such file"):
        Codes.load(tmp_path / "nothing.npz")


def test_codes_are_one_line_in_print():
    codes = Codes(FINE["values"], ("a", "b"))
    assert repr(codes) == "Codes(2 shapes, 3-d)" and repr(codes[0]) == "Codes(1 shape, 3-d)"
    assert repr(dataclasses.replace(codes, converged=np.ones(2, bool))) == "Codes(2 shapes, 3-d, fitted)"
    assert repr(codes.placed([Similarity()] * 2)) == "Codes(2 shapes, 3-d, with similarities from input units)"
