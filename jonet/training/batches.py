"""The batches of training steps: which shapes, and which rows of their samples.

In every epoch each lane is permuted anew, and each step takes the next shape of each lane.  So an epoch has every shape
once, less the remainder of the division into batches.  The rows that are drawn for a shape depend on the key, the epoch
and the shape's index alone, not on the devices or on the rest of the batch.  They are computed with integers only, so
that the host and an accelerator draw the same rows, and rows can be chosen on one and gathered on the other.

Notation: `S` shapes of a device in a step, `N` points; `W`, `b` and `R`, index and position as in `lanes.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.errors import ConfigError
from jonet.training.lanes import Deal, Lanes

CHUNK = 1 << 28  # bytes of a chunk of steps that is streamed ahead
BLOCK = 1 << 30  # most rows of a block on a device, where numbers are int32
# Where samples are in training: on the devices as they are stored, on the devices as float16, or read from disk.
Place = Literal["resident", "half", "streamed"]
How = Literal["rows", "windows"]  # how rows are drawn, see `RowSampling`


class Batch(NamedTuple):
    """One device's part of a step: S of its shapes.

    points [S, N, 3].  values [S, N]: signed distances, or occupancies 0 and 1.  row [S]: the shape's row in this
    device's per-shape arrays.  index [S]: the shape's number in the store.  mask [S]: 0 for empty lanes.  epoch []:
    from 1.  inputs: of the encoder, if the BatchSpec has them: rows [S, M, ...], images [S, H, W, 3] in [0, 1], or
    voxels [S, 32, 32, 32] of 0 and 1.  weights [S, N]: of the points, if the BatchSpec has them.
    """

    points: jax.Array
    values: jax.Array
    row: jax.Array
    index: jax.Array
    mask: jax.Array
    epoch: jax.Array
    inputs: Any = None
    weights: Any = None


# Which shapes


class ShapeSelection(NamedTuple):
    """The shapes of a step, as in `Batch`."""

    row: jax.Array
    index: jax.Array
    mask: jax.Array
    epoch: jax.Array


def select_shapes(deal: Deal, steps: int, step, key) -> ShapeSelection:
    """The shape that a step takes from each lane.  steps: per epoch.  step: from 0.  key: of the whole run."""
    epoch, place = step // steps + 1, step % steps
    length = deal.index.shape[1]
    keys = jax.vmap(lambda lane: parallel.fold_in(key, "lane", epoch, lane))(deal.lane)
    bits = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys)
    # A lane's permutation is the stable order of random integers: equal on every processor.  Empty places come last,
    # beyond the steps of an epoch unless the lane is empty.
    bits = jnp.where(deal.index >= 0, bits, np.uint32(2**32 - 1))
    slot = jnp.argsort(bits, axis=1, stable=True)[:, place]
    index = jnp.take_along_axis(deal.index, slot[:, None], axis=1)[:, 0]
    row = jnp.arange(len(deal.lane)) * length + slot
    return ShapeSelection(row.astype(jnp.int32), jnp.maximum(index, 0), (index >= 0).astype(jnp.float32), epoch)


# Which rows


def colored(images: jax.Array) -> jax.Array:
    """images [S, R² or 3 R²] uint8, as `lines` has them → [S, R, R, 3] float32 in [0, 1]."""
    side = math.isqrt(images.shape[1])
    side = side if side**2 == images.shape[1] else math.isqrt(images.shape[1] // 3)
    images = images.reshape(-1, side, side, images.shape[1] // side**2)
    return jnp.broadcast_to(images.astype(jnp.float32) / 255, (*images.shape[:-1], 3))


def unpacked(bits: jax.Array) -> jax.Array:
    """bits [S, R³ / 8] uint8, as packed by `geometry.voxels.packed` → [S, R, R, R] float32 of 0 and 1."""
    side = round((8 * bits.shape[1]) ** (1 / 3))
    return jnp.unpackbits(bits, axis=1).reshape(-1, side, side, side).astype(jnp.float32)


WHOLE = {"images": colored, "voxels": unpacked}  # arrays whose rows are whole inputs, with the conversion for networks


def lines(arrays: Mapping[str, RaggedArray]) -> dict[str, RaggedArray]:
    """The arrays, with each whole input as one line of values: of others a TPU would first copy all to read some."""
    flat = {}
    for name in [name for name in WHOLE if name in arrays]:
        values = arrays[name].values
        flat[name] = arrays[name]._replace(values=values.reshape(len(values), -1))
    return {**arrays, **flat}


@dataclasses.dataclass(frozen=True)
class RowSampling:
    """How a step samples rows of each shape from one ragged array.

    how: `rows`, single rows with replacement, as published; or `windows` of consecutive rows, which can be streamed
    (single rows from a side that has too few).
    sides: of an array with an outside and an inside part, `half` of each, outside first, as published for distances; or
    `any`, all rows with the same probability.
    """

    array: str
    count: int
    how: How = "rows"
    sides: Literal["half", "any"] = "half"

    def __post_init__(self):
        if self.array in WHOLE and self.count != 1:
            raise ConfigError(f"a draw of {self.count} {self.array}; a step sees one of each shape")
        if self.count < 1 or self.how not in ("rows", "windows") or self.sides not in ("half", "any"):
            raise ConfigError(
                f"a draw of {self.count} {self.how!r} of {self.sides!r}; it must be of at least 1 row, by 'rows' or "
                "'windows', from 'half' of each side or 'any'"
            )


def sample_rows(draw: RowSampling, counts, key) -> jax.Array:
    """Indices [count] int32 of the sampled rows among a shape's rows.  counts: rows of its sides, [2] or [1] int32."""

    def below(size, name: str):  # by remainder: a bias of size / 2³² for a third of the work of jax.random.randint
        bits = jax.random.bits(parallel.fold_in(key, name), size.shape, jnp.uint32)
        return (bits % jnp.maximum(size, 1).astype(jnp.uint32)).astype(jnp.int32)

    place, half = jnp.arange(draw.count, dtype=jnp.int32), draw.count // 2
    if len(counts) == 1:
        first, second, wanted = counts[0], jnp.int32(0), (draw.count, 0)
        inside = place < 0
    elif draw.sides == "half":
        (first, second), wanted = counts, (half, draw.count - half)
        inside = place >= half
        place -= jnp.where(inside, half, 0)  # each side's window starts with its own first row
    else:
        (first, second), wanted = counts, (draw.count, draw.count)
        inside = below(jnp.broadcast_to(first + second, place.shape), "side") >= first
    rows = below(jnp.where(inside, second, first), "rows")
    if draw.how == "windows":
        spare = jnp.stack([first, second]) - np.array(wanted, np.int32)
        start = below(spare + 1, "start")
        # a side without rows to spare for a window falls back to single rows
        rows = jnp.where(jnp.where(inside, *spare[::-1]) > 0, jnp.where(inside, *start[::-1]) + place, rows)
    return rows + jnp.where(inside, first, 0)  # a shape's inside rows follow its outside rows


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """What a batch holds of each shape.

    points: rows to sample.  values: their `distances`, or `occupancies` (1 inside, 0 outside).  more_points: rows of
    another array to sample, which follow them, for occupancies.
    inputs: rows to sample for the encoder.  noise: standard deviation of Gaussian noise that is added to them.
    scale_augmentation, σ: in every epoch each shape (points and inputs alike) is scaled along each axis by a factor
    from exp(-σ) to exp(σ), and then rescaled to its previous longest side.
    importance_weighted: points sampled as `half` of each side are weighted by how many of them `any` would sample from
    that side, so that sums have the same expectation and less variance.
    passes: over all shapes, with new samples each time, that make up one epoch for schedules.
    """

    points: RowSampling
    values: Literal["distances", "occupancies"] = "distances"
    inputs: RowSampling | None = None
    noise: float = 0.0
    scale_augmentation: float = 0.0
    importance_weighted: bool = False
    passes: int = 1
    more_points: RowSampling | None = None

    def __post_init__(self):
        cloud = self.inputs is not None and self.inputs.array not in WHOLE
        if self.noise and not cloud:
            raise ConfigError(f"noise of {self.noise} belongs to inputs that are points")
        if self.scale_augmentation and not (cloud and self.values == "occupancies"):
            raise ConfigError(
                f"a scale_augmentation of {self.scale_augmentation} belongs to occupancies, with inputs that are points"
            )
        if self.importance_weighted and (self.points.sides != "half" or self.more_points):
            raise ConfigError("importance_weighted points are drawn as 'half' of each side, of one array")
        if self.more_points and self.values != "occupancies":
            raise ConfigError("points of two arrays have occupancies")

    def draws(self) -> dict[str, RowSampling]:
        return self.point_draws() | ({"inputs": self.inputs} if self.inputs else {})

    def point_draws(self) -> dict[str, RowSampling]:
        """Those of the points, in their order."""
        return {"points": self.points} | ({"more_points": self.more_points} if self.more_points else {})

    @property
    def count(self) -> int:
        """Points of each shape."""
        return sum(draw.count for draw in self.point_draws().values())

    def inside(self, places: Mapping[str, Any], counts: Mapping[str, Any]) -> list:
        """Which rows of `sample_all` are inside, [..., count] bool of each draw of points.

        counts [..., sides]: of the shapes of `places`, by array.
        """
        return [places[name] >= counts[draw.array][..., :1] for name, draw in self.point_draws().items()]

    def arrays(self) -> list[str]:
        """The names of the arrays that rows are sampled from."""
        return sorted({draw.array for draw in self.draws().values()})


