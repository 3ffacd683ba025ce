"""Shape completion: the whole of a shape from one depth view, by fitting a code of a DeepSDF space to what was seen.

Park, Florence, Straub, Newcombe, Lovegrove: DeepSDF, CVPR 2019, sections 5 and 6.3.

    python experiments/run.py --task=deepsdf_completion                          minutes on 2 cores: unseen chairs
    python experiments/run.py --task=deepsdf_completion --data=FOLDER            the same on meshes of your own
    python experiments/run.py --task=deepsdf_completion --data=FOLDER --model=RUN     in a space trained before
    python experiments/run.py --task=deepsdf_completion --view.pose=unknown      turn, place and size are found as well
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Literal, NamedTuple

import numpy as np

from jonet.codes import Codes
from jonet.data import depth, rays
from jonet.data.meshes import Similarity
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.evaluation.gallery import Part
from jonet.inference.latents import FitConfig
from jonet.inference.pose import PoseConfig
from jonet.model import Model, load
from jonet.storage.names import encoded
from jonet.tasks import deepsdf
from jonet.tasks.deepsdf import FRAME, adjusted, model
from jonet.tasks.problem import Problem
from jonet.tasks.unseen import unseen

__all__ = ["FRAME", "adjusted", "model"]

NAME = "deepsdf_completion"
TITLE = "Completion from one depth view, DeepSDF"


@dataclasses.dataclass(frozen=True)
class View:
    """The depth view of each shape, and what is known of how it was taken."""

    pixels: int = 160  # a side
    distance: float = 2.5  # of the camera from the middle of the normalised frame
    elevation: tuple[float, float] = (0.0, 45.0)  # of the camera, degrees, drawn evenly, as is the turn all round
    noise: float = 0.0  # standard deviation of the depths in the normalised frame; with it normals are estimated
    background: bool = True  # free space also on rays that meet nothing (the paper's lie before the shape alone)
    pose: Literal["known", "turned", "unknown"] = "known"  # turned: about the vertical; unknown: place and size, too

    def __post_init__(self):
        if self.pixels < 8 or self.distance <= 1 or self.noise < 0:
            raise ConfigError("view.pixels is at least 8, view.distance above 1 and view.noise not below 0")


@dataclasses.dataclass(frozen=True)
class Config(deepsdf.Config):
    """Options of completion; the comment beside each is its help."""

    model: str = ""  # run or model folder of a space trained before; without it one is trained
    view: View = View()
    fitting: FitConfig = FitConfig(prior=1e-3)  # fitting.offset is η, the distance before and behind the surface
    pose: PoseConfig = PoseConfig(tries=32, keep=(8, 2, 1))  # where the pose is not known

    def unread(self) -> dict[str, str]:
        """As of DeepSDF, and the settings of the other of both ways to find codes."""
        pose, unread = self.view.pose, super().unread()
        if pose == "known":
            return unread | {"pose": "view.pose is known, so that fitting finds the code alone"}
        if pose == "turned":
            unread |= dict.fromkeys(("pose.radius", "pose.spread"), "view.pose is turned: place and size are known")
        return unread | {"fitting": f"view.pose is {pose}, so that pose.fitting finds code and pose"}


def _completing(config: deepsdf.Config, **changes) -> Config:
    """The options of a DeepSDF, and of completion with it."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Config(**parts | {"fitting": FitConfig(prior=1e-3), "generated": 0} | changes)


PRESETS = {
    "quick": _completing(deepsdf.PRESETS["quick"]),
    "small": _completing(deepsdf.PRESETS["small"]),
    "paper": _completing(deepsdf.PRESETS["paper"], fitting=FitConfig(method="adam"), view=View(background=False)),
}

PARTS = {
    **deepsdf.PARTS,
    "train": ("model", *deepsdf.PARTS["train"]),
    "reconstruct": ("view", "pose", *deepsdf.PARTS["reconstruct"]),
}


def usual_preset(data: str) -> str:
    """The preset where none is asked for."""
    return "quick"


