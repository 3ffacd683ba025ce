"""Occupancy Networks from point clouds: 300 noisy points of a surface become a closed shape, in one pass.

Mescheder, Oechsle, Niemeyer, Nowozin, Geiger: Occupancy Networks, CVPR 2019, sections 3 and 4.3.

    python experiments/run.py --task=onet_points                  5.5 minutes on 2 cores
    python experiments/run.py --task=onet_points --data=FOLDER    the same on meshes of your own
    python experiments/run.py --task=onet_points --preset=paper   the published settings, for accelerators

Unseen chairs: median IoU 0.77 (the nearest training shape: 0.62), Chamfer-L1 0.007 of the longest side; with
`--preset=small` 0.86 and 0.005.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jonet.networks.occupancy import Specs
from jonet.tasks import onet
from jonet.tasks.inputs import Cloud
from jonet.tasks.onet import FRAME, PARTS, VALIDATED, adjusted, inputs, model, observe, problem, scored, usual_preset
from jonet.tasks.shapes import Shapes

__all__ = ["FRAME", "PARTS", "VALIDATED", "adjusted", "inputs", "model", "observe", "problem", "scored", "usual_preset"]

NAME = "onet_points"
TITLE = "Occupancy Networks from points"


@dataclasses.dataclass(frozen=True)
class Config(onet.Config):
    """Options of the task; the comment beside each is its help."""

    NAME: ClassVar[str] = NAME
    inputs: Cloud = Cloud()


def network(width: int, encoder_width: int) -> Specs:
    """A smaller network of the published kind, for CPUs."""
    return Specs(encoder="pointnet_resnet", c_dim=width, hidden_size=width, encoder_width=encoder_width, threshold=0.5)


PRESETS = {
    "quick": Config(
        shapes=Shapes(train=800, val_share=0.03),
        network=network(96, 64),
        points_sampling="stratified",
        batch_points=512,
        minutes=2.75,
    ),
    "small": Config(**onet.SMALL_SOLID, network=network(128, 64)),
    "paper": Config(**onet.PAPER, network=Specs(encoder="pointnet_resnet", c_dim=512)),
}


def summary(unseen: int, known: int) -> str:
    """The report's first sentence."""
    return (
        f"{unseen} shapes never seen, rebuilt in one pass from points of their surfaces; learned from {known} others."
    )
