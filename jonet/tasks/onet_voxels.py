"""Occupancy Networks from voxels: a smooth closed shape from a coarse grid of 32³ cells, in one pass.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3 and 4.4.

    python experiments/run.py --task=onet_voxels                  5.5 minutes on 2 cores
    python experiments/run.py --task=onet_voxels --data=FOLDER    the same with your own meshes
    python experiments/run.py --task=onet_voxels --preset=paper   the published settings, for accelerators

Results on unseen chairs: median IoU 0.79 (nearest training shape: 0.62), Chamfer-L1 0.006 of the longest side; with
`--preset=small` 0.86 and 0.005.
`--samples.voxels=ray` is the published voxelization: cells that the surface touches, and those whose center is inside.
"""

from __future__ import annotations

import dataclasses

from jonet.data.sampling import RECIPES, Recipe
from jonet.errors import ConfigError
from jonet.networks.occupancy import Specs
from jonet.tasks import onet
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import Voxels
from jonet.tasks.onet import Onet
from jonet.tasks.shapes import Shapes
from jonet.wording import counted

SAMPLES = dataclasses.replace(onet.SAMPLES, voxels="ray")


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of Occupancy Networks from voxels."""

    samples: Recipe = SAMPLES  # what is sampled from each shape
    inputs: Voxels = Voxels()  # the voxel grid that the encoder takes

    def check_later(self) -> None:
        """As for all conditional tasks; and there must be voxels."""
        super().check_later()
        if self.samples.voxels == "none":
            raise ConfigError("samples.voxels is none, but this network takes voxels; set samples.voxels=ray")


def network(width: int, encoder_width: int) -> Specs:
    """A smaller network of the published architecture, for CPUs."""
    return Specs(encoder="voxel_simple", c_dim=width, hidden_size=width, encoder_width=encoder_width, threshold=0.5)


class OnetVoxels(Onet[Config]):
    """An Occupancy Network whose encoder takes a coarse voxel grid."""

    name = "onet_voxels"
    title = "Occupancy Networks from voxels"
    config = Config
    presets = {
        "quick": Config(  # a grid shows less of a shape than a point cloud: many shapes, fewer points of each
            shapes=Shapes(train=800, val_fraction=0.02),
            samples=dataclasses.replace(onet.NEAR_SAMPLES, voxels="ray"),
            network=network(96, 8),
            points_sampling="mixed",
            ema_decay=0.99,
            cpu=Batch(8, 1024),
            minutes=3.2,
        ),
        "small": Config(**onet.SMALL_SOLID, network=network(128, 8)),
        "paper": Config(
            **onet.PAPER | {"samples": dataclasses.replace(RECIPES["onet"], voxels="ray"), "batch_points": 1024},
            network=Specs(encoder="voxel_simple"),
        ),
    }

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        return (
            f"{counted(unseen, 'unseen shape')}, each reconstructed from 32³ voxels in one pass; trained on "
            f"{counted(trained, 'other shape')}."
        )


TASK = OnetVoxels()
