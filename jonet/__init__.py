"""jonet: DeepSDF and Occupancy Networks in JAX.

Public names are imported when they are first accessed, so that `import jonet` is fast and does not import jax.
"""

import importlib

from jonet.version import __version__ as __version__

_MODULES = {
    "train": "jonet.run.train",
    "Model": "jonet.model",
    "Task": "jonet.tasks.base",
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
    "make_grid": "jonet.inference.surfaces.grid",
    "Field": "jonet.networks.field",
    "Mesh": "jonet.geometry.mesh",
    "Similarity": "jonet.geometry.mesh",
    "read": "jonet.geometry.mesh_files",
    "write": "jonet.geometry.mesh_files",
    "Store": "jonet.data.store",
    "JonetError": "jonet.errors",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"jonet has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return [*__all__, "__version__"]
