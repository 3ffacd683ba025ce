"""A miniature training run in its own process, to be killed: FOLDER STEPS [SECONDS A DISPATCH]."""

import sys
import time
from pathlib import Path

import miniature

from jonet.training.checkpoints import Checkpoints
from jonet.training.log import Log
from jonet.training.loop import train


def main(folder: Path, steps: int, slow: float = 0.0):
    loop = miniature.shared_loop()
    segment = loop.batches.segment

    def slowly(first, limit):
        time.sleep(slow)  # so that there is time to be killed, and a checkpoint is under way when it comes
        return segment(first, min(limit, 3))

    loop.batches.segment = slowly
    with Checkpoints(folder / "checkpoints") as checkpoints:
        log = Log(folder / "log.jsonl")
        state = miniature.fresh(loop)
        state = train(loop, state, steps, checkpoints=checkpoints, save_every=0.0, log=log, bar=False)
    (folder / "end").write_bytes(b"".join(miniature.bits(state)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
