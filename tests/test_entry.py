"""Every public call of a model and of training refuses what it cannot work with: one error that names the argument,
before any work."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import jonet
from jonet import model as models
from jonet.checks import listed, whole
from jonet.codes import Codes
from jonet.errors import JonetError, shown
from jonet.geometry.mesh import Mesh, Similarity
from jonet.inference.encode import Inputs
from jonet.inference.fitting.prior import Prior
from jonet.model import Model
from jonet.networks.bound import BoundNetwork
from jonet.networks.deepsdf import DeepSDFDecoder, Specs
from jonet.run import train
from jonet.settings.fitting import FitConfig, PoseConfig
from jonet.settings.surfaces import Surfaces
from jonet.tasks import registry
from jonet.tasks.names import BUILT_IN
from jonet.training import autodecoder

pytestmark = pytest.mark.unoptimized

MESH = Mesh(np.eye(3), [[0, 1, 2]], name="mesh")
ROWS = np.random.default_rng(0).normal(size=(2, 8, 4))
CLOUDS = list(ROWS[..., :3])
JUNK = {  # values of every kind; what an argument takes of them is left out by name
    "none": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "one": 1,
    "a share": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "imaginary": 1j,
    "huge": 2**70,
    "minus huge": -(2**70),
    "no text": "",
    "text": "x",
    "text with a null": "a\0b",
    "bytes": b"x",
    "path": Path("/nowhere/at all"),
    "empty list": [],
    "list of none": [None],
    "list of lists": [[]],
    "list of text": ["x", "y", "z"],
    "list of paths": [Path("a.ply"), Path("b.ply"), Path("c.ply")],
    "ragged": [[[1.0, 2.0, 3.0], [1.0]]],
    "mapping": {"nonsense": 1},
    "nothing mapped": {},
    "set": set(),
    "object": object(),
    "type": int,
    "function": len,
    "mesh": MESH,
    "meshes": [MESH],
    "similarity": Similarity(),
    "empty array": np.zeros(0),
    "array of text": np.array("x"),
    "array of five axes": np.zeros((1, 1, 1, 1, 1)),
    "array of an object": np.array(None),
    "complex array": np.zeros((2, 8, 3), complex),
    "dates": np.zeros((2, 8, 3), "datetime64[s]"),
}


class Begun(Exception):
    """Work has begun."""


def begun(*_, **__):
    raise Begun


@pytest.fixture
def before_work(monkeypatch):
    """In place of all work."""
    for module, name in (
        (models.latents, "fit"),
        (models.pose, "fit_pose"),
        (models.encoding, "encode"),
        (models.extraction, "extract"),
        (models.BoundNetwork, "fields"),
        (models.purification, "without_outliers"),
        (train.state, "opened"),
    ):
        monkeypatch.setattr(module, name, begun)


def decoder() -> Model:
    network = DeepSDFDecoder(Specs(latent_size=2, dims=(8, 8), dropout=(), norm_layers=(), latent_in=()))
    shared, codes = jax.device_get(autodecoder.initial(network, 3, jax.random.key(0)))
    return Model("deepsdf", BoundNetwork(network, shared), "sphere", Codes(codes, tuple("abc")), Prior.of(codes))


FITTED = decoder()
ENCODED = {
    kind: dataclasses.replace(FITTED, kind="occupancy", inputs=Inputs(kind, 8))
    for kind in ("points", "voxels", "images", "samples")
}
RESOLUTION = {"none"}
OBSERVED = {"points": {"none"}, "normals": {"none"}, "free_space": {"none", "list of lists"}}
NAMES, SEED, TEXT = {"none"}, {"zero", "one"}, {"text", "path"}
CODE = np.zeros(2, np.float32)
CALLS = {  # valid arguments, and of each that is tried which of JUNK it takes
    "fit samples": (
        FITTED.fit,
        {"samples": ROWS},
        {"samples": set(), "frame": set(), "outliers": {"none"}, "names": NAMES, "config": NAMES},
    ),
    "fit points": (
        FITTED.fit,
        {"points": CLOUDS, "normals": CLOUDS, "free_space": CLOUDS},
        {"points": set(), "normals": {"none"}, "free_space": {"none"}, "frame": set()},
    ),
    "fit points in own units": (
        FITTED.fit,
        {"points": CLOUDS, "normals": CLOUDS, "frame": "input"},
        {"points": set(), "normals": {"none"}},
    ),
    "fit_pose": (
        FITTED.fit_pose,
        {"points": CLOUDS, "normals": CLOUDS, "free_space": CLOUDS},
        {"points": set(), "normals": {"none"}, "free_space": {"none"}, "names": NAMES, "config": NAMES},
    ),
    "encode points": (ENCODED["points"].encode, {"points": CLOUDS}, {"points": set(), "frame": set(), "names": NAMES}),
    "encode samples": (
        ENCODED["samples"].encode,
        {"samples": (ROWS > 0).astype(float)},
        {"samples": set(), "names": NAMES},
    ),
    "encode voxels": (ENCODED["voxels"].encode, {"voxels": np.zeros((2, 8, 8, 8))}, {"voxels": set(), "frame": set()}),
    "encode images": (ENCODED["images"].encode, {"images": np.zeros((2, 8, 8, 3))}, {"images": set(), "names": NAMES}),
    "field": (FITTED.field, {"codes": CODE}, {"codes": set()}),
    "extract": (
        FITTED.extract,
        {"codes": CODE[None]},
        {
            "codes": set(),
            "resolution": RESOLUTION,
            "frame": set(),
            "surfaces": {"none", "nothing mapped"},
        },
    ),
    "reconstruct": (
        FITTED.reconstruct,
        {"samples": ROWS},
        {"samples": set(), "resolution": RESOLUTION, "names": NAMES, "meshes": NAMES},
    ),
    "reconstruct from points": (
        ENCODED["points"].reconstruct,
        {"points": CLOUDS},
        {"points": set(), "resolution": RESOLUTION, "normals": NAMES, "free_space": NAMES},
    ),
    "purify": (
        ENCODED["points"].purify,
        {"points": CLOUDS, "frame": "input"},
        {
            "points": set(),
            "count": {"none", "one"},
            "spread": {"one", "a share", "infinity", "huge"},
            "resolution": RESOLUTION,
            "seed": SEED,
        },
    ),
    "sample": (FITTED.sample, {"count": 2}, {"count": {"one"}, "seed": SEED, "resolution": RESOLUTION}),
    "interpolate": (
        FITTED.interpolate,
        {"a": CODE, "b": FITTED.codes[0], "count": 3},
        {"a": set(), "b": set(), "count": set(), "resolution": RESOLUTION},
    ),
    "load": (jonet.load, {"folder": None}, {"folder": TEXT}),
    "train": (
        jonet.train,
        {"data": "mug"},
        {
            "data": {"text", "path", "mesh", "meshes"},
            "task": set(),
            "workdir": {"none", "text", "path"},
            "preset": {"none"},
            "seed": SEED,
        },
    ),
}
CALLS |= {
    f"jonet.{verb}": (getattr(jonet, verb), {"model": CALLS[like][0].__self__, **CALLS[like][1]}, {"model": set()})
    for verb, like in {
        "fit": "fit samples",
        "fit_pose": "fit_pose",
        "encode": "encode points",
        "field": "field",
        "extract": "extract",
        "reconstruct": "reconstruct",
        "purify": "purify",
        "sample": "sample",
        "interpolate": "interpolate",
    }.items()
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_names_what_is_wrong_before_any_work(before_work, name):
    call, valid, tried = CALLS[name]
    if name != "load":
        with pytest.raises(Begun):
            call(**valid)
    count = 0
    for argument, taken in tried.items():
        assert taken <= JUNK.keys()
        for kind, value in JUNK.items():
            if kind not in taken:
                refused(call, {**valid, argument: value}, argument, kind)
                count += 1
    assert count >= 30


def refused(call, arguments: dict, name: str, kind: str = "") -> str:
    """What a call says of an argument that it refuses."""
    try:
        call(**arguments)
    except JonetError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{name} = {kind or arguments[name]}: {error!r}") from error
    else:
        raise AssertionError(f"{name} = {kind or arguments[name]}: is taken")
    assert name in said and "\n" not in said and len(said) < 500, (kind, said)
    return said


@pytest.mark.parametrize("task", BUILT_IN)
def test_every_option_of_training_is_read_before_any_work(before_work, task):
    """Each option, of groups each of theirs, takes nothing of another type and nothing that is not finite."""

    def each(config, where=()):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            yield (*where, field.name), value
            if dataclasses.is_dataclass(value):
                yield from each(value, (*where, field.name))

    data = "mug,car"
    for path, now in each(registry.find(task).presets["quick"]):
        if path == ("data",):
            continue
        wrong = ["object", "mesh", "nan", "set", "mapping"]
        wrong += (
            ["none"] * (now is not None and path[-1] not in ("minutes", "encoder_width"))
            + ["text"] * (not isinstance(now, str))
            + ["true"] * (now is not False)
        )
        for kind in set(wrong) - ({"true"} if isinstance(now, bool) else set()):
            value = JUNK[kind]
            for name in path[:0:-1]:
                value = {name: value}
            said = refused(jonet.train, {"data": data, "task": task, path[0]: value}, path[0], kind)
            assert path[-1] in said
    known = registry.find(task).presets["quick"]
    for path in ("stepz", "networks"):
        said = refused(jonet.train, {"data": data, "task": task, path: 1}, path)
        assert "did you mean" in said or "known are" in said
    with pytest.raises(Begun):
        jonet.train(data, task, network=known.network, shapes={"train": 3})


@pytest.mark.parametrize(
    "call, arguments, words",
    [
        (FITTED.fit, {"points": CLOUDS[0]}, r"points is one array \[8, 3\]; give a list"),
        (FITTED.fit, {"samples": ROWS[0]}, "samples is one array"),
        (FITTED.fit, {"points": MESH}, "points is a mesh, .*jonet.data.sampling.surface"),
        (FITTED.fit, {"points": [MESH.trimesh()]}, r"points\[0\] is a mesh"),
        (FITTED.fit, {"points": "a.ply"}, "points is a path .*python -m jonet"),
        (FITTED.reconstruct, {"samples": [Path("a.ply")]}, r"samples\[0\] is a path"),
        (FITTED.fit, {"points": CLOUDS, "normals": CLOUDS[:1]}, "normals are of 1 shape, but points of 2"),
        (FITTED.fit, {"points": CLOUDS, "normals": [c[:5] for c in CLOUDS]}, r"normals\[0\] has 5 rows"),
        (FITTED.fit, {"points": CLOUDS, "frame": "input", "normals": ROWS[..., :2]}, r"normals\[0\] must have shape"),
        (FITTED.fit, {"points": [CLOUDS[0], CLOUDS[0][:0]], "frame": "input"}, r"points\[1\] is empty"),
        (FITTED.fit, {"points": [np.ones((5, 3))], "frame": "input"}, r"points\[0\] has no size"),
        (FITTED.fit, {"points": CLOUDS, "frame": Similarity()}, "frame is one similarity; give a list"),
        (FITTED.fit, {"points": CLOUDS, "frame": [Similarity()]}, "list of similarities, one for each of 2"),
        (FITTED.fit, {"samples": ROWS, "normals": CLOUDS}, "normals and free_space belong to points"),
        (FITTED.fit, {"samples": ROWS, "names": ["a"]}, "names has 1 entry for 2 shapes"),
        (FITTED.fit, {"samples": ROWS, "config": PoseConfig()}, "config .*FitConfig"),
        (FITTED.extract, {"codes": FITTED.codes[[]]}, "codes contains no code"),
        (FITTED.extract, {"codes": CODE[None], "surfaces": {"resolutoin": 8}}, "did you mean surfaces.resolution"),
        (
            FITTED.extract,
            {"codes": CODE[None], "resolution": 100, "surfaces": {"method": "mise"}},
            "resolution is 100, .* 32, 64, 128",
        ),
        (FITTED.interpolate, {"a": FITTED.codes, "b": CODE, "count": 3}, "a contains 3 codes, but must be one"),
        (ENCODED["points"].encode, {"points": [CLOUDS[0][:0]]}, r"points\[0\] is empty"),
        (ENCODED["images"].encode, {"images": np.zeros((8, 8, 3))}, "images is one array .* give a list"),
        (jonet.fit, {"model": "runs/mine", "samples": ROWS}, "model is 'runs/mine', .* jonet.load"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(before_work, call, arguments, words):
    with pytest.raises(JonetError, match=words):
        call(**arguments)


@pytest.mark.parametrize("resolution", [0, 1, -5, 5000, 64.0, "64", True])
def test_a_resolution_is_checked_before_codes_are_found(before_work, resolution):
    for call, arguments in (
        (FITTED.reconstruct, {"samples": ROWS}),
        (FITTED.extract, {"codes": CODE[None]}),
        (FITTED.sample, {"count": 2}),
        (FITTED.interpolate, {"a": CODE, "b": CODE, "count": 2}),
        (ENCODED["points"].purify, {"points": CLOUDS}),
    ):
        refused(call, {**arguments, "resolution": resolution}, "resolution")


def test_free_space_may_be_empty(before_work):
    for free_space in ([[], []], [np.zeros((0, 3)), []], [CLOUDS[0], []]):
        with pytest.raises(Begun):
            FITTED.fit(points=CLOUDS, free_space=free_space)


def test_a_file_instead_of_a_model_is_refused(tmp_path):
    cloud = tmp_path / "plain.xyz"
    cloud.write_text("0 0 0\n")
    with pytest.raises(
        JonetError, match="plain.xyz is a file, not a model; expected is a model folder .* the first argument"
    ):
        jonet.load(cloud)


def test_options_of_training_from_python(monkeypatch, tmp_path):
    """Groups as dicts change what they name; steps alone take the place of the preset's minutes."""
    seen = []

    def opened(folder, task, config):
        seen.append(config)
        raise Begun

    def configured(data="mug", task="deepsdf", **options):
        with pytest.raises(Begun):
            jonet.train(data, task, **options)
        return seen.pop()

    monkeypatch.setattr(train.state, "opened", opened)
    quick = registry.find("deepsdf").presets["quick"]
    expected = dataclasses.replace(quick, data="mug", network=dataclasses.replace(quick.network, latent_size=8))
    for network in ({"latent_size": 8}, {"latent_size": np.int64(8)}, expected.network):
        assert configured(network=network) == expected
    nested = configured(fitting={"gauss_newton": {"points": [64, 64, 64]}, "prior": 1})
    assert nested.fitting.gauss_newton.points == (64, 64, 64) and nested.fitting.method == quick.fitting.method
    assert configured() == dataclasses.replace(quick, data="mug")
    for options in ({}, {"minutes": None}, {"minutes": 0}):
        config = configured(steps=20, **options)
        assert (config.steps, config.minutes) == (20, 0)
    assert configured(minutes=5).minutes == 5 and configured(minutes=5).steps == quick.steps
    with pytest.raises(JonetError, match="steps is 20 and minutes 5, but only one of them"):
        jonet.train("mug", steps=20, minutes=5)
    (tmp_path / "one.obj").write_text("")
    single = dataclasses.replace(registry.find("deepsdf").presets["single"], data=str(tmp_path / "one.obj"))
    assert configured(tmp_path / "one.obj") == single
    assert configured(tmp_path / "one.obj", preset="quick").network == quick.network
    assert configured("mug", "occnet", optimizer={"per_shape": {"initial": 2e-3}}).optimizer.per_shape.initial == 2e-3


def test_places_where_no_run_can_be(before_work, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below" / "it", "", "a\0b"):
        refused(jonet.train, {"data": "mug", "workdir": workdir}, "workdir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_checks_themselves():
    assert shown(np.zeros((3, 4))) == "an array of float64 [3, 4]" and len(shown("x" * 1000)) < 70
    assert whole(np.int32(3), "n", 1) == 3
    found = listed([np.zeros((2, 3), np.float32), [[1, 2, 3]]], "points", (None, 3))
    assert [array.dtype for array in found] == [np.float32, np.float64]
    with pytest.raises(JonetError, match="refine_steps is -1"):
        Surfaces(refine_steps=-1)
    assert Surfaces(64, "mise").resolution == 64 and FitConfig().prior == 1e-4
