"""What jonet's programs cost on TPUs and GPUs.

    python -m experiments.accelerators                                      compiles all programs for the usual targets
    python -m experiments.accelerators --target=v5e-4 --programs='deepsdf/*/train'
    python -m experiments.accelerators --target=here                        measures them on the chips of this machine,
                                                                            and compares results with a processor's
    python -m experiments.accelerators --json=rows.json --write             writes the tables of docs/accelerators.md,
                                                                            in which other programs and targets stay

Compiling for chips that are not there needs the packages of the extra `accelerators`, and no chip.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.accelerators import packages
from jonet.errors import ConfigError, JonetError
from jonet.storage import atomic

DOCUMENT = Path(__file__).parents[2] / "docs" / "accelerators.md"
FIGURE = DOCUMENT.parent / "images" / "roofline.svg"
HERE = "here"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; ConfigError for those that do not go together."""
    parser = argparse.ArgumentParser("python -m experiments.accelerators", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--target", action="append", help="chips, e.g. v5e-4; here: those of this machine; may be repeated")
    add(
        "--programs", action="append", help="which: a pattern such as 'deepsdf/*/train'; may be repeated (default: all)"
    )
    add("--json", type=Path, help="file of the rows; rows in it of other programs and targets are kept")
    add("--write", action="store_true", help="write the rows into the tables and the figure of docs/accelerators.md")
    add("--texts", type=Path, help="folder for the compiled texts")
    add("--minutes", type=float, default=0, help="start no program later than this; 0: no limit (here: 8)")
    options = parser.parse_args(arguments)
    options.target = options.target or []
    options.programs = options.programs or ["*"]
    if HERE in options.target and len(options.target) > 1:
        raise ConfigError("--target=here uses the chips of this machine, and the others none; give one of them")
    return options


def run(options: argparse.Namespace) -> list[dict]:
    """Compiles or measures the chosen programs, prints a line for each, and returns all rows of the JSON file.

    In the order of the programs, not of the calls that made them.
    """
    import jax

    from experiments.accelerators import checks, programs, rows, table, targets, unsampled

    here = options.target == [HERE]
    known = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else []
    offered = programs.programs(unsampled.Few() if here else None)
    if wrong := [pattern for pattern in options.programs if not fnmatch.filter(offered, pattern)]:
        raise ConfigError(f"--programs is {wrong[0]!r}, but no program has such a name; --programs='*' is all")
    chosen = [name for name in offered if any(fnmatch.fnmatch(name, pattern) for pattern in options.programs)]
    begun, limit = time.monotonic(), 60 * (options.minutes or (8 if here else 0))
    for target in [targets.target(name) for name in options.target or targets.USUAL]:
        with target.working():
            for name in chosen:
                if limit and time.monotonic() - begun > limit:
                    late = f"not begun within {limit / 60:g} minutes"
                    found = {"program": name, "target": target.name, "mark": "M", "error": late}
                else:
                    found = rows.row(name, target, offered[name], options.texts)
                known = table.replaced(known, found | {"jax": jax.__version__})
                print(table.line(found), flush=True)
                if options.json:
                    table.save(options.json, known)
            if target.here:
                differences = checks.differences()
                print("\n".join(checks.lines(differences)), flush=True)
                if wrong := checks.too_much(differences):
                    raise JonetError(f"results on {target.name} are not the processor's: {', '.join(wrong)}")
    place = {name: i for i, name in enumerate(offered)}
    return sorted(known, key=lambda row: (place.get(row["program"], len(place)), row["target"]))


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options.target != [HERE]:
            packages.alone()
        known = run(options)
        if options.write:
            from experiments.accelerators import programs, roofline, table

            table.write(DOCUMENT, known, list(programs.programs()))
            atomic.write_text(FIGURE, roofline.svg(known, FIGURE.read_text("utf-8")))
    except JonetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
