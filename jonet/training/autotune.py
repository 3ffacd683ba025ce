"""Settings that are measured once on the machine and then kept for the run: the size of micro-batches."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from jonet import parallel
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.training.autodecoder import AutoDecoder, loss
from jonet.training.microbatches import cut

TRIAL = 8192  # points per measurement of a micro-batch size


def micro_batch(decoder: DeepSDFDecoder, shared, shapes: int, points: int, settings: AutoDecoder) -> int:
    """The fastest number of points per micro-batch, for batches of `shapes` × `points` per device.

    On a CPU it is measured on TRIAL points for each candidate.  It is 0 (the whole batch) for small batches, and on an
    accelerator, where large products are faster.
    """
    if not parallel.platform().is_cpu or shapes * points <= TRIAL:
        return 0
    sizes = {cut(shapes, points, size) for size in (1024, 2048, 4096)}
    rng = np.random.default_rng(0)

    def seconds_per_point(group: int, size: int) -> float:
        pieces = max(1, TRIAL // (group * size))
        several, each = (group * pieces, size) if size == points else (1, size * pieces)
        some = dataclasses.replace(settings, micro_batch=group * size)

        @jax.jit
        def gradient(shared, codes, batch):
            value = functools.partial(loss, decoder=decoder, settings=some)
            return jax.grad(value, argnums=(0, 1), has_aux=True)(shared, codes, {}, batch, jax.random.key(0))

        cloud = rng.uniform(-1, 1, (several, each, 3)).astype(np.float32)
        batch = _Trial(cloud, cloud[..., 0], np.ones(several, np.float32), np.arange(several), np.int32(1))
        codes = rng.normal(size=(several, decoder.specs.latent_size)).astype(np.float32)
        jax.block_until_ready(gradient(shared, codes, batch))  # compiles
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(gradient(shared, codes, batch))
            seconds.append(time.perf_counter() - start)
        return min(seconds) / (several * each)  # the least: other load only adds time

    group, size = min(sorted(sizes, reverse=True), key=lambda piece: seconds_per_point(*piece))
    return group * size


class _Trial(NamedTuple):
    points: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    epoch: np.integer
