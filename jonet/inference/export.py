"""Fields in one file that needs this package no more: compiled for no device yet, the weights inside.

The file is an .npz that numpy and JAX read (JAX's reader needs the small package flatbuffers):

    import json, jax, numpy as np
    from jax import export

    with np.load("shape.npz") as file:
        about = json.loads(str(file["about"]))
        field = export.deserialize(bytearray(file["function"]))
    values = field.call(points)          # one shape: [N, 3] float32 → [N]; any N
    values = field.call(codes, points)   # a network: [B, L], [B, N, 3] → [B, N]; any B and N

`about` says what goes in and comes out, which values are inside, and which jax wrote the file and can read it.
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

from jonet.data.meshes import Similarity
from jonet.errors import ConfigError
from jonet.networks.field import Field
from jonet.storage import atomic

PLATFORMS = ("cpu", "cuda", "tpu")


def write_field(path: str | Path, field: Field, *, similarity: Similarity | None = None, gradients: bool = False):
    """One shape as a function of points [N, 3] → [N], N any number.

    similarity: own units → the frame of the points, kept in `about` (x' = scale · (rotation x + translation)).
    gradients: `jax.grad` goes through the function that is read, once, and the file is about twice as large.
    Raises ConfigError where flatbuffers is missing.
    """
    (count,) = export.symbolic_shape("N")
    points = jax.ShapeDtypeStruct((count, 3), np.float32)
    about = {"arguments": {"points": ["N", 3]}, "result": ["N"], **_values(field)}
    if similarity is not None:
        about["to_frame"] = {name: np.asarray(value).tolist() for name, value in vars(similarity).items()}
    _write(path, field.at, (points,), about, {}, gradients)


def write_network(path: str | Path, network, shared, statistics, *, arrays: dict[str, np.ndarray], gradients=False):
    """A network as a function of codes [B, L] and points [B, N, 3] → [B, N], B and N any numbers.

    arrays: kept in the file under their names (codes of known shapes, say).  Else as `write_field`.
    """
    length = network.specs.latent_size
    shapes, count = export.symbolic_shape("B, N")
    codes = jax.ShapeDtypeStruct((shapes, length), np.float32)
    points = jax.ShapeDtypeStruct((shapes, count, 3), np.float32)

    def values(codes, points):
        return jax.vmap(lambda code, some: network.fold(shared, statistics, code).at(some))(codes, points)

    field = network.fold(shared, statistics, np.zeros(length, np.float32))
    about = {"arguments": {"codes": ["B", length], "points": ["B", "N", 3]}, "result": ["B", "N"], **_values(field)}
    _write(path, values, (codes, points), about, arrays, gradients)


def check_replaceable(path: str | Path) -> None:
    """ConfigError where something is there that is no exported file."""
    if not os.path.lexists(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            held = set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        held = set()
    if not {"about.npy", "function.npy"} <= held:
        raise ConfigError(f"{path} is there already and no exported file, so it is not replaced; name another file")


def _values(field: Field) -> dict[str, Any]:
    """What a reader must know of a field's values."""
    return {
        "inside": "values above level" if field.inside > 0 else "values below level",
        "level": float(field.own["level"]),
        "box": np.asarray(field.box).tolist(),
    }


def _write(path, function: Callable, arguments, about, arrays, gradients: bool) -> None:
    check_replaceable(path)
    with jax.default_matmul_precision("highest"):  # the same values on every platform
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        try:
            content = exported.serialize(vjp_order=int(gradients))
        except ImportError as error:
            raise ConfigError("writing this file needs the package flatbuffers: pip install 'jonet[export]'") from error
    about |= {
        "platforms": PLATFORMS,
        "gradients": gradients,
        "written_by": f"jax {jax.__version__}",
        "read_by": f"jax {jax.__version__} and those after it, for six months at least; older ones may refuse it",
        "calling_convention": exported.calling_convention_version,
    }
    with atomic.open_file(path) as file:
        np.savez(file, about=json.dumps(about), function=np.frombuffer(content, np.uint8), **arrays)
