"""Fields: one shape and batches of them, evaluated in tiles that do not depend on each other."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from spheres import cloud, distance, sphere

from jonet import parallel
from jonet.device_memory import Pieces
from jonet.errors import InputError
from jonet.inference.surfaces import extraction
from jonet.networks import spline
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.networks.field import TILE, Field, bucket, evaluate_tiles
from jonet.networks.spline_levels import Level, every_cell
from jonet.training import autodecoder

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def network():
    """A decoder, its parameters and codes."""
    decoder = DeepSDFDecoder(Specs(latent_size=6, dims=(24,) * 3, latent_in=(1,), norm_layers=(0, 1, 2)))
    return decoder, *autodecoder.initial(decoder, 5, jax.random.key(1), start="centered")


def test_one_shape():
    field, points = sphere(0.5), cloud(1500)
    values, gradients = field.gradient(points)
    assert not field.batched and values.shape == (1500,) and gradients.shape == (1500, 3)
    assert isinstance(values, jax.Array) and isinstance(gradients, jax.Array)
    np.testing.assert_allclose(values, distance(points, 0.5), atol=1e-6)
    np.testing.assert_allclose(gradients, (points - [0.1, 0, 0]) / (distance(points, 0))[:, None], atol=1e-5)
    np.testing.assert_array_equal(field(points), values)
    np.testing.assert_allclose(field.at(points), values, atol=1e-6)
    with pytest.raises(TypeError, match="stack"):
        len(field)


def test_a_batch():
    fields = Field.stack([sphere(radius) for radius in (0.3, 0.5, 0.7)])
    points = cloud(3, 70)
    assert fields.batched and len(fields) == 3
    wanted = np.stack([distance(p, r) for p, r in zip(points, (0.3, 0.5, 0.7), strict=True)])
    np.testing.assert_allclose(fields(points), wanted, atol=1e-6)
    np.testing.assert_allclose(fields[-1](points[2]), wanted[2], atol=1e-6)
    np.testing.assert_allclose(fields[np.array([2, 0])](points[[2, 0]]), wanted[[2, 0]], atol=1e-6)
    mapped = jax.vmap(lambda field, points: field.at(points), (fields.axes, 0))(fields, points)
    np.testing.assert_allclose(mapped, wanted, atol=1e-6)
    np.testing.assert_array_equal(fields.box, [[-1] * 3, [1] * 3])
    with pytest.raises(IndexError, match="field 3 of a batch of 3"):
        fields[3]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_inside_is_the_same_question_to_both_kinds(sign, level):
    field, points = sphere(0.5, sign, level=sign * level), cloud(400)
    true = distance(points, 0.5) < level
    np.testing.assert_array_equal(field.contains(points), true)
    occupancy = np.asarray(field.occupancy(points))
    assert occupancy.min() >= 0 and occupancy.max() <= 1
    if sign < 0:
        np.testing.assert_allclose(occupancy, 1 / (1 + np.exp(distance(points, 0.5))), atol=1e-6)
    else:
        np.testing.assert_array_equal(occupancy, true)


def test_a_fold_is_the_network(network):
    """Values and gradients of each shape; and what is folded per shape is small."""
    decoder, shared, codes = network
    fields, points = BoundNetwork(decoder, shared).fields(codes), cloud(5, 90)
    with jax.default_matmul_precision("highest"):
        values, gradients = fields.gradient(points)
        plain = functools.partial(decoder.apply, shared, codes)
        np.testing.assert_allclose(values, plain(points), atol=2e-6)
        np.testing.assert_allclose(gradients, jax.grad(lambda p: plain(p).sum())(points), atol=2e-5)
    per_shape = sum(leaf[0].size for leaf in jax.tree.leaves(fields.per_shape))
    assert per_shape < 100 and per_shape < 0.1 * sum(leaf.size for leaf in jax.tree.leaves(fields.shared))


def test_a_tile_knows_nothing_of_the_others(network, compilations):
    """The same bits whatever the list, its order or its length; and lists of one bucket are one program."""
    decoder, shared, codes = network
    fields = BoundNetwork(decoder, shared).fields(codes)
    blocks, owner = cloud(19, TILE), RNG.integers(0, 5, 19).astype(np.int32)
    values, _ = evaluate_tiles(fields, owner, blocks)
    for k in range(0, 19, 6):
        np.testing.assert_array_equal(evaluate_tiles(fields, owner[k : k + 1], blocks[k : k + 1])[0][0], values[k])
    order = RNG.permutation(19)
    with compilations() as seen:
        np.testing.assert_array_equal(evaluate_tiles(fields, owner[order], blocks[order])[0], values[order])
        np.testing.assert_array_equal(evaluate_tiles(fields, owner[:17], blocks[:17])[0], values[:17])
    assert not seen
    direct = jax.vmap(lambda i, p: fields[i].at(p))
    np.testing.assert_allclose(direct(owner, blocks), values, atol=2e-6)


def test_lists_longer_than_a_dispatch(monkeypatch):
    monkeypatch.setattr("jonet.networks.field.DISPATCH", Pieces("tiles", 4, 1))
    fields = Field.stack([sphere(0.3), sphere(0.6)])
    blocks, owner = cloud(11, TILE), np.arange(11) % 2
    wanted = np.stack([distance(b, (0.3, 0.6)[i]) for b, i in zip(blocks, owner, strict=True)])
    values, gradients = evaluate_tiles(fields, owner, blocks, gradient=True)
    np.testing.assert_allclose(values, wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=-1), 1, atol=1e-5)
    assert evaluate_tiles(fields, owner[:0], blocks[:0])[0].shape == (0, TILE)


def test_shared_arrays_are_copied_to_the_devices_once(monkeypatch):
    """And once more where other devices are in use."""
    copied, replicate = [], parallel.replicate
    monkeypatch.setattr(parallel, "replicate", lambda tree: copied.append(tree) or replicate(tree))
    one = spline.field([Level(8, every_cell(8), np.float32(RNG.normal(size=1000)))])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(one.shared))
    fields = Field.stack([one])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fields.padded.shared))
    for _ in range(2):
        fields.gradient(cloud(1, 300))
    assert len(copied) == len(one.shared)
    extraction.extract(fields, 16)
    assert len(copied) == 2 * len(one.shared)  # what is extracted together is a batch of its own
    with parallel.use(1):
        assert fields.padded.shared["blocks"].sharding.mesh == parallel.mesh()


def test_fields_of_different_networks_are_no_batch():
    levels = [[Level(8, every_cell(8), np.float32(RNG.normal(size=1000)))] for _ in range(2)]
    first, second = map(spline.field, levels)
    assert len(Field.stack([first, spline.field(levels[0])])) == 2  # equal arrays
    rounded = first.shared | {"blocks": first.shared["blocks"] * np.float32(1 + 2e-7)}
    assert len(Field.stack([first, dataclasses.replace(first, shared=rounded)])) == 2
    for others in ([first, second], [first, sphere(0.5)], [sphere(0.5), sphere(0.5, sign=-1.0)]):
        with pytest.raises(InputError, match="field 1 .* another network"):
            Field.stack(others)


def test_buckets_are_few():
    sizes = np.arange(1, 5000)
    capacities = np.array([bucket(size) for size in sizes])
    assert (capacities >= sizes).all() and (capacities <= np.maximum(4 * sizes, 4)).all()
    assert len(set(capacities)) <= 7


@pytest.mark.parametrize(
    "points, word",
    [(cloud(4)[:, :2], "shape"), (cloud(2, 4), "shape"), (np.full((4, 3), np.nan), "finite"), ("points", "array")],
)
def test_bad_points_are_refused_by_name(points, word):
    with pytest.raises(InputError, match=rf"points must .*{word}"):
        sphere(0.5)(points)


def test_blocks_of_another_size_and_single_fields_are_refused():
    with pytest.raises(InputError, match="points"):
        evaluate_tiles(Field.stack([sphere(0.5)]), [0], cloud(1, 100))
    with pytest.raises(InputError, match="shape"):
        evaluate_tiles(Field.stack([sphere(0.5)]), [0, 0], cloud(1, TILE))
    with pytest.raises(InputError, match="stack"):
        evaluate_tiles(sphere(0.5), [0], cloud(1, TILE))


def test_a_field_is_one_line_in_print():
    one = sphere(0.5)
    assert repr(one) == "Field(1 shape, signed distances, normalized frame)"
    assert repr(Field.stack([one, one])) == "Field(batch of 2 shapes, signed distances, normalized frame)"
    assert repr(sphere(0.5, sign=-1.0)) == "Field(1 shape, occupancy logits, normalized frame)"
    assert (
        repr(one.axes) == "Field(of unknown size, signed distances, normalized frame)"
    )  # the specification for `jax.vmap`