def check(config: Config) -> Model | None:
    """The model that was trained before, if one is named; ConfigError where it is no space that codes are fitted in."""
    if not config.model:
        return None
    trained = load(config.model)
    if trained.kind != "deepsdf" or trained.frame != FRAME or not trained.config.latent_size:
        raise ConfigError(
            f"model {config.model} is no space of shapes in which codes are fitted; give a run of deepsdf or "
            "deepsdf_completion"
        )
    return trained


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem | Model:
    """Training of the space, or the model that was trained before, which must not have seen all test shapes."""
    if trained := check(config):
        unseen(store, trained)
        return trained
    return deepsdf.problem(config, store, shapes, key, chosen)


class Scan(NamedTuple):
    """What was seen of a shape: points, normals and free space [N, 3], and the way there from the normalised frame."""

    points: np.ndarray
    normals: np.ndarray
    free: np.ndarray
    way: Similarity


def taken(config: Config, store: Store, shape: int) -> depth.Depth:
    """The one view of a shape, in the normalised frame: the same whenever it is asked for."""
    rng = _rng(config, "view", store.names[shape])
    view = config.view
    back = rays.direction((rng.uniform(-180, 180), rng.uniform(*view.elevation)))
    focal = view.pixels / 2 * np.sqrt(view.distance**2 - 1)  # the unit ball fills the picture
    camera = rays.Camera.towards(back, (0, 0, 0), view.distance, focal, (view.pixels, view.pixels))
    return depth.view(store.mesh(shape), camera, view.noise, rng)


def scan(config: Config, store: Store, shape: int) -> Scan:
    """The view as points, in the frame of somebody who knows no more of the pose than `view.pose` says."""
    seen, rng = taken(config, store, shape), _rng(config, "scan", store.names[shape])
    points, normals = seen.surface()
    free = seen.free(len(points), rng, margin=2 * config.view.noise, background=config.view.background)
    way = Similarity()
    if config.view.pose != "known":
        sine, cosine = np.sin(angle := rng.uniform(0, 2 * np.pi)), np.cos(angle)
        turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        loose = config.view.pose == "unknown"
        way = Similarity(np.exp(rng.normal(0, 1)), turn, rng.normal(0, 1, 3)) if loose else Similarity(rotation=turn)
    return Scan(way(points), normals @ way.rotation.T, way(free), way)


def _rng(config: Config, what: str, name: str) -> np.random.Generator:
    return np.random.default_rng([config.seed, zlib.crc32(what.encode()), zlib.crc32(encoded(name))])


def observe(config: Config, trained: Model, store: Store, shapes) -> Codes:
    """Codes of shapes of the store that training never saw, each fitted to one view, and with them the poses."""
    names, own = [store.names[i] for i in shapes], [store.similarities[i] for i in shapes]
    points, normals, free, ways = zip(*(scan(config, store, i) for i in shapes), strict=True)
    if config.view.pose == "known":
        return trained.fit(points=points, normals=normals, free=free, names=names).placed(own)
    pose = config.pose
    if config.view.pose == "turned":
        pose = dataclasses.replace(pose, radius=0.0, spread=0.02)
    codes = trained.fit_pose(points, normals=normals, free=free, names=names, config=pose)
    found = zip(codes.similarities, ways, own, strict=True)
    return codes.placed([pose @ way @ there for pose, way, there in found])


def scored(config: Config, trained: Model, store: Store, codes: Codes) -> list[dict]:
    """What fitting says of each shape, and by how many degrees the pose that it found is turned."""
    rows = deepsdf.scored(config, trained, store, codes)
    if config.view.pose != "known":
        own = {name: way.rotation for name, way in zip(store.names, store.similarities, strict=True)}
        for row, name, way in zip(rows, codes.names, codes.similarities, strict=True):
            cosine = (np.trace(way.rotation @ own[name].T) - 1) / 2
            row["turned_by"] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return rows


def inputs(config: Config, store: Store, shape: int) -> list:
    """What was seen of an unseen shape, for the report."""
    if store.splits[shape] != "test":
        return []
    seen = taken(config, store, shape)
    points = seen.surface()[0]
    return [Part("input", "the view", seen.picture()), Part("input", f"{len(points):,} points seen", points)]


def summary(unseen: int, known: int | None) -> str:
    """The report's first sentence.  known: how many shapes the space was learned from, None where it does not say."""
    learned = "" if known is None else f" The space was learned from {known} others."
    return (
        f"{unseen} shapes that the network never saw, each completed from one depth view; scores are of the whole "
        f"shape, hidden parts included.{learned}"
    )
