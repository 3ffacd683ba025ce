"""Shapes before training: meshes, families, samples, stores, batches, views."""
