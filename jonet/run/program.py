"""The program `jonet run`: all stages of a task, from shapes to the report; `experiments/run.py` calls it too."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from jonet import progress
from jonet.run import options as run_options


def run(arguments: Sequence[str], prog: str = "jonet run") -> None:
    """Runs the stages of a task.  arguments: of the shell."""
    # before jax is imported, which reads these variables then
    if cache := cache_folder():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    task, config, options = run_options.parse(arguments, prog)
    progress.be_quiet(options.quiet)
    parallel, stages, plan = (
        importlib.import_module(f"jonet.{name}") for name in ("parallel", "run.stages", "run.plan")
    )
    if options.distributed is not None:
        parallel.join(options.distributed)
    if options.plan:
        print(plan.text(task, options.preset, plan.make(task, config, options.chip), options.chip))
        return
    stages.run(task, config, options.workdir, options.stages)


def cache_folder() -> Path | None:
    """Folder of JAX's persistent compilation cache; None for users without a home directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "jonet" / "compiled" if os.path.isabs(base) else None
