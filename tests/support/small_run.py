"""The options of a run of deepsdf that learns something in seconds."""

import program

SMALL = [
    "--task=deepsdf",
    "--data=mug",
    "--shapes.train=6",
    "--shapes.test=2",
    "--samples.near=2000",
    "--samples.uniform=500",
    "--samples.surface=1500",
    "--network.dims=32 32 32",
    "--network.latent-size=8",
    "--network.latent-in=2",
    "--network.norm-layers=0 1 2",
    "--batch-shapes=4",
    "--batch-points=64",
    "--minutes=0",
    "--steps=60",
    "--fitting.gauss-newton.points=1024 1024 1024",
    "--surfaces.resolution=24",
    "--scores.volume-points=2000",
    "--scores.surface-points=1500",
    "--scores.chamfer-points=1500",
    "--scores.accuracy-points=300",
    "--scores.emd-points=50",
    "--rebuilt-train=2",
]


def arguments(folder, *more):
    split = [part for option in [*SMALL, *more] for part in option.replace("=", " ", 1).split(" ")]
    split = program.without_training(split) if "--model" in split else split
    return [*split, "--workdir", str(folder)]
