"""Export of fields and networks to one file that can be used without this package.

The file holds a serialized `jax.export` function with the weights, which is compiled when it is first called.  It is an
.npz that numpy and JAX read (JAX's reader needs the small package flatbuffers):

    import json, jax, numpy as np
    from jax import export

    with np.load("shape.npz") as file:
        about = json.loads(str(file["about"]))
        field = export.deserialize(bytearray(file["function"]))
    values = field.call(points)          # one shape: [N, 3] float32 → [N]; any N
    values = field.call(codes, points)   # a network: [B, L], [B, N, 3] → [B, N]; any B and N

`about` gives the arguments and the result, which values are inside, and which versions of jax can read the file.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from jonet.errors import ConfigError
from jonet.geometry.mesh import Similarity
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import Field
from jonet.storage import atomic

PLATFORMS = ("cpu", "cuda", "tpu")
VERSION = 2  # of `about` and the names of the arrays


def write_field(path: str | Path, field: Field, *, similarity: Similarity | None = None, gradients: bool = False):
    """Exports one shape as a function of points [N, 3] → [N], for any N.

    similarity: from input units to the points' frame, stored in `about` (x' = scale · (rotation x + translation)).
    gradients: the function that is read can be differentiated once by `jax.grad`; the file is about twice as large.
    Raises ConfigError if flatbuffers is missing.
    """
    (count,) = export.symbolic_shape("N")
    points = jax.ShapeDtypeStruct((count, 3), np.float32)
    about = {"arguments": {"points": ["N", 3]}, "result": ["N"], **_values(field)}
    if similarity is not None:
        about["to_frame"] = {name: np.asarray(value).tolist() for name, value in vars(similarity).items()}
    _write(path, field.at, (points,), about, {}, gradients)


def write_network(path: str | Path, network: BoundNetwork, *, arrays: dict[str, np.ndarray], gradients: bool = False):
    """Exports a network as a function of codes [B, L] and points [B, N, 3] → [B, N], for any B and N.

    arrays: stored in the file under their names (codes of training shapes, for example).  The rest as in `write_field`.
    """
    length = network.latent_size
    shapes, count = export.symbolic_shape("B, N")
    codes = jax.ShapeDtypeStruct((shapes, length), np.float32)
    points = jax.ShapeDtypeStruct((shapes, count, 3), np.float32)

    def values(codes, points):
        return jax.vmap(lambda code, cloud: network.fold(code).at(cloud))(codes, points)

    field = network.fold(np.zeros(length, np.float32))
    about = {"arguments": {"codes": ["B", length], "points": ["B", "N", 3]}, "result": ["B", "N"], **_values(field)}
    _write(path, values, (codes, points), about, arrays, gradients)


def check_replaceable(path: str | Path) -> None:
    """Raises ConfigError if the path exists and is not an exported file."""
    if not os.path.lexists(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        names = set()
    if not {"about.npy", "function.npy"} <= names:
        raise ConfigError(f"{path} is there already and no exported file, so it is not replaced; name another file")


def _values(field: Field) -> dict[str, Any]:
    """How a reader interprets a field's values."""
    return {
        "inside": "values above level" if field.inside > 0 else "values below level",
        "level": float(field.per_shape["level"]),
        "box": np.asarray(field.box).tolist(),
    }


def _write(path, function: Callable, arguments, about, arrays, gradients: bool) -> None:
    check_replaceable(path)
    with jax.default_matmul_precision("highest"):  # the same values on every platform
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        try:
            content = exported.serialize(vjp_order=int(gradients))
        except ImportError as error:
            raise ConfigError("writing this file needs the package flatbuffers: pip install flatbuffers") from error
    about |= {
        "version": VERSION,
        "platforms": PLATFORMS,
        "gradients": gradients,
        "written_by": f"jax {jax.__version__}",
        "read_by": f"jax {jax.__version__} and those after it, for six months at least; older ones may refuse it",
        "calling_convention": exported.calling_convention_version,
    }
    with atomic.open_file(path) as file:
        np.savez(file, about=json.dumps(about), function=np.frombuffer(content, np.uint8), **arrays)
