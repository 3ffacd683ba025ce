"""The argument parser of all verbs: from the shell's arguments to a dataclass, and which options were given."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from jonet.errors import ConfigError

_COLORS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal
SHORT = {"resolution": "surfaces.resolution"}  # short names of options


def parse(kind: type, arguments: Sequence[str], prog: str, default=None) -> tuple[Any, set[str]]:
    """Parses the options of a verb → (instance of `kind`, full names of the options that were given).

    kind: a dataclass.  default: an instance whose values are the defaults.
    Raises ConfigError for an unknown option, with the most similar one, for a missing one, and for an impossible value;
    SystemExit with status 0 for `--help`.
    """
    spelled = [_spelled(argument, kind) for argument in arguments]
    for i, argument in enumerate(spelled):
        if argument == "--distributed" and (i + 1 == len(spelled) or spelled[i + 1].startswith("--")):
            spelled[i] = "--distributed=auto"
    names = given(spelled)
    known_options = dict(_fields(kind if default is None else default))
    for name in sorted(names):
        if not any(name == other or name == _negated(other) for other in known_options):
            raise ConfigError(f"there is no option --{name.replace('_', '-')}{_hint(name, known_options)}")
    options = _parsed(kind, spelled, prog, {} if default is None else {"default": default})
    return options, {name if name in known_options else _negated(name) for name in names} - {"help"}


def _parsed(kind: type, arguments: Sequence[str], prog: str, defaults: dict[str, Any]) -> Any:
    """What tyro makes of arguments; its errors, which it prints in a box on stderr, are raised as ConfigError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.SuppressFixed,), **defaults)
    except SystemExit as end:
        if not end.code:
            raise
        # `kind` and its flat group `config` are no names of options
        text = _content(said.getvalue()).removeprefix(f"{kind.__name__}: ").removeprefix("config.")
        raise ConfigError(f"{text}; {prog} --help lists the options") from None
    sys.stderr.write(said.getvalue())  # warnings
    return options


def _content(box: str) -> str:
    """The text in a box of tyro, up to the first empty line or line across, on one line.

    Where the terminal's encoding lacks │ and ─, there is only a line of - below the title.
    """
    lines = [line.strip("│ ") for line in _COLORS.sub("", box).splitlines()][1:]  # without the title
    lines = itertools.dropwhile(lambda line: not line.strip("-"), lines)
    text = " ".join(" ".join(itertools.takewhile(lambda line: line.strip("─-"), lines)).split())
    return re.sub(r"^Error parsing :? ?", "", text).rstrip(".") or "the options cannot be read"


def given(arguments: Sequence[str]) -> set[str]:
    """Names of the options among unparsed arguments, with underscores as in configs."""
    return {name for name, _ in _options(arguments)}


def value(arguments: Sequence[str], option: str) -> str | None:
    """The text of an option's last value among unparsed arguments; None if it is not given."""
    return next((text for name, text in reversed(list(_options(arguments))) if name == option), None)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (name, text of the value) of unparsed arguments: `--name=text` or `--name text`, up to `--`."""
    for i, argument in enumerate(arguments):
        if argument == "--":
            return
        name, equals, text = argument.partition("=")
        if name.startswith("--"):
            yield name[2:].replace("-", "_"), text if equals else "".join(arguments[i + 1 : i + 2])


def changes(options, names: set[str], group: str) -> dict[str, Any]:
    """The given values of a group of options as nested dicts, as `config.changed` takes them."""
    found = {}
    values = getattr(options, group.rpartition(".")[2])
    for field in dataclasses.fields(values):
        name, current = f"{group}.{field.name}", getattr(values, field.name)
        if dataclasses.is_dataclass(current):
            if inner := changes(values, names, name):
                found[field.name] = inner
        elif name in names:
            found[field.name] = current
    return found


def _spelled(argument: str, kind: type) -> str:
    """An argument with the full name of its option, with hyphens, and `~` at the beginning as the home folder.

    Shells replace `~` only at the beginning of a word that is not quoted, not in `--data=~/meshes`.
    """
    name, equals, text = argument.partition("=")
    if not name.startswith("--") or len(name) == 2:
        return os.path.expanduser(argument)
    name = name[2:].replace("-", "_")
    if name in SHORT and name not in {field.name for field in dataclasses.fields(kind)}:
        name = SHORT[name]
    return f"--{name.replace('_', '-')}{equals}{os.path.expanduser(text)}"


def _fields(kind, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs (full name, default) of all options of a dataclass or of an instance, with groups flattened."""
    yield "help", None
    for field in dataclasses.fields(kind):
        default = field.default if isinstance(kind, type) else getattr(kind, field.name)
        flat = field.metadata.get("flat", False)  # a group whose options have no prefix
        if field.metadata.get("python_only"):
            continue
        if dataclasses.is_dataclass(default):
            yield from _fields(default, prefix if flat else f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", default


def _negated(name: str) -> str:
    """`surfaces.normals` → `surfaces.no_normals`, and back (tyro's names of switches)."""
    group, dot, last = name.rpartition(".")
    return f"{group}{dot}{last[3:] if last.startswith('no_') else 'no_' + last}"


def _hint(name: str, known_options) -> str:
    """The end of an error message: options with the same last part of the name, else the most similar ones."""
    same = [other for other in known_options if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same or difflib.get_close_matches(name, list(known_options), 2, 0.6)
    if not near:
        return "; --help lists them"
    return f"; did you mean {' or '.join('--' + other.replace('_', '-') for other in near)}?"
