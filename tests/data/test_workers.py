"""Pools for short tasks: threads for few of them, other processes for many."""

import os
import pickle

import numpy as np
import pytest
import trimesh

from jonet import resources
from jonet.data import workers
from jonet.data.sampling import Solid
from jonet.evaluation import metrics
from jonet.geometry.mesh import Mesh
from jonet.settings.metrics import MetricsConfig


@pytest.mark.parametrize(("cores", "count", "here"), [(2, 1000, True), (3, 11, True), (3, 12, False)])
def test_many_tasks_run_in_other_processes(monkeypatch, cores, count, here):
    monkeypatch.setattr(resources, "cores", lambda: cores)
    with workers.executor(count) as pool:
        assert (pool.submit(os.getpid).result() == os.getpid()) == here


def test_scores_of_pairs_that_were_sent_are_the_same():
    ball = trimesh.creation.icosphere(2, radius=0.5)
    mesh = Mesh(ball.vertices, ball.faces)
    scoring = MetricsConfig(
        surface_points=500, chamfer_points=300, accuracy_points=50, volume_points=500, emd_points=20
    )
    pair = mesh, Solid(Mesh(0.9 * ball.vertices, ball.faces), "views")
    sent = pickle.loads(pickle.dumps(pair))
    assert metrics.score(*sent, scoring) == metrics.score(*pair, scoring)
    np.testing.assert_array_equal(sent[0].bounds, mesh.bounds)
