"""Inputs of encoders: clouds thinned to the trained number, occupancies that are 0 and 1, frames."""

import re
import warnings

import jax
import numpy as np
import pytest
import solids

from jonet import bulk, parallel
from jonet.errors import ConfigError, InputError
from jonet.geometry.mesh import Similarity
from jonet.inference import encode
from jonet.inference.encode import Inputs
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.training import conditional


@pytest.fixture(scope="module")
def variational():
    """A network with a latent encoder, and samples of a ball."""
    network = OccupancyNetwork(Specs(decoder="simple", encoder="null", c_dim=0, z_dim=4, hidden_size=16))
    shared, _, batch_stats = jax.device_get(conditional.initial(network, 1, jax.random.key(0)))
    model = Model("occupancy", BoundNetwork(network, shared, batch_stats), "cube", inputs=Inputs("samples", 64))
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3))
    return model, np.column_stack([points, np.linalg.norm(points, axis=1) < 0.4])


def test_occupancies_are_not_scaled_with_the_frame(variational):
    model, samples = variational
    transform = Similarity(0.01, translation=[5e5, 120, 4.2e6])
    own = samples.copy()
    own[:, :3] = transform.inverse()(samples[:, :3])
    wanted = model.encode([samples]).values
    np.testing.assert_allclose(model.encode([own], frame=[transform]).values, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("wrong", [0.5, -1, 100])
def test_occupancies_are_0_and_1(variational, wrong):
    model, samples = variational
    samples = samples.copy()
    samples[7, 3] = wrong
    with pytest.raises(InputError, match=rf"samples\[1\].*{wrong:g}.*0 \(outside\) and 1 \(inside\)"):
        model.encode([variational[1], samples])
    model.encode([samples[:7] > 0])  # bools are 0 and 1


@pytest.mark.parametrize("kind, shape", [("images", (8, 8, 3)), ("voxels", (8, 8, 8))])
def test_pixels_and_cells_are_from_0_to_1(kind, shape):
    inputs = Inputs(kind, 8)
    right = np.linspace(0, 1, np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(inputs.check([right]), np.float32(right)[None])
    for wrong in (255 * right, (255 * right).astype(np.uint8), right - 0.1):
        with pytest.raises(InputError, match=rf"{kind}\[1\] holds values from .* but must hold values from 0 to 1"):
            inputs.check([right, wrong])


def test_a_cloud_is_thinned_over_all_of_it():
    rows = np.linspace(0, 1, 1000)[:, None].repeat(3, 1)  # sorted along x, as scanners give them
    found = np.concatenate([encode.thinned(np.concatenate([rows, rows[:n]]), 10)[:, 0] for n in range(5)])
    assert found.min() < 0.2 and found.max() > 0.8
    ten = encode.thinned(rows, 10)[:, 0]
    assert len(set(ten.tolist())) == 10 and np.ptp(ten) > 0.5  # 9/11 in the mean
    again = encode.thinned(rows[:3], 10)
    assert len(again) == 10 and np.unique(again[:, 0], return_counts=True)[1].min() == 3


@pytest.fixture
def balls(monkeypatch):
    """A network that makes a ball of radius 3 about (100, 0, 0) of every cloud, and points of such a ball."""
    network = OccupancyNetwork(Specs(encoder="pointnet_simple", c_dim=8, hidden_size=4, n_blocks=1))
    shared, _, batch_stats = jax.device_get(conditional.initial(network, 1, jax.random.key(0)))
    model = Model("occupancy", BoundNetwork(network, shared, batch_stats), "cube", inputs=Inputs("points", 64))
    ball = solids.ball(3.0, (100, 0, 0))
    monkeypatch.setattr(Model, "extract", lambda self, codes, *args, **options: [ball] * len(codes.names))
    directions = np.random.default_rng(0).normal(size=(500, 3))
    return model, 3 * directions / np.linalg.norm(directions, axis=1, keepdims=True) + [100, 0, 0]


def test_clouds_that_are_not_of_their_mesh_are_said(balls, tmp_path):
    """A quarter of the points farther from it than 1/20 of the box, and a tenth, in one call and in bulk."""
    model, points = balls
    clouds = {"all": points, "tenth": points.copy(), "quarter": points.copy()}
    for name, count in (("tenth", 50), ("quarter", 125)):
        clouds[name][:count] += 0.3 * (points[:count] - [100, 0, 0])
    given = {"points": list(clouds.values()), "frame": "input", "outliers": "keep", "names": list(clouds)}
    with pytest.warns(UserWarning, match=r"^quarter: 2\d% of the points are far from the mesh: the encoder knows"):
        model.reconstruct(**given)
    with warnings.catch_warnings(action="error"):
        model.reconstruct(**given, whole=True)
        model.reconstruct(points=points[None] / 200)  # the network's own frame says nothing of boxes
    for name, cloud in clouds.items():
        np.save(tmp_path / f"{name}.npy", cloud)
    for out, whole in (("looked", False), ("whole", True)):
        bulk.reconstruct(model, tmp_path, tmp_path / out, outliers="keep", whole=whole)
    table = (tmp_path / "looked" / "manifest.csv").read_text()
    assert table.count("doubtful") == 1
    assert re.search(r"quarter.npy,doubtful: 2\d% of the points far from the mesh", table)
    assert "doubtful" not in (tmp_path / "whole" / "manifest.csv").read_text()
    with pytest.raises(ConfigError, match="whole is True, but this network encodes"):
        bulk.fit(model, tmp_path / "all.npy", tmp_path / "codes.npz", whole=True)


def test_the_network_is_sent_to_the_devices_once(variational, monkeypatch):
    model, samples = variational
    wanted = model.encode([samples]).values
    sent, place = [], parallel._place
    monkeypatch.setattr(parallel, "_place", lambda tree, spec: sent.append(tree) or place(tree, spec))
    np.testing.assert_array_equal(model.encode([samples]).values, wanted)
    assert [np.shape(array) for array in sent] == [(4, 64, 4)]  # the samples alone, in a list of four
