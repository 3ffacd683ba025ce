"""Single steps from the shell.

python -m jonet train meshes/ --out=runs/mine --minutes=10
python -m jonet fit runs/mine scans/ --out=codes.npz
python -m jonet extract runs/mine codes.npz --out=rebuilt/ --resolution=256
python -m jonet evaluate rebuilt/ meshes/

python -m jonet VERB --help says more.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from jonet import interrupt

COMMANDS = (  # files of jonet/commands/, in the order of the help; a new verb is a file there and a line here
    "train",
    "fit",
    "sample",
    "complete",
    "purify",
    "evaluate",
    "export",
    "import_",
    "info",
)


def parser() -> argparse.ArgumentParser:
    """The options of every verb."""
    top = argparse.ArgumentParser("python -m jonet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, do, help: str, *arguments) -> None:
        """A verb: its function of the parsed options, a sentence, and arguments made by `options.option`."""
        added = verbs.add_parser(name, help=help, description=help)
        added.set_defaults(do=do)
        for names, settings in arguments:
            added.add_argument(*names, **settings)

    for command in COMMANDS:
        importlib.import_module(f"jonet.commands.{command}").declare(verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what a verb says; the exit status, as of `interrupt.status`."""

    def work():
        options = parser().parse_args(arguments)
        importlib.import_module("jonet.commands.options").check(options)  # with jax, which workers need not
        options.do(options)

    return interrupt.status(work, "stopped; the same command goes on")


if __name__ == "__main__":
    interrupt.leave(main())
