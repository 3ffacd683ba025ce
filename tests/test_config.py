"""Configs are equal after a round trip through JSON; unknown options and wrong types are refused by name."""

import dataclasses
import json
from typing import Literal

import pytest

from jonet import config
from jonet.errors import ConfigError
from jonet.storage import atomic


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    widths: tuple[int, ...] = (4, 4)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    limit: float | None = None
    inner: Inner = Inner()


def test_round_trip(tmp_path):
    made = Outer(name="b", limit=2.5, inner=Inner(rate=1.0, widths=(1, 2, 3)))
    atomic.write_json(tmp_path / "c.json", config.to_dict(made))
    assert config.from_dict(Outer, json.loads((tmp_path / "c.json").read_text())) == made
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    "values, words",
    [
        ({"inner": {"rat": 1.0}}, "did you mean inner.rate"),
        ({"nonsense": 1}, "known are"),
        ({"inner": {"rate": "fast"}}, "inner.rate is 'fast'"),
        ({"inner": {"widths": [1, "2"]}}, r"inner.widths\[1\]"),
        ({"kind": "z"}, "'x', 'y'"),
        ({"limit": "none"}, "limit"),
        ({"inner": 3}, "group of options"),
    ],
)
def test_refusals_name_the_option(values, words):
    with pytest.raises(ConfigError, match=words):
        config.from_dict(Outer, values)


def test_digest_tells_settings_apart():
    assert config.digest(Outer()) == config.digest(Outer(inner=Inner()))
    assert config.digest(Outer()) != config.digest(Outer(inner=Inner(rate=2e-3)))


def test_difference_names_both_sides():
    ours, theirs = config.to_dict(Outer(name="b")), config.to_dict(Outer())
    assert config.difference(ours, theirs) == ["name: 'a' → 'b'"]


@dataclasses.dataclass(frozen=True)
class Deeper:
    rate: int = 1
    first: Outer = Outer()
    second: Inner = Inner()


def test_an_option_without_its_groups_is_told_with_them():
    for made, changes, hint in (
        (Outer(), {"rate": 0.5}, 'unknown option rate; did you mean inner={"rate": 0.5}?'),
        (Deeper(), {"widths": (1,)}, 'did you mean first={"inner": {"widths": (1,)}} or second={"widths": (1,)}?'),
        (Deeper(), {"first": {"rate": 2}}, 'unknown option first.rate; did you mean first={"inner": {"rate": 2}}?'),
    ):
        with pytest.raises(ConfigError) as caught:
            config.changed(made, changes)
        assert hint in str(caught.value)
