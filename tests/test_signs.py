"""A run's scores tell inside from outside as its samples were told."""

import dataclasses

import pytest
import trimesh

from experiments import stages
from jonet.data import store as stores
from jonet.data.meshes import Mesh
from jonet.data.sampling import Recipe
from jonet.data.sources import Source
from jonet.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Ball(Source):
    def load(self) -> Mesh:
        made = trimesh.creation.icosphere(2, 1.0)
        return Mesh(made.vertices, made.faces)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    recipe = Recipe(near=0, uniform=0, surface=50)
    return stores.build(tmp_path_factory.mktemp("stores") / "store", [Ball("ball")], recipe, progress=False)


@pytest.mark.parametrize(
    ("sign", "verdict", "method"),
    [
        ("auto", "exact", "exact"),
        ("auto", "views", "views"),
        ("fusion", "views", "views"),
        ("views", "exact", "views"),
        ("winding", "views", "winding"),
    ],
)
def test_shapes_are_scored_by_the_method_of_their_samples(store, monkeypatch, sign, verdict, method):
    monkeypatch.setattr(store, "sign", sign)
    monkeypatch.setattr(store, "verdicts", [dataclasses.replace(store.verdicts[0], method=verdict)])
    monkeypatch.setattr(metrics, "as_learned", lambda mesh, method: (len(mesh.faces), method))
    assert stages.truth(store, 0) == (320, method)


def test_samples_that_came_without_a_mesh_have_no_method(store, monkeypatch):
    monkeypatch.setattr(store, "verdicts", [None])
    assert isinstance(stages.truth(store, 0), Mesh)
