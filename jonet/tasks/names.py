"""The names of stages and of tasks, built-in ones and those of installed packages (entry points), without jax."""

from __future__ import annotations

from importlib import metadata

STAGES = ("prepare", "train", "reconstruct", "evaluate", "report")
GROUP = "jonet.tasks"  # of entry points: name of the task = module:TASK
BUILT_IN = (  # each is the file of its name in this folder
    *("deepsdf", "deepsdf_completion", "deepsdf_points", "occnet"),
    *("onet_points", "onet_voxels", "onet_images", "onet_unconditional", "purify"),
)


def installed() -> dict[str, list[metadata.EntryPoint]]:
    """Entry points of installed packages by name, without loading them; several for a name that is not unique."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def all_names() -> tuple[str, ...]:
    """The built-in names, then those of installed packages."""
    return *BUILT_IN, *sorted(installed().keys() - set(BUILT_IN))
