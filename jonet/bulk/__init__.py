"""Thousands of shapes through a trained model: read ahead, solved in batches, written behind, resumed, shared out."""

from jonet.bulk.shapes import Report, Settings, extract, fit, reconstruct

__all__ = ["Report", "Settings", "extract", "fit", "reconstruct"]
