"""Reads weights from PyTorch files (.pt, .pth, zip and older) and safetensors, without executing code in them."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jonet.errors import FormatError
from jonet.storage import archives

OLDEST = (2, 6)  # older versions of torch can be made to execute code even with weights_only
ZIP = b"PK\x03\x04"
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # start of files of torch before 1.6: a pickled magic number
MAX_HEADER = 1 << 22  # bytes; limit for a safetensors header or the pickle that lists the arrays
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}  # safetensors' names of floating types


def load(path: str | Path) -> Any:
    """The contents of a file: the object that PyTorch saved, with tensors on the CPU, or safetensors' arrays by name.

    Raises FormatError if the file is missing, damaged or of another format, if its pickle refers to anything but
    arrays, or if it declares more data than it has; and for PyTorch files if torch (the extra `import`) is missing.
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
        raise FormatError(f"{path}: is {'empty' if not start else 'not a PyTorch file'}")
    torch = _torch(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            # In memory, since reading a string of a pickle from a file allocates whatever length it announces.
            source = path if start.startswith(ZIP) else io.BytesIO(path.read_bytes())
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        if refused := re.search(r"(?:GLOBAL|global|function) ([\w.]+)", str(error)):
            raise FormatError(
                f"{path}: its pickle refers to {refused[1][:100]}, which is not needed for weights and could execute "
                "code; it was not loaded"
            ) from error
        message = archives.brief(error)
        raise FormatError(f"{path}: damaged, truncated or not weights ({type(error).__name__}: {message})") from error


def state(tensors, path: Path) -> dict[str, np.ndarray]:
    """A state dict from `load` → float32 arrays [...] by name, without the counters of batch norms.

    Raises FormatError if it is not a state dict, or if an array is not of floating type or not finite.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise FormatError(f"{path}: must be a mapping from names to arrays, but is a {type(tensors).__name__}")
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    claimed = sum(_bytes(name, value, path) for name, value in tensors.items())
    if claimed > (size := path.stat().st_size):
        raise FormatError(f"{path}: declares arrays of {claimed} bytes, but the file has {size}")
    return {name: array(value, name, path) for name, value in tensors.items()}


def array(tensor, name: str, path: Path) -> np.ndarray:
    """A tensor or array [...] from `load` as float32 [...]; FormatError if it is not of floating type or not finite."""
    if _bytes(name, tensor, path) > path.stat().st_size:
        raise FormatError(f"{path}: {name} is declared larger than the file")
    values = tensor if isinstance(tensor, np.ndarray) else tensor.detach().float().numpy()
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"{path}: {name} has values that are not finite")
    return values


def count(saved: Mapping, name: str) -> int | None:
    """An integer that was saved with the weights, such as the epoch; None if there is none."""
    return value if isinstance(value := saved.get(name), int) else None


def _bytes(name: str, value, path: Path) -> int:
    """Size in bytes of a dense array of floating type; FormatError for anything else."""
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    plain = isinstance(value, np.ndarray) or str(getattr(value, "layout", "")) == "torch.strided"
    if not plain or kind not in ("float16", "bfloat16", "float32", "float64"):
        raise FormatError(f"{path}: {name} must be a dense array of floating type, but is {kind}")
    return math.prod(value.shape) * value.itemsize


def _check_zip(path: Path) -> None:
    """PyTorch writes zip files without compression, so one that unpacks to more than its size is refused (zip bomb)."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [(info.filename, info.file_size) for info in archive.infolist()]
    except Exception as error:  # zipfile raises errors of many types for damaged files
        raise FormatError(f"{path}: damaged or truncated ({archives.brief(error)})") from error
    if (claimed := sum(size for _, size in sizes)) > path.stat().st_size:
        raise FormatError(f"{path}: would unpack to {claimed} bytes, more than the file has; it was not unpacked")
    if (longest := max((size for name, size in sizes if name.endswith(".pkl")), default=0)) > MAX_HEADER:
        raise FormatError(f"{path}: its pickle has {longest} bytes; the limit for weights is {MAX_HEADER}")


def _torch(path: Path):
    try:
        import torch  # pyright: ignore[reportMissingImports]: it is no requirement
    except ImportError as error:
        raise FormatError(f"{path}: reading PyTorch files requires torch; pip install torch") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise FormatError(
            f"{path}: torch {torch.__version__} cannot read untrusted files safely; install {oldest} or later"
        )
    return torch


class _Kind:
    """Replaces numpy.dtype while a file is unpickled."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, _):
        """Byte order and alignment are ignored: the scalars are not used."""


def _scalar(kind: _Kind, data: bytes) -> float:
    """Replaces numpy's constructor of scalars: checkpoints of Occupancy Networks have their best score as one."""
    return float(np.frombuffer(data, kind.code)[0])


def _harmless() -> list[Any]:
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [(_Kind, "numpy.dtype"), *((_scalar, f"{module}.scalar") for module in modules)]


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    """Floating arrays of a safetensors file (header length, JSON header, data); arrays of integers are skipped."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        if not 0 < length <= min(len(data) - 8, MAX_HEADER):
            raise ValueError(f"its header has a length of {length} bytes")
        arrays, body, claimed = {}, memoryview(data)[8 + length :], 0
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__" or entry["dtype"] not in DTYPES:
                continue
            start, stop = entry["data_offsets"]
            claimed += stop - start
            if not 0 <= start <= stop <= len(body) or claimed > len(body):
                raise ValueError(f"the data of {name} exceed the file")
            values = np.frombuffer(body[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            if entry["dtype"] == "BF16":
                values = (values.astype("<u4") << 16).view("<f4")
            arrays[name] = values
        return arrays
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path}: not a safetensors file, or damaged ({archives.brief(error)})") from error
