"""Image files as cameras and programs write them: orientation, modes and shapes, as network input."""

import io

import numpy as np
import pytest
from PIL import Image

from jonet.data import scans
from jonet.errors import FormatError
from jonet.formats import onet_samples

LEVELS = np.repeat(np.repeat(np.array([[0, 80, 160], [40, 120, 200], [60, 255, 20]], np.uint8), 8, 0), 8, 1)
GRAY = Image.fromarray(LEVELS)  # every corner is another level
# As EXIF numbers them: how the stored pixels come from the upright ones.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}


def saved(path, image: Image.Image, **more):
    image.save(path, **more)
    return path


def test_phones_write_how_they_were_held(tmp_path):
    upright = scans.picture(saved(tmp_path / "a.png", GRAY), 24)
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored(LEVELS)))
        for name, more in (("b.png", {}), ("b.jpg", {"quality": 100})):
            found = scans.picture(saved(tmp_path / name, image, exif=exif, **more), 24)
            np.testing.assert_allclose(found, upright, atol=0 if name == "b.png" else 0.02)


def test_damaged_orientations_are_left_alone(tmp_path):
    plain = scans.picture(saved(tmp_path / "a.png", GRAY), 24)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\x00"):
        np.testing.assert_allclose(
            scans.picture(saved(tmp_path / "b.jpg", GRAY, exif=exif, quality=100), 24), plain, atol=0.02
        )


MODES = {
    "gray": GRAY,
    "color": GRAY.convert("RGB"),
    "gray of 16 bits": Image.fromarray(LEVELS.astype(np.uint16) * 257),
    "palette": GRAY.convert("P"),
    "gray with alpha": GRAY.convert("LA"),
    "color with alpha": GRAY.convert("RGBA"),
}


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_of_a_picture_are_one(mode, tmp_path):
    found = scans.picture(saved(tmp_path / "a.png", MODES[mode]), 24)
    assert found.dtype == np.float32 and found.shape == (24, 24, 3)
    np.testing.assert_array_equal(found, np.repeat(np.float32(LEVELS)[..., None] / 255, 3, -1))


def test_inks_become_light(tmp_path):
    found = scans.picture(saved(tmp_path / "a.jpg", GRAY.convert("RGB").convert("CMYK"), quality=100), 24)
    np.testing.assert_allclose(found, np.repeat(LEVELS[..., None] / 255, 3, -1), atol=0.02)


def test_black_and_white(tmp_path):
    dots = np.random.default_rng(0).random((24, 24)) < 0.5
    found = scans.picture(saved(tmp_path / "a.png", Image.fromarray(dots)), 24)
    np.testing.assert_array_equal(found[..., 0], dots)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_background_is_white(tmp_path, mode):
    image = GRAY.convert(mode)
    clear = {"P": image.getpixel((0, 0)), "L": 0, "RGB": (0, 0, 0)}[mode]
    found = scans.picture(saved(tmp_path / "a.png", image, transparency=clear), 24)
    np.testing.assert_array_equal(found[..., 0] * 255, np.where(LEVELS == 0, 255, LEVELS))


def test_what_is_not_square_is_squeezed(tmp_path):
    """As the published resize does: nothing is cut off, and the sides are scaled each for itself."""
    wide = Image.fromarray(np.repeat(LEVELS, 4, 1))
    assert wide.size == (96, 24)
    found = scans.picture(saved(tmp_path / "a.png", wide), 24)
    expected = np.asarray(wide.resize((24, 24), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_allclose(found[4::8, 4::8, 0] * 255, LEVELS[4::8, 4::8], atol=1)


def test_pixels_of_published_views_are_those_of_the_file(tmp_path):
    """Their matrices belong to the stored pixels, whatever EXIF says, and to the number in the file's name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    matrices = {}
    for i in range(12):
        image = Image.fromarray(np.full((9, 12), 20 * i, np.uint8))
        saved(tmp_path / f"{i}.jpg", image, exif=exif, quality=100)
        matrices |= {f"world_mat_{i}": np.full((3, 4), i), f"camera_mat_{i}": np.eye(3)}
    np.savez(tmp_path / "cameras.npz", **matrices)
    views = onet_samples.read_views(tmp_path)
    assert views.images.shape == (12, 9, 12, 3)
    np.testing.assert_allclose(views.images[:, 0, 0, 0], 20 * views.world[:, 0, 0], atol=2)


def test_pictures_that_are_none(tmp_path):
    stream = io.BytesIO()
    GRAY.save(stream, "PNG")
    for content in (b"", b"\x89PNG", stream.getvalue()[:60], b"GIF89a"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(FormatError, match="a.png: cannot be read as an image"):
            scans.picture(tmp_path / "a.png", 24)
