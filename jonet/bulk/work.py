"""What all bulk jobs have in common: their settings, the run from inputs to rows, and what they did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jonet import parallel
from jonet.bulk.job import Input, opened
from jonet.bulk.manifest import Row
from jonet.bulk.pipeline import Outcome, Pipeline, Stages
from jonet.errors import ConfigError
from jonet.geometry import units
from jonet.storage.names import unique
from jonet.wording import counted

FORMATS = ("ply", "obj", "stl", "glb", "off")


class Settings(NamedTuple):
    """How a job is run; the results do not depend on it.

    shard: (index, count), this process's part of the inputs; None: as jax.distributed says.  limit: process at most so
    many inputs, at equal steps, as a trial.  retry_failed: try inputs with failed rows again.  batch: shapes per batch,
    chosen by the available memory if None.  executor: reads inputs (threads if None); an executor of concurrent.futures
    or Dask.
    """

    shard: tuple[int, int] | None = None
    limit: int | None = None
    retry_failed: bool = False
    batch: int | None = None
    executor: Executor | None = None


DEFAULT = Settings()


class Summary(NamedTuple):
    """What a call did.

    inputs: number of inputs in this process's shard.  before: of them, done by earlier calls.  outcome: of this call.
    size: bytes written.  complete: whether all inputs of all processes are done, and the results are joined.
    """

    inputs: int
    before: int
    outcome: Outcome
    size: int
    complete: bool


def run(
    folder: Path,
    job: dict[str, Any],
    inputs: Mapping[str, Input],
    stages: Stages,
    settings: Settings,
    batch: Callable[[], int],
    progress: Callable[[Outcome], None] | None = None,
    finish: Callable[[Path, dict[str, Row]], None] | None = None,
) -> Summary:
    """Runs a job in a folder.

    job: all that its results depend on.  batch: gives the number of shapes per batch, unless settings do.  finish:
    called with the folder and all rows when all inputs are done.  Raises ConfigError and BusyError as `job.opened`, and
    ConfigError if no input could be used.
    """
    index, count = settings.shard or (jax.process_index(), jax.process_count())
    with opened(folder, (index, count), job, inputs) as work:
        mine = sorted(inputs)[index::count]
        if settings.retry_failed:
            work.again.update(mine if settings.shard else inputs)
        left = [key for key in mine if work.done(key) is None]
        todo = left
        if settings.limit is not None and settings.limit < len(left):
            todo = [left[i * len(left) // settings.limit] for i in range(settings.limit)]

        def write(key: str, result) -> Row:
            work.begin(key)
            return stages.write(key, result)

        with parallel.local_only():
            size = batch() if settings.batch is None else settings.batch
            pipeline = Pipeline(stages._replace(write=write), work.add, size, settings.executor)
            try:
                sources = {key: inputs[key].source for key in todo}
                outcome = pipeline.run(sources, progress or (lambda outcome: None))
            except KeyboardInterrupt as stopped:
                raise KeyboardInterrupt(
                    f"stopped; results in {folder} are kept; the same command continues"
                ) from stopped

        def join() -> bool:
            return work.join(lambda rows: finish(folder, rows) if finish else None)

        complete = join()
        while not complete and settings.shard is None and count > 1 and len(todo) == len(left):
            time.sleep(1)  # with jax.distributed, all processes have to end together
            complete = join()
        done = [row for key in mine if (row := work.done(key))]
        if done and not work.usable():
            raise ConfigError(
                f"none of {counted(len(done), 'input')} could be used; {work.manifest.path} has the reasons"
            )
    size = sum(made.get("bytes", 0) for row in outcome.rows for made in row.files.values())
    return Summary(len(mine), len(mine) - len(left), outcome, size, complete)


def check(settings: Settings) -> None:
    """ConfigError for impossible settings."""
    for name in ("limit", "batch"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ConfigError(f"{name} is {value}, but must be 1 or more")
    if settings.shard is not None and not 0 <= settings.shard[0] < settings.shard[1]:
        index, count = settings.shard
        raise ConfigError(f"shard is {index} of {count}; shards count from 0")


def check_apart(folder: Path, files: Mapping[str, Path]) -> None:
    """ConfigError if inputs are directly in the job's folder, since later searches expect only results there."""
    for path in files.values():
        if os.path.realpath(path.parent) == os.path.realpath(folder):
            raise ConfigError(f"{path} is in {folder}, where results would be among inputs; choose another --out")


def check_format(form: str) -> None:
    """ConfigError for an unknown format of meshes."""
    if form not in FORMATS:
        raise ConfigError(f"format is {form!r}; meshes are written as {', '.join(FORMATS)}")


def check_units(unit: str | None, form: str | None) -> None:
    """ConfigError for an unknown unit of the inputs, and for one that no output would have."""
    units.check(unit)
    if unit is not None and form != "glb":
        raise ConfigError(f"units is {unit!r}, but not used: of the formats only glb has a unit, and form is {form!r}")


def measured(unit: str | None) -> dict[str, str]:
    """What results depend on: the unit of the inputs, if it is given."""
    return {} if unit is None else {"units": unit}


def outputs(shape_names: dict[str, str], form: str) -> dict[str, str]:
    """The path of each shape's result relative to the job's folder."""
    return {key: form.format(name) for key, name in zip(shape_names, unique(list(shape_names.values())), strict=True)}


def reading(outliers: str | None, up: str, remove_plane: bool, whole: bool = False) -> dict[str, Any]:
    """What results depend on: whether outliers are kept ("warn" and "keep") or removed, the axis of the files that
    points up, whether planes are removed, and whether clouds are taken for whole surfaces."""
    found: dict[str, Any] = {"outliers": "keep"} if outliers in ("warn", "keep") else {}
    found |= {} if up == "y" else {"up": up}
    return found | {name: True for name, given in (("remove_plane", remove_plane), ("whole", whole)) if given}
