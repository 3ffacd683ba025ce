"""`sample`, `interpolate`: meshes of sampled and of interpolated codes."""

from __future__ import annotations

from jonet.commands import trained, written
from jonet.errors import InputError
from jonet.progress import Progress


def sample(options, given: set[str]) -> None:
    """The verb: meshes of codes drawn from the prior.  given: names of the options that the user gave."""
    written.check(options.out, _names(options))
    model = trained.load(options, given)
    with Progress("sampling", "shape", options.count):
        meshes = model.sample(options.count, options.seed)
    _write(meshes, options)


def interpolate(options, given: set[str]) -> None:
    """The verb: meshes of codes between those of two training shapes."""
    written.check(options.out, _names(options))
    model = trained.load(options, given)
    if model.codes is None:
        raise InputError(f"{options.model} holds no codes of training shapes to interpolate between")
    a, b = (model.codes[name] for name in (options.a, options.b))
    with Progress("interpolating", "shape", options.count):
        meshes = model.interpolate(a, b, options.count)
    _write(meshes, options)


def _names(options) -> list[str]:
    return [f"shape_{i:03d}.{options.format}" for i in range(options.count)]


def _write(meshes, options) -> None:
    """Writes the meshes, and removes those of an earlier call with a larger count."""
    written.write_meshes(options.out, "sample", dict(zip(_names(options), meshes, strict=True)), alone=True)
