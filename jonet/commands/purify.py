"""`purify`: clouds of points cleaned by rebuilding their shapes."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

from jonet import model
from jonet.bulk import inputs
from jonet.commands import written
from jonet.commands.options import INPUTS, MODEL, RESOLUTION, SEED, option
from jonet.data import meshes, observed
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError, JonetError
from jonet.storage.names import unique


def declare(verb) -> None:
    verb(
        "purify",
        purify,
        "cleans clouds of points by rebuilding their shapes",
        MODEL,
        INPUTS,
        option("--out", required=True, help="folder for the clouds, PLY in the units of those that came"),
        option("--count", type=int, help="points of each (default: as many as came)"),
        option("--spread", type=float, default=1.1, help="how far alone a point may stand before it is left out"),
        RESOLUTION,
        SEED,
    )


def purify(options) -> None:
    """Each input as OUT/<its name>.ply; one that could not be read or rebuilt is said and left out."""
    trained = model.load(options.model)
    files = inputs.find(options.inputs, trained, Path(options.out))
    places = [f"{name}.ply" for name in unique(list(inputs.names(files).values()))]
    written.check(options.out, places, files.values())
    seen, causes = {}, {}
    for place, path in zip(places, files.values(), strict=True):
        try:
            seen[place] = observed.read(path, trained.frame, surface=True)
        except JonetError as error:
            causes[place] = error
    if not seen:
        raise ConfigError(f"none of {len(files)} clouds could be read; {causes[places[0]]}")
    given = {"points": [one.similarity.inverse()(one.points) for one in seen.values()], "frame": "own"}
    if trained.inputs is None and all(one.normals is not None for one in seen.values()):
        given["normals"] = [one.normals for one in seen.values()]
    found = trained.purify(
        **given, count=options.count, spread=options.spread, resolution=options.resolution, seed=options.seed
    )
    made = dict.fromkeys(places, ()) | dict(zip(seen, found, strict=True))
    written.keep(
        options.out,
        "purify",
        {name: functools.partial(_write, points) if len(points) else None for name, points in made.items()},
    )
    for name, points in made.items():
        if len(points):
            print(Path(options.out) / name)
        else:
            print(f"{name}: {causes.get(name, 'no surface was made of it')}, nothing is written", file=sys.stderr)


def _write(points: np.ndarray, path: Path) -> None:
    meshes.write(Mesh(points, np.zeros((0, 3), int)), path)
