"""`jonet run` from within a test: its exit status, and its options alone."""

from collections.abc import Sequence

from jonet import __main__ as shell
from jonet.run import options


def run(arguments: Sequence[str]) -> int:
    return shell.main(["run", *arguments])


def parse(arguments: Sequence[str]):
    return options.parse(list(arguments))


def refused(arguments: Sequence[str]) -> bool:
    """Whether the program does not take such arguments."""
    return shell.main(list(arguments)) == 1
