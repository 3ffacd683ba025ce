"""Procedural families: watertight solids from a seed, for training without a download. One file a family."""

from jonet.data.families.catalogue import FAMILIES, Family, make, parameters

__all__ = ["FAMILIES", "Family", "make", "parameters"]
