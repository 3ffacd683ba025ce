"""Data parallelism over devices and processes; the only module that handles devices.

All other code writes a function of *one device's part* of the data, with explicit collectives (`sum`, `gather`) over
the named axis, and `pmap` maps it over every device of every process by `jax.jit(jax.shard_map(...))`.

Gradients: differentiate this device's part of a loss, then `sum` the gradient.  Collectives inside the loss (batch
norm) transpose as those of `jax.pmap` do, so this rule gives the gradient of the global loss.  That needs
`check_vma=False`: with it on, gradients of replicated arguments arrive already summed, and a second sum would multiply
them by the number of devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import platform as machine
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jonet import resources
from jonet.chips import Kind
from jonet.errors import ConfigError
from jonet.wording import counted

AXIS = "devices"
REPLICATED = P()
SPLIT = P(AXIS)  # the leading axis is split over devices
PRECISION = "jax_default_matmul_precision"  # an option of JAX that its stubs do not declare


@dataclasses.dataclass(frozen=True)
class Platform:
    """What programs are written for: a static argument of those that differ between platforms.

    kind: of the devices.  memory: bytes that JAX may use on each.
    """

    kind: Kind
    memory: int

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are processor cores, which work best in pieces that stay in their caches."""
        return self.kind == "cpu"


_working: Sequence[Any] | None = None  # the devices in use; None: all
_assumed: Platform | None = None  # instead of the platform of these devices
_absent = False  # whether they are not there


def use(count: int):
    """Within this context only the first `count` of the devices in use are used (tests, trials, parts of a machine)."""
    devices = working()
    if not 1 <= count <= len(devices):
        raise ValueError(f"{count} devices requested, but this process sees {len(devices)}")
    return _only(devices[:count])


def local_only():
    """Within this context each process uses its local devices only, on its own part of the work, without collectives
    across processes."""
    return _only(jax.local_devices())


@contextlib.contextmanager
def assuming(platform: Platform) -> Iterator[None]:
    """Within this context programs are those of another platform, on whatever devices they run."""
    global _assumed
    before, _assumed = _assumed, platform
    try:
        yield
    finally:
        _assumed = before


@contextlib.contextmanager
def absent(devices: Sequence[Any], platform: Platform) -> Iterator[None]:
    """Within this context programs are lowered and compiled for devices that are not there.

    devices: of a topology (`jax.experimental.topologies`).  What would be copied to them stays a shape
    (`jax.ShapeDtypeStruct` with its sharding), and so do the results of mapped functions, which can be lowered but
    compute nothing.
    """
    global _absent
    before, _absent = _absent, True
    try:
        with _only(devices), assuming(platform):
            yield
    finally:
        _absent = before


def are_absent() -> bool:
    """Whether the devices in use are not there: programs can be compiled for them, but not run (`absent`)."""
    return _absent


@contextlib.contextmanager
def _only(devices: Sequence[Any]):
    global _working
    before, _working = _working, devices
    try:
        yield
    finally:
        _working = before


def working() -> Sequence[Any]:
    """The devices in use, of every process (within `local_only`, of this one)."""
    return jax.devices() if _working is None else _working


def mesh() -> Mesh:
    """The devices in use as a mesh with the single axis `AXIS`."""
    return Mesh(np.array(working()), (AXIS,), axis_types=(AxisType.Auto,))


def count() -> int:
    """How many devices are in use, over all processes."""
    return len(working())


def is_multiprocess() -> bool:
    """Whether the devices in use belong to several processes, which must then run the same collectives in order."""
    return len({device.process_index for device in working()}) > 1


def platform() -> Platform:
    """The platform of the devices of this process, or the one that is assumed."""
    return _assumed or _platform()


@functools.cache
def _platform() -> Platform:
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit]
    memory = min(known) if len(known) == len(limits) else resources.memory() // len(limits)  # CPUs share the host's
    kinds: dict[str, Kind] = {"cpu": "cpu", "tpu": "tpu"}
    return Platform(kinds.get(devices[0].platform, "gpu"), memory)  # a GPU is "cuda" or "rocm" to some calls


def memory() -> int:
    """Bytes that JAX may use on each device (the smallest of this process)."""
    return platform().memory


