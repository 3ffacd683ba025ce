"""Reading untrusted text, JSON, YAML, images, .npy and .npz files.

Nothing is unpickled, and sizes are bounded before allocation: by the length of the file, not by what it announces.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from jonet.errors import FormatError
from jonet.storage import atomic

NUMBERS, WORDS = "biuf", "U"  # numpy dtype kinds
TEXT = 1 << 26  # maximum bytes of a list of names
SLACK, GROWTH = 1 << 24, 20  # an archive may unpack to at most SLACK bytes plus GROWTH times its own size
NESTED = 32  # levels of a YAML file
PIXELS, PIXELS_PER_BYTE = 1 << 23, 16  # an image may have PIXELS (4K), and so many more for each byte of its file
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of images; Pillow's others include programs (PostScript)
MARKS = {  # byte order marks and their encodings; UTF-32 comes first, since its mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding(head: bytes) -> tuple[str, int]:
    """The encoding of a text file that begins with these bytes, by its byte order mark, and the length of the mark.

    Without a mark it is UTF-8.  The codecs of UTF-16 and UTF-32 skip the mark themselves.
    """
    return next(((name, len(mark)) for mark, name in MARKS.items() if head.startswith(mark)), ("utf-8", 0))


def utf8(data: bytes) -> bytes:
    """The bytes of a text file as UTF-8 without byte order mark; UTF-16 and UTF-32 are recognized by their mark.

    Bytes without a mark are not changed.  Raises UnicodeDecodeError for damaged UTF-16 and UTF-32.
    """
    name, mark = encoding(data)
    return data[mark:] if name == "utf-8" else data.decode(name).encode()


def text(path: Path, limit: int = TEXT, errors: str = "strict") -> str:
    """The content of a text file without its byte order mark (`utf8`); line ends are not converted.

    errors: as of `bytes.decode`; "surrogateescape" keeps the bytes of names that are not UTF-8.  Raises FormatError if
    the file is missing, larger than `limit` bytes, or not text.
    """
    try:
        if (size := path.stat().st_size) > limit:
            raise FormatError(f"{path}: is {size} bytes long, but such files have at most {limit}")
        return utf8(path.read_bytes()).decode("utf-8", errors)
    except (OSError, UnicodeError) as error:
        raise FormatError(f"{path}: cannot be read as text ({error})") from error


def options(path: Path, limit: int = 1 << 20) -> dict[str, Any]:
    """The object in a JSON file; FormatError if it is not JSON or not an object."""
    try:
        values = json.loads(text(path, limit))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: is not JSON ({error})") from error
    return _mapping(values, path)


class _YamlLoader(yaml.SafeLoader):
    """Refuses aliases, with which few bytes can stand for any number of values, and nesting, which takes long."""

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it uses an alias, *{self.peek_event().anchor}; write out what it stands for")
        self.depth += 1
        if self.depth > NESTED:
            raise yaml.YAMLError(f"it is nested more than {NESTED} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def yaml_options(path: Path, limit: int = 1 << 16) -> dict[str, Any]:
    """The mapping in a YAML file, {} if it is empty; FormatError if it is not YAML, has aliases, or is no mapping."""
    content = text(path, limit)
    try:
        values = yaml.load(content, _YamlLoader)
    except Exception as error:  # damaged files make PyYAML raise errors of many types
        raise FormatError(f"{path}: is not valid YAML ({brief(error)})") from error
    return _mapping({} if values is None else values, path)


def _mapping(values, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise FormatError(f"{path}: must hold names and values, but holds a {type(values).__name__}")
    return values


@contextlib.contextmanager
def picture(path: Path) -> Iterator[Image.Image]:
    """Opens an image file; FormatError, also from reading it, if it is damaged or announces too many pixels."""
    try:
        # In memory, since reading a chunk from a file allocates whatever length it announces.
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            size = len(content)
            if image.width * image.height > PIXELS + PIXELS_PER_BYTE * size:
                raise FormatError(f"{path}: claims {image.width} x {image.height} pixels in {size} bytes")
            yield image
    except FormatError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise FormatError(f"{path}: cannot be read as an image: it is damaged, or none of {kinds}") from error
    except Exception as error:  # damaged files make Pillow raise errors of many types
        raise FormatError(f"{path}: cannot be read as an image ({brief(error)})") from error


def unopened(error: Exception) -> str | None:
    """Words for an error in reading a file that tells nothing of its content; None for others."""
    if isinstance(error, MemoryError):
        return "needs more memory to be read than there is"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # which a damaged place in a file gives
        return f"cannot be read: {error.strerror}"
    return None


def brief(error: Exception, most: int = 200) -> str:
    """An error's words on one line, truncated: libraries quote what they read."""
    words = " ".join(str(error)[: 2 * most].split())
    return words if len(words) <= most else f"{words[:most]}…"


