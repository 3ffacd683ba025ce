"""The options of every verb: one dataclass each, in which the comment after a field is its help text.

This module must not import jax, so that `--help` is fast.  Groups of settings (`fitting`, `surfaces`, …) are named as
in a run's config.  Fields of them that are not given keep the model's values, whatever default the help shows.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from jonet.chips import Precision
from jonet.errors import ConfigError
from jonet.settings.fitting import FitConfig, PoseConfig
from jonet.settings.metrics import MetricsConfig
from jonet.settings.representation import Representation
from jonet.settings.surfaces import Surfaces


def positional(metavar: str, help: str):
    """The annotations of a positional argument."""
    return tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help=help)


ModelFolder = Annotated[str, *positional("MODEL", "a run folder or model folder")]
Inputs = Annotated[
    tuple[str, ...],
    *positional("INPUT…", "meshes or point clouds (PLY, XYZ, NPY, NPZ), files or folders, in input units"),
]
Int = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Text = Annotated[str | None, tyro.conf.arg(metavar="STR")]
Format = Literal["ply", "obj", "stl", "glb", "off"]
Units = Literal["um", "mm", "cm", "m", "in", "ft"]
Outliers = Literal["warn", "remove", "keep"]
Axis = Literal["y", "-y", "z", "-z", "x", "-x"]  # as `geometry.axes.Axis`, which needs more imports


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """Options of every verb."""

    quiet: bool = False  # no progress on stderr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computing(Verb):
    """Options of verbs that evaluate a network."""

    # of matrix products off the CPU: highest (full float32), high (three bfloat16), default (one); default: the model's
    precision: Precision | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bulk(Verb):
    """Options of verbs that process many inputs."""

    limit: Int = None  # trial with so many inputs, evenly from the list; estimates time and space of the rest
    retry_failed: bool = False  # process inputs again that failed before
    batch: Int = None  # shapes per batch (default: by the devices)
    shard: Text = None  # I/N: this process takes part I of N parts of the inputs, I from 0
    distributed: Text = None  # ADDRESS:PORT,N,I: process I of N under jax.distributed; auto: detected from the cluster

    def __post_init__(self):
        _check_counts(self, "limit", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Bulk, Computing):
    """Finds the codes of unseen shapes."""

    model: ModelFolder
    inputs: Inputs
    out: str  # codes.npz, or a folder
    # points of a cloud that stand alone, if they are many or enlarge its bounding box (default: removed, and said)
    outliers: Outliers | None = None
    remove_plane: bool = False  # leave out a plane that holds a third of a cloud: a floor or table
    whole: bool = False  # clouds cover their whole surfaces: none is looked at as a part of a shape
    up: Axis = "y"  # axis of the inputs that points up; what is written has the axes of the inputs
    units: Units | None = None  # of the inputs, kept with the codes for extract (default: that which a file names)
    fitting: FitConfig = FitConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(Bulk, Computing):
    """Extracts the meshes of codes."""

    model: ModelFolder
    codes: Annotated[str, *positional("CODES", "codes.npz, or the folder of an unfinished fit")]
    out: str  # folder for the meshes
    format: Format = "ply"  # of the meshes
    units: Units | None = None  # of the codes' inputs, for glb, which counts in meters (default: that of the codes)
    surfaces: Surfaces = Surfaces()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(Bulk, Computing):
    """Finds the codes of shapes and extracts their meshes."""

    model: ModelFolder
    inputs: Inputs
    out: str  # folder for the meshes
    format: Format = "ply"  # of the meshes
    units: Units | None = None  # of the inputs, for glb, which counts in meters (default: that which a file names)
    # points of a cloud that stand alone, if they are many or enlarge its bounding box (default: removed, and said)
    outliers: Outliers | None = None
    remove_plane: bool = False  # leave out a plane that holds a third of a cloud: a floor or table
    whole: bool = False  # clouds cover their whole surfaces: none is looked at as a part of a shape
    up: Axis = "y"  # axis of the inputs that points up; what is written has the axes of the inputs
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Represent(Bulk):
    """Makes each shape a field of its own at once, without a model; also fills holes of scans."""

    inputs: Inputs
    out: str  # folder for the fields, NAME.npz
    format: Format | None = None  # also writes a mesh next to each field, in this format
    units: Units | None = None  # of the inputs, kept with the fields, and for glb (default: that which a file names)
    # points of a cloud that enlarge its bounding box; those that stand alone are always removed (default: removed)
    outliers: Outliers | None = None
    remove_plane: bool = False  # leave out a plane that holds a third of a cloud: a floor or table
    up: Axis = "y"  # axis of the inputs that points up; what is written has the axes of the inputs
    representation: Representation = Representation()
    surfaces: Surfaces = Surfaces(resolution=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Computing):
    """Draws new shapes from the prior of the training codes."""

    model: ModelFolder
    out: str  # folder for the meshes
    count: int = 8  # number of shapes
    seed: int = 0  # seed of the samples
    format: Format = "ply"  # of the meshes
    surfaces: Surfaces = Surfaces()

    def __post_init__(self):
        _check_counts(self, "count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolate(Computing):
    """Interpolates between the codes of two training shapes and extracts the meshes."""

    model: ModelFolder
    a: Annotated[str, *positional("A", "name of a training shape")]
    b: Annotated[str, *positional("B", "name of another one")]
    out: str  # folder for the meshes
    count: int = 8  # number of shapes, including both training shapes
    format: Format = "ply"  # of the meshes
    surfaces: Surfaces = Surfaces()

    def __post_init__(self):
        _check_counts(self, "count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Complete(Computing):
    """Completes a shape from a partial scan; the mesh has the pose and units of the scan."""

    model: str  # a run folder or model folder of DeepSDF
    scan: Annotated[
        str, *positional("SCAN", "a point cloud (PLY, XYZ, NPY, NPZ) or mesh in input units, or a depth PNG")
    ]
    out: str  # folder for the mesh
    format: Format = "ply"  # of the mesh
    units: Units | None = None  # of the scan: printed, and for glb, which counts in meters (default: that of the file)
    known_pose: bool = False  # the axes are the model's, and --center and --radius give position and size
    up: Axis | None = None  # axis of the scan that points up (default: y; for depth images -y)
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)  # with --known-pose: center of the complete bounding box
    radius: float | None = None  # with --known-pose: distance of the shape's farthest vertex (default: the model's)
    eye: tuple[float, float, float] | None = None  # viewpoint of a cloud: gives free space and normals
    whole: bool = False  # the cloud covers the whole surface: nothing is outside its hull
    outliers: Outliers = "warn"  # points of the scan that stand alone, if they are many or far
    remove_plane: bool = False  # leave out a plane that holds a third of a scan: a floor or table
    intrinsics: Text = None  # of a depth image: JSON with fx, fy, cx, cy (default: <name>.json next to it)
    focal: float | None = None  # instead of --intrinsics: focal length in pixels, center in the middle
    scale: float = 1000.0  # gray levels per unit of length in a depth image
    far: float = float("inf")  # depth beyond which pixels of a depth image are background
    pose: PoseConfig = PoseConfig()
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purify(Computing):
    """Cleans point clouds: reconstructs their shapes and samples new points of the surfaces."""

    model: ModelFolder
    inputs: Inputs
    out: str  # folder for the clouds, PLY in input units
    up: Axis = "y"  # axis of the inputs that points up; what is written has the axes of the inputs
    count: Int = None  # points per output cloud (default: as many as the input has, at most 200,000)
    spread: float = 1.1  # outliers are so many standard deviations above the mean distance to their neighbors
    seed: int = 0  # seed of the sampled points
    fitting: FitConfig = FitConfig()
    surfaces: Surfaces = Surfaces()

    def __post_init__(self):
        _check_counts(self, "count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Verb):
    """Scores meshes against the ground truth of the same names."""

    predicted: Annotated[str, *positional("PREDICTED", "a folder of meshes, or one mesh")]
    ground_truth: Annotated[str, *positional("GROUND_TRUTH", "a folder of meshes, or one mesh")]
    json: Text = None  # file for the scores of all shapes
    units: Units | None = None  # of the ground truths: printed, and for GLB in meters (default: that of a file)
    scores: MetricsConfig = MetricsConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Verb):
    """Writes a model as one file that runs without jonet, or (--layout) a store as a folder of samples."""

    source: Annotated[
        str, *positional("SOURCE", "a run or model folder; with --layout a store, or the run folder that holds one")
    ]
    codes: Annotated[
        str | None,
        *positional(
            "CODES", "codes.npz; one code is exported as a function of points, several are stored with the network"
        ),
    ] = None
    out: str  # file (.npz), or with --layout a new folder
    shape: Text = None  # name of the shape to export, among CODES or the training codes
    gradients: bool = False  # the exported function can be differentiated; the file is twice as large
    layout: Literal["deepsdf", "onet"] | None = None  # export a store as samples of DeepSDF or of Occupancy Networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import(Verb):
    """Converts a network trained by the authors' programs (needs PyTorch: pip install torch)."""

    source: Annotated[str, *positional("SOURCE", "DeepSDF experiment folder, or Occupancy Networks' .pt file")]
    out: str  # folder for the model and codes
    checkpoint: Text = None  # name of the checkpoint in the folder (default: latest, or model_best)
    options: Text = None  # YAML config of an Occupancy Network (default: the one in the same folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info(Verb):
    """Prints devices, precision and versions, and describes a model or a field."""

    model: Annotated[str | None, *positional("MODEL", "a run folder or model folder, or the .npz of a field")] = None


def _check_counts(options, *names: str) -> None:
    """ConfigError for counts below 1."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}, but must be 1 or more")
