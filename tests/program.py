"""`jonet run` from within a test: its exit status, and its options alone."""

from collections.abc import Sequence

from jonet import __main__ as shell
from jonet.run import options


def run(arguments: Sequence[str]) -> int:
    return shell.main(["run", *arguments])


def parse(arguments: Sequence[str]):
    return options.parse(list(arguments))


def refused(arguments: Sequence[str]) -> bool:
    """Whether the program does not take such arguments: status 1, or 2 from the parser of options."""
    try:
        return shell.main(list(arguments)) == 1
    except SystemExit as end:
        return end.code == 2
