"""Rendering of meshes: shaded images, contact sheets, and the views that networks take as input.  No jax."""
