"""Occupancy Networks from point clouds: a closed shape from 300 noisy points on its surface, in one pass.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3 and 4.3.

    python experiments/run.py --task=onet_points                  5.5 minutes on 2 cores
    python experiments/run.py --task=onet_points --data=FOLDER    the same with your own meshes
    python experiments/run.py --task=onet_points --preset=paper   the published settings, for accelerators

Results on unseen chairs: median IoU 0.80 after half of its steps (nearest training shape: 0.62); with `--preset=small`
0.86, and a Chamfer-L1 of 0.005 of the longest side.
"""

from __future__ import annotations

import dataclasses

from jonet.networks.occupancy import Specs
from jonet.tasks import onet
from jonet.tasks.batch import Batch
from jonet.tasks.inputs import Cloud
from jonet.tasks.onet import Onet
from jonet.tasks.shapes import Shapes
from jonet.wording import counted


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of Occupancy Networks from point clouds."""

    inputs: Cloud = Cloud()  # the point cloud that the encoder takes


def network(width: int, encoder_width: int) -> Specs:
    """A smaller network of the published architecture, for CPUs."""
    return Specs(encoder="pointnet_resnet", c_dim=width, hidden_size=width, encoder_width=encoder_width, threshold=0.5)


class OnetPoints(Onet[Config]):
    """An Occupancy Network whose encoder takes a noisy point cloud."""

    name = "onet_points"
    title = "Occupancy Networks from points"
    config = Config
    presets = {
        "quick": Config(
            shapes=Shapes(train=800, val_fraction=0.03),
            samples=onet.NEAR_SAMPLES,
            network=network(96, 64),
            points_sampling="mixed",
            ema_decay=0.99,
            cpu=Batch(16, 512),
            minutes=2.75,
        ),
        "small": Config(**onet.SMALL_SOLID, network=network(128, 64)),
        "paper": Config(**onet.PAPER, network=Specs(encoder="pointnet_resnet", c_dim=512)),
    }

    def summary(self, unseen: int, trained: int | None) -> str:
        """The report's first sentence.  trained: the number of training shapes."""
        return (
            f"{counted(unseen, 'unseen shape')}, each reconstructed from points on its surface in one pass; trained on "
            f"{counted(trained, 'other shape')}."
        )


TASK = OnetPoints()
