"""What a training step sees: which shapes, and which of their rows.

Every epoch goes through every lane in a new order, and each step takes the next shape of each lane: every shape once an
epoch, less the remainder of the division. What is drawn of a shape is a function of the key, the epoch and the shape's
number alone, whatever the devices and whatever else is in the batch; and of integers only, so that rows can be picked
on one processor and gathered on another.

`S` shapes of a device in a step, `N` points; `W`, `b` and `R`, index and position as in `lanes.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jonet import parallel
from jonet.data.lanes import Deal, Lanes
from jonet.data.store import Packed
from jonet.errors import ConfigError

CHUNK = 1 << 28  # bytes that are streamed ahead at once


class Batch(NamedTuple):
    """One device's share of a step: S of its shapes.

    points [S, N, 3]; values [S, N]: signed distances, or occupancies 0 and 1; row [S]: where the shape's row lies
    in this device's share of `own`; index [S]: its number in the store; mask [S]: 0 where a lane is empty; epoch []:
    from 1; inputs: what the network is conditioned on, if the plan says so: rows [S, M, ...]; images [S, H, W, 3] in
    [0, 1]; voxels [S, 32, 32, 32] of 0 and 1.  weights [S, N]: how many points each counts for, if the plan says so.
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


class Turn(NamedTuple):
    """The shapes of a step, as in `Batch`."""

    row: jax.Array
    index: jax.Array
    mask: jax.Array
    epoch: jax.Array


def turn(deal: Deal, steps: int, step, key) -> Turn:
    """Which shape of each lane a step takes.  steps: of an epoch; step: from 0; key: of the whole run."""
    epoch, place = step // steps + 1, step % steps
    length = deal.index.shape[1]
    keys = jax.vmap(lambda lane: parallel.fold(key, "lane", epoch, lane))(deal.lane)
    bits = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys)
    bits = jnp.where(deal.index >= 0, bits, np.uint32(2**32 - 1))  # empty places come last
    slot = jnp.argsort(bits, axis=1, stable=True)[:, place]
    index = jnp.take_along_axis(deal.index, slot[:, None], axis=1)[:, 0]
    row = jnp.arange(len(deal.lane)) * length + slot
    return Turn(row.astype(jnp.int32), jnp.maximum(index, 0), (index >= 0).astype(jnp.float32), epoch)


# Which rows


def coloured(images: jax.Array) -> jax.Array:
    """images [S, H, W, 1 or 3] uint8 → [S, H, W, 3] float32 in [0, 1]."""
    return jnp.broadcast_to(images.astype(jnp.float32) / 255, (*images.shape[:-1], 3))


def unpacked(bits: jax.Array) -> jax.Array:
    """bits [S, R³ / 8] uint8 of `voxels.packed` → [S, R, R, R] float32 of 0 and 1."""
    side = round((8 * bits.shape[1]) ** (1 / 3))
    return jnp.unpackbits(bits, axis=1).reshape(-1, side, side, side).astype(jnp.float32)


WHOLE = {"images": coloured, "voxels": unpacked}  # arrays one row of which is a whole input, and its form for a network


@dataclasses.dataclass(frozen=True)
class Draw:
    """Rows of each shape that a step takes from one packed array.

    how: `rows` with replacement, as published, or `windows` of neighbours, which can be streamed (rows in place of
    one where a side has too few). sides: of an array with an outside and an inside, `half` of each, outside first, as
    published for distances, or `any`, each row as likely as the other.
    """

    array: str
    count: int
    how: Literal["rows", "windows"] = "rows"
    sides: Literal["half", "any"] = "half"

    def __post_init__(self):
        if self.array in WHOLE and self.count != 1:
            raise ConfigError(f"a draw of {self.count} {self.array}; a step sees one of each shape")
        if self.count < 1 or self.how not in ("rows", "windows") or self.sides not in ("half", "any"):
            raise ConfigError(
                f"a draw of {self.count} {self.how!r} of {self.sides!r}; it must be of at least 1 row, by 'rows' or "
                "'windows', from 'half' of each side or 'any'"
            )


