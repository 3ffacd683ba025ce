"""Which settings make training fast:  python -m experiments.training_study RUN FOLDER [--seconds=80] [--rows=NAME;…]

The default network is trained on the training shapes of a run's store, with one setting changed at a time, each for the
same number of processor seconds (summed over all cores, little affected by other programs) and with a complete
learning-rate schedule.  The score is the median IoU of the run's unseen shapes, whose codes are fitted.  FOLDER gets
`training.json` (stored rows are not measured again).
"""

from __future__ import annotations

import dataclasses
import time

import jax

from experiments import study
from experiments.bench.quality import ground_truth, quality
from jonet import parallel
from jonet.data import store as stores
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.tasks import deepsdf
from jonet.tasks.deepsdf import Config
from jonet.training.loop import CAPACITY, Loop
from jonet.training.optimizers import Optimizer, Schedule

DEFAULT = deepsdf.TASK.presets["quick"]
SOME = 100  # steps by which the speed is measured
HALF = "half of the steps at clamp 0.1, half at 0.03"


def rated(name: str, kind: str, rate: float) -> Config:
    """The default with another optimizer; learning rate `rate` for the network and half of it for the codes."""
    shared, per_shape = (Schedule(kind, initial=r, final=r / 100) for r in (rate, rate / 2))
    return dataclasses.replace(DEFAULT, optimizer=Optimizer(name, shared, per_shape))


def clamped(clamp: float) -> Config:
    return dataclasses.replace(DEFAULT, learning=dataclasses.replace(DEFAULT.learning, clamp=clamp))


def variants() -> dict[str, list[Config]]:
    """The rows: a list of one config, or of one per equal part of the steps."""
    rows = {"default": DEFAULT}
    rows |= {f"Adam, {rate:g}": rated("adam", "cosine", rate) for rate in (1e-3, 2e-3, 4e-3)}
    rows |= {f"Muon, {rate:g}": rated("muon", "cosine", rate) for rate in (2e-3, 8e-3)}
    rows["Muon, 0.002, constant"] = rated("muon", "constant", 2e-3)
    for shapes, points in ((16, 32), (8, 64), (32, 64), (16, 128), (16, 256), (8, 256), (64, 256)):
        rows[f"{shapes} × {points} points"] = dataclasses.replace(DEFAULT, batch_shapes=shapes, batch_points=points)
    rows |= {f"clamp {clamp:g}": clamped(clamp) for clamp in (0.03, 0.3)}
    rows["published start"] = dataclasses.replace(
        DEFAULT, learning=dataclasses.replace(DEFAULT.learning, start="published")
    )
    rows["bfloat16"] = dataclasses.replace(DEFAULT, compute_dtype="bfloat16")
    return {name: [row] for name, row in rows.items()} | {HALF: [clamped(0.1), clamped(0.03)]}


class Training:
    """The training of one network with one config, or with several in turn, each for an equal part of the steps."""

    def __init__(self, settings: list[Config], store):
        key = parallel.fold_in(jax.random.key(0), "study")
        train = store.select("train")
        setups = [deepsdf.TASK.training_setup(each, store, train, key, {"place": "resident"}) for each in settings]
        self.start = setups[0].shared, setups[0].per_shape
        self.loops = [Loop(s.loss, s.optimizer.build(), s.batches, key, lookup=s.lookup) for s in setups]

    def run(self, steps: int) -> float:
        """Trains from the start for a number of steps; returns the processor seconds."""
        self.state = self.loops[0].start(*self.start)
        begun, step, each = time.process_time(), 0, -(-steps // len(self.loops))
        while step < steps:
            loop = self.loops[step // each]
            data, count = loop.batches.segment(step, min(CAPACITY, steps - step, each - step % each))
            self.state, _, _ = loop.advance(self.state, data, count, steps)
            step += count
        jax.block_until_ready(self.state)
        return time.process_time() - begun


def measure(settings: list[Config], store, ground_truths, seconds: float, steps: int = 0) -> dict:
    """The median IoU after a number of processor seconds, or of steps if that is not 0."""
    training = Training(settings, store)
    training.run(SOME)  # compiles
    steps = steps or round(seconds * SOME / training.run(SOME))
    taken = training.run(steps)
    codes, shared = training.loops[-1].per_shape(training.state), parallel.host(training.state.shared)
    score = quality(DeepSDFDecoder(settings[-1].network), shared, codes, store, ground_truths, DEFAULT.fitting)
    return {"iou": score, "steps": steps, "seconds": taken}


def main() -> None:
    parser = study.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=80.0, help="processor seconds per row, summed over all cores")
    parser.add_argument("--steps", type=int, default=0, help="training steps per row, in place of seconds")
    options = parser.parse_args()
    store = stores.open(options.run / "store")
    ground_truths = ground_truth(store, 20_000)

    def row(settings):
        return measure(settings, store, ground_truths, options.seconds, options.steps)

    rows = study.measured(options, "training.json", variants(), row, shapes=len(ground_truths))
    print("| | steps | processor seconds | median IoU |\n|---|---|---|---|")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["iou"]):
        print(f"| {name} | {row['steps']:,} | {row['seconds']:.0f} | {row['iou']:.3f} |")


if __name__ == "__main__":
    main()
