"""`jonet run` from within a test: its exit status, and its options alone."""

from collections.abc import Sequence

from jonet import __main__ as shell
from jonet.run import options


def run(arguments: Sequence[str]) -> int:
    return shell.main(["run", *arguments])


def parse(arguments: Sequence[str]):
    return options.parse(list(arguments))


TRAINING = ("network", "learning", "optimizer", "batch", "draw", "place", "steps", "minutes", "validate", "patience")


def without_training(arguments: Sequence[str]) -> list[str]:
    """Options without those of training, which a run with a given model does not take."""
    kept, found = True, []
    for argument in arguments:
        if argument.startswith("--"):
            kept = not argument.removeprefix("--").startswith((*TRAINING, "compute-dtype", "points-sampling"))
        found += [argument] * kept
    return found


def refused(arguments: Sequence[str]) -> bool:
    """Whether the program does not take such arguments."""
    return shell.main(list(arguments)) == 1
