"""Buffers compressed by meshoptimizer: what its own encoder wrote is unpacked; damage is an error."""

import base64
import random

import numpy as np
import pytest
import trimesh
from gltf_scenes import PARTS, VERTICES, compressed_scene, glb

from jonet.errors import MeshError
from jonet.geometry import meshopt
from jonet.geometry.mesh_files import read

# 600 rows (i, i // 2, 0, 0) of int16 by the same encoder: three blocks
RAMP = base64.b85decode(
    "pjA~>RVu2gs;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80ssI2009930RS1ZP"
    "h=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=YhyVZp00000000000000000000"
    "09930RjR70s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80s;a80ssR810Du4h09930"
    "Rfvd)h=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=Yh=_=YhyVZp000000000000000"
    "00000096I5s;a80s;a80s;a80s;a80s;a80ssI210Du4h096Huh=_=Yh=_=Yh=_=Yh=_=Yh=_=YhyVZq0Du4h000000000000000"
    "0000000000000000000000000000000000000"
)
SPHERE = trimesh.creation.icosphere(1)


def first_is_least(faces):
    """Triangles from their least corner on: the encoder may begin with another one."""
    return np.stack([np.roll(face, -np.argmin(face)) for face in faces])


def test_what_the_encoder_wrote_is_unpacked():
    vertices, triangles, sequence, exponential = (meshopt.unpacked(*PARTS[name]) for name in PARTS)
    steps = np.frombuffer(vertices, "<i2").reshape(-1, 4)
    np.testing.assert_array_equal(steps[:, :3], np.round(SPHERE.vertices * 16384))
    faces = np.frombuffer(triangles, "<u4").reshape(-1, 3)
    np.testing.assert_array_equal(first_is_least(faces), first_is_least(SPHERE.faces))
    np.testing.assert_array_equal(np.frombuffer(sequence, "<u4"), SPHERE.faces.ravel())
    floats = np.frombuffer(exponential, "<f4").reshape(-1, 3)
    np.testing.assert_array_equal(floats, np.round(SPHERE.vertices * 2**16) / 2**16)


def test_blocks_continue_each_other():
    rows = np.frombuffer(meshopt.unpacked(RAMP, 600, 8, "ATTRIBUTES", "NONE"), "<i2").reshape(-1, 4)
    index = np.arange(600)
    np.testing.assert_array_equal(rows, np.stack([index, index // 2, 0 * index, 0 * index], axis=1))


def test_compressed_scenes_are_read(tmp_path):
    (tmp_path / "a.glb").write_bytes(glb(*compressed_scene()))
    mesh = read(tmp_path / "a.glb")
    assert mesh.watertight and mesh.volume == pytest.approx(SPHERE.volume, abs=1e-3)


def test_damage_is_an_error_or_other_numbers(tmp_path):
    """Never another error, nor more elements than announced."""
    rng = random.Random(0)
    for name, (data, count, stride, mode, filtered) in PARTS.items():
        for _ in range(300):
            bad = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            bad = bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
            try:
                assert len(meshopt.unpacked(bad, count, stride, mode, filtered)) == count * stride, name
            except MeshError as error:
                assert "damaged" in str(error)


@pytest.mark.parametrize("count, mode, filtered, words", [
    (10**9, "ATTRIBUTES", "NONE", "announces 1000000000 elements"),
    (42, "ZIP", "NONE", "mode 'ZIP'"),
    (42, "ATTRIBUTES", "QUATERNION", "filter 'QUATERNION'"),
    (43, "TRIANGLES", "NONE", "do not unpack"),
])  # fmt: skip
def test_what_is_not_read_is_named(count, mode, filtered, words):
    with pytest.raises(MeshError, match=words):
        meshopt.unpacked(VERTICES, count, 8, mode, filtered)
