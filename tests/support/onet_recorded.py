"""Recorded outputs of the published Occupancy Networks program (recorded/onet), and comparisons with them."""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from paths import RECORDED

from jonet.networks.layers import BatchReduction
from jonet.networks.occupancy import Specs
from jonet.networks.published.pretrained import from_torch

HERE = RECORDED / "onet"
STEPS = 5
RATE = 1e-4
KEY = jax.random.key(0)
PUBLISHED = {
    "img/onet": Specs(),
    "pointcloud/onet": Specs(encoder="pointnet_resnet", c_dim=512),
    "voxels/onet": Specs(encoder="voxel_simple"),
    "unconditional/onet_cars": Specs(decoder="simple", encoder="null", c_dim=0, z_dim=128, hidden_size=128),
    "repr_power/onet": Specs(encoder="idx", c_dim=512, threshold=0.5),
    "ablation/architecture_nocbn": Specs(decoder="batchnorm"),
    "ablation/architecture_noresnet": Specs(decoder="cbatchnorm_noresnet"),
}
# Small programs that run a few times: compiling is what takes their time.
quickly = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


class Recorded:
    """One recorded file: `recorded["eval/logits"]`, `recorded.group("input")`, `recorded.facts`."""

    def __init__(self, name: str):
        self.arrays = dict(np.load(find(f"{name}.npz")))
        self.facts = json.loads((find(f"{name}.npz").parent / "index.json").read_text())["files"][f"{name}.npz"]

    def __getitem__(self, name):
        return self.arrays[name]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.arrays.items() if name.startswith(start)}

    @property
    def shapes(self) -> int:
        return len(next(iter((self.group("input") or self.group("data")).values())))


def find(name: str) -> Path:
    """A recorded file: small ones are in the tests' folder, the others in the folder JONET_DATA."""
    if (HERE / name).exists():
        return HERE / name
    folder = Path(os.environ.get("JONET_DATA", "")) / "reference" / "onet"
    if not (folder / name).exists():
        pytest.skip(f"{name} is not among the tests' own recorded files; set JONET_DATA to the folder that has it")
    return folder / name


def drawn(like, seed: int = 0):
    """Any values for a tree of shapes, variances above zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = np.float32(rng.standard_normal(leaf.shape) / max(np.sqrt(np.prod(leaf.shape[:-1])), 4))
        return np.exp(values) if getattr(path[-1], "key", "") == "variance" else values

    return jax.tree_util.tree_map_with_path(draw, like)


def trees(recorded: Recorded, like, prefix: str, prepare=lambda state: state):
    """Recorded arrays as parameters and batch_stats shaped like ours; nan where nothing was recorded."""
    state = recorded.group("state")
    known = recorded.group(prefix)
    dead = set(recorded.facts.get("dead_parameters", ())) if prefix == "after" else set()
    whole = {
        n: np.full(v.shape, np.nan) if n in dead else known.get(n, np.full(v.shape, np.nan)) for n, v in state.items()
    }
    return from_torch(prepare(whole), *like)


def shapes_of(module, *arguments, **keywords):
    like = jax.eval_shape(lambda: module.init(KEY, *arguments, **keywords))
    return like["params"], like.get("batch_stats", {})


def run(module, parameters, batch_stats, *arguments, reduction=None, **keywords):
    """A module's result and its updated batch_stats."""
    variables = {"params": parameters, "batch_stats": batch_stats}
    mutable = [] if reduction is None else ["batch_stats"]
    result, changed = module.apply(variables, *arguments, reduction=reduction, mutable=mutable, **keywords)
    return result, changed.get("batch_stats", batch_stats)


