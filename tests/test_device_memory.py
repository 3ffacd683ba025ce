"""A device that runs out of memory: lists continue in smaller pieces, and what does not fit is one sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from chairs import Ellipsoids, of_samples
from spheres import cloud, distance, sphere

from jonet import device_memory, interrupt, parallel
from jonet.device_memory import Pieces
from jonet.errors import DeviceMemoryError, JonetError, out_of_device_memory
from jonet.inference import encode
from jonet.inference.fitting import latents
from jonet.inference.surfaces import extraction
from jonet.networks import field
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import TILE, Field, evaluate_tiles
from jonet.settings.fitting import LBFGS, FitConfig
from jonet.training.loop import Loop

pytestmark = pytest.mark.unoptimized

EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\nAllocator: …")


def failing(function, times: int):
    """`function`, whose first calls find no memory."""
    left = [times]

    def call(*arguments):
        left[0] -= 1
        if left[0] >= 0:
            raise EXHAUSTED
        return function(*arguments)

    return call


def test_only_xla_says_that_a_device_has_no_memory():
    assert out_of_device_memory(EXHAUSTED) == "Out of memory allocating 8589934592 bytes"
    for other in (jax.errors.JaxRuntimeError("INTERNAL: lost"), ValueError("RESOURCE_EXHAUSTED: x"), MemoryError()):
        assert not out_of_device_memory(other)


def test_it_is_one_sentence_with_the_remedy():
    with pytest.raises(DeviceMemoryError) as caught, device_memory.reporting("training", "lower batch_shapes"):
        raise EXHAUSTED
    assert str(caught.value) == (
        "training needs more memory than the device has (Out of memory allocating 8589934592 bytes); lower batch_shapes"
    )
    assert isinstance(caught.value, JonetError | MemoryError) and caught.value.__cause__ is EXHAUSTED
    with pytest.raises(RuntimeError, match="^lost$"), device_memory.reporting("training", ""):
        raise RuntimeError("lost")


def test_a_verb_ends_in_a_sentence(capsys):
    def work():
        raise EXHAUSTED

    assert interrupt.status(work, "stopped") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a device has not enough memory (Out of memory") and said.count("\n") == 1


@pytest.mark.parametrize("late", [False, True])
def test_lists_continue_in_smaller_pieces(late):
    """Whether XLA says so when a piece is dispatched, or when its results are fetched."""
    pieces, seen = Pieces("numbers", 8, 3), []

    def check(some):
        seen.append(some.stop - some.start)
        if some.stop - some.start > 3 and some.start >= 8:
            raise EXHAUSTED

    def work(some):
        late or check(some)
        return range(20)[some]

    def fetch(some, numbers):
        not late or check(some)
        return list(numbers)

    with pytest.warns(UserWarning, match="ran out of memory for 8 numbers at once; continuing with 3"):
        assert sum(pieces.map(work, 20, fetch), []) == list(range(20))
    assert seen == [8, 8, *([3] * 4 if late else [*[3] * 6, 2])]  # from what was not fetched
    assert pieces.map(lambda some: some.stop, 7) == [3, 6, 7] and pieces.map(work, 0, fetch) == []


def test_pieces_of_large_items_are_smaller():
    pieces = Pieces("numbers", 8, 3)
    for most, stops in ((5, [5, 10, 12]), (100, [8, 12]), (0, [*range(1, 13)]), (None, [8, 12])):
        assert pieces.map(lambda some: some.stop, 12, most=most) == stops


def test_pieces_that_never_fit_are_an_error():
    def work(some):
        raise error

    for error, size, calls in ((EXHAUSTED, 20, 1), (EXHAUSTED, 3, 0), (RuntimeError("lost"), 20, 0)):
        pieces = Pieces("numbers", 8, 3)
        with pytest.raises(RuntimeError) as caught:
            if calls:
                with pytest.warns(UserWarning, match="continuing with 3"):
                    pieces.map(work, size)
            else:
                pieces.map(work, size)
        assert caught.value is error and pieces.most == (3 if calls else 8)


def test_processes_dispatch_the_same_pieces(monkeypatch):
    monkeypatch.setattr("jonet.parallel.is_multiprocess", lambda: True)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        Pieces("numbers", 8, 3).map(failing(range, 1), 20)


def test_the_pieces_are_of_smaller_programs():
    """Less work at a time, not only shorter lists: bulk evaluation on an accelerator takes groups of 512 tiles."""
    assert field.bucket(field.DISPATCH.fewer, field.LEAST) // 2 < 512 < field.DISPATCH.most
    for pieces in (encode.TOGETHER, latents.TOGETHER):
        assert field.bucket(pieces.fewer) < 64 <= field.bucket(pieces.most)


def test_fields_are_evaluated_in_smaller_dispatches(monkeypatch):
    monkeypatch.setattr(field, "DISPATCH", Pieces("tiles", 8, 2))
    fields, points, owner = Field.stack([sphere(0.3), sphere(0.6)]), cloud(11, TILE), np.arange(11) % 2
    program = failing(field.evaluation(parallel.platform(), False), 1)
    monkeypatch.setattr(field, "evaluation", lambda platform, gradient: program)
    with pytest.warns(UserWarning, match="8 tiles at once; continuing with 2"):
        values, _ = evaluate_tiles(fields, owner, points)
    wanted = [distance(tile, (0.3, 0.6)[i]) for i, tile in zip(owner, points, strict=True)]
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_calls_say_what_to_lower(monkeypatch):
    monkeypatch.setattr(field, "evaluation", lambda platform, gradient: failing(None, 99))
    with pytest.raises(DeviceMemoryError, match="^evaluating fields .*fewer shapes"):
        sphere(0.5)(cloud(5))
    with pytest.raises(DeviceMemoryError, match="^extracting surfaces .*lower the resolution"):
        extraction.extract(sphere(0.5), 8)
    monkeypatch.setattr(encode, "_program", failing(None, 99))
    with pytest.raises(DeviceMemoryError, match="^encoding inputs .*--batch"):
        encode.encode(BoundNetwork(None, None), np.zeros((1, 3)), "points")


def test_shapes_are_fitted_in_smaller_batches(monkeypatch):
    network, config = BoundNetwork(Ellipsoids(), jnp.asarray(0.5)), FitConfig(method="lbfgs", lbfgs=LBFGS(steps=1))
    shapes = of_samples(np.random.default_rng(0).uniform(-1, 1, (3, 64, 4)))
    whole = latents.fit(network, shapes, config=config)
    monkeypatch.setattr(latents, "TOGETHER", Pieces("shapes", 4, 1))
    monkeypatch.setattr(latents.methods, "nearest", failing(latents.methods.nearest, 1))
    with pytest.warns(UserWarning, match="4 shapes at once; continuing with 1"):
        np.testing.assert_allclose(latents.fit(network, shapes, config=config).values, whole.values, atol=1e-5)
    monkeypatch.setattr(latents.methods, "nearest", failing(None, 9))
    with pytest.raises(DeviceMemoryError, match="^fitting codes .*fewer shapes"):
        latents.fit(network, shapes, config=config)


def run(monkeypatch, folder, times: int, **options) -> int:
    """The status of a tiny run whose first dispatches find no memory."""
    tiny_run.write_meshes(folder / "data")
    monkeypatch.setattr(Loop, "advance", failing(Loop.advance, times))
    return tiny_run.start(folder / "run", folder / "data", "prepare,train", **options)


def test_micro_batches_are_halved(monkeypatch, tmp_path):
    with pytest.warns(UserWarning, match="micro-batches of 32 points; continuing with 16"):
        assert run(monkeypatch, tmp_path, 1, learning__micro_batch=0) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["autotuned"]["micro_batch"] == 16


@pytest.mark.parametrize("micro_batch", [0, 16])
def test_training_that_does_not_fit_ends_in_a_sentence(monkeypatch, tmp_path, micro_batch, capsys, recwarn):
    assert run(monkeypatch, tmp_path, 2, learning__micro_batch=micro_batch) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: training needs more memory than the device has (Out of memory")
    assert said.endswith("lower batch_shapes or batch_points, or set a small learning.micro_batch or place=streamed")
    assert any("continuing with 16" in str(warning.message) for warning in recwarn) == (not micro_batch)
