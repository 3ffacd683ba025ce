"""Procedural families: watertight solids from a seed, for training without a download.  One file per family."""

from jonet.data.families.catalog import FAMILIES, Family, make, parameters

__all__ = ["FAMILIES", "Family", "make", "parameters"]
