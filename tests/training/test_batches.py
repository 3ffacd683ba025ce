"""Batches: lanes, sampling, and the same batch resident or streamed, on one device or four."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import get_args

import jax
import numpy as np
import pytest
from drawn_batches import KEY, PLANS, arrays, lanes, packed, run
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import PYTHONPATH

from jonet import parallel
from jonet.data.store import RaggedArray
from jonet.errors import ConfigError
from jonet.training import batches
from jonet.training.batches import BatchSpec, Resident, RowSampling, Streamed
from jonet.training.lanes import Lanes

pytestmark = pytest.mark.unoptimized

SDF = BatchSpec(RowSampling("sdf", 12))


# Which shapes


@settings(max_examples=8, deadline=None)
@given(shapes=st.integers(1, 23), batch=st.integers(1, 8), seed=st.integers(0, 5))
def test_an_epoch_has_every_shape_at_most_once(shapes, batch, seed):
    dealt = lanes(shapes, batch, seed)
    assert sorted(dealt.positions[dealt.positions >= 0]) == list(range(shapes))
    assert dealt.steps == max(1, shapes // batch)
    deal = jax.tree.map(np.asarray, dealt.deal_of())
    take = jax.jit(lambda step: batches.select_shapes(deal, dealt.steps, step, KEY))
    seen = [take(step) for step in range(dealt.steps)]
    index = np.concatenate([now.index for now in seen])
    assert len(index) == len(set(index.tolist())) == shapes - shapes % min(batch, shapes)
    assert all(now.mask.all() and now.epoch == 1 for now in seen)
    for now in seen:
        np.testing.assert_array_equal(dealt.positions[now.row], now.index)


def test_epochs_differ_and_leave_out_other_shapes():
    dealt = lanes(shapes=11, batch=4)
    take = jax.jit(lambda step: batches.select_shapes(dealt.deal_of(), dealt.steps, step, KEY))
    epochs = [[take(2 * epoch + step).index.tolist() for step in range(2)] for epoch in range(30)]
    assert len({str(epoch) for epoch in epochs}) > 20
    assert {i for epoch in epochs for step in epoch for i in step} == set(range(11))
    lane_of = {int(i): lane for lane, row in enumerate(dealt.dealt) for i in row if i >= 0}
    assert all([lane_of[i] for i in step] == [0, 1, 2, 3] for epoch in epochs for step in epoch)


def test_fewer_shapes_than_a_batch_leave_lanes_empty():
    dealt = lanes(shapes=3, batch=16, devices=2)
    assert dealt.dealt.shape == (4, 1) and dealt.steps == 1 and dealt.shapes == 3
    now = batches.select_shapes(dealt.deal_of(), 1, 5, KEY)
    assert now.mask.tolist() == [1, 1, 1, 0] and now.epoch == 6
    assert sorted(now.index[:3].tolist()) == [0, 1, 2]


ANY = [(5, 5, 2), (5, 5, 8), (1, 1, 4), (3, 16, 2), (4, 4, 2), (20, 6, 4), (20, 3, 8), (40, 16, 3)]


@pytest.mark.parametrize(("shapes", "batch", "devices"), ANY)
def test_lanes_are_the_same_on_any_number_of_devices(shapes, batch, devices):
    one, many = lanes(shapes, batch), lanes(shapes, batch, devices=devices)
    real = len(one.dealt)
    assert len(many.dealt) % devices == 0 and len(many.dealt) < real + devices
    np.testing.assert_array_equal(many.dealt[:real], one.dealt)
    assert (many.dealt[real:] == -1).all()
    assert (many.steps, many.shapes) == (one.steps, one.shapes) == (max(1, shapes // batch), min(shapes, batch))


@pytest.mark.parametrize(("shapes", "batch", "match"), [(0, 4, "0 shapes"), (5, 0, "batches of 0")])
def test_batches_without_a_shape(shapes, batch, match):
    with pytest.raises(ConfigError, match=match):
        lanes(shapes, batch)


# Which rows


@pytest.mark.parametrize(("how", "count"), [("rows", 12), ("windows", 13), ("windows", 1)])
def test_half_of_the_points_from_each_side(how, count):
    held = arrays()
    source = Resident(held, lanes(), BatchSpec(RowSampling("sdf", count, how)), KEY)
    for batch in run(source, range(4)).values():
        for s, i in enumerate(batch.index):
            shape, place, inside = batch.points[s].T
            assert (shape == i).all() and batch.mask[s] == 1
            assert inside.tolist() == [0] * (count // 2) + [1] * (count - count // 2)
            np.testing.assert_array_equal(batch.values[s], np.where(inside, -1, 1) * (0.5 + place))
            assert place.max() < held["sdf"].counts[i].sum()
            if how == "windows":
                for side in (0, 1):
                    assert (np.diff(place[inside == side]) == 1).all()


def test_a_side_with_few_rows_is_drawn_with_replacement():
    held = arrays(few=True)
    for batch in run(Resident(held, lanes(), BatchSpec(RowSampling("sdf", 40, "windows")), KEY), range(3)).values():
        for s, i in enumerate(batch.index):
            place, inside = batch.points[s, :, 1], batch.points[s, :, 2]
            outside, count = held["sdf"].counts[i]
            assert set(place[inside == 0]) <= set(range(outside))
            assert set(place[inside == 1]) <= set(range(outside, outside + count))
            assert len(set(place)) > 2


@pytest.mark.parametrize("how", ["rows", "windows"])
def test_any_row_is_as_likely_as_any_other(how):
    held = {"occupancy": RaggedArray(packed(1, width=3).values, np.array([0]), np.array([[30, 10]]))}
    source = Resident(held, lanes(1, 1), BatchSpec(RowSampling("occupancy", 8, how, "any"), "occupancies"), KEY)
    seen = np.zeros(40)
    for batch in run(source, range(400)).values():
        place = batch.points[0, :, 1].astype(int)
        np.testing.assert_array_equal(batch.values[0], place >= 30)
        np.add.at(seen, place, 1)
    assert seen[30:].sum() / seen.sum() == pytest.approx(0.25, abs=0.03)
    assert seen.min() > (30 if how == "rows" else 5)  # a window rarely reaches the ends of its side


def test_windows_start_everywhere():
    """A uniform start, both ends included (DeepSDF's unpack_sdf_samples_from_ram)."""
    held = {"sdf": RaggedArray(packed(1).values, np.array([0]), np.array([[9, 9]]))}
    source = Resident(held, lanes(1, 1), BatchSpec(RowSampling("sdf", 12, "windows")), KEY)
    starts = [batch.points[0, [0, 6], 1].tolist() for batch in run(source, range(80)).values()]
    assert {s for s, _ in starts} == {0, 1, 2, 3} and {s for _, s in starts} == {9, 10, 11, 12}


def test_what_is_drawn_of_a_shape_depends_on_epoch_and_shape_alone():
    def by_shape(dealt):
        drawn = {}
        for batch in run(Resident(arrays(), dealt, SDF, KEY), range(2 * dealt.steps)).values():
            for s, i in enumerate(batch.index):
                drawn[int(batch.epoch[0]), int(i)] = batch.points[s].tolist()
        return drawn

    one, two = by_shape(lanes(batch=2)), by_shape(lanes(batch=7, seed=3))
    both = one.keys() & two.keys()
    assert len(both) >= 12 and all(one[k] == two[k] for k in both)
    twice = [i for epoch, i in one if epoch == 1 and (2, i) in one]
    assert twice and all(one[1, i] != one[2, i] for i in twice)


def test_indices_are_numbers_in_the_store_and_rows_those_of_the_selection():
    dealt = Lanes.deal([6, 1, 4], 2, 0, 1)
    batch = run(Resident(arrays(), dealt, SDF, KEY), [0])[0]
    np.testing.assert_array_equal(np.array([6, 1, 4])[dealt.positions[batch.row]], batch.index)
    np.testing.assert_array_equal(batch.points[:, 0, 0], batch.index)


def test_inputs_are_rows_with_noise():
    plan = BatchSpec(
        RowSampling("occupancy", 6, sides="any"), "occupancies", RowSampling("surface_points", 5), noise=0.01
    )
    held = arrays()
    clean = run(Resident(held, lanes(), BatchSpec(plan.points, plan.values, plan.inputs), KEY), range(2))
    noisy = run(Resident(held, lanes(), plan, KEY), range(2))
    for step in clean:
        np.testing.assert_array_equal(clean[step].points, noisy[step].points)
        assert clean[step].points.dtype == np.float32 and clean[step].inputs.shape == (3, 5, 3)
        noise = noisy[step].inputs - clean[step].inputs
        assert 0.003 < noise.std() < 0.03 and len(np.unique(noise)) > 20
        np.testing.assert_array_equal(clean[step].inputs[:, :, 0], np.repeat(clean[step].index[:, None], 5, 1))


def test_noise_has_its_deviation_and_is_new_in_every_epoch():
    plan = BatchSpec(
        RowSampling("occupancy", 6, sides="any"), "occupancies", RowSampling("surface_points", 400), noise=0.01
    )
    held, dealt = arrays(), lanes(3, 3)  # an epoch is one step
    clean, noisy = (
        run(Resident(held, dealt, dataclasses.replace(plan, noise=noise), KEY), range(6)) for noise in (0.0, 0.01)
    )
    found = {}  # by shape and epoch
    for step, batch in noisy.items():
        noise = batch.inputs - clean[step].inputs
        found |= {(int(shape), step): rows.ravel() for shape, rows in zip(batch.index, noise, strict=True)}
    assert len(found) == 18
    assert np.concatenate(list(found.values())).std() == pytest.approx(0.01, rel=0.03)
    related = np.corrcoef(list(found.values())) - np.eye(18)
    assert np.abs(related).max() < 5 / np.sqrt(1200)  # neither epochs nor shapes share noise


def test_importance_weighted_points_have_the_same_expectation():
    """Of 0 to count - 1 outside and count inside: weights are the sides' fractions, weighted means the true ones."""
    held, plan = arrays(), BatchSpec(RowSampling("occupancy", 2000), "occupancies", importance_weighted=True)
    for batch in run(Resident(held, lanes(), plan, KEY), range(2)).values():
        outside, inside = held["occupancy"].counts[batch.index].T
        for s in range(3):
            np.testing.assert_array_equal(np.unique(batch.values[s], return_counts=True)[1], 1000)
            fraction = inside[s] / (inside[s] + outside[s])
            np.testing.assert_allclose(
                batch.weights[s], 2 * np.where(batch.values[s], fraction, 1 - fraction), rtol=1e-6
            )
            assert abs((batch.weights[s] * batch.values[s]).mean() - fraction) < 1e-6 > abs(batch.weights[s].mean() - 1)
    assert (
        run(Resident(held, lanes(), dataclasses.replace(plan, importance_weighted=False), KEY), [0])[0].weights is None
    )


def test_points_of_two_arrays_are_joined_with_their_labels():
    first, second = RowSampling("occupancy", 30, sides="any"), RowSampling("occupancy_near", 20, sides="any")
    source = Resident(arrays(), lanes(), BatchSpec(first, "occupancies", more_points=second), KEY)
    assert source.points == 3 * 50
    for batch in run(source, range(3)).values():
        assert batch.points.shape == (3, 50, 3) and (batch.points[..., 0] == batch.index[:, None]).all()
        assert ((batch.points[..., 1] >= 1_000) == (np.arange(50) >= 30)).all()
        np.testing.assert_array_equal(batch.values, batch.points[..., 2])
        assert 0 < batch.values[:, 30:].mean() < 1
    for wrong in (dict(values="distances"), dict(values="occupancies", importance_weighted=True)):
        with pytest.raises(ConfigError, match="two arrays|of one array"):
            BatchSpec(dataclasses.replace(first, sides="half"), **wrong, more_points=second)


def test_scaled_shapes_keep_their_longest_side_and_their_labels():
    held = arrays()
    for name in ("occupancy", "surface_points"):  # no coordinate is 0
        held[name] = held[name]._replace(values=held[name].values + held[name].values.dtype.type(1))
    plain = BatchSpec(RowSampling("occupancy", 30), "occupancies", RowSampling("surface_points", 20))
    still = run(Resident(held, lanes(), plain, KEY), range(4))
    moved = run(Resident(held, lanes(), dataclasses.replace(plain, scale_augmentation=0.2), KEY), range(4))
    found = []
    for step, batch in moved.items():
        np.testing.assert_array_equal(batch.values, still[step].values)
        factors = batch.inputs[:, 0] / still[step].inputs[:, 0]
        np.testing.assert_allclose(batch.inputs, still[step].inputs * factors[:, None], rtol=1e-6)
        np.testing.assert_allclose(batch.points, still[step].points * factors[:, None], rtol=1e-6)
        sides, were = np.ptp(batch.inputs, axis=1).max(1), np.ptp(still[step].inputs, axis=1).max(1)
        np.testing.assert_allclose(sides, were, rtol=5e-4)
        assert (factors.max(1) / factors.min(1) <= np.exp(0.4) * 1.001).all()
        found.append(factors)
    assert len(np.unique(np.concatenate(found).round(5), axis=0)) == 12  # of every shape, in every epoch


def test_rows_may_be_images():
    """Any array with a number of rows a shape can be drawn from: 24 views, of which a step takes one."""
    views = np.arange(7 * 3).astype(np.uint8).reshape(21, 1, 1) * np.ones((1, 4, 4), np.uint8)
    held = arrays() | {"views": RaggedArray(views, np.arange(7) * 3, np.full((7, 1), 3))}
    for batch in run(
        Resident(held, lanes(), BatchSpec(SDF.points, inputs=RowSampling("views", 1)), KEY), range(3)
    ).values():
        assert batch.inputs.shape == (3, 1, 4, 4) and batch.inputs.dtype == np.uint8
        np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0] // 3, batch.index)


