"""Settings that are chosen once for the machine and then kept for the run: the size of micro-batches."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import NamedTuple

import jax
import numpy as np

from jonet import parallel
from jonet.networks.deepsdf import DeepSDFDecoder
from jonet.training.autodecoder import AutoDecoder, loss
from jonet.training.microbatches import cut

TRIAL = 8192  # points per measurement on a CPU; batches of no more points stay whole
# Candidates, 0 for the whole batch.  The first is the fastest for most networks, and what plans take; where nothing can
# be measured, the first that fits is taken: on a TPU the activations of 8,192 points stay in its vector memory, and a
# GPU starts the fewest programs for the largest pieces.
SIZES = {"cpu": (2048, 4096, 1024), "gpu": (0, 65536, 32768, 8192), "tpu": (8192, 32768, 65536, 0)}
FRACTION = 0.4  # of a device's memory that intermediate results may take; the samples may take half of it


def micro_batch(decoder: DeepSDFDecoder, shared, shapes: int, points: int, settings: AutoDecoder) -> int:
    """The fastest number of points per micro-batch, for batches of `shapes` × `points` per device.

    Each candidate is compiled and, if its intermediate results fit, timed on the first device: on a CPU with TRIAL
    points, else with a whole batch.  For devices that are not there (`parallel.absent`), see SIZES.
    It is 0 (the whole batch) for small batches.
    """
    platform = parallel.platform()
    if shapes * points <= TRIAL:
        return 0
    pieces = list(dict.fromkeys(cut(shapes, points, size) for size in SIZES[platform.kind]))
    smallest = min(pieces, key=math.prod)
    with parallel.use(1):

        def trial(group: int, size: int) -> _Trial:
            if not platform.is_cpu:
                return _Trial(decoder, shared, (shapes, points), group * size, settings)
            count = max(1, TRIAL // (group * size))
            several = (group * count, size) if size == points else (1, size * count)
            return _Trial(decoder, shared, several, group * size, settings)

        trials = ((piece, trial(*piece)) for piece in pieces)
        fitting = ((piece, trial) for piece, trial in trials if trial.memory <= FRACTION * platform.memory)
        if parallel.are_absent():
            piece, _ = next(fitting, (smallest, None))
        else:
            piece, _ = min(fitting, key=lambda found: found[1].seconds(), default=(smallest, None))
    return math.prod(piece)


class _Trial:
    """The compiled gradient of a batch [shapes, points] in micro-batches.

    memory: bytes of its intermediate results.
    """

    def __init__(self, decoder, shared, several: tuple[int, int], size: int, settings: AutoDecoder):
        value = functools.partial(loss, decoder=decoder, settings=dataclasses.replace(settings, micro_batch=size))

        def gradient(shared, codes, batch):
            return jax.grad(value, argnums=(0, 1), has_aux=True)(shared, codes, {}, batch, jax.random.key(0))

        rng = np.random.default_rng(0)
        cloud = rng.uniform(-1, 1, (*several, 3)).astype(np.float32)
        codes = rng.normal(size=(len(cloud), decoder.specs.latent_size)).astype(np.float32)
        batch = _Batch(cloud, cloud[..., 0], np.ones(len(cloud), np.float32), np.arange(len(cloud)), np.int32(1))
        self.points, self.arguments = math.prod(several), parallel.replicate((shared, codes, batch))
        mapped = parallel.pmap(gradient, (parallel.REPLICATED,) * 3, parallel.REPLICATED)
        self.program = mapped.lower(*self.arguments).compile()
        self.memory = self.program.memory_analysis().temp_size_in_bytes

    def seconds(self) -> float:
        """Per point; the least of three times, since other load only adds time."""
        jax.block_until_ready(self.program(*self.arguments))  # allocates
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(self.program(*self.arguments))
            seconds.append(time.perf_counter() - start)
        return min(seconds) / self.points


class _Batch(NamedTuple):
    points: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    epoch: np.integer
