"""Occupancy Networks from one image: a picture of a shape becomes the whole shape, in one pass.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3 and 4.2.

    python experiments/run.py --task=onet_images                  5 to 6 minutes on 2 cores
    python experiments/run.py --task=onet_images --data=FOLDER    the same on meshes of your own
    python experiments/run.py --task=onet_images --preset=paper   the published settings, for accelerators

Each shape is rendered from 24 places by `data/images.py`; a training step sees one of them.  Shapes keep their own
axes, whatever the camera.  The encoder's weights start at random unless `--weights` names ImageNet's (published), as a
torchvision .pth or a .safetensors file.  Unseen chairs from pictures of 64 pixels a side: median IoU 0.61 (the nearest
training shape, which is chosen by looking at the truth: 0.61), Chamfer-L1 0.015 of the longest side.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.networks.occupancy import Specs
from jonet.networks.pretrained import imagenet
from jonet.tasks import onet
from jonet.tasks.inputs import View
from jonet.tasks.onet import FRAME, VALIDATED, adjusted, inputs, model, observe, scored, usual_preset
from jonet.tasks.problem import Problem

__all__ = ["FRAME", "VALIDATED", "adjusted", "inputs", "model", "observe", "scored", "usual_preset"]

NAME = "onet_images"
SMALLEST = 63  # pixels a side that `simple_conv` takes: five convolutions of three pixels halve them to one
TITLE = "Occupancy Networks from one image"
PARTS = {**onet.PARTS, "train": (*onet.PARTS["train"], "weights")}


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of the task; the comment beside each is its help."""

    NAME: ClassVar[str] = NAME
    samples: Recipe = dataclasses.replace(onet.SAMPLES, images=24, image_size=64)
    inputs: View = View(64)
    weights: str = ""  # file of ImageNet weights for the encoder to start from; random ones without

    def __post_init__(self):
        super().__post_init__()
        if self.inputs.size != self.samples.image_size or not self.samples.images:
            raise ConfigError(
                f"inputs.size is {self.inputs.size}, but samples.images asks for {self.samples.images} views of "
                f"{self.samples.image_size} pixels; they must be of one size, and at least one"
            )
        if self.network.encoder == "simple_conv" and self.inputs.size < SMALLEST:
            raise ConfigError(
                f"inputs.size is {self.inputs.size}, but network.encoder simple_conv needs {SMALLEST} pixels or more"
            )
        if self.weights and not self.network.encoder.startswith("resnet"):
            raise ConfigError(f"weights are of a ResNet, but network.encoder is {self.network.encoder!r}")


def network(width: int, encoder: str, encoder_width: int) -> Specs:
    """A smaller network of the published kind, for CPUs."""
    return Specs(encoder=encoder, c_dim=width, hidden_size=width, encoder_width=encoder_width, threshold=0.4)


PRESETS = {
    "quick": Config(network=network(96, "resnet18", 16), batch_shapes=8, batch_points=512, minutes=3.0),
    "small": Config(
        **onet.SMALL,
        samples=dataclasses.replace(onet.SAMPLES, images=24, image_size=96),
        inputs=View(96),
        network=network(128, "resnet18", 32),
    ),
    "paper": Config(
        **onet.PAPER | {"samples": dataclasses.replace(RECIPES["onet"], images=24), "validate_every": 20_000},
        inputs=View(224),
        network=Specs(encoder="resnet18"),
    ),
}


def problem(config: Config, store: Store, shapes, key, chosen: dict[str, Any]) -> Problem:
    """As of all conditional tasks, from ImageNet's weights where a file is named."""
    found = onet.problem(config, store, shapes, key, chosen)
    if not config.weights:
        return found
    shared, statistics = found.shared["params"], found.statistics
    encoder = imagenet(config.weights, shared["encoder"], statistics["encoder"])
    shared, statistics = shared | {"encoder": encoder[0]}, statistics | {"encoder": encoder[1]}
    return dataclasses.replace(found, shared={"params": shared}, statistics=statistics)


def summary(unseen: int, known: int) -> str:
    """The report's first sentence."""
    return f"{unseen} shapes never seen, each rebuilt in one pass from one picture; learned from {known} others."
