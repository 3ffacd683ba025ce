"""The verbs of bulk jobs: `fit`, `extract`, `reconstruct` (shapes → codes → meshes), `represent` (shapes → fields)."""

from __future__ import annotations

import functools
from typing import Any

from jonet import bulk, parallel, progress
from jonet.bulk.pipeline import Outcome
from jonet.bulk.work import Settings, Summary
from jonet.commands import trained
from jonet.errors import ConfigError
from jonet.wording import counted


def fit(options, given: set[str]) -> None:
    """The verb: codes of observed shapes (`bulk.fit`).  given: names of the options that the user gave."""
    settings, shown, model = _settings(options), Progress(options), trained.load(options, given)
    with shown.display:
        done = bulk.fit(
            model,
            options.inputs,
            options.out,
            settings,
            shown,
            **_reading(options),
            whole=options.whole,
            unit=options.units,
        )
    shown.end(done)


def extract(options, given: set[str]) -> None:
    """The verb: meshes of codes (`bulk.extract`)."""
    _meshes(bulk.extract, options, given, options.codes)


def reconstruct(options, given: set[str]) -> None:
    """The verb: meshes of observed shapes (`bulk.reconstruct`)."""
    work = functools.partial(bulk.reconstruct, **_reading(options), whole=options.whole)
    _meshes(work, options, given, options.inputs)


def represent(options, given: set[str]) -> None:
    """The verb: fields of meshes and point clouds, and their meshes (`bulk.represent`)."""
    unread = sorted(name for name in given if name.startswith("surfaces.")) if options.format is None else []
    if unread:
        raise ConfigError(
            f"--{unread[0].replace('_', '-')} is given, but not read: meshes are only written with --format "
            "(--representation.resolution is that of the fields)"
        )
    settings, shown = _settings(options), Progress(options)
    with shown.display:
        done = bulk.represent(
            options.inputs,
            options.out,
            settings,
            shown,
            options=options.representation,
            form=options.format,
            surfaces=options.surfaces,
            **_reading(options),
            unit=options.units,
        )
    shown.end(done)


def _reading(options) -> dict[str, Any]:
    """The options of reading files."""
    return {name: getattr(options, name) for name in ("outliers", "up", "remove_plane")}


def _meshes(work, options, given: set[str], inputs) -> None:
    settings, shown, model = _settings(options), Progress(options), trained.load(options, given)
    with shown.display:
        done = work(model, inputs, options.out, settings, shown, form=options.format, unit=options.units)
    shown.end(done)


def _settings(options) -> Settings:
    if options.distributed is not None:
        parallel.join(options.distributed)
    return Settings(_shard(options.shard), options.limit, options.retry_failed, options.batch)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--shard is {text!r}, but must be like 0/8, the first of eight") from error
    return index, count


class Progress:
    """Shows the progress of a job, and prints a summary at its end."""

    def __init__(self, options):
        self.options, self.display = options, progress.Progress("inputs", "input", None)
        self.first: Outcome | None = None  # after the first batch, whose time includes compilation

    def __call__(self, outcome: Outcome) -> None:
        if self.first is None:
            self.first = outcome
        failed = sum(row.failed for row in outcome.rows)
        self.display.total = outcome.total
        self.display.update(outcome.solved, f"{failed} failed" * bool(failed))

    def seconds_per_input(self, outcome: Outcome) -> float:
        """The mean time per input, without the first batch if there are others."""
        count, seconds = outcome.solved, outcome.seconds
        if self.first is not None and count > self.first.solved:
            count, seconds = count - self.first.solved, seconds - self.first.seconds
        return seconds / count

    def end(self, report: Summary) -> None:
        """Prints the summary; with `--limit` also the estimated time and disk space of the remaining inputs."""
        outcome, out = report.outcome, self.options.out
        if not outcome.rows:
            print(f"done before: {report.before} of {counted(report.inputs, 'input')}: {out}")
            return
        for row in outcome.rows[:20]:
            residual = "" if row.residual is None else f" · residual {row.residual:.5f}"
            inliers = "" if row.inlier_fraction is None else f" · inliers {row.inlier_fraction:.1%}"
            print(f"{row.file}: {row.status}{residual}{inliers}")
        if len(outcome.rows) > 20:
            print(f"… {len(outcome.rows) - 20} more in manifest.csv")
        kinds = {kind: 0 for kind in ("ok", "doubtful", "empty", "failed")}
        for row in outcome.rows:
            kinds[row.status.split(":")[0]] += 1
        counts = " · ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        solving, reading, writing = (
            part / outcome.seconds for part in (outcome.solving, outcome.reading, outcome.writing)
        )
        print(
            f"{counts} · {60 * len(outcome.rows) / outcome.seconds:.0f} per minute "
            f"({60 / self.seconds_per_input(outcome):.0f} after the first batch), {solving:.0%} of the time in the "
            f"solver, {reading:.0%} waiting for inputs, {writing:.0%} for results to be written: {out}"
        )
        left = report.inputs - report.before - len(outcome.rows)
        if left:
            hours = left * self.seconds_per_input(outcome) / 3600
            disk = left * report.size / len(outcome.rows)
            print(
                f"{counted(left, 'input is', 'inputs are')} left: about {hours:.2g} hours and {disk / 1e9:.2g} GB; run "
                "without --limit for the rest"
            )
        elif not report.complete:
            print("this shard is done; other shards are not complete yet")
