"""Options that several verbs have in common, said once."""

from __future__ import annotations

from jonet.errors import ConfigError
from jonet.model import Surfaces


def option(*names: str, **settings):
    """One argument of a verb, as `ArgumentParser.add_argument` takes it."""
    return names, settings


MODEL = option("model", help="a run folder or model folder")
INPUTS = option("inputs", nargs="+", help="meshes or clouds (PLY, XYZ, NPY, NPZ), files or folders, in own units")
OUT = option("--out", required=True, help="folder for the meshes")
FORMAT = option("--format", default="ply", choices=("ply", "obj", "stl", "glb", "off"))
RESOLUTION = option("--resolution", type=int, help="cells a side (default: the model's own)")
COUNT = option("--count", type=int, default=8)
SEED = option("--seed", type=int, default=0)
DISTRIBUTED = option(
    "--distributed",
    nargs="?",
    const="",
    metavar="ADDRESS:PORT,N,I",
    help="one of N processes under jax.distributed; without a value as the cluster says",
)


def check(options) -> None:
    """ConfigError for numbers that no verb can work with, before any work."""
    for name in ("limit", "batch", "count"):
        if (value := getattr(options, name, None)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}, but must be 1 or more")
    if (resolution := getattr(options, "resolution", None)) is not None:
        Surfaces(resolution=resolution)
