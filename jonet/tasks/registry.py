"""From the name of a task to the task: built-in ones, and those of installed packages."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from importlib import metadata

from jonet.errors import ConfigError, shown
from jonet.tasks import names
from jonet.tasks.base import Task, TaskConfig


def find(task: str | Task) -> Task:
    """The task of this name, or a given task after checking it.

    Raises ConfigError for an unknown name, for one that several packages declare, and for a task that cannot be loaded
    or is incomplete.  A package that declares a built-in name is ignored with a warning.
    """
    if isinstance(task, Task):
        return _checked(task, f"task {getattr(task, 'name', type(task).__name__)}")
    if not isinstance(task, str):
        raise ConfigError(f"task is {shown(task)}, but must be a name or a jonet.Task (an instance, not the class)")
    declared = names.installed().get(task, [])
    if task in names.BUILT_IN:
        if declared:
            warnings.warn(
                f"{_packages(declared)} declares the task {task}, which is ignored: it is built into jonet",
                stacklevel=2,
            )
        return importlib.import_module(f"jonet.tasks.{task}").TASK
    if not declared:
        raise ConfigError(f"task is {shown(task)}, but there are {', '.join(names.all_names())}")
    if len({entry.value for entry in declared}) > 1:
        raise ConfigError(f"task {task} is declared by {_packages(declared)}; uninstall all but one of them")
    return _loaded(declared[0])


def _loaded(entry: metadata.EntryPoint) -> Task:
    """The task of an entry point, which names an instance or a class."""
    where = f"task {entry.name} of {_packages([entry])} ({entry.value})"
    try:
        loaded = entry.load()
        task = loaded() if isinstance(loaded, type) and issubclass(loaded, Task) else loaded
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where} cannot be loaded ({said}); repair or uninstall the package") from error
    if not isinstance(task, Task):
        raise ConfigError(f"{where} is {shown(task)}, but must be a jonet.Task")
    if getattr(task, "name", None) != entry.name:
        raise ConfigError(f"{where} has the name {getattr(task, 'name', None)!r}; both must be equal")
    return _checked(task, where)


def _packages(entries: list[metadata.EntryPoint]) -> str:
    """The names of the packages that declare these entry points."""
    found = sorted({entry.dist.name if entry.dist else "a package without a name" for entry in entries})
    return " and ".join(f"the package {name}" for name in found)


def _checked(task: Task, where: str) -> Task:
    """The task; ConfigError if an attribute is missing, if a preset is not of the class of its
    config, or if a stage or an option is not in its `parts`."""
    missing = [name for name in ("name", "title", "frame", "config", "presets", "parts") if not hasattr(task, name)]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}; jonet.Task documents its attributes")
    if not (isinstance(task.config, type) and issubclass(task.config, TaskConfig)):
        raise ConfigError(f"{where}: config is {shown(task.config)}, but must be a class derived from TaskConfig")
    if tuple(task.parts) != names.STAGES:
        raise ConfigError(f"{where}: parts has {', '.join(task.parts)}, but must have {', '.join(names.STAGES)}")
    for name, preset in task.presets.items():
        if type(preset) is not task.config:  # else the options that its class adds would be unknown
            ours, theirs = (f"{kind.__module__}.{kind.__qualname__}" for kind in (task.config, type(preset)))
            raise ConfigError(
                f"{where}: its preset {name} is a {theirs}, but must be a {ours}, the class of its config; set presets "
                "to instances of that"
            )
    options = {field.name for field in dataclasses.fields(task.config)}
    read = {option for part in task.parts.values() for option in part}
    if options != read:
        raise ConfigError(
            f"{where}: {', '.join(sorted(options ^ read))} must be both a field of its config and in one of its parts, "
            "which say which stage reads it"
        )
    return task
