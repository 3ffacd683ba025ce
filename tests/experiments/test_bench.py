"""The benchmark: both sides compute the same function, and every row runs on tiny workloads with all its entries."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT

from experiments.bench import __main__ as bench
from experiments.bench import decoders, machine, peers, quality, trained, training
from experiments.bench.rows import TARGETS, Unit
from jonet.errors import ConfigError
from jonet.networks import deepsdf

pytestmark = pytest.mark.unoptimized

PUBLISHED = {"row", "workload", "ours", "theirs", "unit", "ratio", "of_peak", "device"}

needs_torch = pytest.mark.skipif(not peers.available(), reason="the PyTorch side needs torch: pip install torch")


def test_every_row_has_an_aim():
    assert list(bench.ROWS) == list(TARGETS)


def test_operations_are_those_of_the_matrices():
    """By hand: 8×512 with code 256, of whose products the code's are left out."""
    forward = 3 * 512 + 2 * 512 * 512 + 512 * 253 + (253 + 3) * 512 + 3 * 512 * 512 + 512
    to_inputs = forward - 3 * 512 - 3 * 512
    assert training.deepsdf_operations(deepsdf.Specs(), 10) == 2 * 10 * (2 * forward + to_inputs)


def test_units():
    assert Unit("points a second", 100, rate=True).figure(0.5) == 200
    assert Unit("seconds a step").figure(0.5) == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="by a call that Linux has")
def test_a_stopped_peer_ends_with_a_killed_bench():
    """Peers are paused between requests; a killed bench cannot resume them, so they must end with it."""
    peer = (
        "from experiments.bench.peer.lifetime import end_with_parent; end_with_parent(); print(1, flush=True); input()"
    )
    bench = f"""
import os, signal, subprocess, sys
peer = subprocess.Popen([sys.executable, "-c", {peer!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
peer.stdout.readline()
peer.send_signal(signal.SIGSTOP)
print(peer.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", bench], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    state = Path(f"/proc/{int(found.stdout)}/stat")
    deadline = time.monotonic() + 60
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_peak_of_memory_is_seen_and_forgotten():
    before = machine.peak(reset=True)
    if math.isnan(before):
        pytest.skip("peaks of memory are read on Linux")
    held = np.ones(30_000_000)  # 240 MB
    during = machine.peak()
    del held
    assert during > machine.peak(reset=True) - 0.01 and during - before > 0.2


def test_unknown_rows_are_refused():
    with pytest.raises(ConfigError, match="sdf_decoder"):
        bench.parse(["--rows=sdf"])


def test_rows_without_torch(monkeypatch, tmp_path, capsys):
    """Ours alone: the same form, without the other side."""
    monkeypatch.setattr(peers, "available", lambda: False)
    file = tmp_path / "bench.json"
    names = "deepsdf_train_step,sdf_decoder"
    assert bench.main([f"--rows={names}", "--quick", "--repeats=1", f"--json={file}"]) == 0
    rows = json.loads(file.read_text())
    assert [row["row"] for row in rows] == names.split(",")
    for row in rows:
        assert row.keys() >= PUBLISHED and row["ours"] > 0 and row["theirs"] is None and row["of_peak"] > 0
    assert "jonet only" in capsys.readouterr().err


@needs_torch
def test_rows_with_torch():
    """Each side of a decoder gives the other's values."""
    options = bench.parse(["--rows=sdf_decoder,occupancy_decoder", "--quick", "--repeats=1"])
    for row in bench.measure(options):
        assert row["theirs"] > 0 and row["ratio"] > 0 and row["setting"]["theirs"]
        assert row["difference"] < 1e-5


@needs_torch
def test_networks_go_to_the_peer_and_come_back(tmp_path):
    """Weights under our names, through a PyTorch module, are the same weights."""
    from experiments.bench.peer import networks

    specs = deepsdf.Specs(latent_size=8, dims=(32,) * 4, latent_in=(2,), norm_layers=(0, 1, 2, 3), dropout=())
    shared = deepsdf.DeepSDFDecoder(specs).init(jax.random.key(0), np.zeros((1, 8)), np.zeros((1, 1, 3)))
    network = networks.DeepSDF(specs.latent_size, specs.dims, (), 0.0, specs.norm_layers, specs.latent_in)
    with np.load(trained.save_weights(tmp_path / "there.npz", shared["params"])) as arrays:
        networks.take(network, arrays)
    np.savez(tmp_path / "back.npz", codes=np.zeros((2, 8)), **networks.give(network))
    back, codes = quality.read(tmp_path / "back.npz", shared)
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, dict(shared)))
    assert codes.shape == (2, 8)


