"""Where samples are in training: on the devices, there as float16, or streamed; and that all draw alike."""

import dataclasses

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest
from drawn_batches import KEY, PLANS, arrays, lanes, run
from miniature import spheres

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.parallel import Platform
from jonet.training import autodecoder, batches
from jonet.training.batches import BatchSpec, Resident, RowSampling


@pytest.mark.parametrize("name", ["distances", "conditional", "stretched"])
def test_rows_in_blocks_are_those_of_one_block(monkeypatch, name):
    """A device with more than 2³¹ rows keeps them in blocks; here of at most 64 rows, so that shapes lie across."""
    plan = dataclasses.replace(PLANS[name], points=dataclasses.replace(PLANS[name].points, how="rows"))
    whole = run(Resident(arrays(), lanes(), plan, KEY), range(4))
    monkeypatch.setattr(batches, "BLOCK", 64)
    source = Resident(arrays(), lanes(), plan, KEY)
    (_, length, _), starts = (source.segment(0, 1)[0]["arrays"][plan.points.array][i].shape for i in (0, 1))
    assert length <= 64 and starts == (9, 2)
    for step, batch in run(source, range(4)).items():
        jax.tree.map(np.testing.assert_array_equal, whole[step], batch)


def test_a_tpu_keeps_rows_of_three_as_four():
    """Which changes no batch."""
    plan = PLANS["stretched"]
    whole = run(Resident(arrays(), lanes(), plan, KEY), range(3))
    with parallel.assuming(Platform("tpu", 1 << 30)):
        source = Resident(arrays(), lanes(), plan, KEY)
    values = source.segment(0, 1)[0]["arrays"]["surface_points"].values
    assert values.shape[2] == 4 and values.nbytes < source.bytes
    for step, batch in run(source, range(3)).items():
        jax.tree.map(np.testing.assert_array_equal, whole[step], batch)


def test_no_number_on_a_device_needs_more_than_32_bits():
    """38,000 shapes of 100,000 points: 3.8e9 rows."""
    rows = RaggedArray(
        np.broadcast_to(np.float16(0), (38_000 * 100_000, 3)),
        np.arange(38_000) * 100_000,
        np.tile([60_000, 40_000], (38_000, 1)),
    )
    held, plan = {"occupancy": rows}, BatchSpec(RowSampling("occupancy", 12), "occupancies")
    seen = []

    def kept(shape, dtype, part):
        seen.append((shape, part))
        return jax.ShapeDtypeStruct(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "split_by", kept)
        Resident(held, lanes(38_000, 64), plan, KEY)
    (blocks, length, width), starts = seen[0][0], seen[1][1](0)
    assert max(blocks, length) <= batches.BLOCK < 2**31 and width == 3 and blocks * length >= 3_800_000_000
    np.testing.assert_array_equal(starts[:, 0].astype(np.int64) * length + starts[:, 1], first_rows(rows, 38_000))
    assert starts.min() >= 0 and starts[:, 1].max() + 100_000 < 2**31


def first_rows(rows: RaggedArray, shapes: int) -> np.ndarray:
    """The number of the first row of each place in the lanes, if they are stored one after the other."""
    counts = np.where(lanes(shapes, 64).positions >= 0, rows.counts.sum(1)[0], 0)
    return np.cumsum(counts) - counts


def test_half_of_the_memory_rounds_rows_to_float16():
    """Within the frame a coordinate moves by at most 2⁻¹², a fiftieth of the finer offsets of samples (0.016)."""
    held, dealt = spheres(6, rows=400), lanes(6, 3)
    plan = BatchSpec(RowSampling("sdf", 40))
    whole, rounded = (run(Resident(held, dealt, plan, KEY, half=half), range(4)) for half in (False, True))
    sizes = [batches.resident_bytes(held, dealt, plan, half) for half in (False, True)]
    assert sizes == [2400 * 16, 2400 * 8]
    moved = []
    for step, batch in rounded.items():
        assert batch.points.dtype == batch.values.dtype == np.float32
        np.testing.assert_array_equal(batch.points, whole[step].points.astype(np.float16))
        np.testing.assert_array_equal(batch.values, whole[step].values.astype(np.float16))
        assert np.abs(batch.points - whole[step].points).max() <= 2**-12
        distances = np.linalg.norm(batch.points, axis=-1) - np.linspace(0.3, 0.7, 6)[batch.index][:, None]
        moved.append((distances - batch.values)[np.abs(batch.values) < 0.1])  # the clamp of the loss
    moved, deviation = np.concatenate(moved), 2**-11 / 12**0.5
    # errors of the distances: a twelfth of what fitted codes leave (0.0016), and without a bias
    assert np.abs(moved).max() < 4.5e-4 and moved.std() < deviation and moved.size > 100
    assert abs(moved.mean()) < 5 * deviation / moved.size**0.5


def test_clouds_that_are_kept_as_float16_are_seen_as_float32():
    plan = BatchSpec(RowSampling("occupancy", 6, sides="any"), "occupancies", RowSampling("surface_points", 5))
    whole, rounded = (run(Resident(arrays(), lanes(), plan, KEY, half=half), [0])[0] for half in (False, True))
    assert rounded.inputs.dtype == np.float32
    np.testing.assert_array_equal(rounded.inputs, whole.inputs.astype(np.float16))


def gradients(held, how: str, steps: int) -> np.ndarray:
    """The loss's gradient by the last layer's kernel in each of some steps [steps, units], network and codes fixed."""
    count = len(held["sdf"].counts)
    decoder = DeepSDFDecoder(dataclasses.replace(miniature.SPECS, dropout=()))
    shared, codes = miniature.start(decoder, count)
    source = Resident(held, lanes(count, count), BatchSpec(RowSampling("sdf", 64, how)), KEY)

    @jax.jit
    def gradient(batch):
        def loss(shared):
            rows, settings = jnp.asarray(codes)[batch.index], autodecoder.AutoDecoder()
            return autodecoder.loss(shared, rows, {}, batch, KEY, decoder=decoder, settings=settings)[0]

        return jax.grad(loss)(shared)["params"]["lin3"]["kernel"].ravel()

    return np.stack([gradient(batch._replace(epoch=batch.epoch[0])) for batch in run(source, range(steps)).values()])


def deviations(held) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean gradient of windows from that of rows, in standard errors; and the ratio of their variances."""
    rows, windows = (gradients(held, how, 300) for how in ("rows", "windows"))
    errors = np.sqrt((rows.var(0) + windows.var(0)) / len(rows))
    return (rows.mean(0) - windows.mean(0)) / errors, windows.var(0).sum() / rows.var(0).sum()


def test_windows_draw_as_rows_do_where_rows_are_in_random_order():
    """What is streamed has the same expected gradient, and as much noise.  Sorted rows show that this would be seen."""
    held = spheres(4, rows=20_000)  # many more than a window, whose ends are drawn less often
    apart, noise = deviations(held)
    assert np.abs(apart).max() < 5 and 0.7 < noise < 1.4, (np.abs(apart).max(), noise)
    rows = held["sdf"]
    part = np.repeat(np.arange(8), rows.counts.ravel())  # the outside and the inside of each shape
    order = np.lexsort((rows.values[:, 0], part))
    _, noise = deviations({"sdf": rows._replace(values=rows.values[order])})
    assert noise > 3
