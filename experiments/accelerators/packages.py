"""The compilers for chips that are not there: which packages they are, and whether they are installed."""

from __future__ import annotations

import os
from importlib import metadata

from jonet.chips import Kind

NEEDED: dict[Kind, tuple[str, ...]] = {
    "tpu": ("libtpu",),
    "gpu": ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-nvjitlink"),
}


def missing(kind: Kind) -> str:
    """What to install to compile for a kind of chip, in one sentence; "" if all is there."""
    absent = [name for name in NEEDED.get(kind, ()) if not _installed(name)]
    if not absent:
        return ""
    return f"compiling for a {kind.upper()} needs {', '.join(absent)}; install them: pip install -e '.[accelerators]'"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def alone() -> None:
    """Sets the environment so that JAX, not imported yet, uses the CPU only, and asks no network for chips."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
