"""Whether the devices in use compute what a processor computed: training, codes and surfaces of balls.

JAX_PLATFORMS=cpu python -m experiments.accelerators.checks        computes and writes recorded.npz anew
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.inference.fitting import latents
from jonet.inference.fitting.observations import ObservedArrays, observe
from jonet.inference.surfaces import extraction
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.storage import atomic
from jonet.training import autodecoder
from jonet.training.autodecoder import AutoDecoder
from jonet.training.batches import BatchSpec, RowSampling, load
from jonet.training.lanes import Lanes
from jonet.training.loop import Loop
from jonet.training.optimizers import Optimizer, Schedule

RECORDED = Path(__file__).with_name("recorded.npz")
NETWORK = DeepSDFDecoder(Specs(latent_size=4, dims=(64,) * 4, dropout=(), norm_layers=(0, 1, 2, 3), latent_in=(2,)))
SHAPES, POINTS, STEPS = 16, 256, 1000  # of the training whose network is recorded
FIRST = 12  # losses that are compared; rounding of another processor grows to 2e-6 until there, and to 2e-3 after 20
UNSEEN = (0.37, 0.52, 0.68)  # radii of the balls whose codes are fitted
CELLS = 32  # a side of the surfaces
TOLERANCES = {"losses": 1e-4, "residuals": 0.05, "volumes": 2e-3, "areas": 2e-3}  # relative


def ball(radius: float, rows: int, seed: int) -> np.ndarray:
    """Points with signed distances [rows, 4] of a ball around the origin, those outside first."""
    points = np.random.default_rng(seed).uniform(-1, 1, (rows, 3))
    distances = np.linalg.norm(points, axis=1) - radius
    return np.column_stack([points, distances])[np.argsort(distances <= 0, kind="stable")].astype(np.float32)


def trained(steps: int):
    """Losses of `steps` steps from the start, and the network's parameters and codes after them."""
    balls = [ball(radius, 2048, seed) for seed, radius in enumerate(np.linspace(0.3, 0.75, SHAPES))]
    counts = np.array([[(rows[:, 3] > 0).sum(), (rows[:, 3] <= 0).sum()] for rows in balls])
    arrays = {"sdf": RaggedArray(np.concatenate(balls), 2048 * np.arange(SHAPES), counts)}
    lanes = Lanes.deal(range(SHAPES), SHAPES, 0, parallel.count())
    batches = load(arrays, lanes, BatchSpec(RowSampling("sdf", POINTS)), jax.random.key(0), "resident")
    optimizer = Optimizer(shared=Schedule("constant", 3e-3), per_shape=Schedule("constant", 3e-3))
    loss = functools.partial(autodecoder.loss, decoder=NETWORK, settings=AutoDecoder())
    loop = Loop(loss, optimizer.build(), batches, jax.random.key(0))
    shared, codes = autodecoder.initial(NETWORK, SHAPES, jax.random.key(0), start="centered")
    state = loop.start(parallel.host(shared), codes)
    data, _ = batches.segment(0, steps)
    state, metrics, _ = loop.advance(state, data, steps, steps)
    return parallel.host(metrics["loss"])[:steps], parallel.host(state.shared), loop.per_shape(state)


def inferred(shared, codes) -> dict[str, np.ndarray]:
    """Residuals of codes of unseen balls, and volumes and areas of their surfaces, with given parameters.

    codes: of the training shapes.
    """
    network = BoundNetwork(NETWORK, shared)
    samples = [ball(radius, 4096, 100 + i) for i, radius in enumerate(UNSEEN)]
    found = latents.fit(network, observe(ObservedArrays.checked(samples)), starts=codes)
    meshes = extraction.extract(network.fields(found.values), CELLS)
    return {
        "residuals": found.residual,
        "volumes": np.array([mesh.volume for mesh in meshes]),
        "areas": np.array([mesh.area for mesh in meshes]),
    }


def record(file: Path = RECORDED, steps: int = STEPS) -> None:
    """Trains, and writes what the devices in use compute, with the parameters it is computed with."""
    with jax.default_matmul_precision("highest"):
        losses, shared, codes = trained(steps)
        leaves = {f"shared{i}": leaf for i, leaf in enumerate(jax.tree.leaves(shared))}
        results = {"losses": losses[:FIRST], **inferred(shared, codes)}
    with atomic.open_file(file) as out:
        np.savez_compressed(out, codes=codes, **leaves, **results)


def differences(file: Path = RECORDED) -> dict[str, float]:
    """The largest relative difference of each of `TOLERANCES` from what was recorded, on the devices in use."""
    with np.load(file) as recorded, jax.default_matmul_precision("highest"):
        structure = jax.tree.structure(jax.eval_shape(NETWORK.init, jax.random.key(0), *_empty()))
        leaves = [recorded[f"shared{i}"] for i in range(structure.num_leaves)]
        losses, *_ = trained(FIRST)
        found = {"losses": losses, **inferred(jax.tree.unflatten(structure, leaves), recorded["codes"])}
        return {name: float(np.abs(found[name] / recorded[name] - 1).max()) for name in TOLERANCES}


def _empty() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((1, NETWORK.specs.latent_size), np.float32), np.zeros((1, 1, 3), np.float32)


def lines(found: dict[str, float]) -> list[str]:
    """What `differences` found, a line for each."""
    return [
        f"{name}: {difference:.2g} from the processor's, of {TOLERANCES[name]:g} allowed"
        + (": TOO MUCH" if name in too_much(found) else "")
        for name, difference in found.items()
    ]


def too_much(found: dict[str, float]) -> list[str]:
    """Which of the differences are not allowed; nan is none that is."""
    return [name for name, difference in found.items() if not difference <= TOLERANCES[name]]


if __name__ == "__main__":
    record()
    print("\n".join(lines(differences())))
