"""What makes training fast:  python -m experiments.training_study RUN FOLDER [--seconds=80] [--rows=NAME;…]

The default network learns the training shapes of a run's store anew, with one setting changed at a time, for equal
processor seconds (all cores together, which other work on the machine changes little); every run has a whole schedule.
It is judged by the median IoU of the run's unseen shapes, whose codes are fitted.  FOLDER gets `training.json` (rows
that are there are not measured again).
"""

from __future__ import annotations

import dataclasses
import time

import jax

from experiments import study
from experiments.bench.quality import quality, truth
from jonet import parallel
from jonet.data import store as stores
from jonet.networks.deepsdf import Decoder
from jonet.tasks import deepsdf
from jonet.tasks.deepsdf import Config
from jonet.training.loop import CAPACITY, Loop
from jonet.training.optimizers import Optimizer, Schedule

DEFAULT = deepsdf.PRESETS["quick"]
SOME = 100  # steps by which the pace is measured
HALF = "half of the steps at clamp 0.1, half at 0.03"


def rated(name: str, kind: str, rate: float) -> Config:
    """The default with another optimiser: network and codes at `rate` and half of it."""
    shared, own = (Schedule(kind, initial=r, final=r / 100) for r in (rate, rate / 2))
    return dataclasses.replace(DEFAULT, optimizer=Optimizer(name, shared, own))


def clamped(clamp: float) -> Config:
    return dataclasses.replace(DEFAULT, learning=dataclasses.replace(DEFAULT.learning, clamp=clamp))


def variants() -> dict[str, list[Config]]:
    """One config, or one for each equal part of the steps."""
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
    """One network that learns: with one setting, or with one after the other for equal parts of the steps."""

    def __init__(self, settings: list[Config], store):
        key = parallel.fold(jax.random.key(0), "study")
        problems = [
            deepsdf.problem(each, store, store.select("train"), key, {"place": "resident"}) for each in settings
        ]
        self.start = problems[0].shared, problems[0].own
        self.loops = [Loop(p.loss, p.optimizer.build(), p.batches, key, lookup=p.lookup) for p in problems]

    def run(self, steps: int) -> float:
        """A whole training of so many steps, from the start → processor seconds."""
        self.state = self.loops[0].start(*self.start)
        begun, step, each = time.process_time(), 0, -(-steps // len(self.loops))
        while step < steps:
            loop = self.loops[step // each]
            data, count = loop.batches.segment(step, min(CAPACITY, steps - step, each - step % each))
            self.state, _, _ = loop.advance(self.state, data, count, steps)
            step += count
        jax.block_until_ready(self.state)
        return time.process_time() - begun


def measure(settings: list[Config], store, truths, seconds: float, steps: int = 0) -> dict:
    """IoU after so many processor seconds, or after so many steps."""
    training = Training(settings, store)
    training.run(SOME)  # compiles
    steps = steps or round(seconds * SOME / training.run(SOME))
    taken = training.run(steps)
    codes, shared = training.loops[-1].own(training.state), parallel.host(training.state.shared)
    score = quality(Decoder(settings[-1].network), shared, codes, store, truths, DEFAULT.fitting)
    return {"iou": score, "steps": steps, "seconds": taken}


def main() -> None:
    parser = study.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=80.0, help="of all processors together, for each row")
    parser.add_argument("--steps", type=int, default=0, help="for each row, in place of seconds")
    options = parser.parse_args()
    store = stores.open(options.run / "store")
    truths = truth(store, 20_000)

    def row(settings):
        return measure(settings, store, truths, options.seconds, options.steps)

    rows = study.measured(options, "training.json", variants(), row, shapes=len(truths))
    print("| | steps | processor seconds | median IoU |\n|---|---|---|---|")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["iou"]):
        print(f"| {name} | {row['steps']:,} | {row['seconds']:.0f} | {row['iou']:.3f} |")


if __name__ == "__main__":
    main()
