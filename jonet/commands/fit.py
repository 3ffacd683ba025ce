"""`fit`, `extract`, `reconstruct`: observed shapes to codes to meshes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from jonet import model
from jonet.commands.options import FORMAT, INPUTS, MODEL, OUT, RESOLUTION, option
from jonet.commands.written import write_all
from jonet.data import observed
from jonet.errors import ConfigError, JonetError
from jonet.model import Codes, Model


def declare(verb) -> None:
    verb("fit", fit, "finds the codes of shapes", MODEL, INPUTS, option("--out", required=True, help="codes.npz"))
    codes = option("codes", help="codes.npz")
    verb("extract", extract, "pulls meshes out of codes", MODEL, codes, OUT, FORMAT, RESOLUTION)
    verb("reconstruct", reconstruct, "fits codes and pulls out meshes", MODEL, INPUTS, OUT, FORMAT, RESOLUTION)


def fit(options) -> None:
    codes = fitted(model.load(options.model), options.inputs)
    codes.save(options.out)
    print(f"{len(codes)} codes: {options.out}")


def extract(options) -> None:
    write_all(model.load(options.model).extract(Codes.load(options.codes), options.resolution), options)


def reconstruct(options) -> None:
    trained = model.load(options.model)
    write_all(trained.extract(fitted(trained, options.inputs), options.resolution), options)


def fitted(trained: Model, paths: Sequence[str]) -> Codes:
    """Codes of meshes and clouds in own units; files that cannot be used are warned of and left out."""
    groups: dict[tuple, list[observed.Observed]] = {}
    for path in [file for given in paths for file in observed.find(given)]:
        try:
            one = observed.read(path, trained.frame)
        except JonetError as error:
            warnings.warn(f"skipped: {error}", stacklevel=1)
            continue
        groups.setdefault(one.kind, []).append(one)
    if not groups:
        raise ConfigError(f"no usable mesh or cloud in {', '.join(map(str, paths))}")
    parts = []
    for kind, shapes in groups.items():
        given = {name: [getattr(shape, name) for shape in shapes] for name in kind}
        found = trained.fit(**given, names=[shape.name for shape in shapes])
        parts.append(found.placed([shape.similarity for shape in shapes]))
    codes = Codes.joined(parts)
    for i, name in enumerate(codes.names):
        doubts = " · not converged" * bool(not codes.converged[i])
        doubts += " · a stranger to the space" * bool(codes.stranger[i])
        print(f"{name}: residual {codes.residual[i]:.5f} · explained {codes.explained[i]:.1%}{doubts}")
    return codes
