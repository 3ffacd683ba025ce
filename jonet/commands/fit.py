"""`fit`, `extract`, `reconstruct`: observed shapes → codes → meshes, for one or many thousands of shapes."""

from __future__ import annotations

import functools
import sys
import time

from jonet import bulk, parallel, progress
from jonet.bulk.pipeline import Outcome
from jonet.bulk.shapes import Settings, Summary
from jonet.commands import trained
from jonet.errors import ConfigError


def fit(options, given: set[str]) -> None:
    """The verb: codes of observed shapes (`bulk.fit`).  given: names of the options that the user gave."""
    settings, shown, model = _settings(options), Progress(options), trained.load(options, given)
    shown.end(bulk.fit(model, options.inputs, options.out, settings, shown, outliers=options.outliers))


def extract(options, given: set[str]) -> None:
    """The verb: meshes of codes (`bulk.extract`)."""
    _meshes(bulk.extract, options, given, options.codes)


def reconstruct(options, given: set[str]) -> None:
    """The verb: meshes of observed shapes (`bulk.reconstruct`)."""
    _meshes(functools.partial(bulk.reconstruct, outliers=options.outliers), options, given, options.inputs)


def _meshes(work, options, given: set[str], inputs) -> None:
    settings, shown = _settings(options), Progress(options)
    shown.end(work(trained.load(options, given), inputs, options.out, settings, shown, form=options.format))


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
    """Prints the progress of a job every few seconds, and a summary at its end."""

    EVERY = 5.0  # seconds

    def __init__(self, options):
        self.options, self.printed = options, time.monotonic()
        self.first: Outcome | None = None  # after the first batch, whose time includes compilation

    def __call__(self, outcome: Outcome) -> None:
        if self.first is None:
            self.first = outcome
        if not progress.is_quiet() and time.monotonic() - self.printed > self.EVERY:
            self.printed = time.monotonic()
            failed = sum(row.failed for row in outcome.rows)
            pace = 60 * outcome.solved / outcome.seconds
            print(f"{outcome.solved} done · {failed} failed · {pace:.0f} per minute", file=sys.stderr)

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
            print(f"{report.before} of {report.inputs} inputs were done before: {out}")
            return
        for row in outcome.rows[:20]:
            if row.residual is not None:
                print(f"{row.file}: {row.status} · residual {row.residual:.5f} · inliers {row.inlier_fraction:.1%}")
            else:
                print(f"{row.file}: {row.status}")
        if len(outcome.rows) > 20:
            print(f"… {len(outcome.rows) - 20} more in manifest.csv")
        kinds = {kind: 0 for kind in ("ok", "doubtful", "empty", "failed")}
        for row in outcome.rows:
            kinds[row.status.split(":")[0]] += 1
        counts = " · ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        print(
            f"{counts} · {60 * len(outcome.rows) / outcome.seconds:.0f} per minute "
            f"({60 / self.seconds_per_input(outcome):.0f} after the first batch), "
            f"{outcome.solving / outcome.seconds:.0%} of the time in the solver: {out}"
        )
        left = report.inputs - report.before - len(outcome.rows)
        if left:
            hours = left * self.seconds_per_input(outcome) / 3600
            disk = left * report.size / len(outcome.rows)
            print(
                f"{left} inputs are left: about {hours:.2g} hours and {disk / 1e9:.2g} GB; run without --limit for them"
            )
        elif not report.complete:
            print("this shard is done; other shards are not complete yet")
