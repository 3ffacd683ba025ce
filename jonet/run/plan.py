"""What a run takes on a chip (memory, disk, steps, time), without sampling, compiling or training anything."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import jax

from jonet import parallel
from jonet.chips import CHIPS, Chip
from jonet.data import store as stores
from jonet.data.sampling import Recipe
from jonet.data.store import Store
from jonet.parallel import Platform
from jonet.run import train
from jonet.tasks.base import Task, TaskConfig
from jonet.tasks.shapes import STAND_IN
from jonet.training import autotune, batches, costs

# Fraction of a chip's rate of matrix products that training reaches, and seconds that a small step takes at least: of
# programs compiled for a v5e and an H100, whose `paper` steps reach 9 to 49 % (estimated cycles, bytes over bandwidth).
REACHED = 0.2
LEAST = {"tpu": 0.25e-3, "gpu": 0.6e-3}
RATES = {"float32": "default"}  # precision of products by the type of their operands, as in `Chip.rate`
PROCESS = 0.5e9  # bytes of memory of a process that has imported jax
# Seconds of a core by what is sampled, of procedural chairs on an AMD EPYC, see docs/performance.md.  shape: reading,
# diagnosis, normalization and points on the surface; views, fusion: in addition, with these signs of published samples;
# sdf, occupancy: a point.
SECONDS = {
    "shape": 0.16,
    "views": 22.0,
    "fusion": 13.0,
    "sdf": 5.7e-6,
    "occupancy": 7e-7,
    "voxels": 0.07,
    "view": 2.7e-3,
    "pixel": 1.1e-7,
}


@dataclasses.dataclass(frozen=True)
class Training:
    """The training of a run; sizes in bytes, on the device or the host that needs the most.

    autotuned: what is decided when training starts, as in config.json; of micro-batches the usual size.
    source: of batches.
    samples: on a device.  step: memory of a step on it, parameters and optimizer included.  host: memory of a process.
    operations: of a step on a device, by type.  seconds: of a step; None if the chip is unknown.
    steps, minutes: the length, of which one follows from the other by `seconds`; None if that is unknown.
    """

    autotuned: dict[str, Any]
    source: batches.Resident | batches.Streamed
    samples: int
    step: int
    host: float
    operations: Counter[str]
    seconds: float | None
    steps: int | None
    minutes: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a run.

    shapes: by split.  sampling: seconds of a core.  disk: bytes of the store; twice as many while it is built.
    training: why there is none, as a sentence, or what it takes.
    """

    platform: Platform
    shapes: Counter[str]
    sampling: float
    disk: int
    training: Training | str


def make(task: Task, config: TaskConfig, chip: str | None = None) -> Plan:
    """The plan of a run on one chip, by its name in `CHIPS`, or on the devices of this process.

    Raises ConfigError as the run would before it samples shapes.
    """
    given = stores.is_there(config.data)  # then nothing is sampled
    sources = [] if given else config.shapes.sources(config.data or STAND_IN, config.seed)
    outline = stores.open(config.data) if given else train.outline(task, config, sources)
    task.check_store(config, outline)
    limits, devices = CHIPS[chip] if chip else None, parallel.working()
    platform = Platform(limits.kind, int(limits.memory)) if limits else parallel.platform()
    with parallel.absent(devices[:1] if limits else devices, platform):
        task.check_outline(config, outline)
        reason = task.untrained(config)
        return Plan(
            platform=platform,
            shapes=Counter(outline.splits.tolist()),
            sampling=sum(sampling_seconds(config.samples.of(s.split), config.shapes.sign) for s in sources),
            disk=sum(array.values.nbytes for array in outline.arrays.values()),
            training=reason or training(task, config, outline, limits),
        )


