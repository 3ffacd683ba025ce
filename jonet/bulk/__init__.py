"""Bulk jobs over thousands of shapes: in batches, resumable, divided among processes."""

from jonet.bulk.fields import represent
from jonet.bulk.shapes import extract, fit, reconstruct
from jonet.bulk.work import Settings, Summary

__all__ = ["Summary", "Settings", "extract", "fit", "reconstruct", "represent"]
