"""The same short trainings on one to four fake devices, and as two processes; `test_devices` compares them.

    python device_runs.py FOLDER                      one process with four devices, of which 1 to 4 work
    python device_runs.py FOLDER ADDRESS PROCESS      one of two processes with a device each

Fake devices need NPROC=16 in the environment before JAX is imported: with few threads, collectives wait for each other.
"""

import contextlib
import sys
from pathlib import Path

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4 if len(sys.argv) == 2 else 1)
    if len(sys.argv) > 2:
        jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))

import jax.numpy as jnp
import miniature
import numpy as np

from jonet import parallel
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.training.checkpoints import Checkpoints
from jonet.training.loop import Loop, train
from jonet.training.monitor import agreed


class Doubled:
    """A decoder in float64: a shape's fold computes in the precision of its arrays."""

    def __init__(self, decoder: DeepSDFDecoder):
        self.decoder, self.specs, self.axis = decoder, decoder.specs, decoder.axis

    def apply(self, shared, codes, points, dropout=None):
        return jax.vmap(lambda code, cloud: self.decoder.fold(shared, {}, code).at(cloud))(codes, points)


def result(loop: Loop, state) -> dict[str, np.ndarray]:
    """Parameters and codes, these in the order of the store; and their averages, if the loop keeps them."""
    learned = {"shared": parallel.host(state.shared), "codes": loop.per_shape(state)}
    if loop.ema_decay:
        learned["ema"] = parallel.host(loop.evaluated(state))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(learned)}


class Stopped(Exception):
    """What stops a run halfway."""


def twenty_steps(loop: Loop, folder: Path | None = None):
    """Float32, with dropout, clipping and bounded codes; folder: the run is stopped, and goes on from a checkpoint."""
    if folder is None:
        data, _ = loop.batches.segment(0, 20)
        state, metrics, _ = loop.advance(miniature.fresh(loop), data, 20, 20)
        norms = {name: parallel.host(metrics[name])[:20] for name in ("loss", "gradient")}  # Adam hides a factor
        return result(loop, state) | norms
    with Checkpoints(folder) as checkpoints:
        some_steps(loop, checkpoints, 10)
    with Checkpoints(folder) as checkpoints:
        assert int(loop.restore(checkpoints, miniature.fresh(loop))[0].step) >= 5
        return result(loop, train(loop, miniature.fresh(loop), 20, checkpoints=checkpoints, bar=False))


def some_steps(loop: Loop, checkpoints: Checkpoints, until: int):
    """Trains on from a checkpoint, of twenty steps in all, and is stopped."""
    segment = loop.batches.segment

    def stopping(first, limit):
        if first >= until:
            raise Stopped
        return segment(first, min(limit, 5, until - first))

    loop.batches.segment = stopping
    with contextlib.suppress(Stopped):
        train(loop, miniature.fresh(loop), 20, checkpoints=checkpoints, save_every=0.0, bar=False)
    checkpoints.wait()
    loop.batches.segment = segment


def moving_steps(loops: dict[int, Loop], folder: Path, moves):
    """The same run on several numbers of devices, one after the other.  moves: (until which step, devices)."""
    for until, devices in moves:
        with parallel.use(devices), Checkpoints(folder) as checkpoints:
            some_steps(loops[devices], checkpoints, until)
            state, _ = loops[devices].restore(checkpoints, miniature.fresh(loops[devices]))
            assert int(state.step) == until, (int(state.step), until)
            learned = result(loops[devices], state)
    return learned


def five_hundred_steps():
    """Float64, in which rounding has no time to grow."""
    with jax.enable_x64(True):
        decoder = DeepSDFDecoder(Specs(latent_size=3, dims=(8, 8), dropout=(), norm_layers=(0,), latent_in=(1,)))
        loop = miniature.make(miniature.batches(points=8), decoder=Doubled(decoder))
        state = loop.start(*jax.tree.map(np.float64, miniature.start(decoder, 6)))
        data, _ = loop.batches.segment(0, 500)
        state, *_ = loop.advance(state, data, 500, 500)
        return result(loop, state)


def collectives():
    """What the mapped functions see of each other, and the gradient of a loss with a sum over devices inside."""

    def on_device(weights, x):
        def loss(weights):
            mean = parallel.sum(jnp.sum(x * weights[0])) / 8
            return jnp.sum((x * weights[1] - mean) ** 2)

        return {
            "sum": parallel.sum(jnp.sum(x)),
            "gather": parallel.gather(x),
            "gradient": parallel.sum(jax.grad(loss)(weights)),
        }, parallel.index()[None]

    specs = (parallel.REPLICATED, parallel.SPLIT)
    mapped = parallel.pmap(on_device, specs, specs)
    x = np.linspace(-1, 2, 8).astype(np.float32)
    same, index = mapped(parallel.replicate(np.array([2.0, 3.0], np.float32)), parallel.split(x))
    chosen = parallel.from_main({"place": "here" if parallel.is_main() else "elsewhere"})  # of all processes
    taken = parallel.split_by((parallel.count(),), bool, lambda device: np.array([chosen == {"place": "here"}]))
    seen = {"index": parallel.host(index), "agreed": agreed(2.5), "taken": parallel.host(taken)}
    return parallel.host(same) | seen


def main(folder: Path):
    if jax.process_count() > 1:
        learned, seen = twenty_steps(miniature.make(), folder / "checkpoints"), collectives()
        if parallel.is_main():
            np.savez(folder / "processes.npz", **learned)
            np.savez(folder / "collectives_processes.npz", **seen)
        return
    few = {}
    for devices in (1, 2, 4):
        with parallel.use(devices):
            np.savez(folder / f"collectives_{devices}.npz", **collectives())
            loop = miniature.make()
            np.savez(folder / f"float32_{devices}.npz", **twenty_steps(loop))
            np.savez(folder / f"float64_{devices}.npz", **five_hundred_steps())
            source = miniature.batches(shapes=3, batch=3 if devices == 2 else 4)
            few[devices] = miniature.make(source, ema_decay=0.8)
            np.savez(folder / f"few_{devices}.npz", **twenty_steps(few[devices]))
    moves = (5, 1), (10, 4), (15, 2), (20, 1)
    np.savez(folder / "few_moved.npz", **moving_steps(few, folder / "few_moved", moves))
    wide = {}
    for devices in (1, 3, 4):  # three do not divide the batch
        with parallel.use(devices):
            wide[devices] = miniature.make(miniature.batches(shapes=20, batch=16, points=8))
            np.savez(folder / f"wide_{devices}.npz", **twenty_steps(wide[devices]))
    moves = (5, 4), (10, 3), (20, 1)
    np.savez(folder / "wide_moved.npz", **moving_steps(wide, folder / "wide_moved", moves))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
