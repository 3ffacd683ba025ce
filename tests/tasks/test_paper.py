"""The presets `paper`: every constant with its source, epochs of the data at hand, and data that the user names.

Sources: `specs` is DeepSDF's examples/chairs/specs.json; `PreprocessMesh`, `reconstruct`, `mesh` and `train_deep_sdf`
are its programs; `default.yaml`, `pointcloud`, `voxels`, `img` and `unconditional` are Occupancy Networks' configs
(configs/*/onet.yaml), `train.py`, `sample_mesh` and `generation` its programs; `seed` the classic notebook.
"""

import dataclasses
import inspect

import program
import pytest

from jonet import config as configs
from jonet.data import sampling
from jonet.data.sampling import RECIPES, Recipe
from jonet.data.sources import Procedural
from jonet.errors import ConfigError
from jonet.geometry import fusion, shell
from jonet.inference.fitting import first_order
from jonet.networks import occupancy
from jonet.networks.deepsdf import Specs
from jonet.run import plan, train
from jonet.settings import surfaces
from jonet.tasks import registry
from jonet.tasks.shapes import NO_DATA, Shapes
from jonet.training.autodecoder import AutoDecoder

pytestmark = pytest.mark.unoptimized

ADAM = {  # train.py: Adam(lr=1e-4), PyTorch's defaults, no schedule, no decay, no clipping
    "optimizer.name": ("adam", "train.py"),
    "optimizer.shared.kind": ("constant", "train.py"),
    "optimizer.shared.initial": (1e-4, "train.py"),
    "optimizer.per_shape.kind": ("constant", "train.py"),
    "optimizer.per_shape.initial": (1e-4, "train.py"),
    "optimizer.clip": (0.0, "train.py"),
}
ONET = ADAM | {
    "shapes.sign": ("fusion", "build.sh of dataset_shapenet: mesh-fusion"),
    "samples.surface": (100_000, "sample_mesh --pointcloud_size"),
    "samples.occupancies": (100_000, "sample_mesh --points_size"),
    "samples.padding": (0.1, "sample_mesh --points_padding"),
    "samples.near_occupancies": (0, "sample_mesh --points_uniform_ratio 1.0"),
    "samples.sigma": (0.01, "sample_mesh --points_sigma"),
    "samples.voxels": ("none", "build.sh: model.binvox is of the voxel task"),
    "samples.images": (0, "img_choy2016 is of the image task"),
    "points_sampling": ("uniform", "default.yaml data.points_subsample: one number"),
    "compute_dtype": ("float32", "PyTorch's default"),
    "batch_shapes": (64, "default.yaml training.batch_size"),
    "batch_points": (2048, "configs data.points_subsample"),
    "steps": (300_000, "paper, supplement: 300k iterations; the program's loop has no end"),
    "minutes": (0.0, "as steps"),
    "validate_every": (2000, "default.yaml training.validate_every"),
    "patience": (0, "train.py: nothing stops it"),
    "ema_decay": (0.0, "train.py: the weights themselves"),
    "kl_weight": (1.0, "training.py compute_loss: loss + kl"),
    "network.decoder": ("cbatchnorm", "configs model.decoder"),
    "network.c_dim": (256, "configs model.c_dim"),
    "network.z_dim": (0, "configs model.z_dim"),
    "network.hidden_size": (256, "decoder_kwargs: DecoderCBatchNorm's default"),
    "network.n_blocks": (5, "DecoderCBatchNorm"),
    "network.leaky": (False, "DecoderCBatchNorm's default"),
    "network.norm": ("batch", "CBatchNorm1d norm_method"),
    "network.encoder_width": (None, "the encoder's default"),
    "network.latent_leaky": (False, "encoder_latent_kwargs"),
    "network.threshold": (0.2, "configs test.threshold"),
    "surfaces.resolution": (128, "default.yaml resolution_0 32, upsampling_steps 2"),
    "surfaces.method": ("mise", "generation: MISE"),
    "surfaces.threshold": (None, "that of the network"),
    "surfaces.faces": (0, "default.yaml simplify_nfaces null"),
    "surfaces.rmsprop_steps": (0, "default.yaml refinement_step 0"),
    "surfaces.largest": (False, "generation: all components"),
    "scores.volume_points": (100_000, "eval_meshes: points_iou.npz"),
    "scores.surface_points": (100_000, "eval_meshes: MeshEvaluator(n_points=100000)"),
}
DEEPSDF = {
    "shapes.train": (3281, "sv2_chairs_train.json"),
    "shapes.test": (832, "sv2_chairs_test.json"),
    "shapes.sign": ("views", "PreprocessMesh: votes of what 100 cameras see"),
    "samples.near": (470_000, "PreprocessMesh: 47/50 of 500,000"),
    "samples.uniform": (30_000, "PreprocessMesh: the other 3/50"),
    "samples.variances": ([0.005, 0.0005], "PreprocessMesh: variance, variance / 10"),
    "samples.published_test": (True, "preprocess_data.py --test: PreprocessMesh -t"),
    "samples.region": ("cube", "PreprocessMesh: [-1, 1]³"),
    "samples.unanimous": (True, "PreprocessMesh: others are dropped"),
    "samples.surface": (30_000, "SampleVisibleMeshSurface"),
    "network.latent_size": (256, "specs CodeLength"),
    "network.dims": ([512] * 8, "specs NetworkSpecs.dims"),
    "network.dropout": ([*range(8)], "specs NetworkSpecs.dropout"),
    "network.dropout_prob": (0.2, "specs NetworkSpecs.dropout_prob"),
    "network.norm_layers": ([*range(8)], "specs NetworkSpecs.norm_layers"),
    "network.latent_in": ([4], "specs NetworkSpecs.latent_in"),
    "network.weight_norm": (True, "specs NetworkSpecs.weight_norm"),
    "network.xyz_in_all": (False, "specs NetworkSpecs.xyz_in_all"),
    "network.use_tanh": (False, "specs NetworkSpecs.use_tanh"),
    "network.latent_dropout": (False, "specs NetworkSpecs.latent_dropout"),
    "compute_dtype": ("float32", "PyTorch's default"),
    "learning.clamp": (0.1, "specs ClampingDistance"),
    "learning.prior": ("program", "train_deep_sdf"),
    "learning.prior_weight": (1e-4, "specs CodeRegularizationLambda"),
    "learning.prior_ramp": (100, "train_deep_sdf: min(1, epoch / 100)"),
    "learning.code_bound": (1.0, "specs CodeBound"),
    "learning.code_std": (1.0, "train_deep_sdf: default of CodeInitStdDev"),
    "learning.start": ("published", "PyTorch's initialization"),
    "optimizer.name": ("adam", "train_deep_sdf"),
    "optimizer.shared.kind": ("step", "specs LearningRateSchedule[0].Type"),
    "optimizer.shared.initial": (5e-4, "specs LearningRateSchedule[0].Initial"),
    "optimizer.shared.interval": (500, "specs LearningRateSchedule[0].Interval"),
    "optimizer.shared.factor": (0.5, "specs LearningRateSchedule[0].Factor"),
    "optimizer.per_shape.kind": ("step", "specs LearningRateSchedule[1].Type"),
    "optimizer.per_shape.initial": (1e-3, "specs LearningRateSchedule[1].Initial"),
    "optimizer.per_shape.interval": (500, "specs LearningRateSchedule[1].Interval"),
    "optimizer.per_shape.factor": (0.5, "specs LearningRateSchedule[1].Factor"),
    "optimizer.clip": (0.0, "specs: no GradientClipNorm"),
    "batch_shapes": (64, "specs ScenesPerBatch"),
    "batch_points": (16384, "specs SamplesPerScene"),
    "epochs": (2001, "specs NumEpochs"),
    "minutes": (0.0, "as epochs"),
    "fitting.method": ("adam", "reconstruct"),
    "fitting.clamp": (0.1, "reconstruct: clamp_dist"),
    "fitting.prior_sigma": (0.0, "reconstruct: l2reg has a weight of its own"),
    "fitting.adam.steps": (800, "reconstruct --iters"),
    "fitting.adam.rows": (8000, "reconstruct: num_samples"),
    "fitting.adam.rate": (5e-3, "reconstruct: lr"),
    "fitting.adam.drop": (0.1, "reconstruct: decreased_by 10"),
    "fitting.adam.decay": (1e-4, "reconstruct: l2reg"),
    "fitting.adam.draw": ("windows", "unpack_sdf_samples_from_ram"),
    "fitting.adam.start": ("noise", "reconstruct: N(0, 0.01²)"),
    "surfaces.resolution": (255, "mesh.create_mesh N=256 samples"),
    "surfaces.largest": (False, "mesh"),
    "surfaces.faces": (0, "mesh"),
    "scores.chamfer_points": (30_000, "metrics.chamfer"),
    "scores.accuracy_points": (1000, "paper, section 6 and supplement"),
    "scores.emd_points": (500, "paper, section 6 and supplement"),
}
CONSTANTS = {
    "deepsdf": DEEPSDF,
    "deepsdf_completion": DEEPSDF
    | {
        "view.background": (False, "paper, section 6.3: free space between surface and camera"),
        "view.pose": ("known", "paper, section 6.3: canonical"),
        "view.noise": (0.0, "paper, section 6.3: rendered depth"),
    },
    "onet_points": ONET
    | {
        "network.encoder": ("pointnet_resnet", "pointcloud model.encoder"),
        "network.c_dim": (512, "pointcloud model.c_dim"),
        "inputs.points": (300, "pointcloud data.pointcloud_n"),
        "inputs.noise": (0.005, "pointcloud data.pointcloud_noise"),
        "inputs.scale_augmentation": (0.0, "pointcloud: none"),
    },
    "onet_voxels": ONET
    | {
        "samples.voxels": ("ray", "voxels.py: VoxelGrid.from_mesh"),
        "network.encoder": ("voxel_simple", "voxels model.encoder"),
        "batch_points": (1024, "voxels data.points_subsample"),
        "inputs.cells": (32, "voxels: model.binvox of 32³"),
    },
    "onet_images": ONET
    | {
        "samples.images": (24, "img_choy2016: 24 views"),
        "samples.image_size": (224, "default.yaml data.img_size"),
        "network.encoder": ("resnet18", "img model.encoder"),
        "inputs.size": (224, "default.yaml data.img_size"),
        "validate_every": (20_000, "img training.validate_every"),
    },
    "onet_unconditional": ONET
    | {
        "network.decoder": ("simple", "unconditional model.decoder"),
        "network.encoder": ("null", "unconditional model.encoder null"),
        "network.c_dim": (0, "unconditional model.c_dim"),
        "network.z_dim": (128, "unconditional model.z_dim"),
        "network.hidden_size": (128, "Decoder's default"),
        "inputs.points": (2048, "unconditional data.points_subsample: the encoder sees the points of the loss"),
    },
    "occnet": {
        "samples.occupancies": (100_000, "seed: 100k points"),
        "network.dims": ([64] * 5, "seed: size_h 64, 3 → 64 and n_hidden 4"),
        "network.threshold": (0.5, "seed: a classifier"),
        "optimizer.per_shape.kind": ("constant", "seed: torch.optim.Adam"),
        "optimizer.per_shape.initial": (1e-3, "seed: torch.optim.Adam's default"),
        "held_out": (0.2, "seed: 80 % and 20 %"),
        "validate_every": (1, "seed: every epoch"),
        "patience": (0, "seed: the best model is saved, nothing stops"),
        "surfaces.threshold": (None, "that of the network"),
    },
}
OURS = {  # options that no paper or program has, with what they are; a name ending in a dot is a group
    "seed": "nothing is seeded there",
    "data": "the user's",
    "shapes.test_fraction": "of folders without splits",
    "shapes.val_fraction": "of data without validation shapes",
    "shapes.split": "the user's",
    "shapes.category": "the user's",
    "representation": "networks",
    "spline.": "not read by networks",
    "learning.prior_sigma": "not read with the prior of the program",
    "learning.micro_batch": "memory, not results",
    "optimizer.shared.final": "not read by step and constant",
    "optimizer.shared.length": "not read by step and constant",
    "optimizer.per_shape.final": "not read by step and constant",
    "optimizer.per_shape.length": "not read by step and constant",
    "optimizer.weight_decay": "not read by adam",
    "cpu.": "not read where the batch is given",
    "gpu.": "not read where the batch is given",
    "tpu.": "not read where the batch is given",
    "draw": "rows as published where they fit",
    "place": "memory, not results",
    "steps": "not read beside epochs",
    "fitting.": "of methods that are not the published one",
    "surfaces.": "jonet's extraction; published is an option",
    "precision": "of matrix products off the CPU",
    "scores.": "of scores that the paper has not",
    "rebuilt_train": "of the report",
    "generated": "of the report",
    "model": "the user's",
    "weights": "the user's",
    "view.": "a camera, of which the paper gives no numbers",
    "pose.": "not read where the pose is known",
    "inputs.": "given by the network",
    "samples.": "not of this task",
    "shapes.": "procedural shapes, which are not read with data",
    "optimizer.": "not read by a constant rate",
    "batch_points": "not given by the seed",
    "epochs": "not given by the seed",
}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("task", CONSTANTS)
def test_every_constant_of_a_paper_preset_has_its_source(task):
    values = flat(configs.to_dict(registry.find(task).presets["paper"]))
    for name, (value, source) in CONSTANTS[task].items():
        assert values[name] == value, f"{name}, of {source}"
    rest = values.keys() - CONSTANTS[task].keys()
    assert not [n for n in rest if not any(n == own or (own[-1] == "." and n.startswith(own)) for own in OURS)]


