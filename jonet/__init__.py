"""jonet: shapes learned as functions of space.  DeepSDF and Occupancy Networks in JAX.

The public names; each is imported when it is first asked for, so that `import jonet` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "train": "jonet.learn",
    "Model": "jonet.model",
    "Codes": "jonet.codes",
    "load": "jonet.model",
    "fit": "jonet.model",
    "fit_pose": "jonet.model",
    "encode": "jonet.model",
    "field": "jonet.model",
    "extract": "jonet.model",
    "reconstruct": "jonet.model",
    "purify": "jonet.model",
    "sample": "jonet.model",
    "interpolate": "jonet.model",
    "evaluate": "jonet.evaluation.metrics",
    "make_grid": "jonet.inference.grid",
    "Field": "jonet.networks.field",
    "Mesh": "jonet.data.meshes",
    "Similarity": "jonet.data.meshes",
    "read": "jonet.data.meshes",
    "write": "jonet.data.meshes",
    "Store": "jonet.data.store",
    "JonetError": "jonet.errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"jonet has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return [*__all__, "__version__"]
