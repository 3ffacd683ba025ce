"""Runs of Occupancy Networks' tasks in miniature: their options, and a network that learned more than they do."""

import dataclasses

import numpy as np
from onet_recorded import drawn

from jonet.inference import encode
from jonet.networks.bound import BoundNetwork

SCORES = [
    "--surfaces.resolution=16",
    "--scores.volume-points=1000",
    "--scores.surface-points=500",
    "--scores.chamfer-points=500",
    "--scores.accuracy-points=100",
    "--scores.emd-points=20",
    "--rebuilt-train=1",
]
CONDITIONAL = [
    "--data=mug",
    "--shapes.train=6",
    "--shapes.test=2",
    "--shapes.val-fraction=0.2",
    "--samples.surface=600",
    "--samples.occupancies=1000",
    "--network.hidden-size=16",
    "--network.n-blocks=1",
    "--optimizer.name=adam",
    "--batch-shapes=3",
    "--batch-points=64",
    "--minutes=0",
    "--steps=6",
    "--validate-every=3",
    "--generated=2",
]
NEAR = ["--samples.near-occupancies=500"]  # of the task that learns from points near the surface, too
TASKS = {
    "onet_points": [*NEAR, "--network.c-dim=8", "--network.encoder-width=8", "--inputs.points=40"],
    "onet_voxels": ["--network.c-dim=8", "--network.encoder-width=2"],
    "onet_images": [
        *["--network.c-dim=8", "--network.encoder=simple_conv", "--network.encoder-width=2"],
        *["--samples.images=2", "--samples.image-size=64", "--inputs.size=64"],
    ],
    "onet_unconditional": ["--network.z-dim=4", "--inputs.points=128"],
    "occnet": [
        *["--data=mug,lamp", "--samples.surface=600", "--samples.occupancies=2000", "--epochs=2"],
        *["--batch-points=400", "--network.dims=16 16"],
    ],
}


def redrawn(model, seen):
    """The model with parameters at random, so that shapes differ, and such a bias that half of the box is inside."""
    shared, batch_stats = drawn((model.network.shared, model.network.batch_stats))
    network = BoundNetwork(model.network.module, shared, batch_stats)
    field = dataclasses.replace(model, network=network, codes=None).field(
        encode.encode(network, model.inputs.check(*seen.values()), model.inputs.kind)
    )
    values = field(np.random.default_rng(0).uniform(-0.5, 0.5, (len(field), 500, 3)))
    shared["params"]["decoder"]["fc_out"]["bias"] += field.per_shape["level"][0] - np.median(values)
    return dataclasses.replace(model, network=network, codes=None)