def test_purification_learns_as_published_from_points():
    """IF-Defense takes Occupancy Networks as they are; it has classes of its own."""
    ours, theirs = (flat(configs.to_dict(registry.find(task).presets["paper"])) for task in ("purify", "onet_points"))
    assert {name for name in theirs if ours[name] != theirs[name]} <= {"data", "shapes.train", "shapes.test"}


def test_what_the_tables_have_no_option_for():
    """Constants of the same sources that stand in the code."""
    assert (first_order.MEAN, first_order.SQUARE, first_order.EPSILON, first_order.NOISE) == (0.9, 0.999, 1e-8, 0.01)
    assert sampling.VOTERS == 11 and surfaces.COARSE == 32 and occupancy.HALF == 0.55
    defaults = [inspect.signature(function).parameters for function in (fusion.fuse, shell.shell)]
    assert [(each["resolution"].default, each["views"].default) for each in defaults] == [(256, 100), (400, 100)]
    assert (fusion.SIDE, fusion.OFFSET, fusion.TRUNCATION) == (0.9, 1.5, 10)


def test_test_shapes_are_sampled_as_the_program_samples_them():
    recipe = dataclasses.replace(RECIPES["deepsdf"], published_test=True)
    assert recipe.of("train") == recipe and recipe.of("val") == recipe
    assert dataclasses.replace(recipe.of("test"), published_test=False) == RECIPES["deepsdf_test"]
    few = Recipe(near=400, uniform=40, surface=10, published_test=True, variances=(0.005, 0.0005))
    counts = {
        split: sum(map(len, Procedural("mug", split=split).shape(few, seed=0, frame="sphere", sign="auto").rows["sdf"]))
        for split in ("train", "test")
    }
    assert counts == {"train": 440, "test": 220}


