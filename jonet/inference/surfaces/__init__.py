"""Extraction of closed meshes from fields."""