# The same on every way


@pytest.mark.parametrize(("name", "shapes"), [("distances", 7), ("few", 7), ("conditional", 2), ("stretched", 7)])
def test_streamed_batches_equal_resident_ones(name, shapes):
    held, dealt = arrays(), lanes(shapes, 3, first=2 if shapes == 2 else 0)
    whole = run(Resident(held, dealt, PLANS[name], KEY), range(9))
    streamed = Streamed(held, dealt, PLANS[name], KEY, chunk=4)
    for start in (0, 5):  # a run that goes on in the middle of a chunk sees the same
        for step, batch in run(streamed, range(start, 9)).items():
            jax.tree.map(np.testing.assert_array_equal, whole[step], batch)
    assert streamed.points == dealt.shapes * PLANS[name].count


def test_a_chunk_serves_as_many_steps_as_it_has_left():
    streamed = Streamed(arrays(), lanes(), PLANS["distances"], KEY, chunk=4)
    assert [streamed.segment(step, 3)[1] for step in (0, 1, 3, 4, 6)] == [3, 3, 1, 3, 2]


DEVICES = """
import json, os
os.environ["NPROC"] = "16"
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from drawn_batches import KEY, PLANS, arrays, lanes, run
from jonet import parallel
from jonet.training.batches import Resident, Streamed
found = {}
for devices, kind in ((1, Resident), (2, Resident), (3, Resident), (3, Streamed), (4, Resident), (4, Streamed)):
    with parallel.use(devices):
        for name, shapes in (("distances", 7), ("distances", 3), ("conditional", 7), ("stretched", 7)):
            batch = 4 if shapes > 4 else 16
            source = kind(arrays(), lanes(shapes, batch, devices=devices), PLANS[name], KEY)
            for step, drawn in run(source, range(2)).items():
                leaves = (drawn.points, drawn.values, drawn.index, drawn.inputs, drawn.weights)
                bits = str(set(drawn.epoch.tolist())).encode()
                bits += b"".join(leaf[drawn.mask > 0].tobytes() for leaf in leaves if leaf is not None)
                found.setdefault(f"{shapes} {name} {step}", []).append(bits)
assert all(len(each) == 6 for each in found.values())
print(json.dumps({name: len(set(each)) for name, each in found.items()}))
"""


