"""A run's metrics use the same sign method as its samples."""

import dataclasses

import pytest
import trimesh

from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.sources import Source
from jonet.evaluation import metrics
from jonet.geometry.mesh import Mesh
from jonet.run import stages


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
    ("sign", "diagnosis", "method"),
    [
        ("auto", "exact", "exact"),
        ("auto", "views", "views"),
        ("fusion", "views", "views"),
        ("views", "exact", "views"),
        ("winding", "views", "winding"),
    ],
)
def test_shapes_are_scored_by_the_method_of_their_samples(store, monkeypatch, sign, diagnosis, method):
    monkeypatch.setattr(store, "sign", sign)
    monkeypatch.setattr(store, "diagnoses", [dataclasses.replace(store.diagnoses[0], method=diagnosis)])
    monkeypatch.setattr(metrics, "as_learned", lambda mesh, method: (len(mesh.faces), method))
    assert stages.ground_truth(store, 0) == (320, method)


def test_samples_that_came_without_a_mesh_have_no_method(store, monkeypatch):
    monkeypatch.setattr(store, "diagnoses", [None])
    assert isinstance(stages.ground_truth(store, 0), Mesh)
