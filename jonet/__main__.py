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
import sys
from collections.abc import Sequence

from jonet import interrupt
from jonet.errors import JonetError, from_outside

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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        importlib.import_module("jonet.commands.options").check(options)  # with jax, which workers need not
        with interrupt.prompt("stopped; the same command goes on"):
            options.do(options)
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (sentence := from_outside(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    interrupt.leave(main())
