"""Shape completion: a whole shape from one depth view, by fitting a code of a trained DeepSDF to the seen points.

Park, Florence, Straub, Newcombe, Lovegrove: DeepSDF, CVPR 2019, sections 5 and 6.3.

    python experiments/run.py --task=deepsdf_completion                       unseen chairs, minutes on 2 cores
    python experiments/run.py --task=deepsdf_completion --data=FOLDER         the same with your own meshes
    python experiments/run.py --task=deepsdf_completion --data=FOLDER --model=RUN    with a network trained before
    python experiments/run.py --task=deepsdf_completion --view.pose=similarity    position and scale are fitted, too
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np

from jonet.codes import Codes
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.geometry import depth, rays
from jonet.geometry.mesh import Similarity
from jonet.model import Model, load
from jonet.settings.fitting import FitConfig, PoseConfig
from jonet.storage.names import encoded
from jonet.tasks import deepsdf
from jonet.tasks.deepsdf import DeepSDF
from jonet.wording import counted


@dataclasses.dataclass(frozen=True)
class View:
    """The depth view of each shape, and what is known of its pose."""

    pixels: int = 160  # pixels per side of the view, 8 or more
    distance: float = 2.5  # distance of the camera from the center of the normalized frame, above 1
    # range of the camera's elevation in degrees, drawn uniformly; the azimuth is uniform over all directions
    elevation: tuple[float, float] = (0.0, 45.0)
    # standard deviation of the depth noise in the normalized frame, 0 or more; with noise, normals are estimated
    noise: float = 0.0
    background: bool = True  # sample free space also on rays that hit nothing (paper: only in front of the shape)
    # known: the scan is in the normalized frame; yaw: its rotation about the vertical axis is unknown; similarity: also
    # its position and scale are
    pose: Literal["known", "yaw", "similarity"] = "known"

    def __post_init__(self):
        if self.pixels < 8 or self.distance <= 1 or self.noise < 0:
            raise ConfigError("view.pixels must be at least 8, view.distance above 1 and view.noise 0 or more")


@dataclasses.dataclass(frozen=True)
class Config(deepsdf.Config):
    """Options of shape completion with DeepSDF."""

    model: str = ""  # run or model folder of a trained DeepSDF; empty: one is trained first
    view: View = View()  # the depth view of each shape
    # how codes are fitted where view.pose is known; fitting.offset is η, the distance of points before and behind the
    # surface
    fitting: FitConfig = FitConfig(prior=1e-3)
    pose: PoseConfig = PoseConfig(tries=32, keep=(8, 2, 1))  # how code and pose are fitted where view.pose is not known

    def unread(self) -> dict[str, str]:
        """As for DeepSDF, settings of training beside a given model, and those that view.pose leaves unused."""
        pose, unread = self.view.pose, super().unread()
        if self.model:
            training = set(DeepSDF.parts["train"]) - {"seed"}
            unread |= dict.fromkeys(training, f"model is {self.model}, so no network is trained")
        if pose == "known":
            return unread | {"pose": "view.pose is known, so only the code is fitted"}
        if pose == "yaw":
            unread |= dict.fromkeys(("pose.radius", "pose.spread"), "view.pose is yaw, so position and scale are known")
        return unread | {"fitting": f"view.pose is {pose}, so code and pose are fitted by pose.fitting"}


def _completing(config: deepsdf.Config, **changes) -> Config:
    """The options of a DeepSDF as options of completion, with some changed."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Config(**parts | {"fitting": FitConfig(prior=1e-3), "generated": 0} | changes)


class Scan(NamedTuple):
    """A view of a shape as points, normals and free space [N, 3], and the similarity normalized frame → their frame."""

    points: np.ndarray
    normals: np.ndarray
    free_space: np.ndarray
    transform: Similarity


def taken(config: Config, store: Store, shape: int) -> depth.Depth:
    """The depth view of a shape in the normalized frame, the same in every call."""
    rng = _rng(config, "view", store.names[shape])
    view = config.view
    towards_camera = rays.direction((rng.uniform(-180, 180), rng.uniform(*view.elevation)))
    focal = view.pixels / 2 * np.sqrt(view.distance**2 - 1)  # the unit ball fills the image
    camera = rays.Camera.towards(towards_camera, (0, 0, 0), view.distance, focal, (view.pixels, view.pixels))
    return depth.view(store.mesh(shape), camera, view.noise, rng)


