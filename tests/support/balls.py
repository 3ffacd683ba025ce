"""A model of balls that needs no training, and fields of balls.  For bulk jobs; alone, one of several processes.

python balls.py ADDRESS PROCESSES INDEX INPUTS OUT
"""

import csv
import dataclasses
import sys

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)

import numpy as np
import trimesh

from jonet import bulk, parallel, representation
from jonet.codes import Codes
from jonet.errors import InputError
from jonet.fields import Spline
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.networks import spline_levels
from jonet.settings.fitting import FitConfig
from jonet.settings.surfaces import Surfaces

RADII = np.linspace(1, 3, 11)
BATCH = bulk.Settings(batch=4)


@dataclasses.dataclass
class Balls:
    """What bulk jobs need of a model.  limit: memory runs out for more shapes at once.  seen: sizes of the batches."""

    limit: int = 1000
    scale: float = 1.0
    precision: str = "high"
    kind = "occupancy"
    frame = "sphere"
    inputs = Inputs("points", 200)
    is_fitted = False
    fitting = FitConfig()
    surfaces = Surfaces(resolution=8)

    def __post_init__(self):
        self.seen: list[int] = []

    @property
    def digest(self):
        return f"balls {self.scale}"

    def encode(self, *, points, names):
        """Twice the mean distance of points from the origin, on the devices of this process."""
        self.seen.append(len(points))
        if len(points) > self.limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
        if any("refused" in name for name in names):
            raise InputError("this shape is refused")
        means = np.array([np.linalg.norm(cloud, axis=1).mean() for cloud in points])
        whole = np.zeros(-(-len(means) // parallel.count()) * parallel.count(), np.float32)
        whole[: len(means)] = means
        double = parallel.pmap(lambda x: parallel.gather(2 * x), parallel.SPLIT, parallel.REPLICATED)
        values = parallel.host(double(parallel.split(whole)))[: len(means), None]
        fine = np.ones(len(means), bool)
        return Codes(values, tuple(names), None, means / 1000, fine * 0.5, fine, np.array(["odd" in n for n in names]))

    def extract(self, codes, resolution):
        self.seen.append(len(codes))
        if len(codes) > self.limit:
            raise MemoryError
        made = []
        for i, value in enumerate(codes.values[:, 0]):
            ball = trimesh.creation.icosphere(1, radius=value / 2)
            faces = ball.faces[: 0 if "hollow" in codes.names[i] else None]
            mesh = Mesh(ball.vertices, faces, name=codes.names[i])
            made.append(mesh if codes.similarities is None else codes.similarities[i].inverse().apply(mesh))
        return made


def fields(shapes, options) -> list[Spline]:
    """In place of `representation.fitted`: a ball for each shape, in no time."""
    cells = spline_levels.every_cell(8)
    centers = (spline_levels.around(cells, 8) + 0.5) / 4 - 1
    values = (np.linalg.norm(centers, axis=1) - representation.RADIUS).astype(np.float32)
    box = np.array([[-1.0] * 3, [1.0] * 3], np.float32)
    levels = (spline_levels.Level(8, cells, values),)
    closed = [None if shape.cloud is None else 0.2 * ("holes" in shape.name) for shape in shapes]
    return [
        Spline(shape.name, shape.similarity, levels, box, 0.01, part)
        for shape, part in zip(shapes, closed, strict=True)
    ]


def write_clouds(folder, radii, names=None):
    """Clouds around balls far from the origin, one a radius."""
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.random.default_rng(0).standard_normal((200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions[:6] = np.concatenate([np.eye(3), -np.eye(3)])
    for i, radius in enumerate(radii):
        np.save(folder / f"{names[i] if names else f'ball_{i:02d}'}.npy", directions * radius + [100, 0, 0])


def table(folder) -> dict[str, dict[str, str]]:
    """The manifest of a job, by the names of the inputs."""
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


if __name__ == "__main__":
    where, inputs, out = sys.argv[1:]
    parallel.join(where)
    assert len(jax.devices()) == 4 and jax.process_count() == 2
    report = bulk.fit(Balls(), inputs, out)
    assert report.complete and parallel.count() == 4
    print(len(report.outcome.rows))
