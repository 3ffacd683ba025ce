"""The representations: how each is made from a shape, how many bytes it takes, and the surface that these give."""

from __future__ import annotations

import dataclasses
import functools
import io
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.levels_of_detail import clouds, grids
from experiments.levels_of_detail.scores import CLOUD_POINTS, Shape, Surface, unit
from jonet import representation
from jonet.fields import Fields, Spline
from jonet.geometry.inside import Inside
from jonet.geometry.mesh import Mesh
from jonet.inference.surfaces import refinement
from jonet.model import Model
from jonet.networks.input_field import InputField
from jonet.run import train
from jonet.tasks import registry

EXTRACTED = 256  # cells a side at which functions become meshes
LEVELS = 2**16 - 1  # of a coordinate of a stored mesh, over its bounding box
SPLINES: dict[str, dict[str, Any]] = {
    "64³, 100,000 distances": {"resolution": 64, "near": 100_000, "uniform": 10_000},
    "128³, 300,000 distances": {"resolution": 128, "near": 300_000, "uniform": 30_000},
    "256³": {"resolution": 256},
    "512³, up to 300 kB": {"resolution": 512, "bytes": 300_000},
    "512³, up to 1 MB": {"resolution": 512},
}
BITS = (8, 16, 32, 64, 128, 256, 512)
DISTANCES = (32, 64, 128)
FACES = (500, 1_000, 2_000, 5_000, 10_000, 20_000)


