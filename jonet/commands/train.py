"""`train`: shapes to a model."""

from __future__ import annotations

from pathlib import Path

from jonet import learn
from jonet.commands.options import SEED, option


def declare(verb) -> None:
    verb(
        "train",
        train,
        "trains a network on a folder of meshes or a family",
        option("data"),
        option("--task", default="deepsdf", choices=learn.TASKS),
        option("--out", required=True, help="run folder"),
        option("--preset", help="quick (the usual one; of one mesh single), small or paper"),
        option("--minutes", type=float),
        SEED,
    )


def train(options) -> None:
    learn.train(
        options.data,
        options.task,
        workdir=options.out,
        preset=options.preset,
        minutes=options.minutes,
        seed=options.seed,
    )
    print(f"model: {Path(options.out) / 'model'}")
