"""Another number of shapes compiles nothing, within a bucket of sizes, and what fills a bucket changes no result."""

import dataclasses

import jax
import numpy as np
import pytest
from chairs import QUICK, load_chairs

import jonet
from jonet.codes import Codes
from jonet.geometry.mesh import Mesh
from jonet.inference.encode import Inputs
from jonet.inference.fitting import latents
from jonet.inference.surfaces import extraction, refinement
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.field import Field, bucket
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.settings.fitting import PoseConfig
from jonet.settings.metrics import MetricsConfig
from jonet.settings.surfaces import Surfaces

pytestmark = pytest.mark.unoptimized
FIRST, OTHERS = 5, (6, 7, 8)  # numbers of shapes in one bucket
RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-0.5, 0.5, (8, 200, 3)).astype(np.float32)
SETTINGS = dataclasses.replace(
    QUICK,
    gauss_newton=dataclasses.replace(QUICK.gauss_newton, phases=(2, 2)),
    adam=dataclasses.replace(QUICK.adam, steps=4),
    lbfgs=dataclasses.replace(QUICK.lbfgs, steps=2),
)
POSE = PoseConfig(rotations="yaw", tries=4, keep=(2, 1), fitting=SETTINGS)
FEW = MetricsConfig(surface_points=500, chamfer_points=100, volume_points=500, accuracy_points=50, emd_points=20)
COARSE = Surfaces(resolution=16)
NAMES = tuple("abcdefgh")


def conditional() -> Model:
    """A model with an encoder, not trained."""
    module = OccupancyNetwork(Specs(encoder="pointnet_simple", c_dim=8, hidden_size=16, n_blocks=1, encoder_width=8))
    network = BoundNetwork(module, *jax.tree.map(np.asarray, module.start(jax.random.key(0))))
    return Model("occupancy", network, "cube", inputs=Inputs("points", 50), surfaces=COARSE)


CHAIRS, ONET = load_chairs(), conditional()
DEEPSDF = Model(
    "deepsdf",
    CHAIRS.network,
    "sphere",
    Codes(CHAIRS.codes, tuple(map(str, range(len(CHAIRS.codes))))),
    CHAIRS.prior,
    fitting=SETTINGS,
    surfaces=COARSE,
)
SAMPLES, CLOUDS, NORMALS = (
    np.tile(rows, (2, 1, 1)) for rows in (CHAIRS.samples, CHAIRS.points[:, :400], CHAIRS.normals[:, :400])
)
CODES, CONDITIONS = CHAIRS.codes[:8], RNG.standard_normal((8, 8), np.float32)
BOX = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])

CALLS = {  # what users call, of a number of shapes
    "field": lambda n: DEEPSDF.field(CODES[:n])[n - 1],
    "values": lambda n: DEEPSDF.field(CODES[:n])(POINTS[:n, : 20 * n]),
    "gradient": lambda n: DEEPSDF.field(CODES[:n]).gradient(POINTS[:n]),
    "contains": lambda n: DEEPSDF.field(CODES[:n]).contains(POINTS[:n]),
    "occupancy": lambda n: ONET.field(CONDITIONS[:n]).occupancy(POINTS[:n]),
    "grid": lambda n: ONET.field(CONDITIONS[:n]).grid(8),
    "stack": lambda n: Field.stack([DEEPSDF.field(code) for code in CODES[:n]])(POINTS[:n]),
    "extract": lambda n: DEEPSDF.extract(CODES[:n]),
    "dense": lambda n: DEEPSDF.extract(CODES[:n], surfaces={"method": "dense"}),
    "mise": lambda n: extraction.extract(DEEPSDF.field(CODES[:n]), 16, method="mise", coarse=4),
    "refine": lambda n: DEEPSDF.extract(CODES[:n], 8, surfaces={"rmsprop_steps": 2}),
    "fit": lambda n: DEEPSDF.fit(SAMPLES[:n]),
    "adam": lambda n: DEEPSDF.fit(SAMPLES[:n], config=dataclasses.replace(SETTINGS, method="adam")),
    "lbfgs": lambda n: DEEPSDF.fit(SAMPLES[:n], config=dataclasses.replace(SETTINGS, method="lbfgs")),
    "fit_pose": lambda n: DEEPSDF.fit_pose(CLOUDS[:n], normals=NORMALS[:n], config=POSE),
    "errors": lambda n: latents.errors(CHAIRS.network, CODES[:n], SAMPLES[:n]),
    "encode": lambda n: ONET.encode(points=POINTS[:n]),
    "reconstruct": lambda n: ONET.reconstruct(points=POINTS[:n]),
    "sample": lambda n: DEEPSDF.sample(n),
    "evaluate": lambda n: jonet.evaluate([BOX] * n, [BOX] * n, FEW),
}


@pytest.mark.filterwarnings("ignore:.*has no surface")
@pytest.mark.parametrize("name", CALLS)
def test_another_number_of_shapes_compiles_nothing(name, compilations):
    CALLS[name](FIRST)
    with compilations() as seen:
        for count in OTHERS:
            CALLS[name](count)
    assert not seen, seen


def test_padding_is_not_to_be_seen():
    fields = DEEPSDF.field(CODES[:5])
    assert len(fields) == 5 and "batch of 5 shapes" in repr(fields) and len(fields[1:3]) == 2
    assert {len(leaf) for leaf in jax.tree.leaves(fields.per_shape)} == {5}
    assert {len(leaf) for leaf in jax.tree.leaves(fields.padded.per_shape)} == {bucket(5)}
    assert len(jax.tree.leaves(fields)) == len(jax.tree.leaves(fields.padded))  # what is kept is no part of the pytree
    mapped = jax.vmap(lambda field, points: field.at(points), (fields.axes, 0))(fields, POINTS[:5])
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(mapped, fields(POINTS[:5]), atol=1e-6)


def test_padding_changes_no_result():
    """Five shapes, whose bucket has 16 places, and each of them alone, whose bucket has four."""
    fields = DEEPSDF.field(CODES[:5])
    meshes = extraction.extract(fields, 16)
    refined = refinement.refine(fields, meshes, steps=2)
    values, encoded = fields(POINTS[:5]), ONET.encode(points=POINTS[:5]).values
    fitted = DEEPSDF.fit(SAMPLES[:5])
    for i in range(5):
        np.testing.assert_array_equal(fields[i](POINTS[i]), values[i])
        alone = extraction.extract(fields[i], 16)
        np.testing.assert_array_equal(alone.vertices, meshes[i].vertices)
        (moved,) = refinement.refine(fields[i : i + 1], [alone], steps=2)
        np.testing.assert_allclose(moved.vertices, refined[i].vertices, atol=1e-6)
        # folds and encoders are products of matrices, whose rounding depends on the number of rows
        np.testing.assert_allclose(DEEPSDF.field(CODES[i])(POINTS[i]), values[i], atol=1e-6)
        np.testing.assert_allclose(ONET.encode(points=POINTS[i : i + 1]).values[0], encoded[i], atol=1e-6)
    np.testing.assert_allclose(DEEPSDF.fit(SAMPLES[:1]).values[0], fitted.values[0], atol=1e-5)
