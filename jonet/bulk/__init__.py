"""Thousands of shapes through a trained model: read ahead, solved in batches, written behind, resumed, shared out."""

from jonet.bulk.shapes import extract, fit, reconstruct

__all__ = ["extract", "fit", "reconstruct"]