@needs_torch
def test_the_octree_of_the_peer_is_ours():
    """MISE on a ball: as many points evaluated as by `mise.evaluate_octree`, and the ball's volume."""
    from experiments.bench.peer.meshing import Octree
    from jonet.geometry.mesh import Mesh

    def ball(points):
        return 40 * (0.35 - np.linalg.norm(points, axis=1)).astype(np.float32)

    octree = Octree.__new__(Octree)
    octree.coarse, octree.steps, octree.level, octree.side, evaluated = 8, 2, 0.0, 1.1, []
    octree.evaluate = lambda points: (evaluated.append(len(points)), ball(points))[1]
    vertices, faces = octree.mesh(whole=True)
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    volume = abs(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
    assert volume == pytest.approx(4 / 3 * np.pi * 0.35**3, rel=0.01)
    assert sum(evaluated) == expected_by_mise(8, 2, ball)
    assert Mesh(vertices, faces).watertight


def expected_by_mise(coarse, steps, function) -> int:
    """The number of points at which `mise.evaluate_octree` evaluates the same function."""
    from jonet.inference.surfaces import mise
    from jonet.inference.surfaces.grid import Lattice

    half = 0.55
    lattice = Lattice(np.array([[[-half] * 3, [half] * 3]]), coarse << steps)

    def evaluator(keys):
        return function(lattice.to_coordinates(lattice.shape(keys), lattice.index(keys)))

    class Evaluator:
        fields, __call__ = [None], staticmethod(evaluator)

    Evaluator.lattice = lattice
    _, counts = mise.evaluate_octree(Evaluator(), coarse)
    return int(np.sum(counts))


@needs_torch
def test_features_of_the_peer_are_interpolated():
    """Dense: a linear function of the corners is that function.  Sparse: the same in the chosen cells, else 0."""
    import torch

    from experiments.bench.peer.grids import Features

    corners = torch.cartesian_prod(*[torch.linspace(-1, 1, 9)] * 3)
    slopes = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, -2], [0, 0, 1, 3]])
    cells = torch.tensor([[0, 0, 0], [7, 3, 5]])
    dense, sparse = Features(8), Features(8, cells)
    with torch.no_grad():
        dense.values[1:] = corners @ slopes
        sparse.values[1:] = (corners @ slopes)[sparse.rows > 0]
    points = torch.cat([-1 + 0.25 * (c + torch.rand(20, 3)) for c in cells])
    torch.testing.assert_close(dense(points), points @ slopes)
    torch.testing.assert_close(sparse(points), points @ slopes)
    far = torch.full((1, 3), 0.9)
    assert sparse(far).abs().max() == 0 and dense(far).abs().max() > 0
    assert len(sparse.values) == 1 + 16


@needs_torch
def test_the_peer_doubles_its_steps_until_it_is_as_good(tmp_path):
    from experiments.bench.peer import grids

    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (4000, 3)).astype(np.float32)
    distances = np.linalg.norm(points, axis=1, keepdims=True) - 0.6
    np.save(tmp_path / "rows.npy", np.hstack([points, distances]).astype(np.float32))
    np.savez(tmp_path / "held.npz", points=points, inside=distances[:, 0] < 0)
    program = grids.GridTraining(str(tmp_path / "rows.npy"), str(tmp_path / "held.npz"), 16)
    asked, scores = [], iter([0.5, 0.6, 0.9, 0.7])
    program.train = lambda whole, steps: asked.append((whole, steps))
    program.iou = lambda field: next(scores)
    answer = program(whole=4000, wanted=0.8)
    assert asked == [(125, 125), (250, 250), (500, 500)] and answer["steps"] == 500 and answer["iou"] == 0.9
    asked.clear()
    scores = iter([0.5, 0.6, 0.7])
    assert program(whole=400, wanted=0.8)["steps"] == 400 and asked == [(125, 125), (250, 250), (400, 400)]
    asked.clear()
    assert program(whole=400, steps=100)["part"] == 0.25 and asked == [(400, 100)]
    del program.train, program.iou
    assert program.iou(program.train(30, 30)) > 0.8


def test_scattered_parameters_stay_what_they_are():
    """Only moved a little, and the same each time."""
    trees = {"a": np.zeros(1000)}, {"b": np.ones(1000)}
    moved = decoders.scattered(trees)
    assert 0.04 < moved[0]["a"].std() < 0.06 and abs(moved[1]["b"].mean() - 1) < 0.01
    np.testing.assert_array_equal(moved[0]["a"], decoders.scattered(trees)[0]["a"])


def test_a_network_is_trained_whatever_is_asked_for_first(tmp_path, monkeypatch):
    """Both the store and the training lock the run folder: one after the other, not one within the other."""
    monkeypatch.setattr(trained.train, "prepare", lambda run: "store")
    monkeypatch.setattr(trained.train, "train_network", lambda run, store: ("trained on", store))
    assert trained.Trained(tmp_path / "run", quick=True).model == ("trained on", "store")
