"""Lists of varying length in arrays of fixed size, inside compiled programs: compaction, and sets of bits.

A list that holds more than its array has places is cut; its full length is returned, so that the caller can see it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32  # bits of a word


class Packed(NamedTuple):
    """Items that are kept, one after the other, those of each shape from a multiple of some number of places on.

    items [size]: the number of the item at each place, -1 where there is none.  place [N]: of each item, `size` for
    those that are not kept or cut off.  owner [size // align]: the shape of each row of `align` places; rows after the
    last one belong to shape `shapes`, which there is not.  length []: places in use, more than `size` if the list is
    cut.
    """

    items: jax.Array
    place: jax.Array
    owner: jax.Array
    length: jax.Array


def pack(keep, owner, shapes: int, size: int, align: int = 1) -> Packed:
    """The items of a mask [N, W] that are kept, in their order.  owner [N]: the shape of each row, ascending."""
    counted = jnp.cumsum(keep.reshape(-1), dtype=jnp.int32)
    ends = jnp.concatenate([jnp.zeros(1, jnp.int32), counted[keep.shape[1] - 1 :: keep.shape[1]]])
    before = ends[firsts(owner, shapes)]  # items kept of the shapes before each, [shapes + 1]
    whole = -(-jnp.diff(before) // align) * align
    ends = jnp.cumsum(whole, dtype=jnp.int32)
    moved = jnp.append(ends - whole - before[:-1], 0)[jnp.minimum(owner, shapes)]
    place = jnp.where(keep, counted.reshape(keep.shape) - 1 + moved[:, None], size).reshape(-1)
    place = jnp.minimum(place, size)
    items = jnp.full(size, -1, jnp.int32).at[place].set(jnp.arange(place.size, dtype=jnp.int32), mode="drop")
    rows = jnp.arange(size // align, dtype=jnp.int32) * align
    return Packed(items, place, (rows[:, None] >= ends).sum(1, dtype=jnp.int32), ends[-1])


def firsts(owner, shapes: int) -> jax.Array:
    """The first place of each shape in a list, and the end of the last: owner [N], ascending → [shapes + 1]."""
    return jnp.searchsorted(owner, jnp.arange(shapes + 1), side="left")


def spread(starts, counts, size: int) -> tuple[jax.Array, jax.Array]:
    """Which item each of `size` places belongs to, and the first place of that item, if items have places in a row.

    starts, counts [N]; the first place is 0 → [size], [size].  Places behind the last belong to the last item.
    """
    place = jnp.arange(size, dtype=jnp.int32)
    marked = jnp.where(counts > 0, jnp.minimum(starts, size), size)
    marks = jnp.zeros(size, jnp.int32).at[marked].set(jnp.arange(len(starts), dtype=jnp.int32), mode="drop")
    return jax.lax.cummax(marks), jax.lax.cummax(jnp.where(marks > 0, place, 0))


def take(array, *index) -> jax.Array:
    """array[index], all axes indexed, by one flat index of 32 bits.

    With several, XLA writes lists of index tuples, whose short last axis a TPU pads to 128, or loops over single items.
    """
    flat = index[0]
    for along, length in zip(index[1:], array.shape[1:], strict=True):
        flat = flat * length + along
    return array.reshape(-1)[flat]


def look_up(table: np.ndarray, bits: int, index) -> jax.Array:
    """table[index] of a short table of numbers of `bits` bits, without reads of single items: by shifts of words."""
    each = WORD // bits
    words = [
        sum(int(number) << bits * i for i, number in enumerate(table[at : at + each]))
        for at in range(0, len(table), each)
    ]
    word = jnp.uint32(words[0])
    for i, other in enumerate(words[1:], 1):
        word = jnp.where(index // each == i, jnp.uint32(other), word)
    found = word >> (bits * (index % each)).astype(jnp.uint32) & jnp.uint32((1 << bits) - 1)
    return found.astype(jnp.int32)


class Bits(NamedTuple):
    """Sets of bits, one of each of N blocks; all bits that are set are numbered, word after word.

    words [W, N] uint32: the bits of each block.  total []: of all bits.
    """

    words: jax.Array
    total: jax.Array

    @staticmethod
    def of(flags) -> Bits:
        """From flags [bits, N], whose number of bits is a multiple of 32."""
        words = jnp.stack([word(part) for part in flags.reshape(-1, WORD, flags.shape[-1])])
        return Bits(words, jax.lax.population_count(words).sum(dtype=jnp.int32))

    def listed(self, size: int) -> tuple[jax.Array, jax.Array]:
        """The block and the bit of each number, both [size]; for numbers that there are not, any."""
        words = self.words.reshape(-1)
        counts = jax.lax.population_count(words).astype(jnp.int32)
        item, start = spread(jnp.cumsum(counts, dtype=jnp.int32) - counts, counts, size)
        bit = select(words[item], jnp.arange(size, dtype=jnp.int32) - start)
        return item % self.words.shape[1], item // self.words.shape[1] * WORD + bit


def word(flags) -> jax.Array:
    """Up to 32 flags [bits, N] as the bits of words [N]."""
    return (flags.astype(jnp.uint32) << jnp.arange(len(flags), dtype=jnp.uint32)[:, None]).sum(0, dtype=jnp.uint32)


def select(words, rank) -> jax.Array:
    """The place of the bit of each word that has so many lower bits set: words, rank [N] → [N]."""
    place = jnp.zeros_like(rank)
    for half in (16, 8, 4, 2, 1):
        lower = jax.lax.population_count(words & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        upper = rank >= lower
        rank, place = jnp.where(upper, rank - lower, rank), jnp.where(upper, place + half, place)
        words = jnp.where(upper, words >> half, words)
    return place