def scan(config: Config, store: Store, shape: int) -> Scan:
    """The view as points; unless `view.pose` is known, in a frame with the random pose that has to be found."""
    seen, rng = taken(config, store, shape), _rng(config, "scan", store.names[shape])
    points, normals = seen.surface()
    free_space = seen.free_space(len(points), rng, margin=2 * config.view.noise, background=config.view.background)
    transform = Similarity()
    if config.view.pose != "known":
        sine, cosine = np.sin(angle := rng.uniform(0, 2 * np.pi)), np.cos(angle)
        rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        if config.view.pose == "similarity":
            transform = Similarity(np.exp(rng.normal(0, 1)), rotation, rng.normal(0, 1, 3))
        else:
            transform = Similarity(rotation=rotation)
    return Scan(transform(points), normals @ transform.rotation.T, transform(free_space), transform)


def _rng(config: Config, what: str, name: str) -> np.random.Generator:
    return np.random.default_rng([config.seed, zlib.crc32(what.encode()), zlib.crc32(encoded(name))])


class DeepSDFCompletion(DeepSDF):
    """DeepSDF, with codes of unseen shapes fitted to one depth view."""

    name = "deepsdf_completion"
    title = "Completion from one depth view, DeepSDF"
    config = Config
    presets = {
        "quick": _completing(DeepSDF.presets["quick"]),
        "small": _completing(DeepSDF.presets["small"]),
        "paper": _completing(DeepSDF.presets["paper"], fitting=FitConfig(method="adam"), view=View(background=False)),
    }
    parts = {
        **DeepSDF.parts,
        "train": ("model", *DeepSDF.parts["train"]),
        "reconstruct": ("view", "pose", *DeepSDF.parts["reconstruct"]),
    }

    def usual_preset(self, data: str) -> str:
        """The default preset."""
        return "quick"

    def given_model(self, config: Config) -> Model | None:
        """The model named by the option `model`; ConfigError if it is not a DeepSDF with codes."""
        if not config.model:
            return None
        trained = load(config.model)
        if not trained.is_fitted or trained.frame != self.frame or not trained.config.latent_size:
            raise ConfigError(
                f"model {config.model} is not a DeepSDF whose codes are fitted; give a run of deepsdf, "
                "deepsdf_completion or deepsdf_points"
            )
        return trained

    def observe(self, config: Config, trained: Model, store: Store, shapes) -> Codes:
        """Codes of unseen shapes of the store, each fitted to one view, with its pose unless that is known."""
        names, to_normalized = [store.names[i] for i in shapes], [store.similarities[i] for i in shapes]
        points, normals, free_space, transforms = zip(*(scan(config, store, i) for i in shapes), strict=True)
        if config.view.pose == "known":
            return trained.fit(points=points, normals=normals, free_space=free_space, names=names).placed(to_normalized)
        pose = config.pose
        if config.view.pose == "yaw":
            pose = dataclasses.replace(pose, radius=0.0, spread=0.02)
        codes = trained.fit_pose(points, normals=normals, free_space=free_space, names=names, config=pose)
        found = zip(codes.similarities or (), transforms, to_normalized, strict=True)
        return codes.placed([pose @ transform @ similarity for pose, transform, similarity in found])

    def scored(self, config: Config, trained: Model, store: Store, codes: Codes) -> list[dict[str, Any]]:
        """Per shape: the quality of its fit; `turned_by`, the angle in degrees between fitted and true rotation."""
        rows = super().scored(config, trained, store, codes)
        if config.view.pose != "known":
            true = {name: transform.rotation for name, transform in zip(store.names, store.similarities, strict=True)}
            for row, name, transform in zip(rows, codes.names, codes.similarities or (), strict=True):
                cosine = (np.trace(transform.rotation @ true[name].T) - 1) / 2
                row["turned_by"] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        return rows

    def inputs(self, config: Config, store: Store, shape: int) -> list[Part]:
        """The view and its points as shown in the report; none for training shapes."""
        if store.splits[shape] != "test":
            return []
        seen = taken(config, store, shape)
        points = seen.surface()[0]
        return [
            Part("input", "the view", seen.picture()),
            Part("input", f"{counted(len(points), 'point')} seen", points),
        ]

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes, None if unknown."""
        learned = "" if trained is None else f" The network was trained on {counted(trained, 'other shape')}."
        return (
            f"{counted(unseen, 'unseen shape')}, each completed from one depth view; metrics are of the whole shape, "
            f"hidden parts included.{learned}"
        )


TASK = DeepSDFCompletion()