def sample_all(plan: BatchSpec, counts: Mapping[str, jax.Array], now: ShapeSelection, key) -> dict[str, jax.Array]:
    """The indices of all rows of a step, [S, count] for each `RowSampling` of the plan.

    counts [per-shape rows, sides], by array.
    """

    def of_shape(index, row):
        key_of_shape = parallel.fold_in(key, "draw", now.epoch, index)
        return {
            name: sample_rows(draw, counts[draw.array][row], parallel.fold_in(key_of_shape, name))
            for name, draw in plan.draws().items()
        }

    return jax.vmap(of_shape)(now.index, now.row)


def assemble(
    plan: BatchSpec, rows: Mapping[str, jax.Array], inside: jax.Array, counts, now: ShapeSelection, key
) -> Batch:
    """The batch of sampled rows: rows [S, count, ...] for each `RowSampling`, inside [S, N] bool of the points.

    counts [S, sides]: of the array that the points are from.
    """

    def real(leaf):  # an empty lane gathers rows of other shapes or padding, which become zeros here
        return jnp.where(now.mask.reshape(-1, *[1] * (leaf.ndim - 1)) > 0, leaf, jnp.zeros((), leaf.dtype))

    points: Any = real(jnp.concatenate([rows[name] for name in plan.point_draws()], 1)).astype(jnp.float32)
    inputs: Any = None
    weights = real(_weights(inside, counts)) if plan.importance_weighted else None
    values = points[..., 3] if plan.values == "distances" else real(inside).astype(jnp.float32)
    points = points[..., :3]
    if plan.inputs is not None:
        inputs = rows["inputs"]
        if plan.inputs.array in WHOLE:
            inputs = WHOLE[plan.inputs.array](inputs[:, 0])
        if plan.scale_augmentation:
            # "stretch" names the random draws; another name would change all batches
            keys = jax.vmap(lambda index: parallel.fold_in(key, "stretch", now.epoch, index))(now.index)
            inputs = _exact(inputs.astype(jnp.float32))
            factors = _factors(inputs, plan.scale_augmentation, keys)[:, None]
            points, inputs = points * factors, inputs * factors
        if plan.noise:
            keys = jax.vmap(lambda index: parallel.fold_in(key, "noise", now.epoch, index))(now.index)
            shape = inputs.shape[1:]
            noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
            fraction, exponent = np.frexp(plan.noise)  # rounded to 12 bits, as in `_exact`
            scale = np.float32(np.ldexp(np.round(fraction * 4096) / 4096, exponent))
            inputs = inputs.astype(jnp.float32) + scale * _exact(noise)
        inputs = real(inputs)
    now = now._replace(epoch=(now.epoch - 1) // plan.passes + 1)
    return Batch(points, values, *now, inputs, weights)


def _exact(values: jax.Array) -> jax.Array:
    """Values rounded to 12 significant bits, so that the product of two of them is exact in float32.

    Then a multiply-add has the same bits whether or not a compiler fuses it, and resident and streamed batches agree.
    """
    return jax.lax.reduce_precision(values, 8, 11)


def _weights(inside: jax.Array, counts: jax.Array) -> jax.Array:
    """Importance weights [S, N] of points that were sampled as `half` of each side; their mean is about 1 per shape."""
    counts = counts.astype(jnp.float32)
    outside, within = (2 * counts / counts.sum(1, keepdims=True).clip(1)).T
    return jnp.where(inside, within[:, None], outside[:, None])


def _factors(cloud: jax.Array, scale_augmentation: float, keys) -> jax.Array:
    """Random scale factors [S, 3] of each shape along each axis, which keep the longest side of its cloud [S, M, 3]."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-scale_augmentation, maxval=scale_augmentation))(
        keys
    )
    factors, sides = jnp.exp(drawn), jnp.ptp(cloud, axis=1)
    return _exact(factors * (sides.max(1) / (sides * factors).max(1).clip(1e-6))[:, None])


# Where the rows are


class Resident:
    """Batches from samples that are in the devices' memory.

    arrays: ragged arrays by name (`Store.arrays`, and any others with one entry per shape of the store: images, voxel
    grids).  key: of the whole run.  half: rows of float32 are rounded to float16, in half of the memory.
    The public attributes implement `training.loop.Batches`; bytes: of samples, on the device that has the most.
    """

    def __init__(self, arrays: Mapping[str, RaggedArray], lanes: Lanes, plan: BatchSpec, key, *, half: bool = False):
        arrays = lines(arrays)
        _check(arrays, lanes, plan)
        self.arrays, self.lanes, self.plan, self.positions = arrays, lanes, plan, lanes.positions
        self.points = lanes.shapes * plan.count
        self.specs = {"deal": parallel.SPLIT, "key": parallel.REPLICATED, "arrays": parallel.SPLIT}
        self.bytes = resident_bytes(arrays, lanes, plan, half)
        packed = {name: _on_devices(arrays[name], lanes, half) for name in plan.arrays()}
        self._data = {"deal": parallel.split(lanes.deal_of()), "key": parallel.replicate(key), "arrays": packed}

    def segment(self, first: int, limit: int):
        """The data that `draw` samples from, and for how many of `limit` steps from `first` they suffice: all."""
        return self._data, limit

    def draw(self, data, step) -> Batch:
        """This device's part of a step's batch: a pure function, for use inside of one that `parallel.pmap` maps."""
        now = select_shapes(data["deal"], self.lanes.steps, step, data["key"])
        arrays = data["arrays"]
        places = sample_all(self.plan, {name: packed.counts for name, packed in arrays.items()}, now, data["key"])
        rows = {}
        for name, draw in self.plan.draws().items():
            stored, found = self.arrays[draw.array].values, arrays[draw.array].rows(now.row, places[name])
            found = found[..., : stored.shape[1]] if stored.ndim == 2 else found  # without a column of padding
            rows[name] = found.astype(stored.dtype)
        counts = {name: packed.counts[now.row] for name, packed in arrays.items()}
        inside = jnp.concatenate(self.plan.inside(places, counts), 1)
        return assemble(self.plan, rows, inside, counts[self.plan.points.array], now, data["key"])


class Streamed:
    """Batches from samples that stay in memory-mapped files: bit for bit those of `Resident`.

    Rows are chosen by the same functions on the host and gathered by a thread, one chunk of steps ahead of the devices.
    waited: seconds that were spent waiting for a chunk.  bytes: of chunks, on each device.
    Raises ConfigError for sampling by `rows`, which would read single rows from the disk.
    """

    def __init__(
        self, arrays: Mapping[str, RaggedArray], lanes: Lanes, plan: BatchSpec, key, *, chunk: int | None = None
    ):
        arrays = lines(arrays)
        _check(arrays, lanes, plan)
        for draw in plan.draws().values():
            if draw.how == "rows" and draw.count > 1:
                raise ConfigError(
                    f"{draw.array} is streamed, so draw 'windows' of it, not {draw.count} single 'rows': set draw to "
                    "windows or auto, or place to resident or half if a device has the memory"
                )
        self.arrays, self.lanes, self.plan, self.positions = arrays, lanes, plan, lanes.positions
        self.points = lanes.shapes * plan.count
        self.specs = {"deal": parallel.SPLIT, "key": parallel.REPLICATED, "first": parallel.REPLICATED}
        self.specs |= {name: parallel.SPLIT for name in ("counts", "rows", "inside")}
        size = sum(arrays[draw.array].values[:1].nbytes * draw.count for draw in plan.draws().values())
        self.chunk = chunk or int(np.clip(CHUNK // (size * len(lanes.dealt)), 1, 256))  # steps
        self.bytes = 2 * self.chunk * size * len(lanes.dealt) // lanes.devices  # of this chunk and the next
        self.waited = 0.0
        self._fixed = {"deal": parallel.split(lanes.deal_of()), "key": parallel.replicate(key)}
        self._fixed["counts"] = _counts_on_devices(arrays[plan.points.array], lanes)
        self._key = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        self._thread, self._chunks = ThreadPoolExecutor(1, "stream"), {}

    def segment(self, first: int, limit: int):
        """The data that `draw` samples from, and for how many of `limit` steps from `first` they suffice."""
        number, begun = first // self.chunk, time.monotonic()
        self._chunks = {ahead: chunk for ahead, chunk in self._chunks.items() if ahead >= number}
        for ahead in (number, number + 1):  # the next chunk is gathered while the devices work on this one
            if ahead not in self._chunks:
                self._chunks[ahead] = self._thread.submit(self._gather, ahead * self.chunk)
        data = self._chunks[number].result()
        self.waited += time.monotonic() - begun
        return self._fixed | data, min(limit, (number + 1) * self.chunk - first)

    def draw(self, data, step) -> Batch:
        """This device's part of a step's batch: a pure function, for use inside of one that `parallel.pmap` maps."""
        # the shapes are selected again from the same key, since only their rows were gathered on the host
        now = select_shapes(data["deal"], self.lanes.steps, step, data["key"])
        rows, inside = jax.tree.map(lambda leaf: leaf[:, step - data["first"]], (data["rows"], data["inside"]))
        return assemble(self.plan, rows, inside, data["counts"][now.row], now, data["key"])

    def _gather(self, first: int) -> dict:
        """The rows of a chunk of steps on the devices, [W, chunk, count, ...]; each process gathers its own lanes."""
        # `split_by` asks once per array for each device's part, all of which come from one gathering
        gathered = functools.cache(lambda device: self._gather_shard(first, device))
        rows, width = {}, len(self.lanes.dealt)
        for name, draw in self.plan.draws().items():
            values = self.arrays[draw.array].values
            shape = (width, self.chunk, draw.count, *values.shape[1:])
            rows[name] = parallel.split_by(shape, values.dtype, lambda device, name=name: gathered(device)[0][name])
        shape = (width, self.chunk, self.plan.count)
        inside = parallel.split_by(shape, bool, lambda device: gathered(device)[1])
        return {"first": np.int32(first), "rows": rows, "inside": inside}

    def _gather_shard(self, first: int, device: int):
        with jax.default_device(_host()):  # a small program, which must not wait for the training steps
            deal = Deal(*map(jnp.asarray, self.lanes.deal_of(device)))
            counts = {name: _counts(self.arrays[name], deal.index).astype(np.int32) for name in self.plan.arrays()}
            key = jax.random.wrap_key_data(jnp.asarray(self._key[0]), impl=self._key[1])
            found = _sample_chunk(self.plan, self.lanes.steps, self.chunk, deal, counts, np.int32(first), key)
        index, places = jax.tree.map(lambda leaf: np.swapaxes(np.asarray(leaf), 0, 1), found)  # [b, chunk, ...]
        rows = {}
        for name, draw in self.plan.draws().items():
            packed = self.arrays[draw.array]
            rows[name] = packed.values[packed.offsets[index][..., None] + places[name]]
        sides = {name: self.arrays[name].counts[index] for name in self.plan.arrays()}
        return rows, np.concatenate(self.plan.inside(places, sides), -1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_chunk(plan: BatchSpec, steps: int, chunk: int, deal: Deal, counts, first, key):
    """For a chunk of steps: the indices of the shapes [chunk, b], and of their rows [chunk, b, count] by sampling."""

    def of_step(step):
        now = select_shapes(deal, steps, step, key)
        return now.index, sample_all(plan, counts, now, key)

    return jax.lax.map(of_step, first + jnp.arange(chunk))


def load(arrays: Mapping[str, RaggedArray], lanes: Lanes, plan: BatchSpec, key, place: Place) -> Resident | Streamed:
    """Batches from samples in the devices' memory, or streamed to them."""
    if place == "streamed":
        return Streamed(arrays, lanes, plan, key)
    return Resident(arrays, lanes, plan, key, half=place == "half")


def resident_bytes(arrays: Mapping[str, RaggedArray], lanes: Lanes, plan: BatchSpec, half: bool = False) -> int:
    """The bytes that `Resident` samples take on the device that has the most."""
    rows = {name: _row(arrays[name], half) for name in plan.arrays()}
    return sum(
        _longest(arrays[name], lanes) * int(np.prod(shape)) * kind.itemsize for name, (shape, kind) in rows.items()
    )


def example(arrays: Mapping[str, RaggedArray], lanes: Lanes, plan: BatchSpec) -> Batch:
    """The arrays of one device's part of a step as shapes and dtypes, without values."""
    arrays = lines(arrays)
    shapes = len(lanes.dealt) // lanes.devices
    number, mask, epoch = (  # shapes in place of arrays
        cast(jax.Array, jax.ShapeDtypeStruct(shape, kind))
        for shape, kind in (((shapes,), "int32"), ((shapes,), "float32"), ((), "int32"))
    )
    now = ShapeSelection(number, number, mask, epoch)
    rows = {
        name: jax.ShapeDtypeStruct((shapes, draw.count, *values.shape[1:]), values.dtype)
        for name, draw in plan.draws().items()
        for values in [arrays[draw.array].values]
    }
    inside = jax.ShapeDtypeStruct((shapes, plan.count), bool)
    counts = jax.ShapeDtypeStruct((shapes, arrays[plan.points.array].counts.shape[1]), "int32")
    return jax.eval_shape(functools.partial(assemble, plan), rows, inside, counts, now, jax.random.key(0))


def _check(arrays, lanes: Lanes, plan: BatchSpec):
    for draw in plan.draws().values():
        if draw.array not in arrays:
            raise ConfigError(f"no array {draw.array!r} to draw from; there are {', '.join(sorted(arrays))}")
        counts = arrays[draw.array].counts[lanes.indices]
        sides = counts if draw.sides == "half" else counts.sum(1, keepdims=True)
        if not sides.all():
            bad = int(np.flatnonzero(~sides.all(1))[0])
            raise ConfigError(
                f"shape {lanes.indices[bad]} of the store has {counts[bad].tolist()} rows of {draw.array!r} to sample "
                "from; build the store with settings that sample them"
            )
    if plan.values == "distances" and arrays[plan.points.array].values.shape[1:] != (4,):
        raise ConfigError(f"{plan.points.array!r} holds no distances; draw points of 'sdf', or values 'occupancies'")


def _host():
    """The host's CPU as a JAX device; an accelerator if JAX was configured without the CPU."""
    with contextlib.suppress(RuntimeError):
        return jax.local_devices(backend="cpu")[0]
    return jax.local_devices()[0]


def _counts(packed: RaggedArray, index) -> np.ndarray:
    """The counts of shapes, given their indices [b, R] → [b · R, sides], 0 for padding."""
    index = np.asarray(index).ravel()
    return np.where(index[:, None] >= 0, packed.counts[index], 0)


class DeviceRows(NamedTuple):
    """A `RaggedArray` split over the devices.

    values [blocks, rows, ...]: the rows of a device's shapes one after the other, in blocks, since a device may hold
    more rows than an int32 counts.  starts [R, 2]: of each shape's first row, the block and the row in it.
    counts [R, sides].
    """

    values: jax.Array
    starts: jax.Array
    counts: jax.Array

    def rows(self, shape: jax.Array, places: jax.Array) -> jax.Array:
        """Rows [S, N, ...] of some shapes.  shape [S]: rows of `starts`.  places [S, N]: among the shape's own rows."""
        block, first = self.starts[shape].T[..., None]
        row, length = first + places, np.int32(self.values.shape[1])
        return self.values[block + jax.lax.div(row, length), jax.lax.rem(row, length)]


def _longest(packed: RaggedArray, lanes: Lanes) -> int:
    """The number of rows of the device that has the most."""
    counts = [_counts(packed, lanes.deal_of(device).index).sum() for device in range(lanes.devices)]
    return max(1, *map(int, counts))


def _row(packed: RaggedArray, half: bool) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a row on the devices.

    A TPU keeps three columns as four, and would first copy the whole array to read rows of three.
    """
    shape, kind = packed.values.shape[1:], packed.values.dtype
    padded = shape == (3,) and parallel.platform().kind == "tpu"
    return (4,) if padded else shape, np.dtype(np.float16) if half and kind == np.float32 else kind


def _on_devices(packed: RaggedArray, lanes: Lanes, half: bool) -> DeviceRows:
    """The rows of each device's shapes on that device, in the order of its lanes, with their places and counts."""
    longest = _longest(packed, lanes)  # all devices get arrays of one size
    blocks = -(-longest // BLOCK)
    length, (rest, kind) = -(-longest // blocks), _row(packed, half)

    def values(device: int):
        out = np.zeros((blocks * length, *rest), kind)
        at, rows = 0, out if packed.values.ndim != 2 else out[:, : packed.values.shape[1]]
        for i in lanes.deal_of(device).index.ravel():
            count = packed.counts[i].sum() if i >= 0 else 0
            rows[at : at + count] = packed.values[packed.offsets[i] : packed.offsets[i] + count]
            at += count
        return out.reshape(blocks, length, *rest)

    def starts(device: int):
        counts = _counts(packed, lanes.deal_of(device).index).sum(1)
        return np.stack(np.divmod(np.cumsum(counts) - counts, length), 1).astype(np.int32)

    return DeviceRows(
        parallel.split_by((lanes.devices * blocks, length, *rest), kind, values),
        parallel.split_by((lanes.positions.size, 2), np.int32, starts),
        _counts_on_devices(packed, lanes),
    )


def _counts_on_devices(packed: RaggedArray, lanes: Lanes):
    """The counts of each device's shapes on that device, [per-shape rows, sides] int32."""

    def counts(device: int):
        return _counts(packed, lanes.deal_of(device).index).astype(np.int32)

    return parallel.split_by((lanes.positions.size, packed.counts.shape[1]), np.int32, counts)
