"""Configs: frozen dataclasses to JSON and back without loss, and the digests that identify finished work."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import numbers
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from jonet.errors import ConfigError, shown

C = TypeVar("C")  # a config, which is a dataclass


def to_dict(config, where: str = "") -> dict[str, Any]:
    """A dataclass (nested ones included) as plain JSON values.

    Fields with `python_only` in their metadata hold objects and are left out; ConfigError if one is set.
    """
    return json.loads(json.dumps(_without_objects(config, dataclasses.asdict(config), where)))


def _without_objects(config, values: dict[str, Any], where: str) -> dict[str, Any]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("python_only"):
            del values[field.name]
            if value is not field.default:
                raise ConfigError(
                    f"{where}{field.name} is an object ({type(value).__name__}), which serves calls from Python only; "
                    "files and other processes take settings by name"
                )
        elif dataclasses.is_dataclass(value):
            _without_objects(value, values[field.name], f"{where}{field.name}.")
    return values


def from_dict(cls: type[C], values: dict[str, Any], where: str = "") -> C:
    """The dataclass `cls` from plain values; missing fields take their defaults.

    Raises ConfigError for an unknown name, with the closest known one, and for a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__} must be a group of options, but is {shown(values)}")
    hints = typing.get_type_hints(cls)
    _check_names(cls, values, where)
    read = {name: _read(hints[name], value, f"{where}{name}") for name, value in values.items()}
    try:
        return cls(**read)
    except (ConfigError, TypeError) as error:
        if not where and isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where.removesuffix('.') or cls.__name__}: {error}") from error


def added(default) -> Any:
    """The default of an option that runs made before it do not have, by which it changes nothing.

    At its default it is no part of what identifies their results (`unchanged`), so that they go on.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def unchanged(config) -> set[str]:
    """Names of the `added` options of a dataclass that have their class's default."""
    fields = (field for field in dataclasses.fields(config) if field.metadata.get("added"))
    return {field.name for field in fields if getattr(config, field.name) == field.default}


def changed(config: C, changes: dict[str, Any], where: str = "") -> C:
    """A copy of a dataclass with other values.

    changes: by name; a group of options as a dict (its other options keep their values) or as a whole dataclass.
    Raises ConfigError as `from_dict` does.
    """
    return from_dict(type(config), _merged(config, changes, where), where)


def _merged(config, changes: dict[str, Any], where: str) -> dict[str, Any]:
    _check_names(type(config), changes, where)
    values = to_dict(config)
    for name, value in changes.items():
        before = getattr(config, name)
        if not dataclasses.is_dataclass(before):
            values[name] = value
        elif isinstance(value, dict):
            values[name] = _merged(before, value, f"{where}{name}.")
        elif isinstance(value, type(before)) or (isinstance(before, type(value)) and dataclasses.is_dataclass(value)):
            values[name] = dataclasses.asdict(typing.cast(Any, value))
        else:
            kind = f"{type(before).__module__}.{type(before).__name__}"
            raise ConfigError(f"{where}{name} is {shown(value)}, but must be a dict of its options or a {kind}")
    return values


def given(config, changes: dict[str, Any], where: str = "") -> set[str]:
    """Full names of the options that `changes` (see `changed`) sets; within a dataclass, those with another value."""
    found = set()
    for name, value in changes.items():
        before = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = {
                f.name: v
                for f in dataclasses.fields(before)
                if (v := getattr(value, f.name, None)) != getattr(before, f.name)
            }
        if dataclasses.is_dataclass(before):
            found |= given(before, value, f"{where}{name}.")
        else:
            found.add(f"{where}{name}")
    return found


def _check_names(cls: type, values: dict[str, Any], where: str) -> None:
    """ConfigError for a name that is no field of the dataclass, with the groups that have such a field, or with the
    closest field name."""
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for name, value in values.items():
        if name not in known:
            groups = [(*where.split(".")[:-1], *group) for group in _groups_with(cls, str(name))]
            near = [_nested(group, str(name), value) for group in groups]
            near = near or [where + other for other in difflib.get_close_matches(str(name), known, 1)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"unknown option {where}{name}; {hint}")


def _groups_with(cls: type, name: str) -> Iterator[tuple[str, ...]]:
    """The groups of options, and those within them, that have a field of this name: each the names from the outside."""
    for group, kind in typing.get_type_hints(cls).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if any(field.name == name for field in dataclasses.fields(kind)):
                yield (group,)
            yield from ((group, *inner) for inner in _groups_with(kind, name))


def _nested(groups: tuple[str, ...], name: str, value) -> str:
    """An option in groups as an argument in Python: optimizer={"shared": {"initial": 0.1}}."""
    text = f'{{"{name}": {shown(value, 20)}}}'
    for group in reversed(groups[1:]):
        text = f'{{"{group}": {text}}}'
    return f"{groups[0]}={text}"


def _read(kind, value, where: str):
    """`value` converted to the type annotation `kind`; ConfigError if it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # the first type that fits; else the last one's error
        arguments = sorted(arguments, key=lambda option: option is not type(None))
        for option in arguments[:-1]:
            with contextlib.suppress(ConfigError):
                return _read(option, value, where)
        return _read(arguments[-1], value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(argument) and value == argument for argument in arguments):  # True == 1
            raise ConfigError(f"{where} is {shown(value)}, but must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {shown(value)}, but must be a list")
        each = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is ... else arguments
        if len(each) != len(value):
            raise ConfigError(f"{where} is {shown(value)}, but must have {len(each)} entries")
        return tuple(_read(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(each, value, strict=True)))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value, f"{where}.")
    if kind is type(None):
        fits = value is None
    elif kind is float:  # bool is a subclass of int, so it is excluded by name here and below
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
        value = _float(value) if fits else value
    elif kind is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) < 2**63
        value = int(value) if fits else value
    elif isinstance(kind, type):
        fits = isinstance(value, kind)
    else:
        fits = True
    if not fits:
        raise ConfigError(f"{where} is {shown(value)}, but must be {getattr(kind, '__name__', kind)}")
    return value


def _float(value) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def digest(*values) -> str:
    """16 hex digits that identify plain values and dataclasses, stable across processes and releases."""
    # Sorted keys: the digest must not depend on the order of fields.
    plain = [to_dict(value) if dataclasses.is_dataclass(value) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def difference(ours: dict, theirs: dict, where: str = "") -> list[str]:
    """The options that differ between two plain configs, each as "name: theirs → ours"."""
    names = sorted(ours.keys() | theirs.keys())
    found = []
    for name in names:
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += difference(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name}: {b!r} → {a!r}")
    return found
