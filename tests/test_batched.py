"""After training: codes and scores of many shapes in batches, with the values of one batch."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jonet import resources
from jonet.codes import Codes
from jonet.device_memory import Pieces
from jonet.evaluation import baseline
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference import encode
from jonet.inference.fitting import latents
from jonet.networks.bound import BoundNetwork
from jonet.networks.occupancy import OccupancyNetwork
from jonet.run import report_pages, stages
from jonet.tasks import deepsdf, onet, onet_points, onet_unconditional
from jonet.training import autodecoder, conditional

pytestmark = pytest.mark.unoptimized


class Shapes:
    """A store of balls that counts the shapes whose rows were asked for."""

    def __init__(self, count: int):
        self.names = [f"ball_{i}" for i in range(count)]
        self.similarities = [Similarity()] * count
        self.asked = []

    def surface(self, i: int):
        self.asked.append(int(i))
        points = np.random.default_rng(i).standard_normal((500, 3)).astype(np.float32)
        points *= (0.2 + 0.02 * i) / np.linalg.norm(points, axis=1, keepdims=True)
        return points, points

    def occupancy(self, i: int):
        points = np.sort(np.random.default_rng(i).uniform(-0.5, 0.5, (3000, 3)).astype(np.float16), axis=0)
        return points, np.arange(3000) > 1500 + 50 * i

    def samples(self, i: int):
        self.asked.append(int(i))
        points = np.random.default_rng(i).uniform(-1, 1, (700, 3))
        return np.column_stack([points, np.linalg.norm(points, axis=1) - 0.4 - 0.02 * i]).astype(np.float32)


def test_inputs_are_encoded_in_batches(monkeypatch):
    config = onet_points.TASK.presets["quick"]
    module, store, shapes = OccupancyNetwork(config.network), Shapes(7), np.array([6, 1, 2, 3, 5])
    shared, _, batch_stats = conditional.initial(module, 5, jax.random.key(0))
    network, found, seen = BoundNetwork(module, shared, batch_stats), [], []
    whole = encode.encode
    monkeypatch.setattr(encode, "encode", lambda *given: seen.append(list(store.asked)) or whole(*given))
    for most in (64, 2):
        monkeypatch.setattr(encode, "TOGETHER", Pieces("shapes", most, 1))
        found.append(onet.encoded(config.inputs, config.seed, network, store, shapes))
        store.asked.clear()
    assert seen == [[6, 1, 2, 3, 5], [6, 1], [6, 1, 2, 3], [6, 1, 2, 3, 5]]  # no shape before its batch
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.ptp(found[0], axis=0).max() > 1e-3


def test_errors_of_training_codes_are_measured_in_batches(monkeypatch):
    module, store, shapes = deepsdf.DeepSDFDecoder(deepsdf.small(16, 2, 4)), Shapes(7), np.array([6, 1, 2, 3, 5])
    shared, codes = autodecoder.initial(module, 5, jax.random.key(0))
    network, found = BoundNetwork(module, shared, {}), []
    for most in (256, 2):
        monkeypatch.setattr(latents, "TOGETHER", Pieces("shapes", most, 1))
        found.append([*deepsdf.training_errors(network, store, shapes, np.asarray(codes), deepsdf.Config().fitting)])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.shape(found) == (2, 2, 5)


def test_bounds_of_shapes_are_computed_in_batches(monkeypatch, compilations):
    """Which compile one program, with a last batch of any size."""
    config, store = onet_unconditional.TASK.presets["quick"], Shapes(5)
    module, found = OccupancyNetwork(config.network), []
    shared, _, batch_stats = conditional.initial(module, 5, jax.random.key(0))
    network = BoundNetwork(module, shared, batch_stats)
    for together in (64, 2):
        monkeypatch.setattr(onet_unconditional, "TOGETHER", together)
        found.append(onet_unconditional.bounds(config, store, np.arange(5), network))
    with compilations() as seen:
        onet_unconditional.bounds(config, store, np.arange(3), network)
    assert not seen, seen
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)


def test_nearest_shapes_are_found_in_blocks(monkeypatch):
    store, found = Shapes(20), []
    coarse = np.stack([baseline._coarse(store.surface(i)[0]) for i in range(20)])
    for block in (1000, 3):
        monkeypatch.setattr(baseline, "BLOCK", block)
        found.append(baseline._coarse_chamfer(coarse[4], coarse))
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert baseline.nearest(store, [0, 19], range(20), count=2) == {0: [1, 2], 19: [18, 17]}


def test_meshes_are_extracted_and_written_in_batches(tmp_path, monkeypatch):
    """Under names that are unique among all shapes, not only in a batch; shapes without a surface have no file."""
    names = ("a/b", "a_b", "empty", "a:b", "c")
    codes, claimed, sizes = Codes(np.arange(5.0, dtype=np.float32)[:, None], names), [], []
    run = SimpleNamespace(claim=lambda stage, paths: claimed.extend(paths))

    def extract(some):
        sizes.append(len(some))
        faces = [[0, 1, 2]]
        corners = [np.eye(3) * (1 + value) for value in some.values[:, 0]]
        return [
            Mesh(vertices, faces if name != "empty" else np.zeros((0, 3)), name=name)
            for vertices, name in zip(corners, some.names, strict=True)
        ]

    monkeypatch.setattr(stages, "TOGETHER", 2)
    written = stages.extract_all(run, SimpleNamespace(extract=extract), codes, tmp_path)
    assert sizes == [2, 2, 1] and len({*written}) == 4 and claimed == written
    meshes = report_pages.read_all(tmp_path, names)
    assert [mesh.name for mesh in meshes] == list(names)
    assert [mesh.vertices.max() if len(mesh.vertices) else 0 for mesh in meshes] == [1, 2, 0, 4, 5]


def test_shapes_are_scored_one_per_core_at_a_time(monkeypatch):
    monkeypatch.setattr(resources, "cores", lambda: 2)
    now, most = [], []

    def score(name: str, i: int) -> dict:
        now.append(i)
        most.append(len(now))
        time.sleep(0.01)
        now.remove(i)
        return {"i": i}

    found = stages.in_threads(score, "scores", [f"shape {i}" for i in range(20)], range(20))
    assert found == [{"i": i} for i in range(20)] and max(most) <= 2
