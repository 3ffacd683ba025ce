"""Networks of the authors' programs: files are read safely, outputs reproduced, and problems reported."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onet_recorded import HERE as ONET
from onet_recorded import find
from paths import RECORDED

import jonet
from jonet import model
from jonet.__main__ import main
from jonet.errors import FormatError
from jonet.inference.encode import Inputs
from jonet.networks import deepsdf, occupancy
from jonet.networks.deepsdf import Specs
from jonet.networks.encoders import Resnet
from jonet.networks.published import folders, onet_checkpoint, pretrained, weights

SMALL = RECORDED / "pretrained"
AXIS = np.array([0, np.cos(np.radians(35)), np.sin(np.radians(35))])


@pytest.fixture(autouse=True)
def full_float32():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", minversion="2.6", reason="reading PyTorch's files needs torch (extra `import`)")


def imported(source, out, *options):
    assert main(["import", str(source), f"--out={out}", *options]) == 0
    return jonet.load(out)


@pytest.fixture
def experiment(tmp_path):
    """A copy of the small experiment folder, to be changed."""
    shutil.copytree(SMALL, tmp_path / "experiment")
    return tmp_path / "experiment"


def saved(torch, path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def state_of(torch, path):
    return torch.load(path, weights_only=True)["model_state_dict"]


# DeepSDF


@pytest.mark.parametrize("form", ["as_saved", "legacy_serialisation", "new_keys", "old_form", "bare_keys", "float64"])
def test_every_form_of_deepsdf_files(torch, experiment, tmp_path, form):
    recorded = np.load(SMALL / "recorded.npz")
    network = experiment / "ModelParameters/latest.pth"
    if (SMALL / form).is_dir():
        shutil.copytree(SMALL / form, experiment, dirs_exist_ok=True)
    elif form != "as_saved":
        state = {name.removeprefix("module."): value for name, value in state_of(torch, network).items()}
        if form == "float64":
            state = {name: value.double() for name, value in state.items()}
        saved(torch, network, {"epoch": 4, "model_state_dict": state})
    found = imported(experiment, tmp_path / "out")
    np.testing.assert_array_equal(found.codes.values, recorded["codes"])
    np.testing.assert_allclose(found.field(found.codes)(recorded["points"]), recorded["eval"], rtol=0, atol=1e-7)
    assert found.codes.names[:3] == ("sphere", "cube", "rounded_slab") and found.frame == "sphere"
    assert found.history["source"].endswith("ModelParameters/latest.pth") and found.history["epoch"] == 4
    assert found.prior.mean.shape == (16,) and np.isfinite(found.prior.distance)
    assert found.config == Specs(16, (64,) * 4, (0, 1, 2, 3), 0.2, (0, 1, 2, 3), (2,))
    assert len(model.Codes.load(tmp_path / "out/codes.npz")) == 12


def test_fitted_codes_come_along(torch, experiment, tmp_path, capsys):
    imported(experiment / "ModelParameters/latest.pth", tmp_path / "out")  # a file names its folder, too
    fitted = model.Codes.load(tmp_path / "out/fitted.npz")
    assert fitted.names == ("solids/simple/brick",)
    np.testing.assert_array_equal(fitted.values, np.load(SMALL / "recorded.npz")["reconstructed_code"])
    assert "input units are unknown" in capsys.readouterr().err


def test_shapes_bring_their_scales(torch, experiment):
    """With NormalizationParameters of all training shapes the codes have the similarities from input units."""
    names = json.loads((experiment / "train.json").read_text())["solids"]["simple"]
    for i, name in enumerate(names):
        path = experiment / f"data/NormalizationParameters/solids/simple/{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, offset=np.float32([i, 0, 0]), scale=np.float32([2]))
    found = folders.read(experiment)
    assert not found.notes and len(found.similarities) == 12
    np.testing.assert_allclose(found.similarities[3]([1, 1, 1]), [8, 2, 2])


def test_what_is_missing_is_a_note(torch, experiment):
    (experiment / "train.json").unlink()
    found = folders.read(experiment)
    assert found.names[:2] == ("shape 0", "shape 1") and "codes have no names" in found.notes[0]
    (experiment / "train.json").write_text('{"solids": {"simple": ["one"]}}')
    assert "names 1 shapes, but there are 12 codes" in folders.read(experiment).notes[0]
    shutil.rmtree(experiment / "LatentCodes")
    found = folders.read(experiment)
    assert found.codes is None and "no training codes" in found.notes[0] and not found.names


def test_specifications(experiment):
    """The program's defaults, not the published settings, are used for options that a specification lacks."""
    given = json.loads((experiment / "specs.json").read_text())

    def read(**network):
        return deepsdf_specs({**given, "NetworkSpecs": network})

    assert read(dims=[8, 8]) == (Specs(16, (8, 8), (), 0.0, (), (), False), [])
    assert read(dims=[8], dropout=None, xyz_in_all=None, extra=3) == (
        Specs(16, (8,), (), 0.0, (), (), False),
        ["extra=3"],
    )
    for network, said in [
        ({}, "NetworkSpecs with dims"),
        ({"dims": "8"}, "dims is '8', but must be a list"),
        ({"dims": [8], "latent_in": [0]}, "latent_in names layer 0"),
        ({"dims": [8], "dropout_prob": 2}, "dropout_prob is 2"),
    ]:
        with pytest.raises(FormatError, match=said):
            read(**network)
    with pytest.raises(FormatError, match="NetworkArch is 'other'"):
        deepsdf_specs({**given, "NetworkArch": "other"})
    with pytest.raises(FormatError, match="CodeLength"):
        deepsdf_specs({"NetworkSpecs": {"dims": [8]}})


