"""`sample`, `interpolate`: shapes that nobody made."""

from __future__ import annotations

from jonet import model
from jonet.commands.options import COUNT, FORMAT, MODEL, OUT, RESOLUTION, SEED, option
from jonet.commands.written import write_all
from jonet.errors import InputError


def declare(verb) -> None:
    written = COUNT, OUT, FORMAT, RESOLUTION
    verb("sample", sample, "draws new shapes from the prior of the training codes", MODEL, SEED, *written)
    ends = option("a", help="name of a training shape"), option("b", help="name of another")
    verb("interpolate", interpolate, "shapes between two training shapes", MODEL, *ends, *written)


def sample(options) -> None:
    write_all(model.load(options.model).sample(options.count, options.seed, options.resolution), options)


def interpolate(options) -> None:
    trained = model.load(options.model)
    if trained.codes is None:
        raise InputError(f"{options.model} holds no codes of training shapes to go between")
    a, b = (trained.codes[name] for name in (options.a, options.b))
    write_all(trained.interpolate(a, b, options.count, options.resolution), options)
