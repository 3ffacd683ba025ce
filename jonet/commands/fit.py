"""`fit`, `extract`, `reconstruct`: observed shapes to codes to meshes, one or many thousands."""

from __future__ import annotations

import sys
import time

from jonet import bulk, model, parallel
from jonet.bulk.pipeline import Outcome
from jonet.bulk.shapes import Report, Settings
from jonet.commands.options import DISTRIBUTED, FORMAT, INPUTS, MODEL, OUT, RESOLUTION, option
from jonet.errors import ConfigError

BULK = (
    option("--limit", type=int, help="a trial with so many inputs, spread evenly; says what all would take"),
    option("--retry-failed", action="store_true", help="tries inputs again that failed before"),
    option("--batch", type=int, help="shapes at once (default: by the device's memory)"),
    option("--share", help="I/N: the part of the inputs that this process takes, I from 0"),
    DISTRIBUTED,
)


def declare(verb) -> None:
    codes = option("--out", required=True, help="codes.npz, or a folder")
    verb("fit", fit, "finds the codes of shapes", MODEL, INPUTS, codes, *BULK)
    codes = option("codes", help="codes.npz, or the folder of a fit that is under way")
    verb("extract", extract, "pulls meshes out of codes", MODEL, codes, OUT, FORMAT, RESOLUTION, *BULK)
    verb("reconstruct", reconstruct, "fits codes and pulls out meshes", MODEL, INPUTS, OUT, FORMAT, RESOLUTION, *BULK)


def fit(options) -> None:
    settings, progress = _settings(options), Progress(options)
    progress.end(bulk.fit(model.load(options.model), options.inputs, options.out, settings, progress))


def extract(options) -> None:
    _meshes(bulk.extract, options, options.codes)


def reconstruct(options) -> None:
    _meshes(bulk.reconstruct, options, options.inputs)


def _meshes(do, options, inputs) -> None:
    settings, progress = _settings(options), Progress(options)
    surface = {"resolution": options.resolution, "form": options.format}
    progress.end(do(model.load(options.model), inputs, options.out, settings, progress, **surface))


def _settings(options) -> Settings:
    if options.distributed is not None:
        parallel.join(options.distributed)
    return Settings(_share(options.share), options.limit, options.retry_failed, options.batch)


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--share is {text!r}, but must look like 0/8, the first of eight") from error
    return index, count


class Progress:
    """Says how far a job is, every few seconds, and at the end what came of it."""

    EVERY = 5.0  # seconds

    def __init__(self, options):
        self.options, self.said = options, time.monotonic()
        self.first: Outcome | None = None  # after the first batch, in which programs are compiled

    def __call__(self, outcome: Outcome) -> None:
        if self.first is None:
            self.first = outcome
        if time.monotonic() - self.said > self.EVERY:
            self.said = time.monotonic()
            failed = sum(row.failed for row in outcome.rows)
            pace = 60 * outcome.solved / outcome.seconds
            print(f"{outcome.solved} done · {failed} failed · {pace:.0f} a minute", file=sys.stderr)

    def pace(self, outcome: Outcome) -> float:
        """Seconds an input, without the first batch if there are others."""
        count, seconds = outcome.solved, outcome.seconds
        if self.first is not None and count > self.first.solved:
            count, seconds = count - self.first.solved, seconds - self.first.seconds
        return seconds / count

    def end(self, report: Report) -> None:
        """Prints the summary; of a trial, what all inputs would take."""
        outcome, out = report.outcome, self.options.out
        if not outcome.rows:
            print(f"{report.before} of {report.inputs} inputs were done before: {out}")
            return
        for row in outcome.rows[:20]:
            if row.residual is not None:
                print(f"{row.file}: {row.status} · residual {row.residual:.5f} · explained {row.explained:.1%}")
            else:
                print(f"{row.file}: {row.status}")
        if len(outcome.rows) > 20:
            print(f"… {len(outcome.rows) - 20} more in manifest.csv")
        kinds = {kind: 0 for kind in ("ok", "doubtful", "empty", "failed")}
        for row in outcome.rows:
            kinds[row.status.split(":")[0]] += 1
        counts = " · ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        print(
            f"{counts} · {60 * len(outcome.rows) / outcome.seconds:.0f} a minute "
            f"({60 / self.pace(outcome):.0f} after the first batch), "
            f"{outcome.solving / outcome.seconds:.0%} of the time solving: {out}"
        )
        left = report.inputs - report.before - len(outcome.rows)
        if left:
            hours = left * self.pace(outcome) / 3600
            disk = left * report.size / len(outcome.rows)
            print(
                f"{left} inputs are left: about {hours:.2g} hours and {disk / 1e9:.2g} GB; without --limit they follow"
            )
        elif not report.complete:
            print("this share is done; others are not yet")
