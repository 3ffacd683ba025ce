"""Files of weights, PyTorch's (.pt, .pth, new and old) and safetensors, read without running what they may hold."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jonet.errors import FormatError

OLDEST = (2, 6)  # torch before it could be made to run programs even with weights_only
ZIP = b"PK\x03\x04"
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a magic number, pickled
PROGRAM = 1 << 22  # bytes that say which arrays there are and what they are called, at most
NUMBERS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}  # of safetensors


def load(path: str | Path) -> Any:
    """What a file of weights holds: of PyTorch's what was saved, its tensors on the CPU; of safetensors arrays by name.

    Raises FormatError where the file is missing, damaged or something else, asks for anything but numbers, or claims
    more of them than it holds; and where torch (the extra `import`) is not there to read its files.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(BEFORE_ZIP))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if start.startswith(ZIP):
        _check_zip(path)
    elif start != BEFORE_ZIP:
        raise FormatError(f"{path}: is {'empty' if not start else 'no file that PyTorch saved'}")
    torch = _torch(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        if asked := re.search(r"(?:GLOBAL|global|function) ([\w.]+)", str(error)):
            raise FormatError(
                f"{path}: asks for {asked[1]}, which weights have no use for and which could run a program; it was "
                "not loaded"
            ) from error
        said = str(error).strip().split("\n")[0]
        raise FormatError(f"{path}: damaged, cut off or no weights ({type(error).__name__}: {said})") from error


def state(tensors, path: Path) -> dict[str, np.ndarray]:
    """A state dict that `load` gave as float32 arrays by name, without the counters of batch norms.

    Raises FormatError where it is something else, or where its numbers are not finite or not floating.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise FormatError(f"{path}: must hold weights by name, but holds a {type(tensors).__name__}")
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    claimed = sum(_bytes(name, value, path) for name, value in tensors.items())
    if claimed > (size := path.stat().st_size):
        raise FormatError(f"{path}: claims {claimed} bytes of numbers, but is {size} bytes long")
    return {name: array(value, name, path) for name, value in tensors.items()}


def array(tensor, name: str, path: Path) -> np.ndarray:
    """A tensor or array of `load` as float32; FormatError where it is not made of finite floating numbers."""
    if _bytes(name, tensor, path) > path.stat().st_size:
        raise FormatError(f"{path}: {name} claims more numbers than the file holds")
    values = tensor if isinstance(tensor, np.ndarray) else tensor.detach().float().numpy()
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"{path}: {name} holds numbers that are not finite, so the network's values would not be")
    return values


def count(saved: Mapping, name: str) -> int | None:
    """A whole number that was saved beside weights, like the epoch; None without."""
    return value if isinstance(value := saved.get(name), int) else None


def _bytes(name: str, value, path: Path) -> int:
    """The size of a tensor of floating numbers; FormatError for anything else."""
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    plain = isinstance(value, np.ndarray) or str(getattr(value, "layout", "")) == "torch.strided"
    if not plain or kind not in ("float16", "bfloat16", "float32", "float64"):
        raise FormatError(f"{path}: {name} must be an array of floating numbers, but is {kind}")
    return math.prod(value.shape) * value.itemsize


def _check_zip(path: Path) -> None:
    """PyTorch stores without compression: what claims to unpack to more than the file is no file of its."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [(info.filename, info.file_size) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"{path}: damaged or cut off ({error})") from error
    if (claimed := sum(size for _, size in sizes)) > path.stat().st_size:
        raise FormatError(f"{path}: claims to unpack to {claimed} bytes, more than the file; it was not unpacked")
    if (longest := max((size for name, size in sizes if name.endswith(".pkl")), default=0)) > PROGRAM:
        raise FormatError(f"{path}: {longest} bytes say what it holds, but weights need {PROGRAM} at most")


def _torch(path: Path):
    try:
        import torch
    except ImportError as error:
        raise FormatError(f"{path}: PyTorch's files are read with torch; pip install 'jonet[import]'") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise FormatError(f"{path}: torch {torch.__version__} does not read files of strangers safely; get {wanted}")
    return torch


class _Kind:
    """Stands for numpy's dtype while a file is read."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, _):
        """Byte order and the like: of one number that is not used."""


def _scalar(kind: _Kind, data: bytes) -> float:
    """Stands for numpy's way to make a number: the best score, which Occupancy Networks keep in their checkpoints."""
    return float(np.frombuffer(data, kind.code)[0])


def _harmless() -> list[tuple[Any, str]]:
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [(_Kind, "numpy.dtype"), *((_scalar, f"{module}.scalar") for module in modules)]


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file: the length of a JSON header, the header, the bytes; integers are left out."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        if not 0 < length <= min(len(data) - 8, PROGRAM):
            raise ValueError(f"its header claims {length} bytes")
        arrays, body, claimed = {}, memoryview(data)[8 + length :], 0
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__" or entry["dtype"] not in NUMBERS:
                continue
            start, stop = entry["data_offsets"]
            claimed += stop - start
            if not 0 <= start <= stop <= len(body) or claimed > len(body):
                raise ValueError(f"{name} claims bytes that are not there")
            values = np.frombuffer(body[start:stop], NUMBERS[entry["dtype"]]).reshape(entry["shape"])
            if entry["dtype"] == "BF16":
                values = (values.astype("<u4") << 16).view("<f4")
            arrays[name] = values
        return arrays
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: is no safetensors file, or damaged ({error})") from error