def training(task: Task, config: TaskConfig, outline: Store, limits: Chip | None) -> Training:
    """The training of a plan.  limits: of the chip; None if unknown."""
    pieces = getattr(getattr(config, "learning", None), "micro_batch", None)  # None: the task has none
    # a plan measures nothing
    autotuned = {} if pieces is None else {"micro_batch": pieces or autotune.SIZES[parallel.platform().kind][0]}
    rows, key = outline.select("train"), jax.random.key(config.seed)
    setup = task.training_setup(config, outline, rows, key, autotuned)
    source: Any = setup.batches
    example = batches.example(source.arrays, source.lanes, source.plan)
    learned = {"shared": setup.shared, "per_shape": setup.per_shape}
    cost = costs.of_step(
        setup.loss, setup.lookup, setup.optimizer.build(), learned, setup.batch_stats, example, setup.ema_decay
    )
    seconds, steps, minutes = None, None if setup.minutes else setup.steps, setup.minutes or None
    if limits:
        busy = sum(count / limits.rate(RATES.get(kind, kind)) for kind, count in cost.operations.items())
        seconds = max(LEAST[limits.kind], busy / REACHED)
        steps, minutes = steps or int(60 * setup.minutes / seconds), minutes or setup.steps * seconds / 60
    return Training(
        autotuned=autotuned,
        source=source,
        samples=source.bytes,
        step=cost.memory,
        host=PROCESS + source.bytes * parallel.count(),
        operations=cost.operations,
        seconds=seconds,
        steps=steps,
        minutes=minutes,
    )


def sampling_seconds(recipe: Recipe, sign: str) -> float:
    """The time that a core takes for one shape.  sign: how its inside is found."""
    return (
        SECONDS["shape"]
        + SECONDS.get(sign, 0.0)
        + SECONDS["sdf"] * (recipe.near + recipe.uniform)
        + SECONDS["occupancy"] * (recipe.occupancies + recipe.near_occupancies)
        + SECONDS["voxels"] * (recipe.voxels != "none")
        + recipe.images * (SECONDS["view"] + SECONDS["pixel"] * recipe.image_size**2)
    )


def text(task: Task, preset: str, plan: Plan, chip: str | None) -> str:
    """A plan as lines for the terminal."""
    platform, shapes, found = plan.platform, plan.shapes, plan.training
    where = chip or f"this machine's {platform.kind}"
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(shapes.items(), key=lambda item: -item[1]))
    lines = {
        f"{task.name}, {preset}": f"on one {where} ({_gigabytes(platform.memory)})" if chip else f"on {where}",
        "shapes": f"{counts}; sampling takes about {_time(plan.sampling)} of a core",
        "disk": f"{_gigabytes(plan.disk)} of samples, twice that while they are sampled",
    }
    if isinstance(found, str):
        return _table(lines | {"training": f"none, since {found}"})
    now, source = found.autotuned, found.source
    size = f"{source.lanes.shapes} shapes × {source.plan.count:,} points"
    cut = 0 < now.get("micro_batch", 0) < source.points
    pieces = f", micro-batches of {now['micro_batch']:,} points" if cut else ""
    kind = {"resident": "on the device", "half": "on the device as float16", "streamed": "read from disk"}
    drawn = "windows" if source.plan.points.how == "windows" else "single rows"
    lines["batch"] = size + (f" in {now['compute_dtype']}" if "compute_dtype" in now else "") + pieces
    lines["samples"] = f"{kind[now.get('place', 'resident')]}, drawn as {drawn}"
    lines["device"] = f"{_gigabytes(found.samples)} of samples, at most {_gigabytes(found.step)} for a step"
    lines["host"] = f"{_gigabytes(found.host)} of memory"
    operations = sum(found.operations.values())
    lines["training"] = f"{operations / 1e9:,.3g} GFLOP a step"
    if found.seconds:
        lines["training"] += f", about {_time(found.seconds)} at {REACHED:.0%} of the chip's rate"
    steps = "as many steps as fit" if found.steps is None else f"{found.steps:,} steps"
    lines["time"] = steps + (" in an unknown time" if found.minutes is None else f" in {_time(60 * found.minutes)}")
    if not chip:
        lines["time"] += f"; --chip={'|'.join(CHIPS)} for the time on a chip" * (found.minutes is None)
    return _table(lines)


def _table(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}s}  {line}" for name, line in lines.items())


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"