def array(path: Path, kinds: str = NUMBERS) -> np.ndarray:
    """The array in an .npy file; FormatError if it is damaged, or announces another size than the file has."""
    try:
        return _array(path.open("rb"), path.stat().st_size, kinds)
    except Exception as error:
        raise FormatError(f"{path}: cannot be read as .npy, it is damaged or cut off ({brief(error)})") from error


def arrays(
    path: Path, names: Sequence[str], optional: Sequence[str] | None = (), kinds: str = NUMBERS
) -> dict[str, np.ndarray]:
    """Arrays [...] from an .npz, by name; those of `optional` may be missing (None: all that the file holds).

    kinds: allowed numpy dtype kinds, as letters.  Raises FormatError if the file is damaged, lacks one of `names`,
    holds pickled objects, or announces more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(info.file_size for info in archive.infolist()))
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in held]:
                raise FormatError(
                    f"{path}: lacks {', '.join(missing)}; it holds {', '.join(sorted(held))[:200] or 'nothing'}"
                )
            chosen = held if optional is None else [name for name in (*names, *optional) if name in held]
            return {name: _array(archive.open(held[name]), held[name].file_size, kinds) for name in chosen}
    except FormatError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{path}: there is no such file") from error
    except Exception as error:  # zipfile, zlib and numpy raise errors of many types for damaged files
        raise FormatError(f"{path}: cannot be read as .npz, it is damaged or cut off ({brief(error)})") from error


def write(path: Path, **named: Any) -> None:
    """Writes arrays as an .npz, atomically.  Not synced to disk: readers detect a torn file by the zip checksums."""
    with atomic.open_file(path, sync=False) as file:
        np.savez(file, **named)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is stored by columns, and dtype of an array in .npy format, whose data follow in the stream.

    Raises ValueError if it is none, or of an unknown version.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is of version {version[0]}.{version[1]} of .npy, but those are 1.0, 2.0 and 3.0")
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    shape, fortran, kind = np.lib.format.read_array_header_2_0(file)  # as 3.0, but for names, which are UTF-8 there
    if version == (3, 0) and kind.names:
        kind.names = tuple(name.encode("latin-1").decode("utf-8", "replace") for name in kind.names)
    return shape, fortran, kind


def check_size(path: Path, claimed: int) -> None:
    """FormatError if an archive announces an implausible unpacked size (a zip bomb)."""
    size = path.stat().st_size
    if claimed > SLACK + GROWTH * size:
        raise FormatError(f"{path}: claims to unpack from {size} to {claimed} bytes; it was not unpacked")


def _array(file: IO[bytes], size: int, kinds: str) -> np.ndarray:
    """An array of `size` bytes with its header: an .npy file or a member of an .npz.

    Its header must announce exactly the bytes of the member: `np.load` would allocate whatever the header claims.
    """
    with file:
        shape, fortran, kind = npy_header(file)
        if kind.kind not in kinds:
            raise ValueError(f"an array is of type {kind}, but must be of {'numbers' if kinds == NUMBERS else kinds}")
        count = int(np.prod(shape, dtype=object))  # Python integers do not overflow
        if min(shape, default=0) < 0 or count * kind.itemsize != size - file.tell():
            raise ValueError(f"an array claims shape {list(shape)} of {kind}, but has {size - file.tell()} bytes")
        flat = np.frombuffer(file.read(), kind)
        if kind.kind == "U" and flat.size and kind.itemsize:  # numpy does not check its text
            points = flat.view(kind.str[0] + "u4")
            if points.max() > 0x10FFFF:
                raise ValueError(f"an array holds the character {points.max()}, which does not exist")
        return flat.reshape(shape, order="F" if fortran else "C")
