"""The program `jonet`: learns shapes from meshes, and reconstructs, completes and generates meshes.

    jonet run --task=deepsdf --data=meshes/ --workdir=runs/mine     trains on meshes and writes scores and a report
    jonet fit runs/mine scans/ --out=codes.npz                      codes of unseen shapes
    jonet extract runs/mine codes.npz --out=rebuilt/                meshes of these codes
    jonet evaluate rebuilt/ meshes/                                 scores of these meshes

`python -m jonet` is the same program.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jonet import interrupt


class Entry(NamedTuple):
    """A verb of the command line.

    work: "module:function", called with the options and the set of names of those that were given.
    options: name of its dataclass in `commands.options`; None: the function is called with the unparsed arguments.
    """

    work: str
    options: str | None


# In the order of the help.  A new verb needs a dataclass in commands/options.py, a function, and a line here.  Modules
# are named by strings and imported only for the verb that is run, so that `--help` does not import jax.
VERBS = {
    "run": Entry("jonet.run.program:run", None),
    "train": Entry("jonet.run.program:run", None),
    "fit": Entry("jonet.commands.fit:fit", "Fit"),
    "extract": Entry("jonet.commands.fit:extract", "Extract"),
    "reconstruct": Entry("jonet.commands.fit:reconstruct", "Reconstruct"),
    "represent": Entry("jonet.commands.fit:represent", "Represent"),
    "sample": Entry("jonet.commands.sample:sample", "Sample"),
    "interpolate": Entry("jonet.commands.sample:interpolate", "Interpolate"),
    "complete": Entry("jonet.commands.complete:complete", "Complete"),
    "purify": Entry("jonet.commands.purify:purify", "Purify"),
    "evaluate": Entry("jonet.commands.evaluate:evaluate", "Evaluate"),
    "export": Entry("jonet.commands.export:export", "Export"),
    "import": Entry("jonet.commands.import_:import_", "Import"),
    "info": Entry("jonet.commands.info:info", "Info"),
}
ABOUT = {
    "run": "Trains a network on shapes, reconstructs unseen ones, evaluates them and writes a report.",
    "train": "The same as run.",
}


def usage() -> str:
    """The text of `jonet --help`."""
    options = importlib.import_module("jonet.commands.options")
    about = {
        verb: getattr(options, entry.options).__doc__.split("\n")[0] if entry.options else ABOUT[verb]
        for verb, entry in VERBS.items()
    }
    verbs = "\n".join(f"  {verb:12s} {sentence}" for verb, sentence in about.items())
    return (
        f"usage: jonet VERB [options]\n\n{__doc__}\nverbs:\n{verbs}\n\njonet VERB --help lists the options of a verb.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit status (`interrupt.status`).  arguments: of the shell, by default `sys.argv`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else None
    stopped = "stopped; the same command continues"

    def work():
        if verb in ("-h", "--help"):
            print(usage())
        elif verb == "--version":
            print(importlib.import_module("jonet.version").__version__)
        elif verb not in VERBS:
            given = "no verb was given" if verb is None else f"there is no verb {verb!r}"
            print(f"{usage()}\nerror: {given}", file=sys.stderr)
            raise SystemExit(2)
        else:
            entry = VERBS[verb]
            if entry.options is None:
                return _function(entry.work)(arguments[1:])
            parser = importlib.import_module("jonet.parser")
            kind = getattr(importlib.import_module("jonet.commands.options"), entry.options)
            options, given = parser.parse(kind, arguments[1:], f"jonet {verb}")
            importlib.import_module("jonet.progress").be_quiet(options.quiet)
            _function(entry.work)(options, given)

    return interrupt.status(work, stopped)


def _function(path: str) -> Callable:
    """Imports a function.  path: "module:function"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def program() -> None:
    """The entry point of the console script `jonet`."""
    interrupt.leave(main())


if __name__ == "__main__":
    program()
