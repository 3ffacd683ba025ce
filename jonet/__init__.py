"""jonet: DeepSDF and Occupancy Networks in JAX.

Public names are imported when they are first accessed, so that `import jonet` is fast and does not import jax.
"""

import importlib
from typing import TYPE_CHECKING

from jonet.version import __version__ as __version__

_MODULES = {
    "train": "jonet.run.train",
    "Model": "jonet.model",
    "Task": "jonet.tasks.base",
    "Codes": "jonet.codes",
    "load": "jonet.model",
    "fit": "jonet.model",
    "fit_pose": "jonet.model",
    "complete": "jonet.model",
    "encode": "jonet.model",
    "field": "jonet.model",
    "extract": "jonet.model",
    "reconstruct": "jonet.model",
    "purify": "jonet.model",
    "sample": "jonet.model",
    "interpolate": "jonet.model",
    "represent": "jonet.representation",
    "Fields": "jonet.fields",
    "evaluate": "jonet.evaluation.metrics",
    "make_grid": "jonet.inference.surfaces.grid",
    "Field": "jonet.networks.field",
    "InputField": "jonet.networks.input_field",
    "Mesh": "jonet.geometry.mesh",
    "Similarity": "jonet.geometry.mesh",
    "read": "jonet.geometry.mesh_files",
    "write": "jonet.geometry.mesh_files",
    "Store": "jonet.data.store",
    "sample_sdf": "jonet.data.scans",
    "JonetError": "jonet.errors",
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]: the block below has the names

if TYPE_CHECKING:  # the same names for type checkers and editors, which import nothing; a test compares both
    from jonet.codes import Codes as Codes
    from jonet.data.scans import sample_sdf as sample_sdf
    from jonet.data.store import Store as Store
    from jonet.errors import JonetError as JonetError
    from jonet.evaluation.metrics import evaluate as evaluate
    from jonet.fields import Fields as Fields
    from jonet.geometry.mesh import Mesh as Mesh
    from jonet.geometry.mesh import Similarity as Similarity
    from jonet.geometry.mesh_files import read as read
    from jonet.geometry.mesh_files import write as write
    from jonet.inference.surfaces.grid import make_grid as make_grid
    from jonet.model import Model as Model
    from jonet.model import complete as complete
    from jonet.model import encode as encode
    from jonet.model import extract as extract
    from jonet.model import field as field
    from jonet.model import fit as fit
    from jonet.model import fit_pose as fit_pose
    from jonet.model import interpolate as interpolate
    from jonet.model import load as load
    from jonet.model import purify as purify
    from jonet.model import reconstruct as reconstruct
    from jonet.model import sample as sample
    from jonet.networks.field import Field as Field
    from jonet.networks.input_field import InputField as InputField
    from jonet.representation import represent as represent
    from jonet.run.train import train as train
    from jonet.tasks.base import Task as Task
else:

    def __getattr__(name: str):
        if name not in _MODULES:
            raise AttributeError(f"jonet has no {name!r}; it has {', '.join(__all__)}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return [*__all__, "__version__"]
