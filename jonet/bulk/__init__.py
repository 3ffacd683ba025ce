"""Bulk jobs: thousands of shapes through a trained model, in batches, resumable, divided among processes."""

from jonet.bulk.shapes import Settings, Summary, extract, fit, reconstruct

__all__ = ["Summary", "Settings", "extract", "fit", "reconstruct"]