def pick(draw: Draw, counts, key) -> jax.Array:
    """Places of the drawn rows among a shape's own [count] int32.  counts: of its sides, [2] or [1] int32."""

    def below(size, name: str):  # by remainder: biased by size / 2³², and a third of randint's work
        bits = jax.random.bits(parallel.fold(key, name), size.shape, jnp.uint32)
        return (bits % jnp.maximum(size, 1).astype(jnp.uint32)).astype(jnp.int32)

    place, half = jnp.arange(draw.count, dtype=jnp.int32), draw.count // 2
    if len(counts) == 1:
        first, second, wanted = counts[0], jnp.int32(0), (draw.count, 0)
        inside = place < 0
    elif draw.sides == "half":
        (first, second), wanted = counts, (half, draw.count - half)
        inside = place >= half
        place -= jnp.where(inside, half, 0)
    else:
        (first, second), wanted = counts, (draw.count, draw.count)
        inside = below(jnp.broadcast_to(first + second, place.shape), "side") >= first
    rows = below(jnp.where(inside, second, first), "rows")
    if draw.how == "windows":
        room = jnp.stack([first, second]) - np.array(wanted, np.int32)
        start = below(room + 1, "start")
        rows = jnp.where(jnp.where(inside, *room[::-1]) > 0, jnp.where(inside, *start[::-1]) + place, rows)
    return rows + jnp.where(inside, first, 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step sees of each shape.

    points: which rows. values: their `distances`, or `occupancies` (1 inside, 0 outside). inputs: rows that the network
    is conditioned on; noise: standard deviation of what is added to them. stretch: in every epoch each shape, its
    points and inputs alike, is drawn out along each axis by a factor from exp(-stretch) to exp(stretch), and brought
    back to its longest side. weighed: points of `half` each side count for as many as `any` would draw of that side, so
    that sums mean the same and vary less. passes: over the shapes, for each of which all is drawn anew, that make up an
    epoch for schedules.
    """

    points: Draw
    values: Literal["distances", "occupancies"] = "distances"
    inputs: Draw | None = None
    noise: float = 0.0
    stretch: float = 0.0
    weighed: bool = False
    passes: int = 1

    def __post_init__(self):
        cloud = self.inputs is not None and self.inputs.array not in WHOLE
        if self.noise and not cloud:
            raise ConfigError(f"noise of {self.noise} belongs to inputs that are points")
        if self.stretch and not (cloud and self.values == "occupancies"):
            raise ConfigError(f"a stretch of {self.stretch} belongs to occupancies, with inputs that are points")
        if self.weighed and self.points.sides != "half":
            raise ConfigError("points that are weighed are drawn as 'half' of each side")

    def draws(self) -> dict[str, Draw]:
        return {"points": self.points} | ({"inputs": self.inputs} if self.inputs else {})

    def arrays(self) -> list[str]:
        """The arrays that are drawn from."""
        return sorted({draw.array for draw in self.draws().values()})


def picks(plan: Plan, counts: Mapping[str, jax.Array], now: Turn, key) -> dict[str, jax.Array]:
    """The places of all rows of a step, [S, count] for each of the plan's draws.

    counts [rows of own, sides], by array.
    """

    def of_shape(index, row):
        key_of_shape = parallel.fold(key, "draw", now.epoch, index)
        return {
            name: pick(draw, counts[draw.array][row], parallel.fold(key_of_shape, name))
            for name, draw in plan.draws().items()
        }

    return jax.vmap(of_shape)(now.index, now.row)


def assemble(plan: Plan, rows: Mapping[str, jax.Array], inside: jax.Array, counts, now: Turn, key) -> Batch:
    """The batch of drawn rows: rows [S, count, ...] for each of the plan's draws, inside [S, N] bool of the points.

    counts [S, sides]: of the array that the points are from.
    """

    def real(leaf):  # an empty lane is zeros, whatever lies where its rows would be
        return jnp.where(now.mask.reshape(-1, *[1] * (leaf.ndim - 1)) > 0, leaf, jnp.zeros((), leaf.dtype))

    points, inputs = real(rows["points"]).astype(jnp.float32), rows.get("inputs")
    weights = real(_weights(inside, counts)) if plan.weighed else None
    if inputs is not None and plan.inputs.array in WHOLE:
        inputs = WHOLE[plan.inputs.array](inputs[:, 0])
    values = points[..., 3] if plan.values == "distances" else real(inside).astype(jnp.float32)
    points = points[..., :3]
    if plan.stretch:
        keys = jax.vmap(lambda index: parallel.fold(key, "stretch", now.epoch, index))(now.index)
        inputs = _exact(inputs.astype(jnp.float32))
        factors = _factors(inputs, plan.stretch, keys)[:, None]
        points, inputs = points * factors, inputs * factors
    if plan.noise:
        keys = jax.vmap(lambda index: parallel.fold(key, "noise", now.epoch, index))(now.index)
        noise = jax.vmap(lambda key: jax.random.normal(key, inputs.shape[1:], jnp.float32))(keys)
        fraction, exponent = np.frexp(plan.noise)  # cut to 12 bits, as `_exact` does
        scale = np.float32(np.ldexp(np.round(fraction * 4096) / 4096, exponent))
        inputs = inputs.astype(jnp.float32) + scale * _exact(noise)
    now = now._replace(epoch=(now.epoch - 1) // plan.passes + 1)
    return Batch(points, values, *now, None if inputs is None else real(inputs), weights)


def _exact(values: jax.Array) -> jax.Array:
    """Cut to 12 bits: the product of two is exact, and a sum with it has the same bits however it is compiled."""
    return jax.lax.reduce_precision(values, 8, 11)


def _weights(inside: jax.Array, counts: jax.Array) -> jax.Array:
    """How many evenly drawn points one of `half` each side counts for [S, N]; of a shape about 1 in the mean."""
    counts = counts.astype(jnp.float32)
    outside, within = (2 * counts / counts.sum(1, keepdims=True).clip(1)).T
    return jnp.where(inside, within[:, None], outside[:, None])


def _factors(cloud: jax.Array, stretch: float, keys) -> jax.Array:
    """By how much each shape is drawn out along each axis [S, 3]; the longest side of its cloud [S, M, 3] remains."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-stretch, maxval=stretch))(keys)
    factors, sides = jnp.exp(drawn), jnp.ptp(cloud, axis=1)
    return _exact(factors * (sides.max(1) / (sides * factors).max(1).clip(1e-6))[:, None])


# Where the rows are


class Resident:
    """Batches from samples that lie on the devices.

    arrays: packed ones by name (`Store.arrays`, and any others with one entry a shape of the store: images, voxel
    grids). key: of the whole run. What is public here is what the training loop asks for, see `training.loop.Batches`.
    """

    def __init__(self, arrays: Mapping[str, Packed], lanes: Lanes, plan: Plan, key):
        _check(arrays, lanes, plan)
        self.lanes, self.plan, self.positions = lanes, plan, lanes.positions
        self.points = lanes.shapes * plan.points.count
        self.specs = {"deal": parallel.SPLIT, "key": parallel.REPLICATED, "arrays": parallel.SPLIT}
        packed = {name: _on_devices(arrays[name], lanes) for name in plan.arrays()}
        self._data = {"deal": parallel.split(lanes.deal_of()), "key": parallel.replicate(key), "arrays": packed}

    def segment(self, first: int, limit: int):
        """What `draw` draws from, and for how many steps from `first`, of at most `limit`, it suffices: all."""
        return self._data, limit

    def draw(self, data, step) -> Batch:
        """This device's share of a step's batch: a pure function, inside of one that `parallel.pmap` maps."""
        now = turn(data["deal"], self.lanes.steps, step, data["key"])
        arrays = data["arrays"]
        places = picks(self.plan, {name: packed.counts for name, packed in arrays.items()}, now, data["key"])
        rows = {}
        for name, draw in self.plan.draws().items():
            packed = arrays[draw.array]
            rows[name] = packed.values[packed.offsets[now.row][:, None] + places[name]]
        counts = arrays[self.plan.points.array].counts[now.row]
        return assemble(self.plan, rows, places["points"] >= counts[:, :1], counts, now, data["key"])


class Streamed:
    """Batches from samples that stay in memory-mapped files: the same as `Resident` gives, bit for bit.

    Rows are picked by the same functions, on the host, and gathered a chunk of steps ahead by a thread, while the
    devices work on the chunk before. waited: seconds in which a chunk was wanted and not ready.
    Raises ConfigError for draws by `rows`, which would be read from the disk one by one.
    """

    def __init__(self, arrays: Mapping[str, Packed], lanes: Lanes, plan: Plan, key, *, chunk: int | None = None):
        _check(arrays, lanes, plan)
        for draw in plan.draws().values():
            if draw.how == "rows" and draw.count > 1:
                raise ConfigError(f"{draw.array} is streamed, so draw 'windows' of it, not {draw.count} single 'rows'")
        self.lanes, self.plan, self.positions = lanes, plan, lanes.positions
        self.points = lanes.shapes * plan.points.count
        self.specs = {"deal": parallel.SPLIT, "key": parallel.REPLICATED, "first": parallel.REPLICATED}
        self.specs |= {name: parallel.SPLIT for name in ("counts", "rows", "inside")}
        size = sum(arrays[draw.array].values[:1].nbytes * draw.count for draw in plan.draws().values())
        self.chunk = chunk or int(np.clip(CHUNK // (size * len(lanes.dealt)), 1, 256))  # steps
        self.waited = 0.0
        self._arrays, self._still = arrays, {"deal": parallel.split(lanes.deal_of()), "key": parallel.replicate(key)}
        self._still["counts"] = _counts_on_devices(arrays[plan.points.array], lanes)
        self._key = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        self._thread, self._chunks = ThreadPoolExecutor(1, "stream"), {}

    def segment(self, first: int, limit: int):
        """What `draw` draws from, and for how many steps from `first`, of at most `limit`, it suffices."""
        number, begun = first // self.chunk, time.monotonic()
        self._chunks = {ahead: chunk for ahead, chunk in self._chunks.items() if ahead >= number}
        for ahead in (number, number + 1):
            if ahead not in self._chunks:
                self._chunks[ahead] = self._thread.submit(self._gather, ahead * self.chunk)
        data = self._chunks[number].result()
        self.waited += time.monotonic() - begun
        return self._still | data, min(limit, (number + 1) * self.chunk - first)

    def draw(self, data, step) -> Batch:
        """This device's share of a step's batch: a pure function, inside of one that `parallel.pmap` maps."""
        now = turn(data["deal"], self.lanes.steps, step, data["key"])
        rows, inside = jax.tree.map(lambda leaf: leaf[:, step - data["first"]], (data["rows"], data["inside"]))
        return assemble(self.plan, rows, inside, data["counts"][now.row], now, data["key"])

    def _gather(self, first: int) -> dict:
        """The rows of a chunk of steps, [W, chunk, count, ...] on the devices, each gathered for its own lanes."""
        share = functools.cache(lambda device: self._gather_share(first, device))
        rows, width = {}, len(self.lanes.dealt)
        for name, draw in self.plan.draws().items():
            shape = (width, self.chunk, draw.count, *self._arrays[draw.array].values.shape[1:])
            rows[name] = parallel.split_by(shape, lambda device, name=name: share(device)[0][name])
        inside = parallel.split_by((width, self.chunk, self.plan.points.count), lambda device: share(device)[1])
        return {"first": np.int32(first), "rows": rows, "inside": inside}

    def _gather_share(self, first: int, device: int):
        with jax.default_device(_host()):
            deal = Deal(*map(jnp.asarray, self.lanes.deal_of(device)))
            counts = {name: _counts(self._arrays[name], deal.index).astype(np.int32) for name in self.plan.arrays()}
            key = jax.random.wrap_key_data(jnp.asarray(self._key[0]), impl=self._key[1])
            found = _picked(self.plan, self.lanes.steps, self.chunk, deal, counts, np.int32(first), key)
        index, places = jax.tree.map(lambda leaf: np.swapaxes(np.asarray(leaf), 0, 1), found)  # [b, chunk, ...]
        rows = {}
        for name, draw in self.plan.draws().items():
            packed = self._arrays[draw.array]
            rows[name] = packed.values[packed.offsets[index][..., None] + places[name]]
        return rows, places["points"] >= self._arrays[self.plan.points.array].counts[index, :1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _picked(plan: Plan, steps: int, chunk: int, deal: Deal, counts, first, key):
    """Of a chunk of steps: the shapes [chunk, b], and the places of their rows [chunk, b, count] by draw."""

    def of_step(step):
        now = turn(deal, steps, step, key)
        return now.index, picks(plan, counts, now, key)

    return jax.lax.map(of_step, first + jnp.arange(chunk))


def load(arrays: Mapping[str, Packed], lanes: Lanes, plan: Plan, key, resident: bool) -> Resident | Streamed:
    """Batches from samples on the devices, or streamed to them."""
    return (Resident if resident else Streamed)(arrays, lanes, plan, key)


def fits(arrays: Mapping[str, Packed], lanes: Lanes, plan: Plan, share: float = 0.5) -> bool:
    """Whether the samples of a device's lanes take at most this share of its memory (of the host's, on a CPU)."""
    device = jax.local_devices()[0]
    free = (device.memory_stats() or {}).get("bytes_limit")
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    size = 0
    for name in plan.arrays():
        rows = _longest(arrays[name], lanes)
        if rows >= 2**31:  # beyond what the devices' integers count
            return False
        size += rows * arrays[name].values[:1].nbytes
    return size <= share * free


def _check(arrays, lanes: Lanes, plan: Plan):
    for draw in plan.draws().values():
        if draw.array not in arrays:
            raise ConfigError(f"no array {draw.array!r} to draw from; there are {', '.join(sorted(arrays))}")
        counts = arrays[draw.array].counts[lanes.indices]
        sides = counts if draw.sides == "half" else counts.sum(1, keepdims=True)
        if not sides.all():
            bad = int(np.flatnonzero(~sides.all(1))[0])
            raise ConfigError(
                f"shape {lanes.indices[bad]} of the store has {counts[bad].tolist()} rows of {draw.array!r} to draw "
                "from; build the store by a recipe that samples them"
            )
    if plan.values == "distances" and arrays[plan.points.array].values.shape[1:] != (4,):
        raise ConfigError(f"{plan.points.array!r} holds no distances; draw points of 'sdf', or values 'occupancies'")


def _host():
    """The host's own processor; where JAX was told to know only an accelerator, that."""
    with contextlib.suppress(RuntimeError):
        return jax.local_devices(backend="cpu")[0]
    return jax.local_devices()[0]


def _counts(packed: Packed, index) -> np.ndarray:
    """The counts of shapes by their indices [b, R] → [b · R, sides], 0 for padding."""
    index = np.asarray(index).ravel()
    return np.where(index[:, None] >= 0, packed.counts[index], 0)


def _longest(packed: Packed, lanes: Lanes) -> int:
    """How many rows the device with the most of them holds."""
    held = [_counts(packed, lanes.deal_of(device).index).sum() for device in range(lanes.devices)]
    return max(1, *held)


def _on_devices(packed: Packed, lanes: Lanes) -> Packed:
    """The rows of each device's shapes on it, one place after another, and where they begin there."""
    longest = _longest(packed, lanes)
    if longest >= 2**31:
        raise ConfigError(f"{longest} rows on one device are more than its integers count; stream them")

    def values(device: int):
        out = np.zeros((longest, *packed.values.shape[1:]), packed.values.dtype)
        at = 0
        for i in lanes.deal_of(device).index.ravel():
            count = packed.counts[i].sum() if i >= 0 else 0
            out[at : at + count] = packed.values[packed.offsets[i] : packed.offsets[i] + count]
            at += count
        return out

    def offsets(device: int):
        ends = np.cumsum(_counts(packed, lanes.deal_of(device).index).sum(1))
        return np.concatenate([[0], ends[:-1]]).astype(np.int32)

    return Packed(
        parallel.split_by((lanes.devices * longest, *packed.values.shape[1:]), values),
        parallel.split_by((lanes.positions.size,), offsets),
        _counts_on_devices(packed, lanes),
    )


def _counts_on_devices(packed: Packed, lanes: Lanes):
    """The counts of each device's shapes on it [rows, sides] int32."""

    def counts(device: int):
        return _counts(packed, lanes.deal_of(device).index).astype(np.int32)

    return parallel.split_by((lanes.positions.size, packed.counts.shape[1]), counts)
