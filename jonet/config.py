"""Configs: frozen dataclasses that go to JSON and come back equal, and the keys by which finished work is known."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from typing import Any

from jonet.errors import ConfigError


def to_dict(config) -> dict[str, Any]:
    """A dataclass (nested ones included) as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: dict[str, Any], where: str = ""):
    """The dataclass `cls` from plain values; missing fields take their defaults.

    Raises ConfigError for an unknown name, with the nearest known one, and for a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__} must be a group of options, but is {values!r}")
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"unknown option {where}{name}; {hint}")
    try:
        return cls(**{name: _read(known[name], value, f"{where}{name}") for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def _read(kind, value, where: str):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return None if value is option is None else _read(option, value, where)
            except ConfigError as error:
                refusal = error
        raise refusal
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}, but must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, but must be a list")
        each = arguments[:1] * len(value) if len(arguments) == 2 and arguments[1] is ... else arguments
        if len(each) != len(value):
            raise ConfigError(f"{where} is {value!r}, but must have {len(each)} entries")
        return tuple(_read(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(each, value, strict=True)))
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, f"{where}.")
    if kind is type(None):
        fits = value is None
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        value = float(value) if fits else value
    elif isinstance(kind, type):
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    else:
        fits = True
    if not fits:
        raise ConfigError(f"{where} is {value!r}, but must be {getattr(kind, '__name__', kind)}")
    return value


def digest(*values) -> str:
    """A short key of plain values and dataclasses: equal settings have equal keys, in every process and release."""
    plain = [to_dict(value) if dataclasses.is_dataclass(value) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def difference(ours: dict, theirs: dict, where: str = "") -> list[str]:
    """The options that differ between two plain configs, as "name: theirs → ours"."""
    names = sorted(ours.keys() | theirs.keys())
    found = []
    for name in names:
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += difference(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name}: {b!r} → {a!r}")
    return found
