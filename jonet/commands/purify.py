"""`purify`: point clouds cleaned by reconstructing their shapes and sampling the surfaces."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jonet.bulk import inputs
from jonet.commands import trained, written
from jonet.data import scans
from jonet.errors import ConfigError, JonetError
from jonet.geometry import axes, mesh_files
from jonet.geometry.mesh import Mesh
from jonet.progress import Progress
from jonet.storage.names import unique
from jonet.wording import counted


def purify(options, given: set[str]) -> None:
    """The verb: writes each input as OUT/<name>.ply; prints those that could not be read or reconstructed."""
    model = trained.load(options, given)
    files = inputs.find(options.inputs, Path(options.out), pictures=inputs.takes_images(model))
    outputs = [f"{name}.ply" for name in unique(list(inputs.names(files).values()))]
    written.check(options.out, outputs, files.values())
    turn, clouds, causes = axes.upright(options.up), {}, {}
    for output, path in zip(outputs, files.values(), strict=True):
        try:
            clouds[output] = scans.read(path, model.frame, surface=True, up=options.up)
        except JonetError as error:
            causes[output] = error
    if not clouds:
        raise ConfigError(f"none of {counted(len(files), 'cloud')} could be read; {causes[outputs[0]]}")
    purified: dict[str, Any] = dict.fromkeys(outputs, ())
    for with_normals in (True, False):  # one call takes normals of all clouds, or of none
        group = {
            output: cloud
            for output, cloud in clouds.items()
            if (model.is_fitted and cloud.normals is not None) == with_normals
        }
        if not group:
            continue
        points = [turn(cloud.similarity.inverse()(cloud.points)) for cloud in group.values()]
        observed = {"points": points, "frame": "input"}
        if with_normals:
            observed["normals"] = [cloud.normals for cloud in group.values()]
        with Progress("purifying", "cloud", len(group)):
            found = model.purify(**observed, count=options.count, spread=options.spread, seed=options.seed)
        purified |= dict(zip(group, map(turn.inverse(), found), strict=True))
    written.keep(
        options.out,
        "purify",
        {name: functools.partial(_write, points) if len(points) else None for name, points in purified.items()},
    )
    for name, points in purified.items():
        if len(points):
            print(Path(options.out) / name)
        else:
            print(f"{name}: {causes.get(name, 'no surface was found')}; nothing is written", file=sys.stderr)


def _write(points: np.ndarray, path: Path) -> None:
    mesh_files.write(Mesh(points, np.zeros((0, 3), int)), path)