class Made(NamedTuple):
    """A representation of one shape.  size: bytes.  surface(): what these bytes give.

    seconds: of processors, of one of several shapes that were made together; None: what making this one took.
    """

    size: int
    surface: Callable[[], Surface]
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    group: of rows that differ in their budget.  make: what is timed.  faces: of the shapes that it is for, more than
    this.  once: it takes so long that it is not repeated to leave out what it compiled.
    """

    group: str
    setting: str
    make: Callable[[Shape], Made]
    faces: int = 0
    once: bool = False


def methods(minutes: float, shapes: Sequence[Shape]) -> list[Method]:
    """All rows whose libraries are installed.

    minutes: of the training of each network, 0 to leave them out.  shapes: those that share a decoder.
    """
    rows = [Method("splines", setting, splines(options)) for setting, options in SPLINES.items()]
    if minutes:
        rows.append(Method("network", f"8 × 256, {minutes:g} minutes", network(minutes), once=True))
        together = f"8 × 256 of {len(shapes)} shapes, {minutes:g} minutes"
        rows.append(Method("codes", together, codes(minutes, shapes), once=True))
    rows += [Method("bitmap", f"{n}³", bitmap(n)) for n in BITS]
    rows += [Method("truncated distances", f"{n}³", truncated(n)) for n in DISTANCES]
    rows += [Method("mesh", f"{n:,} faces", simplified(n), faces=n) for n in FACES]
    rows.append(Method("mesh", "all faces", lambda shape: of_mesh(shape.mesh)))
    points = f"{CLOUD_POINTS:,} points"
    rows.append(Method("splines of points", points, splines_of_points({})))
    if not clouds.lacking():
        rows.append(
            Method("Poisson of points", f"{points}, depth {clouds.DEPTH}", lambda shape: of_mesh(clouds.poisson(shape)))
        )
    rows.append(Method("RBF of points", f"{points}, 128³", radial(128)))
    return rows


def splines(options: dict[str, Any]) -> Callable[[Shape], Made]:
    return lambda shape: of_fields(representation.represent(shape.mesh, options=options))


def splines_of_points(options: dict[str, Any]) -> Callable[[Shape], Made]:
    def make(shape):
        points, normals = shape.cloud
        return of_fields(representation.represent(points=[points], normals=[normals], options=options))

    return make


def of_fields(fields: Fields) -> Made:
    """One spline as its file."""
    with tempfile.TemporaryDirectory(prefix="jonet-") as folder:
        file = Path(folder) / "spline.npz"
        fields.splines[0].save(file)
        read = Fields([Spline.load(file)])
        return Made(file.stat().st_size, lambda: of_function(read[0], read.extract(EXTRACTED)[0]))


def of_function(field: InputField, mesh: Mesh) -> Surface:
    """A field, its mesh, and its gradients as normals."""
    return Surface(mesh, field.contains, lambda points: unit(np.asarray(field.gradient(points)[1], np.float64)))


def network(minutes: float) -> Callable[[Shape], Made]:
    """The preset `single_mlp` of DeepSDF, its parameters in float16, compressed."""

    def make(shape):
        read, size = halved(train.train(shape.mesh, preset="single_mlp", minutes=minutes))
        return Made(size, lambda: of_code(read, 0))

    return make


def codes(minutes: float, shapes: Sequence[Shape]) -> Callable[[Shape], Made]:
    """A code each, and one decoder of all shapes: the preset `small` of DeepSDF, with the samples of `single_mlp`.

    A shape has its part of the decoder's bytes and of the seconds.
    """

    @functools.cache
    def trained() -> tuple[Model, int, float]:
        begun = time.process_time()
        samples = registry.find("deepsdf").presets["single_mlp"].samples
        model = train.train([shape.mesh for shape in shapes], preset="small", minutes=minutes, samples=samples)
        return *halved(model), (time.process_time() - begun) / len(shapes)

    def make(shape):
        read, size, seconds = trained()
        return Made(size // len(shapes), lambda: of_code(read, shapes.index(shape)), seconds)

    return make


def halved(model: Model) -> tuple[Model, int]:
    """A model whose parameters and codes were stored in float16, compressed, and how many bytes that takes."""
    both = model.network.shared, model.codes.values
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), both)
    size = len(zlib.compress(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(half)), 9))
    shared, values = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    network = dataclasses.replace(model.network, shared=shared)
    codes = dataclasses.replace(model.codes, values=values, network=None)
    return dataclasses.replace(model, network=network, codes=codes), size


def of_code(model: Model, row: int) -> Surface:
    """A trained shape, in its input units."""
    code = model.codes[[row]]
    field = model.field(code, frame="input")
    assert isinstance(field, InputField)
    return of_function(field[0], model.extract(code, EXTRACTED)[0])


def stored(encode: Callable[[Shape], bytes], decode: Callable[[bytes], Surface]) -> Callable[[Shape], Made]:
    """What is written to bytes and read back."""

    def make(shape):
        data = encode(shape)
        return Made(len(data), lambda: decode(data))

    return make


def bitmap(resolution: int) -> Callable[[Shape], Made]:
    return stored(lambda shape: grids.bits(shape, resolution), lambda data: grids.of_bits(data, resolution))


def truncated(resolution: int) -> Callable[[Shape], Made]:
    return stored(
        lambda shape: grids.distances(shape.solid, resolution), lambda data: grids.of_distances(data, resolution)
    )


def radial(resolution: int) -> Callable[[Shape], Made]:
    return stored(lambda shape: clouds.radial(shape, resolution), lambda data: grids.of_distances(data, resolution))


def simplified(faces: int) -> Callable[[Shape], Made]:
    return lambda shape: of_mesh(refinement.simplify(shape.mesh, faces))


def of_mesh(mesh: Mesh) -> Made:
    """A mesh as integers, compressed: 16 bits a coordinate, and differences of the faces' indices."""
    low, high = mesh.bounds
    step = max(high - low) / LEVELS
    vertices = np.round((mesh.vertices - low) / step).astype(np.uint16)
    order = np.lexsort(mesh.faces[:, ::-1].T)
    indices = np.diff(mesh.faces[order].astype(np.int32), axis=0, prepend=0)
    file = io.BytesIO()
    np.savez_compressed(file, vertices=vertices, indices=indices, low=low, step=step)
    read = Mesh(low + step * vertices, np.cumsum(indices, axis=0))
    return Made(len(file.getvalue()), lambda: Surface(read, Inside(read)))