@pytest.mark.parametrize(("shapes", "steps"), [(16, 1), (64, 1), (200, 3), (3281, 51)])
def test_epochs_are_those_of_the_data_at_hand(shapes, steps):
    task = registry.find("deepsdf")
    small = {"network": Specs(latent_size=4, dims=(8, 8), latent_in=(), norm_layers=(), dropout=())}
    config = dataclasses.replace(
        task.presets["paper"], data="mug", shapes=Shapes(train=shapes, test=0), **small, learning=AutoDecoder()
    )
    assert plan.make(task, config, "v5e").training.steps == 2001 * steps
    schedule = config.optimizer.shared
    assert schedule(500, 0.0) == schedule(1, 0.0) / 2  # by epochs, of which each has so many steps


@pytest.mark.parametrize("task", [task for task in CONSTANTS if task != "occnet"])
def test_published_settings_ask_for_data(task):
    with pytest.raises(ConfigError, match="no data are named"):
        program.parse([f"--task={task}", "--preset=paper"])
    config = program.parse([f"--task={task}", "--preset=paper", "--data=chair"])[1]
    assert config.data == "chair"
    with pytest.raises(ConfigError, match="no data are named"):
        Shapes().sources("", 0)
    assert "--data=FOLDER" in NO_DATA


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, (0.0, 2001)),
        ({"minutes": 3.0}, (3.0, 0)),
        ({"steps": 7}, (0.0, 0)),
        ({"epochs": 5}, (0.0, 5)),
        ({"epochs": 0, "steps": 7}, (0.0, 0)),
    ],
)
def test_one_of_steps_minutes_and_epochs_says_how_long(given, left):
    config = train.configured(registry.find("deepsdf"), "paper", {"data": "chair", **given})
    assert (config.minutes, config.epochs) == left and config.steps == given.get("steps", 10_000)
    quick = train.configured(registry.find("deepsdf"), "quick", {"data": "chair", "epochs": 3})
    assert (quick.minutes, quick.epochs) == (0.0, 3)
    with pytest.raises(ConfigError, match="minutes is 2 and epochs 3, but only one of them"):
        train.configured(registry.find("deepsdf"), "quick", {"data": "chair", "epochs": 3, "minutes": 2})
