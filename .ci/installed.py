"""The public names of an installed jonet, from data to a saved model: INSTALLED, the folder that it must come from."""

import sys
from pathlib import Path

import numpy as np

import jonet

assert Path(jonet.__file__).is_relative_to(sys.argv[1]), f"jonet was imported from {jonet.__file__}"
assert Path(jonet.__file__).with_name("py.typed").exists()

model = jonet.train(
    "mug",
    shapes={"train": 3, "test": 1},
    samples={"near": 400, "uniform": 100, "surface": 200, "occupancies": 0},
    network={"dims": (16, 16), "latent_size": 2, "latent_in": (1,), "norm_layers": (0,)},
    batch_shapes=2,
    batch_points=16,
    steps=3,
    minutes=0,
    fitting={"gauss_newton": {"points": (64, 64, 64)}},
)
points = np.random.default_rng(0).normal(size=(200, 3))
points *= 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
codes = jonet.fit(model, points=[points], normals=[2 * points], names=["ball"])
(mesh,) = jonet.extract(model, codes, 16)
assert len(codes) == 1 and mesh.name == "ball"
(row,) = jonet.evaluate(mesh, mesh)["shapes"]
assert row["iou"] == 1, row

model.save("model")
codes.save("codes.npz")
loaded = jonet.load("model")
np.testing.assert_array_equal(loaded.field(codes)(points[None]), model.field(codes)(points[None]))