def drawn(shapes):
    """Random arrays of these shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def deepsdf_specs(given):
    from jonet.networks.published import deepsdf_checkpoint

    return deepsdf_checkpoint.specification(given, Path("specs.json"))


@pytest.mark.parametrize(
    "specs",
    [
        Specs(5, (12, 12, 12), (), 0.0, (0, 1, 2, 3), (2,), True),
        Specs(5, (12, 12, 12), (), 0.0, (0, 1, 2, 3), (2,), False),
        Specs(0, (12, 12), (), 0.0, (1,), (), True, xyz_in_all=True),
    ],
    ids=["weight_norm", "layer_norm", "one_shape"],
)
def test_names_of_every_layer(specs):
    """Our parameters under the program's names come back equal; a layer norm that it never applies is dropped."""
    decoder = deepsdf.DeepSDFDecoder(specs)
    arguments = jnp.zeros((1, specs.latent_size)), jnp.zeros((1, 1, 3))
    params = drawn(jax.eval_shape(decoder.init, jax.random.key(0), *arguments))["params"]
    state = {}
    for layer, leaves in params.items():
        for leaf, value in leaves.items():
            spelled = "weight" if "scale" not in leaves or layer.startswith("bn") else "weight_v"
            name = {"kernel": spelled, "scale": "weight" if layer.startswith("bn") else "weight_g"}.get(leaf, leaf)
            value = np.asarray(value).T if leaf == "kernel" else np.asarray(value)
            state[f"module.{layer}.{name}"] = value[:, None] if name == "weight_g" else value
    if not specs.weight_norm:
        state |= {"bn3.weight": np.ones(1, np.float32), "bn3.bias": np.zeros(1, np.float32)}
    got = pretrained.from_deepsdf(state, specs)["params"]
    jax.tree.map(np.testing.assert_array_equal, got, dict(params))
    with pytest.raises(FormatError, match="twice"):
        pretrained.from_deepsdf(state | {"lin0.bias": np.zeros(12)}, specs)


def test_weights_that_do_not_fit_list_both_sides(torch, experiment):
    path = experiment / "ModelParameters/latest.pth"
    state = dict(state_of(torch, path))
    state["module.extra.weight"] = state.pop("module.lin3.bias")
    state["module.lin0.weight_g"] = torch.zeros(3)
    saved(torch, path, {"epoch": 4, "model_state_dict": state})
    with pytest.raises(FormatError) as caught:
        folders.read(experiment)
    said = str(caught.value)
    assert str(path) in said and "- lin3.bias [64]\n" in said and "+ extra.kernel [64]" in said
    assert "- lin0.scale [64]\n" in said and "+ lin0.scale [3]\n" in said