def reproduce(recorded: Recorded, like, apply, loss, inputs, prepare=lambda state: state, slack=8.0):
    """Runs a module as the published program did, and compares everything recorded.

    like: parameters and batch_stats, as shapes.  apply(parameters, batch_stats, inputs, reduction) → outputs by
    recorded name, new batch_stats.  loss(outputs, inputs) → the mean over shapes.  inputs: arrays by recorded name.
    In float64 the loss equals the program's to 1e-12, which proves the function; float32 adds rounding.
    slack: largest error in float32, as a multiple of the program's own float32 error.
    """
    parameters, batch_stats = trees(recorded, like, "state", prepare)
    reduction = BatchReduction(jnp.ones(recorded.shapes))

    @quickly
    def passes(parameters, batch_stats, inputs):
        def objective(parameters, inputs):
            outputs, changed = apply(parameters, batch_stats, inputs, reduction)
            return loss(outputs, inputs), (outputs, changed)

        with jax.default_matmul_precision("highest"):
            evaluated, _ = apply(parameters, batch_stats, inputs, None)
            whole = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
            return (loss(evaluated, inputs), evaluated), whole(parameters, inputs)

    (value, evaluated), first = passes(parameters, batch_stats, inputs)
    (_, (outputs, changed)), (gradients, back) = first
    vector, whole = ravel_pytree(parameters)
    optimizer, losses, moved = optax.adam(RATE), [], []
    opt_state, running = optimizer.init(vector), batch_stats
    for _ in range(STEPS):
        _, ((now, (_, running)), (gradient, _)) = passes(whole(vector), running, inputs)
        updates, opt_state = optimizer.update(ravel_pytree(gradient)[0], opt_state)
        vector = optax.apply_updates(vector, updates)
        losses.append(now)
        moved.append(vector)
    after = whole(moved[0])

    facts = recorded.facts
    close(
        value, recorded["eval/loss" if "eval/loss" in recorded.arrays else "eval_step/loss"], slack * 2e-7, "eval/loss"
    )
    error = facts.get("float32_error_of_training_outputs", 2e-6)  # seen against float64: up to 8e-6
    for mode, results in (("eval", evaluated), ("train", outputs)):
        for name in results.keys() & recorded.group(mode).keys():
            wanted = recorded[f"{mode}/{name}"]
            close(results[name], wanted, slack * max(error / np.abs(wanted).max(), 2e-7), f"{mode}/{name}")
    close(losses, recorded["losses"], slack * 5e-7, "losses")
    largest = facts["largest_gradient"]
    tolerance = slack * facts["float32_error_of_gradients_over_largest"]
    wanted, _ = trees(recorded, like, "grad", prepare)
    each(gradients, wanted, lambda name, a, b: close(a, b, tolerance, f"grad/{name}", largest))
    for name, values in recorded.group("grad_input").items():
        close(back[name], values, tolerance, f"grad_input/{name}", largest)
    wanted_after, wanted_statistics = trees(recorded, like, "after", prepare)
    sure = jax.tree.map(lambda g: np.abs(g) > tolerance * largest, gradients)
    wanted_after = jax.tree.map(lambda a, s: np.where(s, a, np.nan), wanted_after, sure)
    each(after, wanted_after, lambda name, a, b: close(a, b, 1e-7, f"after/{name}", 1 + np.abs(a).max()))
    each(changed, wanted_statistics, lambda name, a, b: close(a, b, slack * 1e-7, f"after/{name}"))


def each(ours, wanted, check):
    """check(name, ours, wanted) of every leaf of two trees alike."""
    jax.tree_util.tree_map_with_path(lambda path, a, b: check(jax.tree_util.keystr(path), a, b) and None, ours, wanted)


def close(ours, wanted, tolerance: float, name: str, scale: float | None = None):
    """Asserts that every recorded number (not nan) is met within tolerance · scale (the largest of them)."""
    ours, wanted = np.asarray(ours), np.asarray(wanted)
    assert ours.shape == wanted.shape, name
    scale = np.nanmax(np.abs(wanted), initial=0) if scale is None else scale
    worst = np.nanmax(np.abs(ours - wanted), initial=0)
    assert worst <= tolerance * scale, f"{name}: off by {worst:.3g} at a scale of {scale:.3g}"
