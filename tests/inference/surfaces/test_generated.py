"""Generated shapes: samples of a prior and interpolations of codes, from Python and from the shell."""

import jax
import numpy as np
import pytest
from manifolds import accepts
from onet_recorded import drawn

import jonet
from jonet import __main__ as shell
from jonet.codes import Codes
from jonet.data import sampling
from jonet.data.families import make
from jonet.errors import InputError
from jonet.geometry import mesh_files
from jonet.inference.encode import Inputs
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.occupancy import OccupancyNetwork, Specs
from jonet.run import report_pages
from jonet.tasks import onet_points

pytestmark = pytest.mark.unoptimized

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model():
    """An untrained generative network, its logits shifted so that half of the box is inside its shapes."""
    specs = Specs(decoder="simple", encoder="null", c_dim=0, z_dim=4, hidden_size=16, n_blocks=2)
    network = OccupancyNetwork(specs)
    shared, batch_stats = drawn(jax.eval_shape(network.start, jax.random.key(0)), seed=3)
    decoder = shared["params"]["decoder"]
    decoder["fc_p"]["kernel"] *= 20  # folds, holes and parts
    codes = Codes(np.float32(2 * np.random.default_rng(0).standard_normal((3, 4))), NAMES)
    prior = Prior.plain(specs.z_dim, 1.0)
    made = Model(
        "occupancy", BoundNetwork(network, shared, batch_stats), "cube", codes, prior, inputs=Inputs("samples", 64)
    )
    points = np.random.default_rng(1).uniform(-0.55, 0.55, (3, 500, 3)).astype(np.float32)
    fields = made.field(codes)
    decoder["fc_out"]["bias"] += np.median(fields.per_shape["level"]) - np.median(fields(points))
    return made


def test_shapes_between_two_are_closed_manifolds(model):
    between = model.interpolate(model.codes["a"], model.codes["b"], 6, resolution=24)
    assert len(between) == 6
    for mesh in between:
        assert len(mesh.faces) > 100 and mesh.watertight and mesh.volume > 0 and accepts(mesh)
    ends = model.extract(model.codes[["a", "b"]], 24)
    for mesh, end in zip((between[0], between[-1]), ends, strict=True):
        np.testing.assert_array_equal(mesh.faces, end.faces)
    steps = np.diff([mesh.volume for mesh in between])
    assert np.abs(steps).max() < 0.6 * np.abs(steps).sum()  # a way, not a jump


def test_samples_follow_the_seed_and_the_prior(model):
    one, same, other = (model.sample(4, seed, resolution=24) for seed in (1, 1, 2))
    for mesh, again in zip(one, same, strict=True):
        np.testing.assert_array_equal(mesh.vertices, again.vertices)
    assert all(mesh.watertight and accepts(mesh) for mesh in one + other if len(mesh.faces))
    assert len({mesh.volume for mesh in one + other}) == 8
    codes = model.prior.sample(20_000, seed=0)
    np.testing.assert_allclose(np.cov(codes.T), np.eye(4), atol=0.05)


def test_the_verbs(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    run = [str(tmp_path), "--count=3", "--resolution=16", "--format=off"]
    for verb, more in {"sample": [], "interpolate": ["b", "c"]}.items():
        out = tmp_path / verb
        assert shell.main([verb, run[0], *more, *run[1:], f"--out={out}"]) == 0
        said = capsys.readouterr()
        files = sorted(out.glob("*.off"))
        assert len(files) == len(said.out.splitlines()) == 3 - said.err.count("no surface")
        assert files and all(mesh_files.read(path).watertight for path in files)
    assert shell.main(["interpolate", run[0], "b", "nobody", *run[1:], f"--out={tmp_path / 'x'}"]) == 1
    assert "no code is named 'nobody'; the names are a, b, c" in capsys.readouterr().err


def test_networks_without_a_prior_or_codes_are_refused(model, tmp_path, capsys):
    parts = {name: getattr(model, name) for name in ("kind", "network", "frame")}
    Model(**parts).save(tmp_path / "model")
    with pytest.raises(InputError, match="no prior"):
        jonet.load(tmp_path).sample(1)
    assert shell.main(["interpolate", str(tmp_path), "a", "b", f"--out={tmp_path / 'x'}"]) == 1
    assert "no codes of training shapes" in capsys.readouterr().err


def test_the_page_shows_them_in_order_with_what_came_near(tmp_path):
    """Eleven of each, of which one has no surface."""
    known = [make("mug", 0, i) for i in range(3)]

    class Store:
        def surface(self, i):
            return sampling.surface(known[i], 200, np.random.default_rng(0))

        def ground_truth(self, i):
            return known[i]

    for kind in ("sample", "between"):
        for i in {*range(11)} - {4}:
            mesh_files.write(known[i % 3], tmp_path / kind / f"{kind}_{i}.ply")
    samples, between = report_pages.generated(tmp_path, Store(), [0, 1, 2], 11)
    assert [row.name for row in samples.rows] == [f"sample_{i}" for i in range(11) if i != 4]
    assert all(row.parts[1].thing is known[int(row.name[7:]) % 3] for row in samples.rows)
    (row,) = between.rows
    assert [part.caption for part in row.parts] == [f"{10 * i}%" for i in range(11)]
    assert [len(part.thing.faces) > 0 for part in row.parts] == [i != 4 for i in range(11)]
    assert report_pages.generated(tmp_path / "none", Store(), [0], 11) == []


def test_the_page_draws_training_and_validation():
    steps = [{"step": 10 * i, "loss": 1 / i, "kl": i, "rate": 7} for i in (1, 2)]
    training, checked = report_pages.charts(onet_points.TASK, [*steps, {"step": 20, "validation": -0.25}])
    assert training.lines == {"loss": ([10, 20], [1, 0.5]), "kl": ([10, 20], [1, 2])}
    assert checked.lines == {"IoU of validation shapes": ([20], [-0.25])} and not checked.log