@pytest.mark.parametrize(
    "content, said",
    [
        ({"latent_codes": {"weight": np.zeros((12, 15))}}, "codes have shape [12, 15], but CodeLength is 16"),
        ({"latent_codes": {"weight": np.zeros((12, 16), int)}}, "must be a dense array of floating type, but is int64"),
        ({"latent_codes": {"weight": np.full((12, 16), np.nan)}}, "not finite"),
        ({"latent_codes": {"weight": [1.0]}}, "must be a dense array of floating type, but is list"),
        ({"latent_codes": {}}, "has no latent_codes"),
        ({"epoch": 1}, "has no latent_codes"),
        ([], "has no latent_codes"),
    ],
)
def test_codes_that_are_none(torch, experiment, content, said):
    def tensors(value):
        if isinstance(value, dict):
            return {name: tensors(inner) for name, inner in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    saved(torch, experiment / "LatentCodes/latest.pth", tensors(content))
    with pytest.raises(FormatError) as caught:
        folders.read(experiment)
    assert said in str(caught.value)


@pytest.mark.parametrize("name, count, length", [("round_cross", 20, 1), ("chi_and_cross", 120, 2)])
def test_trained_lattice_cells(torch, data, tmp_path, name, count, length):
    """Files trained elsewhere: their recorded grids, and unit cells that are closed by the box."""
    recorded, found = trained(data, tmp_path, name)
    assert found.codes.values.shape == (count, length) and np.linalg.norm(found.codes.values, axis=1).max() > 1
    assert any("geom_dimension=3" in note for note in found.history["notes"])
    facts = json.loads((data / "deepsdf_trained/index.json").read_text())[name]["surface_facts_at_64"]
    for mesh, fact in zip(found.extract(recorded["codes"], 64), facts.values(), strict=True):
        assert mesh.watertight and mesh.euler_number == fact["euler"]
        assert mesh.volume == pytest.approx(fact["volume"], rel=0.04)  # there the lid lies beyond the box
        assert np.abs(mesh.bounds).max() == pytest.approx(1)


def trained(data, tmp_path, name):
    """The recorded outputs of a trained folder, which the imported model has been seen to give."""
    folder = data / "deepsdf_trained" / name
    recorded, found = np.load(folder / "recorded.npz"), imported(folder, tmp_path / "out")
    side = np.linspace(-1, 1, 24, dtype=np.float32)
    points = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    np.testing.assert_array_equal(found.codes.values[recorded["code_rows"]], recorded["codes"])
    fields = found.field(recorded["codes"])
    values = np.asarray(fields(np.broadcast_to(points, (3, *points.shape)))).reshape(recorded["sdf24"].shape)
    np.testing.assert_allclose(values, recorded["sdf24"], rtol=0, atol=2e-6)
    values, gradients = fields[0].gradient(recorded["points"])
    np.testing.assert_allclose(values, recorded["point_sdf_first"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradients, recorded["point_gradient_first"], rtol=0, atol=1e-5)
    return recorded, found


SOLIDS = {  # whether points p [N, 3] are inside
    "sphere": lambda p: norm(p) <= 0.7,
    "cube": lambda p: np.abs(p).max(1) <= 0.5,
    "rounded_slab": lambda p: norm(np.maximum(np.abs(p) - [0.65, 0.15, 0.4], 0)) <= 0.08,
    "torus": lambda p: np.hypot(np.hypot(p[:, 0], p[:, 2]) - 0.6, p[:, 1]) <= 0.22,
    "cylinder": lambda p: (np.hypot(p[:, 0], p[:, 2]) <= 0.45) & (np.abs(p[:, 1]) <= 0.6),
    "capsule": lambda p: to_segment(p, [-0.5, -0.3, 0], [0.5, 0.3, 0.1]) <= 0.25,
    "link": lambda p: np.hypot(np.hypot(p[:, 0], np.maximum(np.abs(p[:, 1]) - 0.3, 0)) - 0.4, p[:, 2]) <= 0.16,
    "box_frame": lambda p: (np.abs(p) <= [0.55, 0.45, 0.5]).all(1) & ((np.abs(p) >= [0.33, 0.23, 0.28]).sum(1) >= 2),
    "octahedron": lambda p: np.abs(p).sum(1) <= 0.85,
    "cone": lambda p: (np.hypot(p[:, 0], p[:, 2]) <= 0.3 - p[:, 1] / 2) & (np.abs(p[:, 1]) <= 0.6),
    "two_spheres": lambda p: np.minimum(norm(p - [0.45, 0, 0]), norm(p + [0.45, 0, 0])) <= 0.35,
    "tilted_disc": lambda p: (np.abs(p @ AXIS) <= 0.12) & (norm(p - np.outer(p @ AXIS, AXIS)) <= 0.7),
    "brick": lambda p: (np.abs(p) <= [0.6, 0.3, 0.45]).all(1),
}


def norm(p):
    return np.linalg.norm(p, axis=1)


def to_segment(p, a, b):
    a, b = np.array(a), np.array(b)
    along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return norm(p - a - along[:, None] * (b - a))


def iou(field, name, side=64):
    line = np.linspace(-1, 1, side, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    ours, ground_truth = np.asarray(field.contains(points)), SOLIDS[name](points.astype(np.float64))
    return (ours & ground_truth).sum() / (ours | ground_truth).sum()


def test_trained_solids(torch, data, tmp_path):
    """Codes of twelve solids give the solids: overlap and topology as recorded."""
    _, found = trained(data, tmp_path, "twelve_solids")
    facts = json.loads((data / "deepsdf_trained/index.json").read_text())["twelve_solids"]["every_shape"]
    assert found.codes.names == tuple(facts)
    fields = found.field(found.codes)
    for i, (mesh, (name, fact)) in enumerate(zip(found.extract(found.codes, 64), facts.items(), strict=True)):
        assert mesh.name == name and mesh.watertight and mesh.euler_number == fact["euler"], name
        assert mesh.volume == pytest.approx(fact["volume"], rel=0.01), name
        assert iou(fields[i], name) == pytest.approx(fact["iou_64"], abs=0.005), name


def test_unseen_brick_is_fitted(torch, data, tmp_path):
    """At least as well as the program fitted it."""
    folder = data / "deepsdf_trained/twelve_solids"
    recorded, found = np.load(folder / "recorded.npz"), imported(folder, tmp_path / "out")
    samples = np.concatenate(list(np.load(folder / "test_samples/brick.npz").values()))
    codes = found.fit([samples])
    ours, theirs = (found.field(values)[0] for values in (codes, recorded["fitted_brick"]))
    assert codes.residual[0] <= recorded["fitted_brick_loss"]
    assert iou(ours, "brick") >= iou(theirs, "brick") == pytest.approx(0.9389, abs=0.001)


# Occupancy Networks


@pytest.mark.parametrize("name", ["points.pt", "points_torch_1_0.pt", "vae.pt"])
def test_onet_checkpoints(torch, data, tmp_path, name):
    """With their YAML, and alone, in the format before PyTorch 1.6: what the program gave."""
    folder = data / "reference" / "onet_checkpoint"
    recorded = np.load(folder / f"{name.split('.')[0].split('_')[0]}.npz")
    found = imported(folder / name, tmp_path / "out")
    assert found.kind == "occupancy" and found.frame == "cube" and found.codes is None and found.config.threshold == 0.2
    alone = name == "points_torch_1_0.pt"
    assert bool(found.history["notes"]) == alone and (found.history["options"] is None) == alone
    assert found.history["iteration"] == 3
    variables = found.network.variables
    if name == "vae.pt":
        arguments = recorded["points"], recorded["points.occ"], np.zeros((3, 0), np.float32)
        mean, logstd = found.network.module.apply(variables, *arguments, method="infer")
        close(mean, recorded["q_mean"])
        close(np.exp(logstd), recorded["q_std"])
        close(occupancy.kl(mean, logstd), recorded["kl"])
        close(found.field(recorded["z"])(recorded["points"]), recorded["logits_of_z"])
        close(found.field(recorded["q_mean"])(recorded["points"]), recorded["logits_of_q_mean"])
        assert found.inputs == Inputs("samples", 2048) and len(found.sample(2, resolution=8)) == 2
    else:
        assert found.inputs == Inputs("points", 300 if alone else 30)  # the YAML's number, else the published one
        close(found.encode(points=recorded["inputs"]).values, recorded["c"])
        assert len(found.reconstruct(points=recorded["inputs"], resolution=8)) == len(recorded["inputs"])
        c = found.network.module.apply(variables, recorded["inputs"], method="encode")
        close(c, recorded["c"])
        close(found.field(recorded["c"])(recorded["points"]), recorded["logits"])


def close(ours, recorded):
    """To the rounding of float32, of which the program's own outputs have up to 3e-6."""
    np.testing.assert_allclose(ours, recorded, rtol=0, atol=4e-6 * max(1, np.abs(recorded).max()))


MODELS = {  # recorded whole models: what only their YAML would tell, and what the weights tell
    "model_embedding": ("cbatchnorm", "idx", 16, 0, None),
    "model_images": ("cbatchnorm", "resnet18", 16, 0, 8),
    "model_points": ("cbatchnorm", "pointnet_resnet", 16, 0, None),
    "model_vae": ("simple", "null", 0, None, None),
    "model_voxels": ("cbatchnorm", "voxel_simple", 16, 0, None),
}
SEEN = {  # what each takes, as published
    **{"model_images": ("images", 224), "model_points": ("points", 300)},
    **{"model_vae": ("samples", 2048), "model_voxels": ("voxels", 32)},
}


@pytest.mark.parametrize("name", MODELS)
def test_onet_models_alone(torch, tmp_path, name):
    """A checkpoint of every kind of network gives its configuration and the recorded logits."""
    decoder, encoder, c_dim, z_dim, width = MODELS[name]
    recorded = dict(np.load(find(f"{name}.npz")))
    state = {key.removeprefix("state/"): value for key, value in recorded.items() if key.startswith("state/")}
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    content = {"model": tensors, "loss_val_best": np.float64(0.5), "it": 7, "epoch_it": 1}
    found = imported(saved(torch, tmp_path / "model.pt", content), tmp_path / "out")
    specs = found.config
    assert (specs.decoder, specs.encoder, specs.c_dim) == (decoder, encoder, c_dim)
    assert z_dim is None or specs.z_dim == z_dim
    assert width is None or specs.encoder_width == width
    assert specs.hidden_size == 32 and specs.threshold == (0.5 if encoder == "idx" else 0.2)
    variables, points = found.network.variables, recorded["data/points"]
    assert found.inputs == (None if encoder == "idx" else Inputs(*SEEN[name]))
    if name == "model_vae":
        samples = np.concatenate([points, recorded["data/points.occ"][..., None]], -1)
        close(found.encode(samples).values, recorded["eval/q_mean"])
        np.testing.assert_array_equal(found.prior.covariance, np.eye(specs.z_dim))
        arguments = points, recorded["data/points.occ"], recorded["eval/c"]
        close(found.network.module.apply(variables, *arguments, method="infer")[0], recorded["eval/q_mean"])
        return
    inputs = recorded["data/inputs"]
    if encoder == "idx":
        np.testing.assert_array_equal(found.codes.values, state["encoder.weight"])
        assert found.codes.names[0] == "shape 0" and found.prior is not None
        c = found.codes.values[inputs]
    else:
        inputs = inputs.transpose(0, 2, 3, 1) if name == "model_images" else inputs
        if name != "model_images":  # recorded smaller than published
            close(found.encode(**{found.inputs.kind: inputs}).values, recorded["eval/c"])
        c = found.network.module.apply(variables, inputs, method="encode")
    close(c, recorded["eval/c"])
    close(found.field(np.asarray(c))(points), recorded["eval/logits"])


def test_onet_configurations_by_shapes():
    """Names and shapes of every published configuration tell it."""
    published_keys = json.loads((ONET / "published_keys.json").read_text())
    seen = {}
    for name, about in published_keys.items():
        if not name.startswith("encoder:"):
            state = {key: np.broadcast_to(np.float32(0), shape) for key, shape, *_ in about["state"]}
            seen[name], _ = onet_checkpoint.recognized(state, Path(name))
    specs = {name: occupancy.Specs(**found) for name, found in seen.items()}
    wanted = {  # decoder, encoder, c_dim, z_dim, hidden_size
        "img/onet": ("cbatchnorm", "resnet18", 256, 0, 256),
        "pointcloud/onet": ("cbatchnorm", "pointnet_resnet", 512, 0, 256),
        "voxels/onet": ("cbatchnorm", "voxel_simple", 256, 0, 256),
        "unconditional/onet_cars": ("simple", "null", 0, 128, 128),
        "repr_power/onet": ("cbatchnorm", "idx", 512, 0, 256),
        "ablation/architecture_nocbn": ("batchnorm", "resnet18", 256, 0, 256),
        "ablation/architecture_noresnet": ("cbatchnorm_noresnet", "resnet18", 256, 0, 256),
    }
    assert {n: (s.decoder, s.encoder, s.c_dim, s.z_dim, s.hidden_size) for n, s in specs.items()} == wanted
    widths = {"resnet18": 64, "pointnet_resnet": 512, "voxel_simple": 32, "null": None, "idx": None}
    assert all(s.n_blocks == 5 and s.encoder_width == widths[s.encoder] for s in specs.values())


@pytest.mark.parametrize(
    "decoder, encoder",
    [
        ("simple", "resnet34"),
        ("cbatchnorm2", "resnet50"),
        ("batchnorm", "simple_conv"),
        ("cbatchnorm_noresnet", "pointnet_simple"),
    ],
)
def test_onet_names_tell_every_network(decoder, encoder):
    """The program's names of a network of ours, of kinds that no recorded checkpoint has, tell the network."""
    specs = occupancy.Specs(decoder, encoder, 9, 4, 6, 2, encoder_width=4, threshold=0.5)
    network = occupancy.OccupancyNetwork(specs)
    shared, batch_stats = jax.eval_shape(network.start, jax.random.key(0))
    state = theirs(shared["params"], batch_stats, decoder)
    found, whole = onet_checkpoint.recognized(state, Path("x.pt"))
    assert occupancy.Specs(**found, threshold=0.5) == specs
    parameters, running = pretrained.from_torch(whole, shared["params"], batch_stats)
    assert jax.tree.map(np.shape, parameters) == jax.tree.map(np.shape, dict(shared["params"]))
    assert jax.tree.structure(running) == jax.tree.structure(batch_stats)


def theirs(parameters, batch_stats, decoder):
    """Zeros under the program's names, of our shapes."""
    state, resnet = {}, "layer1_0" in parameters.get("encoder", {})
    for tree in (parameters, batch_stats):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *layers, name = [entry.key for entry in path]
            place = ".".join(layers)
            if place.startswith("decoder") and ".bn" in place:
                inner = name in ("mean", "variance") and decoder.startswith("cbatchnorm")
                place = place.replace("gamma", "conv_gamma").replace("beta", "conv_beta") + ".bn" * inner
            if decoder == "cbatchnorm2" and place.startswith("decoder"):
                place = place.replace("fc_p", "conv_p").replace("fc_out", "conv_out").replace("block", "blocks.")
            if resnet and (body := place.removeprefix("encoder.")).startswith(("conv1", "bn1", "layer")):
                body = body.replace("downsample_", "downsample.")
                place = "encoder.features." + (body[:6] + "." + body[7:] if body.startswith("layer") else body)
            shape = leaf.shape
            if name == "kernel":
                shape = (shape[-1], shape[-2], *shape[:-2])
            name = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "variance": "running_var"}.get(
                name, name
            )
            state[f"{place}.{name}"] = np.zeros(shape, np.float32)
    return state


def test_an_encoder_without_last_layer_passes_its_features_on():
    """use_linear false: c are the features themselves."""
    specs = occupancy.Specs("cbatchnorm", "resnet18", 32, 0, 6, encoder_width=4)
    shared, batch_stats = jax.eval_shape(occupancy.OccupancyNetwork(specs).start, jax.random.key(0))
    state = theirs(shared["params"], batch_stats, "cbatchnorm")
    del state["encoder.fc.weight"], state["encoder.fc.bias"]
    found, whole = onet_checkpoint.recognized(state, Path("x.pt"))
    assert found["c_dim"] == 32
    np.testing.assert_array_equal(whole["encoder.fc.weight"], np.eye(32))


@pytest.fixture
def vae(torch, tmp_path):
    """A checkpoint of a small VAE, and its YAML file."""
    specs = occupancy.Specs("simple", "null", 0, 4, 6)
    shared, batch_stats = jax.eval_shape(occupancy.OccupancyNetwork(specs).start, jax.random.key(0))
    state = {name: torch.from_numpy(value) for name, value in theirs(shared["params"], batch_stats, "simple").items()}
    (tmp_path / "a/b").mkdir(parents=True)
    return saved(torch, tmp_path / "a/b/model_best.pt", {"model": state, "loss_val_best": np.float64(1)})


YAML = "model: {decoder: simple, encoder: null, encoder_latent: simple, c_dim: 0, z_dim: 4}"


def test_onet_options(vae, tmp_path):
    options = tmp_path / "a/b/config.yaml"
    options.write_text(YAML + "\ntest: {threshold: 0.3}")
    found = folders.read(vae.parent)  # the folder that training wrote
    assert found.network.specs.threshold == 0.3 and not found.notes and not found.network.specs.leaky
    options.write_text("inherit_from: a/base.yaml\nmodel: {decoder_kwargs: {leaky: true}}")
    (tmp_path / "a/base.yaml").write_text(YAML)
    specs = folders.read(vae, options=options).network.specs
    assert specs.leaky and specs.threshold == 0.5  # the program's default, if no YAML has it
    for content, said in [
        ("{", "is not valid YAML"),
        ("[1]", "must hold names and values"),
        (f"inherit_from: {'a' * 5000}", "neither in its folder"),
        ("a: &a [1, 2]\nb: &b [*a, *a]\ninherit_from: *b", r"uses an alias, \*a"),
        ("a: " + "[" * 999, "nested more than 32 levels"),
        (YAML + "\ntest: {threshold: [%s]}" % ("1, " * 9000), "threshold is .{,70}, but must"),
        ("model: 3", "must be mappings"),
        ("inherit_from: nowhere.yaml", "neither in its folder nor in a parent"),
        ("inherit_from: a/b/config.yaml", "at most 8"),
        ("method: psgn", "method is 'psgn'"),
        (YAML.replace("z_dim: 4", "z_dim: 8"), "z_dim: 4 → 8"),
        ("", "decoder|encoder"),
        (YAML + "\ndata: 3", "must be mappings"),
        (YAML + "\ntest: {threshold: 2}", "threshold is 2"),
        (YAML.replace("c_dim", "decoder_kwargs: 3, c_dim"), "kwargs"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ]:
        options.write_text(content)
        with pytest.raises(FormatError, match=said):
            folders.read(vae, options=options)
    with pytest.raises(FormatError, match="pointcloud_n is 0"):
        onet_checkpoint.takes(occupancy.Specs(encoder="pointnet_simple"), {"pointcloud_n": 0}, options)


def test_other_checkpoints_are_refused(torch, tmp_path, vae):
    for content, said in [
        ({"state_dict": {}}, "no entry 'model'"),
        ({"model": {"a": torch.zeros(2)}}, "no decoder.fc_p.weight"),
        ({"model": {3: torch.zeros(2)}}, "from names to arrays"),
        ({"model": {**torch.load(vae, weights_only=False)["model"], "more.weight": torch.zeros(2)}}, r"\+ more.scale"),
    ]:
        with pytest.raises(FormatError, match=said):
            folders.read(saved(torch, tmp_path / "x.pt", content))
    with pytest.raises(FormatError, match="neither specs.json"):
        folders.read(tmp_path)
    with pytest.raises(FormatError, match="no such file or folder"):
        folders.read(tmp_path / "nothing")


# Files


def test_without_torch_the_extra_is_named(monkeypatch, capsys, tmp_path):
    class Missing:  # not `None` in sys.modules, which the parser of options takes for an imported torch
        def find_spec(self, name, *_):
            if name == "torch":
                raise ImportError(name)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert main(["import", str(SMALL), f"--out={tmp_path / 'out'}"]) == 1
    assert "pip install torch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_old_torch_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    sys.modules["torch"].__version__ = "2.5.1+cpu"
    with pytest.raises(FormatError, match="torch 2.5.1.cpu cannot read untrusted files safely; install 2.6"):
        weights.load(SMALL / "ModelParameters/latest.pth")


def refused(path, said):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=said) as caught:
            weights.state(weights.load(path), path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_what_is_no_file_of_weights_is_refused_before_torch_sees_it(tmp_path):
    path, good = tmp_path / "x.pth", (SMALL / "ModelParameters/latest.pth").read_bytes()
    refused(path, "cannot be read")
    for content, said in [
        (b"", "is empty"),
        (b"solid cube", "not a PyTorch file"),
        (pickle.dumps({"a": 1}), "not a PyTorch file"),
        (good[: len(good) // 2], "damaged or truncated"),
        (good[:-40], "damaged or truncated"),
    ]:
        path.write_bytes(content)
        refused(path, said)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    refused(path, "would unpack to 100000000 bytes")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(weights.MAX_HEADER + 1))
    refused(path, "the limit for weights is")


class Hostile:
    def __reduce__(self):
        return (subprocess.check_output, (["touch", "/tmp/jonet_was_run"],))


def test_programs_in_files_do_not_run(torch, tmp_path):
    path = saved(torch, tmp_path / "x.pt", {"model": Hostile()})
    refused(path, "refers to [a-z]+.check_output")
    torch.save({"model": Hostile()}, path, _use_new_zipfile_serialization=False)
    refused(path, "refers to [a-z]+.check_output")
    assert not Path("/tmp/jonet_was_run").exists()


def test_numbers_that_are_not_there(torch, tmp_path):
    path = tmp_path / "x.pt"
    refused(saved(torch, path, {"a": torch.zeros(1).expand(10**6, 10**6)}), "declares arrays of 4000000000000 bytes")
    refused(saved(torch, path, {"a": torch.zeros(3, dtype=torch.complex64)}), "floating type, but is complex64")
    refused(saved(torch, path, {"a": torch.zeros(3).to_sparse()}), "floating type, but is float32|not weights|refers")
    refused(saved(torch, path, {"a": torch.full((3,), torch.inf)}), "not finite")
    refused(saved(torch, path, [torch.zeros(3)]), "from names to arrays, but is a list")
    old = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(1000)}, old, _use_new_zipfile_serialization=False)
    whole = old.read_bytes()
    for cut in (20, 200, len(whole) - 100):
        old.write_bytes(whole[:cut])
        refused(old, "damaged, truncated or not weights")


def safetensors(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_safetensors(tmp_path):
    values = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = {
        "__metadata__": {"made": "here"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [6], "data_offsets": [24, 36]},
        "steps": {"dtype": "I64", "shape": [], "data_offsets": [36, 44]},
    }
    path = safetensors(tmp_path / "x.safetensors", header, values.tobytes() + bf16.tobytes() + bytes(8))
    found = weights.state(weights.load(path), path)
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_allclose(found["b"], values.ravel(), rtol=2**-7)
    assert set(found) == {"a", "b"}
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for content, body in [
        (b"", b""),
        (b"[]", b""),
        (b"{", b""),
        (b"[" * 10_000, b""),
        ({"a": {**entry, "data_offsets": [0, 800]}}, bytes(8)),
        ({"a": {**entry, "data_offsets": [-8, 0]}}, bytes(8)),
        ({"a": {**entry, "shape": [10**12]}}, bytes(8)),
        ({"a": {"dtype": "F32"}}, bytes(8)),
        ({str(i): entry for i in range(3)}, bytes(8)),
    ]:
        refused(safetensors(path, content, body), "not a safetensors file, or damaged")
    path.write_bytes(b"\xff" * 12)
    refused(path, "its header has a length")


def test_imagenet_weights(tmp_path):
    """torchvision's names, from a file that the user names; the last layer stays fresh."""
    network = Resnet(7, width=4)
    fresh = drawn(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    like = {"encoder": fresh["params"]}, {"encoder": fresh["batch_stats"]}
    state = {name.removeprefix("encoder."): value for name, value in theirs(*like, "cbatchnorm").items()}
    state = {name.removeprefix("features."): value + i for i, (name, value) in enumerate(state.items())}
    state["fc.weight"], state["fc.bias"] = np.zeros((1000, 32), np.float32), np.zeros(1000, np.float32)
    header, body = {}, io.BytesIO()
    for name, value in state.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [body.tell(), body.tell() + value.nbytes]}
        body.write(value.tobytes())
    path = safetensors(tmp_path / "resnet.safetensors", header, body.getvalue())
    filled, running = pretrained.imagenet(path, fresh["params"], fresh["batch_stats"])
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, dict(fresh["params"]))
    assert filled["fc"] is fresh["params"]["fc"]
    np.testing.assert_array_equal(filled["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(running["layer2_0"]["bn1"]["mean"], state["layer2.0.bn1.running_mean"])
    del header["layer1.0.conv1.weight"]
    with pytest.raises(FormatError, match=r"- layer1_0.conv1.kernel \[3, 3, 4, 4\]"):
        pretrained.imagenet(safetensors(path, header, body.getvalue()), fresh["params"], fresh["batch_stats"])