def test_one_to_four_devices_draw_the_same():
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8 and set(found.values()) == {1}, found


def test_a_second_store_of_the_same_size_compiles_nothing():
    traced = []

    def fraction(data, step):
        traced.append(1)
        return source.draw(data, step).points

    one, two = arrays(), arrays()
    two["sdf"] = two["sdf"]._replace(values=two["sdf"].values + 1)
    source = Resident(one, lanes(), SDF, KEY)
    mapped = parallel.pmap(fraction, (source.specs, parallel.REPLICATED), parallel.SPLIT)
    first = mapped(source.segment(0, 1)[0], np.int32(0))
    other = mapped(Resident(two, lanes(), SDF, KEY).segment(0, 1)[0], np.int32(0))
    np.testing.assert_array_equal(first + 1, other)
    mapped(source.segment(0, 1)[0], np.int32(3))
    assert len(traced) == 1


# Refusals


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (BatchSpec(RowSampling("points", 4)), "no array 'points'.*occupancy, occupancy_near, sdf, surface_points"),
        (BatchSpec(RowSampling("occupancy", 4)), "'occupancy' holds no distances"),
        (BatchSpec(RowSampling("none", 4), "occupancies"), r"shape 0 of the store has \[0, 0\] rows of 'none'"),
        (BatchSpec(RowSampling("half", 4)), r"shape 0 of the store has \[1, 0\] rows of 'half'"),
    ],
)
def test_plans_that_the_store_cannot_serve(plan, match):
    empty = RaggedArray(np.zeros((0, 4), np.float32), np.zeros(7, int), np.zeros((7, 2), int))
    half = RaggedArray(np.zeros((7, 4), np.float32), np.arange(7), np.tile([1, 0], (7, 1)))
    with pytest.raises(ConfigError, match=match):
        Resident(arrays() | {"none": empty, "half": half}, lanes(), plan, KEY)


def test_draws_that_make_no_sense():
    for wrong in (dict(count=0), dict(count=4, how="lines"), dict(count=4, sides="left")):
        with pytest.raises(ConfigError, match="it must be of at least 1 row"):
            RowSampling("sdf", **wrong)
    with pytest.raises(ConfigError, match="sdf is streamed, so draw 'windows' of it, not 12 single 'rows'"):
        Streamed(arrays(), lanes(), SDF, KEY)


def test_sources_by_place():
    found = [type(batches.load(arrays(), lanes(), PLANS["distances"], KEY, place)) for place in get_args(batches.Place)]
    assert found == [Resident, Resident, Streamed]
