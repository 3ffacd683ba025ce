"""Lists in arrays of fixed size, and sets of bits, against plain Python."""

import numpy as np
import pytest

from jonet.inference.surfaces.lists import Bits, look_up, pack, select, spread, take

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("size", [1024, 64])
def test_what_is_kept_is_packed_by_shape(align, size):
    keep = RNG.random((40, 8)) < 0.3
    owner = np.sort(RNG.choice([0, 1, 3, 5], 40)).astype(np.int32)  # shapes 2 and 4 have none; rows of 5 are no shape's
    keep[owner == 5] = False
    found = pack(keep, owner, 5, size, align)
    expected, shapes = [], []
    for shape in range(5):
        items = [i for i in range(keep.size) if owner[i // 8] == shape and keep.flat[i]]
        rows = -(-len(items) // align)
        expected += items + [-1] * (rows * align - len(items))
        shapes += [shape] * rows
    assert int(found.length) == len(expected)
    expected = (expected + [-1] * size)[:size]
    np.testing.assert_array_equal(found.items, expected)
    np.testing.assert_array_equal(found.owner, (shapes + [5] * size)[: size // align])
    for place, item in enumerate(expected):
        assert item < 0 or found.place[item] == place
    assert (np.asarray(found.place)[~keep.ravel()] == size).all()


def test_an_empty_list():
    found = pack(np.zeros((3, 4), bool), np.arange(3, dtype=np.int32), 3, 32, 16)
    assert int(found.length) == 0 and (np.asarray(found.items) == -1).all() and (np.asarray(found.owner) == 3).all()
    bits = Bits.of(np.zeros((64, 5), bool))
    assert int(bits.total) == 0
    block, bit = map(np.asarray, bits.listed(6))  # of numbers that there are not: any, but of the blocks
    assert ((block >= 0) & (block < 5)).all() and ((bit >= 0) & (bit < 64)).all()


def test_places_belong_to_items():
    counts = np.array([0, 3, 0, 0, 2, 1, 0], np.int32)
    item, start = spread(np.cumsum(counts, dtype=np.int32) - counts, counts, 8)
    np.testing.assert_array_equal(item, [1, 1, 1, 4, 4, 5, 5, 5])
    np.testing.assert_array_equal(start, [0, 0, 0, 3, 3, 5, 5, 5])


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_bits_are_numbered_word_after_word(density):
    flags = RNG.random((192, 30)) < density
    flags[:, [0, 7]] = False
    flags[32:64] = False
    bits = Bits.of(flags)
    word, block, bit = np.nonzero(flags.reshape(6, 32, 30).transpose(0, 2, 1))
    assert int(bits.total) == len(block)
    found = bits.listed(8192)
    np.testing.assert_array_equal(found[0][: len(block)], block)
    np.testing.assert_array_equal(found[1][: len(block)], 32 * word + bit)
    assert (np.asarray(found[0]) < 30).all() and (np.asarray(found[1]) < 192).all()


def test_elements_are_taken_as_by_index():
    array = RNG.random((4, 5, 6), dtype=np.float32)
    index = [RNG.integers(0, length, (7, 2)) for length in array.shape]
    np.testing.assert_array_equal(take(array, *index), array[tuple(index)])


def test_short_tables_are_looked_up():
    for table, bits in ((RNG.integers(0, 16, 256), 4), (RNG.integers(0, 4, 12), 2), (RNG.integers(0, 2, 33), 1)):
        index = RNG.integers(0, len(table), (5, 40)).astype(np.uint8 if bits == 4 else np.int32)
        np.testing.assert_array_equal(look_up(table, bits, index), table[index])


def test_selection_of_a_bit():
    words = RNG.integers(1, 1 << 32, 200, dtype=np.uint32)
    words[:2] = 0xFFFFFFFF, 0x80000000
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(bool)
    word, place = np.nonzero(bits)
    rank = (np.cumsum(bits, 1) - 1)[word, place].astype(np.int32)
    np.testing.assert_array_equal(select(words[word], rank), place)
