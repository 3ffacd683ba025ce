"""`sample`, `interpolate`: shapes that nobody made."""

from __future__ import annotations

from jonet import model
from jonet.commands import written
from jonet.commands.options import COUNT, FORMAT, MODEL, OUT, RESOLUTION, SEED, option
from jonet.errors import InputError


def declare(verb) -> None:
    files = COUNT, OUT, FORMAT, RESOLUTION
    verb("sample", sample, "draws new shapes from the prior of the training codes", MODEL, SEED, *files)
    ends = option("a", help="name of a training shape"), option("b", help="name of another")
    verb("interpolate", interpolate, "shapes between two training shapes", MODEL, *ends, *files)


def sample(options) -> None:
    written.check(options.out, _names(options))
    _write(model.load(options.model).sample(options.count, options.seed, options.resolution), options)


def interpolate(options) -> None:
    written.check(options.out, _names(options))
    trained = model.load(options.model)
    if trained.codes is None:
        raise InputError(f"{options.model} holds no codes of training shapes to go between")
    a, b = (trained.codes[name] for name in (options.a, options.b))
    _write(trained.interpolate(a, b, options.count, options.resolution), options)


def _names(options) -> list[str]:
    return [f"shape_{i:03d}.{options.format}" for i in range(options.count)]


def _write(made, options) -> None:
    """All of the folder's shapes: those of an earlier call that are no more are removed."""
    written.write_meshes(options.out, "sample", dict(zip(_names(options), made, strict=True)), alone=True)
