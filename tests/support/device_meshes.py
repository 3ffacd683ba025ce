"""The same fields as meshes on one, two and four fake devices, which must be equal; `surfaces/test_*` run it.

    python device_meshes.py host|device              which backend makes them

Fake devices need NPROC=16 in the environment before JAX is imported: with few threads, they wait for each other.
"""

import sys

import jax
import numpy as np
from analytic import batch, field, waves

from jonet import parallel
from jonet.inference.surfaces import device, extraction

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    backend = sys.argv[1]
    fields = batch(*(field(waves, frequency=3.0 + i) for i in range(5)))
    results = []
    for count in (1, 2, 4):
        # a shape of each device in two threads, or all at once
        (device if backend == "device" else extraction).BATCH = 1 if count == 2 else 10**9
        with parallel.use(count):
            meshes = extraction.extract(fields, 24, backend=backend)
            results.append([a for mesh in meshes for a in (mesh.vertices, mesh.faces, mesh.normals)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    print("equal", sum(len(a) for a in results[0]))