def describe() -> str:
    """Devices, matrix precision and versions in one line, with a warning if there is a GPU that jax cannot see."""
    devices = jax.devices()
    cpu = f"{machine.machine()}, {counted(resources.cores(), 'core')}"
    kind = cpu if devices[0].platform == "cpu" else devices[0].device_kind
    precision = getattr(jax.config, PRECISION) or "default"
    line = f"{len(devices)} {devices[0].platform} ({kind}) · {precision} precision · jax {jax.__version__}"
    line += f" · python {machine.python_version()}"
    if devices[0].platform == "cpu" and (shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia/version")):
        line += " · warning: there is a GPU that jax cannot see; install jax[cuda]"
    return line


def is_main() -> bool:
    """Whether this is the process that writes files (index 0)."""
    return jax.process_index() == 0


def join(where: str = "") -> None:
    """Joins this process to a multi-process run (`jax.distributed`); before any computation.

    where: "ADDRESS:PORT,N,I", the address of the first process, the number of processes, and this one's index; "" or
    "auto": JAX detects the cluster (Slurm, Open MPI, Kubernetes, TPU pods).
    """
    if where in ("", "auto"):
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"JAX detects no cluster around this process ({error}); give its place as ADDRESS:PORT,N,I"
            ) from error
        return
    try:
        address, *numbers = where.split(",")
        count, index = map(int, numbers)
    except ValueError as error:
        raise ConfigError(f"processes are given as ADDRESS:PORT,N,I, but this is {where!r}") from error
    try:
        jax.distributed.initialize(address, num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the processes could not connect by {where!r}: {error}") from error


def from_main(value: Any) -> Any:
    """Broadcasts the first process's value to every process, so that all take the same decision.  A collective: all
    processes must call it, in the same order.

    value: any JSON value; those of the other processes are ignored.
    """
    if not is_multiprocess():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)  # the length first: all processes need equal shapes
    (size,) = multihost_utils.broadcast_one_to_all(np.array([len(text)], np.int32))
    sent = np.zeros(size, np.uint8)
    if is_main():
        sent[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def pmap(fn: Callable, in_specs, out_specs, donate: Sequence[int] = ()) -> Callable:
    """`fn`, a function of one device's part, mapped over all devices and compiled.

    in_specs, out_specs: one per positional argument or result, REPLICATED or SPLIT (or a tree of them).
    donate: positions of arguments whose buffers the result may reuse.  The mapped function has `.lower(*arguments)`.
    """

    compiled: dict[Mesh, Callable] = {}  # `use` and `local_only` change the mesh between calls

    def on_mesh() -> Callable:
        here = mesh()
        if here not in compiled:
            mapped = jax.shard_map(fn, mesh=here, in_specs=in_specs, out_specs=out_specs, check_vma=False)
            compiled[here] = jax.jit(mapped, donate_argnums=tuple(donate))
        return compiled[here]

    def call(*arguments):
        if _absent and any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(arguments)):
            return jax.tree.map(lambda spec, part: _place(part, spec), out_specs, jax.eval_shape(on_mesh(), *arguments))
        return on_mesh()(*arguments)

    call.jitted = on_mesh
    call.lower = lambda *arguments: on_mesh().lower(*arguments)
    return call


def sum(tree):
    """The sum over devices of every leaf; inside a mapped function."""
    return jax.lax.psum(tree, AXIS)


def gather(tree):
    """Every leaf of all devices, concatenated along its leading axis; inside a mapped function."""
    return jax.lax.all_gather(tree, AXIS, tiled=True)


def index() -> jax.Array:
    """Which device this is, from 0, int32 []; inside a mapped function."""
    return jax.lax.axis_index(AXIS)


def replicate(tree):
    """Host arrays, equal in every process, copied to all devices."""
    return _place(tree, REPLICATED)


def split(tree):
    """Host arrays, complete in every process, split over the devices along their leading axis."""
    return _place(tree, SPLIT)


def split_by(shape: tuple[int, ...], dtype, part: Callable[[int], np.ndarray]) -> jax.Array:
    """An array [N, …] split over the devices along its leading axis.

    shape, dtype: of the whole array.  part(index of a device) gives that device's rows [N / devices, …].
    """
    each, sharding = shape[0] // count(), NamedSharding(mesh(), SPLIT)
    if _absent:
        return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))

    def rows(where: Any) -> np.ndarray:
        return part((where[0].start or 0) // each)

    return jax.make_array_from_callback(shape, sharding, rows)


def _place(tree, spec):
    sharding = NamedSharding(mesh(), spec)

    def put(x):
        if _absent:
            x = x if hasattr(x, "dtype") else np.asarray(x)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # typed keys are no numpy arrays
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda where: x[where])

    return jax.tree.map(put, tree)


def host(tree):
    """Arrays of any sharding as complete numpy arrays, in every process."""

    def fetch(x):
        if not isinstance(x, jax.Array):
            return np.asarray(x)
        if not x.is_fully_addressable and not x.is_fully_replicated:  # parts are in other processes: gather first
            sharding: Any = x.sharding  # over a mesh, as of all arrays here
            x = jax.jit(lambda y: y, out_shardings=NamedSharding(sharding.mesh, REPLICATED))(x)
        return np.asarray(x.addressable_data(0) if x.is_fully_replicated else x)

    return jax.tree.map(fetch, tree)


def fold_in(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """The PRNG key [] derived from a key [] by folding in names (by their crc32) and indices, one after the other."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return key
