"""Occupancy Networks from one image: the whole shape from one view, in one pass.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3 and 4.2.

    python experiments/run.py --task=onet_images                  5 to 6 minutes on 2 cores
    python experiments/run.py --task=onet_images --data=FOLDER    the same with your own meshes
    python experiments/run.py --task=onet_images --preset=paper   the published settings, for accelerators

Each shape is rendered from 24 viewpoints by `jonet/rendering/network_views.py`; a training step sees one of the views.
Shapes are predicted in their own axes, not the camera's.  The encoder's weights start at random unless `--weights`
names ImageNet's (as published), a torchvision .pth or a .safetensors file.

Results on unseen chairs from views of 64 pixels per side: median IoU 0.61 (nearest training shape, chosen by the ground
truth: 0.61), Chamfer-L1 0.015 of the longest side.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jonet.data.sampling import RECIPES, Recipe
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.networks.encoders import EncoderName
from jonet.networks.occupancy import Specs
from jonet.networks.published.pretrained import imagenet
from jonet.tasks import onet
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import View
from jonet.tasks.onet import Onet
from jonet.tasks.setup import TrainingSetup
from jonet.wording import counted

SMALLEST = 63  # pixels per side that `simple_conv` needs: five 3 × 3 convolutions of stride 2 reduce them to one


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of Occupancy Networks from images."""

    samples: Recipe = dataclasses.replace(onet.SAMPLES, images=24, image_size=64)  # what is sampled from each shape
    inputs: View = View(64)  # the image that the encoder takes
    weights: str = ""  # file with ImageNet weights (.pth or .safetensors) that the encoder starts from; empty: random

    def __post_init__(self):
        super().__post_init__()
        if self.inputs.size != self.samples.image_size or not self.samples.images:
            raise ConfigError(
                f"inputs.size is {self.inputs.size}, but samples.images is {self.samples.images}, of "
                f"{self.samples.image_size} pixels per side; they must be of one size, and at least one"
            )
        if self.network.encoder == "simple_conv" and self.inputs.size < SMALLEST:
            raise ConfigError(
                f"inputs.size is {self.inputs.size}, but network.encoder simple_conv needs at least {SMALLEST} pixels"
            )
        if self.weights and not self.network.encoder.startswith("resnet"):
            raise ConfigError(f"weights are of a ResNet, but network.encoder is {self.network.encoder!r}")


def network(width: int, encoder: EncoderName, encoder_width: int) -> Specs:
    """A smaller network of the published architecture, for CPUs."""
    return Specs(encoder=encoder, c_dim=width, hidden_size=width, encoder_width=encoder_width, threshold=0.4)


class OnetImages(Onet[Config]):
    """An Occupancy Network whose encoder takes one rendered view."""

    name = "onet_images"
    title = "Occupancy Networks from one image"
    config = Config
    presets = {
        "quick": Config(network=network(96, "resnet18", 16), cpu=Batch(8, 512), minutes=3.0),
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
    parts = {**Onet.parts, "train": (*Onet.parts["train"], "weights")}

    def given_files(self, config: Config) -> dict[str, str]:
        """The file with ImageNet's weights."""
        return {"weights": config.weights}

    def training_setup(self, config: Config, store: Store, shapes, key, autotuned: dict[str, Any]) -> TrainingSetup:
        """As for all conditional tasks, with ImageNet's weights if a file is named."""
        found = super().training_setup(config, store, shapes, key, autotuned)
        if not config.weights:
            return found
        shared, batch_stats = found.shared["params"], found.batch_stats
        encoder = imagenet(config.weights, shared["encoder"], batch_stats["encoder"])
        shared, batch_stats = shared | {"encoder": encoder[0]}, batch_stats | {"encoder": encoder[1]}
        return dataclasses.replace(found, shared={"params": shared}, batch_stats=batch_stats)

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        return (
            f"{counted(unseen, 'unseen shape')}, each reconstructed from one image in one pass; trained on "
            f"{counted(trained, 'other shape')}."
        )


TASK = OnetImages()
