"""Experiments: rows of studies are kept and not mixed; every compared shape has noise of its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import compare, study
from jonet.data.sources import Procedural
from jonet.errors import ConfigError
from jonet.inference.encode import Inputs


def test_rows_are_measured_once_and_kept(tmp_path):
    asked = []

    def measured(wanted, rows="", shapes=8):
        options = SimpleNamespace(folder=tmp_path, rows=rows)
        return study.measured(options, "a.json", wanted, lambda x: asked.append(x) or {"got": x}, shapes=shapes)

    assert measured({"one": 1, "two": 2}, rows="one") == {"one": {"got": 1}}
    assert measured({"two": 2, "three": 3}) == {"two": {"got": 2}, "three": {"got": 3}}  # one is not wanted now
    assert list(measured({"three": 3, "one": 1, "two": 2})) == ["three", "one", "two"] and asked == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"a.json were measured with shapes 8; use that again"):
        measured({"one": 1}, shapes=4)
    assert measured({"four": 4}) == {"four": {"got": 4}} and asked == [1, 2, 3, 4]


def test_every_shape_has_its_own_noise():
    """The same in every network's frame, but not the same as another shape's."""
    noise = []
    for index in (0, 1):
        source = Procedural("mug", seed=1, index=index, split="test")
        clean, noisy, cube = (
            compare.seen(source, SimpleNamespace(frame=frame), 50, level, 3)
            for frame, level in (("sphere", 0.0), ("sphere", 0.01), ("cube", 0.01))
        )
        side = np.ptp(clean.ground_truth.vertices, axis=0).max()
        noise.append((noisy.points - clean.points) / side)
        sides = [np.ptp(one.ground_truth.vertices, axis=0).max() for one in (noisy, cube)]
        np.testing.assert_allclose(np.ptp(noisy.points, 0) / sides[0], np.ptp(cube.points, 0) / sides[1], rtol=1e-4)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.3


def test_a_cloud_may_have_more_points_than_the_recipe():
    source = Procedural("mug", seed=1, index=0, split="test")
    assert len(compare.seen(source, SimpleNamespace(frame="sphere"), 5_000, 0.0, 3).points) == 5_000


def test_every_way_of_a_network_to_its_codes_is_compared():
    """Encoding, fitting, both in turn, and the published loop where it is asked for."""
    asked = []

    def model(inputs, is_fitted):
        def fit(samples=None, *, points=None, config=None):
            asked.append(("distances" if points is None else "points", config and config.method))

        return SimpleNamespace(
            inputs=inputs, is_fitted=is_fitted, fit=fit, encode=lambda points: asked.append(("one pass", None))
        )

    found = [compare.Seen(None, np.zeros((1, 4)), np.zeros((1, 3)))]
    both = [f"encoded, then fitted, {what}" for what in ("20,000 distances", "30 points")]
    ways = {
        (False, True): ["fitted, 20,000 distances", "fitted, 30 points"],
        (True, False): ["encoded, 30 points"],
        (True, True): ["encoded, 30 points", *both],
    }
    for (encodes, fits), names in ways.items():
        one = model(Inputs("points", 30) if encodes else None, fits)
        for adam in (False, True):
            by_adam = [f"fitted by Adam, {rest}" for rest in ("20,000 distances", "30 points")]
            methods = compare.code_methods(one, 30, adam)
            assert list(methods) == names + by_adam * (adam and not encodes)
            asked.clear()
            for method in methods.values():
                method(found)
            seen = [("one pass", None)] * encodes + [("distances", None), ("points", None)] * fits
            assert asked == seen + [("distances", "adam"), ("points", "adam")] * (adam and not encodes)
